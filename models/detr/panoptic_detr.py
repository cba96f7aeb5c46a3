"""DETR for panoptic segmentation (Carion et al., ECCV 2020, arXiv 2005.12872, section 4).

A :class:`zoo.models.detr.detr.Detr` (or another member: :mod:`zoo.models.detr.panoptic`)
that detects things and stuff alike, and a mask head on its
queries, memory and backbone (:mod:`zoo.models.detr.mask_head`). The paper trains it in two stages:
first the detector on boxes of things and stuff, then the mask head alone for 25 epochs with the
detector frozen (``freeze_detector``, and ``--weights`` of the first stage's run). Both can be
trained at once, too, which the paper finds as good and the small variant does.

As in the release (github.com/facebookresearch/detr): attention maps are made anew from the last
decoder states and the encoder's memory; features are the projected last map, not the memory.

Unlike the release: in training masks are made for matched queries only (what no loss looks at has
no gradient); they are matched in the forward, on the same costs as the losses. A frozen detector is
in evaluation mode (no dropout) and keeps nothing for a backward pass. Losses and postprocessing:
see :mod:`zoo.models.detr.mask_losses` and :mod:`zoo.models.detr.panoptic_postprocess`. The small
variant's attention maps are multiples of a uniform one (without, its dice loss did not move within
200 steps on two pictures), and its dice loss counts five times (not compared by itself).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from zoo.models.detr.coco_panoptic_classes import COCO_250, STUFF_FROM
from zoo.models.detr.criterion import SetCriterion
from zoo.models.detr.detector import Detector
from zoo.models.detr.detr import LAYOUTS as DETECTOR_LAYOUTS
from zoo.models.detr.detr import Detr, DetrConfig, DetrOutput, detr_criterion
from zoo.models.detr.mask_head import AttentionMaps, MaskHead, Trace
from zoo.models.detr.mask_losses import PanopticCriterion
from zoo.models.detr.matcher import Kind
from zoo.models.detr.panoptic_postprocess import PanopticPostprocess
from zoo.models.layers.backbone import NANOS, Backbone, build_backbone
from zoo.registry import ModelSpec, register_model, same_tensors
from zoo.types import Target
from zoo.weights import KeyLayout, Loaded, Weights, initialise

Pairs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Settings of a mask head on a detector; the defaults are the paper's."""

    freeze_detector: bool = False  # the second stage: train the mask head alone
    coef_mask: float = 1.0  # of the focal loss of masks
    coef_dice: float = 1.0
    relative_maps: bool = False  # attention maps as multiples of a uniform one (from scratch)
    threshold: float = 0.85  # least score of a query in the panoptic map
    instance_threshold: float = 0.0  # least score of a detection that gets a mask
    stuff: tuple[int, ...] = ()  # class indices of stuff; empty: as the data says


@dataclass(frozen=True, kw_only=True)
class PanopticDetrConfig(MaskConfig, DetrConfig):
    """Settings of a panoptic DETR; the defaults are the paper's with a ResNet-50."""


class PanopticDetrOutput(DetrOutput, total=False):
    """As DETR's, and mask logits at stride 4 of the padded batch.

    In evaluation ``pred_masks`` is [B, Q, h, w]. In training with targets it is [P, h, w] of the
    matched pairs ``mask_pairs`` (image, query, target's row in its image, each [P]), or, where
    these are empty, of one query that is to be ignored.
    """

    pred_masks: Tensor
    mask_pairs: Pairs


class PanopticDetr(nn.Module):
    """The model; ``backbone`` replaces the one that the config names.

    It has to return its maps down to stride 4. Other detectors have subclasses.
    """

    def __init__(self, config: Any, num_classes: int, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        backbone = backbone or self.backbone_to(config, strides_to_4(config))
        self.detr = self.detector(config, num_classes, backbone)
        self.bbox_attention = AttentionMaps(config.dim, config.num_heads, config.relative_maps)
        finer = backbone.num_channels[: self.detr.level][::-1]
        self.mask_head = MaskHead(config.dim, config.num_heads, finer)
        self._matcher = self.set_criterion(config, num_classes).matcher
        if config.freeze_detector:
            self.detr.requires_grad_(False)

    # What a subclass for another detector says.
    def detector(self, config: Any, num_classes: int, backbone: Backbone) -> Any:
        """The detector, whose ``traced`` gives a :class:`zoo.models.detr.mask_head.Trace`."""
        return Detr(config, num_classes, backbone)

    @staticmethod
    def backbone_to(config: Any, strides: tuple[int, ...]) -> Backbone:
        """The backbone that the config names, with maps of these strides."""
        return build_backbone(
            config.backbone,
            dilation=config.dilation,
            weights=config.backbone_weights,
            norm=config.norm,
            strides=strides,
        )

    @staticmethod
    def set_criterion(config: Any, num_classes: int) -> SetCriterion:
        """The detector's losses."""
        return detr_criterion(config, num_classes)

    def trace(
        self, pixel_values: Tensor, pixel_mask: Tensor | None, targets: Sequence[Target] | None
    ) -> Trace:
        """The detector's predictions and what the mask head reads."""
        return cast(Trace, self.detr.traced(pixel_values, pixel_mask))

    def train(self, mode: bool = True) -> Self:
        """As of any module; a frozen detector stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze_detector:
            self.detr.eval()
        return self

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        targets: Sequence[Target] | None = None,
    ) -> PanopticDetrOutput:
        """Predictions for a batch of images.

        ``pixel_values`` [B, 3, H, W] and ``pixel_mask`` [B, H, W] as :meth:`Detr.forward` takes
        them. In training, ``targets`` say which queries need masks; without them there are none.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_detector):
            trace = self.trace(pixel_values, pixel_mask, targets)
        out = cast(PanopticDetrOutput, dict(trace.out))
        if self.training and targets is None:
            return out
        shared = self.mask_head.shared(trace.features, trace.finer)
        if targets is None or not self.training:
            maps = self.bbox_attention(trace.states, trace.memory, trace.mask)
            out["pred_masks"] = self.mask_head.every(shared, maps)
            return out
        pairs = image, query, _ = self._pairs(trace.out, targets)
        if not len(image):
            image = query = torch.zeros(1, dtype=torch.int64, device=image.device)
        chosen = self._maps(trace.states, trace.memory, trace.mask, image, query)
        out["pred_masks"] = self.mask_head(shared, chosen, image)
        out["mask_pairs"] = pairs
        return out

    def _maps(
        self, states: Tensor, memory: Tensor, mask: Tensor, image: Tensor, query: Tensor
    ) -> Tensor:
        """Attention maps [P, A, h, w] of pairs."""
        return self.bbox_attention(states, memory, mask)[image, query]

    def _pairs(self, found: Mapping[str, Tensor], targets: Sequence[Target]) -> Pairs:
        """The last layer's matches in images whose targets have masks."""
        logits, boxes = (found[key].detach()[None] for key in ("pred_logits", "pred_boxes"))
        matches = self._matcher.assign(logits, boxes, targets)
        starts = torch.tensor(matches.starts, device=matches.image.device)
        with_masks = torch.tensor(["masks" in t for t in targets], device=matches.image.device)
        kept = with_masks[matches.image]
        image, query, row = (t[kept] for t in (matches.image, matches.query[0], matches.target[0]))
        return image, query, row - starts[image]


def strides_to_4(config: Any) -> tuple[int, ...]:
    """From 4 to the coarsest stride that the detector reads."""
    usual = (16,) if config.backbone in NANOS else (32,)
    coarsest = max(getattr(config, "strides", ()) or usual)
    return tuple(stride for stride in (4, 8, 16, 32) if stride <= coarsest)


# ---- Other projects' names of the same tensors ------------------------------------------------

_Rules = tuple[tuple[str, str], ...]

_DETECTOR: _Rules = ((r"^detr\.", ""),)
# What is left after the detector's own rules and has no other place is the detector's.
_BACK: _Rules = ((r"^(?!mask_head\.|bbox_attention\.)(?=.)", "detr."),)

# The release's and hub files': numbered layers, the first two apart.
_HEAD: _Rules = (
    (r"^bbox_attention\.([qk])_linear\.", r"bbox_attention.\1_proj."),
    (r"^mask_head\.lay([12])\.", r"mask_head.conv\1."),
    (r"^mask_head\.gn([12])\.", r"mask_head.norm\1."),
    (r"^mask_head\.out_lay\.", "mask_head.out."),
    *((rf"^mask_head\.adapter{n + 1}\.", f"mask_head.adapters.{n}.") for n in range(3)),
    *((rf"^mask_head\.lay{n + 3}\.", f"mask_head.convs.{n}.") for n in range(3)),
    *((rf"^mask_head\.gn{n + 3}\.", f"mask_head.norms.{n}.") for n in range(3)),
)
# transformers' since version 5, in memory.
_HEAD_IN_MEMORY: _Rules = (
    (r"^mask_head\.conv([12])\.(conv|norm)\.", r"mask_head.\2\1."),
    (r"^mask_head\.fpn_stages\.(\d)\.fpn_adapter\.", r"mask_head.adapters.\1."),
    (r"^mask_head\.fpn_stages\.(\d)\.refine\.(conv|norm)\.", r"mask_head.\2s.\1."),
    (r"^mask_head\.output_conv\.", "mask_head.out."),
)

_OF = {layout.name: layout for layout in DETECTOR_LAYOUTS}
_COCO_IDS = tuple(range(len(COCO_250)))
_STUFF = tuple(range(STUFF_FROM, len(COCO_250)))

LAYOUTS = (
    KeyLayout(
        name="the DETR release's panoptic",
        marker=r"^detr\.transformer\.decoder\.layers\.0\.multihead_attn\.in_proj_weight$",
        rules=(*_HEAD, *_DETECTOR, *_OF["the DETR release's"].rules, *_BACK),
        fix=_OF["the DETR release's"].fix,
        class_names=COCO_250,
        class_ids=_COCO_IDS,
    ),
    KeyLayout(
        name="transformers' panoptic",
        marker=r"^detr\.model\.decoder\.layers\.0\.self_attn\.q_proj\.weight$",
        rules=(*_HEAD_IN_MEMORY, *_HEAD, *_DETECTOR, *_OF["transformers'"].rules, *_BACK),
    ),
)


# ---- Variants ---------------------------------------------------------------------------------


def _start(model: nn.Module, loaded: Loaded, **how: Any) -> str:
    """As :func:`zoo.weights.initialise`; from a plain detector, too: the mask head stays new.

    ``whole`` (to use the model as it is) wants the mask head in the checkpoint.
    """
    if how.get("whole") or any(k.startswith("detr.") for k in loaded.state):
        return initialise(model, loaded, **how)
    own = model.state_dict()
    new = {k: v for k, v in own.items() if not k.startswith("detr.")}
    state = {f"detr.{k}": v for k, v in loaded.state.items()}
    note = initialise(model, replace(loaded, state={**state, **new}), **how)
    return f"{note}; of a detector, the mask head is new"


def _adapt(spec: ModelSpec, loaded: Loaded) -> ModelSpec | None:
    """As :func:`zoo.registry.same_tensors`; of COCO's 250 rows it is known which are stuff."""
    if same_tensors(spec, loaded) is None:
        return None
    if len(loaded.class_names) != len(COCO_250):
        return spec
    return replace(spec, config=replace(spec.config, stuff=_STUFF))


def panoptic_spec(
    build: type[PanopticDetr],
    config: MaskConfig,
    recipe: str,
    *,
    kind: Kind,
    class_rows: Sequence[str],
    weights: Mapping[str, Weights] | None = None,
    layouts: tuple[KeyLayout, ...] = (),
) -> ModelSpec:
    """A variant with this config; ``kind`` and ``class_rows`` are those of its detector."""

    def criterion(config: Any, num_classes: int) -> PanopticCriterion:
        return PanopticCriterion(
            build.set_criterion(config, num_classes),
            coef_mask=config.coef_mask,
            coef_dice=config.coef_dice,
            frozen=config.freeze_detector,
        )

    def postprocess(config: Any) -> PanopticPostprocess:
        return PanopticPostprocess(
            threshold=config.threshold,
            instance_threshold=config.instance_threshold,
            stuff=config.stuff,
            max_detections=config.max_detections,
            kind=kind,
        )

    return ModelSpec(
        config=config,
        build=build,
        criterion=criterion,
        postprocess=postprocess,
        predictor=Detector,
        recipe=recipe,
        data="shapes_panoptic",
        start=_start,
        adapt=_adapt,
        weights=weights or {},
        layouts=layouts,
        class_rows=tuple(f"detr.{row}" for row in class_rows),
    )


def _spec(recipe: str, weights: Mapping[str, Weights] | None = None, **settings: Any) -> ModelSpec:
    config = replace(PanopticDetrConfig(), **settings)
    rows = ("class_embed.weight", "class_embed.bias")
    return panoptic_spec(
        PanopticDetr,
        config,
        recipe,
        kind="softmax",
        class_rows=rows,
        weights=weights,
        layouts=LAYOUTS,
    )


def _published(hub: str, file: str, pq: float) -> Mapping[str, Weights]:
    """The released weights; PQ is the release's README's, on val2017."""

    def at(source: str) -> Weights:
        return Weights(
            source=source,
            class_names=COCO_250,
            class_ids=_COCO_IDS,
            metrics={"PQ": pq},
            licence="Apache-2.0",
        )

    return {
        "coco": at(f"facebook/detr-resnet-{hub}-panoptic"),
        "coco-release": at(f"https://dl.fbaipublicfiles.com/detr/detr-{file}.pth"),
    }


@register_model
def panoptic_detr_nano() -> ModelSpec:
    """Panoptic DETR in small, from scratch on a CPU; boxes and masks are trained at once."""
    return _spec(
        "panoptic_detr_nano",
        relative_maps=True,
        coef_dice=5.0,
        backbone="nano",
        dim=128,
        num_heads=8,
        encoder_layers=2,
        decoder_layers=3,
        ffn_dim=512,
        dropout=0.0,
    )


@register_model
def panoptic_detr_r50() -> ModelSpec:
    """Panoptic DETR with a ResNet-50: 42.9 M parameters, published PQ 43.4."""
    weights = _published("50", "r50-panoptic-00ce5173", 0.434)
    return _spec("panoptic_detr_r50", weights)


@register_model
def panoptic_detr_r50_dc5() -> ModelSpec:
    """Panoptic DETR-DC5 with a ResNet-50, twice the resolution; published PQ 44.6."""
    weights = _published("50-dc5", "r50-dc5-panoptic-da08f1b1", 0.446)
    return _spec("panoptic_detr_r50_dc5", weights, dilation=True)


@register_model
def panoptic_detr_r101() -> ModelSpec:
    """Panoptic DETR with a ResNet-101; published PQ 45.1."""
    weights = _published("101", "r101-panoptic-40021d53", 0.451)
    return _spec("panoptic_detr_r101", weights, backbone="resnet101")

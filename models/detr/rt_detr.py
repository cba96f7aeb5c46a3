"""RT-DETR, a DETR in real time (Zhao et al., CVPR 2024, arXiv 2304.08069), versions 1 and 2.

A hybrid encoder (:mod:`zoo.models.layers.hybrid_encoder`) fuses three levels of a ResNet-D at the
cost of few convolutions and one layer of attention (section 4.2). Every cell of the fused levels
proposes a box, and the best-scored become the queries; since classification is trained to follow
the overlap (:mod:`zoo.models.detr.quality`), their boxes are good ones (section 4.3). The decoder
is Deformable DETR's with boxes refined from layer to layer, trained with contrastive denoising
queries (:mod:`zoo.models.detr.contrastive`).

Version 2 (arXiv 2407.17140) is the same network with other training; its new settings are
``num_points``, the sampled points by level, and ``discrete``, which samples single cells without
interpolation (for deployment; train with it at the end only, since offsets get no gradient).

As in the release (github.com/lyuwenyu/RT-DETR): cells at the very edge of fine levels (nearer than
0.01) propose nothing; a layer's box is added to the box of the one before without detaching it
("look forward twice"), while attention is around the detached one; pixels are scaled to 0..1 and
not normalised.

Unlike the release, which sees square pictures only: pictures of any size and padded batches work.
Padding is ignored where the network attends and proposes; convolutions see its edge, as in every
DETR. Unlike it also: losses of selection and layers are normalised over ranks, and empty denoising
slots are hidden and have none. ``exit_layer`` is the paper's speed tuning without retraining
(section 5.4). Nothing runs that nobody reads.

The nano variant has a small backbone, one RepVGG block a fusion, and less noise: in minutes,
queries that begin far from their objects learn little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from zoo.errors import ZooError, nearest
from zoo.models.detr.contrastive import contrastive_queries
from zoo.models.detr.focal import (
    LayeredOutput,
    focal_postprocess,
    layered_output,
    weighed_criterion,
    with_noised,
)
from zoo.models.detr.quality import VarifocalLoss
from zoo.models.detr.rt_detr_keys import LAYOUTS, coco_classes, published, start
from zoo.models.layers.backbone import Backbone, NanoBackbone, known_unpadded
from zoo.models.layers.deformable_transformer import (
    CellHeads,
    DeformableDecoderLayer,
    decode,
    init_deformable,
)
from zoo.models.layers.heads import MAX_LOGIT, best_rows, box_head, class_head, exact
from zoo.models.layers.hybrid_encoder import HybridEncoder
from zoo.models.layers.levels import FlatLevels, flat_levels
from zoo.models.layers.resnet_vd import ConvNorm, build_vd_backbone
from zoo.models.layers.transformer import ACTIVATIONS, MLP, init_xavier
from zoo.registry import ModelSpec, register_model
from zoo.types import Criterion, Target


@dataclass(frozen=True, kw_only=True)
class RtDetrConfig:
    """Settings of an RT-DETR; the defaults are the paper's with a ResNet-50."""

    backbone: str = "resnet50vd"  # or another ResNet-D, a ResNet, or nano
    backbone_weights: str | None = None  # a file, none (random) or null (later)
    norm: str = "frozen"  # of the ResNet: frozen, or batch to train from scratch
    widths: tuple[int, ...] = ()  # a nano backbone of one's own: channels of its stages, with
    depths: tuple[int, ...] = ()  # the blocks of each
    strides: tuple[int, ...] = (8, 16, 32)  # backbone levels
    encoder_scale: float = 1.0  # width of the hybrid encoder over dim
    encoder_layers: int = 1  # of attention on the coarsest level
    encoder_ffn_scale: float = 1.0  # width of its feed-forward block over ffn_dim
    encoder_activation: str = "gelu"
    expansion: float = 1.0  # width within the fusing blocks over that of the encoder
    fusion_depth: int = 3  # RepVGG blocks a fusion
    dim: int = 256  # of the decoder
    num_heads: int = 8
    num_points: tuple[int, ...] = (4,)  # sampled points a head: by level, or one number for all
    discrete: bool = False
    decoder_layers: int = 6
    exit_layer: int = 0  # evaluation ends after so many decoder layers; 0: after the last
    ffn_dim: int = 1024
    dropout: float = 0.0
    num_queries: int = 300
    aux_loss: bool = True  # losses on every decoder layer

    # Contrastive denoising
    dn_queries: int = 100  # pairs an image, at least one of every object; 0: none
    label_noise: float = 0.5
    box_noise: float = 1.0

    # Matching and losses
    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    cost_alpha: float = 0.25
    cost_gamma: float = 2.0
    coef_class: float = 1.0
    coef_bbox: float = 5.0
    coef_giou: float = 2.0
    quality_alpha: float = 0.75
    quality_gamma: float = 2.0
    max_detections: int = 100


class Selected(TypedDict):
    """Proposals that become queries: contents, class logits and boxes' logits."""

    content: Tensor  # [B, Q, D]
    logits: Tensor  # [B, Q, K]
    boxes: Tensor  # [B, Q, 4]


class Selection(CellHeads):
    """Query selection (section 4.3): the cells whose best class scores highest.

    Boxes are worked out for the chosen cells alone.
    """

    def __init__(self, dim: int, num_classes: int, num_queries: int) -> None:
        super().__init__(dim, num_classes)
        self.num_queries = num_queries

    def forward(self, levels: FlatLevels) -> Selected:
        """From the levels' tokens. Q is ``num_queries``, or the cells' number where that is less.

        Padded cells come last. Cells at the edge may be chosen, as in the release: they stand for
        an empty content at the image's far corner.
        """
        states, logits, starts = self.scored(levels.tokens, levels)
        scores = logits.detach().amax(-1)
        if levels.mask is not None:
            scores = scores.masked_fill(~levels.mask, -torch.inf)
        content, logits, places = best_rows(self.num_queries, scores, states, logits, starts)
        boxes = places + exact(self.bbox_embed, content)
        return {"content": content, "logits": logits, "boxes": boxes}


class RtDetrDecoder(nn.Module):
    """Layers that refine boxes, with their class and box heads."""

    def __init__(self, config: RtDetrConfig, num_classes: int) -> None:
        super().__init__()
        dim, levels, count = config.dim, len(config.strides), config.decoder_layers
        points = config.num_points * (levels if len(config.num_points) == 1 else 1)
        sizes = (dim, config.num_heads, config.ffn_dim, config.dropout)
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(*sizes, levels, points, discrete=config.discrete)
            for _ in range(count)
        )
        init_deformable(self.layers)
        self.query_pos_head = MLP(4, 2 * dim, dim, 2)
        init_xavier(self.query_pos_head)
        self.class_embed = nn.ModuleList(class_head(dim, num_classes) for _ in range(count))
        self.bbox_embed = nn.ModuleList(box_head(dim) for _ in range(count))

    def forward(
        self,
        x: Tensor,
        anchors: Tensor,
        levels: FlatLevels,
        *,
        self_mask: Tensor | None = None,
        every: bool = False,
        layers: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, B, Q, K] and boxes [N, B, Q, 4] of every layer, or of the last [1, ..].

        ``x`` [B, Q, D] are the contents, ``anchors`` [B, Q, 4] logits; the memory is the levels'
        tokens. ``self_mask`` [.., Q, Q] as in :func:`zoo.models.layers.transformer.attend`; with
        ``layers`` only so many of them run.
        """
        count = layers or len(self.layers)
        states, boxes = decode(
            list(self.layers)[:count],
            x,
            anchors.clamp(-MAX_LOGIT, MAX_LOGIT),
            levels.tokens,
            levels,
            query_pos=lambda places, content, layer: self.query_pos_head(places),
            box_heads=list(self.bbox_embed)[:count],
            look_forward_twice=True,
            padded_pos=False,
            self_mask=self_mask,
            every=every,
        )
        heads = list(self.class_embed)[count - len(states) : count]
        logits = [exact(head, state) for head, state in zip(heads, states, strict=True)]
        return torch.stack(logits), boxes


class RtDetr(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    def __init__(
        self, config: RtDetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        _check(config)
        dim, inner = config.dim, round(config.dim * config.encoder_scale)
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone or _backbone(config)
        self.encoder = HybridEncoder(
            self.backbone.num_channels,
            inner,
            num_heads=config.num_heads,
            ffn_dim=round(config.ffn_dim * config.encoder_ffn_scale),
            num_layers=config.encoder_layers,
            dropout=config.dropout,
            activation=config.encoder_activation,
            expansion=config.expansion,
            depth=config.fusion_depth,
        )
        self.memory_proj = nn.ModuleList(ConvNorm(inner, dim) for _ in config.strides)
        self.selection = Selection(dim, num_classes, config.num_queries)
        if config.dn_queries:
            self.label_embed = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        self.decoder = RtDetrDecoder(config, num_classes)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        targets: Sequence[Target] | None = None,
    ) -> LayeredOutput:
        """Predictions for a batch of images.

        ``pixel_values`` [B, 3, H, W]: uint8, or floats that are 0 where padded and in 0..1 (of a
        ResNet-D; for the other backbones ImageNet-normalised). ``pixel_mask`` [B, H, W]: True
        where valid; None where nothing is padded. ``targets``: B dicts with ``labels`` and
        ``boxes``, read in training with denoising only, for queries that no other query can see.
        """
        features = self.backbone(pixel_values, pixel_mask)
        unpadded = pixel_mask is None or known_unpadded(pixel_mask, pixel_mask)
        masks = [mask for _, mask in features]
        maps = self.encoder([x for x, _ in features], None if unpadded else masks)
        maps = [proj(x) for proj, x in zip(self.memory_proj, maps, strict=True)]
        levels = flat_levels(maps, None if unpadded else masks)

        found = self.selection(levels)
        content, anchors = found["content"].detach(), found["boxes"].detach()
        noised, self_mask = None, None
        if self.training and self.config.dn_queries and targets is not None:
            noised = contrastive_queries(
                targets,
                self.num_classes,
                total=self.config.dn_queries,
                label_noise=self.config.label_noise,
                box_noise=self.config.box_noise,
            )
            known = self.label_embed(noised.labels)
            content, anchors, self_mask = with_noised(noised, known, content, anchors)
        logits, boxes = self.decoder(
            content,
            anchors,
            levels,
            self_mask=self_mask,
            every=self.training and self.config.aux_loss,
            layers=0 if self.training else self.config.exit_layer,
        )
        proposals = {"pred_logits": found["logits"], "pred_boxes": found["boxes"].sigmoid()}
        return layered_output(
            logits, boxes, training=self.training, proposals=[proposals], noised=noised
        )


def _check(config: RtDetrConfig) -> None:
    name = config.encoder_activation
    if name not in ACTIVATIONS:
        raise ZooError(
            f"there is no activation '{name}' (model.encoder_activation); "
            f"{nearest(name, list(ACTIVATIONS))}"
        )
    levels, points = len(config.strides), len(config.num_points)
    if points not in (1, levels) or min(config.num_points) < 1:
        raise ZooError(
            f"model.num_points={list(config.num_points)} has to hold one number above 0, or one "
            f"for each of the {levels} levels"
        )
    if not 0 <= config.exit_layer <= config.decoder_layers:
        raise ZooError(
            f"model.exit_layer={config.exit_layer} is not among the {config.decoder_layers} "
            "decoder layers; 0 stands for the last"
        )


def _backbone(config: RtDetrConfig) -> Backbone:
    if config.widths:
        return NanoBackbone(config.widths, config.depths, out_strides=config.strides)
    return build_vd_backbone(
        config.backbone,
        weights=config.backbone_weights,
        norm=config.norm,
        strides=config.strides,
    )


# ---- Variants ---------------------------------------------------------------------------------


def _criterion(config: RtDetrConfig, num_classes: int) -> Criterion:
    """Matching has the focal loss's cost, as in the release."""
    classes = VarifocalLoss(config.quality_alpha, config.quality_gamma)
    return weighed_criterion(config, num_classes, classes, config.cost_alpha, config.cost_gamma)


def _predictor(*args: Any, **kwargs: Any) -> Any:
    from zoo.models.detr.detector import Detector

    names, ids = coco_classes(kwargs["class_names"], kwargs["class_ids"])
    return Detector(*args, **{**kwargs, "class_names": names, "class_ids": ids})


def class_rows(config: RtDetrConfig) -> tuple[str, ...]:
    """The state keys with one row a class, as patterns."""
    heads = ["selection.class_embed", "decoder.class_embed.*"]
    rows = [f"{head}.{kind}" for head in heads for kind in ("weight", "bias")]
    return (*rows, *["label_embed.weight"] * bool(config.dn_queries))


def _spec(
    recipe: str, hubs: Mapping[str, tuple[str, float]] | None = None, **settings: Any
) -> ModelSpec:
    """A variant with these settings, and the hub names and AP of its published weights."""
    config = replace(RtDetrConfig(), **settings)
    return ModelSpec(
        config=config,
        build=RtDetr,
        criterion=_criterion,
        postprocess=focal_postprocess,
        predictor=_predictor,
        recipe=recipe,
        start=start,
        preprocess={"val_size": 640, "val_max_size": 640, "square": True} if hubs else {},
        weights=published(hubs or {}),
        layouts=LAYOUTS,
        class_rows=class_rows(config),
    )


R18: Mapping[str, Any] = {"backbone": "resnet18vd", "expansion": 0.5, "decoder_layers": 3}
R34: Mapping[str, Any] = {"backbone": "resnet34vd", "expansion": 0.5, "decoder_layers": 4}
R101: Mapping[str, Any] = {
    "backbone": "resnet101vd", "encoder_scale": 1.5, "encoder_ffn_scale": 2.0,
}  # fmt: skip


@register_model
def rt_detr_nano() -> ModelSpec:
    """RT-DETR in small, from scratch on a CPU; what the bare name ``detr`` stands for."""
    return _spec(
        "rt_detr_nano",
        backbone="nano",
        dim=128,
        num_heads=4,
        ffn_dim=512,
        decoder_layers=3,
        expansion=0.5,
        fusion_depth=1,
        num_queries=80,
        dn_queries=40,
        box_noise=0.4,
        coef_class=5.0,
        quality_gamma=1.0,
    )


@register_model
def rt_detr_r18() -> ModelSpec:
    """RT-DETR with a ResNet-18-D: 20 M parameters, published AP 46.5."""
    hubs = {"coco": ("rtdetr_r18vd", 0.465), "objects365": ("rtdetr_r18vd_coco_o365", 0.492)}
    return _spec("rt_detr_r50", hubs, **R18)


@register_model
def rt_detr_r50() -> ModelSpec:
    """RT-DETR with a ResNet-50-D: 42 M parameters, published AP 53.1."""
    hubs = {"coco": ("rtdetr_r50vd", 0.531), "objects365": ("rtdetr_r50vd_coco_o365", 0.553)}
    return _spec("rt_detr_r50", hubs)


@register_model
def rt_detr_v2_r18() -> ModelSpec:
    """RT-DETR v2 with a ResNet-18-D: 20 M parameters, published AP 48.1."""
    return _spec("rt_detr_v2_r18", {"coco": ("rtdetr_v2_r18vd", 0.481)}, **R18)


@register_model
def rt_detr_v2_r34() -> ModelSpec:
    """RT-DETR v2 with a ResNet-34-D: 31 M parameters, published AP 49.9 (version 1: 48.9)."""
    hubs = {"coco": ("rtdetr_v2_r34vd", 0.499), "coco_v1": ("rtdetr_r34vd", 0.489)}
    return _spec("rt_detr_v2_r18", hubs, **R34)


@register_model
def rt_detr_v2_r50() -> ModelSpec:
    """RT-DETR v2 with a ResNet-50-D: 42 M parameters, published AP 53.4."""
    return _spec("rt_detr_v2_r50", {"coco": ("rtdetr_v2_r50vd", 0.534)})


@register_model
def rt_detr_v2_r101() -> ModelSpec:
    """RT-DETR v2 with a ResNet-101-D: 76 M parameters, published AP 54.3 (as version 1's)."""
    hubs = {
        "coco": ("rtdetr_v2_r101vd", 0.543),
        "coco_v1": ("rtdetr_r101vd", 0.543),
        "objects365_v1": ("rtdetr_r101vd_coco_o365", 0.562),
    }
    return _spec("rt_detr_v2_r50", hubs, **R101)

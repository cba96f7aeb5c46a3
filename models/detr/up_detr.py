"""UP-DETR: a DETR that is pretrained without labels (Dai et al., CVPR 2021, arXiv 2011.09094).

Random patches are cut out of a picture and given to the decoder as queries; it has to say where in
the picture each came from (section 3.1). A patch's features, pooled, are projected and added to the
queries' embeddings; with several patches each gets a group of the queries, groups do not see each
other, and a tenth of the queries gets no patch (section 3.2). So that classes are not forgotten for
places, every matched query also restores its patch's features (section 3.1, the reconstruction
loss). Then the model is fine-tuned as any DETR, from these weights. Layers are pre-norm.

Two variants share their tensors' names: ``up_detr_pretext_*`` is trained on ``--data
patches:FOLDER`` (:mod:`zoo.datasets.patches`); ``up_detr_* --weights RUN`` is fine-tuned from it.

As in the release (github.com/dddzg/up-detr): the features are those of the frozen backbone on the
patch alone, at 128 x 128 pixels, averaged; the reconstruction loss is the squared distance of
normalised vectors; one class, "this is your patch".

Unlike the release: groups are as many as patches, whatever the number of queries (its mask is
right for 10 patches of 100 queries only); patches are cut by RoIAlign from the picture that the
model sees, on its device, and not resized from the file once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, roi_align

from zoo.errors import ZooError
from zoo.models.detr.criterion import SetCriterion
from zoo.models.detr.detector import Detector
from zoo.models.detr.detr import (
    Detr,
    DetrConfig,
    DetrOutput,
    detr_criterion,
    detr_postprocess,
)
from zoo.models.layers.backbone import Backbone, known_unpadded
from zoo.models.layers.heads import exact
from zoo.models.layers.transformer import MLP
from zoo.registry import ModelSpec, register_model
from zoo.types import Losses, Target
from zoo.weights import Loaded, initialise

PRETEXT_PARTS = ("patch_proj.", "feature_embed.")  # what fine-tuning has no place for


@dataclass(frozen=True, kw_only=True)
class UpDetrConfig(DetrConfig):
    """Settings of an UP-DETR; the defaults are the paper's with a ResNet-50."""

    norm_first: bool = True
    pretext: bool = False  # to find patches, not objects
    freeze_backbone: bool = True  # in the pretext task
    patch_size: int = 128  # pixels of a patch's side as the backbone sees it
    patch_drop: float = 0.1  # probability that a query gets no patch, in training
    coef_feature: float = 1.0  # of the reconstruction


class UpDetrOutput(DetrOutput, total=False):
    """As DETR's; of the pretext task also what the reconstruction loss compares."""

    pred_features: Tensor  # [B, Q, C] of the last decoder layer
    patch_features: Tensor  # [B, P, C]


class UpDetr(nn.Module):
    """The model; ``backbone`` as of :class:`Detr`."""

    def __init__(
        self, config: UpDetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        if not 0 <= config.patch_drop < 1 or config.patch_size < 1:
            raise ZooError(
                f"model.patch_drop is {config.patch_drop} and patch_size {config.patch_size}; they "
                "have to be in 0..1, but below 1, and 1 pixel or more"
            )
        self.config = config
        self.detr = Detr(config, num_classes, backbone)
        if config.pretext:
            channels = self.detr.backbone.num_channels[-1]
            self.patch_proj = nn.Linear(channels, config.dim)
            self.feature_embed = MLP(config.dim, config.dim, channels, 2)
            if config.freeze_backbone:
                self.detr.backbone.requires_grad_(False)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        query_boxes: Tensor | None = None,
    ) -> UpDetrOutput:
        """Predictions for a batch of images: inputs as of :meth:`Detr.forward`.

        The pretext task needs ``query_boxes`` [B, P, 4], cxcywh in 0..1 of the unpadded image:
        where the patches are cut. The number of queries has to be a multiple of P.
        """
        if not self.config.pretext:
            return cast(UpDetrOutput, self.detr(pixel_values, pixel_mask))
        if query_boxes is None:
            raise ZooError("the pretext task needs patches to find; train on --data patches:FOLDER")
        tokens, pos, mask = self.detr.tokens(self.detr.backbone(pixel_values, pixel_mask))
        allowed = None if known_unpadded(pixel_mask, mask) else mask.flatten(1)[:, None, None]
        memory = self.detr.encoder(tokens, pos, allowed)

        patches = self._features(pixel_values, pixel_mask, query_boxes)
        queries, self_mask = self._queries(patches)
        every = self.training and self.config.aux_loss
        states = self.detr.decoder(memory, pos, queries, allowed, every, self_mask)
        out = cast(UpDetrOutput, self.detr.heads(states))
        out["pred_features"] = exact(self.feature_embed, states[-1])
        out["patch_features"] = patches
        return out

    @torch.no_grad()
    def _features(
        self, pixel_values: Tensor, pixel_mask: Tensor | None, query_boxes: Tensor
    ) -> Tensor:
        """The backbone's averaged features of the patches alone, [B, P, C]."""
        backbone = self.detr.backbone
        batch, _, height, width = pixel_values.shape
        sides = query_boxes.new_tensor([width, height]).expand(batch, 2)
        if pixel_mask is not None:
            sides = torch.stack([pixel_mask.any(1).sum(1), pixel_mask.any(2).sum(1)], 1).float()
        scale = sides.repeat(1, 2)[:, None]
        boxes = box_convert(query_boxes.float() * scale, "cxcywh", "xyxy")
        pixels = backbone.normalize(pixel_values, pixel_mask).float()
        size = (self.config.patch_size, self.config.patch_size)
        patches = roi_align(pixels, list(boxes.unbind()), size, aligned=True)
        training = backbone.training
        backbone.eval()  # statistics are of pictures, not of patches
        features = backbone.features(patches)[-1].float().mean((2, 3))
        backbone.train(training)
        return features.unflatten(0, (batch, -1))

    def _queries(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the queries [B, Q, D], and who sees whom [Q, Q]."""
        count, groups = self.config.num_queries, patches.shape[1]
        if count % groups:
            raise ZooError(
                f"{count} queries can't be shared by {groups} patches; set model.num_queries to a "
                "multiple of data.patches"
            )
        each = count // groups
        given = self.patch_proj(patches).repeat_interleave(each, dim=1)
        if self.training:
            kept = torch.rand(given.shape[:2], device=given.device) >= self.config.patch_drop
            given = given * kept[..., None]
        group = torch.arange(count, device=given.device) // each
        return self.detr.query_embed.weight + given, group[:, None] == group[None]


class PretextCriterion:
    """DETR's losses with the one class "patch", and ``loss_feature`` of the last layer's matches.

    The squared distance of the normalised features that a matched query restores and those of its
    patch (equation 4), averaged over matches, weighed by ``coef``.
    """

    def __init__(self, criterion: SetCriterion, coef: float) -> None:
        self.criterion = criterion
        self.coef = coef

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> Losses:
        """As :meth:`SetCriterion.__call__`, with ``pred_features`` and ``patch_features``.

        Target n of an image has to be its patch n.
        """
        losses = self.criterion(outputs, targets)
        logits, boxes = (outputs[key].float()[None] for key in ("pred_logits", "pred_boxes"))
        found = self.criterion.matcher.assign(logits, boxes, targets)
        restored = outputs["pred_features"].float()[found.image, found.query[0]]
        patches = outputs["patch_features"].float().flatten(0, 1)[found.target[0]]
        apart = F.normalize(restored, dim=-1) - F.normalize(patches, dim=-1)
        feature = apart.square().sum() / max(1, len(restored))
        terms = {**losses.terms, "loss_feature": feature.detach()}
        return Losses(losses.total + self.coef * feature, terms)


# ---- Variants ---------------------------------------------------------------------------------


def _criterion(config: UpDetrConfig, num_classes: int) -> SetCriterion | PretextCriterion:
    criterion = detr_criterion(config, num_classes)
    return PretextCriterion(criterion, config.coef_feature) if config.pretext else criterion


def _start(model: nn.Module, loaded: Loaded, **how: Any) -> str:
    """As :func:`zoo.weights.initialise`; the pretext task's own parts have no place afterwards."""
    own = model.state_dict()
    extra = [k for k in loaded.state if k.startswith(PRETEXT_PARTS) and k not in own]
    if not extra:
        return initialise(model, loaded, **how)
    state = {k: v for k, v in loaded.state.items() if k not in extra}
    note = initialise(model, replace(loaded, state=state), **how)
    return f"{note}; left out the pretext task's parts"


def _spec(recipe: str, **settings: Any) -> ModelSpec:
    config = replace(UpDetrConfig(), **settings)
    return ModelSpec(
        config=config,
        build=UpDetr,
        criterion=_criterion,
        postprocess=detr_postprocess,
        predictor=Detector,
        recipe=recipe,
        data="patches" if config.pretext else "shapes",
        start=_start,
        class_rows=("detr.class_embed.weight", "detr.class_embed.bias"),
    )


_NANO: Mapping[str, Any] = {
    "backbone": "nano",
    "dim": 128,
    "num_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "ffn_dim": 512,
    "dropout": 0.0,
    "freeze_backbone": False,  # it begins at random: there is nothing to keep
    "patch_size": 64,
}


@register_model
def up_detr_pretext_nano() -> ModelSpec:
    """UP-DETR's pretext task in small; its backbone is trained along."""
    return _spec("up_detr_pretext_nano", pretext=True, **_NANO)


@register_model
def up_detr_nano() -> ModelSpec:
    """A pre-norm DETR in small, to be fine-tuned from ``up_detr_pretext_nano``."""
    return _spec("up_detr_nano", **_NANO)


@register_model
def up_detr_pretext_r50() -> ModelSpec:
    """UP-DETR's pretext task with a frozen ResNet-50 (the paper's: SwAV's weights)."""
    return _spec("up_detr_pretext_r50", pretext=True)


@register_model
def up_detr_r50() -> ModelSpec:
    """UP-DETR with a ResNet-50, to be fine-tuned; published AP 43.1 after 300 epochs."""
    return _spec("up_detr_r50")

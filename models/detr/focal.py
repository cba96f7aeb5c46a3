"""What the members with focal classification have in common: settings, losses, outputs by layer.

From Deformable DETR (Zhu et al., ICLR 2021, arXiv 2010.04159, appendix A.4) on, classes are
independent logits, matched and trained by the focal loss (arXiv 1708.02002). The members' configs
have these settings under the same names, also where they are no :class:`FocalConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from zoo.models.detr.criterion import ClassLoss, FocalLoss, SetCriterion
from zoo.models.detr.denoising import DenoisingQueries
from zoo.models.detr.dense import DenseOutput
from zoo.models.detr.matcher import HungarianMatcher
from zoo.models.detr.postprocess import DetectionPostprocess
from zoo.models.layers.backbone import Backbone, build_backbone
from zoo.models.layers.heads import MIN_SIDE


@dataclass(frozen=True, kw_only=True)
class FocalConfig:
    """Settings that members share; each has defaults of its own where its paper differs."""

    backbone: str = "resnet50"  # or another ResNet, or nano
    backbone_weights: str | None = None  # IMAGENET1K_V1, a file, none (random) or null (later)
    dilation: bool = False  # DC5: the last stage keeps its resolution, stride 16 instead of 32
    norm: str = "frozen"  # of the ResNet: frozen, or batch to train from scratch
    strides: tuple[int, ...] = ()  # backbone levels; (): the usual one
    dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_dim: int = 2048
    dropout: float = 0.1
    num_queries: int = 300
    aux_loss: bool = True  # losses on every decoder layer

    # Matching and losses
    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    coef_class: float = 2.0
    coef_bbox: float = 5.0
    coef_giou: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    max_detections: int = 100


def named_backbone(config: FocalConfig) -> Backbone:
    """The backbone that the config names."""
    return build_backbone(
        config.backbone,
        dilation=config.dilation,
        weights=config.backbone_weights,
        norm=config.norm,
        strides=config.strides,
    )


class LayeredOutput(TypedDict, total=False):
    """What the models return; boxes are cxcywh in 0..1 of the unpadded image.

    In training, ``aux_outputs`` holds the first two keys for a model's selected proposals, where
    it has any, and with ``aux_loss`` for every earlier decoder layer, first to last.
    ``enc_outputs``, ``dn_outputs`` and ``dense_outputs`` are what
    :class:`zoo.models.detr.criterion.SetCriterion` documents, ``many_outputs`` what
    :mod:`zoo.models.detr.one_to_many` does.
    """

    pred_logits: Tensor  # [B, Q, K]
    pred_boxes: Tensor  # [B, Q, 4]
    aux_outputs: list[dict[str, Tensor]]
    enc_outputs: dict[str, Tensor]
    dn_outputs: dict[str, Any]
    dense_outputs: DenseOutput
    many_outputs: dict[str, Any]


def with_noised(
    noised: DenoisingQueries, known: Tensor, content: Tensor, anchors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Noised queries, with contents ``known`` [B, L, D], in front of the others.

    From the others' contents [B, Q, D] and anchors' logits [B, Q, 4]: those of all L + Q, and self
    attention's bias [B or 1, 1, L + Q, L + Q], so that nobody else sees the noised ones.
    """
    bias = noised.attention_bias(content.shape[1], content.dtype)  # once, not in every layer
    content = torch.cat([known.to(content.dtype), content], 1)
    anchors = torch.cat([noised.boxes.to(anchors.dtype).logit(MIN_SIDE), anchors], 1)
    return content, anchors, bias


def layered_output(
    logits: Tensor,
    boxes: Tensor,
    *,
    training: bool,
    proposals: Sequence[dict[str, Tensor]] = (),
    noised: DenoisingQueries | None = None,
) -> LayeredOutput:
    """Predictions of N layers, [N, B, L + Q, K] and [N, B, L + Q, 4], taken apart.

    The last layer's are the model's. The first L queries are the ``noised`` ones; ``proposals``
    are outputs of their own.
    """
    first = noised.length if noised is not None else 0
    layers = zip(logits[:, :, first:], boxes[:, :, first:], strict=True)
    *earlier, last = [{"pred_logits": c, "pred_boxes": b} for c, b in layers]
    out = LayeredOutput(pred_logits=last["pred_logits"], pred_boxes=last["pred_boxes"])
    if training and (proposals or earlier):
        out["aux_outputs"] = [*proposals, *earlier]
    if noised is not None:
        out["dn_outputs"] = {
            "pred_logits": logits[:, :, :first],
            "pred_boxes": boxes[:, :, :first],
            "denoising": noised,
        }
    return out


def focal_criterion(config: Any, num_classes: int) -> SetCriterion:
    """The losses of a model with these settings."""
    alpha, gamma = config.focal_alpha, config.focal_gamma
    return weighed_criterion(config, num_classes, FocalLoss(alpha, gamma), alpha, gamma)


def weighed_criterion(
    config: Any, num_classes: int, classes: ClassLoss, alpha: float, gamma: float
) -> SetCriterion:
    """Losses and matching with the weights of the settings, classes scored by ``classes``.

    ``alpha`` and ``gamma`` are those of the focal cost in matching.
    """
    costs = config.cost_class, config.cost_bbox, config.cost_giou
    return SetCriterion(
        num_classes,
        HungarianMatcher(*costs, kind="focal", alpha=alpha, gamma=gamma),
        classes,
        coef_class=config.coef_class,
        coef_bbox=config.coef_bbox,
        coef_giou=config.coef_giou,
    )


def focal_postprocess(config: Any) -> DetectionPostprocess:
    """The predictions of a model with these settings."""
    return DetectionPostprocess(kind="focal", max_detections=config.max_detections)

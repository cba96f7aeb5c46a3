"""What the members with focal classification have in common: losses, predictions, outputs by layer.

From Deformable DETR (Zhu et al., ICLR 2021, arXiv 2010.04159, appendix A.4) on, classes are
independent logits, matched and trained by the focal loss (arXiv 1708.02002). The members' configs
have the settings under the same names: ``cost_class``, ``cost_bbox``, ``cost_giou``,
``coef_class``, ``coef_bbox``, ``coef_giou``, ``focal_alpha``, ``focal_gamma``,
``max_detections``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor

from zoo.models.detr.criterion import SetCriterion
from zoo.models.detr.denoising import DenoisingQueries
from zoo.models.detr.dense import DenseOutput
from zoo.models.detr.matcher import HungarianMatcher
from zoo.models.detr.postprocess import DetectionPostprocess


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
    costs = config.cost_class, config.cost_bbox, config.cost_giou
    alpha, gamma = config.focal_alpha, config.focal_gamma
    return SetCriterion(
        num_classes,
        HungarianMatcher(*costs, kind="focal", alpha=alpha, gamma=gamma),
        kind="focal",
        coef_class=config.coef_class,
        coef_bbox=config.coef_bbox,
        coef_giou=config.coef_giou,
        alpha=alpha,
        gamma=gamma,
    )


def focal_postprocess(config: Any) -> DetectionPostprocess:
    """The predictions of a model with these settings."""
    return DetectionPostprocess(kind="focal", max_detections=config.max_detections)

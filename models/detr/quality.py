"""Quality-aware classification: a class's score is to say how well its box fits.

RT-DETR (arXiv 2304.08069, section 4.3) calls it uncertainty-minimal query selection: where scores
follow the overlap, the best-scored proposals are those with the best boxes. The loss is
VarifocalNet's (Zhang et al., CVPR 2021, arXiv 2008.13367, equation 2)::

    q * -(q log p + (1 - q) log(1 - p))      for the class of a matched object, q the IoU
    alpha * p ** gamma * -log(1 - p)         for all others

q and the weight p ** gamma are constants: no gradient passes through them.

Boxes, matching and normalisers are :class:`zoo.models.detr.criterion.SetCriterion`'s. Denoising
queries have the same losses; the negatives of contrastive ones are "all others" of every class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from zoo import distributed
from zoo.models.detr.box_ops import MIN_AREA, paired_giou
from zoo.models.detr.contrastive import ContrastiveQueries
from zoo.models.detr.denoising import DenoisingQueries
from zoo.models.detr.matcher import HungarianMatcher, to_device
from zoo.types import Losses, Target


class QualityCriterion:
    """Outputs of a DETR and targets to losses, classes scored by the varifocal loss.

    ``num_classes`` is K; the ``matcher`` is of kind "focal". Terms: ``loss_ce`` (the varifocal
    loss), ``loss_bbox`` and ``loss_giou`` of the last decoder layer; with ``_0`` and so on of the
    earlier ones; with ``dn_`` before it of denoising queries. Weights are those of
    :class:`zoo.models.detr.criterion.SetCriterion`.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        *,
        coef_class: float = 1.0,
        coef_bbox: float = 5.0,
        coef_giou: float = 2.0,
        alpha: float = 0.75,
        gamma: float = 2.0,
    ) -> None:
        if matcher.kind != "focal":
            raise ValueError(f"the matcher is for {matcher.kind} logits, the criterion for focal")
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = {"ce": coef_class, "bbox": coef_bbox, "giou": coef_giou}
        self.alpha = alpha
        self.gamma = gamma

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> Losses:
        """Losses in float32 at least, whatever autocast is on.

        ``outputs``: ``pred_logits`` [B, Q, K] and ``pred_boxes`` [B, Q, 4] cxcywh in 0..1;
        optionally ``aux_outputs``, a list of the same for earlier layers, and ``dn_outputs`` with
        ``pred_logits`` [N, B, L, K], ``pred_boxes`` [N, B, L, 4] and ``denoising``, the queries
        that they answer. ``targets``: one an image, with ``labels`` [M] in 0..K-1 and ``boxes``
        [M, 4]. Raises what :meth:`HungarianMatcher.assign` raises.
        """
        layers = [*outputs.get("aux_outputs", ()), outputs]
        logits = torch.stack([layer["pred_logits"] for layer in layers])
        boxes = torch.stack([layer["pred_boxes"] for layer in layers])
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"pred_logits has {logits.shape[-1]} columns for {self.num_classes} classes"
            )
        with torch.autocast(boxes.device.type, enabled=False):
            logits, boxes = _exact(logits), _exact(boxes)
            found = self.matcher.assign(logits, boxes, targets)
            labels = torch.cat([t["labels"] for t in targets])
            wanted = torch.cat([t["boxes"] for t in targets]).to(boxes.dtype)
            layer = torch.arange(len(boxes), device=boxes.device)[:, None]
            index = (layer, found.image, found.query)
            own = logits[(*index, labels[found.target])]
            denoising = outputs.get("dn_outputs")
            per_object, per_copy = self._normalizers(len(labels), denoising, boxes)
            parts = self._losses(logits, own, boxes[index], wanted[found.target])
            groups = {"": [part / per_object for part in parts]}
            if denoising is not None:
                parts = self._denoising(denoising, labels, wanted)
                groups["dn_"] = [part / per_copy for part in parts]
            return self._summed(groups)

    def _losses(
        self, logits: Tensor, own: Tensor, boxes: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums [N] of the class loss, of L1 and of 1 - GIoU.

        ``logits`` [N, ..., K] are all that are scored; ``own`` [N, P] those of them that belong
        to the class of an object that ``boxes`` [N, P, 4] are to be, ``wanted`` [(N,) P, 4].
        """
        corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes, wanted)]
        quality = paired_iou(corners[0].detach(), corners[1])
        # First as if nothing were there, then the matched ones are put right: no target the size
        # of the logits.
        present = quality * (F.softplus(own) - quality * own)
        ce = self._absent(logits).flatten(1).sum(1) + (present - self._absent(own)).sum(1)
        l1 = (boxes - wanted).abs().sum((1, 2))
        return ce, l1, (1 - paired_giou(*corners)).sum(1)

    def _denoising(
        self, denoising: Mapping[str, Any], labels: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of real denoising queries and, where there are any, of their negatives."""
        queries: DenoisingQueries = denoising["denoising"]
        logits, boxes = _exact(denoising["pred_logits"]), _exact(denoising["pred_boxes"])
        positives = logits[:, queries.image, queries.slot]
        column = labels[queries.target].expand(len(logits), -1)[..., None]
        scored = positives
        if isinstance(queries, ContrastiveQueries):
            scored = torch.cat([positives, logits[:, queries.image, queries.negative]], 1)
        own = positives.gather(-1, column)[..., 0]
        restored = boxes[:, queries.image, queries.slot]
        return self._losses(scored, own, restored, wanted[queries.target])

    def _normalizers(
        self, objects: int, denoising: Mapping[str, Any] | None, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Objects and real denoising positives, 1 at least: means over ranks."""
        copies = denoising["denoising"].target.numel() if denoising else 0
        counts = to_device(np.array([objects, copies], np.float32), like.device).to(like.dtype)
        per_object, per_copy = distributed.all_reduce_mean(counts).clamp(min=1).unbind()
        return per_object, per_copy

    def _summed(self, groups: Mapping[str, Sequence[Tensor]]) -> Losses:
        total: Tensor = groups[""][0].new_zeros(())
        terms: dict[str, Tensor] = {}
        for prefix, parts in groups.items():
            for name, values in zip(self.weights, parts, strict=True):
                total = total + self.weights[name] * values.sum()
                *earlier, last = values.detach().unbind()
                terms[f"{prefix}loss_{name}"] = last
                terms.update({f"{prefix}loss_{name}_{i}": v for i, v in enumerate(earlier)})
        return Losses(total, terms)

    def _absent(self, logits: Tensor) -> Tensor:
        """The loss of every logit whose class is not there."""
        weight = logits.detach().sigmoid().pow_(self.gamma).mul_(self.alpha)
        return weight * F.softplus(logits)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each box of ``a`` with the box of ``b`` in the same place, [...] in 0..1.

    ``a`` and ``b`` [..., 4] xyxy, broadcast against each other. Boxes without area overlap nothing.
    """
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    inter = sides.clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    return inter / (areas[0] + areas[1] - inter).clamp(min=MIN_AREA)


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))

"""The set criterion: losses of matched predictions (DETR, arXiv 2005.12872, section 3.1, A.2).

All decoder layers are matched and scored at once, as one more dimension of every tensor. Two
kinds of classification:

* ``softmax`` (DETR): cross entropy over K classes and "no object", whose weight is ``eos_coef``;
  the mean is over the weights;
* ``focal`` (Deformable DETR, DAB-DETR): sigmoid focal loss, summed and divided by the number of
  objects.

L1 and GIoU losses are sums over matched pairs, divided by the number of objects. The normalisers
are averaged over ranks (the number of objects is 1 at least), so that the gradients, which
DistributedDataParallel averages too, are those of one process with all images.

Denoising losses (DN-DETR, arXiv 2203.01305, section 4.2) are the same losses of noised queries
against the objects that they come from, divided by the number of real denoising queries; the
negatives of contrastive ones (DINO, arXiv 2203.03605, section 3.3) are to be no object.

Proposals of a model in two stages (Deformable DETR, arXiv 2010.04159, appendix A.4) say where
objects are, not what: they are matched and scored by themselves, as in the release against all
objects as of class 0.
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
from zoo.models.detr.box_ops import paired_giou
from zoo.models.detr.contrastive import ContrastiveQueries
from zoo.models.detr.denoising import DenoisingQueries
from zoo.models.detr.dense import DenseOutput, positives
from zoo.models.detr.matcher import HungarianMatcher, Kind, Matches, to_device
from zoo.types import Losses, Target


class SetCriterion:
    """Outputs of a DETR and targets to losses.

    ``num_classes`` is K. Terms: ``loss_ce``, ``loss_bbox`` and ``loss_giou`` of the last decoder
    layer; with ``_0`` and so on of the earlier ones; with ``dn_`` before it of denoising queries,
    with ``enc_`` of an encoder's proposals.
    ``coef_class``, ``coef_bbox`` and ``coef_giou`` weigh them in the total, in every layer alike.
    ``alpha`` and ``gamma`` are the focal loss's.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        *,
        kind: Kind = "softmax",
        coef_class: float = 1.0,
        coef_bbox: float = 5.0,
        coef_giou: float = 2.0,
        eos_coef: float = 0.1,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        if matcher.kind != kind:
            raise ValueError(f"the matcher is for {matcher.kind} logits, the criterion for {kind}")
        self.num_classes = num_classes
        self.matcher = matcher
        self.kind = kind
        self.weights = {"ce": coef_class, "bbox": coef_bbox, "giou": coef_giou}
        self.eos_coef = eos_coef
        self.alpha = alpha
        self.gamma = gamma

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> Losses:
        """Losses in float32 at least, whatever autocast is on.

        ``outputs``: ``pred_logits`` [B, Q, K + 1] (softmax) or [B, Q, K] (focal); ``pred_boxes``
        [B, Q, 4] cxcywh in 0..1; optionally ``aux_outputs``, a list of the same for the earlier
        layers, first to last; optionally ``dn_outputs`` with ``pred_logits`` [N, B, L, ...] and
        ``pred_boxes`` [N, B, L, 4] of all layers, first to last, and ``denoising``, the
        :class:`zoo.models.detr.denoising.DenoisingQueries` that they answer; optionally
        ``dense_outputs``, a :class:`zoo.models.detr.dense.DenseOutput`. ``targets``: one an
        image, with ``labels`` [M] in 0..K-1 and ``boxes`` [M, 4].

        Raises what :meth:`HungarianMatcher.assign` raises.
        """
        layers = [*outputs.get("aux_outputs", ()), outputs]
        boxes = torch.stack([layer["pred_boxes"] for layer in layers])
        logits = torch.stack([layer["pred_logits"] for layer in layers])
        denoising, dense = outputs.get("dn_outputs"), outputs.get("dense_outputs")
        proposals = outputs.get("enc_outputs")
        if proposals is not None and self.kind != "focal":
            raise ValueError("enc_outputs are scored by the focal loss; this criterion is softmax")
        if logits.shape[-1] != self.num_classes + (self.kind == "softmax"):
            raise ValueError(
                f"pred_logits has {logits.shape[-1]} columns; {self.kind} with "
                f"{self.num_classes} classes has {self.num_classes + (self.kind == 'softmax')}"
            )
        with torch.autocast(boxes.device.type, enabled=False):
            return self._losses(_exact(logits), _exact(boxes), denoising, dense, proposals, targets)

    def _losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        denoising: Mapping[str, Any] | None,
        dense: DenseOutput | None,
        proposals: Mapping[str, Tensor] | None,
        targets: Sequence[Target],
    ) -> Losses:
        log_probs = logits.log_softmax(-1) if self.kind == "softmax" else None
        found = self.matcher.assign(logits, boxes, targets, log_probs=log_probs)
        labels = torch.cat([t["labels"] for t in targets])
        wanted = torch.cat([t["boxes"] for t in targets]).to(boxes.dtype)
        per_object, per_query, per_copy = self._normalizers(found, boxes, denoising, labels)

        index = (torch.arange(len(boxes), device=boxes.device)[:, None], found.image, found.query)
        if log_probs is not None:
            ce = self._cross_entropy(log_probs, index, labels[found.target]) / per_query
        else:
            ce = self._focal(logits, index, labels[found.target]) / per_object
        l1, giou = _box_losses(boxes[index], wanted[found.target])
        groups = {"": {"ce": ce, "bbox": l1 / per_object, "giou": giou / per_object}}

        if proposals is not None:
            parts = self._of_proposals(proposals, wanted, targets)
            groups["enc_"] = {name: part / per_object for name, part in parts.items()}

        if denoising is not None:
            queries: DenoisingQueries = denoising["denoising"]
            place = (slice(None), queries.image, queries.slot)
            noised = _exact(denoising["pred_logits"])[place]
            ce = self._of_known(noised, labels[queries.target])
            if isinstance(queries, ContrastiveQueries):
                ce = ce + self._of_nothing(denoising["pred_logits"], queries)
            restored = _exact(denoising["pred_boxes"])[place]
            l1, giou = _box_losses(restored, wanted[queries.target])
            parts = {"ce": ce, "bbox": l1, "giou": giou}
            groups["dn_"] = {name: part / per_copy for name, part in parts.items()}

        if dense is not None:
            groups["dense_"] = self._dense(dense, labels, wanted, targets)

        total = boxes.new_zeros(())
        terms: dict[str, Tensor] = {}
        for prefix, parts in groups.items():
            for name, values in parts.items():
                total = total + self.weights[name] * values.sum()
                *earlier, last = values.detach().unbind()
                terms[f"{prefix}loss_{name}"] = last
                terms.update({f"{prefix}loss_{name}_{i}": v for i, v in enumerate(earlier)})
        return Losses(total, terms)

    def _of_proposals(
        self, proposals: Mapping[str, Tensor], wanted: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Sums [1] over an encoder's proposals, matched with the objects as of class 0."""
        logits = _exact(proposals["pred_logits"])[None]
        boxes = _exact(proposals["pred_boxes"])[None]
        things: list[Target] = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
        found = self.matcher.assign(logits, boxes, things)
        index = (found.image.new_zeros(1, 1), found.image, found.query)
        ce = self._focal(logits, index, torch.zeros_like(found.target))
        l1, giou = _box_losses(boxes[index], wanted[found.target])
        return {"ce": ce, "bbox": l1, "giou": giou}

    def _dense(
        self, out: DenseOutput, labels: Tensor, wanted: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Over all valid cells (class) and the positives (boxes), a positive; each [1]."""
        image, cell, row = positives(out, targets)
        count = out.logits.new_tensor(float(len(row)))
        count = distributed.all_reduce_mean(count).clamp(min=1)
        logits, boxes = _exact(out.logits), _exact(out.boxes)
        nothing = (self._absent(logits).sum(-1) * out.valid).sum()
        right = self._correction(logits[image, cell, labels[row]][None])
        l1, giou = _box_losses(boxes[image, cell][None], wanted[row])
        parts = {"ce": nothing + right, "bbox": l1, "giou": giou}
        return {name: part / count for name, part in parts.items()}

    def _normalizers(
        self,
        found: Matches,
        boxes: Tensor,
        denoising: Mapping[str, Any] | None,
        labels: Tensor,
    ) -> tuple[Tensor, ...]:
        """Objects, sum of cross entropy weights, real denoising queries: means over ranks."""
        queries = boxes.shape[1] * boxes.shape[2]
        pairs = sum(found.counts)
        copies = denoising["denoising"].target.numel() if denoising else 0
        dtype = np.float64 if boxes.dtype == torch.float64 else np.float32
        weight = pairs + self.eos_coef * (queries - pairs)
        counts = to_device(np.array([len(labels), weight, copies], dtype), boxes.device)
        mean = distributed.all_reduce_mean(counts)
        objects, weights, copied = mean.unbind()
        return objects.clamp(min=1), weights.clamp(min=1e-6), copied.clamp(min=1)

    def _cross_entropy(
        self, log_probs: Tensor, index: tuple[Tensor, ...], labels: Tensor
    ) -> Tensor:
        """Weighted sums [N]; matched queries have ``labels`` [N, P], others "no object"."""
        shape = log_probs.shape[:-1]
        classes = labels.new_full(shape, self.num_classes)
        classes[index] = labels
        weights = log_probs.new_full(shape, self.eos_coef)
        weights[index] = 1.0
        chosen = log_probs.gather(-1, classes[..., None])[..., 0]
        return -(weights * chosen).sum((1, 2))

    def _focal(self, logits: Tensor, index: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """Sums [N] over all queries and classes of focal losses (arXiv 1708.02002, equation 5).

        First as if nothing were there, which needs no target the size of the logits; then the
        matched logits are put right.
        """
        return self._absent(logits).sum((1, 2, 3)) + self._correction(logits[(*index, labels)])

    def _of_known(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sums [N] of the class loss of logits [N, R, ...] whose labels [R] are known."""
        column = labels.expand(len(logits), -1)[..., None]
        if self.kind == "softmax":
            return -logits.log_softmax(-1).gather(-1, column).sum((1, 2))
        own = logits.gather(-1, column)[..., 0]
        return self._absent(logits).sum((1, 2)) + self._correction(own)

    def _of_nothing(self, logits: Tensor, queries: ContrastiveQueries) -> Tensor:
        """Sums [N] of the class loss of negatives; ``logits`` [N, B, L, ...] of all queries."""
        negatives = _exact(logits)[:, queries.image, queries.negative]
        if self.kind == "softmax":
            return -self.eos_coef * negatives.log_softmax(-1)[..., -1].sum(1)
        return self._absent(negatives).sum((1, 2))

    def _correction(self, logits: Tensor) -> Tensor:
        """What logits [N, P] of classes that are present add to their loss if absent: sums [N]."""
        present = self.alpha * (-logits).sigmoid().pow(self.gamma) * F.softplus(-logits)
        return (present - self._absent(logits)).sum(1)

    def _absent(self, logits: Tensor) -> Tensor:
        """(1 - alpha) p ** gamma * -log(1 - p), of every logit."""
        return (1 - self.alpha) * logits.sigmoid().pow(self.gamma) * F.softplus(logits)


def _box_losses(boxes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [N] of L1 and of 1 - GIoU over pairs: ``boxes`` [N, P, 4], ``wanted`` [(N,) P, 4]."""
    l1 = (boxes - wanted).abs().sum((1, 2))
    corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, wanted))
    return l1, (1 - paired_giou(*corners)).sum(1)


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))

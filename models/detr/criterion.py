"""The set criterion: losses of matched predictions (DETR, arXiv 2005.12872, section 3.1, A.2).

All decoder layers are matched and scored at once, as one more dimension of every tensor. How
classes are scored is a part of its own, a :class:`ClassLoss`:

* :class:`SoftmaxLoss` (DETR): cross entropy over K classes and "no object", whose weight is
  ``eos_coef``; the mean is over the weights;
* :class:`FocalLoss` (Deformable DETR, DAB-DETR): sigmoid focal loss, summed and divided by the
  number of objects;
* :class:`zoo.models.detr.quality.VarifocalLoss` (RT-DETR): its like, with the overlap of boxes.

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

from abc import ABC, abstractmethod
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

Index = tuple[Tensor, Tensor, Tensor]  # layer [N, 1], image [P] and query [N, P] of pairs


class BoxPairs:
    """Boxes [N, P, 4] and those that they are to be, [(N,) P, 4]; cxcywh, as ``corners`` xyxy."""

    def __init__(self, boxes: Tensor, wanted: Tensor) -> None:
        self.boxes, self.wanted = boxes, wanted
        corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes, wanted)]
        self.corners = (corners[0], corners[1])

    def losses(self) -> dict[str, Tensor]:
        """Sums [N] of L1 and of 1 - GIoU."""
        l1 = (self.boxes - self.wanted).abs().sum((1, 2))
        return {"bbox": l1, "giou": (1 - paired_giou(*self.corners)).sum(1)}


class ClassLoss(ABC):
    """How classes are scored.

    ``kind`` is that of the logits, and of the matcher that goes with it. ``least`` is the least
    that a sum of losses is divided by.
    """

    kind: Kind
    least: float

    @abstractmethod
    def columns(self, num_classes: int) -> int:
        """The logits of a query, C."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """What the other methods are given for the logits [..., C], in that shape."""

    @abstractmethod
    def matched(self, scores: Tensor, index: Index, labels: Tensor, pairs: BoxPairs) -> Tensor:
        """Sums [N] over the scores [N, B, Q, C] of all queries.

        Those at ``index`` are to have ``labels`` [N, P] and the boxes of ``pairs``; all others
        are to be no object.
        """

    @abstractmethod
    def known(self, scores: Tensor, labels: Tensor, pairs: BoxPairs) -> Tensor:
        """Sums [N] over scores [N, R, C] of queries whose ``labels`` [R] are known."""

    @abstractmethod
    def nothing(self, scores: Tensor) -> Tensor:
        """Sums [N] over scores [N, R, C] of queries that are to be no object."""

    @abstractmethod
    def weight(self, objects: int, pairs: int, queries: int) -> float:
        """What :meth:`matched` is divided by: from the numbers of objects, P and B * Q."""


class SoftmaxLoss(ClassLoss):
    """Cross entropy over the classes and "no object", the last column, which weighs ``eos_coef``.

    Scores are log-probabilities.
    """

    kind = "softmax"
    least = 1e-6

    def __init__(self, eos_coef: float = 0.1) -> None:
        self.eos_coef = eos_coef

    def columns(self, num_classes: int) -> int:
        """One more than there are classes."""
        return num_classes + 1

    def scores(self, logits: Tensor) -> Tensor:
        """Their log-softmax."""
        return logits.log_softmax(-1)

    def matched(self, scores: Tensor, index: Index, labels: Tensor, pairs: BoxPairs) -> Tensor:
        """As in :class:`ClassLoss`, each query with its weight."""
        shape = scores.shape[:-1]
        classes = labels.new_full(shape, scores.shape[-1] - 1)
        classes[index] = labels
        weights = scores.new_full(shape, self.eos_coef)
        weights[index] = 1.0
        chosen = scores.gather(-1, classes[..., None])[..., 0]
        return -(weights * chosen).sum((1, 2))

    def known(self, scores: Tensor, labels: Tensor, pairs: BoxPairs) -> Tensor:
        """As in :class:`ClassLoss`."""
        return -scores.gather(-1, _column(labels, scores)).sum((1, 2))

    def nothing(self, scores: Tensor) -> Tensor:
        """As in :class:`ClassLoss`, each query with its weight."""
        return -self.eos_coef * scores[..., -1].sum(1)

    def weight(self, objects: int, pairs: int, queries: int) -> float:
        """The sum of the queries' weights."""
        return pairs + self.eos_coef * (queries - pairs)


class SigmoidLoss(ClassLoss):
    """Classes that are independent of each other: what every logit costs, by itself.

    Sums are first as if nothing were there, which needs no target the size of the logits; then
    the logits of what is there are put right. Scores are the logits.
    """

    kind = "focal"
    least = 1.0

    def __init__(self, alpha: float, gamma: float) -> None:
        self.alpha = alpha
        self.gamma = gamma

    @abstractmethod
    def absent(self, logits: Tensor) -> Tensor:
        """The loss of every logit if its class is not there."""

    @abstractmethod
    def present(self, own: Tensor, pairs: BoxPairs) -> Tensor:
        """The loss of logits ``own`` [N, P] whose classes are there, with boxes ``pairs``."""

    def correction(self, own: Tensor, pairs: BoxPairs) -> Tensor:
        """What logits of classes that are there add to their loss if absent: sums [N]."""
        return (self.present(own, pairs) - self.absent(own)).sum(1)

    def columns(self, num_classes: int) -> int:
        """As many as there are classes."""
        return num_classes

    def scores(self, logits: Tensor) -> Tensor:
        """The same."""
        return logits

    def matched(self, scores: Tensor, index: Index, labels: Tensor, pairs: BoxPairs) -> Tensor:
        """As in :class:`ClassLoss`."""
        return self.nothing(scores) + self.correction(scores[(*index, labels)], pairs)

    def known(self, scores: Tensor, labels: Tensor, pairs: BoxPairs) -> Tensor:
        """As in :class:`ClassLoss`."""
        own = scores.gather(-1, _column(labels, scores))[..., 0]
        return self.nothing(scores) + self.correction(own, pairs)

    def nothing(self, scores: Tensor) -> Tensor:
        """As in :class:`ClassLoss`; of any shape [N, ...]."""
        return self.absent(scores).flatten(1).sum(1)

    def weight(self, objects: int, pairs: int, queries: int) -> float:
        """The number of objects."""
        return objects


class FocalLoss(SigmoidLoss):
    """The focal loss (arXiv 1708.02002, equation 5)."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__(alpha, gamma)

    def absent(self, logits: Tensor) -> Tensor:
        """(1 - alpha) p ** gamma * -log(1 - p)."""
        return (1 - self.alpha) * logits.sigmoid().pow(self.gamma) * F.softplus(logits)

    def present(self, own: Tensor, pairs: BoxPairs) -> Tensor:
        """alpha (1 - p) ** gamma * -log p, wherever the boxes are."""
        return self.alpha * (-own).sigmoid().pow(self.gamma) * F.softplus(-own)


class SetCriterion:
    """Outputs of a DETR and targets to losses.

    ``num_classes`` is K; ``classes`` scores them, and the matcher is of its kind. Terms:
    ``loss_ce``, ``loss_bbox`` and ``loss_giou`` of the last decoder layer; with ``_0`` and so on
    of the earlier ones; with ``dn_`` before it of denoising queries, with ``enc_`` of an encoder's
    proposals, with ``dense_`` of dense outputs. ``coef_class``, ``coef_bbox`` and ``coef_giou``
    weigh them in the total, in every layer alike.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        classes: ClassLoss,
        *,
        coef_class: float = 1.0,
        coef_bbox: float = 5.0,
        coef_giou: float = 2.0,
    ) -> None:
        if matcher.kind != classes.kind:
            raise ValueError(
                f"the matcher is for {matcher.kind} logits, the criterion for {classes.kind}"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.classes = classes
        self.weights = {"ce": coef_class, "bbox": coef_bbox, "giou": coef_giou}

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> Losses:
        """Losses in float32 at least, whatever autocast is on.

        ``outputs``: ``pred_logits`` [B, Q, K + 1] (softmax) or [B, Q, K] (focal); ``pred_boxes``
        [B, Q, 4] cxcywh in 0..1; optionally ``aux_outputs``, a list of the same for the earlier
        layers, first to last; optionally ``dn_outputs`` with ``pred_logits`` [N, B, L, ...] and
        ``pred_boxes`` [N, B, L, 4] of all layers, first to last, and ``denoising``, the
        :class:`zoo.models.detr.denoising.DenoisingQueries` that they answer; with independent
        classes optionally ``enc_outputs``, proposals as ``pred_logits`` [B, S, K] and
        ``pred_boxes`` [B, S, 4], and ``dense_outputs``, a
        :class:`zoo.models.detr.dense.DenseOutput`. ``targets``: one an image, with ``labels`` [M]
        in 0..K-1 and ``boxes`` [M, 4].

        Raises what :meth:`HungarianMatcher.assign` raises.
        """
        layers = [*outputs.get("aux_outputs", ()), outputs]
        boxes = torch.stack([layer["pred_boxes"] for layer in layers])
        logits = torch.stack([layer["pred_logits"] for layer in layers])
        columns = self.classes.columns(self.num_classes)
        if logits.shape[-1] != columns:
            raise ValueError(
                f"pred_logits has {logits.shape[-1]} columns; {self.classes.kind} with "
                f"{self.num_classes} classes has {columns}"
            )
        with torch.autocast(boxes.device.type, enabled=False):
            return self._losses(_exact(logits), _exact(boxes), outputs, targets)

    def _losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        outputs: Mapping[str, Any],
        targets: Sequence[Target],
    ) -> Losses:
        """Of the layers' logits [N, B, Q, C] and boxes [N, B, Q, 4], and the optional outputs."""
        denoising = outputs.get("dn_outputs")
        scores = self.classes.scores(logits)
        # A matcher of independent classes reads the logits alone.
        found = self.matcher.assign(logits, boxes, targets, log_probs=scores)
        labels = torch.cat([t["labels"] for t in targets])
        wanted = torch.cat([t["boxes"] for t in targets]).to(boxes.dtype)
        per_object, per_weight, per_copy = self._normalizers(found, boxes, denoising, labels)

        index = (torch.arange(len(boxes), device=boxes.device)[:, None], found.image, found.query)
        pairs = BoxPairs(boxes[index], wanted[found.target])
        ce = self.classes.matched(scores, index, labels[found.target], pairs)
        parts = {"ce": ce / per_weight, **_divided(pairs.losses(), per_object)}
        groups = {"": parts}
        if (proposals := outputs.get("enc_outputs")) is not None:
            parts = self._of_proposals(proposals, wanted, targets)
            groups["enc_"] = _divided(parts, per_object)
        if denoising is not None:
            groups["dn_"] = _divided(self._of_noised(denoising, labels, wanted), per_copy)
        if (dense := outputs.get("dense_outputs")) is not None:
            groups["dense_"] = self._of_cells(dense, labels, wanted, targets)

        total = boxes.new_zeros(())
        terms: dict[str, Tensor] = {}
        for prefix, parts in groups.items():
            for name, values in parts.items():
                total = total + self.weights[name] * values.sum()
                *earlier, last = values.detach().unbind()
                terms[f"{prefix}loss_{name}"] = last
                terms.update({f"{prefix}loss_{name}_{i}": v for i, v in enumerate(earlier)})
        return Losses(total, terms)

    def _of_noised(
        self, denoising: Mapping[str, Any], labels: Tensor, wanted: Tensor
    ) -> dict[str, Tensor]:
        """Sums [N] over real denoising queries and, in the class loss, their negatives."""
        queries: DenoisingQueries = denoising["denoising"]
        logits, boxes = _exact(denoising["pred_logits"]), _exact(denoising["pred_boxes"])
        pairs = BoxPairs(boxes[:, queries.image, queries.slot], wanted[queries.target])
        scores = self.classes.scores(logits[:, queries.image, queries.slot])
        ce = self.classes.known(scores, labels[queries.target], pairs)
        if isinstance(queries, ContrastiveQueries):
            scores = self.classes.scores(logits[:, queries.image, queries.negative])
            ce = ce + self.classes.nothing(scores)
        return {"ce": ce, **pairs.losses()}

    def _of_proposals(
        self, proposals: Mapping[str, Tensor], wanted: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Sums [1] over an encoder's proposals, matched with the objects as of class 0."""
        classes = self._independent("enc_outputs")
        logits = _exact(proposals["pred_logits"])[None]
        boxes = _exact(proposals["pred_boxes"])[None]
        things: list[Target] = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
        found = self.matcher.assign(logits, boxes, things)
        index = (found.image.new_zeros(1, 1), found.image, found.query)
        pairs = BoxPairs(boxes[index], wanted[found.target])
        ce = classes.matched(logits, index, torch.zeros_like(found.target), pairs)
        return {"ce": ce, **pairs.losses()}

    def _of_cells(
        self, out: DenseOutput, labels: Tensor, wanted: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Over all valid cells (class) and the positives (boxes), a positive; each [1]."""
        classes = self._independent("dense_outputs")
        image, cell, row = positives(out, targets)
        count = out.logits.new_tensor(float(len(row)))
        count = distributed.all_reduce_mean(count).clamp(min=1)
        logits, boxes = _exact(out.logits), _exact(out.boxes)
        pairs = BoxPairs(boxes[image, cell][None], wanted[row])
        nothing = (classes.absent(logits).sum(-1) * out.valid).sum()
        right = classes.correction(logits[image, cell, labels[row]][None], pairs)
        return _divided({"ce": nothing + right, **pairs.losses()}, count)

    def _independent(self, key: str) -> SigmoidLoss:
        """The class loss, where it can score this output."""
        if not isinstance(self.classes, SigmoidLoss):
            raise ValueError(
                f"{key} are scored by the focal loss or its like; this criterion is "
                f"{self.classes.kind}"
            )
        return self.classes

    def _normalizers(
        self,
        found: Matches,
        boxes: Tensor,
        denoising: Mapping[str, Any] | None,
        labels: Tensor,
    ) -> tuple[Tensor, ...]:
        """Objects, the class loss's weight, real denoising queries: means over ranks."""
        queries = boxes.shape[1] * boxes.shape[2]
        copies = denoising["denoising"].target.numel() if denoising else 0
        weight = self.classes.weight(len(labels), sum(found.counts), queries)
        dtype = np.float64 if boxes.dtype == torch.float64 else np.float32
        counts = to_device(np.array([len(labels), weight, copies], dtype), boxes.device)
        mean = distributed.all_reduce_mean(counts)
        objects, weights, copied = mean.unbind()
        return objects.clamp(min=1), weights.clamp(min=self.classes.least), copied.clamp(min=1)


def _divided(parts: Mapping[str, Tensor], by: Tensor) -> dict[str, Tensor]:
    return {name: part / by for name, part in parts.items()}


def _column(labels: Tensor, scores: Tensor) -> Tensor:
    """``labels`` [R] as an index [N, R, 1] of the last dimension of ``scores`` [N, R, C]."""
    return labels.expand(len(scores), -1)[..., None]


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))

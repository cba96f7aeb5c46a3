"""Masks of the DETR family to instance masks and panoptic segmentations of the original picture.

As in DETR (arXiv 2005.12872, section 4) and its release: for the panoptic map, queries below a
threshold of 0.85 are dropped, each pixel goes to the query with the highest logit, segments of one
class of stuff become one, and segments of at most 4 pixels are dropped and their pixels given to
the next. Instance masks are where the logit is above 0.

Unlike the release: queries are dropped and padding is cut off before anything is enlarged; logits
go from stride 4 to the picture's own size in one bilinear step, and through a running maximum, so
memory does not grow with the number of queries; stuff that was merged keeps the pixels of all its
queries when small segments are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.datasets.mask_eval import encoded
from zoo.datasets.masks import STRIDE, cells
from zoo.datasets.panoptic_eval import Segmentation
from zoo.models.detr.matcher import Kind
from zoo.models.detr.postprocess import DetectionPostprocess
from zoo.types import Detections, Meta

LEAST_AREA = 4  # pixels; a segment has more


@dataclass
class Segments(Detections):
    """Detections with masks, and the panoptic segmentation of the picture.

    ``masks`` holds an RLE of the original picture's size for every detection, in COCO's form.
    ``panoptic`` has ids 1, 2, ... and class indices as labels; ``panoptic_scores`` [N] are its
    segments' scores.
    """

    masks: list[dict[str, Any]] = field(default_factory=list)
    panoptic: Segmentation = field(default_factory=lambda: Segmentation.empty((0, 0)))
    panoptic_scores: tuple[float, ...] = ()

    def relabelled(self, places: Tensor) -> Segments:
        """With class indices ``places[label]``, without what is of a class at -1 there."""
        labels = places.to(self.labels.device)[self.labels]
        kept = labels >= 0
        shown = self.panoptic
        classes = places.cpu().numpy()[shown.labels]
        known = classes >= 0
        numbers = shown.numbers[known]
        return Segments(
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=labels[kept],
            queries=None if self.queries is None else self.queries[kept],
            masks=[rle for rle, k in zip(self.masks, kept.tolist(), strict=True) if k],
            panoptic=Segmentation(
                np.where(np.isin(shown.ids, numbers), shown.ids, 0),
                numbers,
                classes[known],
                shown.crowd[known],
            ),
            panoptic_scores=tuple(
                score for score, k in zip(self.panoptic_scores, known, strict=True) if k
            ),
        )


class PanopticPostprocess:
    """Outputs with ``pred_masks`` [B, Q, h, w] to :class:`Segments`, one a picture.

    ``threshold`` is the least score of a query in the panoptic map, ``instance_threshold`` that of
    a detection that gets a mask (the others' are empty). ``stuff`` are the class indices of stuff;
    where there are none, the picture's meta says (``extra["stuff"]``, which data sources give).
    ``kind`` is that of the class logits.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.85,
        instance_threshold: float = 0.0,
        stuff: Sequence[int] = (),
        max_detections: int = 100,
        kind: Kind = "softmax",
    ) -> None:
        self.boxes = DetectionPostprocess(kind=kind, max_detections=max_detections)
        self.kind = kind
        self.threshold = threshold
        self.instance_threshold = instance_threshold
        self.stuff = tuple(stuff)

    @torch.no_grad()
    def __call__(self, outputs: Mapping[str, Any], metas: Sequence[Meta]) -> list[Segments]:
        """Predictions on the CPU; raises as :class:`DetectionPostprocess`."""
        detections = self.boxes(outputs, metas)
        logits = outputs["pred_logits"].float()
        probs = logits.softmax(-1)[..., :-1] if self.kind == "softmax" else logits.sigmoid()
        scores, labels = (t.cpu() for t in probs.max(-1))
        masks: Tensor = outputs["pred_masks"]
        return [
            self._one(found, scores[n], labels[n], masks[n], meta)
            for n, (found, meta) in enumerate(zip(detections, metas, strict=True))
        ]

    def _one(
        self, found: Detections, scores: Tensor, labels: Tensor, masks: Tensor, meta: Meta
    ) -> Segments:
        height, width = cells(meta.size)
        masks = masks[:, :height, :width]
        enlarge = Enlarge(meta.size, meta.orig_size, masks.device)
        assert found.queries is not None
        rles = []
        wanted = (found.scores >= self.instance_threshold).tolist()
        nothing = encoded(np.zeros(meta.orig_size, dtype=bool))
        for query, shown in zip(found.queries.tolist(), wanted, strict=True):
            rles.append(encoded((enlarge(masks[query]) > 0).cpu().numpy()) if shown else nothing)
        kept = torch.nonzero(scores > self.threshold).flatten()
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        stuff = set(self.stuff or meta.extra.get("stuff", ()))
        panoptic, of_segments = merge(
            [masks[q] for q in kept.tolist()],
            labels[kept].tolist(),
            scores[kept].tolist(),
            stuff,
            enlarge,
        )
        return Segments(
            boxes=found.boxes,
            scores=found.scores,
            labels=found.labels,
            queries=found.queries,
            masks=rles,
            panoptic=panoptic,
            panoptic_scores=of_segments,
        )


class Enlarge:
    """Logits [h, w] at stride 4 of a resized picture to the size of the original, bilinearly.

    ``size`` and ``orig_size`` are (height, width) of the resized and of the original picture. Two
    products with thin matrices; a cell that a picture's edge cuts off counts by its centre.
    """

    def __init__(self, size: tuple[int, int], orig_size: tuple[int, int], device: Any) -> None:
        self.size = orig_size
        counts = cells(size)
        self.rows, self.columns = (
            _weights(o, s / STRIDE, n).to(device)
            for o, s, n in zip(orig_size, size, counts, strict=True)
        )

    def __call__(self, logits: Tensor) -> Tensor:
        """[H, W] float32 from [h, w]."""
        return self.rows @ logits.float() @ self.columns.t()


def _weights(wanted: int, extent: float, count: int) -> Tensor:
    """[wanted, count]: linear interpolation at ``wanted`` points over ``extent`` cells."""
    places = (torch.arange(wanted, dtype=torch.float64) + 0.5) * (extent / wanted) - 0.5
    places = places.clamp(0, count - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=count - 1)
    part = places - low
    weights = torch.zeros(wanted, count, dtype=torch.float64)
    rows = torch.arange(wanted)
    weights.index_put_((rows, low), 1 - part, accumulate=True)
    weights.index_put_((rows, high), part, accumulate=True)
    return weights.float()


def merge(
    masks: Sequence[Tensor],
    labels: Sequence[int],
    scores: Sequence[float],
    stuff: set[int],
    enlarge: Enlarge,
) -> tuple[Segmentation, tuple[float, ...]]:
    """Masks [h, w] of queries to one segmentation, and its segments' scores.

    ``labels`` are class indices, of which ``stuff`` are merged. Segments have the ids 1, 2, ... in
    the order of the queries. A merged segment's score is the highest of its queries.
    """
    group: list[int] = []  # of each query, the number of its segment
    of_stuff: dict[int, int] = {}
    segments: list[tuple[int, float]] = []
    for label, score in zip(labels, scores, strict=True):
        if label in of_stuff:
            number = of_stuff[label]
            segments[number] = (label, max(segments[number][1], score))
        else:
            number = len(segments)
            segments.append((label, score))
            if label in stuff:
                of_stuff[label] = number
        group.append(number)
    alive = list(range(len(segments)))
    while alive:
        owner = _winners([(masks[q], n) for q, n in enumerate(group) if n in alive], enlarge)
        areas = torch.bincount(owner.flatten(), minlength=len(segments)).tolist()
        large = [n for n in alive if areas[n] > LEAST_AREA]
        if large == alive:
            break
        alive = large
    if not alive:
        return Segmentation.empty(enlarge.size), ()
    number_of = torch.zeros(len(segments), dtype=torch.int32, device=owner.device)
    number_of[alive] = torch.arange(1, len(alive) + 1, dtype=torch.int32, device=owner.device)
    found = Segmentation(
        number_of[owner].cpu().numpy(),
        np.arange(1, len(alive) + 1, dtype=np.int64),
        np.array([segments[n][0] for n in alive], dtype=np.int64),
        np.zeros(len(alive), dtype=bool),
    )
    return found, tuple(segments[n][1] for n in alive)


def _winners(masks: Sequence[tuple[Tensor, int]], enlarge: Enlarge) -> Tensor:
    """For every pixel the number of the mask with the highest logit, [H, W] int64."""
    best = enlarge(masks[0][0])
    owner = torch.full(best.shape, masks[0][1], dtype=torch.int64, device=best.device)
    for mask, number in masks[1:]:
        logits = enlarge(mask)
        higher = logits > best
        best = torch.where(higher, logits, best)
        owner[higher] = number
    return owner

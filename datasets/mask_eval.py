"""Scoring instance masks by COCO's metrics, and boxes, masks and panoptic quality together.

The definitions are those of :mod:`zoo.datasets.coco_eval` with masks in the place of boxes
(pycocotools' ``segm``); the truth's masks are the things of a panoptic ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import distributed
from zoo.datasets.coco_eval import CocoEvaluator, Scores, score
from zoo.datasets.coco_results import Found, check_found
from zoo.datasets.coco_results import Truth as CocoTruth
from zoo.datasets.panoptic_eval import PanopticEvaluator, Truth
from zoo.types import Batch, Evaluator


def encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask [H, W] as COCO's compressed run-length encoding, of JSON's types."""
    from pycocotools import mask as rle

    found = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode("ascii")}


def things_of(truth: Truth, *, masks: bool) -> dict[str, Any]:
    """The things of a panoptic truth as a COCO dict, crowds included; with ``masks`` their RLE."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in truth.image_ids():
        shown = truth.segmentation(number)
        height, width = shown.size
        images.append({"id": number, "height": height, "width": width})
        for segment, label, crowd in zip(
            shown.numbers.tolist(), shown.labels.tolist(), shown.crowd.tolist(), strict=True
        ):
            if label not in truth.things:
                continue
            mask = shown.ids == segment
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top = int(columns[0]), int(rows[0])
            box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": box,
                    "area": int(mask.sum()),
                    "iscrowd": int(crowd),
                    **({"segmentation": encoded(mask)} if masks else {}),
                }
            )
    categories = [{"id": number, "name": name} for number, name in truth.categories.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


class MaskEvaluator:
    """COCO's metrics on instance masks; an :class:`zoo.types.Evaluator`.

    ``ground_truth`` is a COCO dict whose annotations have a ``segmentation``. Predictions are
    :class:`zoo.types.Detections` with ``masks``, an RLE of the original picture for each.
    """

    def __init__(self, ground_truth: dict[str, Any], class_ids: Sequence[int]) -> None:
        self.truth = CocoTruth(ground_truth, masks=True)
        self.class_ids = np.asarray(class_ids, dtype=np.int64)
        self._parts: list[Found] = []
        self._gathered = False

    def update(self, predictions: Sequence[Any], batch: Batch) -> None:
        """Add the predictions of a batch, one a picture.

        Raises ``ValueError`` for a picture that the truth does not hold, and
        :class:`~zoo.errors.ZooError` for boxes or scores that are not finite.
        """
        for found, meta in zip(predictions, batch.metas, strict=True):
            if meta.image_id not in self.truth.sizes:
                raise ValueError(f"image id {meta.image_id} is not in the ground truth")
            rows = Found(
                image_ids=np.full(len(found.scores), meta.image_id, dtype=np.int64),
                category_ids=self.class_ids[found.labels.cpu().numpy()],
                boxes=np.zeros((len(found.scores), 4)),
                scores=found.scores.double().cpu().numpy(),
                rles=list(found.masks),
            )
            check_found(rows, f"the prediction for image id {meta.image_id} ({meta.path})")
            self._parts.append(rows)

    def gather(self) -> None:
        """Collect every process's predictions in every process; does nothing a second time."""
        if not self._gathered:
            self._gathered = True
            self._parts = [p for part in distributed.all_gather(self._parts) for p in part]

    def found(self) -> Found:
        """All predictions so far as one table."""
        rows = Found.joined(self._parts)
        rles = [rle for part in self._parts for rle in part.rles or ()]
        return Found(rows.image_ids, rows.category_ids, rows.boxes, rows.scores, rles)

    def scores(self) -> Scores:
        """The whole evaluation."""
        return score(self.truth, self.found(), "segm")

    def compute(self) -> dict[str, float]:
        """COCO's twelve figures of masks, each with ``mask_`` before its name."""
        return {f"mask_{name}": value for name, value in self.scores().metrics().items()}

    def report(self, out: Path) -> tuple[str, tuple[str, ...]]:
        """The figures as text; nothing is written."""
        figures = [f"{name} {value:.3f}" for name, value in self.compute().items()]
        return "   ".join(figures[:3]) + "\n", ()

    def results(self) -> Iterator[dict[str, Any]]:
        """What was predicted in COCO's results format, with segmentations."""
        found = self.found().sorted_by_image()
        for row, rle in zip(found.results(), found.rles or (), strict=True):
            yield {k: v for k, v in row.items() if k != "bbox"} | {"segmentation": rle}


class SegmentsEvaluator:
    """Panoptic quality, and COCO's metrics on the boxes and masks of things, at once.

    Figures are PQ, SQ, RQ (``_th`` things, ``_st`` stuff), AP ... of boxes and mask_AP ... .
    ``ground_truth`` is what :func:`things_of` makes of the truth with masks; a source that is
    evaluated often keeps it, as every map has to be read for it.
    """

    def __init__(
        self, truth: Truth, class_ids: Sequence[int], ground_truth: dict[str, Any] | None = None
    ) -> None:
        if ground_truth is None:
            ground_truth = things_of(truth, masks=True)
        self.parts: tuple[Evaluator, ...] = (
            PanopticEvaluator(truth, class_ids),
            CocoEvaluator(ground_truth, class_ids),
            MaskEvaluator(ground_truth, class_ids),
        )

    def update(self, predictions: Sequence[Any], batch: Batch) -> None:
        """Add a batch's :class:`zoo.models.detr.panoptic_postprocess.Segments`.

        Pictures that could not be read count as without detections.
        """
        read = [i for i, meta in enumerate(batch.metas) if "unreadable" not in meta.extra]
        predictions = [predictions[i] for i in read]
        batch = replace(batch, metas=[batch.metas[i] for i in read])
        for part in self.parts:
            part.update(predictions, batch)

    def gather(self) -> None:
        """Collect what every process counted in every process."""
        for part in self.parts:
            part.gather()

    def compute(self) -> dict[str, float]:
        """All figures."""
        return {name: value for part in self.parts for name, value in part.compute().items()}

    def report(self, out: Path) -> tuple[str, tuple[str, ...]]:
        """Write what the parts write into ``out``; returns their text and the files' names."""
        parts = [part.report(out) for part in self.parts]
        return "\n".join(text for text, _ in parts), tuple(n for _, names in parts for n in names)

"""Scoring instance masks by COCO's metrics, and boxes, masks and panoptic quality together.

The definitions are those of :mod:`zoo.datasets.coco_eval` with masks in the place of boxes
(pycocotools' ``segm``); the truth's masks are the things of a panoptic ground truth.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo import distributed
from zoo.datasets.coco_eval import Backend, CocoEvaluator, Scores, score
from zoo.datasets.coco_panoptic_records import write_panoptic
from zoo.datasets.coco_results import Found, check_found
from zoo.datasets.coco_results import Truth as CocoTruth
from zoo.datasets.panoptic_eval import PanopticEvaluator, Segmentation, Truth
from zoo.files import write_json
from zoo.types import Batch, Evaluator, Size


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

    def __init__(
        self, ground_truth: dict[str, Any], class_ids: Sequence[int], *, backend: Backend = "auto"
    ) -> None:
        self.truth = CocoTruth(ground_truth, masks=True)
        self.class_ids = np.asarray(class_ids, dtype=np.int64)
        self.backend: Backend = backend
        self._parts: list[Found] = []
        self._gathered = False
        self._scores: Scores | None = None

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
        self._scores = None

    def gather(self) -> None:
        """Collect every process's predictions in every process; does nothing a second time."""
        if not self._gathered:
            self._gathered = True
            self._parts = [p for part in distributed.all_gather(self._parts) for p in part]
            self._scores = None

    def found(self) -> Found:
        """All predictions so far as one table."""
        rows = Found.joined(self._parts)
        rles = [rle for part in self._parts for rle in part.rles or ()]
        return Found(rows.image_ids, rows.category_ids, rows.boxes, rows.scores, rles)

    def scores(self) -> Scores:
        """The whole evaluation, computed once."""
        if self._scores is None:
            self._scores = score(self.truth, self.found(), "segm", self.backend)
        return self._scores

    def compute(self) -> dict[str, float]:
        """COCO's twelve figures of masks, each with ``mask_`` before its name."""
        return {f"mask_{name}": value for name, value in self.scores().metrics().items()}

    def report(self, out: Path) -> tuple[str, tuple[str, ...]]:
        """Write ``segments.json`` into ``out``; returns the figures as text and the file's name."""
        write_json(out / "segments.json", list(self.results()))
        shown = [
            f"{name:10} {f'{value:.3f}' if value >= 0 else '-':>6}"
            for name, value in self.compute().items()
        ]
        lines = ["   ".join(shown[n : n + 3]) for n in range(0, len(shown), 3)]
        return "\n".join([*lines, ""]), ("segments.json",)

    def results(self) -> Iterator[dict[str, Any]]:
        """What was predicted in COCO's results format, with segmentations."""
        found = self.found().sorted_by_image()
        for row, rle in zip(found.results(), found.rles or (), strict=True):
            yield {k: v for k, v in row.items() if k != "bbox"} | {"segmentation": rle}


class SegmentsEvaluator:
    """Panoptic quality, and COCO's metrics on the boxes and masks of things, at once.

    Figures are PQ, SQ, RQ (``_th`` things, ``_st`` stuff), AP ... of boxes and mask_AP ... .
    ``ground_truth`` is what :func:`things_of` makes of the truth with masks; a source that is
    evaluated often keeps it, as every map has to be read for it. With ``keep`` what was predicted
    is written by :meth:`report` in COCO's panoptic format, too.
    """

    def __init__(
        self, truth: Truth, class_ids: Sequence[int], ground_truth: dict[str, Any] | None = None
    ) -> None:
        if ground_truth is None:
            ground_truth = things_of(truth, masks=True)
        self.panoptic = PanopticEvaluator(truth, class_ids)
        self.boxes = CocoEvaluator(ground_truth, class_ids)
        self.masks = MaskEvaluator(ground_truth, class_ids)
        self.keep = False
        self.class_ids = tuple(class_ids)
        self._kept: list[_Packed] = []
        self._gathered = False

    @property
    def parts(self) -> tuple[Evaluator, ...]:
        """The three that are fed."""
        return self.panoptic, self.boxes, self.masks

    def use_backend(self, backend: Backend) -> None:
        """Choose what computes COCO's metrics."""
        self.boxes.backend = self.masks.backend = backend

    def update(self, predictions: Sequence[Any], batch: Batch) -> None:
        """Add a batch's :class:`zoo.models.detr.panoptic_postprocess.Segments`.

        Pictures that could not be read count as without detections.
        """
        read = [i for i, meta in enumerate(batch.metas) if "unreadable" not in meta.extra]
        predictions = [predictions[i] for i in read]
        batch = replace(batch, metas=[batch.metas[i] for i in read])
        for part in self.parts:
            part.update(predictions, batch)
        if self.keep:
            self._kept += [
                _Packed.of(meta.image_id, found)
                for found, meta in zip(predictions, batch.metas, strict=True)
            ]

    def gather(self) -> None:
        """Collect what every process counted in every process."""
        for part in self.parts:
            part.gather()
        if not self._gathered:
            self._gathered = True
            self._kept = [one for part in distributed.all_gather(self._kept) for one in part]

    def compute(self) -> dict[str, float]:
        """All figures."""
        return {name: value for part in self.parts for name, value in part.compute().items()}

    def report(self, out: Path) -> tuple[str, tuple[str, ...]]:
        """Write what the parts write into ``out``; returns their text and the files' names.

        With ``keep`` also ``segmentations.json`` and a folder of that name with its maps.
        """
        texts, files = zip(*(part.report(out) for part in self.parts), strict=True)
        written = [name for names in files for name in names]
        if self.keep:
            kept = sorted(self._kept, key=lambda one: one.image_id)
            write_panoptic(
                out / "segmentations.json",
                ((one.image_id, f"{one.image_id:012}.png", one.unpacked()) for one in kept),
                class_ids=self.class_ids,
                scores={one.image_id: one.scores for one in kept},
            )
            written += ["segmentations.json", "segmentations"]
        titles = ("segments:", "boxes of things:", "masks of things:")
        text = "\n".join(f"{t}\n{x}" for t, x in zip(titles, texts, strict=True))
        return f"\n{text}", tuple(written)


@dataclass(frozen=True)
class _Packed:
    """A predicted segmentation in little memory: some kilobytes where it was a megabyte."""

    image_id: int
    size: Size
    ids: bytes
    segments: Segmentation  # without its map
    scores: tuple[float, ...]

    @staticmethod
    def of(image_id: int, found: Any) -> _Packed:
        shown: Segmentation = found.panoptic
        rest = Segmentation(np.zeros((0, 0), np.int32), shown.numbers, shown.labels, shown.crowd)
        ids = zlib.compress(np.ascontiguousarray(shown.ids, np.int32).tobytes(), 1)
        return _Packed(image_id, shown.size, ids, rest, tuple(found.panoptic_scores))

    def unpacked(self) -> Segmentation:
        ids = np.frombuffer(zlib.decompress(self.ids), np.int32).reshape(self.size)
        return replace(self.segments, ids=ids)

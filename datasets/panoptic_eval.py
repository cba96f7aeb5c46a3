"""Panoptic quality (Kirillov et al., CVPR 2019, arXiv 1801.00868, section 4).

A segment that was found and one of the truth match where they are of one class and their IoU is
above 0.5, which no second pair of either can be. Per class, PQ is the sum of the matched pairs'
IoU over TP + FP / 2 + FN / 2; SQ is the mean IoU of pairs, RQ what is left of PQ. The figures of a
group (all, things, stuff) are means over its classes that occur, in the truth or in what was found.

The rules for what nobody labelled are those of the official evaluator
(github.com/cocodataset/panopticapi): pixels of void count into no union; a crowd region is no
segment to be found; a segment without a partner counts as wrong only if at most half of it lies on
void and on crowds of its own class. Where a picture has several crowds of one class all of them
count here, and the last one there.

Both maps are read as runs along the rows, so an image is one bincount of few thousand pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zoo import distributed
from zoo.errors import ZooError
from zoo.files import write_json
from zoo.types import Batch, Size

log = logging.getLogger("zoo")

VOID = 0  # the id of pixels that belong to no segment


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A picture cut into segments, each pixel in one of them or in none.

    ``ids`` [H, W] int32 is each pixel's segment, 0 none; ``numbers`` [N] int64 are the segments'
    ids, ``labels`` [N] int64 their classes: category ids in files and in the truth, class indices
    0..K-1 in predictions. ``crowd`` [N] bool marks regions of several objects (truth only).
    """

    ids: NDArray[np.int32]
    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.ids.shape[0], self.ids.shape[1]

    @staticmethod
    def empty(size: Size) -> Segmentation:
        """A picture without segments."""
        none = np.zeros(0, dtype=np.int64)
        return Segmentation(np.zeros(size, np.int32), none, none, none.astype(bool))


class Truth(Protocol):
    """The panoptic ground truth of a set, read picture by picture."""

    @property
    def categories(self) -> Mapping[int, str]:
        """Category id to name, in the order of ids."""

    @property
    def things(self) -> frozenset[int]:
        """The ids of categories that are things; the others are stuff."""

    def image_ids(self) -> Sequence[int]:
        """The ids of all pictures."""

    def segmentation(self, image_id: int) -> Segmentation:
        """What a picture shows; ``labels`` are category ids."""


@dataclass(eq=False)
class Tally:
    """Matched pairs and mistakes for each of K classes; ``iou`` is the sum over pairs."""

    iou: NDArray[np.float64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]

    @staticmethod
    def zeros(classes: int) -> Tally:
        """Nothing counted yet."""
        counts = [np.zeros(classes, dtype=np.int64) for _ in range(3)]
        return Tally(np.zeros(classes), *counts)

    def add(self, other: Tally) -> None:
        """Add another one's counts to these."""
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn


@dataclass(frozen=True, eq=False)
class PanopticScores:
    """What an evaluation found; ``categories`` map ids to names in the order of the tally."""

    tally: Tally
    categories: Mapping[int, str]
    things: frozenset[int]

    def per_class(self) -> dict[int, dict[str, float]]:
        """By category id: pq, sq, rq (0..1) and tp, fp, fn; classes that occur only."""
        t = self.tally
        found = {}
        for k, number in enumerate(self.categories):
            whole = t.tp[k] + 0.5 * t.fp[k] + 0.5 * t.fn[k]
            if whole:
                found[number] = {
                    "pq": float(t.iou[k] / whole),
                    "sq": float(t.iou[k] / t.tp[k]) if t.tp[k] else 0.0,
                    "rq": float(t.tp[k] / whole),
                    "tp": int(t.tp[k]),
                    "fp": int(t.fp[k]),
                    "fn": int(t.fn[k]),
                }
        return found

    def groups(self) -> dict[str, dict[str, float]]:
        """Means over the classes of All, Things and Stuff, with ``n``, how many these are.

        Figures are -1.0 where a group has no class that occurs.
        """
        found = self.per_class()
        chosen = {
            "All": list(found.values()),
            "Things": [v for k, v in found.items() if k in self.things],
            "Stuff": [v for k, v in found.items() if k not in self.things],
        }
        return {
            name: {
                key: float(np.mean([v[key] for v in values])) if values else -1.0
                for key in ("pq", "sq", "rq")
            }
            | {"n": len(values)}
            for name, values in chosen.items()
        }

    def metrics(self) -> dict[str, float]:
        """PQ SQ RQ of all classes, of things (``PQ_th`` ...) and of stuff (``PQ_st`` ...)."""
        suffixes = {"All": "", "Things": "_th", "Stuff": "_st"}
        return {
            f"{key.upper()}{suffixes[name]}": values[key]
            for name, values in self.groups().items()
            for key in ("pq", "sq", "rq")
        }

    def table(self) -> str:
        """Groups and classes as text."""
        rows = [(name, v, f"{v['n']} classes") for name, v in self.groups().items()]
        for number, v in self.per_class().items():
            counts = f"tp {v['tp']} fp {v['fp']} fn {v['fn']}"
            rows.append((self.categories[number], v, counts))
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{'':{width}}      PQ     SQ     RQ"]
        lines += [
            f"{name:{width}}  "
            + "  ".join(f"{v[k]:5.3f}" if v[k] >= 0 else "    -" for k in ("pq", "sq", "rq"))
            + f"  {more}"
            for name, v, more in rows
        ]
        return "\n".join(["", *lines, ""])

    def write(self, out: Path) -> None:
        """Groups and classes as ``panoptic.json`` in ``out``."""
        by_name = {f"{self.categories[k]} ({k})": v for k, v in self.per_class().items()}
        write_json(out / "panoptic.json", {"groups": self.groups(), "classes": by_name})


def _runs(
    a: NDArray[np.int32], b: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Ids of both maps and the length of every run of pixels in which neither changes."""
    a, b = a.ravel(), b.ravel()
    starts = np.flatnonzero((a[1:] != a[:-1]) | (b[1:] != b[:-1])) + 1
    starts = np.concatenate([np.zeros(min(1, a.size), np.int64), starts])
    lengths = np.diff(np.append(starts, a.size))
    return a[starts].astype(np.int64), b[starts].astype(np.int64), lengths


def _columns(ids: NDArray[np.int64], numbers: NDArray[np.int64], origin: str) -> NDArray[np.int64]:
    """0 for void, 1 + the place in ``numbers`` of every other id.

    Raises :class:`ZooError` for an id that is no segment's.
    """
    order = np.argsort(numbers, kind="stable")
    ranked = numbers[order]
    places = np.searchsorted(ranked, ids)
    inside = places < len(ranked)
    known = np.zeros(len(ids), dtype=bool)
    known[inside] = ranked[places[inside]] == ids[inside]
    unknown = ~known & (ids != VOID)
    if unknown.any():
        raise ZooError(
            f"{origin} has pixels of segment {int(ids[unknown][0])}, which its segments_info does "
            "not list; list it or make them 0"
        )
    found = np.zeros(len(ids), dtype=np.int64)
    found[known] = order[places[known]] + 1
    return found


def count(
    truth: Segmentation,
    found: Segmentation,
    classes: Mapping[int, int],
    *,
    origin: str = "the prediction",
    truth_origin: str = "the ground truth",
) -> Tally:
    """Compare two segmentations of one picture; ``labels`` of both are category ids.

    ``classes`` maps a category id to its place in the tally. Raises :class:`ZooError` that begins
    with ``origin`` (or ``truth_origin``) where sizes differ, a category is unknown, an id is listed
    twice or is 0, or map and list do not have the same segments.
    """
    if truth.ids.shape != found.ids.shape:
        (h, w), (th, tw) = found.size, truth.size
        raise ZooError(
            f"{origin} has {w} x {h} pixels where {truth_origin} has {tw} x {th}; write it at the "
            "picture's own size"
        )
    places = []
    for part, name in ((truth, truth_origin), (found, origin)):
        _check(part, classes, name)
        places.append(np.array([classes[int(n)] for n in part.labels], dtype=np.int64))
    of_truth, of_found = places
    rows, columns, lengths = _runs(truth.ids, found.ids)
    rows = _columns(rows, truth.numbers, truth_origin)
    columns = _columns(columns, found.numbers, origin)
    n, m = len(truth.numbers) + 1, len(found.numbers) + 1
    shared = np.bincount(rows * m + columns, weights=lengths, minlength=n * m).reshape(n, m)
    areas, found_areas = shared.sum(1)[1:], shared.sum(0)[1:]
    for area, part, name in ((areas, truth, truth_origin), (found_areas, found, origin)):
        if (lost := np.flatnonzero(area == 0)).size:
            raise ZooError(
                f"{name} lists segment {int(part.numbers[lost[0]])}, which has no pixel; "
                "take it out of segments_info"
            )

    inner, on_void = shared[1:, 1:], shared[0, 1:]
    same = of_truth[:, None] == of_found[None]
    union = areas[:, None] + found_areas[None] - inner - on_void[None]
    # A union of nothing is that of a segment on void alone: it shares no pixel with any.
    iou = np.where(same & ~truth.crowd[:, None], inner / np.maximum(union, 1), 0.0)
    matched_rows, matched_columns = np.nonzero(iou > 0.5)

    tally = Tally.zeros(len(classes))
    np.add.at(tally.iou, of_truth[matched_rows], iou[matched_rows, matched_columns])
    np.add.at(tally.tp, of_truth[matched_rows], 1)
    missed = ~truth.crowd
    missed[matched_rows] = False
    np.add.at(tally.fn, of_truth[missed], 1)
    ignored = on_void + (inner * (same & truth.crowd[:, None])).sum(0)
    wrong = ignored / found_areas <= 0.5
    wrong[matched_columns] = False
    np.add.at(tally.fp, of_found[wrong], 1)
    return tally


def _check(part: Segmentation, classes: Mapping[int, int], origin: str) -> None:
    numbers = part.numbers
    if len(np.unique(numbers)) < len(numbers) or (numbers == VOID).any():
        raise ZooError(f"{origin} lists a segment id twice, or 0; give each segment its own, above")
    for number, label in zip(numbers.tolist(), part.labels.tolist(), strict=True):
        if label not in classes:
            raise ZooError(
                f"{origin}: segment {number} has category id {label}, which the ground truth does "
                "not have; use the data's own ids"
            )


@dataclass(eq=False)
class PanopticEvaluator:
    """Scores panoptic predictions over a whole set; an :class:`zoo.types.Evaluator`.

    Predictions have a ``panoptic``, a :class:`Segmentation` of the original picture with class
    indices; ``class_ids`` are their category ids. Pictures that nobody predicted count as without
    segments.
    """

    truth: Truth
    class_ids: Sequence[int]
    _tally: Tally = field(init=False)
    _seen: set[int] = field(init=False, default_factory=set)
    _gathered: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._places = {number: k for k, number in enumerate(self.truth.categories)}
        self._known = set(self.truth.image_ids())
        self._tally = Tally.zeros(len(self._places))
        if unknown := [n for n in self.class_ids if n not in self._places]:
            raise ValueError(f"class ids {unknown} are not among the ground truth's categories")
        self._ids = np.asarray(self.class_ids, dtype=np.int64)

    def update(self, predictions: Sequence[Any], batch: Batch) -> None:
        """Add the predictions of a batch, one a picture.

        Raises ``ValueError`` for a picture that was predicted before or that the truth does not
        hold, and :class:`ZooError` for a prediction or a truth that :func:`count` refuses.
        """
        for prediction, meta in zip(predictions, batch.metas, strict=True):
            number = meta.image_id
            if number in self._seen:
                raise ValueError(f"image id {number} was predicted twice")
            if number not in self._known:
                raise ValueError(f"image id {number} is not in the ground truth")
            self._seen.add(number)
            found: Segmentation = prediction.panoptic
            own = Segmentation(found.ids, found.numbers, self._ids[found.labels], found.crowd)
            self._add(number, own, f"the prediction for image id {number} ({meta.path})")

    def _add(self, number: int, found: Segmentation, origin: str) -> None:
        truth = self.truth.segmentation(number)
        whose = f"the ground truth of image id {number}"
        self._tally.add(count(truth, found, self._places, origin=origin, truth_origin=whose))

    def gather(self) -> None:
        """Sum every process's counts in every process; does nothing a second time."""
        if self._gathered:
            return
        self._gathered = True
        parts = distributed.all_gather((self._tally, self._seen))
        if len(parts) == 1:
            return
        seen = [number for _, numbers in parts for number in numbers]
        if len(set(seen)) < len(seen):
            twice = next(n for n in set(seen) if seen.count(n) > 1)
            raise ValueError(f"image id {twice} was predicted by two processes")
        self._seen, self._tally = set(seen), Tally.zeros(len(self._places))
        for tally, _ in parts:
            self._tally.add(tally)

    def scores(self) -> PanopticScores:
        """The whole evaluation."""
        total = Tally.zeros(len(self._places))
        total.add(self._tally)
        missing = sorted(self._known - self._seen)
        if missing and distributed.is_main():
            log.warning(
                "%d of %d pictures were not predicted; scored as without segments",
                len(missing),
                len(self._known),
            )
        for number in missing:
            truth = self.truth.segmentation(number)
            total.add(count(truth, Segmentation.empty(truth.size), self._places))
        return PanopticScores(total, self.truth.categories, self.truth.things)

    def compute(self) -> dict[str, float]:
        """PQ, SQ and RQ, of all, things and stuff; see :meth:`PanopticScores.metrics`."""
        return self.scores().metrics()

    def report(self, out: Path) -> tuple[str, tuple[str, ...]]:
        """Write ``panoptic.json`` (groups and classes) into ``out``; returns the table as text."""
        scores = self.scores()
        scores.write(out)
        return scores.table(), ("panoptic.json",)


def evaluate_panoptic(truth: Truth, found: Truth) -> PanopticScores:
    """Score one set of files against another, both :class:`Truth` (see ``coco_panoptic_records``).

    Every picture of the truth needs a prediction. Raises :class:`ZooError` naming the picture for
    one that is missing, and for whatever :func:`count` refuses.
    """
    places = {number: k for k, number in enumerate(truth.categories)}
    given = set(found.image_ids())
    tally = Tally.zeros(len(places))
    for number in truth.image_ids():
        if number not in given:
            raise ZooError(
                f"there is no prediction for image id {number}; predict every picture of the truth"
            )
        tally.add(
            count(
                truth.segmentation(number),
                found.segmentation(number),
                places,
                origin=f"the prediction for image id {number}",
                truth_origin=f"the ground truth of image id {number}",
            )
        )
    return PanopticScores(tally, truth.categories, truth.things)

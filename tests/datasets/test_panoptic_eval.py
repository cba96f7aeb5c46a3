"""Panoptic quality against the official evaluator's figures and by hand."""

import json
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from zoo.datasets.coco_panoptic_records import PanopticTruth, predictions
from zoo.datasets.panoptic_eval import (
    PanopticEvaluator,
    Segmentation,
    count,
    evaluate_panoptic,
)
from zoo.errors import ZooError
from zoo.types import Batch, Meta

CLASSES = {7: 0, 9: 1, 20: 2}


def cut(ids, *segments):
    """Segments are (id, category, crowd)."""
    columns = list(zip(*segments, strict=True)) or [(), (), ()]
    return Segmentation(
        np.asarray(ids, np.int32), np.array(columns[0], np.int64), np.array(columns[1], np.int64),
        np.array(columns[2], bool),
    )  # fmt: skip


def by_loops(truth, found):
    """The definition, pair by pair; tallies [K] of iou, tp, fp, fn."""
    iou, tp, fp, fn = (np.zeros(len(CLASSES)) for _ in range(4))
    void = truth.ids == 0
    matched = set()
    for number, label, crowd in zip(truth.numbers, truth.labels, truth.crowd, strict=True):
        if crowd:
            continue
        mine = truth.ids == number
        hit = False
        for other, kind in zip(found.numbers, found.labels, strict=True):
            theirs = (found.ids == other) & ~void
            value = (mine & theirs).sum() / (mine | theirs).sum()
            if kind == label and value > 0.5:
                k = CLASSES[int(label)]
                iou[k] += value
                tp[k] += 1
                hit = True
                matched.add(int(other))
        fn[CLASSES[int(label)]] += not hit
    for other, kind in zip(found.numbers, found.labels, strict=True):
        theirs = found.ids == other
        ignored = void.copy()
        for number, label, crowd in zip(truth.numbers, truth.labels, truth.crowd, strict=True):
            if crowd and label == kind:
                ignored |= truth.ids == number
        if int(other) not in matched and (theirs & ignored).sum() <= 0.5 * theirs.sum():
            fp[CLASSES[int(kind)]] += 1
    return iou, tp, fp, fn


@pytest.mark.parametrize("seed", range(8))
def test_counts_equal_the_definition_in_loops(seed):
    draw = np.random.default_rng(seed)

    def random(crowds, least):
        blocks = draw.integers(least, 6, (4, 5))
        ids = np.kron(blocks, np.ones((3, 4), int)) * 1000
        numbers = [n for n in np.unique(ids) if n]
        crowd = [bool(crowds and draw.random() < 0.3) for _ in numbers]
        labels = [list(CLASSES)[draw.integers(3)] for _ in numbers]
        return cut(ids, *zip(numbers, labels, crowd, strict=True))

    truth, found = random(True, 0), random(False, 0)
    # Mostly the truth, so that there are matches.
    keep = draw.random(truth.ids.shape) < 0.85
    mixed = np.where(keep, truth.ids, found.ids)
    numbers = [n for n in np.unique(mixed) if n]
    labels = dict(zip(truth.numbers.tolist(), truth.labels.tolist(), strict=True))
    found = cut(mixed, *((n, labels.get(int(n), 7), False) for n in numbers))
    tally = count(truth, found, CLASSES)
    for mine, wanted in zip(
        (tally.iou, tally.tp, tally.fp, tally.fn), by_loops(truth, found), strict=True
    ):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-12)


def test_an_iou_of_one_half_is_no_match():
    truth = cut([[1, 1, 2, 2]], (1, 7, False), (2, 9, False))
    found = cut([[5, 5, 5, 5]], (5, 7, False))
    tally = count(truth, found, CLASSES)
    assert tally.tp.tolist() == [0, 0, 0]
    assert tally.fp.tolist() == [1, 0, 0]
    assert tally.fn.tolist() == [1, 1, 0]


def test_void_and_crowds_of_the_same_class_forgive():
    truth = cut([[0, 0, 0, 3, 3, 3, 4, 4]], (3, 7, True), (4, 9, False))
    on_void = cut([[5, 5, 5, 0, 0, 0, 0, 0]], (5, 7, False))
    on_crowd = cut([[0, 0, 0, 5, 5, 5, 5, 0]], (5, 7, False))
    of_other = cut([[0, 0, 0, 5, 5, 5, 5, 0]], (5, 20, False))
    half = cut([[0, 5, 5, 0, 0, 0, 5, 5]], (5, 7, False))
    assert [int(count(truth, f, CLASSES).fp.sum()) for f in (on_void, on_crowd)] == [0, 0]
    assert [int(count(truth, f, CLASSES).fp.sum()) for f in (of_other, half)] == [1, 1]
    assert count(truth, on_crowd, CLASSES).fn.tolist() == [0, 1, 0]


def test_void_is_in_no_union():
    truth = cut([[0, 0, 0, 1, 1]], (1, 7, False))
    found = cut([[5, 5, 5, 5, 5]], (5, 7, False))
    tally = count(truth, found, CLASSES)
    assert tally.tp.tolist() == [1, 0, 0]
    assert tally.iou[0] == 1.0


@pytest.mark.parametrize("run", ["prediction", "truth"])
def test_equal_to_the_official_evaluator(shared_data, run):
    folder = shared_data / "coco_panoptic_sample"
    expected = json.loads((folder / "expected_pq.json").read_text())["runs"]
    truth = PanopticTruth.open(folder / "panoptic_examples.json")
    if run == "prediction":
        scores = evaluate_panoptic(truth, predictions(folder / "prediction.json", truth))
        wanted = expected["prediction"]
    else:
        scores = evaluate_panoptic(truth, truth)
        wanted = expected[next(name for name in expected if name != "prediction")]
    groups = scores.groups()
    for name in ("All", "Things", "Stuff"):
        assert groups[name]["n"] == wanted[name]["n"]
        for key in ("pq", "sq", "rq"):
            assert groups[name][key] == pytest.approx(wanted[name][key], rel=0, abs=1e-6)
    per_class = scores.per_class()
    # The official one lists classes, with zeros, that do not occur and do not count.
    assert {str(k) for k in per_class} <= set(wanted["per_class"])
    assert len(per_class) == wanted["All"]["n"]
    for number, values in wanted["per_class"].items():
        for key, value in values.items():
            mine = per_class.get(int(number), {}).get(key, 0.0)
            assert mine == pytest.approx(value, rel=0, abs=1e-6)


class Memory:
    """A truth of two pictures."""

    categories: Mapping[int, str] = {7: "cat", 9: "dog", 20: "sky"}
    things = frozenset({7, 9})

    def __init__(self):
        first = cut([[1, 1, 2, 2]], (1, 7, False), (2, 20, False))
        second = cut([[0, 3, 3, 3]], (3, 9, False))
        self.maps = {11: first, 12: second}

    def image_ids(self):
        return list(self.maps)

    def segmentation(self, image_id):
        return self.maps[image_id]


def batch(*ids):
    return Batch({}, [], [Meta(image_id=n, orig_size=(1, 4), size=(1, 4)) for n in ids])


def as_indices(shown):
    places = np.array([CLASSES[int(n)] for n in shown.labels], np.int64)
    return SimpleNamespace(panoptic=Segmentation(shown.ids, shown.numbers, places, shown.crowd))


def test_the_evaluator_scores_batches_and_counts_what_is_missing(tmp_path, caplog):
    truth = Memory()
    whole = PanopticEvaluator(truth, (7, 9, 20))
    whole.update([as_indices(truth.maps[11])], batch(11))
    whole.update([as_indices(truth.maps[12])], batch(12))
    whole.gather()
    metrics = whole.compute()
    assert metrics["PQ"] == metrics["PQ_th"] == metrics["SQ_st"] == 1.0
    text, files = whole.report(tmp_path)
    assert "sky" in text
    assert json.loads((tmp_path / files[0]).read_text())["groups"]["All"]["n"] == 3

    part = PanopticEvaluator(truth, (7, 9, 20))
    part.update([as_indices(truth.maps[11])], batch(11))
    assert part.compute()["PQ"] == pytest.approx(2 / 3)
    assert "1 of 2 pictures were not predicted" in caplog.text
    with pytest.raises(ValueError, match="predicted twice"):
        part.update([as_indices(truth.maps[11])], batch(11))
    with pytest.raises(ValueError, match="not in the ground truth"):
        part.update([as_indices(truth.maps[11])], batch(99))


def test_bad_predictions_are_told_in_one_sentence():
    truth = cut([[1, 1, 2, 2]], (1, 7, False), (2, 9, False))
    for bad, words in (
        (cut([[1, 1, 2]], (1, 7, False), (2, 9, False)), "3 x 1 pixels"),
        (cut([[1, 1, 2, 2]], (1, 7, False)), "segment 2, which its segments_info does not"),
        (cut([[1, 1, 1, 1]], (1, 7, False), (6, 9, False)), "segment 6, which has no pixel"),
        (cut([[1, 1, 1, 1]], (1, 8, False)), "category id 8"),
        (cut([[1, 1, 1, 1]], (1, 7, False), (1, 9, False)), "twice"),
    ):
        with pytest.raises(ZooError) as caught:
            count(truth, bad, CLASSES, origin="p.png")
        assert str(caught.value).startswith("p.png")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

"""Mask AP against pycocotools, and the three kinds of scores at once, on drawn shapes."""

import contextlib
import io

import numpy as np
import pytest
import torch

from zoo.datasets.mask_eval import MaskEvaluator, SegmentsEvaluator, encoded, things_of
from zoo.datasets.panoptic_eval import Segmentation
from zoo.datasets.shapes import ShapesConfig, ShapesSet
from zoo.datasets.shapes_panoptic import GROUND, NAMES, ShapesPanoptic, open_shapes_panoptic
from zoo.models.detr.panoptic_postprocess import Segments
from zoo.types import Batch, Meta


@pytest.fixture(scope="module")
def drawn() -> ShapesPanoptic:
    config = ShapesConfig(train_images=4, val_images=4, cache_mb=0)
    return ShapesPanoptic(ShapesSet(config, "val", augmented=False))


def found_in(drawn, number, shift=0):
    """The truth of a picture as a prediction, its maps moved to the right by ``shift``."""
    shown = drawn.segmentation(number)
    ids = np.roll(shown.ids, shift, axis=1)
    order = list(NAMES)
    labels = np.array([order.index(n) for n in shown.labels.tolist()])
    masks = [ids == n for n in shown.numbers]
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return Segments(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.linspace(0.9, 0.5, len(masks)),
        labels=torch.from_numpy(labels),
        masks=[encoded(m) for m in masks],
        panoptic=Segmentation(ids, shown.numbers, labels, shown.crowd),
        panoptic_scores=(1.0,) * len(masks),
    )


def batch(drawn, *ids, **extra):
    metas = [
        Meta(image_id=n, orig_size=drawn.segmentation(n).size, size=(8, 8), extra=extra)
        for n in ids
    ]
    return Batch({}, [], metas)


def test_the_truth_itself_is_perfect(drawn, tmp_path):
    evaluator = SegmentsEvaluator(drawn, tuple(NAMES))
    for number in drawn.image_ids():
        evaluator.update([found_in(drawn, number)], batch(drawn, number))
    evaluator.gather()
    metrics = evaluator.compute()
    for name in ("PQ", "PQ_th", "PQ_st", "mask_AP", "mask_AP50", "AP"):
        assert metrics[name] == pytest.approx(1.0), name
    text, files = evaluator.report(tmp_path)
    assert "ground" in text
    assert all((tmp_path / name).is_file() for name in files)


def test_mask_ap_equals_pycocotools(drawn):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = things_of(drawn, masks=True)
    evaluator = MaskEvaluator(truth, tuple(NAMES))
    for step, number in enumerate(drawn.image_ids()):
        evaluator.update([found_in(drawn, number, shift=2 * step)], batch(drawn, number))
    mine = evaluator.compute()
    assert 0 < mine["mask_AP"] < 1
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = things_of(drawn, masks=True)
        gt.createIndex()
        run = COCOeval(gt, gt.loadRes(list(evaluator.results())), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    for name, value in zip(("AP", "AP50", "AP75"), run.stats, strict=False):
        assert mine[f"mask_{name}"] == pytest.approx(value, abs=1e-12)


def test_unreadable_pictures_count_as_without_detections(drawn):
    first, *others = drawn.image_ids()
    evaluator = SegmentsEvaluator(drawn, tuple(NAMES))
    evaluator.update([found_in(drawn, first)], batch(drawn, first, unreadable="broken"))
    evaluator.update([found_in(drawn, n) for n in others], batch(drawn, *others))
    assert 0 < evaluator.compute()["PQ"] < 1


def test_classes_matched_by_name_keep_masks_and_segments(drawn):
    number = drawn.image_ids()[0]
    found = found_in(drawn, number)
    places = torch.full((len(NAMES),), -1)
    places[len(NAMES) - 1] = 3  # the ground alone is known
    moved = found.relabelled(places)
    assert moved.labels.tolist() == [3]
    assert len(moved.masks) == len(moved.boxes) == len(moved.panoptic_scores) == 1
    assert moved.panoptic.labels.tolist() == [3]
    assert set(np.unique(moved.panoptic.ids)) == {0, int(moved.panoptic.numbers[0])}


def test_drawn_segments_are_what_the_boxes_say(drawn):
    config = ShapesConfig(train_images=6, val_images=2)
    source = open_shapes_panoptic(config)
    assert source.class_names[-1] == "ground"
    assert source.preprocess["stuff"] == [len(NAMES) - 1]
    for index in range(len(source.train)):
        sample = source.train[index]
        target = sample.target
        assert (target["masks"].sum(0) == 1).all()  # every cell is of one segment
        assert sample.meta.extra["stuff"] == (len(NAMES) - 1,)
        assert len(target["masks"]) == len(target["labels"])
        assert int(target["labels"][-1]) == len(NAMES) - 1
    for number in drawn.image_ids():
        shown = drawn.segmentation(number)
        scene = drawn.shapes.scene(drawn.image_ids().index(number))
        for place, box in enumerate(scene.boxes):
            assert (shown.ids == place + 1).sum() == scene.areas[place]
            rows, columns = np.nonzero(shown.ids == place + 1)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.array(edges) - box).max() <= 1
        assert shown.labels[-1] == GROUND
    assert len(source.overfit(2).train) == 2

"""Masks to instance masks and panoptic maps: sizes, thresholds, merged stuff, small segments."""

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torch.nn import functional as F

from zoo.models.detr.panoptic_postprocess import Enlarge, PanopticPostprocess
from zoo.types import Meta

# pycocotools has not followed NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (32, 48)


def rectangle(top, left, bottom, right, high=9.0, padded=(10, 15)):
    logits = torch.full(padded, -9.0)
    logits[top:bottom, left:right] = high
    return logits


def outputs(*queries):
    """Queries are (label, score, mask); three classes and "nothing"."""
    probs = torch.full((1, len(queries), 4), 1e-6)
    for n, (label, score, _) in enumerate(queries):
        probs[0, n, label] = score
        probs[0, n, 3] = 1 - score
    boxes = torch.full((1, len(queries), 4), 0.5)
    masks = torch.stack([m for _, _, m in queries])[None]
    return {"pred_logits": probs.log(), "pred_boxes": boxes, "pred_masks": masks}


def meta(orig_size=SIZE, **extra):
    return [Meta(image_id=1, orig_size=orig_size, size=SIZE, extra=extra)]


def run(*queries, orig_size=SIZE, stuff=(2,), **settings):
    (found,) = PanopticPostprocess(**settings)(outputs(*queries), meta(orig_size, stuff=stuff))
    return found


def decoded(found):
    return np.stack([rle.decode(m) for m in found.masks]).astype(bool)


@pytest.mark.parametrize("orig_size", [(32, 48), (64, 96), (50, 75), (16, 24)])
def test_enlarging_equals_torch_on_whole_cells(orig_size):
    logits = torch.randn(8, 12)
    mine = Enlarge(SIZE, orig_size, "cpu")(logits)
    wanted = F.interpolate(logits[None, None], size=orig_size, mode="bilinear")[0, 0]
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)


def test_a_cut_off_cell_keeps_its_place():
    """30 x 46 pixels end within their last cells: as if enlarged by 4 and cut off."""
    logits = torch.randn(8, 12)
    mine = Enlarge((30, 46), (30, 46), "cpu")(logits)
    wanted = F.interpolate(logits[None, None], scale_factor=4, mode="bilinear")[0, 0, :30, :46]
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)


def test_instance_masks_are_in_the_original_picture():
    found = run(
        (0, 0.9, rectangle(0, 0, 4, 6)), (1, 0.3, rectangle(4, 6, 10, 15)), orig_size=(64, 96)
    )
    first, second = decoded(found)
    assert first.shape == (64, 96)
    assert first[:30, :46].all()
    assert not first[34:].any()
    assert second[34:, 50:].all()  # to the edge, and no padding
    assert found.scores.tolist() == pytest.approx([0.9, 0.3], abs=1e-3)
    cut = run(
        (0, 0.9, rectangle(0, 0, 4, 6)), (1, 0.3, rectangle(4, 6, 10, 15)), instance_threshold=0.5
    )
    assert decoded(cut).any((1, 2)).tolist() == [True, False]
    assert len(cut.boxes) == 2


def test_queries_below_the_threshold_are_no_segments():
    found = run((0, 0.9, rectangle(0, 0, 8, 6)), (1, 0.8, rectangle(0, 6, 8, 12)))
    shown = found.panoptic
    assert shown.labels.tolist() == [0]
    assert (shown.ids == 1).all()  # every pixel goes to the best that is left
    nothing = run((0, 0.5, rectangle(0, 0, 8, 6)))
    assert nothing.panoptic.size == SIZE
    assert nothing.panoptic_scores == ()
    assert not nothing.panoptic.ids.any()


def test_stuff_of_one_class_is_merged_and_things_are_not():
    halves = rectangle(0, 0, 8, 6), rectangle(0, 6, 8, 12)
    things = run((0, 0.9, halves[0]), (0, 0.95, halves[1]))
    assert things.panoptic.labels.tolist() == [0, 0]
    assert things.panoptic_scores == pytest.approx((0.95, 0.9), abs=1e-3)
    stuff = run((2, 0.9, halves[0]), (2, 0.95, halves[1]))
    assert stuff.panoptic.labels.tolist() == [2]
    assert (stuff.panoptic.ids == 1).all()
    assert stuff.panoptic_scores == pytest.approx((0.95,), abs=1e-3)
    (told,) = PanopticPostprocess(stuff=(0,))(
        outputs((0, 0.9, halves[0]), (0, 0.95, halves[1])), meta()
    )
    assert told.panoptic.labels.tolist() == [0]


def test_small_segments_go_to_their_neighbours():
    """At a quarter of the size one cell is one pixel: 4 pixels are too few, 5 are not."""
    for cells, labels in ((4, [0]), (5, [0, 1])):
        mask = torch.full((10, 15), -20.0)
        mask[3, 2 : 2 + cells] = 20.0
        found = run((0, 0.99, rectangle(0, 0, 8, 12)), (1, 0.9, mask), orig_size=(8, 12))
        assert found.panoptic.labels.tolist() == labels
        assert (found.panoptic.ids != 0).all()


def test_merged_stuff_keeps_all_its_pixels_where_a_small_segment_goes():
    mask = torch.full((10, 15), -20.0)
    mask[3, 2:4] = 20.0
    found = run(
        (2, 0.99, rectangle(0, 0, 8, 4)), (2, 0.98, rectangle(0, 4, 8, 8)),
        (0, 0.97, rectangle(0, 8, 8, 12)), (1, 0.9, mask), orig_size=(8, 12),
    )  # fmt: skip
    assert found.panoptic.labels.tolist() == [2, 0]
    assert (found.panoptic.ids[:, :8] == 1).all()
    assert (found.panoptic.ids[:, 8:] == 2).all()

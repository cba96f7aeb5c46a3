import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_convert

from zoo.datasets.transforms import (
    GREY,
    MIN_VISIBLE,
    WINDOW_DRAWS,
    AugmentConfig,
    Colour,
    Geometry,
    Plan,
    apply_colour,
    apply_geometry,
    collate_detection,
    detection_sample,
    plan_train,
    plan_val,
    plan_windows,
    preprocess_of,
    resized,
)
from zoo.errors import ZooError

PAPER = AugmentConfig()
SIDES = st.integers(1, 3000)


def reference_size(height, width, size, max_size):
    """The release's rule, written down one picture at a time in its own order of (w, h)."""
    short, long = float(min(width, height)), float(max(width, height))
    if max_size is not None and long / short * size > max_size:
        size = round(max_size * short / long)
    if width < height:
        return int(size * height / width), size
    return size, int(size * width / height)


@settings(max_examples=300, deadline=None)
@given(SIDES, SIDES, st.integers(1, 1000), st.sampled_from([None, 1333, 500]))
def test_sizes_are_those_of_the_release(height, width, size, longest):
    got = resized(np.array([[height, width]]), np.array([size]), longest)[0].tolist()
    expected = reference_size(height, width, size, longest)
    if min(expected) == 0:  # the release fails on such a strip
        assert sorted(got) == [1, longest]
    else:
        assert got == list(expected)


def test_known_sizes_of_evaluation():
    plans = plan_val([(480, 640), (640, 480), (333, 500), (100, 1000), (1, 1)], PAPER)
    assert plans.sizes() == [(800, 1066), (1066, 800), (800, 1201), (133, 1330), (800, 800)]
    assert plans[0] == Plan(Geometry((0.0, 0.0, 480.0, 640.0), (800, 1066)))
    assert preprocess_of(PAPER) == {"val_size": 800, "val_max_size": 1333}


def test_a_plan_depends_on_its_own_sample_seed_and_epoch_only():
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 1500, (200, 2))
    whole = plan_train(sizes, PAPER, seed=1, epoch=2)
    picked = plan_train(sizes[[150, 3]], PAPER, seed=1, epoch=2, indices=[150, 3])
    assert (picked[0], picked[1]) == (whole[150], whole[3])
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        plans = plan_train(sizes, PAPER, **other)
        assert sum(plans[i] == whole[i] for i in range(200)) < 30


def test_sides_become_the_nearest_multiples():
    sizes = np.random.default_rng(0).integers(1, 1500, (300, 2))
    exact = plan_train(sizes, PAPER, seed=1, epoch=0)
    rounded = plan_train(sizes, replace(PAPER, multiple=32), seed=1, epoch=0)
    for one, other in zip(exact.sizes(), rounded.sizes(), strict=True):
        assert all(side % 32 == 0 and side > 0 for side in other)
        assert all(abs(a - b) <= 16 or b == 32 for a, b in zip(one, other, strict=True))
    crops = [(exact[i].geometry.crop, rounded[i].geometry.crop) for i in range(300)]
    assert all(a == b for a, b in crops)
    assert plan_val([(480, 640), (100, 1000)], replace(PAPER, multiple=32)).sizes() == [
        (800, 1056), (128, 1344)
    ]  # fmt: skip
    assert preprocess_of(replace(PAPER, multiple=32)) == {**preprocess_of(PAPER), "multiple": 32}
    with pytest.raises(ZooError, match=r"data\.augment\.multiple=0 is not in 1\.\.256"):
        replace(PAPER, multiple=0)


def test_the_mix_of_plans_is_the_papers():
    count = 20_000
    plans = plan_train(np.tile([[480, 640]], (count, 1)), PAPER, seed=0, epoch=0)
    cut = (plans.crops[:, 2:] != (480, 640)).any(axis=1)
    assert cut.mean() == pytest.approx(0.5, abs=0.02)
    assert plans.flips[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    assert not plans.flips[:, 1].any()
    assert (plans.colours == (1, 1, 1, 0)).all()
    shorts, counts = np.unique(plans.out[~cut].min(axis=1), return_counts=True)
    assert shorts.tolist() == list(PAPER.sizes)
    assert counts.min() / counts.sum() > 0.07
    assert plans.out.max() <= 1333
    # Flips, crops and sizes are drawn independently of each other.
    facts = np.stack([cut, plans.flips[:, 0], plans.out.min(axis=1)]).astype(float)
    assert np.abs(np.corrcoef(facts) - np.eye(3)).max() < 0.03


def test_crops_are_whole_pixels_of_one_of_the_first_resizes():
    height, width = 427, 640
    plans = plan_train(np.tile([[height, width]], (3000, 1)), PAPER, seed=0, epoch=0)
    firsts = {s: reference_size(height, width, s, None) for s in PAPER.crop_resize}
    seen = set()
    for i in range(len(plans)):
        top, left, tall, wide = plans[i].geometry.crop
        if (tall, wide) == (height, width):
            continue
        on_grid = {
            first: np.array([top, left, tall, wide])
            * [r / height, c / width, r / height, c / width]
            for first, (r, c) in firsts.items()
        }
        on_grid = {f: p for f, p in on_grid.items() if np.allclose(p, p.round(), atol=1e-6)}
        assert on_grid, f"{plans[i]} is not on the grid of any first resize"
        first, pixels = next(iter(on_grid.items()))
        rows, columns = firsts[first]
        y, x, h, w = pixels.round().astype(int).tolist()
        seen.add((first, h))
        assert 384 <= h <= min(600, rows)
        assert 384 <= w <= min(600, columns)
        assert 0 <= y <= rows - h
        assert 0 <= x <= columns - w
        sizes = [reference_size(h, w, s, 1333) for s in PAPER.sizes]
        assert plans[i].geometry.size in sizes
    assert {s for s, _ in seen} == set(firsts)
    assert max(h for _, h in seen) == 600


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES, st.integers(0, 10_000))
def test_any_picture_has_a_plan_that_can_be_carried_out(height, width, index):
    config = AugmentConfig(vertical_flip=0.5, sizes=(24, 32), max_size=64, crop_resize=(20, 30))
    geometry = plan_train([(height, width)], config, seed=0, epoch=0, indices=[index])[0].geometry
    image = torch.zeros(3, min(height, 200), min(width, 200), dtype=torch.uint8)
    pixels, _ = apply_geometry(image, torch.zeros(0, 4), geometry, (height, width))
    assert tuple(pixels.shape) == (3, *geometry.size)
    assert 1 <= min(geometry.size) <= max(geometry.size) <= 128


def painted(frame, box):
    """A dark picture with one bright rectangle; edges on whole pixels."""
    image = torch.full((3, *frame), 20, dtype=torch.uint8)
    left, top, right, bottom = box
    image[:, top:bottom, left:right] = 240
    return image


def found_box(image):
    """Where the rectangle is, to a part of a pixel: edges at half brightness."""
    bright = (image.float().mean(0) - 20) / 220
    rows, columns = bright.amax(1), bright.amax(0)

    def span(profile):
        inside = torch.nonzero(profile >= 0.5).flatten()
        return int(inside[0]), int(inside[-1]) + 1

    (top, bottom), (left, right) = span(rows), span(columns)
    return torch.tensor([left, top, right, bottom], dtype=torch.float32)


def test_boxes_follow_pixels_through_random_plans():
    rng = np.random.default_rng(3)
    config = AugmentConfig(
        sizes=(96, 120, 160), max_size=300, crop_resize=(100, 125, 150), crop_size=(70, 130),
        vertical_flip=0.5,
    )  # fmt: skip
    seen = {"cut": 0, "gone": 0, "clipped": 0, "vflip": 0}
    for index in range(150):
        frame = tuple(rng.integers(80, 260, 2).tolist())
        height, width = frame
        left, top = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
        right = int(rng.integers(left + 15, width + 1))
        bottom = int(rng.integers(top + 15, height + 1))
        box = (left, top, right, bottom)
        plan = plan_train([frame], config, seed=0, epoch=0, indices=[index])[0]
        sample = detection_sample(
            painted(frame, box), torch.tensor([box]), torch.tensor([2]), plan,
            frame=frame, image_id=index,
        )  # fmt: skip
        pixels, boxes = sample.inputs["pixel_values"], sample.target["boxes"]
        assert tuple(pixels.shape[1:]) == plan.geometry.size == sample.meta.size
        seen["cut"] += plan.geometry.crop[2:] != (float(height), float(width))
        seen["vflip"] += plan.geometry.vflip
        if not len(boxes):
            seen["gone"] += 1
            assert pixels.max() < 130
            assert sample.target["labels"].shape == (0,)
            continue
        h, w = plan.geometry.size
        expected = box_convert(boxes, "cxcywh", "xyxy")[0] * torch.tensor([w, h, w, h])
        if (expected[2:] - expected[:2]).min() < 3:
            continue  # a sliver at the edge of the crop
        seen["clipped"] += bool((expected == 0).any())
        # A pixel of the result, or of the original where that is the coarser.
        coarser = max(1.0, h / plan.geometry.crop[2], w / plan.geometry.crop[3])
        assert (found_box(pixels) - expected).abs().max() <= coarser, (index, plan)
        area = (expected[2] - expected[0]) * (expected[3] - expected[1])
        assert float(sample.target["area"][0]) == pytest.approx(float(area), rel=1e-3)
    assert seen["cut"] > 40
    assert seen["vflip"] > 40
    assert seen["gone"] >= 1
    assert seen["clipped"] > 10


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_boxes_follow_pixels_of_a_picture_decoded_smaller(scale):
    frame, box = (803, 1205), (200, 96, 800, 640)
    full = painted(frame, box)
    small = full[:, ::scale, ::scale]  # as large as a JPEG decoded at 1/scale: rounded up
    assert tuple(small.shape[1:]) == (math.ceil(803 / scale), math.ceil(1205 / scale))
    geometry = Geometry((50.3, 100.8, 700.0, 1000.0), (84, 120), hflip=True)
    pixels, boxes = apply_geometry(small, torch.tensor([box]), geometry, frame)
    _, exact = apply_geometry(full, torch.tensor([box]), geometry, frame)
    assert (found_box(pixels) - boxes[0]).abs().max() <= 1
    assert (boxes - exact).abs().max() <= 1


JITTERED = AugmentConfig(
    sizes=(96, 120, 160), max_size=300, crop=0.3, crop_resize=(100, 125, 150),
    crop_size=(70, 130), vertical_flip=0.5, scale_jitter=(0.1, 2.0),
)  # fmt: skip


def test_scale_jitter_changes_what_is_seen_and_not_how_large():
    """Neither sizes nor any other draw depend on it, and at one it changes nothing."""
    sizes = np.random.default_rng(0).integers(80, 400, (4000, 2))
    jittered = plan_train(sizes, JITTERED, seed=0, epoch=0)
    still = plan_train(sizes, replace(JITTERED, scale_jitter=(1.0, 1.0)), seed=0, epoch=0)
    assert jittered.sizes() == still.sizes()
    assert np.array_equal(jittered.flips, still.flips)
    assert np.array_equal(jittered.colours, still.colours)
    assert (jittered.visible, still.visible) == (MIN_VISIBLE, 0.0)
    factor = (still.crops / jittered.crops)[:, 2:]
    assert np.allclose(factor[:, 0], factor[:, 1])
    assert np.histogram(factor[:, 0], bins=19, range=(0.1, 2.0))[0].min() > 120  # uniform
    # The smaller window lies inside the other, wherever there is room, on both axes alike.
    room = jittered.crops[:, 2:] - still.crops[:, 2:]
    place = (still.crops[:, :2] - jittered.crops[:, :2]) / room
    assert place.min() >= -1e-6
    assert place.max() <= 1 + 1e-6
    assert np.allclose(place.mean(axis=0), 0.5, atol=0.02)


def test_boxes_follow_pixels_through_magnified_and_reduced_plans():
    rng = np.random.default_rng(5)
    seen = {"grey": 0, "cut": 0, "gone": 0}
    for index in range(150):
        frame = tuple(rng.integers(80, 260, 2).tolist())
        height, width = frame
        left, top = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 40))
        box = (
            left, top, int(rng.integers(left + 35, width + 1)),
            int(rng.integers(top + 35, height + 1)),
        )  # fmt: skip
        plan = plan_train([frame], JITTERED, seed=0, epoch=0, indices=[index])[0]
        image = painted(frame, box)
        sample = detection_sample(
            image, torch.tensor([box]), torch.tensor([2]), plan, frame=frame, image_id=index
        )
        pixels, boxes = sample.inputs["pixel_values"], sample.target["boxes"]
        h, w = plan.geometry.size
        assert tuple(pixels.shape[1:]) == (h, w)
        y, x, tall, wide = plan.geometry.crop
        covered_h = (min(y + tall, height) - max(y, 0)) / tall * h
        covered_w = (min(x + wide, width) - max(x, 0)) / wide * w
        grey = int((pixels == GREY).all(0).sum())
        outside = h * w - covered_h * covered_w
        if outside > 2 * (h + w):
            seen["grey"] += 1
            assert grey == pytest.approx(outside, abs=1.5 * (h + w))
        inside = [
            (min(b, s + n) - max(a, s)) / (b - a)
            for a, b, s, n in ((box[1], box[3], y, tall), (box[0], box[2], x, wide))
        ]
        share = max(inside[0], 0) * max(inside[1], 0)
        if abs(share - MIN_VISIBLE) < 0.1 or min(tall, wide) < 10:
            continue  # rounding decides
        small = min((box[3] - box[1]) * h / tall, (box[2] - box[0]) * w / wide) < 2
        if share < MIN_VISIBLE or small:
            seen["gone"] += share < MIN_VISIBLE
            assert len(boxes) == 0 or small, (index, share)
            continue
        seen["cut"] += share < 0.99
        expected = box_convert(boxes, "cxcywh", "xyxy")[0] * torch.tensor([w, h, w, h])
        if (expected[2:] - expected[:2]).min() < 5:
            continue
        bright = torch.where(pixels == GREY, 20, pixels)
        coarser = max(1.0, h / tall, w / wide)
        assert (found_box(bright) - expected).abs().max() <= coarser, (index, plan)
    assert seen["grey"] > 40
    assert seen["cut"] > 10
    assert seen["gone"] >= 5


def test_a_reduced_picture_lies_on_grey_where_the_plan_says_flipped_or_not():
    image = torch.randint(120, 256, (3, 40, 60), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 30, 20]])
    window = (-20.0, -30.0, 80.0, 120.0)  # the picture at half of its size, 10 down, 15 across
    geometry = Geometry(window, (80, 120))
    pixels, found = apply_geometry(image, boxes, geometry, (40, 60))
    assert torch.equal(pixels[:, 20:60, 30:90], image)
    assert (pixels == GREY).sum() == 3 * (80 * 120 - 40 * 60)
    assert found.tolist() == [[30, 20, 60, 40]]
    for flips, dims in (({"hflip": True}, (2,)), ({"vflip": True}, (1,)),
                        ({"hflip": True, "vflip": True}, (1, 2))):  # fmt: skip
        turned, moved = apply_geometry(image, boxes, replace(geometry, **flips), (40, 60))
        assert torch.equal(turned, pixels.flip(dims))
        x1, y1, x2, y2 = found[0].tolist()
        if flips.get("hflip"):
            x1, x2 = 120 - x2, 120 - x1
        if flips.get("vflip"):
            y1, y2 = 80 - y2, 80 - y1
        assert moved.tolist() == [[x1, y1, x2, y2]]


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.integers(1, 300), st.integers(1, 300), st.integers(0, 10_000))
def test_windows_fill_their_result_without_grey_from_zoom_one(height, width, tall, wide, seed):
    u = np.random.default_rng(seed).random((1, WINDOW_DRAWS))
    frame, size = np.array([[height, width]]), np.array([[tall, wide]])
    plan = plan_windows(frame, size, AugmentConfig(), u, (1.0, 2.0))[0]
    top, left, rows, columns = plan.geometry.crop
    assert plan.geometry.size == (tall, wide)
    assert rows / columns == pytest.approx(tall / wide)  # shapes are kept
    assert top >= -1e-6
    assert left >= -1e-6
    assert top + rows <= height + 1e-6
    assert left + columns <= width + 1e-6
    assert max(rows / height, columns / width) == pytest.approx(1 / (1 + u[0, 0]))
    image = torch.zeros(3, min(height, 100), min(width, 100), dtype=torch.uint8)
    pixels, _ = apply_geometry(image, torch.zeros(0, 4), plan.geometry, (height, width))
    assert not pixels.any()


def test_what_is_left_of_a_box_decides_whether_it_stays():
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 40, 40], [0, 50, 40, 90], [90, 90, 90.5, 99]])
    geometry = Geometry((0.0, 28.0, 100.0, 72.0), (100, 72))  # 12 of 40 columns: 0.3
    for visible, expected in ((0.0, [0, 1, 2]), (0.29, [0, 1]), (0.31, [])):
        sample = detection_sample(
            image, boxes, torch.arange(3), Plan(geometry, Colour(), visible), frame=(100, 100),
            image_id=1,
        )  # fmt: skip
        assert sample.target["labels"].tolist() == expected
        assert len(sample.target["boxes"]) == len(sample.target["area"]) == len(expected)


def test_flips_twice_are_identity():
    image = torch.randint(0, 256, (3, 37, 53), dtype=torch.uint8)
    boxes = torch.tensor([[1.5, 2, 30, 20], [0, 0, 53, 37]])
    for flips in ({"hflip": True}, {"vflip": True}, {"hflip": True, "vflip": True}):
        geometry = Geometry((0, 0, 37, 53), (37, 53), **flips)
        once = apply_geometry(image, boxes, geometry, (37, 53))
        assert not torch.equal(once[0], image)
        twice = apply_geometry(*once, geometry, (37, 53))
        assert torch.equal(twice[0], image)
        assert torch.equal(twice[1], boxes)


def test_target_is_complete_and_relative_to_the_unpadded_picture():
    plan = plan_val([(100, 200)], AugmentConfig(val_size=50))[0]
    boxes = torch.tensor([[20.0, 10, 120, 60], [150, 90, 260, 130]])
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    sample = detection_sample(
        image, boxes, torch.tensor([4, 1]), plan, frame=(100, 200), image_id=9, path="a.jpg"
    )
    target = sample.target
    expected = [[0.35, 0.35, 0.5, 0.5], [0.875, 0.95, 0.25, 0.1]]
    assert torch.allclose(target["boxes"], torch.tensor(expected))
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [4, 1]
    assert target["labels"].dtype == torch.int64
    assert target["area"].tolist() == pytest.approx([1250, 125])
    assert target["iscrowd"].tolist() == [0, 0]
    assert target["image_id"].tolist() == [9]
    assert target["orig_size"].tolist() == [100, 200]
    assert target["size"].tolist() == [50, 100]
    assert (sample.meta.orig_size, sample.meta.size, sample.meta.path) == (
        (100, 200), (50, 100), "a.jpg"
    )  # fmt: skip
    assert sample.inputs["pixel_values"].dtype == torch.uint8
    other = detection_sample(
        torch.zeros(3, 80, 80, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0).long(),
        plan_val([(80, 80)], AugmentConfig(val_size=80))[0], frame=(80, 80), image_id=1,
    )  # fmt: skip
    batch = collate_detection([sample, other])
    assert batch.inputs["pixel_values"].shape == (2, 3, 80, 100)
    assert batch.inputs["pixel_mask"].sum((1, 2)).tolist() == [5000, 6400]
    assert torch.allclose(batch.targets[0]["boxes"], torch.tensor(expected))
    assert batch.targets[1]["boxes"].shape == (0, 4)


def test_the_tensors_are_plain():
    plan = plan_val([(20, 30)], AugmentConfig(val_size=10))[0]
    sample = detection_sample(
        torch.zeros(3, 20, 30, dtype=torch.uint8), torch.tensor([[1.0, 1, 9, 9]]),
        torch.tensor([0]), plan, frame=(20, 30), image_id=0,
    )  # fmt: skip
    for tensor in (*sample.inputs.values(), *sample.target.values()):
        assert type(tensor) is torch.Tensor


def test_colours_change_as_planned_and_not_by_default():
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    assert apply_colour(image, Colour()) is image
    for change in ({"brightness": 0.5}, {"contrast": 0.5}, {"saturation": 0.0}, {"hue": 0.05}):
        changed = apply_colour(image, Colour(**change))
        assert changed.dtype == torch.uint8
        assert changed.shape == image.shape
        assert not torch.equal(changed, image)
    grey = apply_colour(image, Colour(saturation=0.0))
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[1], grey[2])


def test_colours_are_drawn_within_their_ranges():
    plans = plan_train(np.tile([[48, 64]], (4000, 1)), AugmentConfig(jitter=1.0), seed=0, epoch=0)
    base = np.array([1, 1, 1, 0])
    off = np.abs(plans.colours - base)
    assert np.allclose((off > 0).mean(axis=0), 0.5, atol=0.03)
    assert np.allclose(off.max(axis=0), [0.125, 0.5, 0.5, 0.05], rtol=0.01)
    strong = plan_train(np.tile([[48, 64]], (4000, 1)), AugmentConfig(jitter=2.0), seed=0, epoch=0)
    assert strong.colours[:, :3].min() >= 0
    # The geometry is not touched by the strength of the colours.
    assert np.array_equal(strong.crops, plans.crops)


def test_an_epoch_of_coco_is_planned_in_seconds():
    sizes = np.random.default_rng(0).integers(300, 641, (118_287, 2))
    started = time.process_time()
    planned = plan_train(sizes, PAPER, seed=0, epoch=0).sizes()
    assert time.process_time() - started < 3  # about 0.25 on one core
    assert len(planned) == 118_287


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crop": 1.5}, "data.augment.crop=1.5"),
        ({"flip": -0.1}, "data.augment.flip=-0.1"),
        ({"sizes": ()}, r"data.augment.sizes=\(\)"),
        ({"sizes": (0, 5)}, "sizes of 1 pixel"),
        ({"val_size": 0}, "data.augment.val_size=0"),
        ({"crop_size": (600, 384)}, "least, greatest"),
        ({"jitter": -1.0}, "data.augment.jitter"),
        ({"mosaic": 1.5}, "data.augment.mosaic=1.5"),
        ({"mixup": -1.0}, "data.augment.mixup=-1.0"),
        ({"copy_paste": 2.0}, "data.augment.copy_paste=2.0"),
        ({"mix_until": 1.1}, "data.augment.mix_until=1.1"),
        ({"scale_jitter": (2.0, 0.1)}, r"data.augment.scale_jitter=\(2.0, 0.1\)"),
        ({"scale_jitter": (0.0, 1.0)}, "data.augment.scale_jitter"),
        ({"scale_jitter": (1.0,)}, "data.augment.scale_jitter"),
    ],
)
def test_settings_that_make_no_sense_are_named(values, words):
    with pytest.raises(ZooError, match=words):
        AugmentConfig(**values)


def test_squares_whatever_the_shape():
    config = AugmentConfig(sizes=(64, 96), square=True, val_size=80, crop=0.5)
    sizes = [(480, 640), (900, 300), (50, 50)]
    assert plan_val(sizes, config).sizes() == [(80, 80)] * 3
    drawn = {s for e in range(9) for s in plan_train(sizes, config, seed=0, epoch=e).sizes()}
    assert drawn == {(64, 64), (96, 96)}
    assert preprocess_of(config)["square"] is True
    assert "square" not in preprocess_of(AugmentConfig())

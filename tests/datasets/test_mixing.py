"""Several pictures in one sample: drawn as planned, with the boxes of what is seen."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_convert

from zoo.datasets.mixing import (
    MIN_VISIBLE,
    MixedSet,
    assemble,
    blend,
    mixed,
    paste,
)
from zoo.datasets.transforms import (
    GREY,
    AugmentConfig,
    collate_detection,
    detection_sample,
    plan_train,
)
from zoo.sampling import PooledBatches
from zoo.types import Meta, Sample, SampleSet

SMALL = AugmentConfig(
    sizes=(40, 48, 56), max_size=96, crop=0.5, crop_resize=(50, 60), crop_size=(30, 50),
    vertical_flip=0.3,
)  # fmt: skip
MOSAIC = replace(SMALL, mosaic=1.0)
ALL = replace(SMALL, mosaic=0.6, mixup=0.5, copy_paste=0.5, scale_jitter=(0.3, 2.0))


def colour_of(n: int) -> torch.Tensor:
    return torch.tensor([220, 20 + n % 4 * 70, 20 + n // 4 * 100])


def beside(pixels: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How far pixels are from picture n's ground to its objects' colour, 0..1, and off the way."""
    way, off = (colour_of(n) - n).float(), (pixels - n).float()
    along = torch.einsum("chw,c->hw", off, way) / way.square().sum()
    return along, (off - along.clamp(0, 1) * way[:, None, None]).abs().amax(0)


class Painted:
    """Twelve pictures: three rectangles of a colour of its own each, on a ground of [n, n, n].

    Picture 5 has no objects.
    """

    def __init__(self, config: AugmentConfig, seed: int = 0, broken: int = -1) -> None:
        self.config, self.seed, self.broken = config, seed, broken
        self.epoch = 0
        rng = np.random.default_rng(4)
        self._frames = rng.integers(100, 160, (12, 2))
        self.boxes = []
        for n, (height, width) in enumerate(self._frames.tolist()):
            places = [(0, 0), (0, width // 2), (height // 2, 0)]
            boxes = [
                (left + 2, top + 3, left + 2 + int(rng.integers(12, 28)), top + 3 + 20)
                for top, left in places[: 0 if n == 5 else 3]
            ]
            self.boxes.append(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))

    def __len__(self):
        return 12

    def frames(self):
        return self._frames

    def set_epoch(self, epoch):
        self.epoch = epoch

    def sizes(self):
        return plan_train(self._frames, self.config, seed=self.seed, epoch=self.epoch).sizes()

    def plan(self, index):
        frame = self._frames[index : index + 1]
        return plan_train(frame, self.config, seed=self.seed, epoch=self.epoch, indices=[index])[0]

    def __getitem__(self, index):
        return self.planned(index, self.plan)

    def planned(self, index, plan_of):
        if index == self.broken:
            index = (index + 1) % 12
        height, width = self._frames[index].tolist()
        image = torch.full((3, height, width), index, dtype=torch.uint8)
        for left, top, right, bottom in self.boxes[index].int().tolist():
            image[:, top:bottom, left:right] = colour_of(index).byte()[:, None, None]
        return detection_sample(
            image, self.boxes[index], torch.full((len(self.boxes[index]),), index), plan_of(index),
            frame=(height, width), image_id=100 + index,
        )  # fmt: skip


def same(a: Sample, b: Sample) -> bool:
    return (
        torch.equal(a.inputs["pixel_values"], b.inputs["pixel_values"])
        and a.target.keys() == b.target.keys()
        and all(torch.equal(v, b.target[k]) for k, v in a.target.items())
        and a.meta == b.meta
    )


def corners(sample: Sample) -> torch.Tensor:
    height, width = sample.meta.size
    scale = torch.tensor([width, height, width, height])
    return box_convert(sample.target["boxes"], "cxcywh", "xyxy") * scale


def check(sample: Sample) -> None:
    """What holds for every sample."""
    target, (height, width) = sample.target, sample.meta.size
    pixels = sample.inputs["pixel_values"]
    assert pixels.dtype == torch.uint8
    assert tuple(pixels.shape) == (3, height, width)
    count = len(target["labels"])
    assert target["labels"].dtype == target["iscrowd"].dtype == torch.int64
    assert target["boxes"].shape == (count, 4)
    assert target["boxes"].dtype == target["area"].dtype == torch.float32
    assert len(target["area"]) == len(target["iscrowd"]) == count
    assert target["size"].tolist() == [height, width]
    assert target["image_id"].tolist() == [sample.meta.image_id]
    assert target["orig_size"].tolist() == list(sample.meta.orig_size)
    boxes = corners(sample)
    assert (boxes >= -1e-3).all()
    assert (boxes <= torch.tensor([width, height, width, height]) + 1e-3).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (sides > 0).all()
    torch.testing.assert_close(target["area"], sides.prod(1), rtol=1e-3, atol=0.1)
    for tensor in (*sample.inputs.values(), *target.values()):
        assert type(tensor) is torch.Tensor


def test_where_nothing_is_switched_on_the_pictures_themselves_come_back():
    pictures = Painted(SMALL)
    assert mixed(pictures, SMALL, seed=0) is pictures
    for change in ({"mosaic": 0.1}, {"mixup": 0.1}, {"copy_paste": 0.1},
                   {"scale_jitter": (0.5, 2.0)}):  # fmt: skip
        assert isinstance(mixed(pictures, replace(SMALL, **change), seed=0), MixedSet)


def test_samples_that_are_not_mixed_are_what_they_are_without():
    plain, whole = Painted(SMALL), mixed(Painted(SMALL), replace(SMALL, mosaic=1e-9), seed=0)
    assert isinstance(whole, SampleSet)
    assert len(whole) == 12
    for epoch in (0, 3):
        plain.set_epoch(epoch)
        whole.set_epoch(epoch)
        assert whole.sizes() == plain.sizes()
        assert all(same(whole[i], plain[i]) for i in range(12))
    with pytest.raises(IndexError):
        whole[12]


def test_every_size_is_known_before_anything_is_read():
    for config in (MOSAIC, ALL):
        data, plain = mixed(Painted(config), config, seed=0), Painted(SMALL)
        for epoch in range(4):
            data.set_epoch(epoch)
            plain.set_epoch(epoch)
            sizes = data.sizes()
            assert sizes == plain.sizes()  # what batches there are does not depend on mixing
            for index, size in enumerate(sizes):
                sample = data[index]
                assert sample.meta.size == size
                check(sample)


def test_draws_depend_on_seed_epoch_and_index_alone():
    first, again, other = (mixed(Painted(ALL), ALL, seed=s) for s in (0, 0, 1))
    for data in (first, again, other):
        data.set_epoch(2)
    samples = [first[i] for i in range(12)]
    again = pickle.loads(pickle.dumps(again))  # as a loading process gets it
    assert all(same(again[i], samples[i]) for i in reversed(range(12)))
    assert sum(same(other[i], samples[i]) for i in range(12)) < 2
    first.set_epoch(3)
    assert sum(same(first[i], samples[i]) for i in range(12)) < 2


def test_mixing_ends_with_its_share_of_the_run():
    config = replace(ALL, mix_until=0.8)
    data, plain = mixed(Painted(config), config, seed=0), Painted(SMALL)
    for epoch, progress, on in ((0, 0.0, True), (7, 0.79, True), (8, 0.8, False), (9, 0.9, False)):
        data.set_epoch(epoch)
        data.set_progress(progress)
        plain.set_epoch(epoch)
        alike = [same(data[i], plain[i]) for i in range(12)]
        assert sum(alike) < 6 if on else all(alike)
        assert data.sizes() == plain.sizes()
    never = replace(ALL, mix_until=0.0)
    data = mixed(Painted(never), never, seed=0)
    plain.set_epoch(0)
    assert all(same(data[i], plain[i]) for i in range(12))


def test_samples_are_mixed_as_often_as_asked():
    config = replace(SMALL, mosaic=0.3, mixup=0.2)
    data = mixed(Painted(config), config, seed=0)
    found = Counter()
    for epoch in range(40):
        data.set_epoch(epoch)
        found.update(len(data[i].meta.extra.get("mixed", ())) for i in range(12))
    shares = {count: n / 480 for count, n in found.items()}
    expected = {0: 0.56, 1: 0.14, 3: 0.24, 4: 0.06}  # others: none, mixup, mosaic, both
    assert shares.keys() == expected.keys()
    for count, share in expected.items():
        assert shares[count] == pytest.approx(share, abs=0.06)


def test_a_mosaic_shows_four_pictures_and_no_grey():
    data, grounds = mixed(Painted(MOSAIC), MOSAIC, seed=0), Counter()
    for epoch in range(12):
        data.set_epoch(epoch)
        for index in range(12):
            sample = data[index]
            check(sample)
            assert sample.meta.image_id == 100 + index
            assert len(sample.meta.extra["mixed"]) == 3
            numbers = {index, *(i - 100 for i in sample.meta.extra["mixed"])}
            pixels = sample.inputs["pixel_values"].int()
            assert not (pixels == GREY).all(0).any()
            assert int(pixels[0].min()) in numbers
            seen = {n for n in numbers if (pixels == n).all(0).any()}
            grounds.update([len(numbers) - len(seen)])
            # Every pixel is between the two colours of one of them.
            far = torch.stack([beside(pixels, n)[1] for n in numbers]).amin(0)
            assert far.max() <= 2
    assert grounds[0] > 120  # nearly always the ground of all four can be seen


def test_a_mosaics_boxes_are_those_of_its_rectangles():
    """Compared with the pixels; where a picture is shown twice, its colours are ambiguous."""
    data = mixed(Painted(MOSAIC), MOSAIC, seed=0)
    compared, cut = 0, 0
    for epoch in range(24):
        data.set_epoch(epoch)
        for index in range(12):
            sample = data[index]
            shown = [index, *(i - 100 for i in sample.meta.extra["mixed"])]
            pixels = sample.inputs["pixel_values"].int()
            height, width = sample.meta.size
            labels = sample.target["labels"].tolist()
            assert 5 not in labels
            assert set(labels) <= set(shown)
            for box, label in zip(corners(sample), labels, strict=True):
                if shown.count(label) > 1 or (box[2:] - box[:2]).min() < 5:
                    continue
                along, far = beside(pixels, label)
                own = (along > 0.5) & (along < 1.1) & (far < 15)
                region = torch.zeros_like(own)
                x1, y1, x2, y2 = box.round().int().tolist()
                region[max(y1 - 3, 0) : y2 + 3, max(x1 - 3, 0) : x2 + 3] = True
                ys, xs = (own & region).nonzero(as_tuple=True)
                found = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                assert (found - box).abs().max() <= 1.5, (index, epoch, label)
                compared += 1
                cut += bool((box == 0).any() or box[2] == width or box[3] == height)
    assert compared > 150
    assert cut > 15


def sample_of(boxes, labels, pixels, *, crowd=(), masks=None, image_id=1) -> Sample:
    height, width = pixels.shape[1:]
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scale = torch.tensor([width, height, width, height])
    target = {
        "labels": torch.tensor(labels, dtype=torch.int64),
        "boxes": box_convert(rows / scale, "xyxy", "cxcywh"),
        "area": (rows[:, 2:] - rows[:, :2]).prod(1),
        "iscrowd": torch.tensor([n in crowd for n in range(len(labels))]).long(),
        "image_id": torch.tensor([image_id]),
        "orig_size": torch.tensor([height, width]),
        "size": torch.tensor([height, width]),
    }
    if masks is not None:
        target["masks"] = masks
    meta = Meta(image_id=image_id, orig_size=(height, width), size=(height, width))
    return Sample({"pixel_values": pixels}, target, meta)


def plain(value: int, size=(20, 30)) -> torch.Tensor:
    return torch.full((3, *size), value, dtype=torch.uint8)


def test_assembled_samples_lie_where_they_are_said_with_their_masks():
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, 5:9, 6:12] = True
    one = sample_of([(6, 5, 12, 9)], [3], plain(1), masks=masks)
    other = sample_of(
        [(0, 0, 30, 20)], [4], plain(2), masks=torch.ones(1, 20, 30).bool(), image_id=2
    )
    whole = assemble([one, other], [(0, 0), (20, 10)], (40, 40))
    check(whole)
    assert corners(whole).round().tolist() == [[6, 5, 12, 9], [10, 20, 40, 40]]
    assert whole.target["labels"].tolist() == [3, 4]
    assert whole.target["area"].tolist() == pytest.approx([24, 600])
    expected = torch.zeros(2, 40, 40, dtype=torch.bool)
    expected[0, 5:9, 6:12] = True
    expected[1, 20:, 10:] = True
    assert torch.equal(whole.target["masks"], expected)
    pixels = torch.full((40, 40), GREY, dtype=torch.uint8)
    pixels[:20, :30], pixels[20:, 10:] = 1, 2
    assert torch.equal(whole.inputs["pixel_values"][0], pixels)
    assert whole.meta.extra["mixed"] == (2,)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_blended_samples_have_both_pictures_and_all_objects(share):
    first = sample_of([(0, 0, 10, 10)], [1], plain(100))
    second = sample_of([(5, 5, 9, 9), (0, 0, 30, 20)], [2, 7], plain(201), image_id=2)
    both = blend(first, second, share)
    check(both)
    assert (both.inputs["pixel_values"] == round(100 + 101 * share)).all()
    assert both.target["labels"].tolist() == [1, 2, 7]
    assert both.meta.image_id == 1
    assert torch.equal(both.target["boxes"][1:], second.target["boxes"])


def test_pasting_hides_shortens_and_brings_along():
    onto = sample_of(
        [(2, 2, 6, 6), (8, 4, 20, 10), (12, 6, 18, 10), (0, 12, 30, 20)], [0, 1, 2, 3], plain(50),
        crowd={3},
    )  # fmt: skip
    donor = sample_of(
        [(10, 3, 22, 12), (11, 5, 15, 9), (21, 5, 28, 9), (25, 15, 29, 19), (0, 0, 30, 20)],
        [4, 5, 6, 7, 8], plain(90), crowd={4}, image_id=2,
    )  # fmt: skip
    out = paste(onto, donor, torch.tensor([True, False, False, False, False]))
    check(out)
    # 0: untouched; 1: 8..10 of 8..20 is seen, a sixth: gone; 2: hidden; 3: a crowd stays.
    # 4: pasted; 5: lies inside; 6: a seventh of it came along: none; 7: did not; 8: a crowd.
    assert out.target["labels"].tolist() == [0, 3, 4, 5]
    assert out.target["iscrowd"].tolist() == [0, 1, 0, 0]
    expected = [[2, 2, 6, 6], [0, 12, 30, 20], [10, 3, 22, 12], [11, 5, 15, 9]]
    torch.testing.assert_close(corners(out), torch.tensor(expected).float())
    pixels = torch.full((20, 30), 50, dtype=torch.uint8)
    pixels[3:12, 10:22] = 90
    assert torch.equal(out.inputs["pixel_values"], pixels.expand(3, -1, -1))
    assert (onto.inputs["pixel_values"] == 50).all()  # the sample that came in is left alone
    assert out.meta.extra["mixed"] == (2,)


def test_what_a_pasted_object_leaves_of_a_box_is_its_box():
    onto = sample_of([(4, 4, 14, 14), (4, 16, 14, 19)], [0, 1], plain(50))
    donor = sample_of([(9, 0, 20, 15)], [2], plain(90))
    out = paste(onto, donor, torch.tensor([True]))
    expected = [[4, 4, 9, 14], [4, 16, 14, 19], [9, 0, 20, 15]]
    torch.testing.assert_close(corners(out), torch.tensor(expected).float())
    corner = paste(onto, sample_of([(9, 0, 20, 8)], [2], plain(90)), torch.tensor([True]))
    # A corner is covered: every row and column is still seen.
    torch.testing.assert_close(corners(corner)[0], torch.tensor([4.0, 4, 14, 14]))


def test_masks_are_pasted_as_they_are():
    mine = torch.zeros(1, 20, 30, dtype=torch.bool)
    mine[0, 4:14, 4:14] = True
    onto = sample_of([(4, 4, 14, 14)], [0], plain(50), masks=mine)
    theirs = torch.zeros(2, 20, 30, dtype=torch.bool)
    theirs[0, 4:14, 9:20] = True
    theirs[0, 4:9, 9:20] = False  # an L: the rest of its box is not pasted
    theirs[0, 4:14, 15:20] = True
    theirs[1, 5:8, 10:13] = True  # in the L's box, but not in the L
    donor = sample_of([(9, 4, 20, 14), (10, 5, 13, 8)], [2, 3], plain(90), masks=theirs)
    out = paste(onto, donor, torch.tensor([True, False]))
    assert out.target["labels"].tolist() == [0, 2]
    assert torch.equal(out.inputs["pixel_values"][0] == 90, theirs[0])
    assert torch.equal(out.target["masks"][0], mine[0] & ~theirs[0])
    assert torch.equal(out.target["masks"][1], theirs[0])


def test_nothing_pasted_changes_nothing():
    onto = sample_of([(2, 2, 6, 6)], [0], plain(50))
    donor = sample_of([(8, 8, 12, 12)], [2], plain(90))
    assert paste(onto, donor, torch.tensor([False])) is onto
    empty = sample_of([], [], plain(90))
    assert paste(onto, empty, torch.zeros(0, dtype=torch.bool)) is onto
    out = paste(sample_of([], [], plain(50)), donor, torch.tensor([True]))
    check(out)
    assert out.target["labels"].tolist() == [2]


boxes = st.tuples(
    st.integers(0, 26), st.integers(0, 16), st.integers(1, 30), st.integers(1, 20)
).map(lambda b: (b[0], b[1], min(b[0] + b[2], 30), min(b[1] + b[3], 20)))


@settings(max_examples=150, deadline=None)
@given(st.lists(boxes, max_size=4), st.lists(st.tuples(boxes, st.booleans()), max_size=4))
def test_pasting_agrees_with_counting_pixels(mine, theirs):
    onto = sample_of(mine, list(range(len(mine))), plain(50))
    donor = sample_of([b for b, _ in theirs], [10 + i for i in range(len(theirs))], plain(90))
    out = paste(onto, donor, torch.tensor([c for _, c in theirs], dtype=torch.bool))
    hidden = {
        (x, y)
        for (x1, y1, x2, y2), chosen in theirs
        if chosen
        for x in range(x1, x2)
        for y in range(y1, y2)
    }
    expected = {}
    for label, (box, pasted) in enumerate(
        [*((b, False) for b in mine), *((b, True) for b, _ in theirs)]
    ):
        x1, y1, x2, y2 = box
        cells = {(x, y) for x in range(x1, x2) for y in range(y1, y2)}
        seen = cells & hidden if pasted else cells - hidden
        if seen and len(seen) >= MIN_VISIBLE * len(cells):
            xs, ys = [x for x, _ in seen], [y for _, y in seen]
            number = 10 + label - len(mine) if pasted else label
            expected[number] = [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
    found = dict(zip(out.target["labels"].tolist(), corners(out).tolist(), strict=True))
    assert found.keys() == expected.keys()
    for label, box in found.items():
        assert box == pytest.approx(expected[label], abs=1e-3)


def test_objects_are_pasted_from_other_pictures_and_seen():
    config = replace(SMALL, copy_paste=1.0)
    data, bare = mixed(Painted(config), config, seed=0), Painted(SMALL)
    pasted = 0
    for epoch in range(8):
        data.set_epoch(epoch)
        bare.set_epoch(epoch)
        for index in range(12):
            sample = data[index]
            check(sample)
            others = [i - 100 for i in sample.meta.extra.get("mixed", ())]
            if not others:
                assert torch.equal(
                    sample.inputs["pixel_values"], bare[index].inputs["pixel_values"]
                )
                continue
            pixels = sample.inputs["pixel_values"].int()
            for box, label in zip(corners(sample), sample.target["labels"].tolist(), strict=True):
                assert label in {index, *others}
                if label == others[0] != index:
                    x, y = ((box[:2] + box[2:]) / 2).int().tolist()
                    if (box[2:] - box[:2]).min() >= 5:
                        assert (pixels[:, y, x] - colour_of(label)).abs().max() <= 6
                        pasted += 1
    assert pasted > 40


def test_a_picture_that_gives_way_to_another_keeps_the_mosaics_size():
    data = mixed(Painted(MOSAIC, broken=3), MOSAIC, seed=0)
    sizes = data.sizes()
    for index in range(12):
        sample = data[index]
        assert sample.meta.size == sizes[index]
        assert 103 not in sample.meta.extra["mixed"]
        check(sample)
    config = replace(SMALL, mixup=1.0, copy_paste=1.0)
    sample = mixed(Painted(config, broken=3), config, seed=0)[3]
    assert sample.meta.image_id == 104
    check(sample)


def test_a_sample_too_small_for_a_mosaic_is_one_picture():
    tiny = replace(SMALL, sizes=(12,), crop=0.0, mosaic=1.0)
    data = mixed(Painted(tiny), tiny, seed=0)
    assert all("mixed" not in data[i].meta.extra for i in range(12))


def test_batches_of_mixed_samples_collate():
    data = mixed(Painted(ALL), ALL, seed=0)
    sampler = PooledBatches(data.sizes, 4, seed=0)
    for indices in sampler:
        batch = collate_detection([data[i] for i in indices])
        assert batch.inputs["pixel_values"].shape[0] == 4
        assert batch.inputs["pixel_mask"].any()

"""Mixing in the sources that training opens, and how the trainer says when it is on."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from zoo.datasets.coco import open_coco
from zoo.datasets.mixing import MixedSet
from zoo.datasets.shapes import ShapesConfig, open_shapes
from zoo.errors import ZooError
from zoo.sampling import PooledBatches
from zoo.trainer import _ByEpoch, _Keyed, make_loader
from zoo.types import FollowsProgress, Sample, SampleSet

SWITCHES = {"mosaic": 0.6, "mixup": 0.3, "copy_paste": 0.5, "scale_jitter": (0.5, 2.0)}


def same(a: Sample, b: Sample) -> bool:
    return torch.equal(a.inputs["pixel_values"], b.inputs["pixel_values"]) and all(
        torch.equal(v, b.target[k]) for k, v in a.target.items()
    )


@pytest.fixture(params=["coco", "shapes"])
def pair(request, folder, coco_kit):
    """A source with all switches on, and the same without."""
    if request.param == "coco":
        config = coco_kit.config(folder)
        build = open_coco
    else:
        config, build = ShapesConfig(train_images=16, val_images=4), open_shapes
    on = replace(config, augment=replace(config.augment, **SWITCHES))
    return build(on), build(config)


def test_training_is_mixed_and_evaluation_is_not(pair):
    source, plain = pair
    assert isinstance(source.train, MixedSet)
    assert isinstance(source.train, SampleSet)
    assert isinstance(source.train, FollowsProgress)
    assert not isinstance(plain.train, FollowsProgress)
    assert type(source.val) is type(plain.val) is type(plain.train)
    assert all(same(source.val[i], plain.val[i]) for i in range(len(plain.val)))
    part = source.overfit(2)
    assert part.train is part.val
    assert not isinstance(part.train, MixedSet)
    seen = set()
    for epoch in range(6):
        for data in (source.train, plain.train):
            data.set_epoch(epoch)
        sizes = source.train.sizes()
        assert sizes == plain.train.sizes()
        for index, size in enumerate(sizes):
            sample = source.train[index]
            assert tuple(sample.inputs["pixel_values"].shape) == (3, *size)
            assert sample.meta.image_id == plain.train[index].meta.image_id
            seen.add(len(sample.meta.extra.get("mixed", ())))
    assert {0, 3} < seen


def test_it_is_over_after_its_share_of_the_run(pair):
    source, plain = pair
    for data in (source.train, plain.train):
        data.set_epoch(3)
    source.train.set_progress(0.849)
    assert not all(same(source.train[i], plain.train[i]) for i in range(len(plain.train)))
    source.train.set_progress(0.85)
    assert all(same(source.train[i], plain.train[i]) for i in range(len(plain.train)))


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_processes_follow_epoch_and_progress(pair, workers):
    source, _ = pair
    sampler = PooledBatches(source.train.sizes, 4, seed=0)
    keyed = _Keyed(sampler)
    loader = make_loader(source, source.train, keyed, workers, torch.device("cpu"))
    assert isinstance(loader, DataLoader)
    for epoch, progress in ((0, 0.0), (1, 0.5), (2, 0.9)):
        sampler.set_epoch(epoch)
        keyed.epoch, keyed.progress = epoch, progress
        source.train.set_epoch(epoch)
        source.train.set_progress(progress)
        batches = list(loader)
        assert len(batches) == len(list(sampler))
        for batch, indices in zip(batches, sampler, strict=True):
            expected = source.collate([source.train[i] for i in indices])
            assert torch.equal(batch.inputs["pixel_values"], expected.inputs["pixel_values"])
            for a, b in zip(batch.targets, expected.targets, strict=True):
                assert torch.equal(a["boxes"], b["boxes"])
            mixed = [bool(meta.extra.get("mixed")) for meta in batch.metas]
            assert progress < 0.85 or not any(mixed)


def test_sets_that_ask_for_no_progress_are_told_none(pair):
    _, plain = pair
    assert _ByEpoch(plain.train)[2, 0.5, 0].meta.image_id == plain.train[0].meta.image_id


def test_an_unreadable_picture_of_a_mosaic_gives_way(folder, coco_kit):
    (folder / "train" / "1.jpg").write_bytes(b"no picture")
    config = coco_kit.config(folder, on_error="skip")
    switches = replace(config.augment, mosaic=1.0, copy_paste=0.5)
    data = open_coco(replace(config, augment=switches)).train
    for epoch in range(6):
        data.set_epoch(epoch)
        for index, size in enumerate(data.sizes()):
            sample = data[index]
            assert sample.meta.size == size
            assert 11 not in (sample.meta.image_id, *sample.meta.extra["mixed"])
    strict = coco_kit.config(folder)
    data = open_coco(replace(strict, augment=switches)).train
    with pytest.raises(ZooError, match=r"1\.jpg .*on_error=skip"):
        list(map(data.__getitem__, range(4)))

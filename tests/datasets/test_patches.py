"""Unlabelled pictures and their patches: what is drawn, from where, and how it is scored."""

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.datasets.patches import LEAST, PatchesConfig, open_patches
from zoo.datasets.transforms import AugmentConfig
from zoo.errors import ZooError
from zoo.types import Detections

SMALL = AugmentConfig(sizes=(64, 80), max_size=128, crop=0.0, val_size=64, val_max_size=128)


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures, some in a subfolder, and a file that is none."""
    draw = np.random.default_rng(1)
    for n in range(20):
        place = tmp_path / ("deep" if n % 3 else ".") / f"{n}.png"
        place.parent.mkdir(exist_ok=True)
        pixels = draw.integers(0, 255, (90 + n, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
    (tmp_path / "notes.txt").write_text("nothing to see")
    return tmp_path


def opened(folder, **settings):
    return open_patches(PatchesConfig(folder=str(folder), augment=SMALL, patches=4, **settings))


def test_a_sample_has_its_patches_as_input_and_as_target(folder):
    source = opened(folder)
    sample = source.train[3]
    boxes = sample.inputs["query_boxes"]
    assert boxes.shape == (4, 4)
    assert torch.equal(boxes, sample.target["boxes"])
    assert sample.target["labels"].tolist() == [0] * 4
    height, width = sample.meta.size
    sides = boxes[:, 2:] * torch.tensor([width, height])
    assert (sides >= LEAST - 1e-3).all()
    assert (sides <= torch.tensor([width - LEAST, height - LEAST]) + 1e-3).all()
    assert (boxes[:, :2] - boxes[:, 2:] / 2 >= -1e-6).all()
    assert (boxes[:, :2] + boxes[:, 2:] / 2 <= 1 + 1e-6).all()
    batch = source.collate([source.train[0], source.train[1]])
    assert batch.inputs["query_boxes"].shape == (2, 4, 4)


def test_training_draws_anew_in_every_epoch_and_evaluation_never(folder):
    source = opened(folder)
    first = [source.train[2].target["boxes"], source.val[0].target["boxes"]]
    assert torch.equal(source.train[2].target["boxes"], first[0])
    for part in (source.train, source.val):
        part.set_epoch(1)
    assert not torch.equal(source.train[2].target["boxes"], first[0])
    assert torch.equal(source.val[0].target["boxes"], first[1])


def test_the_folder_is_shared_out_by_the_seed(folder):
    source = opened(folder, val_share=0.2)
    paths = [{part[i].meta.path for i in range(len(part))} for part in (source.train, source.val)]
    assert [len(p) for p in paths] == [16, 4]
    assert not paths[0] & paths[1]
    again = opened(folder, val_share=0.2, seed=5)
    assert {again.val[i].meta.path for i in range(4)} != paths[1]


def test_sizes_are_known_beforehand(folder):
    source = opened(folder)
    assert list(source.train.sizes()) == [
        source.train[i].meta.size for i in range(len(source.train))
    ]


@pytest.mark.parametrize("where", ["folder", "shapes"])
def test_who_finds_every_patch_has_an_ap_of_one(folder, where):
    if where == "folder":
        source = opened(folder, val_share=0.2)
    else:
        small = {"train_images": 4, "val_images": 4}
        source = open_patches(PatchesConfig(augment=SMALL, patches=3, **small))
    evaluator = source.evaluator()
    samples = [source.val[i] for i in range(len(source.val))]
    found = []
    for sample in samples:
        height, width = sample.meta.orig_size
        x, y, w, h = (sample.target["boxes"] * torch.tensor([width, height] * 2)).unbind(1)
        boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
        labels = torch.zeros(len(boxes), dtype=torch.long)
        found.append(Detections(boxes, torch.ones(len(boxes)), labels))
    evaluator.update(found, source.collate(samples))
    evaluator.gather()
    assert evaluator.compute()["AP"] > 0.999


def test_a_few_can_be_learned_by_heart(folder):
    source = opened(folder).overfit(2)
    assert len(source.train) == len(source.val) == 2
    before = source.train[0].target["boxes"]
    source.train.set_epoch(7)
    assert torch.equal(source.train[0].target["boxes"], before)
    assert torch.equal(source.val[0].target["boxes"], before)


def test_bad_input(folder, tmp_path_factory):
    with pytest.raises(ZooError, match="there is no data folder"):
        opened(folder / "none")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ZooError, match="has 0 pictures and 2 or more are needed"):
        opened(empty)
    (folder / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ZooError, match=r"broken\.png"):
        opened(folder)
    assert len(opened(folder, on_error="skip").train) == 19
    with pytest.raises(ZooError, match=r"data\.patches=0"):
        PatchesConfig(patches=0)
    with pytest.raises(ZooError, match="patches are cut out of whole pictures"):
        PatchesConfig(augment=AugmentConfig(mosaic=0.5))

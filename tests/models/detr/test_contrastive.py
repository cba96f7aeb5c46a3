"""Contrastive denoising queries: pairs, their noise, and transformers' numbering of them."""

import pytest
import torch
from torchvision.ops import box_convert
from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

from zoo.errors import ZooError
from zoo.models.detr.contrastive import contrastive_queries
from zoo.types import Target

CLASSES = 6


def some_targets(*counts: int) -> list[Target]:
    """Boxes well inside the image, so that noise does not leave it."""
    draw = torch.Generator().manual_seed(4)
    targets: list[Target] = []
    for count in counts:
        centres = torch.rand(count, 2, generator=draw) * 0.2 + 0.4
        sides = torch.rand(count, 2, generator=draw) * 0.1 + 0.05
        labels = torch.randint(CLASSES, (count,), generator=draw)
        targets.append({"labels": labels, "boxes": torch.cat([centres, sides], 1)})
    return targets


def test_shape_and_numbers():
    targets = some_targets(3, 1, 0)
    made = contrastive_queries(targets, CLASSES, total=7, label_noise=0.0)
    assert (made.groups, made.slots, made.length) == (2, 6, 12)
    assert made.labels.shape == made.valid.shape == (3, 12)
    assert made.boxes.shape == (3, 12, 4)
    assert made.padded
    groups = [[True] * 6 + [True] * 6, ([True] + [False] * 2) * 4, [False] * 12]
    assert torch.equal(made.valid, torch.tensor(groups))
    assert torch.equal(made.labels != CLASSES, made.valid)
    # Every real pair: the label and the slots of the object that it is a copy of.
    labels = torch.cat([t["labels"] for t in targets])
    assert len(made.target) == 2 * 4
    for slot in (made.slot, made.negative):
        assert torch.equal(made.labels[made.image, slot], labels[made.target])
    pairs = {(int(i), int(s)) for i, s in zip(made.image, made.slot, strict=True)}
    pairs |= {(int(i), int(s)) for i, s in zip(made.image, made.negative, strict=True)}
    assert pairs == {(int(i), int(s)) for i, s in made.valid.nonzero()}


@pytest.mark.parametrize("counts", [(2, 2), (4, 1, 0)])
def test_numbers_are_transformers(counts):
    targets = some_targets(*counts)
    theirs = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    embed = torch.nn.Embedding(CLASSES + 1, 8)
    queries, boxes, mask, meta = get_contrastive_denoising_training_group(
        theirs, CLASSES, 5, embed, 9, label_noise_ratio=0.0
    )
    made = contrastive_queries(targets, CLASSES, total=9, label_noise=0.0)
    assert meta["dn_num_group"] == made.groups
    assert meta["dn_num_split"] == [made.length, 5]
    for image, wanted in enumerate(meta["dn_positive_idx"]):
        found = made.slot[made.image == image]
        assert sorted(found.tolist()) == sorted(wanted.tolist())
    torch.testing.assert_close(embed(made.labels)[made.valid], queries[made.valid])
    assert boxes.shape == made.boxes.shape
    allowed = made.attention_mask(5)
    seen = mask == 0  # theirs hides no empty slot
    if not made.padded:
        assert torch.equal(allowed[0, 0], seen)
    filled = torch.cat([made.valid, made.valid.new_ones(len(targets), 5)], 1)
    itself = torch.eye(seen.shape[0], dtype=torch.bool)
    wanted = (seen & filled[:, None]) | itself
    assert torch.equal((allowed[:, 0] | itself).expand_as(wanted), wanted)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_positives_move_less_than_negatives(scale):
    targets = some_targets(5, 3)
    boxes = torch.cat([t["boxes"] for t in targets])
    moved = {"slot": [], "negative": []}
    for _ in range(40):
        made = contrastive_queries(targets, CLASSES, total=20, box_noise=scale)
        wanted = boxes[made.target]
        half = wanted[:, 2:].repeat(1, 2) / 2
        for name, found in moved.items():
            noised = made.boxes[made.image, getattr(made, name)]
            # A width of 0 says that the corners passed each other.
            crossed = (noised[:, 2:] == 0).any(1)
            corners = [box_convert(b[~crossed], "cxcywh", "xyxy") for b in (noised, wanted)]
            found.append((corners[0] - corners[1]) / half[~crossed])
    positive, negative = (torch.cat(moved[name]) for name in ("slot", "negative"))
    assert positive.abs().max() < scale + 1e-4
    assert positive.abs().max() > 0.95 * scale
    assert negative.abs().min() > scale - 1e-4
    assert negative.abs().max() > 1.9 * scale if scale < 0.5 else negative.abs().max() > 1.5
    for values in (positive, negative):
        assert abs(values.mean()) < 0.1 * scale  # either way alike


def test_labels_are_wrong_with_half_the_probability():
    targets = some_targets(5, 5)
    labels = torch.cat([t["labels"] for t in targets])
    wrong = {"slot": 0, "negative": 0}
    count = 0
    for _ in range(60):
        made = contrastive_queries(targets, CLASSES, total=50, label_noise=0.6)
        count += len(made.target)
        for name in wrong:
            found = made.labels[made.image, getattr(made, name)]
            wrong[name] += int((found != labels[made.target]).sum())
    expected = 0.3 * (1 - 1 / CLASSES)  # the true class is drawn too
    for number in wrong.values():
        assert abs(number / count - expected) < 0.03


def test_boxes_stay_in_the_image():
    target: Target = {
        "labels": torch.zeros(2, dtype=torch.long),
        "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.02, 0.98, 0.04, 0.04]]),
    }
    made = contrastive_queries([target], CLASSES, total=40)
    corners = box_convert(made.boxes, "cxcywh", "xyxy")
    assert (made.boxes >= 0).all()
    assert (corners > -1e-6).all()
    assert (corners < 1 + 1e-6).all()


def test_no_objects_make_no_queries():
    made = contrastive_queries(some_targets(0, 0), CLASSES)
    assert made.length == 0
    assert made.labels.shape == (2, 0)
    assert made.boxes.shape == (2, 0, 4)
    assert made.attention_mask(3).all()


def test_random_numbers_come_from_the_seed():
    torch.manual_seed(3)
    one = contrastive_queries(some_targets(2), CLASSES)
    other = contrastive_queries(some_targets(2), CLASSES)
    torch.manual_seed(3)
    again = contrastive_queries(some_targets(2), CLASSES)
    assert torch.equal(one.boxes, again.boxes)
    assert not torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize("wrong", [{"label_noise": 1.1}, {"box_noise": -0.1}, {"total": 0}])
def test_wrong_settings_are_said(wrong):
    with pytest.raises(ZooError, match=str(next(iter(wrong.values())))):
        contrastive_queries(some_targets(1), CLASSES, **wrong)

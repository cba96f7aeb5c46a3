"""Mask losses against their formulas, written out object by object."""

import math

import pytest
import torch

from zoo.errors import ZooError
from zoo.models.detr.criterion import SetCriterion, SoftmaxLoss
from zoo.models.detr.mask_losses import PanopticCriterion, dice_masks, focal_masks
from zoo.models.detr.matcher import HungarianMatcher


def criterion(**settings) -> PanopticCriterion:
    return PanopticCriterion(SetCriterion(3, HungarianMatcher(), SoftmaxLoss()), **settings)


def targets() -> list[dict]:
    draw = torch.Generator().manual_seed(5)
    made = []
    for number, (count, size) in enumerate([(2, (5, 7)), (0, (3, 3)), (1, (6, 4))]):
        made.append(
            {
                "labels": torch.arange(count),
                "boxes": torch.rand(count, 4, generator=draw) * 0.4 + 0.1,
                "masks": torch.rand(count, *size, generator=draw) > 0.6,
                "image_id": torch.tensor([number]),
            }
        )
    return made


def outputs(dtype=torch.float64) -> dict:
    draw = torch.Generator().manual_seed(6)
    return {
        "pred_logits": torch.randn(3, 4, 4, generator=draw, dtype=dtype),
        "pred_boxes": torch.rand(3, 4, 4, generator=draw, dtype=dtype) * 0.5 + 0.2,
        "pred_masks": torch.randn(3, 6, 8, generator=draw, dtype=dtype, requires_grad=True),
        "mask_pairs": (
            torch.tensor([0, 0, 2]), torch.tensor([3, 1, 0]), torch.tensor([1, 0, 0])
        ),
    }  # fmt: skip


def by_hand(out, wanted) -> tuple[float, float]:
    focal = dice = 0.0
    for logits, image, row in zip(out["pred_masks"].detach(), *out["mask_pairs"][::2], strict=True):
        mask = wanted[int(image)]["masks"][int(row)].tolist()
        cells = [(y, x) for y in range(len(mask)) for x in range(len(mask[0]))]
        over, under, loss = 0.0, 0.0, 0.0
        for y, x in cells:
            p, t = 1 / (1 + math.exp(-float(logits[y, x]))), float(mask[y][x])
            pt = p if t else 1 - p
            loss += (0.25 if t else 0.75) * (1 - pt) ** 2 * -math.log(pt)
            over += 2 * p * t
            under += p + t
        focal += loss / len(cells)
        dice += 1 - (over + 1) / (under + 1)
    return focal / 3, dice / 3


def test_losses_equal_their_formulas_and_ignore_padding() -> None:
    out, wanted = outputs(), targets()
    losses = criterion(coef_mask=2.0, coef_dice=3.0)(out, wanted)
    focal, dice = by_hand(out, wanted)
    assert float(losses.terms["loss_mask"]) == pytest.approx(focal, abs=1e-12)
    assert float(losses.terms["loss_dice"]) == pytest.approx(dice, abs=1e-12)
    boxes = criterion().criterion(out, wanted)
    assert losses.total.item() == pytest.approx(boxes.total.item() + 2 * focal + 3 * dice)
    frozen = criterion(coef_mask=2.0, coef_dice=3.0, frozen=True)(out, wanted)
    assert frozen.total.item() == pytest.approx(2 * focal + 3 * dice)
    assert set(losses.terms) == {*boxes.terms, "loss_mask", "loss_dice"}

    (gradient,) = torch.autograd.grad(losses.total, out["pred_masks"])
    for logits, image in zip(gradient, (0, 0, 2), strict=True):
        h, w = wanted[image]["masks"].shape[1:]
        assert (logits[:h, :w] != 0).all()
        logits[:h, :w] = 0
        assert (logits == 0).all()


def test_an_object_without_a_cell_trains_no_mask() -> None:
    out, wanted = outputs(), targets()
    whole = criterion()(out, wanted)
    wanted[2]["masks"][:] = False
    less = criterion()(out, wanted)
    assert float(less.terms["loss_dice"]) < float(whole.terms["loss_dice"])
    (gradient,) = torch.autograd.grad(less.total, out["pred_masks"])
    assert (gradient[2] == 0).all()
    assert (gradient[0] != 0).any()


def test_extreme_logits_are_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4], [0.0, 1e4]]], requires_grad=True)
    masks = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    loss = focal_masks(logits, masks, valid) + dice_masks(logits, masks, valid)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()


def test_without_masks_boxes_are_trained_and_it_is_told_once(caplog) -> None:
    out, wanted = outputs(), targets()
    for target in wanted:
        del target["masks"]
    none = torch.zeros(0, dtype=torch.int64)
    out["mask_pairs"] = (none, none, none)
    losses = criterion()
    for _ in range(2):
        found = losses(out, wanted)
    assert caplog.text.count("no masks") == 1
    assert float(found.terms["loss_mask"]) == 0.0
    found.total.backward()
    assert (out["pred_masks"].grad == 0).all()
    with pytest.raises(ZooError, match=r"image id 0.*frozen"):
        criterion(frozen=True)(out, wanted)


def test_masks_of_another_resolution_are_refused() -> None:
    out, wanted = outputs(), targets()
    wanted[0]["masks"] = torch.zeros(2, 20, 28, dtype=torch.bool)
    with pytest.raises(ZooError, match=r"image 0 has masks of shape \(2, 20, 28\).*stride 4"):
        criterion()(out, wanted)
    wanted = targets()
    wanted[2]["masks"] = wanted[2]["masks"].repeat(2, 1, 1)
    with pytest.raises(ZooError, match="image 2"):
        criterion()(out, wanted)

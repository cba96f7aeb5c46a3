import pytest
import torch
from torch.nn import functional as F

from zoo.models.detr.criterion import FocalLoss, SetCriterion
from zoo.models.detr.dense import CENTRE, DenseHead, positives
from zoo.models.detr.matcher import HungarianMatcher


def head_output(classes: int = 3, height: int = 6, width: int = 8):
    head = DenseHead(16, classes, side=0.3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mask = torch.ones(2, height, width, dtype=torch.bool)
    mask[1, :, width // 2 :] = False  # the second image is half as wide
    memory = torch.randn(2, height * width, 16)
    with torch.no_grad():
        return head(memory, mask), mask


def random_targets(*counts: int) -> list[dict[str, torch.Tensor]]:
    return [
        {"labels": torch.randint(0, 3, (n,)), "boxes": torch.rand(n, 4) * 0.5 + 0.2} for n in counts
    ]


def slow_positives(out, targets):
    """Cell by cell and box by box, from the definition."""
    found, start = [], 0
    for image, target in enumerate(targets):
        boxes = target["boxes"].tolist()
        owners: dict[int, set[int]] = {}
        cells = [c for c in range(out.valid.shape[1]) if out.valid[image, c]]
        middles = out.middles[image].tolist()
        for number, (x, y, w, h) in enumerate(boxes):
            for c in cells:
                if (
                    abs(middles[c][0] - x) < w * CENTRE / 2
                    and abs(middles[c][1] - y) < h * CENTRE / 2
                ):
                    owners.setdefault(c, set()).add(number)
            near = min(cells, key=lambda c: (middles[c][0] - x) ** 2 + (middles[c][1] - y) ** 2)
            owners.setdefault(near, set()).add(number)
        for c in sorted(owners):
            least = min(owners[c], key=lambda n: boxes[n][2] * boxes[n][3])
            found.append((image, c, start + least))
        start += len(boxes)
    return found


@pytest.mark.parametrize("counts", [(3, 2), (0, 5), (7, 0), (0, 0), (1, 1)])
def test_positives_are_those_of_the_definition(counts):
    out, _ = head_output()
    targets = random_targets(*counts)
    rows = torch.stack(positives(out, targets), 1).tolist()
    assert [tuple(r) for r in rows] == slow_positives(out, targets)


def test_middles_are_of_the_unpadded_image():
    out, mask = head_output()
    for image in (0, 1):
        shown = out.middles[image][mask[image].flatten()]
        assert shown.amin() == pytest.approx(0.5 / 8 if image == 0 else 0.5 / 6, abs=1e-4)
        assert shown[:, 0].amax() == pytest.approx(
            1 - (0.5 / 8 if image == 0 else 0.5 / 4), abs=1e-4
        )


def test_losses_equal_the_formula():
    out, _ = head_output()
    targets = random_targets(3, 2)
    criterion = SetCriterion(3, HungarianMatcher(kind="focal"), FocalLoss(), coef_class=2.0)
    outputs = {"pred_logits": torch.randn(2, 6, 3), "pred_boxes": torch.rand(2, 6, 4) * 0.4 + 0.3}
    plain = criterion(outputs, targets)
    losses = criterion({**outputs, "dense_outputs": out}, targets)
    labels = torch.cat([t["labels"] for t in targets])
    boxes = torch.cat([t["boxes"] for t in targets])
    rows = slow_positives(out, targets)
    wanted = torch.zeros_like(out.logits)
    l1 = 0.0
    for image, cell, row in rows:
        wanted[image, cell, labels[row]] = 1.0
        l1 += float((out.boxes[image, cell] - boxes[row]).abs().sum())
    p = out.logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(out.logits, wanted, reduction="none")
    focal = torch.where(wanted > 0, 0.25 * (1 - p) ** 2, 0.75 * p**2) * ce
    expected = float((focal.sum(-1) * out.valid).sum()) / len(rows)
    assert float(losses.terms["dense_loss_ce"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses.terms["dense_loss_bbox"]) == pytest.approx(l1 / len(rows), rel=1e-5)
    added = {k: float(v) for k, v in losses.terms.items() if k.startswith("dense_")}
    total = 2 * added["dense_loss_ce"] + 5 * added["dense_loss_bbox"] + 2 * added["dense_loss_giou"]
    assert float(losses.total - plain.total) == pytest.approx(total, rel=1e-4)


def test_a_batch_without_objects_has_finite_losses_and_gradients():
    out, _ = head_output()
    criterion = SetCriterion(3, HungarianMatcher(kind="focal"), FocalLoss())
    outputs = {"pred_logits": torch.randn(2, 6, 3), "pred_boxes": torch.rand(2, 6, 4)}
    losses = criterion({**outputs, "dense_outputs": out}, random_targets(0, 0))
    assert torch.isfinite(losses.total)
    assert float(losses.terms["dense_loss_bbox"]) == 0.0

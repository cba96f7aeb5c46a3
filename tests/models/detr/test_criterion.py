import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo import distributed
from zoo.errors import ZooError
from zoo.models.detr.criterion import FocalLoss, SetCriterion, SoftmaxLoss
from zoo.models.detr.denoising import DenoisingQueries, denoising_queries
from zoo.models.detr.matcher import HungarianMatcher, Kind
from zoo.types import Target

K = 4
Q = 6
KINDS: tuple[Kind, ...] = ("softmax", "focal")
Row = list[float]


# ---- The formulas of the papers, one number at a time -------------------------------------------


def corners(box: Row) -> Row:
    cx, cy, w, h = box
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def slow_giou(a: Row, b: Row) -> float:
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = corners(a), corners(b)
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    inter = max(width, 0.0) * max(height, 0.0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return inter / union - (hull - union) / hull


def slow_l1(a: Row, b: Row) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def log_softmax(row: Row) -> Row:
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


def slow_focal(x: float, present: bool) -> float:
    p = 1 / (1 + math.exp(-x))
    if present:
        return 0.25 * (1 - p) ** 2 * -math.log(p)
    return 0.75 * p**2 * -math.log(1 - p)


def slow_pairs(kind: Kind, logits: list[Row], boxes: list[Row], target: Target) -> dict[int, int]:
    """Query -> object of one image and layer, from a cost matrix filled entry by entry."""
    labels, wanted = target["labels"].tolist(), target["boxes"].tolist()
    cost = []
    for row, box in zip(logits, boxes, strict=True):
        cost.append([])
        for label, other in zip(labels, wanted, strict=True):
            if kind == "softmax":
                classes = -math.exp(log_softmax(row)[label])
            else:
                classes = 2 * (slow_focal(row[label], True) - slow_focal(row[label], False))
            cost[-1].append(classes + 5 * slow_l1(box, other) - 2 * slow_giou(box, other))
    if not labels:
        return {}
    return {int(q): int(t) for q, t in zip(*linear_sum_assignment(cost), strict=True)}


def slow_layer(
    kind: Kind, logits: Tensor, boxes: Tensor, targets: Sequence[Target]
) -> dict[str, float]:
    """The three losses of one layer, on one process."""
    ce = weights = l1 = giou = 0.0
    count = max(sum(len(t["labels"]) for t in targets), 1)
    for image, target in enumerate(targets):
        rows, places = logits[image].tolist(), boxes[image].tolist()
        pairs = slow_pairs(kind, rows, places, target)
        labels, wanted = target["labels"].tolist(), target["boxes"].tolist()
        for query, row in enumerate(rows):
            found = pairs.get(query)
            if kind == "softmax":
                weight = 0.1 if found is None else 1.0
                ce -= weight * log_softmax(row)[K if found is None else labels[found]]
                weights += weight
            else:
                for c, x in enumerate(row):
                    ce += slow_focal(x, found is not None and labels[found] == c)
            if found is not None:
                l1 += slow_l1(places[query], wanted[found])
                giou += 1 - slow_giou(places[query], wanted[found])
    return {
        "loss_ce": ce / (weights if kind == "softmax" else count),
        "loss_bbox": l1 / count,
        "loss_giou": giou / count,
    }


def slow_denoising_layer(
    kind: Kind, logits: Tensor, boxes: Tensor, noised: DenoisingQueries, targets: Sequence[Target]
) -> dict[str, float]:
    ce = l1 = giou = 0.0
    count = 0
    for image, target in enumerate(targets):
        for group in range(noised.groups):
            for position, label in enumerate(target["labels"].tolist()):
                slot = group * noised.slots + position
                row, box = logits[image, slot].tolist(), boxes[image, slot].tolist()
                if kind == "softmax":
                    ce -= log_softmax(row)[label]
                else:
                    ce += sum(slow_focal(x, c == label) for c, x in enumerate(row))
                wanted = target["boxes"][position].tolist()
                l1 += slow_l1(box, wanted)
                giou += 1 - slow_giou(box, wanted)
                count += 1
    return {
        "dn_loss_ce": ce / count,
        "dn_loss_bbox": l1 / count,
        "dn_loss_giou": giou / count,
    }


# ---- Cases --------------------------------------------------------------------------------------


def random_targets(sizes: Sequence[int], dtype: torch.dtype = torch.float64) -> list[Target]:
    return [
        {
            "labels": torch.randint(K, (m,)),
            "boxes": torch.rand(m, 4, dtype=dtype) * 0.5 + 0.2,
            "image_id": torch.tensor([10 + i]),
        }
        for i, m in enumerate(sizes)
    ]


def leaves(
    kind: Kind, layers: int, batch: int, queries: int = Q, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    logits = torch.randn(layers, batch, queries, K + (kind == "softmax"), dtype=dtype) * 2
    boxes = torch.rand(layers, batch, queries, 4, dtype=dtype) * 0.5 + 0.2
    return logits.requires_grad_(), boxes.requires_grad_()


def as_outputs(logits: Tensor, boxes: Tensor) -> dict[str, Any]:
    layers = [
        {"pred_logits": c, "pred_boxes": b}
        for c, b in zip(logits.unbind(), boxes.unbind(), strict=True)
    ]
    return {**layers[-1], "aux_outputs": layers[:-1]} if len(layers) > 1 else dict(layers[0])


def criterion_of(kind: Kind, **settings: Any) -> SetCriterion:
    matcher = HungarianMatcher(1.0 if kind == "softmax" else 2.0, 5.0, 2.0, kind=kind)
    classes = SoftmaxLoss() if kind == "softmax" else FocalLoss()
    return SetCriterion(K, matcher, classes, **settings)


def weighted(terms: Mapping[str, Any], weights: Mapping[str, float]) -> float:
    return sum(
        float(value) * weight
        for name, value in terms.items()
        for part, weight in weights.items()
        if f"loss_{part}" in name
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layers", [1, 3])
def test_losses_equal_the_formulas(kind: Kind, seed: int, layers: int) -> None:
    torch.manual_seed(seed)
    targets = random_targets([3, 0, 1, 9])  # more objects than queries, too
    logits, boxes = leaves(kind, layers, len(targets))
    found = criterion_of(kind, coef_class=1.5)(as_outputs(logits, boxes), targets)
    expected = {}
    for layer in range(layers):
        suffix = "" if layer == layers - 1 else f"_{layer}"
        losses = slow_layer(kind, logits[layer], boxes[layer], targets)
        expected.update({name + suffix: value for name, value in losses.items()})
    assert {name: float(v) for name, v in found.terms.items()} == pytest.approx(expected, abs=1e-12)
    total = weighted(expected, {"ce": 1.5, "bbox": 5.0, "giou": 2.0})
    assert found.total.item() == pytest.approx(total, abs=1e-11)
    assert found.total.requires_grad
    assert all(v.shape == () and not v.requires_grad for v in found.terms.values())


@pytest.mark.parametrize("kind", KINDS)
def test_denoising_losses_equal_the_formulas(kind: Kind) -> None:
    targets = random_targets([3, 0, 2])
    noised = denoising_queries(targets, K, groups=2)
    logits, boxes = leaves(kind, 2, 3)
    dn_logits, dn_boxes = leaves(kind, 2, 3, noised.length)
    dn = {"pred_logits": dn_logits, "pred_boxes": dn_boxes, "denoising": noised}
    outputs = as_outputs(logits, boxes)
    criterion = criterion_of(kind)
    plain = criterion(outputs, targets)
    found = criterion({**outputs, "dn_outputs": dn}, targets)
    expected = {name: float(v) for name, v in plain.terms.items()}
    for layer, suffix in enumerate(("_0", "")):
        losses = slow_denoising_layer(kind, dn_logits[layer], dn_boxes[layer], noised, targets)
        expected.update({name + suffix: value for name, value in losses.items()})
    assert {name: float(v) for name, v in found.terms.items()} == pytest.approx(expected, abs=1e-12)
    total = weighted(expected, {"ce": 1.0, "bbox": 5.0, "giou": 2.0})
    assert found.total.item() == pytest.approx(total, abs=1e-11)

    found.total.backward()
    for leaf in (dn_logits, dn_boxes):
        assert leaf.grad is not None
        moved = (leaf.grad != 0).flatten(3).any(-1)
        assert torch.equal(moved, noised.valid.expand(2, -1, -1))  # empty slots teach nothing


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_predictions_have_no_box_loss(kind: Kind) -> None:
    targets = random_targets([Q, Q])
    boxes = torch.stack([t["boxes"] for t in targets])[None]
    logits = torch.full((1, 2, Q, K + (kind == "softmax")), -40.0, dtype=torch.float64)
    for image, target in enumerate(targets):
        logits[0, image, torch.arange(Q), target["labels"]] = 40.0
    terms = criterion_of(kind)(as_outputs(logits, boxes), targets).terms
    assert terms["loss_bbox"].item() == 0.0
    assert terms["loss_giou"].item() == pytest.approx(0.0, abs=1e-12)
    assert terms["loss_ce"].item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_without_objects_losses_are_finite_and_reach_everything(kind: Kind) -> None:
    targets = random_targets([0, 0])
    noised = denoising_queries(targets, K)
    logits, boxes = leaves(kind, 3, 2)
    dn_logits, dn_boxes = leaves(kind, 3, 2, noised.length)
    dn = {"pred_logits": dn_logits, "pred_boxes": dn_boxes, "denoising": noised}
    found = criterion_of(kind)({**as_outputs(logits, boxes), "dn_outputs": dn}, targets)
    assert torch.isfinite(found.total)
    assert found.terms["loss_bbox"] == found.terms["loss_giou"] == 0
    assert found.terms["loss_ce"] > 0
    assert found.terms["dn_loss_ce_1"] == 0
    found.total.backward()
    for leaf in (logits, boxes, dn_logits, dn_boxes):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
    assert logits.grad is not None
    assert (logits.grad != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process_with_both_batches(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [random_targets([5, 1]), random_targets([0, 2])]  # unequal numbers of objects
    logits, boxes = leaves(kind, 2, 4)
    noised = denoising_queries([*shares[0], *shares[1]], K, groups=2)
    parts = [denoising_queries(share, K, groups=2) for share in shares]
    dn_logits, dn_boxes = leaves(kind, 2, 4, noised.length)
    criterion = criterion_of(kind)

    def outputs(images: slice, queries: DenoisingQueries) -> dict[str, Any]:
        """One rank's share of the predictions; its groups have as many slots as it needs."""
        position = torch.arange(queries.length)
        slots = max(queries.slots, 1)
        kept = position // slots * noised.slots + position % slots
        dn = {
            "pred_logits": dn_logits[:, images][:, :, kept],
            "pred_boxes": dn_boxes[:, images][:, :, kept],
            "denoising": queries,
        }
        return {**as_outputs(logits[:, images], boxes[:, images]), "dn_outputs": dn}

    inputs = (logits, boxes, dn_logits, dn_boxes)
    together = criterion(outputs(slice(0, 4), noised), [*shares[0], *shares[1]])
    expected = torch.autograd.grad(together.total, inputs)

    counts: list[Tensor] = []
    ranks = [slice(0, 2), slice(2, 4)]
    monkeypatch.setattr(distributed, "all_reduce_mean", lambda t: counts.append(t) or t)
    for images, queries, share in zip(ranks, parts, shares, strict=True):
        criterion(outputs(images, queries), share)
    assert len(counts) == 2  # one reduction a step
    mean = (counts[0] + counts[1]) / 2
    monkeypatch.setattr(distributed, "all_reduce_mean", lambda _: mean)
    totals = [
        criterion(outputs(images, queries), share).total
        for images, queries, share in zip(ranks, parts, shares, strict=True)
    ]
    average = (totals[0] + totals[1]) / 2  # what DistributedDataParallel does to the gradients
    torch.testing.assert_close(average, together.total, rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(average, inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_float32_under_autocast(kind: Kind) -> None:
    targets = random_targets([3, 2], torch.float32)
    logits, boxes = (t.detach().bfloat16() for t in leaves(kind, 2, 2, dtype=torch.float32))
    criterion = criterion_of(kind)
    expected = criterion(as_outputs(logits.float(), boxes.float()), targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = criterion(as_outputs(logits, boxes), targets)
    assert found.total.dtype == torch.float32
    assert found.total == expected.total
    assert found.terms == expected.terms


@pytest.mark.parametrize("kind", KINDS)
def test_confident_and_wrong_predictions_have_finite_gradients(kind: Kind) -> None:
    targets = random_targets([3, 2], torch.float32)
    logits, boxes = leaves(kind, 1, 2, dtype=torch.float32)
    extreme = (logits.detach().sign() * 1e4).requires_grad_()
    found = criterion_of(kind)(as_outputs(extreme, boxes), targets)
    found.total.backward()
    assert torch.isfinite(found.total)
    assert extreme.grad is not None
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_targets_changes_nothing(kind: Kind) -> None:
    targets = random_targets([5, 4])
    logits, boxes = leaves(kind, 2, 2)
    turned = [{name: t[name].flip(0) for name in ("labels", "boxes")} for t in targets]
    criterion = criterion_of(kind)
    first = criterion(as_outputs(logits, boxes), targets).total
    second = criterion(as_outputs(logits, boxes), turned).total
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_a_label_out_of_range_is_refused_by_name() -> None:
    targets = random_targets([2, 2])
    targets[1]["labels"][0] = K
    logits, boxes = leaves("softmax", 2, 2)
    with pytest.raises(ZooError, match=r"^image 11 has the label 4, but the model has 4 classes"):
        criterion_of("softmax")(as_outputs(logits, boxes), targets)


def test_a_matcher_or_head_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="the matcher is for focal logits"):
        SetCriterion(K, HungarianMatcher(kind="focal"), SoftmaxLoss())
    logits, boxes = leaves("focal", 1, 1)
    with pytest.raises(ValueError, match="pred_logits has 4 columns; softmax with 4 classes has 5"):
        criterion_of("softmax")(as_outputs(logits, boxes), random_targets([1]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_is_waited_for_once(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator every one of these would make the host wait."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = str(func)
            assert "_local_scalar_dense" not in name
            assert "nonzero" not in name
            assert "masked_select" not in name
            if name.startswith("aten.index"):
                flat = [a for arg in args if isinstance(arg, list | tuple) for a in arg]
                assert not any(isinstance(a, Tensor) and a.dtype == torch.bool for a in flat)
            return func(*args, **(kwargs or {}))

    transfers = []
    to_host = Tensor.cpu

    def counted(tensor: Tensor) -> Tensor:
        transfers.append(tensor.shape)
        return to_host(tensor)

    monkeypatch.setattr(HungarianMatcher, "_at_once", staticmethod(lambda device: True))
    monkeypatch.setattr(Tensor, "cpu", counted)
    targets = random_targets([3, 0, 2])
    noised = denoising_queries(targets, K, groups=2)
    dn_logits, dn_boxes = leaves(kind, 3, 3, noised.length)
    dn = {"pred_logits": dn_logits, "pred_boxes": dn_boxes, "denoising": noised}
    outputs = {**as_outputs(*leaves(kind, 3, 3)), "dn_outputs": dn}
    with Watch():
        criterion_of(kind)(outputs, targets).total.backward()
    assert transfers == [(5, 3, Q)]


# ---- Proposals of models in two stages ---------------------------------------------------------


def slow_proposals(logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> dict[str, float]:
    """The formulas with every object as of class 0."""
    things = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
    return {f"enc_{k}": v for k, v in slow_layer("focal", logits, boxes, things).items()}


@pytest.mark.parametrize("sizes", [[3, 0, 1, 9], [0, 0]])
def test_losses_of_proposals_equal_the_formulas(sizes: list[int]) -> None:
    targets = random_targets(sizes)
    logits, boxes = leaves("focal", 2, len(sizes))
    enc_logits, enc_boxes = leaves("focal", 1, len(sizes), 8)  # fewer than the richest image's
    outputs = as_outputs(logits, boxes)
    enc = {"pred_logits": enc_logits[0], "pred_boxes": enc_boxes[0]}
    criterion = criterion_of("focal", coef_class=1.5)
    plain = criterion(outputs, targets)
    found = criterion({**outputs, "enc_outputs": enc}, targets)
    expected = slow_proposals(enc_logits[0], enc_boxes[0], targets)
    total = plain.total.item() + weighted(expected, {"ce": 1.5, "bbox": 5.0, "giou": 2.0})
    expected.update({name: float(v) for name, v in plain.terms.items()})  # as without proposals
    assert {name: float(v) for name, v in found.terms.items()} == pytest.approx(expected, abs=1e-12)
    assert found.total.item() == pytest.approx(total, abs=1e-11)
    found.total.backward()
    for leaf in (enc_logits, enc_boxes):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
    assert enc_logits.grad is not None
    assert (enc_logits.grad != 0).all()


def test_proposals_are_divided_by_the_mean_number_of_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of all ranks, in the one reduction that there is."""
    targets = random_targets([3, 1])
    logits, boxes = leaves("focal", 1, 2)
    enc_logits, enc_boxes = leaves("focal", 1, 2, 8)
    enc = {"pred_logits": enc_logits[0], "pred_boxes": enc_boxes[0]}
    outputs = {**as_outputs(logits, boxes), "enc_outputs": enc}
    alone = criterion_of("focal")(outputs, targets).terms
    calls = []
    monkeypatch.setattr(distributed, "all_reduce_mean", lambda t: calls.append(t) or 2 * t)
    twice = criterion_of("focal")(outputs, targets).terms
    assert len(calls) == 1
    for name in ("enc_loss_ce", "enc_loss_bbox", "enc_loss_giou"):
        assert twice[name].item() == pytest.approx(alone[name].item() / 2, abs=1e-12)


@pytest.mark.parametrize("key", ["enc_outputs", "dense_outputs"])
def test_some_outputs_are_for_independent_classes(key: str) -> None:
    logits, boxes = leaves("softmax", 1, 1)
    outputs = as_outputs(logits, boxes)
    outputs[key] = {"pred_logits": logits[0], "pred_boxes": boxes[0]}
    with pytest.raises(ValueError, match=f"{key} are scored by the focal loss or its like"):
        criterion_of("softmax")(outputs, random_targets([1]))

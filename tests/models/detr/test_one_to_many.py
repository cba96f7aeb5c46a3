"""One-to-many matching: groups apart, objects several times, and the losses of each by itself."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

from zoo.errors import ZooError
from zoo.models.detr.criterion import FocalLoss, SetCriterion, SoftmaxLoss
from zoo.models.detr.denoising import denoising_queries
from zoo.models.detr.matcher import HungarianMatcher, Kind
from zoo.models.detr.one_to_many import (
    GroupQueries,
    OneToManyCriterion,
    fold_groups,
    group_mask,
    repeat_targets,
)
from zoo.models.layers.transformer import DecoderLayer
from zoo.types import Target

K = 4
KINDS: tuple[Kind, ...] = ("softmax", "focal")
EXACT = {"rtol": 0.0, "atol": 1e-12}


def random_targets(sizes: Sequence[int]) -> list[Target]:
    return [
        {
            "labels": torch.randint(K, (m,)),
            "boxes": torch.rand(m, 4, dtype=torch.float64) * 0.5 + 0.2,
            "image_id": torch.tensor([30 + i]),
        }
        for i, m in enumerate(sizes)
    ]


def leaves(kind: Kind, layers: int, batch: int, queries: int) -> tuple[Tensor, Tensor]:
    shape = (layers, batch, queries)
    logits = torch.randn(*shape, K + (kind == "softmax"), dtype=torch.float64) * 2
    boxes = torch.rand(*shape, 4, dtype=torch.float64) * 0.5 + 0.2
    return logits.requires_grad_(), boxes.requires_grad_()


def as_outputs(logits: Tensor, boxes: Tensor) -> dict[str, Any]:
    layers = [{"pred_logits": c, "pred_boxes": b} for c, b in zip(logits, boxes, strict=True)]
    return {**layers[-1], "aux_outputs": layers[:-1]}


def as_many(logits: Tensor, boxes: Tensor, groups: int, repeats: int) -> dict[str, Any]:
    return {"pred_logits": logits, "pred_boxes": boxes, "groups": groups, "repeats": repeats}


def criterion_of(kind: Kind) -> SetCriterion:
    matcher = HungarianMatcher(1.0 if kind == "softmax" else 2.0, 5.0, 2.0, kind=kind)
    classes = SoftmaxLoss() if kind == "softmax" else FocalLoss()
    return SetCriterion(K, matcher, classes, coef_class=1.5)


# ---- Who sees whom -------------------------------------------------------------------------------


def slow_mask(filled: Sequence[int], copies: int, sizes: Sequence[int]) -> Tensor:
    """Asked for one pair at a time; every query is (part, number), parts from the papers."""
    slots = max(filled, default=0)
    names = [("noise", c, s) for c in range(copies) for s in range(slots)]
    names += [("group", g, q) for g, size in enumerate(sizes) for q in range(size)]
    out = torch.zeros(len(filled), len(names), len(names), dtype=torch.bool)
    for b, real in enumerate(filled):
        for (i, me), (j, other) in itertools.product(enumerate(names), repeat=2):
            if me == other:
                out[b, i, j] = True
            elif me[0] == "noise":
                same = other[:2] == me[:2] and other[2] < real
                out[b, i, j] = same or other[:2] == ("group", 0)
            else:
                out[b, i, j] = other[:2] == me[:2]
    return out


@pytest.mark.parametrize("filled", [(2, 0, 3), (1, 1), (0, 0)])
@pytest.mark.parametrize("sizes", [(5,), (4, 4, 4), (3, 7), (3, 0, 2)])
def test_mask_equals_the_loops(filled: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    noised = denoising_queries(random_targets(filled), K, groups=2)
    mask = group_mask(sizes, noised)
    expected = slow_mask(filled, noised.groups, sizes)
    assert torch.equal(mask.expand(len(filled), -1, -1, -1)[:, 0], expected)
    assert mask.diagonal(dim1=-2, dim2=-1).all()
    alone = group_mask(sizes)
    assert torch.equal(alone[:, 0], slow_mask((0,), 0, sizes))


@pytest.mark.parametrize("filled", [(2, 0, 3), (2, 2)])
def test_one_group_has_the_mask_of_today(filled: tuple[int, ...]) -> None:
    noised = denoising_queries(random_targets(filled), K, groups=3)
    assert torch.equal(group_mask([6], noised), noised.attention_mask(6))


def test_sizes_that_make_no_groups_are_refused() -> None:
    for sizes in ([], [3, -1]):
        with pytest.raises(ValueError, match="sizes of one group"):
            group_mask(sizes)


def test_matching_queries_are_the_same_with_and_without_groups() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(DecoderLayer(16, 2, 24, dropout=0.0) for _ in range(2)).double()
    targets = random_targets([2, 0, 3])
    noised = denoising_queries(targets, K, groups=2)
    memory = torch.randn(3, 9, 16, dtype=torch.float64)
    noise = torch.randn(3, noised.length, 16, dtype=torch.float64)
    sets = [torch.randn(3, n, 16, dtype=torch.float64) for n in (5, 4, 6)]

    def run(chosen: Sequence[Tensor]) -> list[Tensor]:
        sizes = [q.shape[1] for q in chosen]
        x, mask = torch.cat([noise, *chosen], 1), group_mask(sizes, noised)
        for layer in layers:
            x = layer(x, memory, self_mask=mask)
        return list(x.split([noised.length, *sizes], dim=1))

    dn, main, first, second = run(sets)
    alone = run(sets[:1])
    torch.testing.assert_close([dn, main], alone, **EXACT)
    swapped = run([sets[0], sets[2], sets[1]])
    torch.testing.assert_close([dn, main, second, first], swapped, **EXACT)
    # And a group sees itself: it is what it would be as the only one, without noise.
    x = sets[1]
    for layer in layers:
        x = layer(x, memory)
    torch.testing.assert_close(first, x, **EXACT)


# ---- Queries -------------------------------------------------------------------------------------


def test_groups_begin_at_the_best_proposals_each_with_its_own_content() -> None:
    queries = GroupQueries(3, 4, 8, learned=False)
    content, anchors = torch.randn(2, 6, 8), torch.randn(2, 6, 4)
    got, places = queries(content, anchors)
    assert got.shape == (2, 12, 8)
    for g in range(3):
        part = slice(4 * g, 4 * g + 4)
        torch.testing.assert_close(got[:, part], content[:, :4] + queries.kind.weight[g])
        assert torch.equal(places[:, part], anchors[:, :4])
    assert (queries.kind.weight[0] - queries.kind.weight[1]).abs().min() > 0
    few, places = queries(content[:, :3], anchors[:, :3])  # a picture with fewer proposals
    assert few.shape == (2, 9, 8)
    assert places.shape == (2, 9, 4)


def test_groups_with_learned_anchors_have_their_own() -> None:
    queries = GroupQueries(2, 5, 8, learned=True, anchor_sizes=(0.2,))
    got, places = queries(torch.randn(3, 7, 8), torch.randn(3, 7, 4))
    assert got.shape == (3, 10, 8)
    assert queries.anchors is not None
    assert torch.equal(places[1], queries.anchors())
    assert torch.equal(got[2], queries.kind.weight.repeat_interleave(5, 0))
    (got.square().sum() + places.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in queries.parameters())


# ---- Matching ------------------------------------------------------------------------------------


def cost_of(kind: Kind, logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
    """The papers' costs [Q, M], term by term."""
    if kind == "softmax":
        classes = -logits.softmax(-1)[:, target["labels"]]
    else:
        p = logits.sigmoid()
        absent = 0.75 * p**2 * -(1 - p).log()
        classes = 2 * (0.25 * (1 - p) ** 2 * -p.log() - absent)[:, target["labels"]]
    corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes, target["boxes"])]
    l1 = torch.cdist(boxes, target["boxes"], p=1)
    return classes + 5 * l1 - 2 * generalized_box_iou(*corners)


def cheapest(cost: Tensor, times: int) -> float:
    """Of all ways to give each object ``times`` queries of its own, or as many as there are."""
    queries, objects = cost.shape
    pairs = min(queries, objects * times)
    best = float("inf")
    for answer in itertools.product(range(-1, objects), repeat=queries):
        counts = [answer.count(m) for m in range(objects)]
        if sum(counts) == pairs and max(counts, default=0) <= times:
            best = min(best, sum(float(cost[q, m]) for q, m in enumerate(answer) if m >= 0))
    return best


@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16), objects=st.integers(1, 3),
    queries=st.integers(1, 5), times=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_repeated_objects_get_the_cheapest_queries(
    kind: Kind, seed: int, objects: int, queries: int, times: int
) -> None:
    torch.manual_seed(seed)
    (target,) = random_targets([objects])
    logits, boxes = leaves(kind, 1, 1, queries)
    matcher = criterion_of(kind).matcher
    ((pair,),) = matcher.match(logits, boxes, repeat_targets([target], times))
    query, row = pair[0], pair[1] % objects
    assert len(set(query.tolist())) == len(query) == min(queries, objects * times)
    assert row.bincount(minlength=objects).max() <= times
    with torch.no_grad():
        cost = cost_of(kind, logits[0, 0], boxes[0, 0], target)
    assert float(cost[query, row].sum()) == pytest.approx(cheapest(cost, times), abs=1e-9)


def test_repeated_targets_are_the_objects_end_to_end() -> None:
    targets = random_targets([2, 0])
    targets[0]["area"] = torch.ones(2)
    first, second = repeat_targets(targets, 3)
    assert torch.equal(first["labels"], targets[0]["labels"].repeat(3))
    assert torch.equal(first["boxes"][2:4], targets[0]["boxes"])
    assert first.keys() == {"labels", "boxes", "image_id"}
    assert second["boxes"].shape == (0, 4)
    with pytest.raises(ZooError, match="0 times"):
        repeat_targets(targets, 0)


def test_folded_groups_are_layers() -> None:
    values = torch.arange(2 * 3 * 6 * 2).view(2, 3, 6, 2)
    folded = fold_groups(values, 2)
    assert folded.shape == (4, 3, 3, 2)
    for layer, group in itertools.product(range(2), range(2)):
        expected = values[layer, :, 3 * group : 3 * group + 3]
        assert torch.equal(folded[2 * layer + group], expected)
    assert torch.equal(fold_groups(values, 1), values)
    with pytest.raises(ValueError, match="6 queries are not 4 groups"):
        fold_groups(values, 4)


# ---- Losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_groups_the_losses_are_those_of_today(kind: Kind) -> None:
    targets = random_targets([3, 0, 2])
    outputs = as_outputs(*leaves(kind, 3, 3, 6))
    plain, wrapped = criterion_of(kind), OneToManyCriterion(criterion_of(kind))
    expected, found = plain(outputs, targets), wrapped(outputs, targets)
    assert found.total == expected.total
    assert found.terms == expected.terms


@pytest.mark.parametrize("kind", KINDS)
def test_one_group_and_one_repeat_is_the_criterion_once_more(kind: Kind) -> None:
    targets = random_targets([3, 0, 2])
    main, other = leaves(kind, 3, 3, 6), leaves(kind, 3, 3, 5)
    plain = criterion_of(kind)
    first, second = plain(as_outputs(*main), targets), plain(as_outputs(*other), targets)
    outputs = {**as_outputs(*main), "many_outputs": as_many(*other, 1, 1)}
    found = OneToManyCriterion(plain, weight=0.3)(outputs, targets)
    torch.testing.assert_close(found.total, first.total + 0.3 * second.total, **EXACT)
    assert found.terms.keys() == {*first.terms, *(f"many_{k}" for k in second.terms)}
    for name, value in first.terms.items():
        assert found.terms[name] == value
        torch.testing.assert_close(found.terms[f"many_{name}"], second.terms[name], **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("layers", [1, 12])
def test_groups_are_scored_each_by_itself(kind: Kind, repeats: int, layers: int) -> None:
    """Losses, terms and gradients: the mean of what the criterion says of each group alone."""
    torch.manual_seed(1)
    groups, targets = 3, random_targets([3, 0, 1, 5])
    main = as_outputs(*leaves(kind, layers, 4, 6))
    many = leaves(kind, layers, 4, groups * 4)
    plain = criterion_of(kind)
    found = OneToManyCriterion(plain)({**main, "many_outputs": as_many(*many, groups, repeats)},
                                      targets)  # fmt: skip
    first = plain(main, targets)
    parts = [[t[:, :, 4 * g : 4 * g + 4] for t in many] for g in range(groups)]
    again = repeat_targets(targets, repeats)
    alone = [plain(as_outputs(*part), again) for part in parts]
    mean = torch.stack([one.total for one in alone]).mean()
    torch.testing.assert_close(found.total, first.total + mean, **EXACT)
    for name in alone[0].terms:
        expected = torch.stack([one.terms[name] for one in alone]).mean()
        torch.testing.assert_close(found.terms[f"many_{name}"], expected, **EXACT)
    ours = torch.autograd.grad(found.total, many)
    torch.testing.assert_close(ours, torch.autograd.grad(mean, many), **EXACT)


@given(seed=st.integers(0, 2**16), order=st.permutations(range(4)), kind=st.sampled_from(KINDS))
@settings(max_examples=25, deadline=None)
def test_the_order_of_groups_changes_nothing(seed: int, order: list[int], kind: Kind) -> None:
    torch.manual_seed(seed)
    targets = random_targets([2, 3])
    main, many = leaves(kind, 2, 2, 5), leaves(kind, 2, 2, 12)
    moved = [t.unflatten(2, (4, 3))[:, :, order].flatten(2, 3) for t in many]
    criterion = OneToManyCriterion(criterion_of(kind))

    def losses(pair: Sequence[Tensor]) -> Any:
        return criterion({**as_outputs(*main), "many_outputs": as_many(*pair, 4, 2)}, targets)

    one, other = losses(many), losses(moved)
    torch.testing.assert_close(one.total, other.total, **EXACT)
    torch.testing.assert_close(one.terms, other.terms, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_branch_has_no_box_loss_and_the_normaliser_counts_repeats(kind: Kind) -> None:
    """With k queries on each object and the same error, the losses are those of one."""
    targets = random_targets([2, 3])
    times = 3
    off = 0.01
    boxes = torch.full((1, 2, 9, 4), 0.9, dtype=torch.float64)
    logits = torch.full((1, 2, 9, K + (kind == "softmax")), -9.0, dtype=torch.float64)
    if kind == "softmax":
        logits[..., K] = 9.0
    for b, target in enumerate(targets):
        for k in range(times):
            for m, label in enumerate(target["labels"].tolist()):
                place = k * len(target["labels"]) + m
                boxes[0, b, place] = target["boxes"][m]
                boxes[0, b, place, 0] += off
                logits[0, b, place] = -9.0
                logits[0, b, place, label] = 12.0
    main = as_outputs(*leaves(kind, 1, 2, 5))
    outputs = {**main, "many_outputs": as_many(logits, boxes, 1, times)}
    terms = OneToManyCriterion(criterion_of(kind))(outputs, targets).terms
    assert float(terms["many_loss_bbox"]) == pytest.approx(off, abs=1e-9)  # an object, not 3
    assert float(terms["many_loss_ce"]) < 0.01


def test_a_batch_without_objects_is_finite_and_reaches_everything() -> None:
    targets = random_targets([0, 0])
    main, many = leaves("focal", 2, 2, 4), leaves("focal", 2, 2, 6)
    outputs = {**as_outputs(*main), "many_outputs": as_many(*many, 2, 3)}
    found = OneToManyCriterion(criterion_of("focal"))(outputs, targets)
    found.total.backward()
    assert torch.isfinite(found.total)
    for leaf in (*main, *many):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


def test_denoising_is_scored_once_and_left_to_the_criterion() -> None:
    targets = random_targets([2, 1])
    noised = denoising_queries(targets, K, groups=2)
    main, many = leaves("focal", 2, 2, 4), leaves("focal", 2, 2, 6)
    dn_logits, dn_boxes = leaves("focal", 2, 2, noised.length)
    dn = {"pred_logits": dn_logits, "pred_boxes": dn_boxes, "denoising": noised}
    outputs = {**as_outputs(*main), "dn_outputs": dn}
    plain = criterion_of("focal")
    without = plain(outputs, targets)
    found = OneToManyCriterion(plain, weight=0.0)(
        {**outputs, "many_outputs": as_many(*many, 2, 1)}, targets
    )
    torch.testing.assert_close(found.total, without.total, **EXACT)
    assert not any(name.startswith("many_dn") for name in found.terms)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ZooError, match="0 groups of 4 queries"):
        GroupQueries(0, 4, 8, learned=False)
    with pytest.raises(ZooError, match="weight is -1"):
        OneToManyCriterion(criterion_of("focal"), weight=-1.0)

"""Denoising queries in front of a decoder's 300 queries, built in every training step, batch 8.

From targets to what the decoder takes: contents and logits of the anchors of all queries, and the
additive mask of self attention. Each side draws noise of its own, so that a row first compares
without noise, then how far noise moves the boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from reference import CLASSES
from rows import OBJECTS, Row, alternate, compare, random_targets, require, shown
from torch import Tensor, nn

from zoo.models.detr.contrastive import contrastive_queries
from zoo.models.detr.denoising import DenoisingQueries, LabelEmbedding, denoising_queries
from zoo.models.detr.focal import with_noised
from zoo.models.layers.heads import MIN_SIDE

GROUPS = 5  # DN-DETR's
PAIRS = 100  # DINO's and RT-DETR's
DIM = 256


class Built(NamedTuple):
    """What a decoder takes: [B, L + Q, D], [B, L + Q, 4], [(B, 1,) L + Q, L + Q] (0 or -inf)."""

    content: Tensor
    anchors: Tensor
    bias: Tensor


Builder = Callable[..., Built]  # from the noise of labels and of boxes
Builders = tuple[DenoisingQueries, Builder, Builder]


def noised_groups(quick: bool) -> Row:
    """DN-DETR's groups, against the usual form, which is written out in :func:`usual`."""
    return row(quick, f"{GROUPS} groups of denoising queries (DN-DETR)", group_builders, 0.4)


def contrastive_pairs(quick: bool) -> Row:
    """DINO's and RT-DETR's contrastive pairs, against transformers' function of its RT-DETR."""
    name = f"{PAIRS} pairs of contrastive denoising queries (DINO, RT-DETR)"
    return row(quick, name, pair_builders, 1.0)


def row(quick: bool, name: str, builders: Callable[..., Builders], box_noise: float) -> Row:
    """The row of a batch as they are, and in its note a batch whose images are equally rich.

    No figure was asked for but not to be slower.
    """
    queries, objects = (20, OBJECTS[:2]) if quick else (300, OBJECTS)
    made, run, their_run = builders(objects, queries)
    note = same_work(made, run, their_run, box_noise)
    level = [round(sum(objects) / len(objects))] * len(objects)
    even, *two = builders(level, queries)
    same_work(even, *two, box_noise)
    repeats = 2 if quick else 200
    times = alternate(dict(zip(("ours", "theirs"), two, strict=True)), repeats)
    note += (
        f"; with {level[0]} objects in every image, so that none are empty, "
        f"{shown(times['ours'])} against {shown(times['theirs'])}"
    )
    name += (
        f" before {queries} queries, batch {len(objects)}, {min(objects)} to {max(objects)} "
        "objects an image"
    )
    return compare(name, 1.0, {"ours": run, "theirs": their_run}, repeats, note)


def group_builders(objects: Sequence[int], queries: int) -> Builders:
    """Both sides' builders of DN-DETR's groups, and queries of that shape."""
    targets, others = some(objects, queries)
    embed = LabelEmbedding(CLASSES, DIM)

    def made(label_noise: float = 0.2, box_noise: float = 0.4) -> DenoisingQueries:
        noise = {"label_noise": label_noise, "box_noise": box_noise}
        return denoising_queries(targets, CLASSES, groups=GROUPS, **noise)

    def run(*noise: float) -> Built:
        noised = made(*noise)
        return Built(*with_noised(noised, embed(noised.labels), *others))

    def their_run(label_noise: float = 0.2, box_noise: float = 0.4) -> Built:
        return usual(targets, embed, others, label_noise, box_noise)

    return made(), run, their_run


def pair_builders(objects: Sequence[int], queries: int) -> Builders:
    """Both sides' builders of contrastive pairs, and queries of that shape."""
    from transformers.models.rt_detr.modeling_rt_detr import (
        get_contrastive_denoising_training_group,
    )

    targets, others = some(objects, queries)
    content, anchors = others
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    embed = nn.Embedding(CLASSES + 1, DIM, padding_idx=CLASSES)

    def made(label_noise: float = 0.5, box_noise: float = 1.0) -> DenoisingQueries:
        noise = {"label_noise": label_noise, "box_noise": box_noise}
        return contrastive_queries(targets, CLASSES, total=PAIRS, **noise)

    def run(*noise: float) -> Built:
        noised = made(*noise)
        return Built(*with_noised(noised, embed(noised.labels), *others))

    def their_run(label_noise: float = 0.5, box_noise: float = 1.0) -> Built:
        noise = label_noise, max(box_noise, 1e-9)  # without any it returns no logits
        known, places, bias, _ = get_contrastive_denoising_training_group(
            labels, CLASSES, queries, embed, PAIRS, *noise
        )
        return Built(torch.cat([known, content], 1), torch.cat([places, anchors], 1), bias)

    return made(), run, their_run


def some(
    objects: Sequence[int], queries: int
) -> tuple[list[dict[str, Tensor]], tuple[Tensor, Tensor]]:
    """Targets of a batch, and the other queries' contents [B, Q, D] and anchors [B, Q, 4]."""
    draw = torch.Generator().manual_seed(13)
    targets = [random_targets(1, count, draw)[0] for count in objects]
    content = torch.randn(len(objects), queries, DIM, generator=draw)
    return targets, (content, torch.randn(len(objects), queries, 4, generator=draw))


def same_work(made: DenoisingQueries, run: Builder, their_run: Builder, box_noise: float) -> str:
    """Compare both sides wherever a slot of ``made`` is filled."""
    image, slots = made.valid.nonzero().unbind(1)
    with torch.no_grad():
        mine, other = run(0.0, 0.0), their_run(0.0, 0.0)
        require(mine.content.shape == other.content.shape, "the numbers of queries differ")
        length = made.length
        behind = (b.content[:, length:] for b in (mine, other))
        equal = torch.equal(mine.content[image, slots], other.content[image, slots])
        equal = equal and torch.equal(*behind)
        require(equal, "contents differ")
        boxes = mine.anchors[image, slots].sigmoid()
        far = float((boxes - other.anchors[image, slots].sigmoid()).abs().max())
        require(far <= 1e-5, f"boxes without noise differ by {far:.1e}")
        others = made.valid.new_ones(len(made.valid), mine.bias.shape[-1] - length)
        filled = torch.cat([made.valid, others], 1)
        both = (filled[:, :, None] & filled[:, None]).expand(len(filled), -1, -1)
        allowed, theirs = (
            (b.bias == 0).expand(len(filled), 1, -1, -1)[:, 0] for b in (mine, other)
        )
        require(torch.equal(allowed[both], theirs[both]), "the masks differ")
        moved = []
        for one in (run, their_run):
            torch.manual_seed(17)
            found = [one(0.0, box_noise).anchors[image, slots].sigmoid() for _ in range(20)]
            moved.append(float((torch.stack(found) - boxes).abs().mean()))
    mean, wanted = moved
    require(abs(mean - wanted) <= 0.1 * wanted, f"noise moves boxes by {mean} and {wanted}")
    return (
        f"{length} queries and masks equal without noise, which moves boxes by {mean:.3f} "
        f"and {wanted:.3f}; ours also hides empty slots"
    )


def usual(
    targets: Sequence[dict[str, Tensor]],
    embed: LabelEmbedding,
    others: tuple[Tensor, Tensor],
    label_noise: float,
    box_noise: float,
) -> Built:
    """Groups of noised objects in the form in which they are usually built, written for this row.

    What is true of an image is gathered image by image, the richest image is asked for on the
    host, labels are flipped by number, and the mask is filled group by group.
    """
    content, anchors = others
    counts = [int(torch.ones_like(t["labels"]).sum()) for t in targets]
    most = max(counts)
    owner = torch.cat([torch.full_like(t["labels"], n) for n, t in enumerate(targets)])
    owner = owner.repeat(GROUPS)
    labels = torch.cat([t["labels"] for t in targets]).repeat(GROUPS)
    boxes = torch.cat([t["boxes"] for t in targets]).repeat(GROUPS, 1)

    flipped = (torch.rand(labels.shape) < label_noise).nonzero().flatten()
    labels = labels.scatter(0, flipped, torch.randint_like(flipped, 0, CLASSES))
    reach = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], 1)
    boxes = (boxes + (torch.rand_like(boxes) * 2 - 1) * reach * box_noise).clamp(0.0, 1.0)

    place = torch.cat([torch.tensor(range(count)) for count in counts])
    place = torch.cat([place + most * group for group in range(GROUPS)])
    length = most * GROUPS
    known = torch.zeros(len(targets), length, DIM)
    known[owner, place] = embed(labels)
    places = torch.zeros(len(targets), length, 4)
    places[owner, place] = boxes.logit(MIN_SIDE)

    total = length + content.shape[1]
    hidden = torch.zeros(total, total, dtype=torch.bool)
    hidden[length:, :length] = True
    for group in range(GROUPS):
        begin, end = group * most, (group + 1) * most
        hidden[begin:end, :begin] = True
        hidden[begin:end, end:length] = True
    bias = torch.zeros(total, total).masked_fill(hidden, -torch.inf)
    return Built(torch.cat([known, content], 1), torch.cat([places, anchors], 1), bias)

"""Contrastive denoising queries (DINO, Zhang et al., ICLR 2023, arXiv 2203.03605, section 3.3).

DN-DETR's noised objects (:mod:`zoo.models.detr.denoising`) in pairs: a positive, whose corners
moved by less than half the box's sides times ``box_noise`` and which is to be restored, and a
negative that moved by more, up to twice as far, and is to be recognised as no object. So that of
several queries near an object only the nearest learns to answer. RT-DETR (arXiv 2304.08069) has
the same ones.

As in both releases: labels are wrong with half the probability that ``label_noise`` says; what
leaves the image is cut off, also where nothing is left of a box.
Unlike them: empty slots are hidden from the image's other queries and have no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert

from zoo.errors import ZooError
from zoo.models.detr.denoising import DenoisingQueries, Slots
from zoo.types import Target


@dataclass(frozen=True)
class ContrastiveQueries(DenoisingQueries):
    """Denoising queries of which every real one has a negative.

    ``image``, ``slot`` and ``target`` [R] number the positives, as in :class:`DenoisingQueries`;
    ``negative`` [R] is the slot of each one's negative, in the same image and group. A group's
    ``slots`` are positives, then as many negatives.
    """

    negative: Tensor


def contrastive_queries(
    targets: Sequence[Target],
    num_classes: int,
    *,
    total: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> ContrastiveQueries:
    """Draw pairs of noised copies of all targets from torch's global generator.

    ``targets``: per image ``labels`` [M] and ``boxes`` [M, 4] cxcywh in 0..1. There are as many
    groups as fit into ``total`` pairs an image, and one at least. With probability
    ``label_noise`` / 2 a label becomes a class drawn uniformly. Each of a box's corners moves, in
    x and in y, by a random share of half the side times ``box_noise``: 0..1 of it for positives,
    1..2 for negatives.
    """
    if not 0.0 <= label_noise <= 1.0 or box_noise < 0.0 or total < 1:
        raise ZooError(
            f"label_noise is {label_noise}, box_noise {box_noise} and dn_queries {total}; they "
            "have to be in 0..1, 0 at least and 1 at least"
        )
    slots = Slots.of(targets, total=total, copies=2)
    labels = slots.filled(slots.labels(targets, num_classes, label_noise / 2), num_classes)
    boxes = slots.boxes(targets)
    moves = torch.rand_like(boxes).mul_(2).sub_(1)
    count = len(boxes) // 2
    moves[count:] += moves[count:].sign()  # the negatives'
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    moves[:, :2].mul_(half * box_noise).add_(centre - half)
    moves[:, 2:].mul_(half * box_noise).add_(centre + half)
    boxes = box_convert(moves.clamp_(0, 1), "xyxy", "cxcywh").clamp_(min=0)
    return ContrastiveQueries(
        labels=labels,
        boxes=slots.filled(boxes, 0.5),
        valid=labels != num_classes,
        image=slots.image[:count],
        slot=slots.slot[:count],
        target=slots.target[:count],
        groups=slots.groups,
        slots=slots.slots,
        padded=slots.padded,
        negative=slots.slot[count:],
    )

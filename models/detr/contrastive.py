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
from zoo.models.detr.denoising import DenoisingQueries, denoising_queries
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

    Labels out of range are clamped here; the matcher refuses them by name.
    """
    if not 0.0 <= label_noise <= 1.0 or box_noise < 0.0 or total < 1:
        raise ZooError(
            f"label_noise is {label_noise}, box_noise {box_noise} and dn_queries {total}; they "
            "have to be in 0..1, 0 at least and 1 at least"
        )
    first, second = (
        denoising_queries(
            targets, num_classes, total=total, label_noise=label_noise / 2, box_noise=0.0
        )
        for _ in range(2)
    )
    groups, half = first.groups, first.slots
    batch = len(targets)

    def paired(one: Tensor, other: Tensor) -> Tensor:
        parts = [x.reshape(batch, groups, half, *x.shape[2:]) for x in (one, other)]
        return torch.stack(parts, 2)

    exact = paired(first.boxes, second.boxes)  # [B, G, 2, M, 4]
    share = torch.rand_like(exact)
    share[:, :, 1] += 1.0
    sign = torch.randint(2, exact.shape, device=exact.device).to(exact.dtype) * 2 - 1
    reach = exact[..., 2:].repeat(*[1] * (exact.ndim - 1), 2) * (0.5 * box_noise)
    corners = box_convert(exact, "cxcywh", "xyxy") + sign * share * reach
    boxes = box_convert(corners.clamp(0, 1), "xyxy", "cxcywh").clamp(min=0)

    slot = first.slot + first.slot // max(half, 1) * half
    valid = paired(first.valid, second.valid)
    empty = boxes.new_full((), 0.5)
    return ContrastiveQueries(
        labels=paired(first.labels, second.labels).flatten(1),
        boxes=torch.where(valid[..., None], boxes, empty).flatten(1, 3),
        valid=valid.flatten(1),
        image=first.image,
        slot=slot,
        target=first.target,
        groups=groups,
        slots=2 * half,
        padded=first.padded,
        negative=slot + half,
    )

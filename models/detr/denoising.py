"""Denoising queries (DN-DETR, Li et al., CVPR 2022, arXiv 2203.01305).

In training, besides the queries that are matched, the decoder gets the objects of the image with
noise on boxes and labels (section 4.2) and learns to restore them; no matching is needed for
them, since it is known whose noise they are. They stand *before* the matching queries, in groups
of as many slots as the richest image of the batch has objects. Groups do not see each other, the
matching queries see none of them, and they all see the matching queries (section 4.4).

With ``total`` the number of groups follows the objects so that the number of slots stays bounded,
as in DINO (arXiv 2203.03605, section 4.1).

Unlike in the release, slots that an image does not fill are hidden from its other queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.matcher import to_device
from zoo.types import Target


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised objects of a batch: L = groups * slots queries an image, R of them real in all.

    ``labels`` [B, L] noised classes, 0..K-1, or K ("unknown") in an empty slot; ``boxes``
    [B, L, 4] noised cxcywh in 0..1 (``boxes.logit(eps)`` for anchors that are logits), a box of
    half the image in an empty slot; ``valid`` [B, L], True where a slot is filled. The real
    queries by number: ``image``, ``slot`` (0..L-1) and ``target`` [R], the row of the targets of
    all images laid end to end.

    A batch without any object gives L = 0 and groups = 0: the same code runs, on empty tensors.
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor
    image: Tensor
    slot: Tensor
    target: Tensor
    groups: int
    slots: int
    padded: bool  # whether any slot is empty, as the host knows

    @property
    def length(self) -> int:
        """L, the denoising queries an image."""
        return self.groups * self.slots

    def attention_mask(self, num_queries: int) -> Tensor:
        """Who may attend to whom in the decoder's self attention, True where allowed.

        [B, 1, L + Q, L + Q], or [1, 1, L + Q, L + Q] where no slot is empty: denoising queries
        first, then the ``num_queries`` matching ones. Every row holds itself at least.
        """
        return self.attention_bias(num_queries, torch.float32) == 0

    def attention_bias(self, num_queries: int, dtype: torch.dtype) -> Tensor:
        """The same as what is added to attention's scores: 0 where allowed, -inf elsewhere."""
        device, length = self.valid.device, self.length
        number = torch.arange(length + num_queries, device=device)
        # Matching queries are a group of their own, which every query may look at.
        group = (number // max(self.slots, 1)).masked_fill_(number >= length, self.groups)
        apart = (group[:, None] != group).logical_and_(number < length)
        bias = torch.zeros(apart.shape, dtype=dtype, device=device)
        bias.masked_fill_(apart, -torch.inf)
        if not self.padded:
            return bias[None, None]
        # Images differ in columns alone: one pass over [B, L + Q, L + Q] is all it takes.
        hidden = bias.new_zeros(len(self.valid), 1, len(number))
        hidden[:, 0, :length].masked_fill_(~self.valid, -torch.inf)
        bias = bias + hidden
        bias.diagonal(dim1=1, dim2=2).zero_()
        return bias[:, None]


class Slots(NamedTuple):
    """Where copies of a batch's objects stand, R of them: all tensors are [R].

    The slot ``slot`` (0..L-1) of the image ``image`` is that of row ``target`` of the targets of
    all images laid end to end; ``shape`` is (B, L), with L = ``groups`` * ``slots``.
    """

    image: Tensor
    slot: Tensor
    target: Tensor
    groups: int
    slots: int
    shape: tuple[int, int]
    padded: bool

    @classmethod
    def of(
        cls, targets: Sequence[Target], *, groups: int = 0, total: int = 0, copies: int = 1
    ) -> Slots:
        """``groups`` times ``copies`` copies, or with ``total`` as many groups as it has room for.

        A group has ``copies`` times as many slots as the richest image has objects. The first
        copies of all groups come first among the R, then the second ones.
        """
        sizes = np.array([len(t["labels"]) for t in targets])
        most, count = int(sizes.max()), int(sizes.sum())
        if count == 0:
            groups = 0
        elif total > 0:
            groups = max(1, total // most)
        slots = copies * most
        position = np.arange(count) - np.repeat(sizes.cumsum() - sizes, sizes)
        index = np.empty((3, copies, groups, count), dtype=np.int64)
        index[0] = np.repeat(np.arange(len(sizes)), sizes)
        index[1] = position + slots * np.arange(groups)[:, None]
        index[1] += most * np.arange(copies)[:, None, None]
        index[2] = np.arange(count)
        image, slot, target = to_device(index.reshape(3, -1), targets[0]["boxes"].device)
        shape, padded = (len(sizes), groups * slots), count < len(sizes) * most
        return cls(image, slot, target, groups, slots, shape, padded)

    def labels(self, targets: Sequence[Target], num_classes: int, noise: float) -> Tensor:
        """The objects' labels [R], with probability ``noise`` a class drawn uniformly instead.

        Labels out of range are clamped: the matcher refuses them by name, at the cost of no
        further wait for the device.
        """
        true = torch.cat([t["labels"] for t in targets]).clamp_(0, num_classes - 1)[self.target]
        other = torch.randint(num_classes, true.shape, device=true.device)
        return torch.where(torch.rand(true.shape, device=true.device) < noise, other, true)

    def boxes(self, targets: Sequence[Target]) -> Tensor:
        """The objects' boxes [R, 4]."""
        return torch.cat([t["boxes"] for t in targets])[self.target]

    def filled(self, values: Tensor, empty: float) -> Tensor:
        """``values`` [R, ...] in their slots, [B, L, ...], and ``empty`` in those left over."""
        out = values.new_full((*self.shape, *values.shape[1:]), empty)
        out[self.image, self.slot] = values
        return out


def denoising_queries(
    targets: Sequence[Target],
    num_classes: int,
    *,
    groups: int = 5,
    total: int = 0,
    label_noise: float = 0.2,
    box_noise: float = 0.4,
) -> DenoisingQueries:
    """Draw noised copies of all targets from torch's global generator, on the targets' device.

    ``targets``: per image ``labels`` [M] and ``boxes`` [M, 4] cxcywh in 0..1. There are
    ``groups`` copies, or, where ``total`` is positive, as many as fit into that number of queries
    and one at least. With probability ``label_noise`` a label becomes a class drawn uniformly
    (the true one included). A centre moves by less than ``box_noise`` times half the side, a side
    is scaled by 1 - ``box_noise`` to 1 + ``box_noise``; then all four are clamped to 0..1.
    """
    if not 0.0 <= label_noise <= 1.0 or not 0.0 <= box_noise < 1.0 or groups < 1:
        raise ZooError(
            f"label_noise is {label_noise}, box_noise {box_noise} and dn_groups {groups}; they "
            "have to be in 0..1, in 0..1 but below 1, and 1 at least"
        )
    slots = Slots.of(targets, groups=groups, total=total)
    labels = slots.filled(slots.labels(targets, num_classes, label_noise), num_classes)
    boxes = slots.boxes(targets)
    sides = boxes[:, 2:]
    reach = torch.cat([sides / 2, sides], dim=1).mul_(box_noise)
    boxes = torch.rand_like(boxes).mul_(2).sub_(1).mul_(reach).add_(boxes).clamp_(0, 1)
    return DenoisingQueries(
        labels=labels,
        boxes=slots.filled(boxes, 0.5),
        valid=labels != num_classes,
        image=slots.image,
        slot=slots.slot,
        target=slots.target,
        groups=slots.groups,
        slots=slots.slots,
        padded=slots.padded,
    )


class LabelEmbedding(nn.Module):
    """Query contents from class labels: an embedding and one channel that says "denoising".

    The matching queries' content is that of the label "unknown" (row K) with the channel at 0, so
    the table takes part, and gets a gradient, in every forward pass, also in evaluation and for
    a batch without any object.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_classes + 1, dim - 1)

    def forward(self, labels: Tensor) -> Tensor:
        """Contents of denoising queries: ``labels`` [B, L], 0..K, to [B, L, D]."""
        content = self.embedding(labels)
        return torch.cat([content, torch.ones_like(content[..., :1])], dim=-1)

    def unknown(self) -> Tensor:
        """The content of every matching query, [D]."""
        content = self.embedding.weight[self.num_classes]
        return torch.cat([content, torch.zeros_like(content[:1])])

"""Dense supervision of the memory in training: every cell in the middle of an object names it.

One-to-one matching gives an object a single positive; on small data the features behind it learn
slowly. Here all cells near an object's centre are positives, as in FCOS (arXiv 1904.01355, with
the centre sampling of its released code), for a head that only training has. It is the cheapest
of the one-to-many branches that later members of the family train beside the one-to-one branch
(H-DETR, arXiv 2207.13080; Co-DETR, arXiv 2211.12860); predictions never pass through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.models.detr.anchors import cell_places
from zoo.models.layers.heads import box_head, class_head, exact
from zoo.types import Target

CENTRE = 0.6  # of a box's width and height: how far from its middle a cell is still a positive


@dataclass(frozen=True)
class DenseOutput:
    """Logits [B, S, K] and boxes [B, S, 4] of all cells, with their middles.

    ``middles`` [B, S, 2] are (x, y) in 0..1 of the unpadded image; ``valid`` [B, S] is False in
    the padding.
    """

    logits: Tensor
    boxes: Tensor
    middles: Tensor
    valid: Tensor


class DenseHead(nn.Module):
    """A class and a box for every cell of a memory."""

    def __init__(self, dim: int, num_classes: int, side: float) -> None:
        super().__init__()
        self.side = side
        self.class_embed = class_head(dim, num_classes)
        self.bbox_embed = box_head(dim)

    def forward(self, memory: Tensor, mask: Tensor) -> DenseOutput:
        """From ``memory`` [B, S, D] and its mask [B, h, w]."""
        places = cell_places(mask, self.side, torch.float32)
        boxes = (places + exact(self.bbox_embed, memory)).sigmoid()
        logits = exact(self.class_embed, memory)
        return DenseOutput(logits, boxes, places[..., :2].sigmoid(), mask.flatten(1))


def positives(out: DenseOutput, targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """Which cells answer for which object: (image, cell, row of the concatenated targets) [P].

    A cell is a positive of the smallest box in whose middle part (``CENTRE``) it lies; of every
    box at least the cell nearest to its middle is one, unless a smaller box has it.
    """
    images, cells, rows = [], [], []
    start = 0
    for image, target in enumerate(targets):
        boxes = target["boxes"].to(out.middles.dtype)
        if len(boxes):
            far = (out.middles[image][:, None] - boxes[:, :2]).abs()  # [S, M, 2]
            inside = (far < boxes[:, 2:] * (CENTRE / 2)).all(-1)
            nearest = far.square().sum(-1).masked_fill(~out.valid[image][:, None], torch.inf)
            inside[nearest.argmin(0), torch.arange(len(boxes), device=boxes.device)] = True
            inside &= out.valid[image][:, None]
            area = boxes[:, 2:].prod(-1).expand_as(inside).masked_fill(~inside, torch.inf)
            least, owner = area.min(1)
            found = least.isfinite().nonzero()[:, 0]
            images.append(torch.full_like(found, image))
            cells.append(found)
            rows.append(owner[found] + start)
        start += len(boxes)
    if not images:
        none = torch.zeros(0, dtype=torch.long, device=out.logits.device)
        return none, none, none
    return torch.cat(images), torch.cat(cells), torch.cat(rows)

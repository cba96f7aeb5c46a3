"""Where anchor boxes come from: learned ones, or proposals of the encoder.

Boxes are handled as logits of normalised cxcywh here, since anchors are refined by sums of logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.models.layers.heads import MAX_LOGIT, MIN_SIDE, best_rows, box_head, class_head, exact


class Anchors(nn.Module):
    """Learned anchors, as logits: ``xy`` [Q, 2] (a buffer where frozen) and ``wh`` [Q, 2].

    They begin as in DAB-DETR's release: N(0, 1), or with ``freeze_xy`` centres that are uniform
    in the image and stay. With ``sizes`` they begin as squares of those sides, in turn, whose
    centres cover the image evenly.
    """

    xy: Tensor

    def __init__(self, count: int, *, freeze_xy: bool, sizes: Sequence[float] = ()) -> None:
        super().__init__()
        xy, wh = torch.randn(count, 4).split(2, dim=1)
        if freeze_xy:
            xy = _logit(torch.rand(count, 2))
        if sizes:
            xy = _logit(even_points(count).clamp(0.01, 0.99))
            wh = _logit(torch.tensor(sizes)).repeat(count // len(sizes) + 1)[:count, None]
        self.wh = nn.Parameter(wh.repeat(1, 2 // wh.shape[1]))
        if freeze_xy:
            self.register_buffer("xy", xy)
        else:
            self.xy = nn.Parameter(xy.clone())

    def forward(self) -> Tensor:
        """[Q, 4]."""
        return torch.cat([self.xy, self.wh], dim=1)


class QuerySelection(nn.Module):
    """Every cell of a memory proposes a box; the best proposals become queries.

    From Deformable DETR's two stages (arXiv 2010.04159, appendix A.4) in the form of RT-DETR
    (arXiv 2304.08069, section 4.3): the class head's best score chooses, the chosen cells' states
    become contents. ``side`` is that of a proposal before the box head speaks.
    """

    def __init__(self, dim: int, num_classes: int, num_queries: int, side: float) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.side = side
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.class_embed = class_head(dim, num_classes)
        self.bbox_embed = box_head(dim)

    def forward(self, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Contents [B, Q, D], class logits [B, Q, K] and boxes' logits [B, Q, 4].

        ``memory`` [B, S, D], ``mask`` [B, h, w]. Q is ``num_queries``, or S where that is less.
        """
        states = self.norm(self.proj(memory))
        logits = exact(self.class_embed, states)
        scores = logits.detach().amax(-1).masked_fill(~mask.flatten(1), -math.inf)
        cells = cell_places(mask, self.side, logits.dtype)
        content, logits, cells = best_rows(self.num_queries, scores, states, logits, cells)
        boxes = cells + exact(self.bbox_embed, content)
        return content, logits, boxes.clamp(-MAX_LOGIT, MAX_LOGIT)


def cell_places(mask: Tensor, side: float, dtype: torch.dtype) -> Tensor:
    """Logits [B, S, 4] of a square of ``side`` at every cell of ``mask`` [B, h, w].

    Coordinates are of the unpadded image.
    """
    x, y = mask.cumsum(2).to(dtype), mask.cumsum(1).to(dtype)
    x = (x - 0.5) / x[:, :, -1:].clamp(min=1)
    y = (y - 0.5) / y[:, -1:, :].clamp(min=1)
    sides = torch.full_like(x, side)
    return _logit(torch.stack([x, y, sides, sides], dim=-1)).flatten(1, 2)


def even_points(count: int) -> Tensor:
    """Points (x, y) in 0..1 that cover the square evenly, [count, 2]: Roberts' R2 sequence.

    Every beginning of the sequence is even too, so anchors of several sizes, dealt out in turn,
    each cover the image.
    """
    plastic = 1.32471795724474602596  # the real root of x^3 = x + 1
    step = torch.tensor([1.0 / plastic, 1.0 / plastic**2], dtype=torch.float64)
    return ((0.5 + torch.arange(count)[:, None] * step) % 1.0).float()


def _logit(values: Tensor) -> Tensor:
    return values.clamp(MIN_SIDE, 1.0 - MIN_SIDE).logit()

"""Gaussian windows around places, as biases of attention.

From SMCA-DETR (Gao et al., ICCV 2021, arXiv 2101.07448, section 3.2): the logarithm of a
Gaussian-like weight is added to the scores of a query's cross attention, and multiplies its
weights so. Everything is in cells of the map that is looked at, whatever their stride.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import ZooError

LEAST_VARIANCE = 0.01  # added to squared scales, in squared cells: they divide


def gaussian_bias(
    mask: Tensor, centres: Tensor, offsets: Tensor, scales: Tensor, *, beta: float
) -> Tensor:
    """The logarithm of the windows, [B, A, Q, S], minus infinity in the padding.

    -(x - cx - dx)^2 / (beta (sx^2 + .01)) - (y - cy - dy)^2 / (beta (sy^2 + .01)) of every cell's
    middle (x, y). ``mask`` [B, h, w], True where valid (the upper left part); ``centres``
    [B, Q, A or 1, 2] (cx, cy) in 0..1 of the valid part, ``offsets`` and ``scales`` [B, Q, A, 2]
    in cells. Computed in float32 or better.
    """
    dtype = torch.promote_types(scales.dtype, torch.float32)
    height, width = mask.shape[-2:]
    valid = mask.to(dtype)
    size = torch.stack([valid.sum(2).amax(1), valid.sum(1).amax(1)], -1)  # [B, 2]: of x, y
    middle = centres.to(dtype) * size[:, None, None] + offsets.to(dtype)  # [B, Q, A, 2]
    rate = 1.0 / (beta * (scales.to(dtype).square() + LEAST_VARIANCE))

    def along(length: int, axis: int) -> Tensor:
        cells = torch.arange(length, device=mask.device, dtype=dtype) + 0.5
        away = cells - middle[..., axis, None]
        return away.square() * rate[..., axis, None]  # [B, Q, A, length]

    total = along(height, 1)[..., :, None] + along(width, 0)[..., None, :]  # [B, Q, A, h, w]
    bias = -total.flatten(-2).transpose(1, 2)
    return bias.masked_fill(~mask.flatten(1)[:, None, None], -torch.inf)


class HeadWindows(nn.Module):
    """Of every head: how far its window is from a query's place, and how large it is.

    Linear functions of the query (section 3.2, "multi-head modulation"). ``scales`` says how many
    a head has: 2 (width and height), 1 (for both), or 0 (fixed at one cell). Windows begin around
    the place itself, one cell large.
    """

    def __init__(self, dim: int, num_heads: int, scales: int) -> None:
        super().__init__()
        if scales not in (0, 1, 2):
            raise ZooError(
                f"model.head_scales is {scales}; set 2 (width and height), 1 (one for both) or 0 "
                "(fixed)"
            )
        self.num_heads = num_heads
        self.scales = scales
        self.project = nn.Linear(dim, num_heads * (2 + scales))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        with torch.no_grad():
            self.project.bias.view(num_heads, -1)[:, 2:] = 1.0

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets and scales [B, Q, A, 2], in cells, of queries [B, Q, D]; in float32 or better."""
        with torch.autocast(query.device.type, enabled=False):
            values = self.project(query.to(self.project.weight.dtype))
        offsets, scales = values.unflatten(-1, (self.num_heads, -1)).split([2, self.scales], -1)
        if self.scales == 0:
            scales = torch.ones_like(offsets)
        return offsets, scales.expand_as(offsets)

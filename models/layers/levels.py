"""Feature levels of a backbone as one sequence of tokens (Deformable DETR, arXiv 2010.04159, A.2).

The tokens of all levels stand behind each other. In Deformable DETR every level goes to the model's
width by a convolution and a GroupNorm, coarser levels than the backbone has come from strided
convolutions, and tokens have sine positions and a learned vector that says which level they are of
(section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.layers.backbone import Level, known_unpadded, resize_mask
from zoo.models.layers.position import sine_position

GROUPS = 32  # of the norms


@dataclass(frozen=True)
class FlatLevels:
    """L levels of S cells in all, row by row, one level after the other.

    ``tokens`` [B, S, D]; ``shapes`` (height, width) of each level; ``mask`` [B, S], True where
    valid, or None where it is known that nothing is padded; ``ratios`` [B, L, 2], the share of a
    map's width and height that is valid; ``centres`` [B, S, 2], the cells' middles (x, y) in 0..1
    of the unpadded image (beyond 1 in the padding); ``pos`` [B, S, D], or None where tokens have
    no position.

    Without padding all images and levels share what depends on the padding: ``pos`` and
    ``centres`` are [1, S, ..] and ``ratios`` are ones, [1, 1, 2].
    """

    tokens: Tensor
    shapes: list[tuple[int, int]]
    mask: Tensor | None
    ratios: Tensor
    centres: Tensor
    pos: Tensor | None = None

    def scaled(self, references: Tensor) -> Tensor:
        """References [B, Q, 2 or 4] of the unpadded image as those of every padded map.

        [B, Q, L, 2 or 4], or L = 1 where nothing is padded.
        """
        ratios = self.ratios.to(references.dtype)
        if references.shape[-1] == 4:
            ratios = torch.cat([ratios, ratios], -1)
        return references[:, :, None] * ratios[:, None]


class LevelProjection(nn.Module):
    """``num_levels`` levels of ``dim`` channels from backbone levels of ``channels``, as tokens.

    The levels beyond the backbone's each halve the resolution of the one before, the first of them
    that of the backbone's last map as it comes out of the backbone.
    """

    def __init__(self, channels: Sequence[int], dim: int, num_levels: int) -> None:
        super().__init__()
        if num_levels < len(channels):
            raise ZooError(
                f"the backbone gives {len(channels)} levels, more than the {num_levels} of the "
                "model; raise model.num_levels or name fewer model.strides"
            )
        if dim % GROUPS:
            raise ZooError(
                f"a width of {dim} can't be normalised in {GROUPS} groups (model.dim); "
                f"use a multiple of {GROUPS}"
            )
        self.projections = nn.ModuleList(_projection(c, dim) for c in channels)
        inputs = channels[-1]
        for _ in range(num_levels - len(channels)):
            self.projections.append(_projection(inputs, dim, kernel=3, stride=2))
            inputs = dim
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))

    def forward(self, levels: Sequence[Level], pixel_mask: Tensor | None) -> FlatLevels:
        """From the backbone's (features [B, C, h, w], mask [B, h, w]), fine to coarse.

        ``pixel_mask`` [B, H, W] is the one that the backbone got; None where nothing is padded.
        """
        maps = self.maps([features for features, _ in levels])
        masks = [mask for _, mask in levels]
        for x in maps[len(masks) :]:
            shape = (x.shape[0], *x.shape[2:])
            ones = masks[-1].new_ones(()).expand(shape)
            masks.append(ones if pixel_mask is None else resize_mask(pixel_mask, *shape[1:]))
        unpadded = pixel_mask is None or known_unpadded(pixel_mask, pixel_mask)
        kind = torch.promote_types(self.level_embed.dtype, torch.float32)
        if unpadded:
            masks = [mask[:1] for mask in masks]
        dim = self.level_embed.shape[1]
        pos = [
            sine_position(mask, dim, offset=-0.5, dtype=kind).to(own.dtype) + own
            for mask, own in zip(masks, self.level_embed, strict=True)
        ]
        return flat_levels(maps, None if unpadded else masks, torch.cat(pos, 1))

    def maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """All levels [B, dim, h, w] from the backbone's maps."""
        maps = [layer(x) for layer, x in zip(self.projections, features, strict=False)]
        x = features[-1]
        for layer in self.projections[len(features) :]:
            x = layer(x)
            maps.append(x)
        return maps


def _projection(inputs: int, dim: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, dim, kernel, stride, kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, dim))


def flat_levels(
    maps: Sequence[Tensor], masks: Sequence[Tensor] | None, pos: Tensor | None = None
) -> FlatLevels:
    """Maps [B, D, h, w] as one sequence; ``masks`` [B, h, w], None where nothing is padded.

    ``pos`` [B or 1, S, D] says where tokens are, and which dtype they are to have.
    """
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
    if pos is not None:
        tokens = tokens.to(pos.dtype)
    shapes = [(x.shape[2], x.shape[3]) for x in maps]
    kind = torch.promote_types(tokens.dtype, torch.float32)
    if masks is None:
        centres, ratios = whole_centres(shapes, tokens.device, kind), tokens.new_ones(1, 1, 2)
        return FlatLevels(tokens, shapes, None, ratios.to(kind), centres, pos)
    parts, shares = zip(*(cell_centres(mask, kind) for mask in masks), strict=True)
    mask = torch.cat([mask.flatten(1) for mask in masks], 1)
    return FlatLevels(tokens, shapes, mask, torch.stack(shares, 1), torch.cat(parts, 1), pos)


def cell_centres(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Middles [B, h * w, 2] of a map's cells in the unpadded image, and its valid share [B, 2].

    Coordinates are (x, y). An image lies in the corner of its padded map, so the first row and
    column of ``mask`` [B, h, w] say how large it is.
    """
    height, width = mask.shape[1:]
    columns, rows = mask[:, 0].sum(1).to(dtype), mask[:, :, 0].sum(1).to(dtype)
    x = torch.arange(width, device=mask.device, dtype=dtype) + 0.5
    y = torch.arange(height, device=mask.device, dtype=dtype) + 0.5
    grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1)
    valid = torch.stack([columns, rows], -1)
    return grid / valid[:, None], torch.stack([columns / width, rows / height], -1)


def whole_centres(
    shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Middles [1, S, 2] of the cells of levels without padding; those of the last are kept."""
    make = _whole_centres.__wrapped__ if torch.compiler.is_compiling() else _whole_centres
    return make(tuple(shapes), device, dtype)


@lru_cache(maxsize=32)
def _whole_centres(
    shapes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    # Not a tensor of inference mode: training could not use it later.
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        whole = [torch.ones(1, h, w, dtype=torch.bool, device=device) for h, w in shapes]
        return torch.cat([cell_centres(one, dtype)[0] for one in whole], 1)

"""DETR's mask head (Carion et al., ECCV 2020, arXiv 2005.12872, section 4 and figure 8).

For every object: attention maps of its query over the encoder's memory, one a head
(:class:`AttentionMaps`); these and the projected features go through two convolutions, then
through stages that double the resolution and add the backbone's finer maps, halving the channels,
down to one logit a cell at stride 4 (:class:`MaskHead`). Norms are group norms of 8 groups (or of
what a tiny model's channels allow).

The same numbers as the release at a fraction of its memory:

* What is the same for all objects of an image is computed once an image, not once a query: the
  backbone's projections, and the part of the first convolution that sees the features (a
  convolution of joined channels is the sum of two convolutions).
* Masks are made for chosen pairs of image and query: in training for the matched ones alone, as
  no loss looks at others. Group norms see one object each, so the result is the same.
* In evaluation all queries are gone through in chunks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.layers.backbone import Level

CHUNK = 16  # masks computed at once in evaluation


class Trace(NamedTuple):
    """A detector's predictions, and what a mask head reads beside them.

    ``features`` [B, D, h, w] are what its encoder reads, ``memory`` [B, h * w, D] what that
    returns, ``mask`` [B, h, w] is True where they are valid; ``states`` [B, Q, D] are the last
    ones of the queries that answer; ``finer`` [B, C, h', w'] are the backbone's maps of finer
    strides, coarse to fine.
    """

    out: Any
    features: Tensor
    memory: Tensor
    mask: Tensor
    states: Tensor
    finer: list[Tensor]

    @classmethod
    def of(
        cls,
        out: Any,
        levels: Sequence[Level],
        level: int,
        tokens: Tensor,
        memory: Tensor,
        mask: Tensor,
        states: Tensor,
    ) -> Trace:
        """Of a detector whose ``tokens`` [B, h * w, D] are at the ``level`` of a backbone's."""
        features = tokens.transpose(1, 2).unflatten(2, mask.shape[-2:])
        return cls(out, features, memory, mask, states, [x for x, _ in levels[:level]][::-1])


class AttentionMaps(nn.Module):
    """Where queries look, without values: one softmax over all heads and cells of a query.

    As in the release, the heads share one softmax, so that they can rank each other. So a map's
    values are tiny (1 over heads and cells, on average) beside the features' that it is joined
    with, which a head trained from scratch starts badly from; ``relative`` gives them as multiples
    of a uniform map, 1 on average. The release's are not.
    """

    def __init__(self, dim: int, num_heads: int, relative: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative = relative
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        for linear in (self.q_proj, self.k_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Maps [B, Q, A, h, w], each query's summing to 1, or with a mean of 1 over valid cells.

        ``queries`` [B, Q, D], ``memory`` [B, h * w, D], ``mask`` [B, h, w] True where valid.
        """
        height, width = mask.shape[-2:]
        q = self.q_proj(queries).unflatten(-1, (self.num_heads, -1))
        k = self.k_proj(memory).unflatten(-1, (self.num_heads, -1))
        scores = torch.einsum("bqad,bsad->bqas", q / math.sqrt(q.shape[-1]), k)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        scores = scores.masked_fill(~mask.flatten(1)[:, None, None], -math.inf)
        maps = scores.flatten(2).softmax(-1).unflatten(-1, (self.num_heads, height, width))
        if self.relative:
            maps = maps * (mask.sum((1, 2)) * self.num_heads)[:, None, None, None, None]
        return maps


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class MaskHead(nn.Module):
    """Attention maps and features to mask logits at the finest level's resolution.

    ``dim`` channels of the features, ``maps`` attention maps a query; ``levels`` are the channels
    of the backbone's finer maps, coarse to fine (three, with strides 16, 8 and 4, in the release).
    """

    def __init__(self, dim: int, maps: int, levels: Sequence[int]) -> None:
        super().__init__()
        widths = [dim // 2**n for n in range(1, len(levels) + 2)]
        joined = dim + maps
        if widths[-1] < 1:
            raise ZooError(
                f"model.dim={dim} can't be halved {len(widths)} times for masks; raise it"
            )
        self.dim = dim
        self.conv1, self.norm1 = _conv(joined, joined), _norm(joined)
        self.conv2, self.norm2 = _conv(joined, widths[0]), _norm(widths[0])
        steps = list(itertools.pairwise(widths))
        self.adapters = nn.ModuleList(
            _conv(level, wide, 1) for level, (wide, _) in zip(levels, steps, strict=True)
        )
        self.convs = nn.ModuleList(_conv(wide, narrow) for wide, narrow in steps)
        self.norms = nn.ModuleList(_norm(narrow) for _, narrow in steps)
        self.out = _conv(widths[-1], 1)

    def shared(self, features: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
        """What all masks of an image have in common, to be given to :meth:`forward`.

        ``features`` [B, D, h, w] of the projected last map, ``levels`` [B, C, h', w'] of finer
        ones, coarse to fine.
        """
        first = F.conv2d(features, self.conv1.weight[:, : self.dim], self.conv1.bias, padding=1)
        return [first, *(conv(x) for conv, x in zip(self.adapters, levels, strict=True))]

    def forward(self, shared: Sequence[Tensor], maps: Tensor, image: Tensor) -> Tensor:
        """Mask logits [P, h', w'] of P objects, at the finest level's size.

        ``maps`` [P, A, h, w] are the objects' attention maps, ``image`` [P] whose they are.
        """
        first, *levels = shared
        x = F.conv2d(maps.to(first.dtype), self.conv1.weight[:, self.dim :], padding=1)
        x = F.relu(self.norm1(x + first[image]), inplace=True)
        x = F.relu(self.norm2(self.conv2(x)), inplace=True)
        for level, conv, norm in zip(levels, self.convs, self.norms, strict=True):
            x = F.interpolate(x, size=level.shape[-2:], mode="nearest") + level[image]
            x = F.relu(norm(conv(x)), inplace=True)
        return self.out(x)[:, 0]

    def every(self, shared: Sequence[Tensor], maps: Tensor) -> Tensor:
        """Mask logits [B, Q, h', w'] of all queries, computed in chunks; ``maps`` [B, Q, ...]."""
        images, queries = maps.shape[:2]
        owner = torch.arange(images, device=maps.device).repeat_interleave(queries)
        parts = zip(maps.flatten(0, 1).split(CHUNK), owner.split(CHUNK), strict=True)
        found = torch.cat([self(shared, part, image) for part, image in parts])
        return found.unflatten(0, (images, queries))

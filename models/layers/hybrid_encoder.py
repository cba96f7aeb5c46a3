"""RT-DETR's hybrid encoder (Zhao et al., CVPR 2024, arXiv 2304.08069, section 4.2).

Attention within the coarsest level only (AIFI), where there are few cells and most meaning; then
convolutions carry it down to the finer levels and up again (CCFM), as in a feature pyramid with a
second, upward path (arXiv 1803.01534). Two levels are fused by cross-stage partial blocks whose
bottlenecks are RepVGG's (arXiv 2101.03697): in training a 3x3 and a 1x1 convolution side by side,
in inference one 3x3 convolution that is their sum.

As in the release (github.com/lyuwenyu/RT-DETR): positions are sines of whole cell numbers, not
normalised. Unlike it: levels need not halve exactly, so pictures may be of any size; with masks,
padded cells are zeroed before the encoder and nobody attends to them (the convolutions still see
its edge); the tokens pass a prompt slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.layers.folding import FrozenBatchNorm2d, affine
from zoo.models.layers.resnet_vd import ConvNorm
from zoo.models.layers.transformer import EncoderLayer, PromptSlot, init_xavier


class RepBlock(nn.Module):
    """RepVGG's: the sum of a 3x3 and a 1x1 convolution, each with its norm; then SiLU.

    In evaluation without gradients one convolution does both; :meth:`fuse` makes that final.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.merged: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] from that shape."""
        if self.merged is not None:
            return F.silu(self.merged(x), inplace=not torch.is_grad_enabled())
        if self.training or torch.is_grad_enabled():
            return F.silu(self.conv1(x) + self.conv2(x))
        weight, bias = self.sum()
        return F.silu(F.conv2d(x, weight, bias, padding=1), inplace=True)

    def sum(self) -> tuple[Tensor, Tensor]:
        """Weight [C, C, 3, 3] and bias [C] of the one convolution."""
        weight, bias = _folded(self.conv1)
        small, shift = _folded(self.conv2)
        return weight + F.pad(small, (1, 1, 1, 1)), bias + shift

    @torch.no_grad()
    def fuse(self) -> None:
        """Become the one convolution. Can't be trained or saved afterwards."""
        if self.merged is not None:
            return
        weight, bias = self.sum()
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, device="meta")
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        self.merged = conv
        del self.conv1, self.conv2


def _folded(part: ConvNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its norm's running statistics."""
    if isinstance(part.norm, nn.Identity):  # done already
        assert part.conv.bias is not None
        return part.conv.weight, part.conv.bias
    scale, shift = affine(cast(FrozenBatchNorm2d | nn.BatchNorm2d, part.norm))
    return part.conv.weight * scale[:, None, None, None], shift


class CspRepBlock(nn.Module):
    """Two levels into one: RepVGG blocks beside a 1x1 convolution, summed.

    ``expansion`` is the width inside over ``outputs``; ``depth`` the number of blocks.
    """

    def __init__(self, inputs: int, outputs: int, expansion: float = 1.0, depth: int = 3) -> None:
        super().__init__()
        inner = int(outputs * expansion)
        self.conv1 = ConvNorm(inputs, inner, act="silu")
        self.conv2 = ConvNorm(inputs, inner, act="silu")
        self.bottlenecks = nn.Sequential(*(RepBlock(inner) for _ in range(depth)))
        self.conv3: nn.Module = nn.Identity()
        if inner != outputs:
            self.conv3 = ConvNorm(inner, outputs, act="silu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, h, w] from [B, inputs, h, w]."""
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


class HybridEncoder(nn.Module):
    """Backbone levels of ``channels``, fine to coarse, to as many of ``dim`` channels.

    ``num_layers`` of attention on the coarsest (0 for none); ``expansion`` and ``depth`` are the
    fusing blocks'.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        *,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        num_layers: int = 1,
        dropout: float = 0.0,
        activation: str = "gelu",
        expansion: float = 1.0,
        depth: int = 3,
        temperature: float = 10000.0,
    ) -> None:
        super().__init__()
        self.dim, self.temperature = dim, temperature
        self.input_proj = nn.ModuleList(ConvNorm(c, dim) for c in channels)
        self.prompt = PromptSlot()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, ffn_dim, dropout, activation) for _ in range(num_layers)
        )
        init_xavier(self.layers)
        steps = len(channels) - 1
        self.lateral_convs = nn.ModuleList(ConvNorm(dim, dim, act="silu") for _ in range(steps))
        self.fpn_blocks = nn.ModuleList(
            CspRepBlock(2 * dim, dim, expansion, depth) for _ in range(steps)
        )
        self.downsample_convs = nn.ModuleList(
            ConvNorm(dim, dim, 3, 2, act="silu") for _ in range(steps)
        )
        self.pan_blocks = nn.ModuleList(
            CspRepBlock(2 * dim, dim, expansion, depth) for _ in range(steps)
        )

    def forward(
        self, features: Sequence[Tensor], masks: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Maps [B, dim, h, w] of the levels' sizes.

        ``features`` [B, C, h, w] and their ``masks`` [B, h, w], True where valid; None where
        nothing is padded. Each level has half the rows and columns of the one before, rounded up.
        """
        maps = [proj(x) for proj, x in zip(self.input_proj, features, strict=True)]
        if masks is not None:
            maps = [x * mask[:, None] for x, mask in zip(maps, masks, strict=True)]
        coarse = self.attend(maps[-1], None if masks is None else masks[-1])

        down = []  # what each level hands to the one below, coarse to fine
        parts = zip(reversed(maps[:-1]), self.lateral_convs, self.fpn_blocks, strict=True)
        for finer, lateral, block in parts:
            coarse = lateral(coarse)
            down.append(coarse)
            wide = F.interpolate(coarse, size=finer.shape[-2:])
            coarse = block(torch.cat([wide, finer], 1))

        out = [coarse]
        steps = zip(reversed(down), self.downsample_convs, self.pan_blocks, strict=True)
        for above, conv, block in steps:
            out.append(block(torch.cat([conv(out[-1]), above], 1)))
        return out

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Self attention within a map [B, dim, h, w]; ``mask`` [B, h, w] or None."""
        if not len(self.layers):
            return x
        height, width = x.shape[-2:]
        pos = plain_sines(height, width, self.dim, self.temperature, x.device, x.dtype)
        allowed = None if mask is None else mask.flatten(1)[:, None, None]
        tokens, places, allowed = self.prompt(x.flatten(2).transpose(1, 2), pos[None], allowed)
        for layer in self.layers:
            tokens = layer(tokens, places, allowed)
        tokens = self.prompt.strip(tokens)
        return tokens.transpose(1, 2).unflatten(2, (height, width))


def plain_sines(
    height: int, width: int, dim: int, temperature: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Positions [height * width, dim] of a map's cells, kept by shape.

    A quarter of the channels each: sines of the row's number at dim / 4 wavelengths, its cosines,
    then the same of the column's.
    """
    make = _sines.__wrapped__ if torch.compiler.is_compiling() else _sines
    return make(height, width, dim, temperature, device, dtype)


@lru_cache(maxsize=32)
def _sines(
    height: int, width: int, dim: int, temperature: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    if dim % 4:
        raise ValueError(f"a sine position needs a dim that is a multiple of 4, not {dim}")
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        exact = torch.float64 if device.type != "mps" else torch.float32
        steps = torch.arange(dim // 4, device=device, dtype=exact) * (4.0 / dim)
        rows = torch.arange(height, device=device, dtype=exact)[:, None] / temperature**steps
        columns = torch.arange(width, device=device, dtype=exact)[:, None] / temperature**steps
        y, x = (torch.cat([p.sin(), p.cos()], 1) for p in (rows, columns))
        grid = [y[:, None].expand(-1, width, -1), x.expand(height, -1, -1)]
        return torch.cat(grid, -1).flatten(0, 1).to(dtype)

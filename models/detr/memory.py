"""One memory from an image's feature levels, for the members whose queries read a single map.

Conditional DETR, DAB-DETR, SMCA-DETR and SAM-DETR begin alike: a backbone, one map of its levels,
positions of the cells. The settings that are none of the papers' are off by default and used by
the nano variants, which learn from scratch on small data in minutes: ``strides`` and
``memory_stride`` (feature levels fused into one memory, as in a feature pyramid, arXiv 1612.03144),
``query_selection`` (the encoder proposes the queries' places and contents, as in RT-DETR,
arXiv 2304.08069, section 4.3; the proposals are one more auxiliary output), and ``dense_side``
(every cell of the memory near an object's middle is trained to name it, see
:mod:`zoo.models.detr.dense`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from zoo.models.detr.anchors import QuerySelection
from zoo.models.detr.focal import FocalConfig, named_backbone
from zoo.models.layers.backbone import Backbone, Level, NanoBackbone, known_unpadded
from zoo.models.layers.fusion import LevelFusion, level_of
from zoo.models.layers.position import sine_position


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(FocalConfig):
    """Settings of the members that read one memory; ``strides`` are fused where there are several.

    Each has defaults of its own where its paper differs.
    """

    temperature: float = 10000.0  # of the sines of positions

    # Not the papers': see the module's docstring.
    widths: tuple[int, ...] = ()  # a nano backbone of one's own: channels of its stages, with
    depths: tuple[int, ...] = ()  # the blocks of each
    memory_stride: int = 0  # which of the strides the memory has; 0: the coarsest
    query_selection: bool = False
    dense_side: float = 0.0  # dense supervision of the memory, boxes beginning so large; 0: none


# From scratch in minutes on a CPU; the same for all, so that they can be compared.
SMALL: Mapping[str, Any] = {
    "backbone": "nano",
    "strides": (8, 16, 32),
    "memory_stride": 16,
    "dim": 128,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "ffn_dim": 512,
    "dropout": 0.0,
    "temperature": 20.0,
    "num_queries": 80,
    "query_selection": True,
    "dense_side": 0.3,
    "coef_class": 5.0,
}


def memory_backbone(config: MemoryConfig) -> Backbone:
    """The backbone that the config names."""
    if config.widths:
        return NanoBackbone(config.widths, config.depths, out_strides=config.strides or (16,))
    return named_backbone(config)


def map_projection(config: MemoryConfig, backbone: Backbone) -> tuple[int, nn.Module]:
    """Which level the memory has, and what makes it of a backbone's levels.

    Those are the coarsest, as many as the config has strides (all where it has none): fused, or a
    single one projected. The level is counted from the end, -1 the coarsest.
    """
    count = min(len(config.strides) or len(backbone.strides), len(backbone.strides))
    level = level_of(config.memory_stride, backbone.strides[-count:])
    channels = backbone.num_channels[-count:]
    if count > 1:
        return level - count, LevelFusion(channels, config.dim, level)
    return level - count, nn.Conv2d(channels[0], config.dim, 1)


class Cells(NamedTuple):
    """A map's tokens [B, S, D] and positions [B or 1, S, D], its mask [B, h, w].

    ``allowed`` [B, 1, 1, S] is the mask for attention, None where nothing is padded.
    """

    tokens: Tensor
    pos: Tensor
    mask: Tensor
    allowed: Tensor | None


class ReadsMemory(Protocol):
    """A detector that reads one map: what :func:`map_projection` gave it, and its settings."""

    level: int
    input_proj: nn.Module
    class_embed: nn.Linear

    @property
    def config(self) -> MemoryConfig:
        """The settings."""


def read_cells(
    model: ReadsMemory, levels: Sequence[Level], pixel_mask: Tensor | None, offset: float = 0.0
) -> Cells:
    """The cells that ``model`` reads of its backbone's levels [(features [B, C, h, w], mask)].

    ``pixel_mask`` [B, H, W] is the one that the backbone got, None where nothing is padded;
    ``offset``: as of :func:`sine_position`.
    """
    input_proj, mask = model.input_proj, levels[model.level][1]
    if isinstance(input_proj, LevelFusion):
        fused = input_proj([x for x, _ in levels[-len(input_proj.laterals) :]])
    else:
        fused = input_proj(levels[-1][0])
    dtype, temperature = model.class_embed.weight.dtype, model.config.temperature
    unpadded = known_unpadded(pixel_mask, mask)
    return cells_of(fused, mask, unpadded, dtype=dtype, temperature=temperature, offset=offset)


def cells_of(
    x: Tensor,
    mask: Tensor,
    unpadded: bool,
    *,
    dtype: torch.dtype,
    temperature: float,
    offset: float,
) -> Cells:
    """The cells of a map ``x`` [B, D, h, w] with ``mask`` [B, h, w], all True if ``unpadded``.

    ``dtype``: of the tokens, which autocast may have made otherwise. ``temperature`` and
    ``offset``: as of :func:`sine_position`.
    """
    at_least = torch.promote_types(dtype, torch.float32)  # counts need more than 8 bits
    shared = mask[:1] if unpadded else mask  # alike for all images without padding
    pos = sine_position(shared, x.shape[1], temperature, offset=offset, dtype=at_least)
    tokens = x.flatten(2).transpose(1, 2).to(dtype)
    return Cells(tokens, pos.to(dtype), mask, None if unpadded else mask.flatten(1)[:, None, None])


def selected(
    selection: QuerySelection, memory: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Contents [B, Q, D], boxes' logits [B, Q, 4], and the proposals as an output.

    The first two are detached: proposals learn from their own loss.
    """
    states, logits, boxes = selection(memory, mask)
    proposals = [{"pred_logits": logits, "pred_boxes": boxes.sigmoid()}]
    return states.detach().to(memory.dtype), boxes.detach(), proposals


def class_rows(config: MemoryConfig, selection: str) -> tuple[str, ...]:
    """The state keys with one row a class; ``selection`` is where the proposals' head is."""
    heads = ["", *[selection] * config.query_selection, *["dense."] * bool(config.dense_side)]
    return tuple(f"{head}class_embed.{kind}" for head in heads for kind in ("weight", "bias"))

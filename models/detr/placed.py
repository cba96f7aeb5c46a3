"""What Conditional DETR, SMCA-DETR and SAM-DETR share: queries that know where they are.

Their images become one memory, their queries have a reference (a point or a box), their losses
are focal; they differ in how a decoder layer looks around the reference. The settings that are
none of the papers' are off by default and used by the nano variants, which learn from scratch on
small data in minutes: ``strides`` and ``memory_stride`` (feature levels fused into one memory, as
in a feature pyramid, arXiv 1612.03144), ``query_selection`` (the encoder proposes the references
and the contents, as in RT-DETR, arXiv 2304.08069, section 4.3; the proposals are one more
auxiliary output), and ``dense_side`` (see :mod:`zoo.models.detr.dense`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.models.detr.anchors import QuerySelection
from zoo.models.detr.detector import Detector
from zoo.models.detr.focal import (
    FocalConfig,
    focal_criterion,
    focal_postprocess,
    named_backbone,
)
from zoo.models.layers.backbone import Backbone, NanoBackbone, known_unpadded
from zoo.models.layers.fusion import LevelFusion
from zoo.models.layers.heads import MAX_LOGIT, exact
from zoo.models.layers.position import anchor_sine, sine_position
from zoo.models.layers.transformer import MLP, EncoderLayer, PromptSlot, init_xavier
from zoo.registry import ModelSpec
from zoo.weights import KeyLayout, Weights


@dataclass(frozen=True, kw_only=True)
class PlacedConfig(FocalConfig):
    """Settings that the three models share; the defaults are Conditional DETR's.

    ``strides`` are fused where there are several.
    """

    temperature: float = 10000.0  # of all sines

    # Not the papers': see the module's docstring.
    widths: tuple[int, ...] = ()  # a nano backbone of one's own: channels of its stages, with
    depths: tuple[int, ...] = ()  # the blocks of each
    memory_stride: int = 0  # which of the strides the memory has; 0: the coarsest
    query_selection: bool = False
    proposal_side: float = 0.1  # of a proposal before the box head speaks, in image sides
    dense_side: float = 0.0  # dense supervision of the memory, boxes beginning so large; 0: none


# From scratch in minutes on a CPU; the same for all three, so that they can be compared.
NANO: Mapping[str, Any] = {
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


def placed_backbone(config: PlacedConfig) -> Backbone:
    """The backbone that the config names."""
    if config.widths:
        return NanoBackbone(config.widths, config.depths, out_strides=config.strides or (16,))
    return named_backbone(config)


def map_projection(channels: Sequence[int], dim: int, level: int) -> nn.Module:
    """From a backbone's levels to one map of ``dim`` channels: fused, or a single one projected."""
    if len(channels) > 1:
        return LevelFusion(channels, dim, level)
    return nn.Conv2d(channels[0], dim, 1)


class Cells(NamedTuple):
    """A map's tokens [B, S, D] and positions [B or 1, S, D], its mask [B, h, w].

    ``allowed`` [B, 1, 1, S] is the mask for attention, None where nothing is padded.
    """

    tokens: Tensor
    pos: Tensor
    mask: Tensor
    allowed: Tensor | None


def read_cells(
    levels: Sequence[tuple[Tensor, Tensor]],
    input_proj: nn.Module,
    level: int,
    pixel_mask: Tensor | None,
    *,
    temperature: float,
    offset: float = 0.0,
) -> Cells:
    """The cells of a backbone's levels [(features [B, C, h, w], mask [B, h, w])].

    ``level`` is the one that the memory has; ``offset``: as of :func:`sine_position`.
    """
    mask = levels[level][1]
    features = [f for f, _ in levels]
    fused = input_proj(features if len(features) > 1 else features[0])
    unpadded = known_unpadded(pixel_mask, mask)
    dtype = next(input_proj.parameters()).dtype
    at_least = torch.promote_types(dtype, torch.float32)  # counts need more than 8 bits
    shared = mask[:1] if unpadded else mask  # alike for all images without padding
    pos = sine_position(shared, fused.shape[1], temperature, offset=offset, dtype=at_least)
    tokens = fused.flatten(2).transpose(1, 2).to(dtype)
    return Cells(tokens, pos.to(dtype), mask, None if unpadded else mask.flatten(1)[:, None, None])


class CellEncoder(nn.Module):
    """DETR's encoder: layers of self attention over the cells, without a final norm."""

    def __init__(self, config: PlacedConfig) -> None:
        super().__init__()
        self.prompt = PromptSlot()
        self.layers = nn.ModuleList(
            EncoderLayer(config.dim, config.num_heads, config.ffn_dim, config.dropout)
            for _ in range(config.encoder_layers)
        )
        init_xavier(self.layers)

    def forward(self, cells: Cells) -> Tensor:
        """The memory [B, S, D]."""
        tokens, pos, allowed = self.prompt(cells.tokens, cells.pos, cells.allowed)
        for layer in self.layers:
            tokens = layer(tokens, pos, allowed)
        return self.prompt.strip(tokens)


class Queries(NamedTuple):
    """Contents and position embeddings [B, Q, D] of queries, and what their boxes begin from.

    ``base`` [B, Q, 4] are logits of cxcywh; of a query with a point and no box, the last two are
    0. ``proposals`` has the selected proposals as an output, or nothing.
    """

    content: Tensor
    pos: Tensor
    base: Tensor
    proposals: list[dict[str, Tensor]]


class PlacedQueries(nn.Module):
    """Queries that don't move: learned ones with a point, or proposals of the encoder.

    A learned query is its position embedding; the point is an MLP of it, its content begins at
    zero. A proposal's position embedding is an MLP of the sines of its box.
    """

    def __init__(self, config: PlacedConfig, num_classes: int) -> None:
        super().__init__()
        dim, count = config.dim, config.num_queries
        self.temperature = config.temperature
        self.selection: QuerySelection | None = None
        if config.query_selection:
            self.selection = QuerySelection(dim, num_classes, count, config.proposal_side)
            self.pos_head = MLP(2 * dim, dim, dim, 2)
            init_xavier(self.pos_head)
        else:
            self.embed = nn.Embedding(count, dim)
            self.point_head = MLP(dim, dim, 2, 2)
            init_xavier(self.point_head)

    def forward(self, memory: Tensor, mask: Tensor) -> Queries:
        """For a memory [B, S, D] of cells with a mask [B, h, w]."""
        if self.selection is None:
            pos = self.embed.weight.to(memory.dtype).expand(memory.shape[0], -1, -1)
            points = exact(self.point_head, self.embed.weight).clamp(-MAX_LOGIT, MAX_LOGIT)
            base = torch.cat([points, torch.zeros_like(points)], -1)
            return Queries(torch.zeros_like(pos), pos, base.expand(memory.shape[0], -1, -1), [])
        content, base, proposals = selected(self.selection, memory, mask)
        sines = anchor_sine(base.sigmoid(), memory.shape[-1] // 2, self.temperature)
        return Queries(content, self.pos_head(sines.to(memory.dtype)), base, proposals)


def selected(
    selection: QuerySelection, memory: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Contents [B, Q, D], boxes' logits [B, Q, 4], and the proposals as an output.

    The first two are detached: proposals learn from their own loss.
    """
    states, logits, boxes = selection(memory, mask)
    proposals = [{"pred_logits": logits, "pred_boxes": boxes.sigmoid()}]
    return states.detach().to(memory.dtype), boxes.detach(), proposals


# ---- Variants ---------------------------------------------------------------------------------


def placed_spec(
    build: Any,
    config: PlacedConfig,
    recipe: str,
    *,
    selection: str = "queries.selection.",
    weights: Mapping[str, Weights] | None = None,
    layouts: tuple[KeyLayout, ...] = (),
) -> ModelSpec:
    """A variant of a model with this config; ``selection`` is where its proposals' head is."""
    heads = ["", *[selection] * config.query_selection, *["dense."] * bool(config.dense_side)]
    rows = (f"{head}class_embed.{kind}" for head in heads for kind in ("weight", "bias"))
    return ModelSpec(
        config=config,
        build=build,
        criterion=focal_criterion,
        postprocess=focal_postprocess,
        predictor=Detector,
        recipe=recipe,
        weights=weights or {},
        layouts=layouts,
        class_rows=tuple(rows),
    )

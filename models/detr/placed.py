"""What Conditional DETR, SMCA-DETR and SAM-DETR share: queries that know where they are.

Their images become one memory (:mod:`zoo.models.detr.memory`), their queries have a reference (a
point or a box), their losses are focal; they differ in how a decoder layer looks around the
reference. The settings that are none of the papers' are off by default and used by the nano
variants: those of the memory, and ``proposal_side``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.models.detr.anchors import QuerySelection
from zoo.models.detr.detector import Detector
from zoo.models.detr.focal import focal_criterion, focal_postprocess
from zoo.models.detr.memory import Cells, MemoryConfig, class_rows, selected
from zoo.models.layers.heads import MAX_LOGIT, exact
from zoo.models.layers.position import anchor_sine
from zoo.models.layers.transformer import MLP, EncoderLayer, PromptSlot, init_xavier
from zoo.registry import ModelSpec
from zoo.weights import KeyLayout, Weights


@dataclass(frozen=True, kw_only=True)
class PlacedConfig(MemoryConfig):
    """Settings that the three models share; the defaults are Conditional DETR's."""

    proposal_side: float = 0.1  # of a proposal before the box head speaks, in image sides


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
    return ModelSpec(
        config=config,
        build=build,
        criterion=focal_criterion,
        postprocess=focal_postprocess,
        predictor=Detector,
        recipe=recipe,
        weights=weights or {},
        layouts=layouts,
        class_rows=class_rows(config, selection),
    )

"""Deformable DETR's transformer (Zhu et al., ICLR 2021, arXiv 2010.04159); also DINO's.

The encoder mixes all feature levels by deformable attention (section 4.1); the decoder attends to
them around references, points or boxes, that its layers may move (appendix A.4). There is no
prompt slot: what is attended to is a place on a map, and a prompt has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.models.layers.conditional import autocast_once
from zoo.models.layers.deformable import DeformableAttention, Shapes
from zoo.models.layers.heads import MAX_LOGIT, box_head, class_head, exact
from zoo.models.layers.levels import FlatLevels, whole_centres
from zoo.models.layers.transformer import Attention, activation, init_xavier

# Of a layer's references [B, Q, 2 or 4], its incoming contents [B, Q, D] and its number.
PlaceEmbedding = Callable[[Tensor, Tensor, int], Tensor]


class DeformableEncoderLayer(nn.Module):
    """Deformable attention of the levels to themselves and a feed-forward block, norms after.

    ``dropout`` acts inside the feed-forward block and on both blocks' results.
    """

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, dropout: float, levels: int, points: int
    ) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, num_heads, levels, points)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.activation = activation("relu")
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None,
        references: Tensor,
        shapes: Shapes,
        mask: Tensor | None,
    ) -> Tensor:
        """[B, S, D]; the arguments are :class:`DeformableAttention`'s, ``pos`` that of ``x``."""
        placed = x if pos is None else x + pos
        mixed = self.self_attn(placed, references, x, shapes, mask)
        x = self.norm1(x + self.dropout(mixed))
        mixed = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return self.norm2(x + self.dropout(mixed))


class DeformableEncoder(nn.Module):
    """Layers in which every cell of every level looks at points around it in all levels."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        *,
        num_layers: int,
        num_levels: int,
        num_points: int = 4,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(dim, num_heads, ffn_dim, dropout, num_levels, num_points)
            for _ in range(num_layers)
        )
        init_deformable(self)

    def forward(self, levels: FlatLevels) -> Tensor:
        """The memory [B, S, D]."""
        x, references = levels.tokens, levels.scaled(levels.centres)
        for layer in self.layers:
            x = layer(x, levels.pos, references, levels.shapes, levels.mask)
        return x


class DeformableDecoderLayer(nn.Module):
    """Self attention, deformable attention to the memory and a feed-forward block, norms after.

    ``points`` and ``discrete``: as of :class:`DeformableAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        levels: int,
        points: int | Sequence[int],
        *,
        discrete: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self.cross_attn = DeformableAttention(dim, num_heads, levels, points, discrete=discrete)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.activation = activation("relu")
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        query_pos: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Shapes,
        *,
        memory_mask: Tensor | None = None,
        self_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, Q, D] from contents ``x`` and their ``query_pos``, both [B, Q, D].

        ``references``, ``memory``, ``shapes`` and ``memory_mask``: as in
        :class:`DeformableAttention`; ``self_mask``: as in
        :func:`zoo.models.layers.transformer.attend`.
        """
        placed = x + query_pos
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x, self_mask)))
        mixed = self.cross_attn(x + query_pos, references, memory, shapes, memory_mask)
        x = self.norm2(x + self.dropout(mixed))
        mixed = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return self.norm3(x + self.dropout(mixed))


class DeformableDecoder(nn.Module):
    """Layers that attend around references.

    ``norm`` puts a LayerNorm behind every layer's state for the heads (DINO); it is not fed back.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        *,
        num_layers: int,
        num_levels: int,
        num_points: int = 4,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(dim, num_heads, ffn_dim, dropout, num_levels, num_points)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim) if norm else None
        init_deformable(self)

    def forward(
        self,
        x: Tensor,
        anchors: Tensor,
        memory: Tensor,
        levels: FlatLevels,
        *,
        query_pos: Tensor | PlaceEmbedding,
        box_heads: Sequence[nn.Module],
        refine: bool,
        look_forward_twice: bool = False,
        self_mask: Tensor | None = None,
        every: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """States [N, B, Q, D] and boxes [N, B, Q, 4] of every layer, or of the last [1, ..].

        See :func:`decode`; ``anchors`` are logits of points [B, Q, 2] or boxes [B, Q, 4].
        """
        return decode(
            list(self.layers),
            x,
            anchors,
            memory,
            levels,
            query_pos=query_pos,
            box_heads=box_heads,
            norm=self.norm,
            refine=refine,
            look_forward_twice=look_forward_twice,
            self_mask=self_mask,
            every=every,
        )


def decode(
    layers: Sequence[nn.Module],
    x: Tensor,
    anchors: Tensor,
    memory: Tensor,
    levels: FlatLevels,
    *,
    query_pos: Tensor | PlaceEmbedding,
    box_heads: Sequence[nn.Module],
    norm: nn.Module | None = None,
    refine: bool = True,
    look_forward_twice: bool = False,
    padded_pos: bool = True,
    self_mask: Tensor | None = None,
    every: bool = False,
) -> tuple[Tensor, Tensor]:
    """States [N, B, Q, D] and boxes [N, B, Q, 4] of all decoder layers, or of the last [1, ..].

    ``x`` [B, Q, D] are the contents and ``anchors`` the logits of the first references, points
    [B, Q, 2] or boxes [B, Q, 4] of the unpadded image; ``memory`` [B, S, D] of ``levels``.
    ``query_pos`` is [B, Q, D], or makes that of a layer's references [B, Q, 2 or 4] (0..1 of the
    finest padded map, or without ``padded_pos`` of the image), its contents and its number.
    ``box_heads`` has one head a layer, or one for all; a layer's box is its references' plus the
    head's of its state. With ``refine`` that box, detached, is the next layer's reference; with
    ``look_forward_twice`` (DINO, arXiv 2203.03605, section 4.3) the next layer's box is added to
    it undetached. States are normed; where there is a norm, the reference moves by the head over
    the state before it, as in DINO's release.
    """
    memory = autocast_once(memory)  # once, not in every layer's projection
    heads = list(box_heads) if len(box_heads) > 1 else [box_heads[0]] * len(layers)
    states, boxes = [], []
    base, last = anchors, len(layers) - 1
    for n, (layer, head) in enumerate(zip(layers, heads, strict=True)):
        places = anchors.sigmoid()
        references = levels.scaled(places)
        pos = query_pos
        if not isinstance(pos, Tensor):
            pos = pos(references[:, :, 0] if padded_pos else places, x, n)
        x = layer(
            x,
            pos,
            references,
            memory,
            levels.shapes,
            memory_mask=levels.mask,
            self_mask=self_mask,
        )
        wanted, moves = every or n == last, refine and n < last
        if wanted:
            state = x if norm is None else norm(x)
            states.append(state)
            step = exact(head, state)
            boxes.append(_moved(base, step).sigmoid())
        if moves:
            if norm is not None or not wanted:
                step = exact(head, x)
            moved = _moved(anchors, step).clamp(-MAX_LOGIT, MAX_LOGIT)
            anchors = moved.detach()
            base = moved if look_forward_twice else anchors
    return torch.stack(states), torch.stack(boxes)


class Proposals(NamedTuple):
    """What every cell proposes: states [B, S, D], class logits [B, S, K], boxes' logits [B, S, 4].

    The boxes of cells in the padding or at the very edge are infinite: at the image's far corner.
    """

    states: Tensor
    logits: Tensor
    boxes: Tensor

    def outputs(self) -> dict[str, Tensor]:
        """For the criterion."""
        return {"pred_logits": self.logits, "pred_boxes": self.boxes.sigmoid()}


class CellHeads(nn.Module):
    """What is asked of every cell of a memory that may propose a box."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        init_xavier(self.proj)
        self.class_embed = class_head(dim, num_classes)
        self.bbox_embed = box_head(dim)

    def scored(self, memory: Tensor, levels: FlatLevels) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, S, D], class logits [B, S, K], and the logits [B or 1, S, 4] boxes begin at.

        ``memory`` [B, S, D] is that of ``levels``.
        """
        starts, void = initial_proposals(levels)
        states = self.norm(self.proj(memory.masked_fill(void[..., None], 0.0)))
        return states, exact(self.class_embed, states), starts


class ProposalHead(CellHeads):
    """Every cell of a memory proposes a box (two stages, appendix A.4 of the paper).

    A box begins at the cell's middle, with a side of 0.05 of the image on the finest level and
    twice the side on every next one.
    """

    def forward(self, memory: Tensor, levels: FlatLevels) -> Proposals:
        """From the ``memory`` [B, S, D] of ``levels``."""
        states, logits, starts = self.scored(memory, levels)
        return Proposals(states, logits, starts + exact(self.bbox_embed, states))


def initial_proposals(levels: FlatLevels, side: float = 0.05) -> tuple[Tensor, Tensor]:
    """Logits [B or 1, S, 4] of a square at every cell, and which cells [B or 1, S] have none.

    A cell has none where it is padding or a coordinate is not within 0.01..0.99; its logits are
    infinite. Pictures of one shape without padding share them; those of the last shapes are kept.
    """
    if levels.mask is not None:
        return _squares(levels.centres, levels.shapes, levels.mask, side)
    make = _whole_squares.__wrapped__ if torch.compiler.is_compiling() else _whole_squares
    return make(tuple(levels.shapes), side, levels.centres.device, levels.centres.dtype)


@lru_cache(maxsize=32)
def _whole_squares(
    shapes: tuple[tuple[int, int], ...], side: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    # Not tensors of inference mode: training could not use them later.
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        return _squares(whole_centres(shapes, device, dtype), shapes, None, side)


def _squares(
    centres: Tensor, shapes: Shapes, mask: Tensor | None, side: float
) -> tuple[Tensor, Tensor]:
    parts = centres.split([h * w for h, w in shapes], 1)
    sides = [torch.full_like(part, side * 2.0**n) for n, part in enumerate(parts)]
    boxes = torch.cat([centres, torch.cat(sides, 1)], -1)
    void = ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if mask is not None:
        void = void | ~mask
    # The logit of 0.5 first: that of a coordinate beyond 1 would be NaN.
    logits = boxes.masked_fill(void[..., None], 0.5).logit()
    return logits.masked_fill(void[..., None], torch.inf), void


@torch.no_grad()
def init_deformable(module: nn.Module) -> None:
    """The release's initialisation: Xavier, and each deformable attention's own start."""
    init_xavier(module)
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.reset_parameters()


def _moved(anchors: Tensor, step: Tensor) -> Tensor:
    """Logits [B, Q, 4] of boxes: ``step`` [B, Q, 4] from ``anchors`` [B, Q, 2 or 4].

    Of a point only the centre is known.
    """
    if anchors.shape[-1] == 4:
        return anchors + step
    return torch.cat([anchors + step[..., :2], step[..., 2:]], -1)

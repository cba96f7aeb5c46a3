"""Deformable DETR's transformer (Zhu et al., ICLR 2021, arXiv 2010.04159); also DINO's.

The encoder mixes all feature levels by deformable attention (section 4.1); the decoder attends to
them around references, points or boxes, that its layers may move (appendix A.4). There is no
prompt slot: what is attended to is a place on a map, and a prompt has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.models.detr.anchors import MAX_LOGIT, box_head, class_head, exact
from zoo.models.layers.conditional import autocast_once
from zoo.models.layers.deformable import DeformableAttention, Shapes
from zoo.models.layers.levels import FlatLevels
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
        self, x: Tensor, pos: Tensor, references: Tensor, shapes: Shapes, mask: Tensor | None
    ) -> Tensor:
        """[B, S, D]; the arguments are :class:`DeformableAttention`'s, ``pos`` that of ``x``."""
        mixed = self.self_attn(x + pos, references, x, shapes, mask)
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
    """Self attention, deformable attention to the memory and a feed-forward block, norms after."""

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, dropout: float, levels: int, points: int
    ) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, dropout)
        self.cross_attn = DeformableAttention(dim, num_heads, levels, points)
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
        self.norm: nn.Module = nn.LayerNorm(dim) if norm else nn.Identity()
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

        ``x`` [B, Q, D] are the contents and ``anchors`` the logits of the first references, points
        [B, Q, 2] or boxes [B, Q, 4] of the unpadded image; ``memory`` [B, S, D] of ``levels``.
        ``query_pos`` is [B, Q, D], or makes that of a layer's references [B, Q, 2 or 4] (0..1 of
        the finest padded map), its contents and its number. ``box_heads`` has one head a layer, or
        one for all; a layer's box is its references' plus the head's of its state. With ``refine``
        that box, detached, is the next layer's reference; with ``look_forward_twice`` (DINO, arXiv
        2203.03605, section 4.3) the next layer's box is added to it undetached. States are normed;
        where there is a norm, the reference moves by the head over the state before it, as in
        DINO's release.
        """
        memory = autocast_once(memory)  # once, not in every layer's projection
        heads = list(box_heads) if len(box_heads) > 1 else [box_heads[0]] * len(self.layers)
        states, boxes = [], []
        base, last = anchors, len(self.layers) - 1
        for n, (layer, head) in enumerate(zip(self.layers, heads, strict=True)):
            references = levels.scaled(anchors.sigmoid())
            pos = query_pos
            if not isinstance(pos, Tensor):
                pos = pos(references[:, :, 0], x, n)
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
                state = self.norm(x)
                states.append(state)
                step = exact(head, state)
                boxes.append(_moved(base, step).sigmoid())
            if moves:
                if not wanted or not isinstance(self.norm, nn.Identity):
                    step = exact(head, x)
                moved = _moved(anchors, step).clamp(-MAX_LOGIT, MAX_LOGIT)
                anchors = moved.detach()
                base = moved if look_forward_twice else anchors
        return torch.stack(states), torch.stack(boxes)


class Proposals(NamedTuple):
    """What every cell proposes: states [B, S, D], class logits [B, S, K], boxes' logits [B, S, 4].

    The boxes of ``void`` cells [B, S], in the padding or at the very edge, are infinite: at the
    image's far corner.
    """

    states: Tensor
    logits: Tensor
    boxes: Tensor
    void: Tensor

    def best(self, count: int, scores: Tensor) -> Tensor:
        """Numbers [B, Q] of the ``count`` cells of the best ``scores`` [B, S], or of all S."""
        return scores.topk(min(count, scores.shape[1]), dim=1).indices

    def outputs(self) -> dict[str, Tensor]:
        """For the criterion."""
        return {"pred_logits": self.logits, "pred_boxes": self.boxes.sigmoid()}


class ProposalHead(nn.Module):
    """Every cell of a memory proposes a box (two stages, appendix A.4 of the paper).

    A box begins at the cell's middle, with a side of 0.05 of the image on the finest level and
    twice the side on every next one.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        init_xavier(self.proj)
        self.class_embed = class_head(dim, num_classes)
        self.bbox_embed = box_head(dim)

    def forward(self, memory: Tensor, levels: FlatLevels) -> Proposals:
        """From the ``memory`` [B, S, D] of ``levels``."""
        starts, void = initial_proposals(levels)
        states = self.norm(self.proj(memory.masked_fill(void[..., None], 0.0)))
        boxes = starts + exact(self.bbox_embed, states)
        return Proposals(states, exact(self.class_embed, states), boxes, void)


def initial_proposals(levels: FlatLevels, side: float = 0.05) -> tuple[Tensor, Tensor]:
    """Logits [B or 1, S, 4] of a square at every cell, and which cells [B or 1, S] have none.

    A cell has none where it is padding or a coordinate is not within 0.01..0.99; its logits are
    infinite.
    """
    parts = levels.centres.split([h * w for h, w in levels.shapes], 1)
    sides = [torch.full_like(part, side * 2.0**n) for n, part in enumerate(parts)]
    boxes = torch.cat([levels.centres, torch.cat(sides, 1)], -1)
    void = ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if levels.mask is not None:
        void = void | ~levels.mask
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

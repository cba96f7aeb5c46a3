"""Conditional attention: what a query looks for and where it looks, compared apart.

From Conditional DETR (Meng et al., ICCV 2021, arXiv 2108.06152, section 3.3); DAB-DETR and its
successors use the same layer.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from zoo.models.layers.transformer import (
    MLP,
    EncoderLayer,
    PromptSlot,
    attend,
    attention_weights,
    init_xavier,
)
from zoo.models.layers.transformer import activation as _activation


class ProjectedAttention(nn.Module):
    """Attention over queries, keys and values that were projected by the caller.

    ``query`` [B, L, E], ``key`` [B, S, E] and ``value`` [B, S, D], each split into heads of
    contiguous channels; E may differ from D. ``mask`` is boolean, True where a query may look, or
    a float bias.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.o_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.o_proj.bias)  # as nn.MultiheadAttention's

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[B, L, D]."""
        mixed = attend(
            query,
            key,
            value,
            num_heads=self.num_heads,
            mask=mask,
            dropout=self.dropout,
            training=self.training,
        )
        return self.o_proj(mixed)

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention itself, [B, A, L, S]; for pictures."""
        return attention_weights(query, key, num_heads=self.num_heads, mask=mask)


class ScaledEncoder(nn.Module):
    """DETR's encoder with positions that are scaled, before every layer, by an MLP of the content.

    DAB-DETR's (arXiv 2201.12329), as released. ``at_one``: see :func:`scale_head`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        activation: str,
        *,
        num_layers: int,
        at_one: bool = False,
    ) -> None:
        super().__init__()
        self.prompt = PromptSlot()
        self.query_scale = scale_head(dim, num_layers > 0, at_one)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, ffn_dim, dropout, activation) for _ in range(num_layers)
        )
        init_xavier(self.layers)

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor | None) -> Tensor:
        """[B, S, D] from tokens [B, S, D] and ``pos`` [B or 1, S, D]; ``mask`` [B, 1, 1, S]."""
        tokens, places, allowed = self.prompt(x, pos, mask)
        for layer in self.layers:
            tokens = layer(tokens, places * self.query_scale(tokens), allowed)
        return self.prompt.strip(tokens)


class ConditionalDecoderLayer(nn.Module):
    """A decoder layer with projections for contents and for places.

    Self attention adds the two; cross attention puts them side by side within every head, so that
    scores are sums of a content's and a place's. The ``first`` layer adds the position there too,
    as its contents know nothing yet.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.0,
        activation: str = "relu",
        first: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sa_qcontent_proj = nn.Linear(dim, dim)
        self.sa_qpos_proj = nn.Linear(dim, dim)
        self.sa_kcontent_proj = nn.Linear(dim, dim)
        self.sa_kpos_proj = nn.Linear(dim, dim)
        self.sa_v_proj = nn.Linear(dim, dim)
        self.self_attn = ProjectedAttention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.ca_qcontent_proj = nn.Linear(dim, dim)
        self.ca_qpos_proj = nn.Linear(dim, dim) if first else None
        self.ca_kcontent_proj = nn.Linear(dim, dim)
        self.ca_kpos_proj = nn.Linear(dim, dim)
        self.ca_v_proj = nn.Linear(dim, dim)
        self.ca_qpos_sine_proj = nn.Linear(dim, dim)
        self.cross_attn = ProjectedAttention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.activation = _activation(activation)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        query_pos: Tensor,
        query_sine: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None,
        self_mask: Tensor | None,
    ) -> Tensor:
        """[B, Q, D] from ``x``, ``query_pos`` and ``query_sine`` [B, Q, D].

        ``memory`` [B, S, D]; ``memory_pos`` [B, S, D], or [1, S, D] where all images share it.
        """
        mixed = self.self_attn(
            self.sa_qcontent_proj(x) + self.sa_qpos_proj(query_pos),
            self.sa_kcontent_proj(x) + self.sa_kpos_proj(query_pos),
            self.sa_v_proj(x),
            self_mask,
        )
        x = self.norm1(x + self.dropout(mixed))

        query, query_place = self.ca_qcontent_proj(x), self.ca_qpos_sine_proj(query_sine)
        key, key_place = self.ca_kcontent_proj(memory), self.ca_kpos_proj(memory_pos)
        if self.ca_qpos_proj is not None:
            query, key = query + self.ca_qpos_proj(query_pos), key + key_place
        mixed = self.cross_attn(
            self._join(query, query_place),
            self._join(key, key_place),
            self.ca_v_proj(memory),
            memory_mask,
        )
        x = self.norm2(x + self.dropout(mixed))
        mixed = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return self.norm3(x + self.dropout(mixed))

    @torch.no_grad()
    def align_places(self, gain: float = 1.0) -> None:
        """Start with attention to where the query is.

        With one projection W for both, the score of two places is the product of their sines
        under W'W, which is near the identity for random weights: it falls with their distance.
        The sines have to be of one temperature. ``gain`` multiplies the scores, and narrows the
        window that attention begins with.
        """
        self.ca_qpos_sine_proj.weight.copy_(self.ca_kpos_proj.weight * gain)
        nn.init.zeros_(self.ca_qpos_sine_proj.bias)
        nn.init.zeros_(self.ca_kpos_proj.bias)

    def _join(self, content: Tensor, place: Tensor) -> Tensor:
        """Both [B, L, D] side by side within each head, [B, L, 2 D]."""
        heads = (self.num_heads, -1)
        place = place.expand_as(content)
        return torch.cat([content.unflatten(-1, heads), place.unflatten(-1, heads)], -1).flatten(2)


def autocast_once(x: Tensor) -> Tensor:
    """``x`` as autocast, where it is on, would make it for every matrix product."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def scale_head(dim: int, needed: bool, at_one: bool) -> nn.Module:
    """The MLP from a content to what its positions are multiplied by; the identity if not needed.

    ``at_one``: positions begin as they are, not multiplied by a random function of the content.
    """
    if not needed:
        return nn.Identity()  # no parameters that would never get a gradient
    head = MLP(dim, dim, dim, 2)
    init_xavier(head)
    if at_one:
        last = cast(nn.Linear, head.layers[-1])
        nn.init.zeros_(last.weight)
        nn.init.ones_(last.bias)
    return head

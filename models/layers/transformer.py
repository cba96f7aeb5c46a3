"""Attention, feed-forward and the two transformer layers that the whole zoo is built from.

One :class:`EncoderLayer` is BERT's and LayoutLM's; with ``pos`` added to queries and keys it is
DETR's; with ``norm_first=True`` it is ViT's. Attention is four plain ``nn.Linear`` around
``scaled_dot_product_attention``, so that adapters such as LoRA find the projections and no path
materialises weights that nobody reads.

All masks are True where a query may look. A row without a single such key is the caller's error:
a softmax over nothing is NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    # In place: its input is always the fresh result of a linear layer, and half the memory.
    "relu": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "prelu": nn.PReLU,
}


def activation(name: str) -> nn.Module:
    """The activation module of that name (``prelu`` has one learned parameter).

    Raises ``ValueError`` for an unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"there is no activation '{name}'; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


_activation = activation  # the layers' parameter of that name hides the function


@dataclass(frozen=True)
class PackedRows:
    """Rows of different lengths behind each other, [B, sum of lengths, D], without padding.

    In place of a mask: each row attends to itself only. ``biases`` has, for every row, a mask or
    bias broadcastable to [B, A, length, length], or None.
    """

    lengths: list[int]
    biases: Sequence[Tensor | None]


Mask = Tensor | PackedRows | None
SMALL_SCORES = 2**24  # of an image: up to 32 MB in bfloat16 the allocator reuses their memory


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    mask: Mask = None,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """Multi-head attention of projected tokens, [B, L, Dv].

    ``q`` [B, L, Dq], ``k`` [B, S, Dq] and ``v`` [B, S, Dv] are split into ``num_heads`` heads of
    contiguous channels (Dq may differ from Dv). ``mask`` is broadcastable to [B, A, L, S]: boolean,
    True where a query may look, or a float bias that is added to the scores; or the rows that the
    tokens are packed of. ``dropout`` acts on the attention weights, in training only.
    """
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    dropout = dropout if training else 0.0
    if isinstance(mask, PackedRows):
        q_rows, k_rows, v_rows = (t.split(mask.lengths, 2) for t in (q, k, v))
        parts = zip(q_rows, k_rows, v_rows, mask.biases, strict=True)
        mixed = torch.cat([_mixed(*part, dropout) for part in parts], 2)
    else:
        mixed = _mixed(q, k, v, mask, dropout)
    return mixed.transpose(1, 2).flatten(2)


def _mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k' / sqrt(d) + mask) v, [B, A, L, d], by what is fastest."""
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    if _is_slow_fused(q, k, v, mask):
        return _explicit(q, k, v, mask, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _is_slow_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether torch's fused attention would lose to the formula written out.

    In bfloat16 on CPUs it does (measured in docs/log.md): forward it takes 1.2 to 1.7 times as
    long as the formula, as long as the scores stay in the caches; backward two to four times; and
    with values of another width than keys it has no fused form there.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    if (torch.is_grad_enabled() and q.requires_grad) or q.shape[-1] != v.shape[-1]:
        return True
    return q.shape[1] * q.shape[2] * k.shape[2] <= SMALL_SCORES


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k' / sqrt(d)) v, [B, A, L, d]; image by image where all scores are too many."""
    one = q.shape[1] * q.shape[2] * k.shape[2] * q.element_size() // 2
    count = max(1, SMALL_SCORES // max(one, 1))
    if len(q) > count:
        masks: Sequence[Tensor | None] = [None] * len(q)
        if mask is not None:
            masks = mask.split(count) if len(mask) > 1 else [mask] * len(q)
        parts = zip(q.split(count), k.split(count), v.split(count), masks, strict=False)
        return torch.cat([_explicit(*part, dropout) for part in parts])
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        # In place: the scores are fresh, and no gradient needs them without the mask.
        is_bias = mask.is_floating_point()
        scores = scores.add_(mask) if is_bias else scores.masked_fill_(~mask, -math.inf)
    weights = scores.softmax(-1).to(v.dtype)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


def attention_weights(q: Tensor, k: Tensor, *, num_heads: int, mask: Tensor | None) -> Tensor:
    """The weights that :func:`attend` uses and never forms, [B, A, L, S] in float32 or better."""
    q, k = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k))
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    scores = scores / math.sqrt(q.shape[-1])
    if mask is not None:
        is_bias = mask.is_floating_point()
        scores = scores + mask if is_bias else scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., arXiv 1706.03762, section 3.2.2).

    ``dropout`` acts on the attention weights.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"a dim of {dim} can't be split into {num_heads} heads")
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask = None) -> Tensor:
        """[B, L, D] from ``query`` [B, L, D], ``key`` and ``value`` [B, S, D].

        ``mask``: as in :func:`attend`.
        """
        mixed = attend(
            self.q_proj(query),
            self.k_proj(key),
            self.v_proj(value),
            num_heads=self.num_heads,
            mask=mask,
            dropout=self.dropout,
            training=self.training,
        )
        return self.o_proj(mixed)

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention itself, [B, A, L, S], rows summing to 1; for pictures."""
        q, k = self.q_proj(query), self.k_proj(key)
        return attention_weights(q, k, num_heads=self.num_heads, mask=mask)


class MLP(nn.Module):
    """``num_layers`` linear layers with ReLU between them; DETR's box head.

    ``in_dim`` -> ``hidden`` -> ... -> ``out_dim``, over the last dimension.
    """

    def __init__(self, in_dim: int, hidden: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """[..., out_dim] from [..., in_dim]."""
        *inner, last = self.layers
        for layer in inner:
            x = F.relu(layer(x), inplace=True)
        return last(x)


class EncoderLayer(nn.Module):
    """Self attention and a feed-forward block, each with a residual and a LayerNorm.

    ``norm_first`` puts the norms before the blocks (ViT) instead of after the sums (BERT, DETR).
    ``dropout`` acts on the attention weights, inside the feed-forward block and on both blocks'
    results, as in DETR's release.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        activation: str = "relu",
        norm_first: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = Attention(dim, num_heads, dropout)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.activation = _activation(activation)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, pos: Tensor | None = None, mask: Mask = None) -> Tensor:
        """[B, L, D] from tokens ``x`` [B, L, D].

        ``pos`` [B, L, D] is added to queries and keys, not to values. ``mask``: as in
        :func:`attend`, for a padded batch [B, 1, 1, L].
        """
        if self.norm_first:
            x = x + self._attention(self.norm1(x), pos, mask)
            return x + self._ffn(self.norm2(x))
        x = self.norm1(x + self._attention(x, pos, mask))
        return self.norm2(x + self._ffn(x))

    def _attention(self, x: Tensor, pos: Tensor | None, mask: Mask) -> Tensor:
        placed = x if pos is None else x + pos
        return self.dropout(self.self_attn(placed, placed, x, mask))

    def _ffn(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class DecoderLayer(nn.Module):
    """Self attention, attention to a memory and a feed-forward block; see :class:`EncoderLayer`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.1,
        activation: str = "relu",
        norm_first: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = Attention(dim, num_heads, dropout)
        self.cross_attn = Attention(dim, num_heads, dropout)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.activation = _activation(activation)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        query_pos: Tensor | None = None,
        memory_pos: Tensor | None = None,
        memory_mask: Tensor | None = None,
        self_mask: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """[B, Q, D] from queries ``x`` [B, Q, D] and ``memory`` [B, S, D].

        ``query_pos`` [B, Q, D] is added to the queries and keys of the self attention and to the
        queries of the cross attention; ``memory_pos`` [B, S, D] to its keys. ``memory_mask``
        [B, 1, 1, S] and ``self_mask`` [.., Q, Q]: as in :func:`attend`. ``keys`` is
        memory + memory_pos from a caller that adds the two once for all its layers.
        """
        if keys is None:
            keys = memory if memory_pos is None else memory + memory_pos
        if self.norm_first:
            x = x + self._self_attention(self.norm1(x), query_pos, self_mask)
            x = x + self._cross_attention(self.norm2(x), keys, memory, query_pos, memory_mask)
            return x + self._ffn(self.norm3(x))
        x = self.norm1(x + self._self_attention(x, query_pos, self_mask))
        x = self.norm2(x + self._cross_attention(x, keys, memory, query_pos, memory_mask))
        return self.norm3(x + self._ffn(x))

    def _self_attention(self, x: Tensor, pos: Tensor | None, mask: Tensor | None) -> Tensor:
        placed = x if pos is None else x + pos
        return self.dropout(self.self_attn(placed, placed, x, mask))

    def _cross_attention(
        self, x: Tensor, keys: Tensor, values: Tensor, pos: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        query = x if pos is None else x + pos
        return self.dropout(self.cross_attn(query, keys, values, mask))

    def _ffn(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class PromptSlot(nn.Module):
    """The place where prompts can join an encoder's tokens; by itself it changes nothing.

    Every encoder passes what it is about to encode through its slot, and its result through
    :meth:`strip`. To add learned prompts (prefixes, visual prompt tuning), replace the slot by a
    module with the same two methods that prepends tokens, positions and mask, and takes the
    tokens away again.
    """

    def forward(
        self, x: Tensor, pos: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens [B, L, D], their positions and their mask, as the first layer gets them."""
        return x, pos, mask

    def strip(self, x: Tensor) -> Tensor:
        """The encoded tokens [B, L, D] without what was added."""
        return x


@torch.no_grad()
def init_xavier(module: nn.Module) -> None:
    """DETR's initialisation of a transformer, in place: Xavier-uniform for every matrix.

    The release keeps an attention's query, key and value projections in one [3 D, D] matrix, so
    the bound there is sqrt(6 / (D + 3 D)) and not the sqrt(6 / (2 D)) of three single ones
    (facebookresearch/detr, models/transformer.py). Its projections' biases are zero, as are the
    attention's output's; all other biases stay at torch's default.
    """
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    for attention in module.modules():
        if isinstance(attention, Attention):
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                init_fused(linear, parts=3)
            nn.init.zeros_(attention.o_proj.bias)


@torch.no_grad()
def init_fused(linear: nn.Linear, parts: int) -> None:
    """Xavier-uniform as if ``linear`` were one of ``parts`` equal parts of a fused projection.

    The bias becomes zero, as ``nn.MultiheadAttention`` has it.
    """
    fan_out, fan_in = linear.weight.shape
    bound = math.sqrt(6.0 / (fan_in + parts * fan_out))
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)

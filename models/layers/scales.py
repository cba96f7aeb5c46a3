"""Several scales of features beside each other, each a map of its own.

From SMCA-DETR (Gao et al., ICCV 2021, arXiv 2101.07448, section 3.3), which reads a backbone's
maps without a feature pyramid: most layers of its encoder mix the cells of one scale only, a few
mix all of them, and a query of its decoder weighs what it sees at every scale.

Nothing here looks into the padding: given the same features, an image gets the same numbers alone
as in a padded batch. (The projections of :mod:`zoo.models.layers.levels` have group norms, which
count the padding.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.layers.backbone import Level
from zoo.models.layers.transformer import (
    Attention,
    EncoderLayer,
    PackedRows,
    PromptSlot,
    attend,
    init_xavier,
)


class ScaleMaps(nn.Module):
    """``num_levels`` maps of ``dim`` channels from a backbone's levels of ``channels``.

    Each level has a 1x1 convolution; scales beyond the backbone's come from strided 3x3
    convolutions, each of the scale before it.
    """

    def __init__(self, channels: Sequence[int], dim: int, num_levels: int) -> None:
        super().__init__()
        if num_levels < len(channels):
            raise ZooError(
                f"the backbone gives {len(channels)} levels, more than the {num_levels} scales of "
                "the model; raise model.num_levels or name fewer model.strides"
            )
        self.projections = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in channels)
        more = num_levels - len(channels)
        self.down = nn.ModuleList(nn.Conv2d(dim, dim, 3, 2, 1) for _ in range(more))

    def forward(self, levels: Sequence[Level]) -> list[Level]:
        """(map [B, dim, h, w], mask [B, h, w]) of every scale, fine to coarse.

        ``levels`` are the backbone's (features [B, C, h, w], mask [B, h, w]), fine to coarse.
        """
        scales = [(p(x), mask) for p, (x, mask) in zip(self.projections, levels, strict=True)]
        x, mask = scales[-1]
        for conv in self.down:
            # The padding has to look like what is beyond the map. Cell i of the result is around
            # cell 2 i, and valid where that is.
            x, mask = conv(x * mask[:, None]), mask[:, ::2, ::2]
            scales.append((x, mask))
        return scales


class ScaleEncoder(nn.Module):
    """DETR's encoder layers over the cells of several scales (section 3.3).

    Of the ``num_layers``, the ``together`` in the middle attend over all scales at once
    (multi-scale self attention), and those before and after over each scale alone (intra-scale
    self attention). A layer's weights are the same for all scales.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        *,
        num_layers: int,
        together: int,
    ) -> None:
        super().__init__()
        if not 0 <= together <= num_layers:
            raise ZooError(
                f"model.multi_scale_layers is {together}; set 0 to {num_layers}, as many as the "
                "encoder's layers (model.encoder_layers) at most"
            )
        first = (num_layers - together) // 2
        self.together = range(first, first + together)  # counted from 0
        self.prompt = PromptSlot()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads, ffn_dim, dropout) for _ in range(num_layers)
        )
        init_xavier(self.layers)

    def forward(self, scales: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> list[Tensor]:
        """The memory [B, S, D] of every scale, from (tokens, positions, mask) of each.

        ``tokens`` [B, S, D], ``positions`` [B or 1, S, D]; ``mask`` [B, 1, 1, S] is True where
        valid, and None for all scales where nothing is padded.
        """
        slotted = [self.prompt(*scale) for scale in scales]
        tokens = torch.cat([x for x, _, _ in slotted], 1)
        pos = torch.cat([cast(Tensor, p) for _, p, _ in slotted], 1)
        masks = [mask for _, _, mask in slotted]
        lengths = [x.shape[1] for x, _, _ in slotted]
        everywhere = None if masks[0] is None else torch.cat(cast(list[Tensor], masks), -1)
        apart = PackedRows(lengths, masks)
        for n, layer in enumerate(self.layers):
            tokens = layer(tokens, pos, everywhere if n in self.together else apart)
        return [self.prompt.strip(x) for x in tokens.split(lengths, 1)]


def attend_scales(
    attention: Attention,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    biases: Sequence[Tensor],
    shares: Tensor,
) -> Tensor:
    """Attention to every scale alone, and the sum of the results times ``shares``: [B, Q, D].

    ``query`` [B, Q, D]; ``keys`` and ``values`` [B, S, D] of the L scales behind each other;
    ``biases``, one of each scale, [B, A, Q, cells of it], are added to the scores; ``shares``
    [B, Q, L] are a query's weights of the scales. The projections are those of ``attention``, alike
    for all scales; its dropout acts on each scale's attention weights.
    """
    lengths = [bias.shape[-1] for bias in biases]
    q = attention.q_proj(query)
    k = attention.k_proj(keys).split(lengths, 1)
    v = attention.v_proj(values).split(lengths, 1)
    weights = shares.to(q.dtype)[..., None].unbind(-2)  # L of [B, Q, 1]
    parts = [
        weight
        * attend(
            q,
            key,
            value,
            num_heads=attention.num_heads,
            mask=bias,
            dropout=attention.dropout,
            training=attention.training,
        )
        for key, value, bias, weight in zip(k, v, biases, weights, strict=True)
    ]
    return attention.o_proj(torch.stack(parts).sum(0))

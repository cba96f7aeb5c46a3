"""SMCA-DETR: spatially modulated co-attention (Gao et al., ICCV 2021, arXiv 2101.07448).

DETR's cross attention looks at the whole image for every query and learns slowly where not to.
Here a query predicts where its object is, and every head of every layer looks through a Gaussian
window (section 3.2): the windows of a query share the centre, a 2-layer MLP of the query, and
each head has an offset and a width and height of its own, linear in the query. The logarithm of
the window is added to the attention's scores. Boxes are predicted relative to the centre.
Classification is focal, with 300 queries.

With several scales (section 3.3) the backbone's maps of strides 16, 32 and 64 stay apart. The
encoder's layers attend within every scale, with the same weights for all scales, but for the
middle one of five, which attends over all scales. In the decoder a query also predicts a share
for every scale, a softmax of a linear function; each scale is attended to alone, through the
windows, and the results are summed by their shares (see :mod:`zoo.models.layers.scales`).

From the paper alone (the release has no licence). Where it is silent: distances are in cells of
the memory, between their middles, and beta is 8; heads' offsets and scales are functions of a
layer's incoming content plus the query's position, normed, and so are the shares of scales;
.01 square cells are added to squared scales, as they divide; windows begin at the centre, one
cell large, since random ones would begin by hiding the object. And with several scales: the
map of stride 64 is a strided convolution of the projected one of 32; positions are those of the
cells' middles, in which the scales agree; nothing but the projections tells scales apart; a head
has one window for all scales, in cells of the stride that a single scale would have; keys and
values of all scales come from the same projections; the shares begin equal.

Not the paper's, off by default, used by the nano variant: what :mod:`zoo.models.detr.placed`
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.dense import DenseHead
from zoo.models.detr.focal import LayeredOutput, layered_output
from zoo.models.detr.mask_head import Trace
from zoo.models.detr.memory import (
    SMALL,
    Cells,
    cells_of,
    map_projection,
    memory_backbone,
    read_cells,
)
from zoo.models.detr.placed import CellEncoder, PlacedConfig, PlacedQueries, placed_spec
from zoo.models.layers.backbone import Backbone, Level, known_unpadded
from zoo.models.layers.fusion import level_of
from zoo.models.layers.gaussian import HeadWindows, gaussian_bias
from zoo.models.layers.heads import box_head, class_head, exact
from zoo.models.layers.scales import ScaleEncoder, ScaleMaps, attend_scales
from zoo.models.layers.transformer import DecoderLayer, init_xavier
from zoo.registry import ModelSpec, register_model


@dataclass(frozen=True, kw_only=True)
class SmcaDetrConfig(PlacedConfig):
    """Settings of an SMCA-DETR; the defaults are the paper's with a ResNet-50."""

    beta: float = 8.0  # the windows' bandwidth: a Gaussian's variance is beta / 2 square cells
    head_scales: int = 2  # a head's: 2 (width and height), 1 (for both), 0 (fixed)
    num_levels: int = 1  # scales of the memory; those beyond the backbone's each halve the last
    multi_scale_layers: int = 1  # of several scales: encoder layers, in the middle, over all


def read_scales(
    levels: Sequence[Level],
    input_proj: ScaleMaps,
    pixel_mask: Tensor | None,
    *,
    dtype: torch.dtype,
    temperature: float,
) -> list[Cells]:
    """The cells of every scale, fine to coarse, of a backbone's levels.

    ``pixel_mask`` [B, H, W] is the one that the backbone got; None where nothing is padded.
    ``dtype``: of the tokens, which autocast may have made otherwise.
    """
    unpadded = pixel_mask is None or known_unpadded(pixel_mask, pixel_mask)
    return [
        cells_of(x, mask, unpadded, dtype=dtype, temperature=temperature, offset=-0.5)
        for x, mask in input_proj(levels)
    ]


class SmcaLayer(nn.Module):
    """DETR's decoder layer, whose heads look through windows at every scale.

    ``cells``, one number for every scale: how many of its cells are as long as a window's unit.
    """

    def __init__(self, config: SmcaDetrConfig, cells: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        dim = config.dim
        self.beta = config.beta
        self.cells = tuple(cells)
        self.decode = DecoderLayer(dim, config.num_heads, config.ffn_dim, config.dropout)
        self.norm = nn.LayerNorm(dim)  # of what windows and shares are functions of
        init_xavier(self)
        self.windows = HeadWindows(dim, config.num_heads, config.head_scales)
        self.share: nn.Linear | None = None
        if len(self.cells) > 1:
            self.share = nn.Linear(dim, len(self.cells))
            nn.init.zeros_(self.share.weight)
            nn.init.zeros_(self.share.bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        keys: Tensor,
        query_pos: Tensor,
        centres: Tensor,
        masks: Sequence[Tensor],
    ) -> Tensor:
        """[B, Q, D] from queries ``x`` and ``query_pos`` [B, Q, D] with ``centres`` [B, Q, 2].

        Centres are (x, y) in 0..1; ``memory`` and ``keys`` [B, S, D] have all scales behind each
        other; ``masks`` [B, h, w] are the scales'.
        """
        seen = self.norm(x + query_pos)
        biases = self.biases(seen, centres, masks)
        layer = self.decode
        if self.share is None:
            return layer(x, memory, query_pos=query_pos, memory_mask=biases[0], keys=keys)

        placed = x + query_pos
        x = layer.norm1(x + layer.dropout(layer.self_attn(placed, placed, x)))
        shares = exact(self.share, seen).softmax(-1)  # [B, Q, L]
        mixed = attend_scales(layer.cross_attn, x + query_pos, keys, memory, biases, shares)
        x = layer.norm2(x + layer.dropout(mixed))
        mixed = layer.linear2(layer.dropout(layer.activation(layer.linear1(x))))
        return layer.norm3(x + layer.dropout(mixed))

    def biases(self, seen: Tensor, centres: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
        """What is added to the scores of the cross attention to every scale, [B, A, Q, cells]."""
        offsets, scales = self.windows(seen)
        around = centres[:, :, None]
        return [
            gaussian_bias(mask, around, offsets * unit, scales * unit, beta=self.beta)
            for mask, unit in zip(masks, self.cells, strict=True)
        ]


class SmcaDecoder(nn.Module):
    """Layers that look through windows around fixed centres; ``cells`` as of the layers."""

    def __init__(self, config: SmcaDetrConfig, cells: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SmcaLayer(config, cells) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self,
        x: Tensor,
        centres: Tensor,
        memories: Sequence[Tensor],
        scales: Sequence[Cells],
        *,
        query_pos: Tensor,
        every: bool = False,
    ) -> Tensor:
        """Normed states of every layer, [N, B, Q, D], or of the last, [1, B, Q, D].

        ``x`` and ``query_pos`` [B, Q, D]; ``centres`` [B, Q, 2] (x, y) in 0..1; ``memories``
        [B, S, D] of the ``scales``, whose positions and masks count.
        """
        masks = [cells.mask for cells in scales]
        memory = torch.cat(list(memories), 1)
        keys = memory + torch.cat([cells.pos for cells in scales], 1)  # once, not in every layer
        states = []
        for layer in self.layers:
            x = cast(SmcaLayer, layer)(
                x, memory, keys=keys, query_pos=query_pos, centres=centres, masks=masks
            )
            states.append(x)
        return self.norm(torch.stack(states if every else states[-1:]))


class SmcaDetr(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    def __init__(
        self, config: SmcaDetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        if config.beta <= 0:
            raise ZooError(f"model.beta is {config.beta}; a bandwidth is more than 0")
        if config.num_levels < 1:
            raise ZooError(
                f"model.num_levels is {config.num_levels}; set 1 for a single map, or the number "
                "of scales"
            )
        dim = config.dim
        self.config = config
        self.backbone = backbone or memory_backbone(config)
        cells = [1.0]
        self.input_proj: nn.Module
        self.encoder: nn.Module
        if config.num_levels > 1:
            strides = list(self.backbone.strides)
            self.level = level_of(config.memory_stride, strides)
            self.input_proj = ScaleMaps(self.backbone.num_channels, dim, config.num_levels)
            self.encoder = ScaleEncoder(
                dim,
                config.num_heads,
                config.ffn_dim,
                config.dropout,
                num_layers=config.encoder_layers,
                together=config.multi_scale_layers,
            )
            unit = strides[self.level]
            while len(strides) < config.num_levels:
                strides.append(2 * strides[-1])
            cells = [unit / stride for stride in strides]
        else:
            self.level, self.input_proj = map_projection(config, self.backbone)
            self.encoder = CellEncoder(config)
        self.queries = PlacedQueries(config, num_classes)
        self.decoder = SmcaDecoder(config, cells)
        if config.dense_side:
            self.dense = DenseHead(dim, num_classes, config.dense_side)
        self.class_embed = class_head(dim, num_classes)
        self.bbox_embed = box_head(dim)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> LayeredOutput:
        """Predictions for a batch of images.

        ``pixel_values`` [B, 3, H, W]: uint8, or floats that are ImageNet-normalised and 0 where
        padded. ``pixel_mask`` [B, H, W]: True where valid; None where nothing is padded.
        """
        return cast(LayeredOutput, self.traced(pixel_values, pixel_mask).out)

    def traced(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Trace:
        """As :meth:`forward`, with what a mask head reads: of several scales, the main one."""
        config = self.config
        levels = self.backbone(pixel_values, pixel_mask)
        scales = self.scales(levels, pixel_mask)
        memories = self.encode(scales)
        # Objects are proposed where the memory of a single scale would be.
        main = self.level if len(scales) > 1 else 0
        queries = self.queries(memories[main], scales[main].mask)
        states = self.decoder(
            queries.content,
            queries.base[..., :2].sigmoid(),
            memories,
            scales,
            query_pos=queries.pos,
            every=self.training and config.aux_loss,
        )
        boxes = (queries.base + exact(self.bbox_embed, states)).sigmoid()
        logits = exact(self.class_embed, states)
        out = layered_output(logits, boxes, training=self.training, proposals=queries.proposals)
        if self.training and config.dense_side:
            out["dense_outputs"] = self.dense(memories[main], scales[main].mask)
        cells = scales[main]
        return Trace.of(
            out, levels, self.level, cells.tokens, memories[main], cells.mask, states[-1]
        )

    def scales(self, levels: Sequence[Level], pixel_mask: Tensor | None) -> list[Cells]:
        """The cells of every scale, or of the one map, of a backbone's levels."""
        proj = self.input_proj
        if not isinstance(proj, ScaleMaps):
            return [read_cells(self, levels, pixel_mask)]
        dtype, temperature = self.class_embed.weight.dtype, self.config.temperature
        return read_scales(levels, proj, pixel_mask, dtype=dtype, temperature=temperature)

    def encode(self, scales: Sequence[Cells]) -> list[Tensor]:
        """The memory [B, S, D] of every scale."""
        if isinstance(self.encoder, ScaleEncoder):
            return self.encoder([(cells.tokens, cells.pos, cells.allowed) for cells in scales])
        return [self.encoder(cells) for cells in scales]


# ---- Variants ---------------------------------------------------------------------------------


def _spec(recipe: str, **settings: Any) -> ModelSpec:
    return placed_spec(SmcaDetr, replace(SmcaDetrConfig(), **settings), recipe)


@register_model
def smca_detr_nano() -> ModelSpec:
    """SMCA-DETR in small, from scratch on a CPU: fused levels and proposed centres."""
    return _spec("smca_detr_nano", **SMALL)


@register_model
def smca_detr_r50() -> ModelSpec:
    """SMCA-DETR of a single scale with a ResNet-50; published AP 41.0 after 50 epochs."""
    return _spec("smca_detr_r50")


@register_model
def smca_detr_multi_scale_nano() -> ModelSpec:
    """SMCA-DETR of several scales in small, from scratch on a CPU: 16, 32 and 64, not fused."""
    several = {"strides": (16, 32), "num_levels": 3, "encoder_layers": 3}
    return _spec("smca_detr_multi_scale_nano", **{**SMALL, **several})


@register_model
def smca_detr_r50_multi_scale() -> ModelSpec:
    """SMCA-DETR of three scales with a ResNet-50; published AP 43.7 after 50 epochs."""
    several = {"strides": (16, 32), "num_levels": 3, "encoder_layers": 5}
    return _spec("smca_detr_r50_multi_scale", **several)

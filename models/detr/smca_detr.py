"""SMCA-DETR: spatially modulated co-attention (Gao et al., ICCV 2021, arXiv 2101.07448).

DETR's cross attention looks at the whole image for every query and learns slowly where not to.
Here a query predicts where its object is, and every head of every layer looks through a Gaussian
window (section 3.2): the windows of a query share the centre, a 2-layer MLP of the query, and
each head has an offset and a width and height of its own, linear in the query. The logarithm of
the window is added to the attention's scores. Boxes are predicted relative to the centre.
Classification is focal, with 300 queries. This is the model of a single scale.

From the paper alone (the release has no licence). Where it is silent: distances are in cells of
the memory, between their middles, and beta is 8; heads' offsets and scales are functions of a
layer's incoming content plus the query's position, normed; .01 square cells are added to squared
scales, as they divide; windows begin at the centre, one cell large, since random ones would
begin by hiding the object.

Not the paper's, off by default, used by the nano variant: what :mod:`zoo.models.detr.placed`
names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.anchors import box_head, class_head, exact
from zoo.models.detr.dense import DenseHead
from zoo.models.detr.focal import LayeredOutput, layered_output
from zoo.models.detr.placed import (
    NANO,
    CellEncoder,
    PlacedConfig,
    PlacedQueries,
    map_projection,
    placed_backbone,
    placed_spec,
    read_cells,
)
from zoo.models.layers.backbone import Backbone
from zoo.models.layers.fusion import level_of
from zoo.models.layers.gaussian import HeadWindows, gaussian_bias
from zoo.models.layers.transformer import DecoderLayer, init_xavier
from zoo.registry import ModelSpec, register_model


@dataclass(frozen=True, kw_only=True)
class SmcaDetrConfig(PlacedConfig):
    """Settings of an SMCA-DETR; the defaults are the paper's with a ResNet-50."""

    beta: float = 8.0  # the windows' bandwidth: a Gaussian's variance is beta / 2 square cells
    head_scales: int = 2  # a head's: 2 (width and height), 1 (for both), 0 (fixed)


class SmcaLayer(nn.Module):
    """DETR's decoder layer, whose heads look through windows."""

    def __init__(self, config: SmcaDetrConfig) -> None:
        super().__init__()
        dim = config.dim
        self.beta = config.beta
        self.decode = DecoderLayer(dim, config.num_heads, config.ffn_dim, config.dropout)
        self.norm = nn.LayerNorm(dim)  # of what the windows are a function of
        init_xavier(self)
        self.windows = HeadWindows(dim, config.num_heads, config.head_scales)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        keys: Tensor,
        query_pos: Tensor,
        centres: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """[B, Q, D] from queries ``x`` and ``query_pos`` [B, Q, D] with ``centres`` [B, Q, 2].

        Centres are (x, y) in 0..1; ``memory`` and ``keys`` [B, S, D]; ``mask`` [B, h, w].
        """
        bias = self.bias(x, query_pos, centres, mask)
        return self.decode(x, memory, query_pos=query_pos, memory_mask=bias, keys=keys)

    def bias(self, x: Tensor, query_pos: Tensor, centres: Tensor, mask: Tensor) -> Tensor:
        """What is added to the scores of the cross attention, [B, A, Q, S]."""
        offsets, scales = self.windows(self.norm(x + query_pos))
        return gaussian_bias(mask, centres[:, :, None], offsets, scales, beta=self.beta)


class SmcaDecoder(nn.Module):
    """Layers that look through windows around fixed centres."""

    def __init__(self, config: SmcaDetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SmcaLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self,
        x: Tensor,
        centres: Tensor,
        memory: Tensor,
        *,
        query_pos: Tensor,
        memory_pos: Tensor,
        mask: Tensor,
        every: bool = False,
    ) -> Tensor:
        """Normed states of every layer, [N, B, Q, D], or of the last, [1, B, Q, D].

        ``x`` and ``query_pos`` [B, Q, D]; ``centres`` [B, Q, 2] (x, y) in 0..1; ``memory``
        [B, S, D], ``memory_pos`` [B or 1, S, D]; ``mask`` [B, h, w], True where valid.
        """
        keys = memory + memory_pos  # once, not in every layer
        states = []
        for layer in self.layers:
            x = cast(SmcaLayer, layer)(
                x, memory, keys=keys, query_pos=query_pos, centres=centres, mask=mask
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
        dim = config.dim
        self.config = config
        self.backbone = backbone or placed_backbone(config)
        self.level = level_of(config.memory_stride, self.backbone.strides)
        self.input_proj = map_projection(self.backbone.num_channels, dim, self.level)
        self.encoder = CellEncoder(config)
        self.queries = PlacedQueries(config, num_classes)
        self.decoder = SmcaDecoder(config)
        if config.dense_side:
            self.dense = DenseHead(dim, num_classes, config.dense_side)
        self.class_embed = class_head(dim, num_classes)
        self.bbox_embed = box_head(dim)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> LayeredOutput:
        """Predictions for a batch of images.

        ``pixel_values`` [B, 3, H, W]: uint8, or floats that are ImageNet-normalised and 0 where
        padded. ``pixel_mask`` [B, H, W]: True where valid; None where nothing is padded.
        """
        config = self.config
        levels = self.backbone(pixel_values, pixel_mask)
        cells = read_cells(
            levels, self.input_proj, self.level, pixel_mask, temperature=config.temperature
        )
        memory = self.encoder(cells)
        queries = self.queries(memory, cells.mask)
        states = self.decoder(
            queries.content,
            queries.base[..., :2].sigmoid(),
            memory,
            query_pos=queries.pos,
            memory_pos=cells.pos,
            mask=cells.mask,
            every=self.training and config.aux_loss,
        )
        boxes = (queries.base + exact(self.bbox_embed, states)).sigmoid()
        logits = exact(self.class_embed, states)
        out = layered_output(logits, boxes, training=self.training, proposals=queries.proposals)
        if self.training and config.dense_side:
            out["dense_outputs"] = self.dense(memory, cells.mask)
        return out


# ---- Variants ---------------------------------------------------------------------------------


def _spec(recipe: str, **settings: Any) -> ModelSpec:
    return placed_spec(SmcaDetr, replace(SmcaDetrConfig(), **settings), recipe)


@register_model
def smca_detr_nano() -> ModelSpec:
    """SMCA-DETR in small, from scratch on a CPU: fused levels and proposed centres."""
    return _spec("smca_detr_nano", **NANO)


@register_model
def smca_detr_r50() -> ModelSpec:
    """SMCA-DETR of a single scale with a ResNet-50; published AP 41.0 after 50 epochs."""
    return _spec("smca_detr_r50")

"""SAM-DETR: semantic-aligned matching (Zhang et al., CVPR 2022, arXiv 2203.06883).

In DETR's cross attention, queries and image features live in different spaces at first, so that
comparing them says little. Here a query is made of image features (section 3.3): it has a
reference box; in every decoder layer RoIAlign cuts the box out of the memory, a small network
finds salient points in the cutting, one for every head (section 3.4), and the features at the
points, reweighted by the old query, are what the heads look for (section 3.5). The points' sines,
reweighted likewise, are where they look. Layers move the boxes; a box is read detached.
Classification is focal, with 300 queries. ``gaussian`` is the paper's "SAM-DETR w/ SMCA": windows
around the salient points, see :mod:`zoo.models.layers.gaussian`.

From the paper and the facts of the release (github.com/ZhangGongjie/SAM-DETR: 7 x 7 cells,
8 points, gates through a sigmoid, attention as wide as heads times channels). Where they leave it
open: queries and keys go through one projection, contents and places each, so that they stay in
one space; places are compared beside contents, as in Conditional DETR; sines of cells are those of
their middles, as those of points are; one box head serves all layers, as in DAB-DETR; the points
of the heads begin on a circle in the box.

Unlike the release: RoIAlign runs once in a layer (there twice, with the same arguments), as matrix
products, equal to torchvision's (a step of the nano variant takes 0.47 s instead of 1.16 s on one
core); all coordinates stay in float32 under mixed precision.

Not the paper's, off by default, used by the nano variant: ``refine_normed`` (see
:mod:`zoo.models.detr.dab_detr`), ``anchor_sizes`` (reference boxes spread evenly over the image)
and what :mod:`zoo.models.detr.placed` names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.detr.anchors import Anchors, QuerySelection
from zoo.models.detr.dense import DenseHead
from zoo.models.detr.focal import LayeredOutput, layered_output
from zoo.models.detr.mask_head import Trace
from zoo.models.detr.memory import SMALL, map_projection, memory_backbone, read_cells, selected
from zoo.models.detr.placed import CellEncoder, PlacedConfig, placed_spec
from zoo.models.layers.backbone import Backbone
from zoo.models.layers.conditional import ProjectedAttention
from zoo.models.layers.gaussian import HeadWindows, gaussian_bias
from zoo.models.layers.heads import MAX_LOGIT, box_head, class_head, exact
from zoo.models.layers.position import anchor_sine
from zoo.models.layers.transformer import MLP, Attention, init_xavier
from zoo.registry import ModelSpec, register_model

SAMPLES = 2  # of RoIAlign, along each side of a cell


@dataclass(frozen=True, kw_only=True)
class SamDetrConfig(PlacedConfig):
    """Settings of a SAM-DETR; the defaults are the paper's with a ResNet-50."""

    roi_size: int = 7  # cells of a cutting, along each side
    gaussian: bool = False  # windows around the salient points: "w/ SMCA"
    beta: float = 8.0  # of the windows
    head_scales: int = 2  # of the windows: 2 (width and height), 1 (for both), 0 (fixed)

    # Not the paper's: see the module's docstring.
    refine_normed: bool = False
    anchor_sizes: tuple[float, ...] = ()  # sides of reference boxes; (): N(0, 1) logits


class Aligned(NamedTuple):
    """Features at salient points [B, Q, A, D], and the points (x, y) [B, Q, A, 2].

    Points are in 0..1 of the unpadded image.
    """

    content: Tensor
    points: Tensor


class SalientPoints(nn.Module):
    """Cuts boxes out of a map and looks for the points in them that say most (section 3.4)."""

    def __init__(self, dim: int, points: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(dim, dim // 4, 3, padding=1)
        self.hidden = nn.Linear(dim // 4 * size * size, dim)
        self.place = nn.Linear(dim, 2 * points)
        init_xavier(self)
        nn.init.zeros_(self.place.weight)
        turns = torch.arange(points) * (2 * math.pi / points)
        circle = 0.5 + 0.25 * torch.stack([turns.cos(), turns.sin()], -1)
        with torch.no_grad():
            self.place.bias.copy_(circle.logit().flatten())

    def forward(self, memory: Tensor, mask: Tensor, boxes: Tensor) -> Aligned:
        """From ``memory`` [B, S, D] with ``mask`` [B, h, w] and ``boxes`` [B, Q, 4].

        Boxes are cxcywh in 0..1 of the unpadded image.
        """
        cut = self.cut(memory, mask, boxes)  # [B, Q, s, s, D]
        maps = cut.flatten(0, 1).permute(0, 3, 1, 2)
        hidden = F.relu(self.hidden(F.relu(self.conv(maps)).flatten(1)))
        inside = exact(self.place, hidden).sigmoid().unflatten(-1, (-1, 2))  # [B * Q, A, 2]
        inside = inside.unflatten(0, boxes.shape[:2])

        x, y = (bilinear(p * self.size - 0.5, self.size) for p in inside.unbind(-1))
        weights = (y[..., :, None] * x[..., None, :]).flatten(-2)  # [B, Q, A, s * s]
        content = weights.to(cut.dtype) @ cut.flatten(2, 3)
        centre, side = boxes[:, :, None].split(2, -1)
        return Aligned(content.to(memory.dtype), centre + (inside.to(boxes.dtype) - 0.5) * side)

    def cut(self, memory: Tensor, mask: Tensor, boxes: Tensor) -> Tensor:
        """What is in the boxes, [B, Q, size, size, D]: rows, columns.

        This is RoIAlign (arXiv 1703.06870) with 2 x 2 samples a cell, aligned to half pixels. As a
        sample's weights are a product of one of y and one of x, so are a cell's, and the cutting
        is two matrix products.
        """
        height, width = mask.shape[-2:]
        rows, columns = mask.sum(1).amax(1), mask.sum(2).amax(1)  # valid ones, [B]
        valid = torch.stack([columns, rows], -1).to(boxes.dtype)[:, None]  # of x, y
        centre, side = (part[..., None] * valid[..., None] for part in boxes.detach().split(2, -1))
        samples = torch.arange(self.size * SAMPLES, device=boxes.device, dtype=boxes.dtype)
        steps = (samples + 0.5) / (self.size * SAMPLES) - 0.5
        x, y = (centre + steps * side - 0.5).unbind(2)  # [B, Q, size * 2]

        def weights(place: Tensor, length: int) -> Tensor:
            near = (place >= -1.0) & (place <= length)  # beyond is nothing
            of_samples = bilinear(place, length) * near[..., None]
            return of_samples.unflatten(-2, (self.size, SAMPLES)).mean(-2).to(memory.dtype)

        features = (memory * mask.flatten(1)[..., None]).unflatten(1, (height, width))
        part = weights(y, height).flatten(1, 2) @ features.flatten(2)
        part = part.unflatten(1, (-1, self.size)).unflatten(-1, (width, -1))  # [B, Q, s, w, D]
        return weights(x, width)[:, :, None] @ part


def bilinear(places: Tensor, length: int) -> Tensor:
    """Weights [..., length] of a row of cells, whose middles are whole numbers, at ``places``.

    Beyond the outer middles they are the outer cells'.
    """
    cells = torch.arange(length, device=places.device, dtype=places.dtype)
    away = places.clamp(0.0, length - 1.0)[..., None] - cells
    return (1.0 - away.abs()).clamp(min=0.0)


class SamLayer(nn.Module):
    """A decoder layer whose cross attention looks for features of the image itself."""

    def __init__(self, config: SamDetrConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.num_heads
        self.num_heads = heads
        self.temperature = config.temperature
        self.beta = config.beta
        self.self_attn = Attention(dim, heads, config.dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.aligner = SalientPoints(dim, heads, config.roi_size)
        self.content_gate = nn.Linear(dim, heads * dim)
        self.place_gate = nn.Linear(dim, heads * dim)
        self.content_proj = nn.Linear(dim, dim)
        self.place_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.cross_attn = ProjectedAttention(dim, heads, config.dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.ffn_dim)
        self.linear2 = nn.Linear(config.ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        parts = (self.self_attn, self.content_gate, self.place_gate, self.content_proj)
        for part in (*parts, self.place_proj, self.v_proj, self.cross_attn):
            init_xavier(part)
        for linear in (self.linear1, self.linear2):
            init_xavier(linear)
        self.windows: HeadWindows | None = None
        if config.gaussian:
            self.windows = HeadWindows(dim, heads, config.head_scales)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        boxes: Tensor,
        query_pos: Tensor,
        memory_pos: Tensor,
        mask: Tensor,
        allowed: Tensor | None,
    ) -> Tensor:
        """[B, Q, D] from queries ``x`` and ``query_pos`` [B, Q, D] with ``boxes`` [B, Q, 4].

        Boxes are cxcywh in 0..1. ``memory`` [B, S, D], ``memory_pos`` [B or 1, S, D]; ``mask``
        [B, h, w] and ``allowed`` [B, 1, 1, S] (or None), True where valid.
        """
        placed = x + query_pos
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x)))
        aligned = self.aligner(memory, mask, boxes)
        query, key = self.queries(x, aligned), self.keys(memory, memory_pos)
        bias = allowed
        if self.windows is not None:
            offsets, scales = self.windows(x)
            bias = gaussian_bias(mask, aligned.points, offsets, scales, beta=self.beta)
        mixed = self.cross_attn(query, key, self.v_proj(memory), bias)
        x = self.norm2(x + self.dropout(mixed))
        mixed = self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True)))
        return self.norm3(x + self.dropout(mixed))

    def queries(self, x: Tensor, aligned: Aligned) -> Tensor:
        """What the heads look for and where, side by side in every head: [B, Q, A * 2 D]."""
        content, points = aligned
        heads = (self.num_heads, -1)
        sines = anchor_sine(points, x.shape[-1] // 2, self.temperature).to(x.dtype)
        content = self.content_proj(content * self.content_gate(x).sigmoid().unflatten(-1, heads))
        place = self.place_proj(sines * self.place_gate(x).sigmoid().unflatten(-1, heads))
        return torch.cat([content, place], -1).flatten(2)

    def keys(self, memory: Tensor, memory_pos: Tensor) -> Tensor:
        """What the heads compare it with, alike for all of them: [B, S, A * 2 D]."""
        content = self.content_proj(memory)
        place = self.place_proj(memory_pos).expand_as(content)
        return torch.cat([content, place], -1).repeat(1, 1, self.num_heads)


class SamDecoder(nn.Module):
    """Layers that move reference boxes, with the box head that says by how much."""

    def __init__(self, config: SamDetrConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.layers = nn.ModuleList(SamLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.pos_head = MLP(2 * dim, dim, dim, 2)
        init_xavier(self.pos_head)
        self.bbox_embed = box_head(dim)

    def forward(
        self,
        x: Tensor,
        anchors: Tensor,
        memory: Tensor,
        *,
        memory_pos: Tensor,
        mask: Tensor,
        allowed: Tensor | None = None,
        every: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Normed states [N, B, Q, D] and boxes [N, B, Q, 4] of every layer, or of the last [1, ..].

        ``anchors`` [B, Q, 4] are logits; the others are as of :meth:`SamLayer.forward`.
        """
        states, boxes = [], []
        last = len(self.layers) - 1
        for n, layer in enumerate(self.layers):
            places = anchors.sigmoid()
            sines = anchor_sine(places, x.shape[-1] // 2, self.config.temperature).to(x.dtype)
            x = cast(SamLayer, layer)(
                x,
                memory,
                boxes=places,
                query_pos=self.pos_head(sines),
                memory_pos=memory_pos,
                mask=mask,
                allowed=allowed,
            )
            state = self.norm(x)
            step = None
            if every or n == last:
                step = exact(self.bbox_embed, state)
                states.append(state)
                boxes.append((anchors + step).sigmoid())
            if n < last:
                if step is None or not self.config.refine_normed:
                    step = exact(self.bbox_embed, state if self.config.refine_normed else x)
                anchors = (anchors + step).clamp(-MAX_LOGIT, MAX_LOGIT).detach()
        return torch.stack(states), torch.stack(boxes)


class SamDetr(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    def __init__(
        self, config: SamDetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        if config.beta <= 0:
            raise ZooError(f"model.beta is {config.beta}; a bandwidth is more than 0")
        dim = config.dim
        self.config = config
        self.backbone = backbone or memory_backbone(config)
        self.level, self.input_proj = map_projection(config, self.backbone)
        self.encoder = CellEncoder(config)
        self.selection: QuerySelection | None = None
        if config.query_selection:
            self.selection = QuerySelection(
                dim, num_classes, config.num_queries, config.proposal_side
            )
        else:
            self.anchors = Anchors(config.num_queries, freeze_xy=False, sizes=config.anchor_sizes)
            self.embed = nn.Embedding(config.num_queries, dim)
        self.decoder = SamDecoder(config)
        if config.dense_side:
            self.dense = DenseHead(dim, num_classes, config.dense_side)
        self.class_embed = class_head(dim, num_classes)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> LayeredOutput:
        """Predictions for a batch of images.

        ``pixel_values`` [B, 3, H, W]: uint8, or floats that are ImageNet-normalised and 0 where
        padded. ``pixel_mask`` [B, H, W]: True where valid; None where nothing is padded.
        """
        return cast(LayeredOutput, self.traced(pixel_values, pixel_mask).out)

    def traced(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Trace:
        """As :meth:`forward`, with what a mask head reads."""
        config = self.config
        levels = self.backbone(pixel_values, pixel_mask)
        cells = read_cells(self, levels, pixel_mask, offset=-0.5)  # the middle of a cell
        memory = self.encoder(cells)
        proposals: list[dict[str, Tensor]] = []
        if self.selection is not None:
            content, anchors, proposals = selected(self.selection, memory, cells.mask)
        else:
            content = self.embed.weight.to(memory.dtype).expand(memory.shape[0], -1, -1)
            anchors = self.anchors().expand(memory.shape[0], -1, -1)
        states, boxes = self.decoder(
            content,
            anchors,
            memory,
            memory_pos=cells.pos,
            mask=cells.mask,
            allowed=cells.allowed,
            every=self.training and config.aux_loss,
        )
        logits = exact(self.class_embed, states)
        out = layered_output(logits, boxes, training=self.training, proposals=proposals)
        if self.training and config.dense_side:
            out["dense_outputs"] = self.dense(memory, cells.mask)
        return Trace.of(out, levels, self.level, cells.tokens, memory, cells.mask, states[-1])


# ---- Variants ---------------------------------------------------------------------------------


def _spec(recipe: str, **settings: Any) -> ModelSpec:
    config = replace(SamDetrConfig(), **settings)
    return placed_spec(SamDetr, config, recipe, selection="selection.")


_SMALL: Mapping[str, Any] = {**SMALL, "refine_normed": True}


@register_model
def sam_detr_nano() -> ModelSpec:
    """SAM-DETR in small, from scratch on a CPU: fused levels and proposed boxes."""
    return _spec("sam_detr_nano", **_SMALL)


@register_model
def sam_detr_r50() -> ModelSpec:
    """SAM-DETR with a ResNet-50: 53.8 M parameters (the release: 58 M), published AP 39.8."""
    return _spec("sam_detr_r50")


@register_model
def sam_detr_r50_smca() -> ModelSpec:
    """SAM-DETR with Gaussian windows and a ResNet-50; published AP 41.8 after 50 epochs."""
    return _spec("sam_detr_r50", gaussian=True)

"""Conditional DETR (Meng et al., ICCV 2021, arXiv 2108.06152).

DETR's cross attention finds an object's extremities by its contents, which takes long to learn.
Here a query has a reference point, a function of its embedding, and the layers compare content
with content and place with place (section 3.2): a place is the sines of the reference point times
a diagonal transformation that is a function of the content (section 3.3), so that every head
can look at its own band around the object. Boxes are predicted relative to the reference point.
Classification is focal, with 300 queries.

As in the release (github.com/Atten4Vis/ConditionalDETR), where the paper leaves it open: the
first layer's sines are not transformed, and it adds the positions to its contents as well; the
head has no class "nothing"; the class loss weighs 2.

Unlike the release: in evaluation the heads run on the last layer only; under mixed precision
heads and reference points stay in float32.

Unlike transformers 5.23: with auxiliary losses, a layer's norm is not fed to the next layer; the
class loss weighs what ``coef_class`` says.

Neither the paper's nor the release's, off by default, used by the nano variant:
``local_start`` (places are compared by one projection at the start, and are not multiplied by
random numbers, so that attention begins as a window around the point), and what
:mod:`zoo.models.detr.placed` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.models.detr.coco_classes import COCO_91
from zoo.models.detr.dense import DenseHead
from zoo.models.detr.detr import TRANSFORMERS_LAYERS, TRANSFORMERS_RESNET, split_fused
from zoo.models.detr.focal import LayeredOutput, layered_output
from zoo.models.detr.mask_head import Trace
from zoo.models.detr.memory import SMALL, map_projection, memory_backbone, read_cells
from zoo.models.detr.placed import CellEncoder, PlacedConfig, PlacedQueries, placed_spec
from zoo.models.layers.backbone import Backbone
from zoo.models.layers.conditional import ConditionalDecoderLayer, autocast_once, scale_head
from zoo.models.layers.heads import box_head, class_head, exact
from zoo.models.layers.position import anchor_sine
from zoo.models.layers.transformer import init_xavier
from zoo.registry import ModelSpec, register_model
from zoo.weights import KeyLayout, Weights

LOCAL_GAIN = 5.0  # as DAB-DETR's windows begin around an anchor of a tenth of the image


@dataclass(frozen=True, kw_only=True)
class ConditionalDetrConfig(PlacedConfig):
    """Settings of a Conditional DETR; the defaults are the paper's with a ResNet-50."""

    local_start: bool = False  # attention begins as a window around the reference point


class ConditionalDecoder(nn.Module):
    """Layers that look around fixed reference points."""

    def __init__(self, config: ConditionalDetrConfig) -> None:
        super().__init__()
        dim, count = config.dim, config.decoder_layers
        self.temperature = config.temperature
        self.layers = nn.ModuleList(
            ConditionalDecoderLayer(
                dim, config.num_heads, config.ffn_dim, config.dropout, first=n == 0
            )
            for n in range(count)
        )
        self.norm = nn.LayerNorm(dim)
        self.query_scale = scale_head(dim, count > 1, config.local_start)
        init_xavier(self.layers)
        if config.local_start:
            for layer in self.layers:
                cast(ConditionalDecoderLayer, layer).align_places(LOCAL_GAIN)

    def forward(
        self,
        x: Tensor,
        points: Tensor,
        memory: Tensor,
        *,
        query_pos: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None = None,
        every: bool = False,
    ) -> Tensor:
        """Normed states of every layer, [N, B, Q, D], or of the last, [1, B, Q, D].

        ``x`` and ``query_pos`` [B, Q, D]; ``points`` [B, Q, 2] (x, y) in 0..1; ``memory``
        [B, S, D], ``memory_pos`` [B or 1, S, D]; ``memory_mask`` [B, 1, 1, S], True where valid.
        """
        # What every layer reads, in the precision it is read in: once, not in every projection.
        memory, memory_pos = autocast_once(memory), autocast_once(memory_pos)
        sine = anchor_sine(points, x.shape[-1] // 2, self.temperature).to(x.dtype)  # of y, x
        states = []
        for n, layer in enumerate(self.layers):
            x = layer(
                x,
                memory,
                query_pos=query_pos,
                query_sine=sine * self.query_scale(x) if n else sine,
                memory_pos=memory_pos,
                memory_mask=memory_mask,
                self_mask=None,
            )
            states.append(x)
        return self.norm(torch.stack(states if every else states[-1:]))


class ConditionalDetr(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    def __init__(
        self, config: ConditionalDetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.backbone = backbone or memory_backbone(config)
        self.level, self.input_proj = map_projection(config, self.backbone)
        self.encoder = CellEncoder(config)
        self.queries = PlacedQueries(config, num_classes)
        self.decoder = ConditionalDecoder(config)
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
        """As :meth:`forward`, with what a mask head reads."""
        config = self.config
        levels = self.backbone(pixel_values, pixel_mask)
        cells = read_cells(self, levels, pixel_mask)
        memory = self.encoder(cells)
        queries = self.queries(memory, cells.mask)
        states = self.decoder(
            queries.content,
            queries.base[..., :2].sigmoid(),
            memory,
            query_pos=queries.pos,
            memory_pos=cells.pos,
            memory_mask=cells.allowed,
            every=self.training and config.aux_loss,
        )
        boxes = (queries.base + exact(self.bbox_embed, states)).sigmoid()
        logits = exact(self.class_embed, states)
        out = layered_output(logits, boxes, training=self.training, proposals=queries.proposals)
        if self.training and config.dense_side:
            out["dense_outputs"] = self.dense(memory, cells.mask)
        return Trace.of(out, levels, self.level, cells.tokens, memory, cells.mask, states[-1])


# ---- Other projects' names of the same tensors ------------------------------------------------
# Checked: transformers' names against transformers 5.23 itself, by equal outputs; the release's
# against its source and the table of transformers' conversion. No released file was at hand.

_COMMON = (
    (r"^.*\.num_batches_tracked$", ""),  # a frozen norm counts nothing
    (r"\.out_proj\.", ".o_proj."),
)

# Atten4Vis/ConditionalDETR
_RELEASE = (
    *_COMMON,
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^transformer\.", ""),
    (r"^query_embed\.", "queries.embed."),
    (r"^decoder\.ref_point_head\.", "queries.point_head."),
)

# transformers: hub files (names of version 4, which version 5 still writes), its names in memory
# since version 5, and both with timm's or its own ResNet.
_TRANSFORMERS = (
    *_COMMON,
    (r"^model\.", ""),
    (r"^backbone\.(conv_encoder\.)?model\.", "backbone."),
    *TRANSFORMERS_RESNET,
    (r"^input_projection\.", "input_proj."),
    (r"^query_position_embeddings\.", "queries.embed."),
    (r"^decoder\.ref_point_head\.", "queries.point_head."),
    (r"^decoder\.layernorm\.", "decoder.norm."),
    (r"^(decoder\..*)\.self_attn\.([qk])_(content|pos)_proj\.", r"\1.sa_\2\3_proj."),
    (r"^(decoder\..*)\.self_attn\.v_proj\.", r"\1.sa_v_proj."),
    (r"^(decoder\..*)\.encoder_attn\.([qk])_(content|pos|pos_sine)_proj\.", r"\1.ca_\2\3_proj."),
    (r"^(decoder\..*)\.encoder_attn\.v_proj\.", r"\1.ca_v_proj."),
    *TRANSFORMERS_LAYERS,
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
)

_COCO_IDS = tuple(range(len(COCO_91)))

LAYOUTS = (
    KeyLayout(
        name="the Conditional DETR release's",
        # DAB-DETR has these names too, and then no query_embed: its shapes tell it apart.
        marker=r"^transformer\.decoder\.layers\.0\.ca_qpos_sine_proj\.weight$",
        rules=_RELEASE,
        fix=split_fused,
        class_names=COCO_91,
        class_ids=_COCO_IDS,
    ),
    KeyLayout(
        name="transformers'",
        marker=r"^model\.decoder\.layers\.0\.(self_attn\.q_content_proj|sa_qcontent_proj)\.weight$",
        rules=_TRANSFORMERS,
    ),
)


# ---- Variants ---------------------------------------------------------------------------------


def _spec(recipe: str, weights: Mapping[str, Weights] | None = None, **settings: Any) -> ModelSpec:
    config = replace(ConditionalDetrConfig(), **settings)
    return placed_spec(ConditionalDetr, config, recipe, weights=weights, layouts=LAYOUTS)


@register_model
def conditional_detr_nano() -> ModelSpec:
    """Conditional DETR in small, from scratch on a CPU: fused levels and proposed points."""
    return _spec("conditional_detr_nano", **SMALL, local_start=True)


@register_model
def conditional_detr_r50() -> ModelSpec:
    """Conditional DETR with a ResNet-50: 43.4 M parameters, published AP 40.9 after 50 epochs."""
    coco = Weights(
        source="microsoft/conditional-detr-resnet-50",
        class_names=COCO_91,
        class_ids=_COCO_IDS,
        metrics={"AP": 0.409},  # the paper's, table 1, on val2017
        licence="Apache-2.0",
    )
    return _spec("conditional_detr_r50", {"coco": coco})


@register_model
def conditional_detr_r50_dc5() -> ModelSpec:
    """Conditional DETR with a ResNet-50 of twice the resolution; published AP 43.8."""
    return _spec("conditional_detr_r50", dilation=True)


@register_model
def conditional_detr_r101() -> ModelSpec:
    """Conditional DETR with a ResNet-101: published AP 42.8."""
    return _spec("conditional_detr_r50", backbone="resnet101")

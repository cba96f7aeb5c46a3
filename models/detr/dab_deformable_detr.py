"""DAB-Deformable-DETR: anchor boxes as the queries of a deformable decoder (arXiv 2201.12329).

DAB-DETR's queries (section 4 of Liu et al., ICLR 2022) in Deformable DETR's transformer: a query
is a learned content and a learned anchor box; every layer samples points around its anchor, in
units of the anchor's sides, and moves it. A query's position is an MLP of the sines of its anchor,
multiplied by a function of its content from the second layer on.

As in the release (github.com/IDEA-Research/DAB-DETR): the layers share one box head and one class
head; an anchor is detached where a layer begins with it; anchors' logits start at N(0, 1), or at
fixed centres, uniform in the image, with ``random_refpoints_xy``.

Unlike the release: contents start small, N(0, 0.02), where there are no patterns; heads run where
somebody reads them only.

DN-Deformable-DETR is the switch ``denoising``: see :mod:`zoo.models.detr.dn_deformable_detr`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from zoo.models.detr.anchors import Anchors
from zoo.models.detr.denoising import LabelEmbedding, denoising_queries
from zoo.models.detr.detector import Detector
from zoo.models.detr.focal import (
    FocalConfig,
    LayeredOutput,
    focal_criterion,
    focal_postprocess,
    layered_output,
    named_backbone,
    with_noised,
)
from zoo.models.layers.backbone import Backbone
from zoo.models.layers.conditional import scale_head
from zoo.models.layers.deformable_transformer import DeformableDecoder, DeformableEncoder
from zoo.models.layers.heads import box_head, class_head, exact
from zoo.models.layers.levels import LevelProjection
from zoo.models.layers.position import anchor_sine
from zoo.models.layers.transformer import MLP, init_xavier
from zoo.registry import ModelSpec, register_model
from zoo.types import Target


@dataclass(frozen=True, kw_only=True)
class DabDeformableDetrConfig(FocalConfig):
    """Settings of a DAB-Deformable-DETR (a DN one with ``denoising``); defaults: the paper's."""

    strides: tuple[int, ...] = (8, 16, 32)
    num_levels: int = 4  # with those that strided convolutions add
    num_points: int = 4  # a level and head
    dropout: float = 0.0
    anchor_sizes: tuple[float, ...] = ()  # sides of anchors spread evenly; (): N(0, 1) logits
    random_refpoints_xy: bool = False  # anchor centres uniform at random, and frozen
    coef_class: float = 1.0
    max_detections: int = 300

    # DN-DETR
    denoising: bool = False
    dn_groups: int = 5  # noised copies of every object
    dn_queries: int = 0  # if set, as many copies as fit into that number of queries instead
    label_noise: float = 0.2
    box_noise: float = 0.4


class DabDeformableDetr(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    def __init__(
        self, config: DabDeformableDetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        dim, levels = config.dim, config.num_levels
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone or named_backbone(config)
        self.input_proj = LevelProjection(self.backbone.num_channels, dim, levels)
        sizes = (dim, config.num_heads, config.ffn_dim, config.dropout)
        shape = {"num_levels": levels, "num_points": config.num_points}
        self.encoder = DeformableEncoder(*sizes, num_layers=config.encoder_layers, **shape)
        self.decoder = DeformableDecoder(
            *sizes, num_layers=config.decoder_layers, norm=False, **shape
        )
        self.anchors = Anchors(
            config.num_queries, freeze_xy=config.random_refpoints_xy, sizes=config.anchor_sizes
        )
        self.ref_point_head = MLP(2 * dim, dim, dim, 2)
        init_xavier(self.ref_point_head)
        self.query_scale = scale_head(dim, config.decoder_layers > 1, at_one=False)
        if config.denoising:
            self.label_embed = LabelEmbedding(num_classes, dim)
        else:
            self.content = nn.Embedding(config.num_queries, dim)
            nn.init.normal_(self.content.weight, std=0.02)
        self.class_embed = class_head(dim, num_classes)
        self.bbox_embed = box_head(dim)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        targets: Sequence[Target] | None = None,
    ) -> LayeredOutput:
        """Predictions for a batch of images.

        ``pixel_values`` [B, 3, H, W]: uint8, or floats that are ImageNet-normalised and 0 where
        padded. ``pixel_mask`` [B, H, W]: True where valid; None where nothing is padded.
        ``targets``: B dicts with ``labels`` and ``boxes``, read in training with denoising only,
        for queries that no other query can see.
        """
        config = self.config
        levels = self.input_proj(self.backbone(pixel_values, pixel_mask), pixel_mask)
        memory = self.encoder(levels)
        anchors = self.anchors().expand(memory.shape[0], -1, -1)
        if config.denoising:
            content = self.label_embed.unknown().expand(*anchors.shape[:2], -1)
        else:
            content = self.content.weight.expand(memory.shape[0], -1, -1)
        noised, self_mask = None, None
        if self.training and config.denoising and targets is not None:
            noised = denoising_queries(
                targets,
                self.num_classes,
                groups=config.dn_groups,
                total=config.dn_queries,
                label_noise=config.label_noise,
                box_noise=config.box_noise,
            )
            known = self.label_embed(noised.labels)
            content, anchors, self_mask = with_noised(noised, known, content, anchors)
        states, boxes = self.decoder(
            content,
            anchors,
            memory,
            levels,
            query_pos=self._places,
            box_heads=[self.bbox_embed],
            refine=True,
            self_mask=self_mask,
            every=self.training and config.aux_loss,
        )
        logits = exact(self.class_embed, states)
        return layered_output(logits, boxes, training=self.training, noised=noised)

    def _places(self, references: Tensor, content: Tensor, layer: int) -> Tensor:
        """Position embeddings [B, Q, D] of anchors [B, Q, 4] in 0..1, scaled by the content."""
        sines = anchor_sine(references, self.config.dim // 2)
        places = self.ref_point_head(sines.to(content.dtype))
        return places * self.query_scale(content) if layer else places


# ---- Variants ---------------------------------------------------------------------------------


def dab_deformable_spec(recipe: str, **settings: Any) -> ModelSpec:
    """A variant of this model (or, with ``denoising``, of DN-Deformable-DETR)."""
    config = replace(DabDeformableDetrConfig(), **settings)
    rows = ["class_embed.weight", "class_embed.bias"]
    return ModelSpec(
        config=config,
        build=DabDeformableDetr,
        criterion=focal_criterion,
        postprocess=focal_postprocess,
        predictor=Detector,
        recipe=recipe,
        class_rows=(*rows, *["label_embed.embedding.weight"] * config.denoising),
    )


# From scratch in minutes on a CPU.
NANO: Mapping[str, Any] = {
    "backbone": "nano",
    "num_levels": 3,
    "dim": 128,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "ffn_dim": 512,
    "num_queries": 80,
    "anchor_sizes": (0.1, 0.3),
    "dn_queries": 60,
    "coef_class": 5.0,
    "max_detections": 100,
}


@register_model
def dab_deformable_detr_nano() -> ModelSpec:
    """DAB-Deformable-DETR in small, from scratch on a CPU."""
    return dab_deformable_spec("dab_deformable_detr_nano", **NANO)


@register_model
def dab_deformable_detr_r50() -> ModelSpec:
    """DAB-Deformable-DETR with a ResNet-50: published AP 49.0 (detrex)."""
    return dab_deformable_spec("dab_deformable_detr_r50")

"""DINO: DETR with improved denoising anchor boxes (Zhang et al., ICLR 2023, arXiv 2203.03605).

Deformable DETR in two stages (:mod:`zoo.models.detr.deformable_detr`) with three changes.
*Contrastive denoising* (section 3.3): noised objects come in pairs, a near one to be restored and a
far one to be recognised as nothing (:mod:`zoo.models.detr.contrastive`). *Mixed query selection*
(section 3.4): the encoder's best proposals give the queries their places, while their contents are
learned and the same for every picture. *Look forward twice* (section 3.5): a layer's box is added
to the box of the layer before without cutting its gradient, so that a layer also learns from what
the next one makes of its box; attention is around the detached box.

As in the release (github.com/IDEA-Research/DINO): proposals are chosen by their best class, and the
chosen ones are one more auxiliary output, with all classes; one box head and one class head serve
all layers; a query's position is an MLP of the sines of its box; dropout is 0.

Unlike the release: contents of denoising queries and the number of groups follow the batch without
waiting for the device; empty slots are hidden and have no loss; there are as many queries as cells
where those are fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.models.detr.anchors import MAX_LOGIT, MIN_SIDE, box_head, class_head, exact
from zoo.models.detr.contrastive import contrastive_queries
from zoo.models.detr.detector import Detector
from zoo.models.detr.focal import (
    LayeredOutput,
    focal_criterion,
    focal_postprocess,
    layered_output,
)
from zoo.models.layers.backbone import Backbone, build_backbone
from zoo.models.layers.deformable_transformer import (
    DeformableDecoder,
    DeformableEncoder,
    ProposalHead,
)
from zoo.models.layers.levels import FlatLevels, LevelProjection
from zoo.models.layers.position import anchor_sine
from zoo.models.layers.transformer import MLP, init_xavier
from zoo.registry import ModelSpec, register_model
from zoo.types import Target


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """Settings of a DINO; the defaults are the paper's with a ResNet-50 and four levels."""

    backbone: str = "resnet50"  # or another ResNet, or nano
    backbone_weights: str | None = None  # IMAGENET1K_V1, a file, none (random) or null (later)
    dilation: bool = False  # the last stage keeps its resolution, stride 16 instead of 32
    norm: str = "frozen"  # of the ResNet: frozen, or batch to train from scratch
    strides: tuple[int, ...] = (8, 16, 32)  # backbone levels
    num_levels: int = 4  # with those that strided convolutions add
    dim: int = 256
    num_heads: int = 8
    num_points: int = 4  # a level and head
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_dim: int = 2048
    dropout: float = 0.0
    num_queries: int = 900
    look_forward_twice: bool = True
    aux_loss: bool = True  # losses on every decoder layer and on the proposals

    # Contrastive denoising
    dn_queries: int = 100  # pairs an image, at most; 0: none
    label_noise: float = 0.5
    box_noise: float = 1.0

    # Matching and losses
    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    coef_class: float = 1.0
    coef_bbox: float = 5.0
    coef_giou: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    max_detections: int = 300


class Dino(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    def __init__(
        self, config: DinoConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        dim, levels = config.dim, config.num_levels
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone or build_backbone(
            config.backbone,
            dilation=config.dilation,
            weights=config.backbone_weights,
            norm=config.norm,
            strides=config.strides,
        )
        self.input_proj = LevelProjection(self.backbone.num_channels, dim, levels)
        sizes = (dim, config.num_heads, config.ffn_dim, config.dropout)
        shape = {"num_levels": levels, "num_points": config.num_points}
        self.encoder = DeformableEncoder(*sizes, num_layers=config.encoder_layers, **shape)
        self.proposals = ProposalHead(dim, num_classes)
        self.content = nn.Embedding(config.num_queries, dim)
        self.ref_point_head = MLP(2 * dim, dim, dim, 2)
        init_xavier(self.ref_point_head)
        self.decoder = DeformableDecoder(
            *sizes, num_layers=config.decoder_layers, norm=True, **shape
        )
        self.class_embed = class_head(dim, num_classes)
        self.bbox_embed = box_head(dim)
        if config.dn_queries:
            self.label_embed = nn.Embedding(num_classes + 1, dim)  # the last: an empty slot

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
        levels = self.input_proj(self.backbone(pixel_values, pixel_mask), pixel_mask)
        memory = self.encoder(levels)
        content, anchors, chosen = self._queries(memory, levels)
        noised, self_mask = None, None
        if self.training and self.config.dn_queries and targets is not None:
            config = self.config
            noised = contrastive_queries(
                targets,
                self.num_classes,
                total=config.dn_queries,
                label_noise=config.label_noise,
                box_noise=config.box_noise,
            )
            seen = noised.attention_mask(content.shape[1])
            # A bias, made once, not in every layer.
            self_mask = torch.zeros_like(seen, dtype=content.dtype).masked_fill_(~seen, -torch.inf)
            content = torch.cat([self.label_embed(noised.labels).to(content.dtype), content], 1)
            places = noised.boxes.to(anchors.dtype).logit(MIN_SIDE)
            anchors = torch.cat([places, anchors], 1)
        states, boxes = self.decoder(
            content,
            anchors,
            memory,
            levels,
            query_pos=self._places,
            box_heads=[self.bbox_embed],
            refine=True,
            look_forward_twice=self.config.look_forward_twice,
            self_mask=self_mask,
            every=self.training and self.config.aux_loss,
        )
        logits = exact(self.class_embed, states)
        return layered_output(
            logits, boxes, training=self.training, proposals=[chosen], noised=noised
        )

    def _queries(
        self, memory: Tensor, levels: FlatLevels
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Learned contents [B, Q, D], the best proposals' logits [B, Q, 4], and these as output."""
        proposed = self.proposals(memory, levels)
        best = proposed.best(self.config.num_queries, proposed.logits.detach().amax(-1))[..., None]
        logits = proposed.logits.gather(1, best.expand(-1, -1, self.num_classes))
        boxes = proposed.boxes.gather(1, best.expand(-1, -1, 4))
        chosen = {"pred_logits": logits, "pred_boxes": boxes.sigmoid()}
        content = self.content.weight[: best.shape[1]].expand(best.shape[0], -1, -1)
        return content, boxes.detach().clamp(-MAX_LOGIT, MAX_LOGIT), chosen

    def _places(self, references: Tensor, content: Tensor, layer: int) -> Tensor:
        """Position embeddings [B, Q, D] of boxes [B, Q, 4] in 0..1, whatever the content is."""
        sines = anchor_sine(references, self.config.dim // 2)
        return self.ref_point_head(sines.to(self.content.weight.dtype))


# ---- Variants ---------------------------------------------------------------------------------


def _spec(recipe: str, **settings: Any) -> ModelSpec:
    config = replace(DinoConfig(), **settings)
    heads = ("class_embed", "proposals.class_embed")
    rows = [f"{head}.{kind}" for head in heads for kind in ("weight", "bias")]
    return ModelSpec(
        config=config,
        build=Dino,
        criterion=focal_criterion,
        postprocess=focal_postprocess,
        predictor=Detector,
        recipe=recipe,
        class_rows=(*rows, *["label_embed.weight"] * bool(config.dn_queries)),
    )


@register_model
def dino_nano() -> ModelSpec:
    """DINO in small, from scratch on a CPU."""
    return _spec(
        "dino_nano",
        backbone="nano",
        num_levels=3,
        dim=128,
        num_heads=4,
        encoder_layers=1,
        decoder_layers=3,
        ffn_dim=512,
        num_queries=80,
        dn_queries=30,
        coef_class=5.0,
        max_detections=100,
    )


@register_model
def dino_r50() -> ModelSpec:
    """DINO with a ResNet-50 and four levels: published AP 49.0 after 12 epochs."""
    return _spec("dino_r50")


@register_model
def dino_r50_5scale() -> ModelSpec:
    """DINO with a ResNet-50 and five levels, from stride 4: published AP 49.4 after 12 epochs."""
    return _spec("dino_r50", strides=(4, 8, 16, 32), num_levels=5)

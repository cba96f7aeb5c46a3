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

from torch import Tensor, nn

from zoo.models.detr.contrastive import contrastive_queries
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
from zoo.models.layers.deformable_transformer import (
    DeformableDecoder,
    DeformableEncoder,
    ProposalHead,
)
from zoo.models.layers.heads import MAX_LOGIT, best_rows, box_head, class_head, exact
from zoo.models.layers.levels import FlatLevels, LevelProjection
from zoo.models.layers.position import anchor_sine
from zoo.models.layers.transformer import MLP, init_xavier
from zoo.registry import ModelSpec, register_model
from zoo.types import Target


@dataclass(frozen=True, kw_only=True)
class DinoConfig(FocalConfig):
    """Settings of a DINO; the defaults are the paper's with a ResNet-50 and four levels."""

    strides: tuple[int, ...] = (8, 16, 32)
    num_levels: int = 4  # with those that strided convolutions add
    num_points: int = 4  # a level and head
    dropout: float = 0.0
    num_queries: int = 900
    look_forward_twice: bool = True
    coef_class: float = 1.0
    max_detections: int = 300

    # Contrastive denoising
    dn_queries: int = 100  # pairs an image, at most; 0: none
    label_noise: float = 0.5
    box_noise: float = 1.0


class Dino(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    def __init__(
        self, config: DinoConfig, num_classes: int, backbone: Backbone | None = None
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
        scores = proposed.logits.detach().amax(-1)
        logits, boxes = best_rows(self.config.num_queries, scores, proposed.logits, proposed.boxes)
        chosen = {"pred_logits": logits, "pred_boxes": boxes.sigmoid()}
        content = self.content.weight[: boxes.shape[1]].expand(boxes.shape[0], -1, -1)
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

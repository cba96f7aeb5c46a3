"""Deformable DETR (Zhu et al., ICLR 2021, arXiv 2010.04159).

Attention looks at a few points of every feature level instead of at all cells (section 4.1), so
that the encoder can have levels as fine as stride 8, and training takes a tenth of DETR's epochs.
``box_refine`` is iterative bounding box refinement: every decoder layer moves the boxes of the one
before. ``two_stage`` lets every cell of the memory propose a box, and the best become the queries
(both appendix A.4); it includes refinement. Classification is focal.

As in the release (github.com/fundamentalvision/Deformable-DETR), where the paper leaves it open:
proposals are chosen by the logit of class 0, and their loss, over all cells, takes every object as
of class 0; they start as squares of 0.05 of the image, doubled from level to level; the heads of
the layers share their weights, unless boxes are refined; a first reference is a point that is a
linear function of the query's position, and a box's size then starts at sigmoid(-2).

Unlike the release: in evaluation the heads run where somebody reads them only; under mixed
precision heads, coordinates and sums of samples stay in float32; the heads of layers start equal,
but not where there is one for all.

Unlike transformers 5.23: two-stage models do train their proposals (there, they get no loss); the
class loss weighs 2, as in the release; backbones are frozen as the release does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.coco_classes import COCO_91
from zoo.models.detr.deformable_keys import COCO_IDS, LAYOUTS
from zoo.models.detr.detector import Detector
from zoo.models.detr.focal import (
    FocalConfig,
    LayeredOutput,
    focal_criterion,
    focal_postprocess,
    layered_output,
    named_backbone,
)
from zoo.models.layers.backbone import Backbone
from zoo.models.layers.deformable_transformer import (
    DeformableDecoder,
    DeformableEncoder,
    ProposalHead,
    Proposals,
)
from zoo.models.layers.heads import MAX_LOGIT, best_rows, box_head, class_head, exact
from zoo.models.layers.levels import LevelProjection
from zoo.models.layers.position import sine_waves
from zoo.models.layers.transformer import MLP, init_xavier
from zoo.registry import ModelSpec, register_model
from zoo.weights import Weights


@dataclass(frozen=True, kw_only=True)
class DeformableDetrConfig(FocalConfig):
    """Settings of a Deformable DETR; the defaults are the paper's with a ResNet-50."""

    strides: tuple[int, ...] = (8, 16, 32)
    num_levels: int = 4  # with those that strided convolutions add
    num_points: int = 4  # a level and head
    ffn_dim: int = 1024
    box_refine: bool = False
    two_stage: bool = False  # the queries are proposals; needs box_refine


class DeformableDetr(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    def __init__(
        self, config: DeformableDetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        if config.two_stage and not config.box_refine:
            raise ZooError(
                "two stages go with refined boxes; set model.box_refine=true or "
                "model.two_stage=false"
            )
        dim, levels = config.dim, config.num_levels
        self.config = config
        self.backbone = backbone or named_backbone(config)
        self.input_proj = LevelProjection(self.backbone.num_channels, dim, levels)
        sizes = (dim, config.num_heads, config.ffn_dim, config.dropout)
        self.encoder = DeformableEncoder(
            *sizes,
            num_layers=config.encoder_layers,
            num_levels=levels,
            num_points=config.num_points,
        )
        self.decoder = DeformableDecoder(
            *sizes,
            num_layers=config.decoder_layers,
            num_levels=levels,
            num_points=config.num_points,
        )
        if config.two_stage:
            self.proposals = ProposalHead(dim, num_classes)
            self.pos_trans = nn.Linear(2 * dim, 2 * dim)
            self.pos_trans_norm = nn.LayerNorm(2 * dim)
            init_xavier(self.pos_trans)
        else:
            self.query_embed = nn.Embedding(config.num_queries, 2 * dim)  # position, content
            self.reference_points = nn.Linear(dim, 2)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        count = config.decoder_layers if config.box_refine else 1
        self.class_embed = _copies(class_head(dim, num_classes), count)
        self.bbox_embed = _copies(box_head(dim), count)
        if not config.two_stage:  # the first layer's boxes are made of points
            last = cast(MLP, self.bbox_embed[0]).layers[-1]
            nn.init.constant_(cast(nn.Linear, last).bias[2:], -2.0)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> LayeredOutput:
        """Predictions for a batch of images.

        ``pixel_values`` [B, 3, H, W]: uint8, or floats that are ImageNet-normalised and 0 where
        padded. ``pixel_mask`` [B, H, W]: True where valid; None where nothing is padded. In two
        stages there are as many queries as cells where those are fewer than ``num_queries``.
        """
        levels = self.input_proj(self.backbone(pixel_values, pixel_mask), pixel_mask)
        memory = self.encoder(levels)
        proposed: Proposals | None = None
        if self.config.two_stage:
            proposed = self.proposals(memory, levels)
            content, query_pos, anchors = self._from_proposals(proposed)
        else:
            content, query_pos, anchors = self._learned(memory.shape[0])
        states, boxes = self.decoder(
            content,
            anchors,
            memory,
            levels,
            query_pos=query_pos,
            box_heads=list(self.bbox_embed),
            refine=self.config.box_refine,
            every=self.training and self.config.aux_loss,
        )
        out = self._outputs(states, boxes)
        if self.training and proposed is not None:
            out["enc_outputs"] = proposed.outputs()
        return out

    def _learned(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Contents and positions [B, Q, D] of the learned queries, and logits [B, Q, 2]."""
        query_pos, content = self.query_embed.weight.expand(batch, -1, -1).chunk(2, -1)
        points = exact(self.reference_points, query_pos)
        return content, query_pos, points.clamp(-MAX_LOGIT, MAX_LOGIT)

    def _from_proposals(self, proposed: Proposals) -> tuple[Tensor, Tensor, Tensor]:
        """Contents and positions [B, Q, D] from the best proposals, and their logits [B, Q, 4].

        Both are a linear function of the sines of the proposal's box; nothing here sends a
        gradient to the proposals, which have a loss of their own.
        """
        scores = proposed.logits[..., 0]
        [boxes] = best_rows(self.config.num_queries, scores, proposed.boxes.detach())
        angles = boxes.sigmoid() * (2.0 * torch.pi)
        sines = sine_waves(angles, self.config.dim // 2).flatten(-2)  # of x, y, w, h
        sines = sines.to(self.pos_trans.weight.dtype)
        query_pos, content = self.pos_trans_norm(self.pos_trans(sines)).chunk(2, -1)
        return content, query_pos, boxes.clamp(-MAX_LOGIT, MAX_LOGIT)

    def _outputs(self, states: Tensor, boxes: Tensor) -> LayeredOutput:
        """Predictions of the layers with states [N, B, Q, D] and boxes [N, B, Q, 4]."""
        heads = list(self.class_embed)[-len(states) :]  # of the last N layers
        if len(heads) < len(states):
            logits = list(exact(heads[0], states))
        else:
            logits = [exact(head, state) for head, state in zip(heads, states, strict=True)]
        return layered_output(torch.stack(list(logits)), boxes, training=self.training)


def _copies(head: nn.Module, count: int) -> nn.ModuleList:
    """``count`` heads that begin alike."""
    return nn.ModuleList([head, *(deepcopy(head) for _ in range(count - 1))])


# ---- Variants ---------------------------------------------------------------------------------


# One row a class: of the heads of all layers, and of the proposals'.
CLASS_ROWS = tuple(
    f"{head}.{kind}"
    for head in ("class_embed.*", "proposals.class_embed")
    for kind in ("weight", "bias")
)


def _spec(recipe: str, weights: Mapping[str, Weights] | None = None, **settings: Any) -> ModelSpec:
    config = replace(DeformableDetrConfig(), **settings)
    return ModelSpec(
        config=config,
        build=DeformableDetr,
        criterion=focal_criterion,
        postprocess=focal_postprocess,
        predictor=Detector,
        recipe=recipe,
        weights=weights or {},
        layouts=LAYOUTS,
        class_rows=CLASS_ROWS[: None if config.two_stage else 2],
    )


def _published(hub: str, ap: float) -> Mapping[str, Weights]:
    """transformers' conversion of the release; AP is the release's README's, on val2017."""
    coco: dict[str, Any] = {"class_names": COCO_91, "class_ids": COCO_IDS, "metrics": {"AP": ap}}
    return {"coco": Weights(source=f"SenseTime/{hub}", licence="Apache-2.0", **coco)}


@register_model
def deformable_detr_nano() -> ModelSpec:
    """Deformable DETR in small, two stages, from scratch on a CPU."""
    return _spec(
        "deformable_detr_nano",
        backbone="nano",
        num_levels=3,
        dim=128,
        num_heads=4,
        encoder_layers=1,
        decoder_layers=3,
        ffn_dim=512,
        dropout=0.0,
        num_queries=80,
        box_refine=True,
        two_stage=True,
    )


@register_model
def deformable_detr_r50() -> ModelSpec:
    """Deformable DETR with a ResNet-50: 40 M parameters, published AP 44.5."""
    return _spec("deformable_detr_r50", _published("deformable-detr", 0.445))


@register_model
def deformable_detr_r50_refine() -> ModelSpec:
    """Deformable DETR that refines boxes, with a ResNet-50: 41 M parameters, published AP 46.2."""
    weights = _published("deformable-detr-with-box-refine", 0.462)
    return _spec("deformable_detr_r50", weights, box_refine=True)


@register_model
def deformable_detr_r50_two_stage() -> ModelSpec:
    """Two-stage Deformable DETR with a ResNet-50: 41 M parameters, published AP 46.9."""
    weights = _published("deformable-detr-with-box-refine-two-stage", 0.469)
    return _spec("deformable_detr_r50_two_stage", weights, box_refine=True, two_stage=True)

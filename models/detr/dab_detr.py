"""DAB-DETR: dynamic anchor boxes as queries (Liu et al., ICLR 2022, arXiv 2201.12329).

A query is an anchor box (x, y, w, h) that every decoder layer moves (section 4). Its position
embedding is an MLP over the sines of the four; cross attention compares content with content and
place with place, as in Conditional DETR, the places scaled by the anchor's size, so that attention
becomes a window of the box's shape (section 4.4). Classification is focal.

As in the release (github.com/IDEA-Research/DAB-DETR), where the paper's text leaves it open: the
sines of memory positions have temperature 20, those of anchors 10000; the next layer's anchor
comes from the box head over a layer's state *before* the decoder's norm, the layer's own box from
the same head over the state after it (``refine_normed=False``); an anchor is detached where a
layer attends with it, and not where that layer's box is added to it (``look_forward=True``).

Unlike the release: ``random_refpoints_xy`` really freezes the centres (there, ``requires_grad``
is set on a slice, which does nothing); an anchor's side counts as 1e-5 at least where it divides;
the heads do not run where nobody reads them.

Neither the paper's nor the release's, off by default, used by the nano variants that learn from
scratch on small data in minutes: what :mod:`zoo.models.detr.memory` names, ``anchor_sizes``
(anchors spread evenly over the image), ``refine_normed``, and ``local_start`` (places are compared
by one projection at the start, and are not multiplied by random numbers, so that attention begins
as a window around the anchor; it needs ``anchor_temperature`` equal to ``temperature``).

Likewise ``many_groups`` (one-to-many matching, see :mod:`zoo.models.detr.one_to_many`) and a larger
``coef_class``: on small data the gradient of the box losses drowns that of the classes
(docs/log.md).

DN-DETR is the switch ``denoising``: see :mod:`zoo.models.detr.dn_detr`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.errors import ZooError, nearest
from zoo.models.detr.anchors import Anchors, QuerySelection
from zoo.models.detr.coco_classes import COCO_91
from zoo.models.detr.dab_keys import COCO_IDS, LAYOUTS
from zoo.models.detr.denoising import LabelEmbedding, denoising_queries
from zoo.models.detr.dense import DenseHead
from zoo.models.detr.focal import (
    LayeredOutput,
    focal_criterion,
    focal_postprocess,
    layered_output,
    with_noised,
)
from zoo.models.detr.mask_head import Trace
from zoo.models.detr.memory import (
    SMALL,
    MemoryConfig,
    class_rows,
    map_projection,
    memory_backbone,
    read_cells,
    selected,
)
from zoo.models.detr.one_to_many import GroupQueries, OneToManyCriterion, group_mask
from zoo.models.layers.backbone import Backbone
from zoo.models.layers.conditional import (
    ConditionalDecoderLayer,
    ScaledEncoder,
    autocast_once,
    scale_head,
)
from zoo.models.layers.heads import MAX_LOGIT, MIN_SIDE, box_head, class_head, exact
from zoo.models.layers.position import anchor_sine
from zoo.models.layers.transformer import ACTIVATIONS, MLP, init_xavier
from zoo.registry import ModelSpec, register_model
from zoo.types import Criterion, Target
from zoo.weights import Weights


@dataclass(frozen=True, kw_only=True)
class DabDetrConfig(MemoryConfig):
    """Settings of a DAB-DETR (of a DN-DETR with ``denoising``); the defaults are the paper's."""

    dropout: float = 0.0
    activation: str = "prelu"
    temperature: float = 20.0  # of the memory's sine positions
    num_patterns: int = 0  # contents a query has, each with every anchor; 0: one of zeros
    random_refpoints_xy: bool = False  # anchor centres uniform at random, and frozen
    coef_class: float = 1.0

    # Not the paper's: see the module's docstring.
    anchor_sizes: tuple[float, ...] = ()  # sides of anchors spread evenly; (): N(0, 1) logits
    refine_normed: bool = False
    look_forward: bool = True
    anchor_temperature: float = 10000.0  # of the anchors' sines
    local_start: bool = False  # attention begins as a window around the anchor

    # One-to-many matching in training: groups of as many queries as there are otherwise
    many_groups: int = 0
    many_repeats: int = 1  # queries that an object is matched with in each group
    coef_many: float = 1.0  # of the groups' mean loss

    # DN-DETR
    denoising: bool = False
    dn_groups: int = 5  # noised copies of every object
    dn_queries: int = 0  # if set, as many copies as fit into that number of queries instead
    label_noise: float = 0.2
    box_noise: float = 0.4


class DabDecoder(nn.Module):
    """Layers that move anchors, with the box head that says by how much (section 4)."""

    def __init__(self, config: DabDetrConfig) -> None:
        super().__init__()
        dim, count = config.dim, config.decoder_layers
        self.config = config
        self.layers = nn.ModuleList(
            ConditionalDecoderLayer(
                dim, config.num_heads, config.ffn_dim, config.dropout, config.activation, n == 0
            )
            for n in range(count)
        )
        self.norm = nn.LayerNorm(dim)
        self.query_scale = scale_head(dim, count > 1, config.local_start)
        self.ref_point_head = MLP(2 * dim, dim, dim, 2)
        self.ref_anchor_head = MLP(dim, dim, 2, 2)
        for part in (self.layers, self.ref_point_head, self.ref_anchor_head):
            init_xavier(part)
        if config.local_start:
            for layer in self.layers:
                cast(ConditionalDecoderLayer, layer).align_places()
        self.bbox_embed = box_head(dim)

    def forward(
        self,
        x: Tensor,
        anchors: Tensor,
        memory: Tensor,
        *,
        memory_pos: Tensor,
        memory_mask: Tensor | None = None,
        self_mask: Tensor | None = None,
        every: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Normed states [N, B, Q, D] and boxes [N, B, Q, 4] of every layer, or of the last [1, ..].

        ``x`` [B, Q, D] are the contents, ``anchors`` [B, Q, 4] logits; ``memory`` [B, S, D],
        ``memory_pos`` [B or 1, S, D]. Masks are True where a query may look: ``memory_mask``
        [B, 1, 1, S], ``self_mask`` broadcastable to [B, 1, Q, Q].
        """
        # What every layer reads, in the precision it is read in: once, not in every projection.
        memory, memory_pos = autocast_once(memory), autocast_once(memory_pos)
        states, boxes = [], []
        base, last = anchors, len(self.layers) - 1
        for n, layer in enumerate(self.layers):
            query_pos, query_sine = self.embed(x, anchors.sigmoid(), first=n == 0)
            x = layer(
                x,
                memory,
                query_pos=query_pos,
                query_sine=query_sine,
                memory_pos=memory_pos,
                memory_mask=memory_mask,
                self_mask=self_mask,
            )
            state = self.norm(x)
            step = None
            if every or n == last:
                step = exact(self.bbox_embed, state)
                states.append(state)
                boxes.append((base + step).sigmoid())
            if n < last:
                if step is None or not self.config.refine_normed:
                    step = exact(self.bbox_embed, state if self.config.refine_normed else x)
                base = (anchors + step).clamp(-MAX_LOGIT, MAX_LOGIT)
                anchors = base.detach()
                base = base if self.config.look_forward else anchors
        return torch.stack(states), torch.stack(boxes)

    def embed(self, x: Tensor, anchors: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        """Position embedding and modulated sines of ``anchors`` [B, Q, 4], each [B, Q, D].

        ``x`` [B, Q, D] is the content. The sines of (x, y) are multiplied by a function of it
        (except before the ``first`` layer) and, per axis, by a width or height that it asks for
        over the anchor's: equation 6 of the paper.
        """
        half = self.config.dim // 2
        sine = anchor_sine(anchors, half, self.config.anchor_temperature)  # of y, x, w, h
        place = sine[..., : 2 * half]
        if not first:
            place = place * self.query_scale(x)
        size = self.ref_anchor_head(x).to(sine.dtype).sigmoid()
        factor = (size / anchors[..., 2:].clamp(min=MIN_SIDE)).flip(-1)  # of y, x
        place = (place.unflatten(-1, (2, half)) * factor[..., None]).flatten(-2)
        return self.ref_point_head(sine), place


class DabDetr(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    def __init__(
        self, config: DabDetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        _check(config)
        dim = config.dim
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone or memory_backbone(config)
        self.level, self.input_proj = map_projection(config, self.backbone)
        self.encoder = ScaledEncoder(
            dim,
            config.num_heads,
            config.ffn_dim,
            config.dropout,
            config.activation,
            num_layers=config.encoder_layers,
            at_one=config.local_start,
        )
        self.decoder = DabDecoder(config)
        sizes = config.anchor_sizes
        if config.query_selection:
            side = sizes[0] if sizes else 0.1
            self.selection = QuerySelection(dim, num_classes, config.num_queries, side)
        else:
            frozen = config.random_refpoints_xy
            self.anchors = Anchors(config.num_queries, freeze_xy=frozen, sizes=sizes)
        if config.dense_side:
            self.dense = DenseHead(dim, num_classes, config.dense_side)
        if config.many_groups:
            self.many = GroupQueries(
                config.many_groups,
                config.num_queries,
                dim,
                learned=not config.query_selection,
                anchor_sizes=sizes,
            )
        if config.num_patterns:
            self.patterns = nn.Embedding(config.num_patterns, dim)
        if config.denoising:
            self.label_embed = LabelEmbedding(num_classes, dim)
        self.class_embed = class_head(dim, num_classes)

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
        return cast(LayeredOutput, self.traced(pixel_values, pixel_mask, targets).out)

    def traced(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        targets: Sequence[Target] | None = None,
    ) -> Trace:
        """As :meth:`forward`, with what a mask head reads."""
        config = self.config
        levels = self.backbone(pixel_values, pixel_mask)
        cells = read_cells(self, levels, pixel_mask)
        memory = self.encoder(cells.tokens, cells.pos, cells.allowed)
        content, anchors, proposals = self._queries(memory, cells.mask)
        noised, self_mask = None, None
        sizes = [content.shape[1]]
        if self.training and config.many_groups:
            more = self.many(content, anchors)
            sizes += [more[0].shape[1] // config.many_groups] * config.many_groups
            content, anchors = torch.cat([content, more[0]], 1), torch.cat([anchors, more[1]], 1)
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
        if len(sizes) > 1:
            seen = group_mask(sizes, noised, device=content.device)
            self_mask = torch.zeros_like(seen, dtype=content.dtype).masked_fill_(~seen, -torch.inf)
        states, boxes = self.decoder(
            content,
            anchors,
            memory,
            memory_pos=cells.pos,
            memory_mask=cells.allowed,
            self_mask=self_mask,
            every=self.training and config.aux_loss,
        )
        logits = exact(self.class_embed, states)
        end = logits.shape[2] - sum(sizes[1:])
        out = layered_output(
            logits[:, :, :end],
            boxes[:, :, :end],
            training=self.training,
            proposals=proposals,
            noised=noised,
        )
        if len(sizes) > 1:
            out["many_outputs"] = {
                "pred_logits": logits[:, :, end:],
                "pred_boxes": boxes[:, :, end:],
                "groups": config.many_groups,
                "repeats": config.many_repeats,
            }
        if self.training and config.dense_side:
            out["dense_outputs"] = self.dense(memory, cells.mask)
        first = noised.length if noised is not None else 0
        last = states[-1, :, first:end]
        return Trace.of(out, levels, self.level, cells.tokens, memory, cells.mask, last)

    def _queries(
        self, memory: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
        """Contents [B, Q, D], anchors' logits [B, Q, 4], and the proposals as an output."""
        batch, _, dim = memory.shape
        proposals: list[dict[str, Tensor]] = []
        if self.config.query_selection:
            content, anchors, proposals = selected(self.selection, memory, mask)
        else:
            patterns = memory.new_zeros(1, dim)
            if self.config.num_patterns:
                patterns = self.patterns.weight
            anchors = self.anchors()
            content = patterns.repeat_interleave(len(anchors), dim=0).expand(batch, -1, -1)
            anchors = anchors.repeat(len(patterns), 1).expand(batch, -1, -1)
        if self.config.denoising:
            content = content + self.label_embed.unknown()
        return content, anchors, proposals


def _check(config: DabDetrConfig) -> None:
    if config.activation not in ACTIVATIONS:
        raise ZooError(
            f"there is no activation '{config.activation}' (model.activation); "
            f"{nearest(config.activation, list(ACTIVATIONS))}"
        )
    if config.query_selection and config.num_patterns:
        raise ZooError(
            "patterns belong to learned anchors; set model.num_patterns=0 or "
            "model.query_selection=false"
        )
    if config.many_groups < 0 or config.many_repeats < 1 or config.coef_many < 0:
        raise ZooError(
            f"model.many_groups={config.many_groups} and model.coef_many={config.coef_many} have "
            f"to be 0 or more, and model.many_repeats={config.many_repeats} 1 or more"
        )


# ---- Variants ---------------------------------------------------------------------------------


def _predictor(*args: Any, **kwargs: Any) -> Any:
    from zoo.models.detr.detector import Detector

    return Detector(*args, **kwargs)


def _criterion(config: DabDetrConfig, num_classes: int) -> Criterion:
    criterion = focal_criterion(config, num_classes)
    if config.many_groups:
        return OneToManyCriterion(criterion, weight=config.coef_many)
    return criterion


def dab_rows(config: DabDetrConfig) -> tuple[str, ...]:
    """The state keys with one row a class."""
    rows = class_rows(config, "selection.")
    return (*rows, "label_embed.embedding.weight") if config.denoising else rows


def dab_spec(
    recipe: str, weights: Mapping[str, Weights] | None = None, **settings: Any
) -> ModelSpec:
    """A variant of this model (or, with ``denoising``, of DN-DETR) with these settings."""
    config = replace(DabDetrConfig(), **settings)
    return ModelSpec(
        config=config,
        build=DabDetr,
        criterion=_criterion,
        postprocess=focal_postprocess,
        predictor=_predictor,
        recipe=recipe,
        weights=weights or {},
        layouts=LAYOUTS,
        class_rows=dab_rows(config),
    )


def _published(hub: str, ap: float) -> Mapping[str, Weights]:
    """transformers' conversion of the release; AP is the paper's (table 2), on val2017."""
    coco: dict[str, Any] = {"class_names": COCO_91, "class_ids": COCO_IDS, "metrics": {"AP": ap}}
    return {"coco": Weights(source=f"IDEA-Research/{hub}", licence="Apache-2.0", **coco)}


# From scratch in minutes on a CPU; what is not the paper's is in the module's docstring.
NANO: Mapping[str, Any] = {
    **SMALL,
    "activation": "relu",
    "anchor_sizes": (0.1,),
    "refine_normed": True,
    "local_start": True,
    "anchor_temperature": 20.0,
    "dn_queries": 60,
}


@register_model
def dab_detr_nano() -> ModelSpec:
    """DAB-DETR in small, from scratch on a CPU: fused levels and proposed anchors."""
    return dab_spec("dab_detr_nano", **NANO)


@register_model
def dab_detr_r50() -> ModelSpec:
    """DAB-DETR with a ResNet-50, the paper's base model: 43.7 M parameters, published AP 42.2."""
    return dab_spec("dab_detr_r50", _published("dab-detr-resnet-50", 0.422))


@register_model
def dab_detr_r50_dc5() -> ModelSpec:
    """DAB-DETR-DC5 with a ResNet-50, twice the resolution: 43.7 M parameters, published AP 44.5."""
    weights = _published("dab-detr-resnet-50-dc5", 0.445)
    return dab_spec("dab_detr_r50", weights, dilation=True, temperature=10.0)

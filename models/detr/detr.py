"""DETR: detection as direct set prediction (Carion et al., ECCV 2020, arXiv 2005.12872).

A ResNet's last feature map, flattened, goes through a transformer encoder; a decoder turns a fixed
set of learned queries into as many predictions, each a class or "no object" and a box (sections
3.2 and A.4). Training matches predictions to objects one to one (section 3.1).

As in the release (github.com/facebookresearch/detr), where the paper leaves it open: positions are
added to queries and keys in every attention, not to values; the decoder starts from zeros; its
final norm is applied to every layer's state for that layer's heads and is not fed back; all
projections begin Xavier-uniform with the bound of a fused query-key-value matrix.

Unlike the release: in evaluation the heads run on the last layer only; under mixed precision the
heads and the tokens' residual sums stay in float32, as a box in bfloat16 is off by pixels; the
learned position embedding says so when an image is too large for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.coco_classes import COCO_91
from zoo.models.detr.criterion import SetCriterion, SoftmaxLoss
from zoo.models.detr.detector import Detector
from zoo.models.detr.mask_head import Trace
from zoo.models.detr.matcher import HungarianMatcher
from zoo.models.detr.postprocess import DetectionPostprocess
from zoo.models.layers.backbone import Backbone, Level, build_backbone, known_unpadded
from zoo.models.layers.position import LearnedPosition, sine_position
from zoo.models.layers.transformer import MLP, DecoderLayer, EncoderLayer, PromptSlot, init_xavier
from zoo.registry import ModelSpec, register_model
from zoo.types import Postprocess
from zoo.weights import KeyLayout, State, Weights


@dataclass(frozen=True, kw_only=True)
class DetrConfig:
    """Settings of a DETR; the defaults are the paper's with a ResNet-50."""

    backbone: str = "resnet50"  # or another ResNet, or nano
    backbone_weights: str | None = None  # IMAGENET1K_V1, a file, none (random) or null (later)
    dilation: bool = False  # DC5: the last stage keeps its resolution, stride 16 instead of 32
    norm: str = "frozen"  # of the ResNet: frozen, or batch to train from scratch
    position: str = "sine"  # or learned
    position_cells: int = 50  # largest side of a feature map that learned positions reach
    dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_dim: int = 2048
    dropout: float = 0.1
    num_queries: int = 100
    aux_loss: bool = True  # losses on every decoder layer
    norm_first: bool = False  # pre-norm layers, and a norm after the encoder

    # Matching and losses
    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    coef_class: float = 1.0
    coef_bbox: float = 5.0
    coef_giou: float = 2.0
    eos_coef: float = 0.1  # weight of the class "no object"
    max_detections: int = 100  # an image, in predictions


class DetrOutput(TypedDict, total=False):
    """What the model returns; boxes are cxcywh in 0..1 of the unpadded image.

    In training with ``aux_loss``, ``aux_outputs`` holds the same two keys for every earlier
    decoder layer, first to last.
    """

    pred_logits: Tensor  # [B, Q, K + 1], the last class is "no object"
    pred_boxes: Tensor  # [B, Q, 4]
    aux_outputs: list[dict[str, Tensor]]


class Encoder(nn.Module):
    """The encoder: layers of self attention over the cells of the feature map.

    There is a final norm with ``norm_first`` only.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.prompt = PromptSlot()
        self.layers = nn.ModuleList(
            EncoderLayer(
                config.dim,
                config.num_heads,
                config.ffn_dim,
                config.dropout,
                norm_first=config.norm_first,
            )
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.dim) if config.norm_first else nn.Identity()

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor | None) -> Tensor:
        """[B, S, D] from tokens and positions of that shape; ``mask`` [B, 1, 1, S] or None."""
        tokens, places, allowed = self.prompt(x, pos, mask)
        for layer in self.layers:
            tokens = layer(tokens, places, allowed)
        return self.norm(self.prompt.strip(tokens))


class Decoder(nn.Module):
    """The decoder: queries attend to each other and to the memory."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(
                config.dim,
                config.num_heads,
                config.ffn_dim,
                config.dropout,
                norm_first=config.norm_first,
            )
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self,
        memory: Tensor,
        pos: Tensor,
        query_pos: Tensor,
        mask: Tensor | None,
        every: bool,
        self_mask: Tensor | None = None,
    ) -> Tensor:
        """Normed states [N, B, Q, D] of every layer, or [1, B, Q, D] of the last.

        ``memory`` and ``pos`` [B, S, D], ``query_pos`` [B, Q, D], ``mask`` [B, 1, 1, S] or None;
        ``self_mask`` [Q, Q] or None says which queries see each other.
        """
        x = torch.zeros_like(query_pos)
        keys = memory + pos  # once, not in every layer
        states = []
        for layer in self.layers:
            x = layer(
                x, memory, query_pos=query_pos, memory_mask=mask, self_mask=self_mask, keys=keys
            )
            states.append(x)
        return self.norm(torch.stack(states if every else states[-1:]))


class Detr(nn.Module):
    """The model; ``backbone`` replaces the one that the config names."""

    level = -1  # of the backbone's, which the encoder reads

    def __init__(
        self, config: DetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        if config.position not in ("sine", "learned"):
            raise ZooError(f"there is no position '{config.position}'; set sine or learned")
        self.config = config
        self.backbone = backbone or build_backbone(
            config.backbone,
            dilation=config.dilation,
            weights=config.backbone_weights,
            norm=config.norm,
        )
        self.input_proj = nn.Conv2d(self.backbone.num_channels[-1], config.dim, 1)
        self.position: LearnedPosition | None = None
        if config.position == "learned":
            self.position = LearnedPosition(config.dim, config.position_cells)
        self.query_embed = nn.Embedding(config.num_queries, config.dim)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.class_embed = nn.Linear(config.dim, num_classes + 1)
        self.bbox_embed = MLP(config.dim, config.dim, 4, 3)
        init_xavier(self.encoder)
        init_xavier(self.decoder)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> DetrOutput:
        """Predictions for a batch of images.

        ``pixel_values`` [B, 3, H, W]: uint8, or floats that are ImageNet-normalised and 0 where
        padded. ``pixel_mask`` [B, H, W]: True where valid; None where nothing is padded.
        """
        return cast(DetrOutput, self.traced(pixel_values, pixel_mask).out)

    def traced(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Trace:
        """As :meth:`forward`, with what a mask head reads."""
        levels = self.backbone(pixel_values, pixel_mask)
        tokens, pos, mask = self.tokens(levels)
        allowed = None if known_unpadded(pixel_mask, mask) else mask.flatten(1)[:, None, None]
        memory = self.encoder(tokens, pos, allowed)
        states = self.states(memory, pos, allowed)
        return Trace.of(self.heads(states), levels, self.level, tokens, memory, mask, states[-1])

    def tokens(self, levels: Sequence[Level]) -> tuple[Tensor, Tensor, Tensor]:
        """What the encoder reads of a backbone's last level.

        Tokens and positions [B, S, D], and the map's mask [B, h, w].
        """
        features, mask = levels[-1]
        pos = self.positions(mask)
        return self.input_proj(features).flatten(2).transpose(1, 2).to(pos.dtype), pos, mask

    def decode(self, memory: Tensor, pos: Tensor, allowed: Tensor | None) -> DetrOutput:
        """Predictions from a memory and its positions [B, S, D]; ``allowed`` [B, 1, 1, S]."""
        return self.heads(self.states(memory, pos, allowed))

    def states(self, memory: Tensor, pos: Tensor, allowed: Tensor | None) -> Tensor:
        """The decoder's normed states from the same, as :meth:`Decoder.forward` returns them."""
        query_pos = self.query_embed.weight.expand(memory.shape[0], -1, -1)
        every = self.training and self.config.aux_loss
        return self.decoder(memory, pos, query_pos, allowed, every)

    def positions(self, mask: Tensor) -> Tensor:
        """Position embeddings [B, S, D] of a feature map's cells; ``mask`` [B, h, w]."""
        if self.position is not None:
            return cast(Tensor, self.position(mask))
        dtype = self.query_embed.weight.dtype
        at_least = torch.promote_types(dtype, torch.float32)  # counts need more than 8 bits
        return sine_position(mask, self.config.dim, dtype=at_least).to(dtype)

    def heads(self, states: Tensor) -> DetrOutput:
        """Predictions from normed decoder states [N, B, Q, D]; the last layer's are the model's."""
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(self.class_embed.weight.dtype)
            logits = self.class_embed(states)
            boxes = self.bbox_embed(states).sigmoid()
        out: DetrOutput = {"pred_logits": logits[-1], "pred_boxes": boxes[-1]}
        if len(states) > 1:
            earlier = zip(logits[:-1], boxes[:-1], strict=True)
            out["aux_outputs"] = [{"pred_logits": c, "pred_boxes": b} for c, b in earlier]
        return out


# ---- Other projects' names of the same tensors ------------------------------------------------


def split_fused(state: State) -> State:
    """``in_proj_weight`` and ``in_proj_bias`` to the three projections they are made of."""
    out: State = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".in_proj_")
        if not stem:
            out[key] = value
            continue
        for name, part in zip("qkv", value.chunk(3), strict=True):
            out[f"{stem}.{name}_proj.{kind}"] = part.clone()
    return out


_Rules = tuple[tuple[str, str], ...]

# A frozen norm counts nothing.
_COUNTERS: _Rules = ((r"^.*\.num_batches_tracked$", ""),)
_PANOPTIC: _Rules = ((r"^(bbox_attention|mask_head)\..*$", ""), (r"^detr\.", ""))

# facebookresearch/detr
_RELEASE: _Rules = (
    *_COUNTERS,
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^backbone\.1\.", "position."),
    (r"^transformer\.", ""),
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"\.out_proj\.", ".o_proj."),
)

# transformers' own ResNet, in place of timm's, after what leads to it
TRANSFORMERS_RESNET: _Rules = (
    (r"^backbone\.embedder\.embedder\.convolution\.", "backbone.conv1."),
    (r"^backbone\.embedder\.embedder\.normalization\.", "backbone.bn1."),
    *((rf"^backbone\.encoder\.stages\.{s}\.layers\.", f"backbone.layer{s + 1}.") for s in range(4)),
    *((rf"\.layer\.{j}\.convolution\.", f".conv{j + 1}.") for j in range(3)),
    *((rf"\.layer\.{j}\.normalization\.", f".bn{j + 1}.") for j in range(3)),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)
# Its encoder and decoder layers, in all ports of this family.
TRANSFORMERS_LAYERS: _Rules = (
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"^(encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\..*)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
)

# transformers: hub files (of version 4 names, which version 5 still writes), its names in memory
# since version 5, and both with either ResNet.
_TRANSFORMERS: _Rules = (
    *_COUNTERS,
    (r"^model\.", ""),
    (r"^backbone\.(conv_encoder\.)?model\.", "backbone."),
    *TRANSFORMERS_RESNET,
    (r"^input_projection\.", "input_proj."),
    (r"^query_position_embeddings\.", "query_embed."),
    (r"^position_embedding\.row_embeddings\.", "position.row_embed."),
    (r"^position_embedding\.column_embeddings\.", "position.col_embed."),
    (r"\.out_proj\.", ".o_proj."),
    *TRANSFORMERS_LAYERS,
    (r"^decoder\.layernorm\.", "decoder.norm."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
)

_COCO_IDS = tuple(range(len(COCO_91)))

LAYOUTS = (
    KeyLayout(
        name="the DETR release's",
        marker=r"^transformer\.decoder\.layers\.0\.multihead_attn\.in_proj_weight$",
        rules=_RELEASE,
        fix=split_fused,
        class_names=COCO_91,
        class_ids=_COCO_IDS,
    ),
    KeyLayout(
        name="the DETR release's panoptic, mask head left out,",
        marker=r"^detr\.transformer\.decoder\.layers\.0\.multihead_attn\.in_proj_weight$",
        rules=(*_PANOPTIC, *_RELEASE),
        fix=split_fused,
    ),
    KeyLayout(
        name="transformers'",
        marker=r"^model\.decoder\.layers\.0\.self_attn\.q_proj\.weight$",
        rules=_TRANSFORMERS,
    ),
    KeyLayout(
        name="transformers' panoptic, mask head left out,",
        marker=r"^detr\.model\.decoder\.layers\.0\.self_attn\.q_proj\.weight$",
        rules=(*_PANOPTIC, *_TRANSFORMERS),
    ),
)


# ---- Variants ---------------------------------------------------------------------------------


def detr_criterion(config: DetrConfig, num_classes: int) -> SetCriterion:
    """The losses of a DETR with these settings."""
    matcher = HungarianMatcher(
        config.cost_class, config.cost_bbox, config.cost_giou, kind="softmax"
    )
    return SetCriterion(
        num_classes,
        matcher,
        SoftmaxLoss(config.eos_coef),
        coef_class=config.coef_class,
        coef_bbox=config.coef_bbox,
        coef_giou=config.coef_giou,
    )


def detr_postprocess(config: DetrConfig) -> Postprocess:
    """The predictions of a DETR with these settings."""
    return DetectionPostprocess(kind="softmax", max_detections=config.max_detections)


def _spec(recipe: str, weights: Mapping[str, Weights] | None = None, **settings: Any) -> ModelSpec:
    return ModelSpec(
        config=replace(DetrConfig(), **settings),
        build=Detr,
        criterion=detr_criterion,
        postprocess=detr_postprocess,
        predictor=Detector,
        recipe=recipe,
        weights=weights or {},
        layouts=LAYOUTS,
        class_rows=("class_embed.weight", "class_embed.bias"),
    )


def _published(hub: str, file: str, ap: float, ap50: float) -> Mapping[str, Weights]:
    """The released weights, from the hub and from the release; AP is its README's, on val2017."""

    def at(source: str) -> Weights:
        return Weights(
            source=source,
            class_names=COCO_91,
            class_ids=_COCO_IDS,
            metrics={"AP": ap, "AP50": ap50},
            licence="Apache-2.0",
        )

    return {
        "coco": at(f"facebook/detr-resnet-{hub}"),
        "coco-release": at(f"https://dl.fbaipublicfiles.com/detr/detr-{file}.pth"),
    }


@register_model
def detr_nano() -> ModelSpec:
    """Plain DETR in small, from scratch on a CPU; learns slowly, as the paper's does."""
    return _spec(
        "detr_nano",
        backbone="nano",
        dim=128,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=3,
        ffn_dim=512,
        dropout=0.0,
    )


@register_model
def detr_r50() -> ModelSpec:
    """DETR with a ResNet-50, the paper's base model: 41.5 M parameters, published AP 42.0."""
    return _spec("detr_r50", _published("50", "r50-e632da11", 0.420, 0.624))


@register_model
def detr_r50_dc5() -> ModelSpec:
    """DETR-DC5 with a ResNet-50, twice the resolution: 41.5 M parameters, published AP 43.3."""
    weights = _published("50-dc5", "r50-dc5-f0fb7ef5", 0.433, 0.631)
    return _spec("detr_r50_dc5", weights, dilation=True)


@register_model
def detr_r101() -> ModelSpec:
    """DETR with a ResNet-101: 60.5 M parameters, published AP 43.5."""
    weights = _published("101", "r101-2c7b67e5", 0.435, 0.638)
    return _spec("detr_r101", weights, backbone="resnet101")


@register_model
def detr_r101_dc5() -> ModelSpec:
    """DETR-DC5 with a ResNet-101: 60.5 M parameters, published AP 44.9."""
    weights = _published("101-dc5", "r101-dc5-a2e86def", 0.449, 0.647)
    return _spec("detr_r101_dc5", weights, backbone="resnet101", dilation=True)

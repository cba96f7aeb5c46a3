"""The layout-aware encoder: text with boxes, and an image's tokens, through one transformer.

One encoder whose switches (:class:`.config.LayoutConfig`) make it BERT, LayoutLM, LayoutLMv3,
ERNIE-Layout or ViLT; each variant's file says which paper it is and is tested against a reference.

Unlike the references: relative biases are trained (transformers gathers them without gradients);
boxes are clamped and sizes are never negative; dropout acts inside the feed-forward block too (the
zoo's :class:`EncoderLayer`, which also serves DETR).
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.document.bias import RelativeBias
from zoo.models.document.config import LayoutConfig
from zoo.models.document.disentangled import DisentangledLayer, RelativePlaces
from zoo.models.document.embeddings import TextEmbeddings
from zoo.models.document.vision import GridFeatures, PatchProjection, VisualTokens
from zoo.models.layers.backbone import known_unpadded
from zoo.models.layers.transformer import EncoderLayer, Mask, PackedRows, PromptSlot

PACKED = 6 * 2**20  # elements of the widest activations of rows packed together: they are reused
MOSTLY_FULL = 0.9  # of a batch's tokens are valid: padding costs less than leaving it out


class Encoded(NamedTuple):
    """``text`` [B, L, D]; with an image ``visual`` [B, V, D] and ``visual_start`` [B, V, D].

    ``visual_start`` are the visual tokens before the first layer.
    """

    text: Tensor
    visual: Tensor | None = None
    visual_start: Tensor | None = None


class LayoutEncoder(nn.Module):
    """Encodes rows of tokens; see :meth:`forward`."""

    def __init__(self, config: LayoutConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        self.vision: GridFeatures | PatchProjection | None = None
        if config.vision == "grid":
            self.vision = GridFeatures(config)
        elif config.vision == "patch":
            self.vision = PatchProjection(config)
        self.modality = nn.Embedding(config.modalities, config.dim) if config.modalities else None
        self.joint_norm: nn.LayerNorm | None = None
        if config.vision == "patch" and config.patch_norm:
            self.joint_norm = nn.LayerNorm(config.dim, eps=config.eps)
        self.joint_dropout = nn.Dropout(config.dropout)
        self.bias: RelativeBias | None = None
        self.places: RelativePlaces | None = None
        layer: type[EncoderLayer] = EncoderLayer
        if config.attention == "bias":
            self.bias = RelativeBias(
                config.num_heads,
                position_bins=config.position_bins,
                position_reach=config.position_reach,
                box_bins=config.box_bins,
                box_reach=config.box_reach,
                scale=math.sqrt(config.num_heads / config.dim) if config.bias_scaled else 1.0,
            )
        elif config.attention == "disentangled":
            self.places = RelativePlaces(config.dim, config.position_reach, config.box_reach)
            layer = DisentangledLayer
        self.prompt = PromptSlot()
        self.layers = nn.ModuleList(
            layer(
                config.dim,
                config.num_heads,
                config.ffn_dim,
                config.dropout,
                "gelu",
                config.norm_first,
                config.eps,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim, eps=config.eps) if config.norm_first else None
        self._init_weights()

    def forward(
        self,
        input_ids: Tensor,
        bbox: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
    ) -> Encoded:
        """Encoded tokens of a batch.

        ``input_ids`` [B, L]; ``bbox`` [B, L, 4] xyxy 0..1000 (a model without boxes ignores it);
        ``attention_mask`` [B, L] True where valid, None: everywhere; ``position_ids`` [B, L] in
        reading order from 0, None: as they stand; ``segment_ids`` [B, L], None: 0;
        ``pixel_values`` [B, 3, H, W] uint8 RGB (floats are taken as normalised) and
        ``pixel_mask`` [B, H, W], None: no padding.

        Raises :class:`ZooError` for rows longer than the model's positions, ids without a row, and
        an image for a model without vision.
        """
        mask = self._known_mask(attention_mask)
        positions = self._positions(input_ids, position_ids)
        x = self.embeddings(input_ids, bbox, positions, mask, segment_ids)
        if self.modality is not None:
            x = x + self.modality.weight[0]
        length = x.shape[1]
        visual = self._look(pixel_values, pixel_mask)
        if visual is not None:
            x, positions, bbox, mask = self._join(x, positions, bbox, mask, visual)
        encoded = self._encode(x, positions, bbox, mask)
        if visual is None:
            return Encoded(encoded)
        return Encoded(encoded[:, :length], encoded[:, length:], visual.tokens)

    def _known_mask(self, mask: Tensor | None) -> Tensor | None:
        if mask is None or known_unpadded(mask, mask):
            return None
        return mask.to(torch.bool)

    def _positions(self, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
        if position_ids is not None:
            return position_ids
        length = input_ids.shape[1]
        if length > self.embeddings.longest:
            raise ZooError(
                f"a row has {length} tokens and the model {self.embeddings.longest} positions; "
                "read the page through windows (a smaller encoding.length)"
            )
        return torch.arange(length, device=input_ids.device).expand_as(input_ids)

    def _look(self, pixels: Tensor | None, pixel_mask: Tensor | None) -> VisualTokens | None:
        if pixels is None:
            return None
        if self.vision is None:
            raise ZooError(
                "this model has no vision and would ignore the image; leave pixel_values out or "
                "set model.vision"
            )
        return self.vision(pixels, pixel_mask, self.embeddings)

    def _join(
        self,
        text: Tensor,
        positions: Tensor,
        bbox: Tensor | None,
        mask: Tensor | None,
        visual: VisualTokens,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Text and vision as one row: tokens, positions, boxes and mask."""
        seen = visual.tokens
        if self.modality is not None:
            seen = seen + self.modality.weight[1]
        x = torch.cat((text, seen), 1)
        if self.joint_norm is not None:
            x = self.joint_dropout(self.joint_norm(x))
        count = seen.shape[1]
        places = torch.arange(count, device=x.device).expand(len(x), -1)
        positions = torch.cat((positions, places), 1)
        if bbox is not None:
            bbox = torch.cat((bbox, visual.bbox.expand(len(x), -1, -1).to(bbox.dtype)), 1)
        if mask is not None or visual.mask is not None:
            everywhere = torch.ones((), dtype=torch.bool, device=x.device)
            mask = everywhere.expand(text.shape[:2]) if mask is None else mask
            of_image = everywhere.expand(len(x), count) if visual.mask is None else visual.mask
            mask = torch.cat((mask, of_image), 1)
        return x, positions, bbox, mask

    def _encode(
        self, x: Tensor, positions: Tensor, bbox: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if self.config.attention != "plain" and bbox is None:
            raise ZooError("this model's attention reads boxes; pass bbox [B, L, 4], 0..1000")
        if mask is not None and self._pays_to_pack(mask):
            return self._encode_packed(x, positions, bbox, mask)
        allowed = None if mask is None else mask[:, None, None]
        if self.bias is not None:
            allowed = self.bias(positions, cast(Tensor, bbox), mask)
        tokens, _, allowed = self.prompt(x, None, allowed)
        if self.places is None:
            for layer in self.layers:
                tokens = layer(tokens, None, allowed)
        else:
            index = self.places(positions, cast(Tensor, bbox))
            for layer in self.layers:
                tokens = cast(DisentangledLayer, layer).attend_to_places(
                    tokens, self.places, index, allowed
                )
        tokens = self.prompt.strip(tokens)
        return tokens if self.norm is None else self.norm(tokens)

    def _pays_to_pack(self, mask: Tensor) -> bool:
        """Whether to leave padding out of all layers: on CPUs, where it is a part that counts.

        Elsewhere the count of tokens would have to be waited for, and rows one by one would keep
        a GPU idle. Prompts join padded rows only.
        """
        if mask.device.type != "cpu" or self.places is not None or _is_traced():
            return False
        return type(self.prompt) is PromptSlot and float(mask.float().mean()) < MOSTLY_FULL

    def _encode_packed(
        self, x: Tensor, positions: Tensor, bbox: Tensor | None, mask: Tensor
    ) -> Tensor:
        """As :meth:`_encode`, computed for valid tokens only; the others' results are 0."""
        place = mask.flatten().nonzero()[:, 0]
        lengths = mask.sum(1).tolist()
        biases: list[Tensor | None] = [None] * len(lengths)
        if self.bias is not None:
            seen = zip(positions, cast(Tensor, bbox), mask, strict=True)
            biases = [self.bias(p[m][None], b[m][None], None) for p, b, m in seen]
        at_once = max(1, PACKED // self.config.ffn_dim)
        tokens = x.flatten(0, 1)[place]
        encoded, begin, done = [], 0, 0
        while begin < len(lengths):
            end = begin + 1
            while end < len(lengths) and sum(lengths[begin : end + 1]) <= at_once:
                end += 1
            count = sum(lengths[begin:end])
            rows = PackedRows(lengths[begin:end], biases[begin:end])
            encoded.append(self._through(tokens[None, done : done + count], rows)[0])
            begin, done = end, done + count
        found = torch.cat(encoded)
        empty = found.new_zeros(mask.numel(), found.shape[-1])
        return empty.index_copy(0, place, found).view(*mask.shape, -1)

    def _through(self, tokens: Tensor, mask: Mask) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, None, mask)
        return tokens if self.norm is None else self.norm(tokens)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """BERT's: normal with a deviation of 0.02; biases, box tables and class tokens at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if isinstance(self.vision, PatchProjection):
            nn.init.normal_(self.vision.proj.weight, std=0.02)
            nn.init.zeros_(cast(Tensor, self.vision.proj.bias))
        if self.embeddings.boxes is not None:
            for table in self.embeddings.boxes.children():
                nn.init.zeros_(cast(nn.Embedding, table).weight)


def _is_traced() -> bool:
    """Whether a graph is being made that has to serve other batches too."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None

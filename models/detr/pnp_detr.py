"""PnP-DETR: an encoder that reads little background (Wang et al., ICCV 2021, arXiv 2109.07036).

Most cells of a feature map are background, and the encoder spends as much on them as on objects.
Before it, a *poll* sampler scores every cell and keeps the best (section 3.2); a *pool* sampler
summarises all the others in a few tokens (section 3.3). Encoder, decoder, queries and losses are
those of :mod:`zoo.models.detr.detr`: attention does not care how many tokens there are, or in which
order, as positions travel with them. In training the share that is kept is drawn anew in every
step, so that one model serves every budget (section 3.4): ``model.poll_share`` at evaluation.

As in the release (github.com/twangnh/pnp-detr): kept features are normalised without learned
parameters and multiplied by their scores, which is where the scorer's gradient comes from; scores
have an L1 penalty of 1e-4; pooling weights are a softmax over the cells that were not kept.

Unlike the release: an image keeps a share of *its own* cells, whatever its batch is padded to;
nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.detr.criterion import SetCriterion
from zoo.models.detr.detector import Detector
from zoo.models.detr.detr import (
    Detr,
    DetrConfig,
    DetrOutput,
    detr_criterion,
    detr_postprocess,
)
from zoo.models.layers.backbone import Backbone, known_unpadded
from zoo.models.layers.heads import exact
from zoo.models.layers.transformer import MLP
from zoo.registry import ModelSpec, register_model
from zoo.types import Losses, Target


@dataclass(frozen=True, kw_only=True)
class PnpDetrConfig(DetrConfig):
    """Settings of a PnP-DETR; the defaults are the paper's with a ResNet-50."""

    poll_share: float = 1 / 3  # of the cells that are kept, in evaluation
    poll_least: float = 1 / 3  # the share is drawn between these two in training
    poll_most: float = 0.8
    pooled_tokens: int = 60  # that summarise the others
    coef_score: float = 1e-4


class PnpDetrOutput(DetrOutput, total=False):
    """As DETR's; in training, with the mean score [B] of an image's cells."""

    poll_scores: Tensor


class Sampled(NamedTuple):
    """Tokens and positions [B, K + M, D], which are there [B, K + M], scores' means [B]."""

    tokens: Tensor
    pos: Tensor
    valid: Tensor
    scores: Tensor


class PollAndPool(nn.Module):
    """The two samplers: the best cells of a map, and ``pooled`` tokens for the rest of it."""

    def __init__(self, dim: int, pooled: int) -> None:
        super().__init__()
        self.score = MLP(dim, dim, 1, 2)
        self.aggregate = nn.Linear(dim, pooled)
        self.value = nn.Linear(dim, dim)

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor, share: float) -> Sampled:
        """From cells ``x`` and positions ``pos`` [B, S, D], and which are valid, ``mask`` [B, S].

        K is ``share`` * S, rounded down, 1 at least; an image keeps that share of its valid cells.
        """
        batch, cells, dim = x.shape
        parts = round(share * 1000)  # of a thousand: whole numbers, so that S may be a symbol
        kept = max(1, cells * parts // 1000)
        own = (mask.sum(1) * parts // 1000).clamp(min=1)  # [B], at most K

        scores = exact(self.score, x)[..., 0].sigmoid()  # [B, S]
        chosen = scores.detach().masked_fill(~mask, -1.0).topk(kept, dim=1).indices  # best first
        there = torch.arange(kept, device=x.device) < own[:, None]  # [B, K]
        index = chosen[..., None].expand(-1, -1, dim)
        fine = F.layer_norm(x.gather(1, index), (dim,))
        fine = fine * scores.gather(1, chosen)[..., None].to(x.dtype)

        rest = mask.scatter(1, chosen, mask.gather(1, chosen) & ~there)  # [B, S]
        weights = exact(self.aggregate, x).masked_fill(~rest[..., None], -1e9).softmax(1)
        weights = weights.to(x.dtype).transpose(1, 2)  # [B, M, S]
        coarse, places = weights @ self.value(x), weights @ pos.expand(batch, -1, -1)
        summed = rest.any(1, keepdim=True).expand(-1, weights.shape[1])
        return Sampled(
            torch.cat([fine, coarse.to(fine.dtype)], 1),
            torch.cat([pos.expand(batch, -1, -1).gather(1, index), places.to(pos.dtype)], 1),
            torch.cat([there, summed], 1),
            (scores * mask).sum(1) / mask.sum(1).clamp(min=1),
        )


class PnpDetr(nn.Module):
    """The model: a DETR whose encoder gets sampled tokens; ``backbone`` as of :class:`Detr`."""

    def __init__(
        self, config: PnpDetrConfig, num_classes: int, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        least, most = config.poll_least, config.poll_most
        if not 0 < config.poll_share < 1 or not 0 < least <= most < 1:
            raise ZooError(
                f"model.poll_share is {config.poll_share}, poll_least {least} and poll_most "
                f"{most}; they have to be in 0..1, and the least no more than the most"
            )
        self.config = config
        self.detr = Detr(config, num_classes, backbone)
        self.sampler = PollAndPool(config.dim, config.pooled_tokens)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> PnpDetrOutput:
        """Predictions for a batch of images: inputs as of :meth:`Detr.forward`."""
        tokens, pos, mask = self.detr.tokens(self.detr.backbone(pixel_values, pixel_mask))
        sampled = self.sampler(tokens, pos, mask.flatten(1), self._share())
        unpadded = known_unpadded(pixel_mask, mask)
        allowed = None if unpadded else sampled.valid[:, None, None]
        memory = self.detr.encoder(sampled.tokens, sampled.pos, allowed)
        out = cast(PnpDetrOutput, self.detr.decode(memory, sampled.pos, allowed))
        if self.training:
            out["poll_scores"] = sampled.scores
        return out

    def _share(self) -> float:
        if not self.training:
            return self.config.poll_share
        least, most = self.config.poll_least, self.config.poll_most
        return least + (most - least) * float(torch.rand(()))  # of the host's generator


class PnpCriterion:
    """DETR's losses, and the mean score of the cells as ``loss_score``, weighed by ``coef``."""

    def __init__(self, criterion: SetCriterion, coef: float) -> None:
        self.criterion = criterion
        self.coef = coef

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> Losses:
        """As :meth:`SetCriterion.__call__`; ``outputs`` may have ``poll_scores`` [B]."""
        losses = self.criterion(outputs, targets)
        if "poll_scores" not in outputs:
            return losses
        score = outputs["poll_scores"].mean()
        terms = {**losses.terms, "loss_score": score.detach()}
        return Losses(losses.total + self.coef * score, terms)


# ---- Variants ---------------------------------------------------------------------------------


def _criterion(config: PnpDetrConfig, num_classes: int) -> PnpCriterion:
    return PnpCriterion(detr_criterion(config, num_classes), config.coef_score)


def _spec(recipe: str, **settings: Any) -> ModelSpec:
    return ModelSpec(
        config=replace(PnpDetrConfig(), **settings),
        build=PnpDetr,
        criterion=_criterion,
        postprocess=detr_postprocess,
        predictor=Detector,
        recipe=recipe,
        class_rows=("detr.class_embed.weight", "detr.class_embed.bias"),
    )


@register_model
def pnp_detr_nano() -> ModelSpec:
    """PnP-DETR in small: :func:`detr_nano` with sampled tokens, and as slow to learn."""
    return _spec(
        "pnp_detr_nano",
        backbone="nano",
        dim=128,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=3,
        ffn_dim=512,
        dropout=0.0,
        pooled_tokens=8,
    )


@register_model
def pnp_detr_r50() -> ModelSpec:
    """PnP-DETR with a ResNet-50."""
    return _spec("pnp_detr_r50")


@register_model
def pnp_detr_r50_dc5() -> ModelSpec:
    """PnP-DETR with a ResNet-50 of twice the resolution, where there is most to be saved."""
    return _spec("pnp_detr_r50", dilation=True)

"""Class and box heads of detectors, the numbers that they begin with, and their precision.

Boxes are logits of normalised cxcywh here, since anchors are refined by sums of logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.models.layers.transformer import MLP

MIN_SIDE = 1e-5  # of an anchor, in image sides: what the release's inverse sigmoid clamps to
MAX_LOGIT = -math.log(MIN_SIDE)
PRIOR_BIAS = -math.log((1.0 - 0.01) / 0.01)  # focal loss starts at probability .01


def box_head(dim: int) -> MLP:
    """DETR's box head, which begins by leaving anchors where they are."""
    head = MLP(dim, dim, 4, 3)
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return head


def class_head(dim: int, num_classes: int) -> nn.Linear:
    """A linear head of independent logits that begins at the focal loss's prior."""
    head = nn.Linear(dim, num_classes)
    nn.init.constant_(head.bias, PRIOR_BIAS)
    return head


def exact(head: nn.Module, x: Tensor) -> Tensor:
    """``head(x)`` in the precision of its parameters, whatever autocast says.

    In bfloat16 a box is off by pixels and many scores tie.
    """
    with torch.autocast(x.device.type, enabled=False):
        return head(x.to(next(head.parameters()).dtype))


def best_rows(count: int, scores: Tensor, *values: Tensor) -> list[Tensor]:
    """Of every tensor [B or 1, S, C] the rows [B, Q, C] of the best ``scores`` [B, S].

    Q is ``count``, or S where that is less.
    """
    chosen = scores.topk(min(count, scores.shape[1]), dim=1).indices[..., None]
    alike = [value.expand(scores.shape[0], -1, -1) for value in values]
    return [value.gather(1, chosen.expand(-1, -1, value.shape[-1])) for value in alike]

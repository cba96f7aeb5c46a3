"""Quality-aware classification: a class's score is to say how well its box fits.

RT-DETR (arXiv 2304.08069, section 4.3) calls it uncertainty-minimal query selection: where scores
follow the overlap, the best-scored proposals are those with the best boxes. The loss is
VarifocalNet's (Zhang et al., CVPR 2021, arXiv 2008.13367, equation 2)::

    q * -(q log p + (1 - q) log(1 - p))      for the class of a matched object, q the IoU
    alpha * p ** gamma * -log(1 - p)         for all others

q and the weight p ** gamma are constants: no gradient passes through them.

All else is :class:`zoo.models.detr.criterion.SetCriterion`'s. Denoising queries have the same
loss; the negatives of contrastive ones are "all others" of every class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.models.detr.box_ops import MIN_AREA
from zoo.models.detr.criterion import BoxPairs, SigmoidLoss


class VarifocalLoss(SigmoidLoss):
    """The loss above, of logits whose matched boxes are ``pairs``."""

    def __init__(self, alpha: float = 0.75, gamma: float = 2.0) -> None:
        super().__init__(alpha, gamma)

    def absent(self, logits: Tensor) -> Tensor:
        """alpha p ** gamma * -log(1 - p), the factor before the logarithm a constant."""
        weight = logits.detach().sigmoid().pow_(self.gamma).mul_(self.alpha)
        return weight * F.softplus(logits)

    def present(self, own: Tensor, pairs: BoxPairs) -> Tensor:
        """q * -(q log p + (1 - q) log(1 - p)), which is q (log(1 + e ** x) - q x)."""
        found, wanted = pairs.corners
        quality = paired_iou(found.detach(), wanted)
        return quality * (F.softplus(own) - quality * own)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each box of ``a`` with the box of ``b`` in the same place, [...] in 0..1.

    ``a`` and ``b`` [..., 4] xyxy, broadcast against each other. Boxes without area overlap nothing.
    """
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    inter = sides.clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    return inter / (areas[0] + areas[1] - inter).clamp(min=MIN_AREA)

"""Losses of DETR's masks (arXiv 2005.12872, section 4): focal and dice, of matched queries.

Both compare logits at stride 4 with targets at stride 4; the release enlarges the logits to full
size first. The focal loss is that of arXiv 1708.02002 (equation 5), the dice loss that of arXiv
1606.04797 with 1 added above and below the line. Only cells of an image itself count, so what a
batch is padded to changes nothing (in the release, padding counts as background).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo import distributed
from zoo.errors import ZooError
from zoo.models.detr.criterion import SetCriterion
from zoo.types import Losses, Target

log = logging.getLogger("zoo")


def focal_masks(
    logits: Tensor, masks: Tensor, valid: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss of each mask [P], a mean over its valid cells.

    ``logits``, ``masks`` (0 or 1) and ``valid`` (bool) are [P, h, w].
    """
    wrong = (torch.where(masks > 0.5, -logits, logits)).sigmoid()  # the other class's probability
    ce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    weight = torch.where(masks > 0.5, alpha, 1 - alpha)
    loss = weight * wrong.pow(gamma) * ce
    return (loss * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)


def dice_masks(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Dice loss of each mask [P], 1 - (2 |p t| + 1) / (|p| + |t| + 1); arguments as above."""
    probs = logits.sigmoid() * valid
    shared = (probs * masks).sum((1, 2))
    return 1 - (2 * shared + 1) / (probs.sum((1, 2)) + masks.sum((1, 2)) + 1)


class PanopticCriterion:
    """A detector's losses, and ``loss_mask`` (focal) and ``loss_dice`` of the last layer's matches.

    Both are sums over matched objects that have a mask with a cell in it (what is thinner than a
    cell may have none), over the number of objects, averaged over ranks. With ``frozen`` the total
    is that of the masks alone, as nothing else is trained.
    """

    def __init__(
        self,
        criterion: SetCriterion,
        *,
        coef_mask: float = 1.0,
        coef_dice: float = 1.0,
        frozen: bool = False,
    ) -> None:
        self.criterion = criterion
        self.coef_mask = coef_mask
        self.coef_dice = coef_dice
        self.frozen = frozen
        self._told = False

    def __call__(self, outputs: Mapping[str, Any], targets: Sequence[Target]) -> Losses:
        """As :meth:`SetCriterion.__call__`; outputs also hold ``pred_masks`` and ``mask_pairs``.

        ``pred_masks`` [P, h, w] are logits at stride 4 of the padded batch, or of one query that
        is to be ignored where ``mask_pairs``, three tensors [P] of image, query and target's row
        in its image, are empty. Targets have ``masks`` [M, h', w'] at stride 4 of their own image;
        one without trains its boxes only.

        Raises :class:`ZooError` where no target has masks and the detector is frozen.
        """
        losses = self.criterion(outputs, targets)
        if not any("masks" in target for target in targets):
            self._without(targets)
        logits: Tensor = outputs["pred_masks"]
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            focal, dice = self._masks(logits, outputs["mask_pairs"], targets)
        total = self.coef_mask * focal + self.coef_dice * dice
        if not self.frozen:
            total = total + losses.total
        terms = {"loss_mask": focal.detach(), "loss_dice": dice.detach()}
        return Losses(total, {**losses.terms, **terms})

    def _masks(
        self, logits: Tensor, pairs: tuple[Tensor, ...], targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        image, _query, row = pairs
        count = logits.new_tensor(float(sum(len(t["labels"]) for t in targets)))
        objects = distributed.all_reduce_mean(count).clamp(min=1)
        if not len(image):
            nothing = logits.sum() * 0  # so that every parameter has a gradient, for DDP
            return nothing, nothing
        masks, valid = _wanted(image, row, targets, logits)
        kept = masks.flatten(1).any(1)
        focal = (focal_masks(logits, masks, valid) * kept).sum() / objects
        dice = (dice_masks(logits, masks, valid) * kept).sum() / objects
        return focal, dice

    def _without(self, targets: Sequence[Target]) -> None:
        """No target of the batch has masks: an error, or told once."""
        if self.frozen:
            number = int(targets[0]["image_id"]) if "image_id" in targets[0] else 0
            raise ZooError(
                f"the targets have no masks (image id {number} and the others of its batch) and "
                "the detector is frozen, so nothing can be learned; train on panoptic data, such "
                "as --data coco_panoptic:FOLDER"
            )
        if not self._told:
            self._told = True
            log.warning(
                "the targets have no masks: boxes are trained and masks are not; train on panoptic "
                "data (--data coco_panoptic:FOLDER) for masks"
            )


def _wanted(
    image: Tensor, row: Tensor, targets: Sequence[Target], logits: Tensor
) -> tuple[Tensor, Tensor]:
    """The pairs' masks, padded, in the logits' dtype, and which cells are in the image [P, h, w].

    Raises :class:`ZooError` where an image has more cells than there are logits, or another
    number of masks than of labels.
    """
    height, width = logits.shape[-2:]
    sizes = []
    for number, target in enumerate(targets):
        masks = target.get("masks")
        if masks is None:
            sizes.append((0, 0))
            continue
        h, w = masks.shape[-2:]
        if h > height or w > width or len(masks) != len(target["labels"]):
            name = int(target["image_id"]) if "image_id" in target else number
            raise ZooError(
                f"image {name} has masks of shape {tuple(masks.shape)} for {len(target['labels'])} "
                f"objects and {height} x {width} logits; give a mask an object at stride 4"
            )
        sizes.append((h, w))
    limits = torch.tensor(sizes, device=logits.device)[image]
    rows = torch.arange(height, device=logits.device) < limits[:, :1]
    columns = torch.arange(width, device=logits.device) < limits[:, 1:]
    whole = torch.cat(
        [
            F.pad(t["masks"], (0, width - s[1], 0, height - s[0]))
            for t, s in zip(targets, sizes, strict=True)
            if "masks" in t
        ]
    )
    counts = [len(t["masks"]) if "masks" in t else 0 for t in targets]
    starts = torch.tensor([sum(counts[:n]) for n in range(len(counts))], device=row.device)
    return whole[starts[image] + row].to(logits.dtype), rows[:, :, None] & columns[:, None]

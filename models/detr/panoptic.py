"""DETR's mask head on the members whose queries read one memory, as DETR's do.

The head of :mod:`zoo.models.detr.panoptic_detr` needs a map that the encoder reads, the memory that
it returns, and the queries' last states. Conditional DETR, DAB-DETR, DN-DETR, SMCA-DETR (of one
scale) and SAM-DETR have all three; what differs is that their classes are independent, so that a
query's score in the panoptic map is a sigmoid, and lower. The papers have no masks: this
combination is ours.

Deformable members and RT-DETR read several maps, and PnP-DETR a choice of cells: no head for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.conditional_detr import ConditionalDetr, ConditionalDetrConfig
from zoo.models.detr.criterion import SetCriterion
from zoo.models.detr.dab_detr import NANO, DabDetr, DabDetrConfig, dab_rows
from zoo.models.detr.focal import focal_criterion
from zoo.models.detr.mask_head import Trace
from zoo.models.detr.memory import class_rows, memory_backbone
from zoo.models.detr.panoptic_detr import MaskConfig, PanopticDetr, panoptic_spec
from zoo.models.detr.sam_detr import SamDetr, SamDetrConfig
from zoo.models.detr.smca_detr import SmcaDetr, SmcaDetrConfig
from zoo.models.layers.backbone import Backbone
from zoo.registry import ModelSpec, register_model
from zoo.types import Target


@dataclass(frozen=True, kw_only=True)
class FocalMaskConfig(MaskConfig):
    """Settings of a mask head on a detector with independent classes."""

    threshold: float = 0.4  # least score of a query in the panoptic map


@dataclass(frozen=True, kw_only=True)
class PanopticConditionalDetrConfig(FocalMaskConfig, ConditionalDetrConfig):
    """Settings of a Conditional DETR with masks."""


@dataclass(frozen=True, kw_only=True)
class PanopticDabDetrConfig(FocalMaskConfig, DabDetrConfig):
    """Settings of a DAB-DETR (a DN-DETR with ``denoising``) with masks."""


@dataclass(frozen=True, kw_only=True)
class PanopticSmcaDetrConfig(FocalMaskConfig, SmcaDetrConfig):
    """Settings of an SMCA-DETR with masks."""


@dataclass(frozen=True, kw_only=True)
class PanopticSamDetrConfig(FocalMaskConfig, SamDetrConfig):
    """Settings of a SAM-DETR with masks."""


class PanopticMember(PanopticDetr):
    """A detector of class ``of`` with masks."""

    of: ClassVar[type[nn.Module]]

    def detector(self, config: Any, num_classes: int, backbone: Backbone) -> Any:
        """The detector, which reads the backbone's last maps."""
        own = config.strides or backbone.strides[-1:]
        return self.of(replace(config, strides=own), num_classes, backbone)

    @staticmethod
    def backbone_to(config: Any, strides: tuple[int, ...]) -> Backbone:
        """The backbone that the config names, with maps of these strides."""
        return memory_backbone(replace(config, strides=strides))

    @staticmethod
    def set_criterion(config: Any, num_classes: int) -> SetCriterion:
        """The detector's losses."""
        return focal_criterion(config, num_classes)

    @staticmethod
    def rows(config: Any) -> tuple[str, ...]:
        """The detector's state keys with one row a class."""
        return class_rows(config, "queries.selection.")


class PanopticConditionalDetr(PanopticMember):
    """Conditional DETR with masks."""

    of = ConditionalDetr


class PanopticDabDetr(PanopticMember):
    """DAB-DETR or DN-DETR with masks."""

    of = DabDetr

    @staticmethod
    def rows(config: Any) -> tuple[str, ...]:
        """The detector's state keys with one row a class."""
        return dab_rows(config)

    def detector(self, config: Any, num_classes: int, backbone: Backbone) -> Any:
        """The detector; groups of queries in training are not made for masks."""
        if config.many_groups:
            raise ZooError("masks are learned without model.many_groups; set it to 0")
        return super().detector(config, num_classes, backbone)

    def trace(
        self, pixel_values: Tensor, pixel_mask: Tensor | None, targets: Sequence[Target] | None
    ) -> Trace:
        """The detector's predictions, and noised ones, and what the mask head reads."""
        return cast(Trace, self.detr.traced(pixel_values, pixel_mask, targets))


class PanopticSmcaDetr(PanopticMember):
    """SMCA-DETR with masks."""

    of = SmcaDetr

    def detector(self, config: Any, num_classes: int, backbone: Backbone) -> Any:
        """The detector, of a single scale."""
        if config.num_levels > 1:
            raise ZooError(
                f"masks need a single memory, not {config.num_levels}; set model.num_levels=1"
            )
        return super().detector(config, num_classes, backbone)


class PanopticSamDetr(PanopticMember):
    """SAM-DETR with masks."""

    of = SamDetr

    @staticmethod
    def rows(config: Any) -> tuple[str, ...]:
        """The detector's state keys with one row a class; it selects queries by itself."""
        return class_rows(config, "selection.")


# ---- Variants ---------------------------------------------------------------------------------


def _spec(build: type[PanopticMember], config: Any, recipe: str) -> ModelSpec:
    return panoptic_spec(build, config, recipe, kind="focal", class_rows=build.rows(config))


@register_model
def panoptic_dn_detr_nano() -> ModelSpec:
    """DN-DETR with masks in small, from scratch on a CPU; all is trained at once."""
    small = {**NANO, "denoising": True, "relative_maps": True, "coef_dice": 5.0}
    return _spec(PanopticDabDetr, PanopticDabDetrConfig(**small), "panoptic_dn_detr_nano")


@register_model
def panoptic_conditional_detr_r50() -> ModelSpec:
    """Conditional DETR with masks and a ResNet-50; nothing is published."""
    return _spec(PanopticConditionalDetr, PanopticConditionalDetrConfig(), "panoptic_detr_r50")


@register_model
def panoptic_dab_detr_r50() -> ModelSpec:
    """DAB-DETR with masks and a ResNet-50; nothing is published."""
    return _spec(PanopticDabDetr, PanopticDabDetrConfig(), "panoptic_detr_r50")


@register_model
def panoptic_dn_detr_r50() -> ModelSpec:
    """DN-DETR with masks and a ResNet-50; nothing is published."""
    return _spec(PanopticDabDetr, PanopticDabDetrConfig(denoising=True), "panoptic_detr_r50")


@register_model
def panoptic_smca_detr_r50() -> ModelSpec:
    """SMCA-DETR with masks and a ResNet-50; nothing is published."""
    return _spec(PanopticSmcaDetr, PanopticSmcaDetrConfig(), "panoptic_detr_r50")


@register_model
def panoptic_sam_detr_r50() -> ModelSpec:
    """SAM-DETR with masks and a ResNet-50; nothing is published."""
    return _spec(PanopticSamDetr, PanopticSamDetrConfig(), "panoptic_detr_r50")

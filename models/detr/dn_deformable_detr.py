"""DN-Deformable-DETR: denoising in a deformable decoder (Li et al., CVPR 2022, arXiv 2203.01305).

What :mod:`zoo.models.detr.dn_detr` is to DAB-DETR, this is to
:mod:`zoo.models.detr.dab_deformable_detr`: the same model with ``denoising=True``. The matching
queries' contents are the label "unknown"; nothing of it runs in evaluation.
"""

from __future__ import annotations

from zoo.models.detr.dab_deformable_detr import NANO, dab_deformable_spec
from zoo.registry import ModelSpec, register_model


@register_model
def dn_deformable_detr_nano() -> ModelSpec:
    """DN-Deformable-DETR in small, from scratch on a CPU."""
    return dab_deformable_spec("dn_deformable_detr_nano", denoising=True, **NANO)


@register_model
def dn_deformable_detr_r50() -> ModelSpec:
    """DN-Deformable-DETR with a ResNet-50: published AP 49.5 (detrex)."""
    return dab_deformable_spec("dab_deformable_detr_r50", denoising=True)

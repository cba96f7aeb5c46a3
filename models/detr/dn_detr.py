"""DN-DETR: faster training by query denoising (Li et al., CVPR 2022, arXiv 2203.01305).

Bipartite matching is unstable early in training: from one step to the next a query is told to
find different objects (section 3.1). So the decoder also gets the true objects with noise on
boxes and labels and learns to restore them, where nothing has to be matched (section 4).
Everything else is :mod:`zoo.models.detr.dab_detr` with ``denoising=True``; the queries and their
attention mask are :mod:`zoo.models.detr.denoising`'s, their losses the criterion's. Nothing of it
runs in evaluation: inference costs what DAB-DETR's does. All queries' contents are embedded
labels and one channel that marks the noised ones; the matching queries' label is "unknown".

As in the release (github.com/IDEA-Research/DN-DETR): 5 groups, label noise 0.2, box noise 0.4.
Unlike it: empty slots of an image with few objects are hidden from its other queries, and
patterns (``num_patterns``) are added to the "unknown" content, not ignored.
"""

from __future__ import annotations

from zoo.models.detr.dab_detr import NANO, dab_spec
from zoo.registry import ModelSpec, register_model


@register_model
def dn_detr_nano() -> ModelSpec:
    """DN-DETR in small, from scratch on a CPU."""
    return dab_spec("dn_detr_nano", denoising=True, **NANO)


@register_model
def dn_detr_r50() -> ModelSpec:
    """DN-DETR with a ResNet-50, the paper's base model: 43.7 M parameters, published AP 44.1."""
    return dab_spec("dab_detr_r50", denoising=True)

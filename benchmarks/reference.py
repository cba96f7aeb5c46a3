"""Both sides of a comparison: transformers' DETR as a user gets it, and ours, same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo import weights
from zoo.registry import ModelSpec, model_spec

CLASSES = 91


def reference(*, dropout: float | None = None, layers: int = 6) -> nn.Module:
    """``DetrForObjectDetection`` with its defaults (timm ResNet-50), random weights.

    ``dropout`` replaces every rate, where losses are to be compared.
    """
    from transformers import DetrConfig, DetrForObjectDetection

    torch.manual_seed(0)
    config = DetrConfig(num_labels=CLASSES, encoder_layers=layers, decoder_layers=layers)
    if dropout is not None:
        config.dropout = config.attention_dropout = config.activation_dropout = dropout
    return DetrForObjectDetection(config)


@torch.no_grad()
def calibrate(model: Any, pixels: Tensor) -> None:
    """Give the frozen norms the statistics of what flows through them.

    Random weights behind norms that do nothing blow up; a trained network's don't. Every norm is
    set from ``pixels``, as one forward passes it, with a random scale and shift.
    """
    draw = torch.Generator().manual_seed(1)
    hooks = []
    for name, module in model.named_modules():
        if "FrozenBatchNorm" not in type(module).__name__:
            continue
        low, span = (0.1, 0.4) if name.endswith("bn3") else (0.5, 1.0)
        module.weight.copy_(torch.rand(module.weight.shape, generator=draw) * span + low)
        module.bias.copy_(torch.randn(module.bias.shape, generator=draw) * 0.1)

        def before(norm: Any, inputs: tuple[Tensor, ...]) -> None:
            variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

        hooks.append(module.register_forward_pre_hook(before))
    model.model.backbone.model(pixels)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def sharpen(model: Any) -> None:
    """Make random weights say something: confident classes, and boxes that differ.

    As they come, all queries attend alike and to everything, so that all boxes are equal and the
    picture hardly moves them. Queries get the size of the DETR release's (standard normal), the
    decoder's attention to the picture is made to choose, and both heads speak up. Rounding is
    amplified with everything else: a comparison gets harder by it, not easier.
    """
    model.class_labels_classifier.weight.mul_(12.0)
    model.model.query_position_embeddings.weight.normal_(generator=torch.Generator().manual_seed(2))
    model.bbox_predictor.layers[-1].weight.mul_(4.0)
    for layer in model.model.decoder.layers:
        for projection in (layer.encoder_attn.q_proj, layer.encoder_attn.k_proj):
            projection.weight.mul_(16**0.5)


def freeze_as_ours(model: Any) -> None:
    """Freeze the stem and the first stage, as DETR does (transformers leaves timm's trainable)."""
    for name, parameter in model.model.backbone.named_parameters():
        if ".layer" not in name or ".layer1." in name:
            parameter.requires_grad_(False)


def reference_deformable(*, dropout: float | None = None, layers: int = 6) -> nn.Module:
    """``DeformableDetrForObjectDetection`` with its defaults, random weights; as above."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    torch.manual_seed(0)
    config = DeformableDetrConfig(num_labels=CLASSES, encoder_layers=layers, decoder_layers=layers)
    if dropout is not None:
        config.dropout = config.attention_dropout = config.activation_dropout = dropout
    model = DeformableDetrForObjectDetection(config)
    with torch.no_grad():  # queries that differ, and points that move
        for name, parameter in model.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.02)
    return model


def ours(other: nn.Module, name: str = "detr_r50", **settings: Any) -> tuple[ModelSpec, nn.Module]:
    """Our model of that name with the reference's weights, through the loader that users have."""
    spec = model_spec(name, **settings)
    model = spec.build(spec.config, CLASSES)
    state = other.state_dict()
    layout = next(known for known in spec.layouts if known.recognises(state))
    loaded = weights.Loaded(state=layout.convert(state), origin="reference", layout=layout.name)
    weights.initialise(model, loaded)
    return spec, model

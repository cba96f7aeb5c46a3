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
def calibrate(model: Any, pixels: Tensor, whole: bool = False) -> None:
    """Give the batch norms the statistics of what flows through them.

    Random weights behind norms that do nothing blow up; a trained network's don't. Every norm is
    set from ``pixels``, as one forward passes it, with a random scale and shift. The forward is
    the backbone's, or with ``whole`` the model's, where there are norms behind the backbone, too:
    many in a row without a shortcut. Scales then are small, or random layers would magnify
    rounding from one to the next until bf16 says nothing; trained ones don't.
    """
    draw = torch.Generator().manual_seed(1)
    hooks = []
    for name, module in model.named_modules():
        if "BatchNorm" not in type(module).__name__:
            continue
        low, span, shift = 0.5, 1.0, 0.0
        if name.endswith(("bn3", "layer.2.normalization")):  # the last of a bottleneck
            low, span = (0.02, 0.1) if whole else (0.1, 0.4)
        elif whole and "backbone" not in name:
            low, span, shift = 0.25, 0.25, 0.5
        module.weight.copy_(torch.rand(module.weight.shape, generator=draw) * span + low)
        module.bias.copy_(torch.randn(module.bias.shape, generator=draw) * 0.1 + shift)

        def before(norm: Any, inputs: tuple[Tensor, ...]) -> None:
            variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)

        hooks.append(module.register_forward_pre_hook(before))
    (model if whole else model.model.backbone.model)(pixels)
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


def reference_rt_detr(*, layers: int = 6) -> nn.Module:
    """``RTDetrForObjectDetection`` with its defaults (ResNet-50-D), random weights, in evaluation.

    Its linear layers begin near zero, some at zero; they are drawn again, so that attention says
    something, points move, and boxes move from layer to layer.
    """
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    torch.manual_seed(0)
    config = RTDetrConfig(num_labels=CLASSES, decoder_layers=layers, tie_word_embeddings=False)
    model = RTDetrForObjectDetection(config)
    small = ("sampling_offsets.weight", "attention_weights.weight")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(small) or ("bbox" in name and name.endswith("layers.2.weight")):
                parameter.normal_(std=0.02)
            elif parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
    return model.eval()


def picture(side: int, seed: int) -> Tensor:
    """A square picture [1, 3, side, side] in 0..1 with structure at all scales, as pictures have.

    In the deep maps of noise all cells are almost alike, and norms that follow what they see would
    magnify their differences, and rounding with them.
    """
    draw = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, side, side)
    cells = 2
    while cells <= side:
        patches = torch.randn(1, 3, cells, cells, generator=draw)
        total += nn.functional.interpolate(patches, size=(side, side))
        cells *= 2
    return total.mul_(0.7).sigmoid_()


def reference_panoptic(*, layers: int = 6) -> nn.Module:
    """``DetrForSegmentation`` with its defaults, random weights and no dropout.

    Its detector is frozen, as in the second stage of the paper's training.
    """
    from transformers import DetrConfig, DetrForSegmentation

    torch.manual_seed(0)
    config = DetrConfig(num_labels=CLASSES, encoder_layers=layers, decoder_layers=layers)
    config.dropout = config.attention_dropout = config.activation_dropout = 0.0
    model = DetrForSegmentation(config)
    model.detr.requires_grad_(False)
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

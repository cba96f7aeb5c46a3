"""What tests of several detectors share: tiny parts, weights, batches, names and checks.

``tests/conftest.py`` makes it importable by its name.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ResNetConfig

from zoo.models.layers.backbone import ResNetBackbone, ResNetSpec
from zoo.types import Losses, Target
from zoo.weights import KeyLayout

CLASSES = 5
DEPTHS, WIDTHS = (1, 2, 1, 2), (16, 24, 32, 40)  # of a tiny ResNet

# ---- Models -----------------------------------------------------------------------------------


def our_resnet(block: str = "bottleneck", **settings: Any) -> ResNetBackbone:
    spec = ResNetSpec(block=block, depths=DEPTHS, widths=WIDTHS, stem=8)
    return ResNetBackbone(spec, **settings)


def their_resnet(
    block: str = "bottleneck", stages: Sequence[str] = ("stage4",)
) -> dict[str, ResNetConfig | bool]:
    """Settings of a transformers detector with the same tiny ResNet."""
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=list(WIDTHS),
        depths=list(DEPTHS),
        layer_type=block,
        out_features=list(stages),
    )
    return {"backbone_config": config, "use_timm_backbone": False}


def their_sizes(config: Any) -> dict[str, int]:
    """Settings of a transformers detector of the shape of ``config``, all but its width."""
    return {
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.ffn_dim,
        "decoder_ffn_dim": config.ffn_dim,
        "num_queries": config.num_queries,
        "num_labels": CLASSES,
    }


@torch.no_grad()
def randomise(
    model: nn.Module,
    *,
    reaches: Mapping[str, float | None] | None = None,
    matrices: float = 0.4,
    kernels: bool = False,
) -> None:
    """Weights and statistics far from their start, so that a swapped or a lost one shows.

    ``reaches`` has how far from 0 those go whose name a pattern is found in, ``matrices`` is that
    of other matrices; None leaves them as they are. Convolutions change with ``kernels`` only.
    """
    generator = torch.Generator().manual_seed(1)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(drawn * (high - low) + low)

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        known = [r for pattern, r in (reaches or {}).items() if re.search(pattern, name)]
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            uniform(tensor, 0.5, 2.0)
        elif known:
            if (reach := known[0]) is not None:
                uniform(tensor, -reach, reach)
        elif tensor.ndim == 1:  # weights: of norms and PReLU
            uniform(tensor, *((0.5, 1.5) if name.endswith("weight") else (-0.3, 0.3)))
        elif tensor.ndim == 2:
            uniform(tensor, -matrices, matrices)
        elif tensor.ndim > 2 and kernels:
            reach = (4 / tensor[0].numel()) ** 0.5
            uniform(tensor, -reach, reach)


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    """The model with noise on its parameters: one whose box heads move something."""
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


# ---- Batches ----------------------------------------------------------------------------------


def padded_batch(
    dtype: torch.dtype = torch.float32,
    size: int = 96,
    valid: Sequence[tuple[int, int]] = ((50, 200), (81, 70)),
) -> tuple[Tensor, Tensor]:
    """Pictures of noise and their mask: a whole one, and one of each ``valid`` height and width."""
    generator = torch.Generator().manual_seed(5)
    shape = (1 + len(valid), size, size + 37)
    pixels = torch.randn(shape[0], 3, *shape[1:], dtype=dtype, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    for own, (height, width) in zip(mask[1:], valid, strict=True):
        own[height:] = False
        own[:, width:] = False
    return pixels * mask[:, None], mask


def padded_pair() -> tuple[Tensor, Tensor]:
    """Two pictures of bytes, 96 x 128, the second padded to that from 80 x 96; their mask."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (2, 3, 96, 128), generator=draw, dtype=torch.uint8)
    mask = torch.ones(2, 96, 128, dtype=torch.bool)
    mask[1, 80:], mask[1, :, 96:] = False, False
    return pixels * mask[:, None], mask


def some_targets(counts: Iterable[int] = (2, 0, 4), seed: int = 3) -> list[Target]:
    """As many objects as ``counts`` says for each picture."""
    generator = torch.Generator().manual_seed(seed)
    targets: list[Target] = []
    for count in counts:
        boxes = torch.rand(count, 4, generator=generator) * 0.2 + 0.3
        labels = torch.randint(CLASSES, (count,), generator=generator)
        targets.append({"labels": labels, "boxes": boxes})
    return targets


# ---- Names in checkpoints ---------------------------------------------------------------------

RESNET_NAMES = (
    ("backbone.conv_encoder.model.", "backbone.0.body."),
    ("backbone.model.", "backbone.0.body."),
    ("embedder.embedder.convolution", "conv1"),
    ("embedder.embedder.normalization", "bn1"),
    ("shortcut.convolution", "downsample.0"),
    ("shortcut.normalization", "downsample.1"),
)


def released(
    state: Mapping[str, Tensor], rename: Callable[[str], str], *, fused: str
) -> dict[str, Tensor]:
    """transformers' tensors as torchvision and the releases name them.

    Those of the ResNet get torchvision's names, then all ``rename``'s. The query, key and value
    projections of the attentions that ``fused`` matches become one, as in
    ``nn.MultiheadAttention``; other attentions' stay.
    """
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        key = key.removeprefix("model.")
        if found := re.fullmatch(rf"({fused})\.([qkv])_proj\.(weight|bias)", key):
            stem = rename(f"{found[1]}.in_proj_{found[3]}")
            parts.setdefault(stem, {})[found[2]] = value
            continue
        key = re.sub(
            r"encoder\.stages\.(\d)\.layers\.(\d)", lambda m: f"layer{int(m[1]) + 1}.{m[2]}", key
        )
        key = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", key)
        key = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", key)
        for old, new in RESNET_NAMES:
            key = key.replace(old, new)
        key = rename(key)
        out[key] = value
        if key.endswith("running_var"):
            out[key.replace("running_var", "num_batches_tracked")] = torch.tensor(3)
    assert parts
    out.update({key: torch.cat([part[p] for p in "qkv"]) for key, part in parts.items()})
    return out


def converted(
    layouts: Iterable[KeyLayout], state: dict[str, Tensor], name: str
) -> dict[str, Tensor]:
    """``state`` under our names; exactly one layout may claim it, and it has to be that one."""
    found = [layout for layout in layouts if layout.recognises(state)]
    assert [layout.name for layout in found] == [name]
    return found[0].convert(state)


# ---- Checks -----------------------------------------------------------------------------------


@torch.no_grad()
def furthest(
    model: nn.Module,
    reference: nn.Module,
    dtype: torch.dtype,
    inputs: Sequence[tuple[Tensor, Tensor | None]] | None = None,
    *,
    spread: float = 0.03,
) -> float:
    """The largest difference of logits and boxes on ``inputs``, by default a padded batch.

    ``spread`` is how far the boxes of a picture are apart at least.
    """
    model, reference = model.to(dtype).eval(), reference.to(dtype)
    found = []
    for pixels, mask in inputs or [padded_batch(dtype)]:
        other = reference(pixels, pixel_mask=None if mask is None else mask.long())
        mine = model(pixels, mask)
        assert mine["pred_logits"].shape == other.logits.shape
        assert other.logits.std() > 0.05  # or there would be nothing to compare
        assert other.pred_boxes.std(1).mean() > spread
        found += [mine["pred_logits"] - other.logits, mine["pred_boxes"] - other.pred_boxes]
    return max(d.abs().max().item() for d in found)


def same_gradients(
    model: nn.Module, wanted: Mapping[str, Tensor], *, rtol: float = 1e-8, atol: float = 1e-8
) -> int:
    """Compares the gradients that the reference has, too; how many those are.

    Only a backbone may have others: transformers freezes its own ResNet as a whole.
    """
    compared = 0
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if key in wanted:
            assert parameter.grad is not None, key
            torch.testing.assert_close(parameter.grad, wanted[key], rtol=rtol, atol=atol)
            compared += 1
        else:
            assert key.startswith("backbone."), key
    return compared


def reaches_every_parameter(model: nn.Module, losses: Losses) -> None:
    """The losses are finite, and so is each trainable parameter's gradient."""
    losses.total.backward()
    assert losses.total.isfinite()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def reads_no_padding(model: Any, pixels: Tensor, mask: Tensor) -> None:
    """Whatever the one feature map holds in its padding, no prediction changes.

    Without the mask it does.
    """

    def predictions(noise: float, hide: bool = True) -> Tensor:
        def disturb(module: nn.Module, args: Any, out: Any) -> Any:
            ((features, valid),) = out
            assert not valid.all()
            return [(features + noise * ~valid[:, None], valid if hide else valid | True)]

        hook = model.backbone.register_forward_hook(disturb)
        with torch.no_grad():
            out = model(pixels, mask)
        hook.remove()
        return torch.cat([out["pred_logits"], out["pred_boxes"]], -1)

    assert torch.equal(predictions(0.0), predictions(1e3))
    assert not torch.allclose(predictions(0.0, hide=False), predictions(1e3, hide=False))


@torch.no_grad()
def mixed_and_exact(model: nn.Module, pixels: Tensor, mask: Tensor) -> tuple[Any, Any]:
    """Predictions under autocast to bfloat16, which are float32 nevertheless, and without."""
    exact = model(pixels, mask)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(pixels, mask)
    assert mixed["pred_boxes"].dtype == mixed["pred_logits"].dtype == torch.float32
    return mixed, exact

"""ResNet-D, RT-DETR's backbone (He et al., "Bag of Tricks", CVPR 2019, arXiv 1812.01187, 4.2).

A ResNet whose 7x7 stem is three 3x3 convolutions, and whose shortcuts average 2x2 cells before a
1x1 convolution where they halve the resolution. As in the release of RT-DETR
(github.com/lyuwenyu/RT-DETR, PResNet): the first block of the first stage always has a convolution
on its shortcut, in ResNet-18 and 34 too, and pixels are scaled to 0..1, without ImageNet's mean
and deviation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError, nearest
from zoo.models.layers.backbone import RESNETS, Backbone, ResNetSpec, build_backbone
from zoo.models.layers.folding import FrozenBatchNorm2d, conv_norm, fuse_conv_norm
from zoo.weights import State, read_file

VDS = {f"{name}vd": spec for name, spec in RESNETS.items() if name != "resnet152"}
STRIDES = (4, 8, 16, 32)  # of the four stages


class PixelScaler(nn.Module):
    """uint8 pixels to 0..1 on the device; padding becomes exactly 0. Floats are left alone."""

    white: Tensor  # 255, in the model's dtype

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("white", torch.tensor(255.0), persistent=False)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
        """[B, 3, H, W] from pixels of that shape; ``pixel_mask`` [B, H, W] or None: no padding."""
        if pixel_values.is_floating_point():
            return pixel_values
        x = pixel_values.to(self.white.dtype, memory_format=torch.channels_last).div_(self.white)
        return x if pixel_mask is None else x.mul_(pixel_mask[:, None])


class ConvNorm(nn.Module):
    """A convolution without bias, its batch norm and an activation (``relu``, ``silu`` or none).

    ``norm``: "batch", or "frozen" (statistics and affine are buffers). Padding keeps the size, or
    halves it, rounded up, at a ``stride`` of 2. In evaluation without gradients the norm is folded
    into the convolution, and :meth:`fuse` does it for good.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        act: str = "",
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if norm not in ("batch", "frozen"):
            raise ZooError(f"there is no norm '{norm}'; set model.norm to frozen or batch")
        if act not in ("", "relu", "silu"):
            raise ValueError(f"there is no activation '{act}' here; known: relu, silu")
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm: nn.Module
        self.norm = nn.BatchNorm2d(outputs) if norm == "batch" else FrozenBatchNorm2d(outputs)
        self.act = act
        self.folds = [("conv", "norm")]

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, h / stride, w / stride] from [B, inputs, h, w], fresh."""
        y = conv_norm(x, self.conv, self.norm, relu=self.act == "relu")
        if self.act == "silu":
            return F.silu(y, inplace=not torch.is_grad_enabled())
        return y

    def fuse(self) -> None:
        """Fold the norm into the convolution for good; a second call does nothing."""
        fuse_conv_norm(self, "conv", "norm")


class VdBlock(nn.Module):
    """A residual block, basic (two 3x3) or bottleneck (1x1, 3x3, 1x1), the stride in a 3x3.

    ``shortcut``: whether the residual passes a convolution, after averaging where ``stride`` is 2.
    """

    def __init__(
        self, kind: str, inputs: int, outputs: int, stride: int, shortcut: bool, norm: str
    ) -> None:
        super().__init__()
        self.stride = stride
        if kind == "bottleneck":
            width = outputs // 4
            parts = [
                ConvNorm(inputs, width, act="relu", norm=norm),
                ConvNorm(width, width, 3, stride, act="relu", norm=norm),
                ConvNorm(width, outputs, norm=norm),
            ]
        else:
            parts = [
                ConvNorm(inputs, outputs, 3, stride, act="relu", norm=norm),
                ConvNorm(outputs, outputs, 3, norm=norm),
            ]
        self.convs = nn.ModuleList(parts)
        self.shortcut = ConvNorm(inputs, outputs, norm=norm) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, h / stride, w / stride] from [B, inputs, h, w]."""
        y = x
        for conv in self.convs:
            y = conv(y)
        if self.shortcut is not None:
            # An odd row or column at the edge is averaged by itself.
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True) if self.stride == 2 else x
            x = self.shortcut(x)
        return y.add_(x).relu_()


class ResNetVdBackbone(Backbone):
    """A ResNet-D, ``name`` one of ``VDS`` or a :class:`ResNetSpec` of one's own.

    ``strides`` are the levels to return, fine to coarse; stages beyond the last are not built.
    ``norm``: "frozen" or "batch". ``weights``: a file with a state dict in the names of RT-DETR's
    release (its ImageNet weights) or in ours, "none" for a random start, or None where a
    checkpoint of the whole model will be loaded. With frozen norms and weights the stem stays
    fixed, as in the release.
    """

    def __init__(
        self,
        name: str | ResNetSpec = "resnet50vd",
        *,
        strides: Sequence[int] = (8, 16, 32),
        weights: str | None = None,
        norm: str = "frozen",
    ) -> None:
        super().__init__()
        if isinstance(name, str) and name not in VDS:
            raise ZooError(
                f"there is no backbone '{name}' (model.backbone); {nearest(name, list(VDS))}"
            )
        if not strides or set(strides) - set(STRIDES):
            raise ZooError(f"a ResNet has levels of strides 4, 8, 16 and 32, not {list(strides)}")
        spec = VDS[name] if isinstance(name, str) else name
        self.normalize = PixelScaler()  # type: ignore[assignment]  # of the same signature
        self.strides = tuple(sorted(set(strides)))
        self.num_channels = tuple(spec.widths[STRIDES.index(s)] for s in self.strides)
        half = spec.stem // 2
        self.stem = nn.Sequential(
            ConvNorm(3, half, 3, 2, act="relu", norm=norm),
            ConvNorm(half, half, 3, act="relu", norm=norm),
            ConvNorm(half, spec.stem, 3, act="relu", norm=norm),
        )
        self.stages = nn.ModuleList()
        inputs = spec.stem
        for index in range(STRIDES.index(self.strides[-1]) + 1):
            blocks = []
            for number in range(spec.depths[index]):
                stride = 2 if index > 0 and number == 0 else 1
                sizes = inputs, spec.widths[index], stride
                blocks.append(VdBlock(spec.block, *sizes, number == 0, norm))
                inputs = spec.widths[index]
            self.stages.append(nn.Sequential(*blocks))
        self._init_random(norm)
        if weights is not None and weights != "none" and not self._first.weight.is_meta:
            self._load_pretrained(weights)
        if norm == "frozen" and weights != "none":
            self.stem.requires_grad_(False)

    @property
    def _first(self) -> nn.Conv2d:
        return cast(ConvNorm, self.stem[0]).conv

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps at ``strides``."""
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        maps = []
        for stride, stage in zip(STRIDES, self.stages, strict=False):
            x = stage(x)
            if stride in self.strides:
                maps.append(x)
        return maps

    def _init_random(self, norm: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if norm != "frozen":
            return
        # Norms that never adapt can't keep a random network's residual sums in bounds.
        blocks = [m for m in self.modules() if isinstance(m, VdBlock)]
        for block in blocks:
            last = cast(ConvNorm, block.convs[-1]).norm
            cast(Tensor, last.weight).fill_(len(blocks) ** -0.5)

    def _load_pretrained(self, weights: str) -> None:
        given, own = from_release(_from_file(weights)), self.state_dict()
        counted = {k: v for k, v in own.items() if k.endswith(".num_batches_tracked")}
        given = {**counted, **{k: v for k, v in given.items() if not self._unused(k)}}
        misfits = sorted(own.keys() ^ given.keys())
        misfits += [k for k in own.keys() & given.keys() if own[k].shape != given[k].shape]
        if misfits:
            raise ZooError(
                f"{weights} is not a checkpoint of this backbone: tensor {misfits[0]} is missing, "
                "without a place or of another shape; pass a state dict in the names of RT-DETR's "
                "release as model.backbone_weights, or choose the model.backbone it belongs to"
            )
        self.load_state_dict(given)

    def _unused(self, key: str) -> bool:
        """Whether a tensor has no place here and needs none: a count, a stage too many."""
        part, number, *_ = [*key.split("."), ""]
        beyond = part == "stages" and number.isdigit() and int(number) >= len(self.stages)
        return beyond or part == "fc" or key.endswith(".num_batches_tracked")


# The release's names (PResNet), without a prefix, and ours.
RELEASE_RULES: tuple[tuple[str, str], ...] = (
    *((rf"^conv1\.conv1_{n + 1}\.", f"stem.{n}.") for n in range(3)),
    (r"^res_layers\.(\d+)\.blocks\.", r"stages.\1."),
    *((rf"\.branch2{letter}\.", f".convs.{n}.") for n, letter in enumerate("abc")),
    (r"\.short\.conv\.(conv|norm)\.", r".shortcut.\1."),  # behind the pooling
    (r"\.short\.", ".shortcut."),
)


def from_release(state: State) -> State:
    """A backbone's state under our names; what is named so already stays."""
    out: State = {}
    for key, value in state.items():
        for pattern, replacement in RELEASE_RULES:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


def _from_file(weights: str) -> State:
    """The tensors of the file that ``model.backbone_weights`` names."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ZooError(
            f"there is no file {weights} (model.backbone_weights); give a file with a ResNet-D in "
            "the names of RT-DETR's release, or none"
        )
    return read_file(path)


def build_vd_backbone(
    name: str,
    *,
    weights: str | None = None,
    norm: str = "frozen",
    strides: Sequence[int] = (8, 16, 32),
) -> Backbone:
    """The backbone that a model's config names: one of ``VDS``, or of the other backbones.

    Raises :class:`ZooError` for unknown names and levels.
    """
    if name in VDS:
        return ResNetVdBackbone(name, weights=weights, norm=norm, strides=strides)
    if name.endswith("vd"):
        raise ZooError(
            f"there is no backbone '{name}' (model.backbone); {nearest(name, list(VDS))}"
        )
    return build_backbone(name, weights=weights, norm=norm, strides=strides)

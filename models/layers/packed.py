"""Convolution weights as oneDNN computes with them, for inference on a CPU.

oneDNN turns a weight into blocks before every convolution. Done once, that saves RT-DETR a
twentieth of its time for one picture in bfloat16 (docs/log.md). Which blocks are best depends on
the input's shape, and the wrong ones are several times slower; so the blocks are those of one
shape, and other shapes go the usual way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


class PackedConv2d(nn.Conv2d):
    """A convolution that keeps its weight in blocks besides, once an input's shape comes twice.

    The blocks are those of the last shape that did, and take as much memory as the weight. They are
    used without gradients only, and not while a graph is made; they don't notice a weight that is
    changed later. A copy of the module has none.
    """

    _blocks: tuple[Shape, torch.dtype, Tensor] | None = None
    _last: Shape = ()

    def forward(self, x: Tensor) -> Tensor:
        """As :class:`torch.nn.Conv2d`."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        weight = self._weight_for(x)
        if weight is None:
            return super().forward(x)
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, *self._geometry(), 1, "none", [], ""
        )

    def _weight_for(self, x: Tensor) -> Tensor | None:
        """The weight in blocks for ``x``, None where there are none or they can't be used."""
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or x.device.type != "cpu"
            or x.dtype != self.weight.dtype
            or not x.numel()
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return None
        shape, blocks = tuple(x.shape), self._blocks
        if blocks is not None and blocks[:2] == (shape, x.dtype):
            return blocks[2]
        if shape != self._last:  # pictures of many sizes would be packed anew each time
            self._last = shape
            return None
        padding, stride, dilation = self._geometry()
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight.detach(), padding, stride, dilation, 1, list(shape)
        )
        self._blocks = shape, x.dtype, weight
        return weight

    def _geometry(self) -> tuple[list[int], list[int], list[int]]:
        """Padding, stride and dilation."""
        return (
            [int(side) for side in self.padding],
            [int(step) for step in self.stride],
            [int(step) for step in self.dilation],
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the blocks, which have no storage that could be copied."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_blocks", "_last")}


def pack_convolutions(model: nn.Module) -> nn.Module:
    """Let all convolutions of a model pack their weights, in place, where this machine can.

    For inference on an x86 CPU by a torch with oneDNN; elsewhere nothing changes. Convolutions
    in groups, with other padding than zeros or of other types than float32 and bfloat16 are left
    as they are.
    """
    able = (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )
    for module in model.modules() if able else ():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and module.weight.dtype in (torch.float32, torch.bfloat16)
        ):
            module.__class__ = PackedConv2d
    return model

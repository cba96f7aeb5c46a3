"""Multi-scale deformable attention by itself, against ``grid_sample`` level by level.

The reference is transformers' module of Deformable DETR, which is that form, with the same
weights; queries are those of its encoder (every cell) or of its decoder.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from rows import Row, alternate, compare, require, shown
from torch import Tensor

from zoo.models.layers.deformable import DeformableAttention

DIM, HEADS, POINTS = 256, 8, 4


def sampling(quick: bool, cells: bool) -> Row:
    """Forward and backward, batch 2 at 480x640; with ``cells`` every cell is a query, else 300.

    The note has the times of forward alone. No figure was asked for but not to be slower.
    """
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention,
    )

    shapes = [(6, 8), (3, 4)] if quick else [(60, 80), (30, 40), (15, 20), (8, 10)]
    torch.manual_seed(11)
    ours = DeformableAttention(DIM, HEADS, len(shapes), POINTS)
    torch.nn.init.normal_(ours.sampling_offsets.weight, std=0.02)
    torch.nn.init.normal_(ours.attention_weights.weight, std=0.02)
    settings: Any = SimpleNamespace(
        d_model=DIM, num_feature_levels=len(shapes), disable_custom_kernels=True
    )
    theirs = DeformableDetrMultiscaleDeformableAttention(settings, HEADS, POINTS)
    theirs.load_state_dict(ours.state_dict())

    sizes = torch.tensor(shapes)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    memory = torch.randn(2, int(sizes.prod(1).sum()), DIM)
    count = memory.shape[1] if cells else 300
    query = torch.randn(2, count, DIM)
    points = torch.rand(2, count, 1, 2)
    inputs = [query.requires_grad_(), memory.requires_grad_()]

    def mine() -> Tensor:
        query, memory = inputs
        return ours(query, points.to(query.dtype), memory, shapes)

    def other() -> Tensor:
        query, memory = inputs
        return theirs(
            query,
            encoder_hidden_states=memory,
            reference_points=points.to(query.dtype).expand(-1, -1, len(shapes), -1),
            spatial_shapes=sizes,
            spatial_shapes_list=shapes,
            level_start_index=starts,
        )[0]

    grow = torch.randn_like(mine())

    def gradients(run: Any, module: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(), [*inputs, *module.parameters()], grow.to(inputs[0].dtype))

    def convert(dtype: torch.dtype) -> None:
        inputs[:] = [x.detach().to(dtype).requires_grad_() for x in inputs]
        ours.to(dtype), theirs.to(dtype)

    # In float64: where a point lies on the border of two cells its slope jumps, and of millions
    # of points float32 rounds some to the one side here and to the other there.
    convert(torch.float64)
    pairs = zip(gradients(mine, ours), gradients(other, theirs), strict=True)
    far = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    require(far <= 1e-9, f"gradients differ by {far:.1e} of the largest")
    convert(torch.float32)
    off = float((mine() - other()).detach().abs().max())
    require(off <= 1e-4, f"outputs differ by {off:.1e}")

    repeats = 2 if quick else 9

    @torch.inference_mode()
    def forward(run: Any) -> None:
        run()

    alone = alternate({"a": lambda: forward(mine), "b": lambda: forward(other)}, repeats)
    note = (
        f"same weights, outputs within {off:.0e}, gradients in float64 within {far:.0e} of the "
        f"largest; forward alone {shown(alone['a'])} against {shown(alone['b'])}"
    )
    who = "every cell a query" if cells else "300 queries"
    name = f"deformable attention, {len(shapes)} levels of 480x640, {who}, batch 2, with backward"
    sides = {
        "ours": lambda: gradients(mine, ours),
        "theirs": lambda: gradients(other, theirs),
    }
    return compare(name, 1.0, sides, repeats, note)

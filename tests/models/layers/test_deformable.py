"""Deformable attention against the formulas written out, and against transformers'."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention,
)
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import multi_scale_deformable_attention_v2

from zoo.models.layers import deformable
from zoo.models.layers.deformable import DeformableAttention, weighted_rows

DIM, HEADS = 24, 3
SHAPES = [(7, 9), (4, 5), (2, 3)]
CELLS = [h * w for h, w in SHAPES]
EXACT = {"rtol": 0.0, "atol": 1e-12}


def randomised(module: nn.Module, reach: float = 1.5) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.5, 0.5)
        if isinstance(module, DeformableAttention):
            module.sampling_offsets.bias.mul_(4 * reach)  # many points lie outside
    return module.double().eval()


def case(coordinates: int, levels: int = 3, batch: int = 2, queries: int = 5) -> list[Tensor]:
    """Query, references (some outside of the image), memory and mask."""
    query = torch.randn(batch, queries, DIM, dtype=torch.float64)
    references = torch.rand(batch, queries, levels, coordinates, dtype=torch.float64)
    references[..., :2] = references[..., :2] * 1.2 - 0.1
    memory = torch.randn(batch, sum(CELLS), DIM, dtype=torch.float64)
    mask = torch.rand(batch, sum(CELLS)) < 0.8
    return [query, references, memory, mask]


def slow(
    layer: DeformableAttention,
    query: Tensor,
    references: Tensor,
    memory: Tensor,
    mask: Tensor,
) -> Tensor:
    """Equation 3 of the paper, one head, point and corner at a time."""
    batch, queries, dim = query.shape
    width = dim // layer.num_heads
    values = F.linear(memory, layer.value_proj.weight, layer.value_proj.bias) * mask[..., None]
    count = sum(layer.num_points)
    mixed = torch.zeros(batch, queries, dim, dtype=query.dtype)
    for b in range(batch):
        for q in range(queries):
            vector = query[b, q]
            offsets = layer.sampling_offsets.weight @ vector + layer.sampling_offsets.bias
            scores = layer.attention_weights.weight @ vector + layer.attention_weights.bias
            for head in range(layer.num_heads):
                own = scores[head * count : (head + 1) * count]
                shares = own.exp() / own.exp().sum()
                channels = slice(head * width, (head + 1) * width)
                point, start = 0, 0
                for level, (h, w) in enumerate(SHAPES):
                    place = references[b, q, min(level, references.shape[2] - 1)].tolist()
                    for _ in range(layer.num_points[level]):
                        dx, dy = offsets[2 * (head * count + point) :][:2].tolist()
                        if len(place) == 2:
                            x, y = place[0] + dx / w, place[1] + dy / h
                        else:
                            scale = layer.offset_scale / layer.num_points[level]
                            x = place[0] + dx * place[2] * scale
                            y = place[1] + dy * place[3] * scale
                        here = bilinear(values[b, start : start + h * w, channels], x, y, h, w)
                        mixed[b, q, channels] += shares[point] * here
                        point += 1
                    start += h * w
    return F.linear(mixed, layer.output_proj.weight, layer.output_proj.bias)


def bilinear(cells: Tensor, x: float, y: float, height: int, width: int) -> Tensor:
    """The map [h * w, C] at (x, y) in 0..1, with zeros around it."""
    column, row = x * width - 0.5, y * height - 0.5
    out = torch.zeros(cells.shape[1], dtype=cells.dtype)
    for j in (math.floor(row), math.floor(row) + 1):
        for i in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < width and 0 <= j < height:
                weight = (1 - abs(row - j)) * (1 - abs(column - i))
                out += weight * cells[j * width + i]
    return out


@pytest.mark.parametrize("points", [2, (1, 3, 2)])
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("levels", [1, 3])
def test_equals_the_formula(points: int | Sequence[int], coordinates: int, levels: int) -> None:
    layer = randomised(DeformableAttention(DIM, HEADS, 3, points, offset_scale=0.7))
    query, references, memory, mask = case(coordinates, levels)
    found = layer(query, references, memory, SHAPES, mask)
    expected = slow(layer, query, references, memory, mask)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, **EXACT)
    without = layer(query, references, memory, SHAPES, torch.ones_like(mask))
    torch.testing.assert_close(layer(query, references, memory, SHAPES), without, **EXACT)
    assert not torch.allclose(found, without)


def theirs_like(layer: DeformableAttention) -> nn.Module:
    config = DeformableDetrConfig(d_model=DIM, num_feature_levels=3, disable_custom_kernels=True)
    module = DeformableDetrMultiscaleDeformableAttention(config, HEADS, 4)
    module.load_state_dict(layer.state_dict())
    return module.double().eval()


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_transformers_with_gradients(coordinates: int, dtype: torch.dtype) -> None:
    layer = randomised(DeformableAttention(DIM, HEADS, 3, 4))
    theirs = theirs_like(layer).to(dtype)
    layer = layer.to(dtype)
    query, references, memory, mask = case(coordinates)
    leaves = [t.to(dtype).requires_grad_() for t in (query, references, memory)]
    mine = layer(*leaves, SHAPES, mask)
    copies = [t.detach().requires_grad_() for t in leaves]
    shapes = torch.tensor(SHAPES)
    other, _ = theirs(
        copies[0],
        attention_mask=mask,
        encoder_hidden_states=copies[2],
        reference_points=copies[1],
        spatial_shapes=shapes,
        spatial_shapes_list=SHAPES,
        level_start_index=None,
    )
    atol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(mine, other, rtol=0, atol=atol)
    (mine**2).sum().backward()
    (other**2).sum().backward()
    for leaf, copy in zip(leaves, copies, strict=True):
        assert copy.grad is not None
        assert copy.grad.abs().max() > 0.1
        torch.testing.assert_close(leaf.grad, copy.grad, rtol=1e-3 * (atol > 1e-6), atol=10 * atol)
    grads = dict(theirs.named_parameters())
    for name, parameter in layer.named_parameters():
        wanted = grads[name].grad
        torch.testing.assert_close(
            parameter.grad, wanted, rtol=1e-3 * (atol > 1e-6), atol=100 * atol
        )


def test_discrete_sampling_equals_transformers() -> None:
    layer = randomised(DeformableAttention(DIM, HEADS, 3, 2, discrete=True), reach=0.5)
    query, references, memory, mask = case(4, levels=1)
    found = layer(query, references, memory, SHAPES, mask)
    value = (layer.value_proj(memory) * mask[..., None]).unflatten(-1, (HEADS, -1))
    offsets = layer.sampling_offsets(query).view(2, 5, HEADS, 6, 2)
    weights = layer.attention_weights(query).view(2, 5, HEADS, 6).softmax(-1)
    where = references[:, :, None, :, :2] + offsets / 2 * references[:, :, None, :, 2:] * 0.5
    expected = multi_scale_deformable_attention_v2(
        value, SHAPES, where, weights, [2, 2, 2], method="discrete"
    )
    torch.testing.assert_close(found, layer.output_proj(expected), **EXACT)
    assert not layer.sampling_offsets.weight.requires_grad  # or DDP would wait for a gradient
    found.sum().backward()
    assert layer.value_proj.weight.grad is not None


def test_begins_with_rays_and_equal_weights() -> None:
    layer = DeformableAttention(32, 8, 2, (3, 2))
    bias = layer.sampling_offsets.bias.detach().view(8, 5, 2)
    rays = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, ray in enumerate(rays):
        for point, far in enumerate([1, 2, 3, 1, 2]):
            expected = torch.tensor(ray, dtype=torch.float32) * far
            torch.testing.assert_close(bias[head, point], expected, rtol=0, atol=1e-5)
    zero = [layer.sampling_offsets.weight, *layer.attention_weights.parameters()]
    assert all(not p.any() for p in [*zero, layer.value_proj.bias])
    assert layer.value_proj.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.1)


def test_a_graph_takes_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.randn(2, sum(CELLS), DIM, dtype=torch.float64)
    rows = torch.randint(sum(CELLS), (2, 5, HEADS, 7), dtype=torch.int32)
    scales = torch.rand(2, 5, HEADS, 7, dtype=torch.float64)
    bags = weighted_rows(value, rows, scales)
    monkeypatch.setattr(deformable.torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(weighted_rows(value, rows, scales), bags, **EXACT)
    head = value.unflatten(-1, (HEADS, -1))[1, rows[1, 4, 2].long(), 2]
    torch.testing.assert_close(bags[1, 4, -8:], scales[1, 4, 2] @ head, **EXACT)


def test_coordinates_are_float32_under_autocast() -> None:
    layer = randomised(DeformableAttention(DIM, HEADS, 3)).float()
    query, references, memory, mask = (t.float() if t.is_floating_point() else t for t in case(2))
    expected = layer(query, references, memory, SHAPES, mask)
    seen = []
    original = deformable._neighbours

    def watched(place: Tensor, size: int) -> tuple[Tensor, Tensor]:
        seen.append(place.dtype)
        return original(place, size)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(deformable, "_neighbours", watched)
        found = layer(query, references, memory, SHAPES, mask)
    assert set(seen) == {torch.float32}
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.15)


def test_places_that_are_not_finite_stay_in_the_table() -> None:
    layer = randomised(DeformableAttention(DIM, HEADS, 3))
    query, references, memory, mask = case(2)
    references[0, 0], references[0, 1] = torch.nan, torch.inf
    references[0, 2] = 1e30
    found = layer(query, references, memory, SHAPES, mask)
    assert found[0, 0].isnan().all()
    assert found[1].isfinite().all()
    expected = layer.output_proj.bias.expand(DIM)  # nothing is out there
    torch.testing.assert_close(found[0, 2], expected, **EXACT)


def test_without_output_projection() -> None:
    layer = randomised(DeformableAttention(DIM, HEADS, 3, project_output=False))
    other = randomised(DeformableAttention(DIM, HEADS, 3))
    other.load_state_dict({**other.state_dict(), **layer.state_dict()})
    inputs = case(2)
    inputs.insert(3, SHAPES)
    expected = other(*inputs)
    torch.testing.assert_close(other.output_proj(layer(*inputs)), expected, **EXACT)


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="can't be split into 5 heads"):
        DeformableAttention(DIM, 5, 3)
    with pytest.raises(ValueError, match="3 levels need as many numbers of points"):
        DeformableAttention(DIM, HEADS, 3, (4, 4))
    layer = DeformableAttention(DIM, HEADS, 3).double()
    query, references, memory, mask = case(2)
    with pytest.raises(ValueError, match="a memory of 89 cells does not fit the shapes"):
        layer(query, references, memory, SHAPES[:2], mask)

"""SAM-DETR: its sampling and its attention against loops, and what the paper asks of it besides."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from detector_checks import (
    CLASSES,
    mixed_and_exact,
    padded_batch,
    reaches_every_parameter,
    reads_no_padding,
    some_targets,
)
from torch import Tensor, nn
from torchvision.ops import roi_align

from zoo.errors import ZooError
from zoo.models.detr.sam_detr import Aligned, SalientPoints, SamDetr, SamDetrConfig, SamLayer
from zoo.models.layers.gaussian import gaussian_bias
from zoo.registry import model_spec

TINY = SamDetrConfig(
    dim=32,
    num_heads=4,
    encoder_layers=1,
    decoder_layers=3,
    ffn_dim=48,
    num_queries=7,
    dropout=0.0,
    widths=(16, 16, 24, 32),
    depths=(1, 1, 1, 1),
)
VALID = [(50, 70)]  # of the second picture
NANOLIKE: dict[str, Any] = {
    "strides": (8, 16, 32),
    "memory_stride": 16,
    "query_selection": True,
    "refine_normed": True,
    "dense_side": 0.3,
    "temperature": 20.0,
}


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Parameters far from their start, so that a lost or a swapped one shows."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        norm = tensor.ndim == 1 and name.endswith("weight")
        low, high = (0.5, 1.5) if norm else (-0.5, 0.5)
        tensor.copy_(drawn * (high - low) + low)


def some_mask() -> Tensor:
    """Maps of 5 x 6 cells, the second image padded on both sides."""
    mask = torch.ones(2, 5, 6, dtype=torch.bool)
    mask[1, 4:] = False
    mask[1, :, 3:] = False
    return mask


def ours(**settings: Any) -> SamDetr:
    return SamDetr(replace(TINY, **settings), CLASSES).eval()


# ---- Slow references --------------------------------------------------------------------------


def at(image: Tensor, y: Any, x: Any) -> Tensor:
    """Bilinear interpolation [D] of cells ``image`` [D, h, w], whose middles are whole numbers."""
    height, width = image.shape[-2:]
    y, x = min(max(float(y), 0.0), height - 1.0), min(max(float(x), 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    return (
        image[:, top, left] * (1 - down) * (1 - across)
        + image[:, top, right] * (1 - down) * across
        + image[:, bottom, left] * down * (1 - across)
        + image[:, bottom, right] * down * across
    )


def cut_slowly(image: Tensor, rows: int, columns: int, box: Tensor, size: int) -> Tensor:
    """RoIAlign (arXiv 1703.06870, section 3) of one box, cxcywh in 0..1: [D, size, size].

    Four samples a cell; beyond one cell outside of the map there is nothing.
    """
    height, width = image.shape[-2:]
    cx, cy, w, h = (box * torch.tensor([columns, rows, columns, rows])).tolist()
    out = torch.zeros(image.shape[0], size, size, dtype=image.dtype)
    for i in range(size):
        for j in range(size):
            for a in (0.25, 0.75):
                for b in (0.25, 0.75):
                    y = cy - h / 2 + (i + a) * h / size - 0.5
                    x = cx - w / 2 + (j + b) * w / size - 0.5
                    if -1 <= y <= height and -1 <= x <= width:
                        out[:, i, j] += at(image, y, x) / 4
    return out


def align_slowly(
    aligner: SalientPoints, memory: Tensor, mask: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Contents [Q, A, D] and points [Q, A, 2] of one image: memory [S, D], boxes [Q, 4]."""
    image = memory.T.reshape(-1, *mask.shape) * mask
    rows, columns = int(mask.any(1).sum()), int(mask.any(0).sum())
    contents, points = [], []
    for box in boxes:
        cut = cut_slowly(image, rows, columns, box, aligner.size)
        hidden = aligner.conv(cut[None])[0].relu().flatten()
        places = aligner.place(aligner.hidden(hidden).relu()).sigmoid().view(-1, 2)
        size = aligner.size
        contents.append(torch.stack([at(cut, y * size - 0.5, x * size - 0.5) for x, y in places]))
        corner = box[:2] - box[2:] / 2
        points.append(torch.stack([corner + place * box[2:] for place in places]))
    return torch.stack(contents), torch.stack(points)


def some_boxes(dtype: torch.dtype) -> Tensor:
    """Boxes inside, across an edge, tiny, and larger than the image."""
    rows = [
        [0.4, 0.6, 0.5, 0.3],
        [0.9, 0.1, 0.4, 0.5],
        [0.5, 0.5, 0.01, 0.02],
        [0.4, 0.6, 1.7, 1.5],
    ]
    return torch.tensor([rows, rows[::-1]], dtype=dtype)


def memory_of(dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    return torch.randn(2, 30, dim, generator=draw, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("points", "size"), [(8, 7), (3, 4)])
def test_the_sampling_is_the_papers(points: int, size: int) -> None:
    aligner = SalientPoints(8, points, size).double()
    randomise(aligner)
    memory, mask, boxes = memory_of(8), some_mask(), some_boxes(torch.float64)
    with torch.no_grad():
        got = aligner(memory, mask, boxes)
        assert got.content.shape == (2, 4, points, 8)
        for b in range(2):
            contents, places = align_slowly(aligner, memory[b], mask[b], boxes[b])
            torch.testing.assert_close(got.content[b], contents, rtol=0, atol=1e-10)
            torch.testing.assert_close(got.points[b], places, rtol=0, atol=1e-12)


def test_the_cutting_and_its_gradient_are_torchvisions() -> None:
    aligner = SalientPoints(8, 3, 7).double()
    memory = memory_of(8).requires_grad_()
    draw = torch.Generator().manual_seed(4)
    boxes = torch.rand(2, 40, 4, generator=draw, dtype=torch.float64)
    got = aligner.cut(memory, torch.ones(2, 5, 6, dtype=torch.bool), boxes)
    edges = torch.cat(
        [boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1
    )
    edges = list(edges * torch.tensor([6, 5, 6, 5]))
    maps = memory.transpose(1, 2).unflatten(2, (5, 6))
    wanted = roi_align(maps, edges, 7, sampling_ratio=2, aligned=True)
    wanted = wanted.permute(0, 2, 3, 1).unflatten(0, (2, 40))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    weigh = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
    (mine,) = torch.autograd.grad((got * weigh).sum(), memory)
    (other,) = torch.autograd.grad((wanted * weigh).sum(), memory)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)


def test_points_begin_on_a_circle_and_learn() -> None:
    aligner = SalientPoints(8, 4, 7)
    boxes = some_boxes(torch.float32)
    aligned = aligner(memory_of(8, torch.float32), some_mask(), boxes)
    away = (aligned.points - boxes[:, :, None, :2]) / boxes[:, :, None, 2:]
    torch.testing.assert_close(away.norm(dim=-1), torch.full((2, 4, 4), 0.25))
    assert len({tuple(p) for p in away[0, 0].mul(100).round().tolist()}) == 4
    aligned.content.square().sum().backward()
    assert aligner.place.weight.grad is not None
    assert aligner.place.weight.grad.abs().max() > 1e-4


def test_what_is_in_the_padding_is_not_sampled() -> None:
    aligner = SalientPoints(8, 4, 7)
    mask, boxes = some_mask(), some_boxes(torch.float32)
    memory = memory_of(8, torch.float32)
    noisy = memory + 100 * ~mask.flatten(1)[..., None]
    for a, b in zip(aligner(memory, mask, boxes), aligner(noisy, mask, boxes), strict=True):
        assert torch.equal(a, b)


def sines_of(values: Tensor, dim: int, temperature: float) -> Tensor:
    """[..., dim] of values in 0..1, by the definition."""
    columns = []
    for i in range(dim):
        phase = 2 * math.pi * values / temperature ** (2 * (i // 2) / dim)
        columns.append(phase.cos() if i % 2 else phase.sin())
    return torch.stack(columns, -1)


def cross_slowly(
    layer: SamLayer, x: Tensor, memory: Tensor, pos: Tensor, mask: Tensor, aligned: Aligned
) -> Tensor:
    """The cross attention of one image, x [Q, D] after self attention: [Q, D]."""
    heads, dim = layer.num_heads, x.shape[-1]
    valid = mask.flatten().nonzero()[:, 0].tolist()
    content_keys, place_keys = layer.content_proj(memory), layer.place_proj(pos)
    values = layer.v_proj(memory)
    rows = []
    for n in range(len(x)):
        gates = [layer.content_gate(x[n]).sigmoid(), layer.place_gate(x[n]).sigmoid()]
        parts = []
        for head in range(heads):
            of_head = slice(head * dim, (head + 1) * dim)
            point = aligned.points[n, head]
            sines = [sines_of(v, dim // 2, layer.temperature) for v in (point[1], point[0])]
            content = layer.content_proj(aligned.content[n, head] * gates[0][of_head])
            place = layer.place_proj(torch.cat(sines) * gates[1][of_head])
            scores = [
                (content @ content_keys[s] + place @ place_keys[s]) / math.sqrt(2 * dim)
                for s in valid
            ]
            if layer.windows is not None:
                offsets, scales = layer.windows(x[None, n : n + 1])
                where = aligned.points[None, n : n + 1]
                bias = gaussian_bias(mask[None], where, offsets, scales, beta=layer.beta)
                scores = [a + bias[0, head, 0, s] for a, s in zip(scores, valid, strict=True)]
            weights = torch.stack(scores).softmax(0)
            width = slice(head * dim // heads, (head + 1) * dim // heads)
            parts.append(sum(w * values[s, width] for w, s in zip(weights, valid, strict=True)))
        rows.append(torch.cat(parts))
    return layer.cross_attn.o_proj(torch.stack(rows))


@pytest.mark.parametrize("gaussian", [False, True])
def test_a_layer_is_the_papers(gaussian: bool) -> None:
    config = replace(TINY, dim=16, num_heads=2, roi_size=3, gaussian=gaussian, temperature=20.0)
    layer = SamLayer(config).double().eval()
    randomise(layer)
    draw = torch.Generator().manual_seed(9)
    x, query_pos = torch.randn(2, 2, 4, 16, generator=draw, dtype=torch.float64)
    memory, pos = memory_of(16), memory_of(16).flip(1) * 0.7
    mask, boxes = some_mask(), some_boxes(torch.float64)
    with torch.no_grad():
        got = layer(
            x, memory, boxes=boxes, query_pos=query_pos, memory_pos=pos, mask=mask,
            allowed=mask.flatten(1)[:, None, None],
        )  # fmt: skip
        placed = x + query_pos
        states = layer.norm1(x + layer.self_attn(placed, placed, x))
        for b in range(2):
            aligned = Aligned(*align_slowly(layer.aligner, memory[b], mask[b], boxes[b]))
            mixed = cross_slowly(layer, states[b], memory[b], pos[b], mask[b], aligned)
            state = layer.norm2(states[b] + mixed)
            wanted = layer.norm3(state + layer.linear2(layer.linear1(state).relu()))
            torch.testing.assert_close(got[b], wanted, rtol=0, atol=1e-10)


# ---- The model --------------------------------------------------------------------------------


def test_boxes_are_cut_once_in_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[SalientPoints] = []
    real = SalientPoints.cut

    def counted(self: SalientPoints, *args: Tensor) -> Tensor:
        calls.append(self)
        return real(self, *args)

    monkeypatch.setattr(SalientPoints, "cut", counted)
    model = ours()
    model(*padded_batch(valid=VALID))
    assert calls == [layer.aligner for layer in model.decoder.layers]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_boxes_move_layer_by_layer_and_are_read_detached(normed: bool, train: bool) -> None:
    model = ours(refine_normed=normed).train(train)
    randomise(model)
    read: list[Tensor] = []
    states: list[Tensor] = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(
            lambda _m, _a, kwargs: read.append(kwargs["boxes"]), with_kwargs=True
        )
        layer.register_forward_hook(lambda _m, _i, out: states.append(out))
    out = model(*padded_batch(valid=VALID))
    assert [boxes.requires_grad for boxes in read] == [True, False, False]
    for n in range(3):
        normed_state = model.decoder.norm(states[n])
        if n < 2:
            step = model.decoder.bbox_embed(normed_state if normed else states[n])
            moved = (read[n].logit() + step).sigmoid()
            assert (moved - read[n]).abs().max() > 0.01
            torch.testing.assert_close(read[n + 1], moved, rtol=0, atol=1e-5)
        boxes = (read[n].logit() + model.decoder.bbox_embed(normed_state)).sigmoid()
        given = [*out.get("aux_outputs", [None, None]), out][n]
        assert (given is None) == (not train and n < 2)
        if given is not None:
            torch.testing.assert_close(given["pred_boxes"], boxes, rtol=0, atol=1e-5)


def test_boxes_begin_at_the_references() -> None:
    model = ours(anchor_sizes=(0.2,))
    out = model(*padded_batch(valid=VALID))
    expected = model.anchors().sigmoid().expand(2, -1, -1)
    torch.testing.assert_close(out["pred_boxes"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(out["pred_boxes"][..., 2:], torch.full((2, 7, 2), 0.2))
    assert 0.002 < out["pred_logits"].sigmoid().mean() < 0.05  # the focal prior is .01


GRADIENT_CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "with windows": {"gaussian": True},
    "one layer": {"decoder_layers": 1},
    "nano": NANOLIKE,
    "nano without auxiliary losses": {**NANOLIKE, "aux_loss": False, "gaussian": True},
}


@pytest.mark.parametrize("case", list(GRADIENT_CASES))
@pytest.mark.parametrize("counts", [(2, 4), (0, 0)])
def test_every_parameter_gets_a_finite_gradient(case: str, counts: tuple[int, ...]) -> None:
    """Also from a batch without objects: processes would wait for each other's gradients."""
    model = ours(**GRADIENT_CASES[case]).train()
    criterion = model_spec("sam_detr_r50").criterion(model.config, CLASSES)
    losses = criterion(model(*padded_batch(valid=VALID)), some_targets(counts))
    assert all(parameter.requires_grad for parameter in model.parameters())
    reaches_every_parameter(model, losses)


@pytest.mark.parametrize("gaussian", [False, True])
def test_padding_does_not_reach_the_decoder(gaussian: bool) -> None:
    """Whatever tokens of padding hold, no prediction changes."""
    model = ours(gaussian=gaussian).double()
    randomise(model)
    reads_no_padding(model, *padded_batch(torch.float64, valid=VALID))


@pytest.mark.parametrize("settings", [{}, {"gaussian": True}])
def test_mixed_precision_keeps_boxes_in_float32(settings: dict[str, Any]) -> None:
    model = ours(**settings)
    mixed, exact = mixed_and_exact(model, *padded_batch(valid=VALID))
    torch.testing.assert_close(mixed["pred_boxes"], exact["pred_boxes"], rtol=0, atol=0.02)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ZooError, match=r"model\.head_scales is 3"):
        ours(gaussian=True, head_scales=3)
    with pytest.raises(ZooError, match=r"model\.beta is -1\.0"):
        ours(beta=-1.0)


def test_the_papers_settings() -> None:
    spec = model_spec("sam_detr_r50")
    assert (spec.config.num_queries, spec.config.num_heads, spec.config.roi_size) == (300, 8, 7)
    with torch.device("meta"):
        model = spec.build(spec.config, 91)
        windowed = model_spec("sam_detr_r50_smca")
        windowed = windowed.build(windowed.config, 91)
    assert all(layer.windows is None for layer in model.decoder.layers)
    assert all(layer.windows is not None for layer in windowed.decoder.layers)
    (gate,) = {layer.content_gate.out_features for layer in model.decoder.layers}
    assert gate == 8 * 256

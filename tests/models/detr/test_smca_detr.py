"""SMCA-DETR: its modulated attention against loops, and what the paper asks of it besides."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.smca_detr import SmcaDetr, SmcaDetrConfig, SmcaLayer
from zoo.models.layers.backbone import Backbone, Level
from zoo.models.layers.gaussian import HeadWindows, gaussian_bias
from zoo.registry import model_spec
from zoo.types import Target

CLASSES = 5
TINY = SmcaDetrConfig(
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
NANOLIKE: dict[str, Any] = {
    "strides": (8, 16, 32),
    "memory_stride": 16,
    "query_selection": True,
    "dense_side": 0.3,
    "temperature": 20.0,
}
SEVERAL: dict[str, Any] = {"strides": (16, 32), "num_levels": 3, "encoder_layers": 3}


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
    """Maps of 4 x 6 cells, the second image padded on both sides."""
    mask = torch.ones(2, 4, 6, dtype=torch.bool)
    mask[1, 3:] = False
    mask[1, :, 4:] = False
    return mask


def padded_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(2, 3, 96, 133, generator=generator)
    mask = torch.ones(2, 96, 133, dtype=torch.bool)
    mask[1, 50:] = False
    mask[1, :, 70:] = False
    return pixels * mask[:, None], mask


def some_targets(counts: tuple[int, ...]) -> list[Target]:
    generator = torch.Generator().manual_seed(3)
    targets = []
    for count in counts:
        boxes = torch.rand(count, 4, generator=generator) * 0.2 + 0.3
        labels = torch.randint(CLASSES, (count,), generator=generator)
        targets.append({"labels": labels, "boxes": boxes})
    return targets


def ours(**settings: Any) -> SmcaDetr:
    return SmcaDetr(replace(TINY, **settings), CLASSES).eval()


# ---- Slow references --------------------------------------------------------------------------


def window(
    mask: Tensor, centre: Tensor, offset: Tensor, scale: Tensor, beta: float
) -> dict[tuple[int, int], Tensor]:
    """The Gaussian-like weight (not its logarithm) of every valid cell (row, column) of an image.

    ``mask`` [h, w], ``centre``, ``offset`` and ``scale`` [2] of x, y.
    """
    rows = max(i + 1 for i in range(mask.shape[0]) if mask[i].any())
    columns = max(j + 1 for j in range(mask.shape[1]) if mask[:, j].any())
    out = {}
    for i in range(rows):
        for j in range(columns):
            dx = (j + 0.5) - (centre[0] * columns + offset[0])
            dy = (i + 0.5) - (centre[1] * rows + offset[1])
            across = dx**2 / (beta * (scale[0] ** 2 + 0.01))
            along = dy**2 / (beta * (scale[1] ** 2 + 0.01))
            out[i, j] = torch.exp(-across - along)
    return out


def attend_slowly(attention: Any, query: Tensor, key: Tensor, value: Tensor, weight: Any) -> Tensor:
    """Attention of one image's [L, D] to [S, D]; exp(score) times ``weight(head, l, s)`` each."""
    heads, width = attention.num_heads, query.shape[-1] // attention.num_heads
    q, k, v = attention.q_proj(query), attention.k_proj(key), attention.v_proj(value)
    rows = []
    for n in range(len(q)):
        parts = []
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            raw = [
                torch.exp(q[n, at] @ k[s, at] / math.sqrt(width)) * weight(head, n, s)
                for s in range(len(k))
            ]
            parts.append(sum(r * v[s, at] for s, r in enumerate(raw)) / sum(raw))
        rows.append(torch.cat(parts))
    return attention.o_proj(torch.stack(rows))


def layer_slowly(
    layer: SmcaLayer, x: Tensor, memory: Tensor, pos: Tensor, query_pos: Tensor, **more: Tensor
) -> Tensor:
    """One image's layer: x [Q, D], memory [S, D]; its mask [h, w] and centres [Q, 2]."""
    mask, centres, decode = more["mask"], more["centres"], layer.decode
    heads, scales = layer.windows.num_heads, layer.windows.scales
    raw = layer.windows.project(layer.norm(x + query_pos)).view(len(x), heads, 2 + scales)
    windows = {}
    for n in range(len(x)):
        for head in range(heads):
            of_head = raw[n, head, 2:]
            scale = {0: torch.ones(2).to(x), 1: of_head.repeat(2), 2: of_head}[scales]
            windows[head, n] = window(mask, centres[n], raw[n, head, :2], scale, layer.beta)

    def seen(head: int, query: int, cell: int) -> Tensor:
        place = divmod(cell, mask.shape[1])
        return windows[head, query].get(place, torch.zeros(()).to(x))

    placed = x + query_pos
    mixed = attend_slowly(decode.self_attn, placed, placed, x, lambda *_: 1.0)
    x = decode.norm1(x + mixed)
    mixed = attend_slowly(decode.cross_attn, x + query_pos, memory + pos, memory, seen)
    x = decode.norm2(x + mixed)
    return decode.norm3(x + decode.linear2(decode.linear1(x).relu()))


def scales_slowly(
    layer: SmcaLayer, x: Tensor, memories: list[Tensor], places: list[Tensor], **more: Any
) -> Tensor:
    """One image's layer at several scales: x [Q, D], memories and places [S, D], masks [h, w].

    ``cells``: of every scale, how many of its cells are as long as a window's unit.
    """
    query_pos, centres, decode = more["query_pos"], more["centres"], layer.decode
    heads, width = decode.cross_attn.num_heads, x.shape[1] // decode.cross_attn.num_heads
    seen = layer.norm(x + query_pos)
    raw = layer.windows.project(seen).view(len(x), heads, 4)
    assert layer.share is not None
    likes = layer.share(seen).exp()
    placed = x + query_pos
    x = decode.norm1(x + attend_slowly(decode.self_attn, placed, placed, x, lambda *_: 1.0))

    attention, rows = decode.cross_attn, []
    query = attention.q_proj(x + query_pos)
    for n in range(len(x)):
        parts = []
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            mixed = torch.zeros(width).to(x)
            for s, (memory, place, mask) in enumerate(
                zip(memories, places, more["masks"], strict=True)
            ):
                offset, scale = raw[n, head, :2], raw[n, head, 2:]
                unit = more["cells"][s]
                look = window(mask, centres[n], offset * unit, scale * unit, layer.beta)
                top, bottom = torch.zeros(width).to(x), torch.zeros(()).to(x)
                for (i, j), weight in look.items():
                    cell = i * mask.shape[1] + j
                    key = attention.k_proj(memory[cell] + place[cell])[at]
                    like = weight * (query[n, at] @ key / math.sqrt(width)).exp()
                    top = top + like * attention.v_proj(memory[cell])[at]
                    bottom = bottom + like
                mixed = mixed + likes[n, s] / likes[n].sum() * top / bottom
            parts.append(mixed)
        rows.append(torch.cat(parts))
    x = decode.norm2(x + attention.o_proj(torch.stack(rows)))
    return decode.norm3(x + decode.linear2(decode.linear1(x).relu()))


def layer_inputs(heads: int, scales: int, dtype: torch.dtype) -> tuple[SmcaLayer, dict[str, Any]]:
    config = replace(TINY, dim=4 * heads, num_heads=heads, head_scales=scales, beta=5.0)
    layer = SmcaLayer(config).to(dtype).eval()
    randomise(layer)
    draw = torch.Generator().manual_seed(7)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    dim = config.dim
    inputs = {"x": rand(2, 3, dim), "memory": rand(2, 24, dim), "pos": rand(2, 24, dim)}
    inputs["query_pos"] = rand(2, 3, dim)
    inputs["centres"] = rand(2, 3, 2).sigmoid()
    return layer, inputs


def run(layer: SmcaLayer, given: dict[str, Any]) -> Tensor:
    return layer(
        given["x"],
        given["memory"],
        keys=given["memory"] + given["pos"],
        query_pos=given["query_pos"],
        centres=given["centres"],
        masks=[some_mask()],
    )


@pytest.mark.parametrize(("heads", "scales"), [(1, 2), (3, 2), (3, 1), (2, 0)])
def test_a_layer_is_the_papers(heads: int, scales: int) -> None:
    """Outputs and gradients, with padding, in float64."""
    layer, given = layer_inputs(heads, scales, torch.float64)
    given["centres"].requires_grad_()
    wanted = torch.stack(
        [
            layer_slowly(layer, **{k: v[b] for k, v in given.items()}, mask=some_mask()[b])
            for b in range(2)
        ]
    )
    got = run(layer, given)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    names = [n for n, _ in layer.named_parameters()]
    sources = [given["centres"], *layer.parameters()]
    weigh = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
    mine = torch.autograd.grad((got * weigh).sum(), sources)
    other = torch.autograd.grad((wanted * weigh).sum(), sources)
    for name, a, b in zip(["centres", *names], mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)
        assert b.abs().max() > 1e-12 or "k_proj.bias" in name, name


def scale_inputs(dtype: torch.dtype) -> tuple[SmcaLayer, dict[str, Any]]:
    """A layer at three scales, of 4 x 6, 2 x 3 and 1 x 2 cells, and what it gets."""
    cells = (2.0, 1.0, 0.5)
    layer = SmcaLayer(replace(TINY, dim=12, num_heads=3, beta=5.0), cells).to(dtype).eval()
    randomise(layer)
    draw = torch.Generator().manual_seed(8)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    masks = [some_mask()[:, ::step, ::step] for step in (1, 2, 4)]
    given: dict[str, Any] = {"cells": cells, "masks": masks}
    given["memories"] = [rand(2, m[0].numel(), 12) for m in masks]
    given["places"] = [rand(2, m[0].numel(), 12) for m in masks]
    given.update(x=rand(2, 3, 12), query_pos=rand(2, 3, 12), centres=rand(2, 3, 2).sigmoid())
    return layer, given


def run_scales(layer: SmcaLayer, given: dict[str, Any]) -> Tensor:
    memory, pos = torch.cat(given["memories"], 1), torch.cat(given["places"], 1)
    named = {name: given[name] for name in ("query_pos", "centres", "masks")}
    return layer(given["x"], memory, keys=memory + pos, **named)


def test_a_layer_at_several_scales_is_the_papers() -> None:
    """Outputs and gradients, with padding, in float64: a softmax of each scale, and its share."""
    layer, given = scale_inputs(torch.float64)
    given["centres"].requires_grad_()

    def alone(image: int) -> dict[str, Any]:
        some = {k: given[k][image] for k in ("x", "query_pos", "centres")}
        lists = {k: [t[image] for t in given[k]] for k in ("memories", "places", "masks")}
        return {**some, **lists, "cells": given["cells"]}

    wanted = torch.stack([scales_slowly(layer, **alone(image)) for image in range(2)])
    got = run_scales(layer, given)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    names = ["centres", *[n for n, _ in layer.named_parameters()]]
    sources = [given["centres"], *layer.parameters()]
    weigh = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
    mine = torch.autograd.grad((got * weigh).sum(), sources)
    other = torch.autograd.grad((wanted * weigh).sum(), sources)
    for name, a, b in zip(names, mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)
        assert b.abs().max() > 1e-12 or "k_proj.bias" in name, name


def test_several_scales_in_mixed_precision() -> None:
    layer, given = scale_inputs(torch.float32)
    exact = run_scales(layer, given).detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run_scales(layer, given)
    assert (mixed.float() - exact).abs().max() < 0.1
    mixed.float().square().sum().backward()
    assert layer.share is not None
    assert layer.share.weight.grad is not None
    assert layer.share.weight.grad.abs().max() > 1e-6
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("train", [False, True])
def test_a_layer_in_mixed_precision(train: bool) -> None:
    """In bfloat16 attention on CPUs takes another path with gradients than without."""
    layer, given = layer_inputs(4, 2, torch.float32)
    exact = run(layer, given).detach()
    with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16):
        mixed = run(layer, given)
    assert (mixed.float() - exact).abs().max() < 0.1
    if train:
        mixed.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
        assert layer.windows.project.weight.grad.any()


def test_windows_of_a_padded_image_are_those_of_the_image_alone() -> None:
    mask = some_mask()
    draw = torch.Generator().manual_seed(2)
    centres = torch.rand(2, 5, 1, 2, generator=draw)
    offsets, scales = torch.randn(2, 2, 5, 3, 2, generator=draw)
    padded = gaussian_bias(mask, centres, offsets, scales, beta=8.0).unflatten(-1, (4, 6))
    alone = torch.ones(1, 3, 4, dtype=torch.bool)
    small = gaussian_bias(alone, centres[1:], offsets[1:], scales[1:], beta=8.0)
    inside = padded[1, ..., :3, :4].flatten(-2)
    torch.testing.assert_close(inside, small[0], rtol=0, atol=1e-6)
    assert padded[1, ..., 3:, :].isneginf().all()
    assert padded[1, ..., 4:].isneginf().all()
    assert padded[0].isfinite().all()


def test_a_vanishing_window_stays_finite() -> None:
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    scales = torch.zeros(1, 1, 2, 2, requires_grad=True)
    centres = torch.full((1, 1, 1, 2), 0.5, requires_grad=True)
    bias = gaussian_bias(mask, centres, torch.zeros(1, 1, 2, 2), scales, beta=8.0)
    assert bias.isfinite().all()
    assert bias.argmax(-1).eq(4).all()
    bias.sum().backward()
    assert scales.grad is not None
    assert scales.grad.isfinite().all()
    assert centres.grad is not None
    assert centres.grad.isfinite().all()


@pytest.mark.parametrize("scales", [0, 1, 2])
def test_windows_begin_around_the_centre(scales: int) -> None:
    windows = HeadWindows(12, 3, scales)
    offsets, sizes = windows(torch.randn(2, 5, 12))
    assert offsets.shape == sizes.shape == (2, 5, 3, 2)
    assert not offsets.any()
    assert (sizes == 1).all()
    assert windows.project.out_features == 3 * (2 + scales)


# ---- The model --------------------------------------------------------------------------------


def test_boxes_begin_at_the_centres() -> None:
    model = ours()
    out = model(*padded_batch())
    assert set(out) == {"pred_logits", "pred_boxes"}
    centres = model.queries.point_head(model.queries.embed.weight).sigmoid().expand(2, -1, -1)
    torch.testing.assert_close(out["pred_boxes"][..., :2], centres, rtol=0, atol=1e-6)
    assert 0.002 < out["pred_logits"].sigmoid().mean() < 0.05  # the focal prior is .01


def test_every_layer_looks_around_the_same_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours().train()
    randomise(model)
    read: list[Tensor] = []
    of_layer = SmcaLayer.biases

    def spy(self: SmcaLayer, seen: Tensor, centres: Tensor, masks: list[Tensor]) -> list[Tensor]:
        read.append(centres)
        return of_layer(self, seen, centres, masks)

    monkeypatch.setattr(SmcaLayer, "biases", spy)
    out = model(*padded_batch())
    assert len(read) == TINY.decoder_layers
    assert len(out["aux_outputs"]) == TINY.decoder_layers - 1
    centres = model.queries.point_head(model.queries.embed.weight).sigmoid().expand(2, -1, -1)
    for seen in read:
        torch.testing.assert_close(seen, centres, rtol=0, atol=1e-6)
    last = model.class_embed.weight
    (grad,) = torch.autograd.grad(out["pred_logits"].sum(), [read[0]], retain_graph=True)
    assert last.requires_grad
    assert grad.abs().max() > 1e-9  # a centre also learns from what is seen around it


GRADIENT_CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "fixed windows, one layer": {"head_scales": 0, "decoder_layers": 1},
    "one scale": {"head_scales": 1},
    "nano": NANOLIKE,
    "nano without auxiliary losses": {**NANOLIKE, "aux_loss": False},
    "several scales": SEVERAL,
    "several scales, nano": {**NANOLIKE, **SEVERAL},
}


@pytest.mark.parametrize("case", list(GRADIENT_CASES))
@pytest.mark.parametrize("counts", [(2, 4), (0, 0)])
def test_every_parameter_gets_a_finite_gradient(case: str, counts: tuple[int, ...]) -> None:
    """Also from a batch without objects: processes would wait for each other's gradients."""
    model = ours(**GRADIENT_CASES[case]).train()
    criterion = model_spec("smca_detr_r50").criterion(model.config, CLASSES)
    losses = criterion(model(*padded_batch()), some_targets(counts))
    losses.total.backward()
    assert losses.total.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_padding_does_not_reach_the_decoder() -> None:
    """Whatever tokens of padding hold, no prediction changes."""
    model = ours().double()
    randomise(model)
    pixels, mask = padded_batch()

    def boxes(noise: float, hide: bool = True) -> Tensor:
        def disturb(module: nn.Module, args: Any, out: Any) -> Any:
            ((features, valid),) = out
            return [(features + noise * ~valid[:, None], valid if hide else valid | True)]

        hook = model.backbone.register_forward_hook(disturb)
        with torch.no_grad():
            result = model(pixels.double(), mask)["pred_boxes"]
        hook.remove()
        return result

    assert torch.equal(boxes(0.0), boxes(1e3))
    assert not torch.allclose(boxes(0.0, hide=False), boxes(1e3, hide=False))


class Given(Backbone):
    """A backbone whose maps are given: what it would see in the padding is up to the test."""

    num_channels = (6, 10)
    strides = (16, 32)

    def __init__(self, levels: list[Level]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> list[Level]:
        return self.levels


@pytest.mark.parametrize("select", [False, True])
def test_a_padded_batch_at_several_scales_is_each_image_alone(select: bool) -> None:
    """Everything after the backbone, whatever its maps hold in the padding."""
    draw = torch.Generator().manual_seed(6)
    sizes, valid = [(6, 7), (3, 4)], [(5, 3), (3, 2)]
    batch, single = [], []
    for channels, (height, width), (rows, columns) in zip((6, 10), sizes, valid, strict=True):
        x = torch.randn(2, channels, height, width, generator=draw, dtype=torch.float64)
        mask = torch.zeros(2, height, width, dtype=torch.bool)
        mask[0] = mask[1, :rows, :columns] = True
        x = torch.where(mask[:, None], x, 50.0)
        batch.append((x, mask))
        single.append((x[1:, :, :rows, :columns], mask[1:, :rows, :columns]))
    settings = {**SEVERAL, "encoder_layers": 5, "query_selection": select, "num_queries": 4}
    config = replace(TINY, **settings)
    model = SmcaDetr(config, CLASSES, Given(batch)).double().eval()
    randomise(model)
    pixel_mask = torch.ones(2, 96, 112, dtype=torch.bool)
    pixel_mask[1, 80:] = False
    pixel_mask[1, :, 48:] = False
    pixels = torch.zeros(2, 3, 96, 112, dtype=torch.float64)
    together = model(pixels, pixel_mask)
    model.backbone = Given(single)
    for mask in (None, pixel_mask[1:, :80, :48]):
        alone = model(pixels[1:, :, :80, :48], mask)
        for name in ("pred_logits", "pred_boxes"):
            one, other = alone[name][0], together[name][1]
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert (together["pred_boxes"][0] - together["pred_boxes"][1]).abs().max() > 1e-3


def test_the_middle_of_the_picture_has_one_position_at_all_scales() -> None:
    """Of 3 x 3 cells the fifth is there, and of a single cell the only one."""
    model = ours(**SEVERAL, temperature=20.0)
    masks = [torch.ones(1, n, n, dtype=torch.bool) for n in (3, 2)]
    levels = [(torch.randn(1, c, *m.shape[1:]), m) for c, m in zip((24, 32), masks, strict=True)]
    fine, _, coarse = model.scales(levels, None)
    torch.testing.assert_close(fine.pos[0, 4], coarse.pos[0, 0], rtol=0, atol=1e-5)
    assert (fine.pos[0, 3] - coarse.pos[0, 0]).abs().max() > 0.1
    usual = ours(**SEVERAL).scales(levels, None)[0]
    assert (fine.pos - usual.pos).abs().max() > 0.1  # the setting is read


def test_windows_cover_the_same_part_of_the_picture_at_every_scale() -> None:
    """A unit is a cell of stride 32, that of a single scale; the shares begin equal."""
    model = ours(**SEVERAL)
    for layer in model.decoder.layers:
        assert layer.cells == (2.0, 1.0, 0.5)
        shares = layer.share(torch.randn(3, TINY.dim)).softmax(-1)
        torch.testing.assert_close(shares, torch.full((3, 3), 1 / 3), rtol=0, atol=1e-6)
    finer = ours(**{**SEVERAL, "memory_stride": 16}).decoder.layers[0]
    assert finer.cells == (1.0, 0.5, 0.25)


@pytest.mark.parametrize(("stride", "cells"), [(16, 6 * 9), (32, 3 * 5), (0, 3 * 5)])
def test_objects_are_proposed_at_one_scale(stride: int, cells: int) -> None:
    """That of ``memory_stride``; dense supervision is of the same cells."""
    several = {**NANOLIKE, **SEVERAL, "memory_stride": stride}
    out = ours(**several, num_queries=500).train()(*padded_batch())
    assert out["pred_logits"].shape == (2, cells, CLASSES)
    assert out["dense_outputs"].logits.shape == (2, cells, CLASSES)


def test_mixed_precision_keeps_boxes_in_float32() -> None:
    model = ours()
    pixels, mask = padded_batch()
    with torch.no_grad():
        exact = model(pixels, mask)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(pixels, mask)
    assert mixed["pred_boxes"].dtype == mixed["pred_logits"].dtype == torch.float32
    torch.testing.assert_close(mixed["pred_boxes"], exact["pred_boxes"], rtol=0, atol=0.02)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ZooError, match=r"model\.head_scales is 3; set 2 .* 0"):
        ours(head_scales=3)
    with pytest.raises(ZooError, match=r"model\.beta is 0\.0"):
        ours(beta=0.0)
    with pytest.raises(ZooError, match=r"model\.num_levels is 0; set 1 for a single map, or "):
        ours(num_levels=0)
    with pytest.raises(ZooError, match=r"gives 3 levels, more than the 2 .* model\.num_levels"):
        ours(num_levels=2, strides=(8, 16, 32))
    with pytest.raises(ZooError, match=r"multi_scale_layers is 4; set 0 to 3, "):
        ours(**SEVERAL, multi_scale_layers=4)


def test_the_papers_settings() -> None:
    spec = model_spec("smca_detr_r50")
    assert (spec.config.num_queries, spec.config.coef_class) == (300, 2.0)
    with torch.device("meta"):
        model = spec.build(spec.config, 91)
    assert not hasattr(model, "dense")
    assert len(model.decoder.layers) == 6
    assert model.decoder.layers[0].share is None
    assert not any("share" in name for name in model.state_dict())


def test_the_papers_settings_with_several_scales() -> None:
    """Two layers within scales, one over all, two within; scales of strides 16, 32 and 64."""
    spec = model_spec("smca_detr_r50_multi_scale")
    assert (spec.config.num_queries, spec.config.coef_class) == (300, 2.0)
    with torch.device("meta"), torch.no_grad():
        model = spec.build(spec.config, 91)
        scales = model.input_proj(model.backbone(torch.zeros(1, 3, 256, 320)))
    assert len(model.encoder.layers) == 5
    assert list(model.encoder.together) == [2]
    assert len(model.decoder.layers) == 6
    assert [tuple(x.shape[1:]) for x, _ in scales] == [(256, 16, 20), (256, 8, 10), (256, 4, 5)]

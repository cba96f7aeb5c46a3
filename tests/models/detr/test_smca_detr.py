"""SMCA-DETR: its modulated attention against loops, and what the paper asks of it besides."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.smca_detr import SmcaDetr, SmcaDetrConfig, SmcaLayer
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
        mask=some_mask(),
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
    of_layer = SmcaLayer.bias

    def spy(self: SmcaLayer, x: Tensor, pos: Tensor, centres: Tensor, mask: Tensor) -> Tensor:
        read.append(centres)
        return of_layer(self, x, pos, centres, mask)

    monkeypatch.setattr(SmcaLayer, "bias", spy)
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


def test_the_papers_settings() -> None:
    spec = model_spec("smca_detr_r50")
    assert (spec.config.num_queries, spec.config.coef_class) == (300, 2.0)
    with torch.device("meta"):
        model = spec.build(spec.config, 91)
    assert not hasattr(model, "dense")
    assert len(model.decoder.layers) == 6

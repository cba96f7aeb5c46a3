"""Several scales: the encoder by loops, shares of scales written out, no padding anywhere."""

import math
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.layers.scales import ScaleEncoder, ScaleMaps, attend_scales
from zoo.models.layers.transformer import Attention

DIM, HEADS = 12, 3


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Parameters far from their start, so that a lost or a swapped one shows."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        norm = tensor.ndim == 1 and "norm" in name and name.endswith("weight")
        low, high = (0.5, 1.5) if norm else (-0.5, 0.5)
        tensor.copy_(drawn * (high - low) + low)


def some_masks() -> list[Tensor]:
    """Maps of 4 x 5, 2 x 3 and 1 x 2 cells; the second image is padded on both sides."""
    fine = torch.ones(2, 4, 5, dtype=torch.bool)
    fine[1, 3:] = False
    fine[1, :, 2:] = False
    return [fine, fine[:, ::2, ::2], fine[:, ::4, ::4]]


def some_scales(dtype: torch.dtype, masks: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(tokens, positions, mask for attention) of every scale."""
    draw = torch.Generator().manual_seed(7)

    def rand(mask: Tensor) -> Tensor:
        shape = (len(mask), mask[0].numel(), DIM)
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    return [(rand(m), rand(m), m.flatten(1)[:, None, None]) for m in masks]


def encoder(layers: int = 3, together: int = 1) -> ScaleEncoder:
    made = ScaleEncoder(DIM, HEADS, 20, 0.1, num_layers=layers, together=together).double().eval()
    randomise(made)
    return made


# ---- Slow references --------------------------------------------------------------------------


def one_attends(
    attention: Attention, query: Tensor, cells: list[tuple[Tensor, Tensor]], bias: Any = None
) -> Tensor:
    """What one query [D] sees in cells of (key, value) [D], before the output's projection.

    ``bias``, if any, is added to the score of (head, cell).
    """
    width = DIM // HEADS
    whole = attention.q_proj(query)
    projected = [(attention.k_proj(key), attention.v_proj(value)) for key, value in cells]
    parts = []
    for head in range(HEADS):
        at = slice(head * width, (head + 1) * width)
        top, bottom = torch.zeros(width).to(query), torch.zeros(()).to(query)
        for number, (key, value) in enumerate(projected):
            score = (whole[at] * key[at]).sum() / math.sqrt(width)
            if bias is not None:
                score = score + bias(head, number)
            top = top + score.exp() * value[at]
            bottom = bottom + score.exp()
        parts.append(top / bottom)
    return torch.cat(parts)


def encode_slowly(
    model: ScaleEncoder, scales: list[Any], over_all: set[int], image: int
) -> list[dict[int, Tensor]]:
    """The valid cells of every scale of one image, after all layers; ``over_all`` are numbers."""
    x: list[dict[int, Tensor]] = []
    pos: list[dict[int, Tensor]] = []
    for tokens, places, mask in scales:
        valid = [c for c in range(tokens.shape[1]) if mask[image, 0, 0, c]]
        x.append({c: tokens[image, c] for c in valid})
        pos.append({c: places[image, c] for c in valid})
    for number, layer in enumerate(model.layers):
        new: list[dict[int, Tensor]] = []
        for scale in range(len(scales)):
            new.append({})
            readable = range(len(scales)) if number in over_all else [scale]
            cells = [(x[s][c] + pos[s][c], x[s][c]) for s in readable for c in x[s]]
            for cell, own in x[scale].items():
                seen = one_attends(layer.self_attn, own + pos[scale][cell], cells)
                y = layer.norm1(own + layer.self_attn.o_proj(seen))
                new[scale][cell] = layer.norm2(y + layer.linear2(layer.linear1(y).relu()))
        x = new
    return x


# ---- The encoder ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "together", "over_all"),
    [(3, 1, {1}), (2, 1, {0}), (2, 0, set()), (1, 1, {0})],
)
def test_the_encoder_is_the_papers(layers: int, together: int, over_all: set[int]) -> None:
    """Outputs, and their gradients to inputs and parameters, in float64."""
    model = encoder(layers, together)
    scales = some_scales(torch.float64, some_masks())
    for tokens, places, _ in scales:
        tokens.requires_grad_()
        places.requires_grad_()
    got, wanted = [], []
    memories = model(scales)
    assert [m.shape[1] for m in memories] == [20, 6, 2]
    for image in range(2):
        for scale, cells in enumerate(encode_slowly(model, scales, over_all, image)):
            assert len(cells) == (20, 6, 2)[scale] if image == 0 else len(cells) == (6, 2, 1)[scale]
            for cell, value in cells.items():
                got.append(memories[scale][image, cell])
                wanted.append(value)
    mine, other = torch.stack(got), torch.stack(wanted)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)

    weigh = torch.linspace(-1, 1, mine.numel(), dtype=torch.float64).view_as(mine)
    sources = [t for tokens, places, _ in scales for t in (tokens, places)]
    sources += list(model.parameters())
    ours = torch.autograd.grad((mine * weigh).sum(), sources)
    theirs = torch.autograd.grad((other * weigh).sum(), sources)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("layers", "together", "which"),
    [(5, 1, [2]), (5, 5, [0, 1, 2, 3, 4]), (6, 2, [2, 3]), (4, 1, [1]), (3, 0, [])],
)
def test_which_layers_are_over_all_scales(layers: int, together: int, which: list[int]) -> None:
    assert list(encoder(layers, together).together) == which


@pytest.mark.parametrize("unpadded", [False, True])
def test_a_padded_batch_is_encoded_as_each_image_alone(unpadded: bool) -> None:
    """Whatever the padding holds; ``unpadded``: the image alone has no mask at all."""
    model = encoder(5, 1)
    masks = some_masks()
    scales = some_scales(torch.float64, masks)
    for (tokens, places, _), mask in zip(scales, masks, strict=True):
        tokens[~mask.flatten(1)] = 1e3
        places[~mask.flatten(1)] = -1e3
    together = model(scales)
    alone = []
    for (tokens, places, allowed), mask in zip(scales, masks, strict=True):
        keep = mask[1].flatten()
        only = None if unpadded else allowed[1:, ..., keep]
        alone.append((tokens[1:, keep], places[1:, keep], only))
    for memory, small, mask in zip(together, model(alone), masks, strict=True):
        torch.testing.assert_close(memory[1:, mask[1].flatten()], small, rtol=0, atol=1e-10)


def test_prompts_join_every_scale() -> None:
    """The slot's contract: what it prepends takes part, and is gone in the end."""

    class Prompts(nn.Module):
        def forward(self, x: Tensor, pos: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            more = x.new_full((len(x), 2, DIM), 0.7)
            seen = mask.new_ones(len(x), 1, 1, 2)
            return torch.cat([more, x], 1), torch.cat([more, pos], 1), torch.cat([seen, mask], -1)

        def strip(self, x: Tensor) -> Tensor:
            return x[:, 2:]

    model = encoder()
    scales = some_scales(torch.float64, some_masks())
    without = model(scales)
    model.prompt = Prompts()  # type: ignore[assignment]
    changed = model(scales)
    assert [m.shape for m in changed] == [m.shape for m in without]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(changed, without, strict=True))


# ---- Shares of scales -------------------------------------------------------------------------


def test_shares_weigh_what_is_seen_at_every_scale() -> None:
    """Each scale has a softmax of its own; a query's shares weigh the three results."""
    attention = Attention(DIM, HEADS).double()
    randomise(attention)
    draw = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    query, keys, values = rand(2, 4, DIM), rand(2, 9, DIM), rand(2, 9, DIM)
    biases = [rand(2, HEADS, 4, cells) for cells in (5, 3, 1)]
    biases[0][1, ..., 3:] = -torch.inf
    shares = rand(2, 4, 3).softmax(-1)
    got = attend_scales(attention, query, keys, values, biases, shares)
    begins = [0, *accumulate(b.shape[-1] for b in biases)]
    for image in range(2):
        for n in range(4):
            mixed = torch.zeros(DIM, dtype=torch.float64)
            for scale, bias in enumerate(biases):
                at = range(begins[scale], begins[scale + 1])
                cells = [(keys[image, c], values[image, c]) for c in at]
                of_query = bias[image, :, n]
                seen = one_attends(
                    attention,
                    query[image, n],
                    cells,
                    lambda head, cell, b=of_query: b[head, cell],
                )
                mixed = mixed + shares[image, n, scale] * seen
            wanted = attention.o_proj(mixed)
            torch.testing.assert_close(got[image, n], wanted, rtol=0, atol=1e-10)


# ---- The maps ---------------------------------------------------------------------------------


def test_coarser_scales_do_not_look_into_the_padding() -> None:
    """Every map of a padded image is that of the image alone, whatever the padding holds."""
    maps = ScaleMaps((3, 5), DIM, 4).double()
    randomise(maps)
    draw = torch.Generator().manual_seed(4)
    levels = []
    for channels, mask in zip((3, 5), some_masks(), strict=False):
        x = torch.randn(2, channels, *mask.shape[1:], generator=draw, dtype=torch.float64)
        levels.append((x, mask))
    got = maps(levels)
    assert [tuple(x.shape) for x, _ in got] == [
        (2, DIM, 4, 5), (2, DIM, 2, 3), (2, DIM, 1, 2), (2, DIM, 1, 1),
    ]  # fmt: skip
    assert all(m.shape == x[:, 0].shape for x, m in got)
    small = [(x[1:, :, :3, :2], m[1:, :3, :2]) for x, m in levels[:1]]
    small += [(x[1:, :, :2, :1], m[1:, :2, :1]) for x, m in levels[1:]]
    for (x, mask), (own, alone) in zip(got, maps(small), strict=True):
        height, width = own.shape[2:]
        torch.testing.assert_close(x[1:, :, :height, :width], own, rtol=0, atol=1e-10)
        assert alone.all()
        assert mask[1, :height, :width].all()
        assert mask[1].sum() == height * width


def test_maps_are_convolutions_of_the_level_or_the_scale_before() -> None:
    maps = ScaleMaps((3,), DIM, 2).double()
    randomise(maps)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    (first, _), (second, _) = maps([(x, torch.ones(1, 4, 4, dtype=torch.bool))])
    projection, down = maps.projections[0], maps.down[0]
    at = projection.weight[:, :, 0, 0] @ x[0, :, 1, 2] + projection.bias
    torch.testing.assert_close(first[0, :, 1, 2], at, rtol=0, atol=1e-10)
    window = first[0, :, 1:4, 1:4]  # around cell (2, 2) of the finer map
    at = (down.weight * window).sum((1, 2, 3)) + down.bias
    torch.testing.assert_close(second[0, :, 1, 1], at, rtol=0, atol=1e-10)


# ---- Bad settings -----------------------------------------------------------------------------


def test_bad_settings_are_named() -> None:
    with pytest.raises(ZooError, match=r"gives 2 levels, more than the 1 .* model\.num_levels"):
        ScaleMaps((3, 5), DIM, 1)
    for together in (-1, 4):
        with pytest.raises(ZooError, match=rf"multi_scale_layers is {together}; set 0 to 3, "):
            encoder(3, together)

"""Convolutions with packed weights say what they said before."""

import copy
import pickle

import pytest
import torch
from torch import nn

from zoo.models.layers.packed import PackedConv2d, pack_convolutions

SHAPES = [(1, 8, 20, 24), (2, 8, 20, 24), (1, 8, 33, 17)]


@pytest.fixture
def pair():
    """A convolution and its packed copy."""
    conv = nn.Conv2d(8, 16, 3, 2, 1).to(memory_format=torch.channels_last).eval()
    packed = pack_convolutions(copy.deepcopy(conv))
    if not isinstance(packed, PackedConv2d):
        pytest.skip("this processor or this torch has no packed convolutions")
    return conv, packed


def picture(shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 16, 3, 1, 1),
        nn.Conv2d(8, 24, 1, bias=False),
        nn.Conv2d(3, 16, 7, 2, 3),
        nn.Conv2d(8, 8, 3, 1, 2, dilation=2),
    ],
    ids=["3x3", "1x1", "stem", "dilated"],
)
def test_equals_a_convolution(conv, dtype):
    conv = copy.deepcopy(conv).to(dtype).to(memory_format=torch.channels_last)
    packed = pack_convolutions(copy.deepcopy(conv))
    atol = 1e-5 if dtype == torch.float32 else 0.03
    with torch.inference_mode():
        for shape in SHAPES + SHAPES:
            x = picture((shape[0], conv.in_channels, *shape[2:]), dtype)
            for _ in range(3):
                assert torch.allclose(packed(x), conv(x), rtol=0, atol=atol)


def test_a_shape_is_packed_when_it_comes_again(pair):
    _, packed = pair
    with torch.inference_mode():
        for shape in SHAPES:
            packed(picture(shape))
            assert packed._blocks is None
        for _ in range(2):
            packed(picture(SHAPES[0]))
        assert packed._blocks[0] == SHAPES[0]
        for shape in SHAPES:
            packed(picture(shape))
        assert packed._blocks[0] == SHAPES[0]


def test_what_it_takes_is_what_a_convolution_takes(pair):
    conv, packed = pair
    x = picture(SHAPES[0])
    with torch.inference_mode():
        packed(x), packed(x)
        assert packed._blocks is not None
        y = x.contiguous()  # another layout
        assert torch.allclose(packed(y), conv(y), atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert packed(x).dtype == torch.bfloat16
            assert torch.equal(packed(x), conv(x))
        with pytest.raises(RuntimeError):
            packed(x.bfloat16())
        with pytest.raises(RuntimeError):
            packed(picture((1, 9, 20, 24)))
        assert packed(x[:0]).shape == conv(x[:0]).shape


def test_gradients_pass_and_are_a_convolutions(pair):
    conv, packed = pair
    x = picture(SHAPES[0]).requires_grad_()
    with torch.inference_mode():
        packed(x), packed(x)
    grads = [torch.autograd.grad(one(x).square().sum(), (x, one.weight)) for one in pair]
    for mine, other in zip(*grads, strict=True):
        assert torch.allclose(mine, other, atol=1e-4)
    assert conv.weight.shape == packed.weight.shape


def test_it_can_be_copied_saved_and_exported(pair):
    conv, packed = pair
    x = picture(SHAPES[0])
    with torch.inference_mode():
        packed(x), packed(x)
        assert packed._blocks is not None
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert other._blocks is None
            assert torch.allclose(other(x), conv(x), atol=1e-5)
    assert list(packed.state_dict()) == ["weight", "bias"]
    with torch.no_grad():
        program = torch.export.export(packed, (x,))
    assert torch.allclose(program.module()(x), conv(x), atol=1e-5)


def test_others_stay_what_they_are():
    others = [
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, dtype=torch.float64),
        nn.Linear(8, 8),
    ]
    kinds = [type(other) for other in others]
    pack_convolutions(nn.ModuleList(others))
    assert [type(other) for other in others] == kinds

"""ResNet-D against transformers' RT-DETR backbone, and how it is loaded and frozen."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import RTDetrResNetBackbone, RTDetrResNetConfig

from zoo.errors import ZooError
from zoo.models.detr.rt_detr_keys import LAYOUTS
from zoo.models.layers.backbone import NanoBackbone, ResNetBackbone, ResNetSpec
from zoo.models.layers.folding import FrozenBatchNorm2d
from zoo.models.layers.resnet_vd import (
    VDS,
    ConvNorm,
    PixelScaler,
    ResNetVdBackbone,
    build_vd_backbone,
)

SPECS: dict[str, ResNetSpec] = {
    "basic": ResNetSpec(block="basic", depths=(1, 2, 1, 1), widths=(8, 12, 16, 20), stem=8),
    "bottleneck": ResNetSpec(
        block="bottleneck", depths=(2, 1, 1, 2), widths=(16, 24, 32, 40), stem=8
    ),
}


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(6)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.ndim == 1:
            low = 0.5 if name.endswith(("weight", "var")) else -0.3
            tensor.copy_(torch.rand(tensor.shape, generator=draw) * (1.5 - low) + low)


def theirs(block: str) -> nn.Module:
    spec = SPECS[block]
    config = RTDetrResNetConfig(
        embedding_size=spec.stem, hidden_sizes=list(spec.widths), depths=list(spec.depths),
        layer_type=block, out_indices=[2, 3, 4],
    )  # fmt: skip
    model = RTDetrResNetBackbone(config).eval()
    randomise(model)
    return model


def state_of(model: nn.Module, frozen: bool = True) -> dict[str, torch.Tensor]:
    """Transformers' state under our names."""
    [_, layout] = LAYOUTS
    state = {f"model.backbone.model.{k}": v for k, v in model.state_dict().items()}
    return {k.removeprefix("backbone."): v for k, v in layout.convert(state).items()}


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("size", [(64, 96), (45, 70)])
def test_equals_transformers(block, norm, size):
    reference = theirs(block).double()
    model = ResNetVdBackbone(SPECS[block], norm=norm).double().eval()
    missing, unknown = model.load_state_dict(state_of(reference), strict=False)
    assert not unknown
    assert all(k.endswith("num_batches_tracked") for k in missing)
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        wanted = reference(images).feature_maps
        found = model(images)
        for (x, mask), feature in zip(found, wanted, strict=True):
            torch.testing.assert_close(x, feature, rtol=0, atol=1e-11)
            assert mask.shape == (2, *x.shape[2:])
        model.fuse()
        for (x, _), feature in zip(model(images), wanted, strict=True):
            torch.testing.assert_close(x, feature, rtol=0, atol=1e-11)
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]


def test_pixels_are_scaled_and_padding_is_zero():
    pixels = torch.full((1, 3, 2, 4), 51, dtype=torch.uint8)
    mask = torch.tensor([[[True, True, True, False]] * 2])
    found = PixelScaler()(pixels, mask)
    assert torch.equal(found[..., :3], torch.full((1, 3, 2, 3), 0.2))
    assert (found[..., 3] == 0).all()
    floats = torch.randn(1, 3, 2, 4)
    assert PixelScaler()(floats, mask) is floats
    assert PixelScaler().double()(pixels, None).dtype == torch.float64


def test_levels_and_channels():
    model = ResNetVdBackbone(SPECS["basic"], strides=(16, 4))
    assert model.strides == (4, 16)
    assert model.num_channels == (8, 16)
    assert len(model.stages) == 3
    maps = model.eval()(torch.rand(1, 3, 64, 64))
    assert [x.shape[1:] for x, _ in maps] == [(8, 16, 16), (16, 4, 4)]


@pytest.mark.parametrize(
    ("settings", "trained"),
    [({}, False), ({"weights": "none"}, True), ({"norm": "batch"}, True)],
)
def test_the_stem_is_fixed_where_norms_are(settings: dict[str, Any], trained: bool):
    model = ResNetVdBackbone(SPECS["basic"], **settings)
    assert all(p.requires_grad == trained for p in model.stem.parameters())
    assert all(p.requires_grad for p in model.stages.parameters())


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_pretrained_files_load(tmp_path, norm):
    source = ResNetVdBackbone(SPECS["bottleneck"], norm="batch")
    randomise(source)
    state = source.state_dict()
    named = {}
    for key, value in state.items():
        part, first, rest = key.split(".", 2)
        if part == "stem":
            key = f"conv1.conv1_{int(first) + 1}.{rest}"
        else:
            block, rest = rest.split(".", 1)
            where = "short.conv." if first != "0" else "short."
            rest = rest.replace("shortcut.", where)
            for n, letter in enumerate("abc"):
                rest = rest.replace(f"convs.{n}.", f"branch2{letter}.")
            key = f"res_layers.{first}.blocks.{block}.{rest}"
        named[key] = value
    named["fc.weight"] = torch.zeros(3, 40)
    file = tmp_path / "vd.pth"
    torch.save(named, file)
    model = ResNetVdBackbone(SPECS["bottleneck"], weights=str(file), norm=norm)
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, state[key]), key
    short = ResNetVdBackbone(SPECS["bottleneck"], weights=str(file), strides=(8,))
    assert len(short.stages) == 2
    with pytest.raises(ZooError, match="not a checkpoint of this backbone"):
        ResNetVdBackbone(SPECS["basic"], weights=str(file))
    with pytest.raises(ZooError, match="no file"):
        ResNetVdBackbone(SPECS["basic"], weights=str(tmp_path / "other.pth"))


def test_names_lead_to_backbones():
    assert set(VDS) == {"resnet18vd", "resnet34vd", "resnet50vd", "resnet101vd"}
    assert build_vd_backbone("resnet18vd").num_channels == (128, 256, 512)
    plain = build_vd_backbone("resnet18", weights="none", norm="batch", strides=(8, 16, 32))
    assert isinstance(plain, ResNetBackbone)
    assert isinstance(build_vd_backbone("nano", strides=(8, 16, 32)), NanoBackbone)
    with pytest.raises(ZooError, match="resnet50vd"):
        build_vd_backbone("resnet51vd")
    with pytest.raises(ZooError, match="no backbone"):
        ResNetVdBackbone("resnet18")
    with pytest.raises(ZooError, match="strides 4, 8"):
        ResNetVdBackbone("resnet18vd", strides=(64,))


def test_conv_norm_refuses_what_it_does_not_know():
    with pytest.raises(ZooError, match="norm 'layer'"):
        ConvNorm(3, 4, norm="layer")
    with pytest.raises(ValueError, match="gelu"):
        ConvNorm(3, 4, act="gelu")

"""Conditional DETR against transformers' implementation, and what the paper asks of it besides."""

import math
import re
from dataclasses import replace
from typing import Any

import detector_checks as checks
import pytest
import torch
from detector_checks import (
    CLASSES,
    converted,
    furthest,
    mixed_and_exact,
    our_resnet,
    padded_batch,
    reaches_every_parameter,
    reads_no_padding,
    released,
    same_gradients,
    some_targets,
    their_resnet,
    their_sizes,
)
from torch import Tensor, nn
from transformers import ConditionalDetrConfig as TheirConfig
from transformers import ConditionalDetrForObjectDetection
from transformers.models.conditional_detr import modeling_conditional_detr as their_module

from zoo.errors import ZooError
from zoo.models.detr import dab_detr, deformable_detr, detr
from zoo.models.detr.conditional_detr import LAYOUTS, ConditionalDetr, ConditionalDetrConfig
from zoo.models.layers.backbone import ResNetBackbone
from zoo.registry import model_spec
from zoo.weights import Loaded, initialise

TINY = ConditionalDetrConfig(
    dim=32,
    num_heads=4,
    encoder_layers=2,
    decoder_layers=3,
    ffn_dim=48,
    num_queries=7,
    dropout=0.0,
)
SMALL: dict[str, Any] = {"widths": (16, 16, 24, 32), "depths": (1, 1, 1, 1)}
NANOLIKE: dict[str, Any] = {
    **SMALL,
    "strides": (8, 16, 32),
    "memory_stride": 16,
    "query_selection": True,
    "local_start": True,
    "dense_side": 0.3,
    "temperature": 20.0,
}


def randomise(model: nn.Module) -> None:
    checks.randomise(model, reaches={"query_position|queries.embed": 2.0})


def theirs(block: str = "bottleneck", **settings: Any) -> nn.Module:
    """transformers' model of ``TINY``'s shape, with a tiny ResNet unless timm's is named."""
    if "backbone" not in settings:
        settings |= their_resnet(block)
    config = TheirConfig(d_model=TINY.dim, **their_sizes(TINY), **settings)
    model = ConditionalDetrForObjectDetection(config).eval()
    randomise(model)
    return model


def ours(block: str = "bottleneck", **settings: Any) -> ConditionalDetr:
    config = replace(TINY, **settings)
    if config.widths:
        return ConditionalDetr(config, CLASSES).eval()
    return ConditionalDetr(config, CLASSES, our_resnet(block)).eval()


def as_version_4(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of files on the hub: transformers 5's own table, from right to left."""
    out = {}
    for key, value in state.items():
        key = re.sub(r"^model\.backbone\.", "model.backbone.conv_encoder.", key)
        key = key.replace("attn.o_proj.", "attn.out_proj.")
        key = re.sub(r"\.mlp\.fc", ".fc", key)
        if ".decoder." in key:
            key = re.sub(r"self_attn\.([qk])_(content|pos)_proj", r"sa_\1\2_proj", key)
            key = re.sub(r"encoder_attn\.([qk])_(\w+)_proj", r"ca_\1\2_proj", key)
            key = key.replace("self_attn.v_proj", "sa_v_proj")
            key = key.replace("encoder_attn.v_proj", "ca_v_proj")
        out[key] = value
    return out


# What transformers' conversion script calls the release's parts, from right to left.
RELEASE_NAMES = (
    ("input_projection", "input_proj"),
    ("query_position_embeddings", "query_embed"),
    ("class_labels_classifier", "class_embed"),
    ("bbox_predictor", "bbox_embed"),
    ("decoder.layernorm", "decoder.norm"),
    ("self_attn_layer_norm", "norm1"),
    ("encoder_attn_layer_norm", "norm2"),
    ("encoder_attn.", "cross_attn."),
    (".fc", ".linear"),
)


def release_name(key: str) -> str:
    for old, new in RELEASE_NAMES:
        key = key.replace(old, new)
    key = key.replace("final_layer_norm", "norm2" if key.startswith("encoder") else "norm3")
    return re.sub(r"^(encoder|decoder)\.", r"transformer.\1.", key)


def to_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under the release's names, the encoder's projections fused."""
    of_encoder = r"encoder\.layers\.\d\.self_attn"
    return released(as_version_4(state), release_name, fused=of_encoder)


def convert(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return converted(LAYOUTS, state, name)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the wavelengths of points' sines, which transformers pins to float32.

    The sines are written out here once more, from the paper.
    """

    def of_points(points: Tensor, num_pos_feats: int, temperature: float = 10000.0) -> Tensor:
        columns = []
        for values in (points[..., 1], points[..., 0]):
            for i in range(num_pos_feats):
                phase = 2 * math.pi * values / temperature ** (2 * (i // 2) / num_pos_feats)
                columns.append(phase.cos() if i % 2 else phase.sin())
        return torch.stack(columns, dim=-1)

    monkeypatch.setattr(their_module, "encode_sinusoidal_position_embedding", of_points)


LAYOUT_CASES = {
    "release": (to_release, "the Conditional DETR release's"),
    "in memory": (dict, "transformers'"),
    "version 4": (as_version_4, "transformers'"),
}


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
@pytest.mark.parametrize("case", list(LAYOUT_CASES))
def test_equals_transformers_through_every_layout(case: str, block: str) -> None:
    rename, name = LAYOUT_CASES[case]
    reference, model = theirs(block), ours(block)
    state = convert(rename(reference.state_dict()), name)
    note = initialise(model, Loaded(state=state, origin="test", layout=name))
    assert name in note
    assert furthest(model, reference, torch.float32) <= 1e-5


@pytest.mark.usefixtures("in_float64")
def test_equals_transformers_to_the_last_digits() -> None:
    reference, model = theirs(), ours()
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    assert furthest(model, reference, torch.float64) <= 1e-10


def test_equals_transformers_with_timm() -> None:
    reference = theirs(backbone="resnet18", use_timm_backbone=True, use_pretrained_backbone=False)
    model = ConditionalDetr(TINY, CLASSES, ResNetBackbone("resnet18"))
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    assert furthest(model, reference, torch.float32) <= 1e-5


@pytest.mark.usefixtures("in_float64")
def test_gradients_equal_transformers() -> None:
    reference, model = theirs().double(), ours().double()
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    pixels, mask = padded_batch(torch.float64)
    mine, other = model(pixels, mask), reference(pixels, pixel_mask=mask.long())
    (mine["pred_logits"].square().sum() + mine["pred_boxes"].square().sum()).backward()
    (other.logits.square().sum() + other.pred_boxes.square().sum()).backward()
    wanted = {k: p.grad for k, p in reference.named_parameters() if p.grad is not None}
    wanted = convert(wanted, "transformers'")
    assert same_gradients(model, wanted, rtol=1e-7, atol=1e-9) > 100


def test_layers_are_normed_for_their_heads_only() -> None:
    """In training every layer's state is normed for its heads, and not for the next layer."""
    model = ours()
    randomise(model)
    pixels, mask = padded_batch()
    states: list[Tensor] = []
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda _m, _i, out: states.append(out))
    with torch.no_grad():
        alone = model(pixels, mask)
        kept = states[:]
        states.clear()
        out = model.train()(pixels, mask)
    assert set(alone) == {"pred_logits", "pred_boxes"}
    assert len(out["aux_outputs"]) == TINY.decoder_layers - 1
    for a, b in zip(kept, states, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    points = model.queries.point_head(model.queries.embed.weight)
    for layer, state in zip([*out["aux_outputs"], out], states, strict=True):
        state = model.decoder.norm(state)
        step = model.bbox_embed(state)
        step[..., :2] += points
        torch.testing.assert_close(layer["pred_boxes"], step.sigmoid(), rtol=0, atol=1e-6)
        wanted = model.class_embed(state)
        torch.testing.assert_close(layer["pred_logits"], wanted, rtol=0, atol=1e-6)


def test_boxes_begin_at_the_reference_points() -> None:
    model = ours()
    out = model(*padded_batch())
    points = model.queries.point_head(model.queries.embed.weight).sigmoid()
    expected = points.expand(3, -1, -1)
    torch.testing.assert_close(out["pred_boxes"][..., :2], expected, rtol=0, atol=1e-6)
    assert 0.002 < out["pred_logits"].sigmoid().mean() < 0.05  # the focal prior is .01


def test_a_local_start_attends_to_the_point() -> None:
    """Where places alone are compared, attention is largest near the reference."""

    def distance(**more: Any) -> float:
        torch.manual_seed(0)
        config = ConditionalDetrConfig(
            dim=64, num_heads=2, ffn_dim=64, encoder_layers=0, decoder_layers=2, num_queries=30,
            dropout=0.0, widths=(16, 16, 16, 16), depths=(1, 1, 1, 1), temperature=20.0, **more,
        )  # fmt: skip
        model = ConditionalDetr(config, CLASSES).eval()
        with torch.no_grad():
            model.queries.point_head.layers[-1].weight.mul_(4)  # spread the points
            for layer in model.decoder.layers:
                layer.ca_qcontent_proj.weight.zero_()
                layer.ca_qcontent_proj.bias.zero_()
        calls: list[Any] = []
        attention = model.decoder.layers[-1].cross_attn
        attention.register_forward_hook(lambda _m, args, _out: calls.append(args))
        pixels = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
        points = model(pixels)["pred_boxes"][0, :, :2]
        weights = attention.weights(*calls[0][:2]).mean(1)[0]  # [Q, 256]
        grid = (torch.arange(16) + 1) / 16
        cells = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1).flatten(0, 1)
        return (weights * torch.cdist(points, cells)).detach().sum(1).mean().item()

    assert distance(local_start=True) < 0.7 * distance()


GRADIENT_CASES: dict[str, dict[str, Any]] = {
    "paper": SMALL,
    "one layer": {**SMALL, "decoder_layers": 1},
    "nano": NANOLIKE,
    "nano without auxiliary losses": {**NANOLIKE, "aux_loss": False},
}


@pytest.mark.parametrize("case", list(GRADIENT_CASES))
@pytest.mark.parametrize("counts", [(2, 0, 4), (0, 0, 0)])
def test_every_parameter_gets_a_finite_gradient(case: str, counts: tuple[int, ...]) -> None:
    """Also from a batch without objects: processes would wait for each other's gradients."""
    model = ours(**GRADIENT_CASES[case]).train()
    criterion = model_spec("conditional_detr_r50").criterion(model.config, CLASSES)
    losses = criterion(model(*padded_batch()), some_targets(counts))
    assert all(parameter.requires_grad for parameter in model.parameters())
    reaches_every_parameter(model, losses)


def test_padding_does_not_reach_the_decoder() -> None:
    model = ours().double()
    randomise(model)
    reads_no_padding(model, *padded_batch(torch.float64))


def test_mixed_precision_keeps_boxes_in_float32() -> None:
    model = ours()
    randomise(model)
    mixed, exact = mixed_and_exact(model, *padded_batch())
    assert (mixed["pred_boxes"] - exact["pred_boxes"]).abs().mean() < 0.02


def test_proposals_become_queries() -> None:
    model = ours(**NANOLIKE, num_queries=50).train()
    pixels = torch.zeros(1, 3, 64, 48, dtype=torch.uint8)
    out = model(pixels)
    assert out["pred_boxes"].shape == (1, 4 * 3, 4)  # fewer cells than queries
    assert len(out["aux_outputs"]) == TINY.decoder_layers
    proposed = out["aux_outputs"][0]["pred_boxes"]
    torch.testing.assert_close(out["pred_boxes"], proposed, rtol=0, atol=1e-6)  # nothing moves yet
    torch.testing.assert_close(proposed[..., 2:], torch.full((1, 12, 2), 0.1))
    assert "dense_outputs" in out
    with pytest.raises(ZooError, match=r"no level of stride 4 .*memory_stride.*8, 16"):
        ours(**{**NANOLIKE, "strides": (8, 16), "memory_stride": 4})


def test_other_families_do_not_claim_its_checkpoints() -> None:
    state = theirs("basic").state_dict()
    others = [*detr.LAYOUTS, *dab_detr.LAYOUTS, *deformable_detr.LAYOUTS]
    for rename, _ in LAYOUT_CASES.values():
        assert not any(layout.recognises(rename(state)) for layout in others)


def test_published_shapes() -> None:
    """Parameters as many as transformers' default configuration has."""
    spec = model_spec("conditional_detr_r50")
    with torch.device("meta"):
        model = spec.build(spec.config, 91)
        reference = ConditionalDetrForObjectDetection(TheirConfig(num_labels=91))
    counted = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in model.parameters()) == counted
    assert spec.config.coef_class == 2.0
    assert len(spec.weights["coco"].class_names) == 91

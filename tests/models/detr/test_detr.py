"""DETR against transformers' implementation, and what the paper asks of it besides."""

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
    our_resnet,
    padded_batch,
    reaches_every_parameter,
    reads_no_padding,
    released,
    their_resnet,
    their_sizes,
)
from torch import Tensor, nn
from transformers import DetrConfig as TheirConfig
from transformers import DetrForObjectDetection, DetrForSegmentation

from zoo.errors import ZooError
from zoo.models.detr.coco_classes import COCO_91
from zoo.models.detr.detr import LAYOUTS, Detr, DetrConfig
from zoo.models.layers.backbone import ResNetBackbone, ResNetSpec
from zoo.registry import build_model, list_models, model_spec
from zoo.types import Meta
from zoo.weights import Loaded, initialise, load

TINY = DetrConfig(
    dim=32, num_heads=8, encoder_layers=2, decoder_layers=3, ffn_dim=48, num_queries=7
)


def randomise(model: nn.Module) -> None:
    checks.randomise(model, reaches={"query_(embed|position)": 2.0})


def theirs(block: str = "bottleneck", panoptic: bool = False, **settings: Any) -> nn.Module:
    """transformers' DETR of the shape of ``TINY``, with a tiny ResNet unless timm's is named."""
    if "backbone" not in settings:
        # The segmentation model wants all four stages, the detector uses the last it gets.
        stages = [f"stage{n}" for n in (1, 2, 3, 4)] if panoptic else ["stage4"]
        settings |= their_resnet(block, stages)
    kind = DetrForSegmentation if panoptic else DetrForObjectDetection
    model = kind(TheirConfig(d_model=TINY.dim, **their_sizes(TINY), **settings)).eval()
    randomise(model)
    return model


def ours(block: str = "bottleneck", dilation: bool = False, **settings: Any) -> Detr:
    backbone = our_resnet(block, dilation=dilation)
    return Detr(replace(TINY, **settings), CLASSES, backbone).eval()


# What transformers' conversion script calls the release's parts, from right to left.
RELEASE_NAMES = (
    ("input_projection", "input_proj"),
    ("query_position_embeddings", "query_embed"),
    ("decoder.layernorm", "decoder.norm"),
    ("encoder_attn_layer_norm", "norm2"),
    ("self_attn_layer_norm", "norm1"),
    ("mlp.fc", "linear"),
    ("encoder_attn", "multihead_attn"),
    ("o_proj", "out_proj"),
    ("class_labels_classifier", "class_embed"),
    ("bbox_predictor", "bbox_embed"),
)


def release_name(key: str) -> str:
    for old, new in RELEASE_NAMES:
        key = key.replace(old, new)
    key = key.replace("final_layer_norm", "norm3" if "decoder" in key else "norm2")
    return re.sub(r"^(encoder|decoder)\.", r"transformer.\1.", key)


def to_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors (in memory) under the DETR release's names, projections fused."""
    return released(state, release_name, fused=r"(?:en|de)coder\.layers\.\d\.\w+_attn")


def convert(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return converted(LAYOUTS, state, name)


def worst(model: Detr, reference: nn.Module, dtype: torch.dtype) -> float:
    return furthest(model, reference, dtype, spread=0.002)


def to_version_4(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors (in memory) as its hub files name them."""
    out = {}
    for key, value in state.items():
        key = key.replace("backbone.model.", "backbone.conv_encoder.model.")
        out[key.replace(".o_proj.", ".out_proj.").replace(".mlp.fc", ".fc")] = value
    return out


LAYOUT_CASES = {
    "release": (to_release, "the DETR release's"),
    "version 4": (to_version_4, "transformers'"),
    "version 5": (dict, "transformers'"),
}
DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-11)]


@pytest.mark.parametrize("case", list(LAYOUT_CASES))
@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_equals_transformers_through_every_layout(
    case: str, dtype: torch.dtype, limit: float, block: str
) -> None:
    rename, name = LAYOUT_CASES[case]
    reference = theirs(block)
    model = ours(block)
    state = convert(rename(reference.state_dict()), name)
    note = initialise(model, Loaded(state=state, origin="test", layout=name))
    assert name in note
    assert worst(model, reference, dtype) <= limit


@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
@pytest.mark.parametrize("dilation", [False, True])
def test_equals_transformers_with_timm(dtype: torch.dtype, limit: float, dilation: bool) -> None:
    """timm's ResNet-26 is a ResNet-50 with fewer blocks; its names are torchvision's."""
    reference = theirs(
        backbone="resnet26",
        use_timm_backbone=True,
        use_pretrained_backbone=False,
        dilation=dilation,
    )
    widths = (256, 512, 1024, 2048)
    spec = ResNetSpec(block="bottleneck", depths=(2, 2, 2, 2), widths=widths)
    model = Detr(TINY, CLASSES, ResNetBackbone(spec, dilation=dilation))
    for rename in (dict, to_version_4):
        model.load_state_dict(convert(rename(reference.state_dict()), "transformers'"))
    assert worst(model, reference, dtype) <= limit


@pytest.mark.parametrize("dtype", [torch.float64])
def test_equals_transformers_with_learned_positions(dtype: torch.dtype) -> None:
    reference = theirs(position_embedding_type="learned")
    model = ours(position="learned")
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    assert worst(model, reference, dtype) <= 1e-11


def test_reads_a_folder_that_transformers_saved(tmp_path: Any) -> None:
    reference = theirs()
    reference.config.id2label = {i: f"kind {i}" for i in range(CLASSES)}
    reference.save_pretrained(tmp_path)
    loaded = load(tmp_path, LAYOUTS)
    assert loaded.class_names == tuple(f"kind {i}" for i in range(CLASSES))
    model = ours()
    initialise(model, loaded, class_names=loaded.class_names)
    assert worst(model, reference, torch.float32) <= 1e-5


@pytest.mark.parametrize("release", [False, True])
def test_a_panoptic_checkpoint_gives_its_detector(release: bool) -> None:
    reference = theirs(panoptic=True)
    state = dict(reference.state_dict())
    name = "transformers' panoptic, mask head left out,"
    if release:
        detector = {k[5:]: v for k, v in state.items() if k.startswith("detr.")}
        rest = {k: v for k, v in state.items() if not k.startswith("detr.")}
        assert rest
        state = {f"detr.{k}": v for k, v in to_release(detector).items()} | rest
        name = "the DETR release's panoptic, mask head left out,"
    model = ours()
    model.load_state_dict(convert(state, name))
    assert worst(model, reference.detr, torch.float32) <= 1e-5


def test_gradients_equal_transformers() -> None:
    """Their heads' input is the last layer's state, so without auxiliary losses all is shared."""
    reference = theirs().double()
    for parameter in reference.parameters():
        parameter.requires_grad_(True)
    model = ours().double()
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    pixels, mask = padded_batch(torch.float64)
    mine, other = model(pixels, mask), reference(pixels, pixel_mask=mask.long())
    (mine["pred_logits"].square().sum() + mine["pred_boxes"].sum()).backward()
    (other.logits.square().sum() + other.pred_boxes.sum()).backward()
    wanted = {k: p.grad for k, p in reference.named_parameters()}
    wanted = convert({k: g for k, g in wanted.items() if g is not None}, "transformers'")
    compared = 0
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            torch.testing.assert_close(parameter.grad, wanted[key], rtol=1e-9, atol=1e-9)
            compared += 1
    assert compared == sum(p.requires_grad for p in model.parameters()) > 100


def trained_pass(model: Detr) -> dict[str, Any]:
    model.train()
    pixels, mask = padded_batch(torch.float32)
    out = model(pixels, mask)
    heads = [out, *out.get("aux_outputs", [])]
    sum(h["pred_logits"].square().sum() + h["pred_boxes"].sum() for h in heads).backward()
    return out


def test_every_parameter_gets_a_finite_gradient() -> None:
    model = ours()
    randomise(model)
    trained_pass(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    # Nothing attends differently in the first self attention: its queries are all zero but bias.
    quiet = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert all(n.startswith("decoder.layers.0.self_attn.") for n in quiet)


def test_what_is_frozen_is_what_detr_freezes() -> None:
    model = ours()
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    expected = {
        n
        for n, _ in model.named_parameters()
        if n.startswith(("backbone.conv1.", "backbone.layer1."))
    }
    assert fixed == expected
    assert len(fixed) == 1 + 4  # the stem; three convolutions and a shortcut
    batch_norm = ResNetBackbone("resnet18", norm="batch")
    assert all(p.requires_grad for p in batch_norm.parameters())


def test_frozen_statistics_do_not_drift() -> None:
    model = ours()
    randomise(model)
    before = {k: v.clone() for k, v in model.named_buffers()}
    trained_pass(model)
    torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
    assert sum("running_mean" in k for k in before) > 20
    for key, value in model.named_buffers():
        assert torch.equal(value, before[key]), key


def test_padding_does_not_reach_the_decoder() -> None:
    model = ours().double()
    randomise(model)
    reads_no_padding(model, *padded_batch(torch.float64))


def test_no_mask_is_a_mask_of_all() -> None:
    model = ours()
    pixels, mask = padded_batch(torch.float32)
    with torch.no_grad():
        without = model(pixels)
        with_all = model(pixels, torch.ones_like(mask))
        padded = model(pixels, mask)
    assert torch.equal(without["pred_boxes"], with_all["pred_boxes"])
    assert not torch.allclose(without["pred_boxes"], padded["pred_boxes"])


def test_auxiliary_outputs_do_not_change_the_forward() -> None:
    model = ours(dropout=0.0)
    randomise(model)
    pixels, mask = padded_batch(torch.float32)
    with torch.no_grad():
        alone = model.eval()(pixels, mask)
        out = model.train()(pixels, mask)
    assert "aux_outputs" not in alone
    assert len(out["aux_outputs"]) == TINY.decoder_layers - 1
    torch.testing.assert_close(out["pred_logits"], alone["pred_logits"], rtol=0, atol=1e-6)
    torch.testing.assert_close(out["pred_boxes"], alone["pred_boxes"], rtol=0, atol=1e-6)
    stacked = out["pred_logits"]._base
    assert stacked is not None
    assert all(aux["pred_logits"]._base is stacked for aux in out["aux_outputs"])
    # Each auxiliary output is what a model that ends at that layer says.
    for layers in range(1, TINY.decoder_layers):
        shorter = ours(decoder_layers=layers)
        state = model.state_dict()
        shorter.load_state_dict({k: state[k] for k in shorter.state_dict()})
        with torch.no_grad():
            expected = shorter(pixels, mask)
        aux = out["aux_outputs"][layers - 1]
        torch.testing.assert_close(aux["pred_boxes"], expected["pred_boxes"], rtol=0, atol=1e-6)


def test_without_auxiliary_losses_there_are_none() -> None:
    out = trained_pass(ours(aux_loss=False))
    assert set(out) == {"pred_logits", "pred_boxes"}


def test_initialisation_is_the_releases() -> None:
    model = Detr(DetrConfig(), 91, ResNetBackbone("resnet18"))
    fused = math.sqrt(6 / (4 * 256))
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        for name, child in layer.named_modules():
            if not isinstance(child, nn.Linear):
                continue
            size = child.weight.abs().max().item()
            if name.endswith(("q_proj", "k_proj", "v_proj")):
                assert 0.99 < size / fused < 1.00001
                assert not child.bias.any()
            else:
                bound = math.sqrt(6 / sum(child.weight.shape))
                assert 0.99 < size / bound < 1.00001
                assert child.bias.any() == (not name.endswith("o_proj"))
    queries = model.query_embed.weight
    assert abs(queries.mean().item()) < 0.03
    assert abs(queries.std().item() - 1) < 0.03
    heads = model.class_embed.weight.abs().max().item()
    assert 0.99 < heads * 16 < 1.00001  # torch's own: 1 / sqrt(256)


def test_mixed_precision_keeps_boxes_in_float32() -> None:
    model = ours()
    randomise(model)
    pixels, mask = padded_batch(torch.float32)
    with torch.no_grad():
        exact = model(pixels, mask)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(pixels, mask)
    assert mixed["pred_boxes"].dtype == mixed["pred_logits"].dtype == torch.float32
    difference = (mixed["pred_boxes"] - exact["pred_boxes"]).abs().max()
    assert 0 < difference < 0.02


def test_fused_equals_unfused() -> None:
    model = ours().double()
    randomise(model)
    pixels, mask = padded_batch(torch.float64)
    with torch.no_grad():
        before = model(pixels, mask)["pred_logits"]
        model.backbone.fuse()
        after = model(pixels, mask)["pred_logits"]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-11)


def test_uint8_equals_normalised_floats() -> None:
    model = ours()
    pixels = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8)
    mask = torch.ones(2, 64, 80, dtype=torch.bool)
    mask[1, 40:] = False
    pixels *= mask[:, None]
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    floats = ((pixels / 255 - mean) / std) * mask[:, None]
    with torch.no_grad():
        raw, normalised = model(pixels, mask), model(floats, mask)
    torch.testing.assert_close(raw, normalised, rtol=0, atol=1e-5)


def test_registered_variants() -> None:
    names = ["detr_nano", "detr_r101", "detr_r101_dc5", "detr_r50", "detr_r50_dc5"]
    assert list_models("detr_*") == names
    parameters = {"detr_r50": 41_524_768, "detr_r50_dc5": 41_524_768, "detr_r101": 60_464_672}
    for name in names:
        spec = model_spec(name)
        assert spec.summary
        with torch.device("meta"):
            model = spec.build(spec.config, 91)
        count = sum(p.numel() for p in model.parameters())
        assert count == parameters.get(name, count)
        assert all(key in model.state_dict() for key in spec.class_rows)
        if name == "detr_r50":  # as the paper's released code counts them
            assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 41_302_368
        for weights in spec.weights.values():
            assert weights.class_names == COCO_91
            assert weights.class_ids == tuple(range(92))[:91]
    assert set(model_spec("detr_r101").weights) == {"coco", "coco-release"}


def test_dc5_doubles_the_resolution() -> None:
    pixels = torch.zeros(1, 3, 96, 128)
    shapes = {}
    for name, dilation in (("plain", False), ("dc5", True)):
        backbone = ours(dilation=dilation).backbone
        ((features, mask),) = backbone(pixels)
        shapes[name] = tuple(features.shape[2:])
        assert mask.shape[1:] == features.shape[2:]
        assert backbone.strides == ((16,) if dilation else (32,))
    assert shapes == {"plain": (3, 4), "dc5": (6, 8)}


def test_nano_trains_from_scratch() -> None:
    """All its parameters move, and one image's box is learned by one query in a few steps."""
    model = build_model("detr_nano", num_classes=2, num_queries=4, dim=32, ffn_dim=32)
    assert all(p.requires_grad for p in model.parameters())
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    box = torch.tensor([0.3, 0.6, 0.2, 0.4])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    errors = []
    for _ in range(40):
        out = model.train()(pixels)
        loss = (out["pred_boxes"][:, 0] - box).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.3 * errors[0]


def test_the_parts_of_a_variant_fit_together() -> None:
    spec = model_spec("detr_nano", dim=32, ffn_dim=32, num_queries=6)
    model = spec.build(spec.config, 3).train()
    targets = [
        {"labels": torch.tensor([0, 2]), "boxes": torch.rand(2, 4) * 0.3 + 0.2},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    losses = spec.criterion(spec.config, 3)(model(pixels), targets)
    reaches_every_parameter(model, losses)
    names = {f"loss_{n}{i}" for n in ("ce", "bbox", "giou") for i in ("", "_0", "_1")}
    assert set(losses.terms) == names
    terms = losses.terms
    weighed = sum(
        factor * sum(terms[f"loss_{name}{i}"] for i in ("", "_0", "_1"))
        for name, factor in (("ce", 1.0), ("bbox", 5.0), ("giou", 2.0))
    )
    torch.testing.assert_close(losses.total.detach(), weighed)
    metas = [Meta(image_id=i, orig_size=(128, 128), size=(64, 64)) for i in range(2)]
    with torch.no_grad():
        found = spec.postprocess(spec.config)(model.eval()(pixels), metas)
    assert [len(d.labels) for d in found] == [6, 6]
    assert max(d.labels.max() for d in found) < 3


def test_bad_settings_are_named() -> None:
    with pytest.raises(ZooError, match="did you mean resnet50"):
        build_model("detr_r50", num_classes=2, backbone="resnet500")
    with pytest.raises(ZooError, match="sine or learned"):
        build_model("detr_nano", num_classes=2, position="fourier")
    model = build_model("detr_nano", num_classes=2, position="learned", position_cells=3)
    with pytest.raises(ZooError, match="4x3 cells is larger than the 3 learned"):
        model(torch.zeros(1, 3, 64, 48))


def test_is_one_graph_for_a_compiler() -> None:
    model = ours(dropout=0.0, encoder_layers=1, decoder_layers=2).train()
    pixels, mask = padded_batch(torch.float32, size=64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    expected, found = model(pixels, mask), compiled(pixels, mask)
    assert set(found) == set(expected)
    torch.testing.assert_close(found["pred_boxes"], expected["pred_boxes"])

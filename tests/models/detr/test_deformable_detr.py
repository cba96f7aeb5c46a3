"""Deformable DETR against transformers' implementation, and what the paper asks of it besides."""

import math
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
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
    released,
    same_gradients,
    some_targets,
    their_resnet,
    their_sizes,
)
from torch import Tensor, nn
from transformers import DeformableDetrConfig as TheirConfig
from transformers import DeformableDetrForObjectDetection
from transformers.models.deformable_detr import modeling_deformable_detr as their_module

from zoo.errors import ZooError
from zoo.models.detr.criterion import SetCriterion
from zoo.models.detr.deformable_detr import CLASS_ROWS, DeformableDetr, DeformableDetrConfig
from zoo.models.detr.deformable_keys import LAYOUTS, arrange_heads
from zoo.models.detr.graph import example, to_program
from zoo.models.layers.backbone import NanoBackbone, ResNetBackbone
from zoo.models.layers.deformable_transformer import DeformableDecoder, initial_proposals
from zoo.models.layers.levels import LevelProjection
from zoo.registry import model_spec
from zoo.weights import Loaded, initialise, load

TINY = DeformableDetrConfig(
    dim=64,
    num_heads=4,
    num_points=3,
    encoder_layers=2,
    decoder_layers=3,
    ffn_dim=48,
    dropout=0.0,
    num_queries=7,
)
KINDS: dict[str, dict[str, bool]] = {
    "plain": {},
    "refine": {"box_refine": True},
    "two stages": {"box_refine": True, "two_stage": True},
}
kinds = pytest.mark.parametrize("kind", KINDS)


STAGES = ("stage2", "stage3", "stage4")
LEVELS = ("layer2", "layer3", "layer4")


def randomise(model: nn.Module) -> None:
    reaches = {r"sampling_offsets\.bias": 3.0, "query|level_embed": 1.0}
    checks.randomise(model, reaches=reaches, matrices=0.2)


def theirs(kind: str = "plain", **settings: Any) -> nn.Module:
    """transformers' Deformable DETR of ``TINY``'s shape; layers that may differ in heads do."""
    if "backbone" not in settings:
        settings |= their_resnet(stages=STAGES)
    config = TheirConfig(
        d_model=TINY.dim,
        encoder_n_points=TINY.num_points,
        decoder_n_points=TINY.num_points,
        two_stage_num_proposals=TINY.num_queries,
        num_feature_levels=TINY.num_levels,
        dropout=0.0,
        with_box_refine=kind != "plain",
        two_stage=kind == "two stages",
        disable_custom_kernels=True,
        **their_sizes(TINY),
        **settings,
    )
    model = DeformableDetrForObjectDetection(config).eval()
    if kind != "plain":  # built with equal heads, published with different ones
        for name in ("class_embed", "bbox_embed"):
            setattr(model, name, nn.ModuleList(deepcopy(h) for h in getattr(model, name)))
        model.model.decoder.bbox_embed = model.bbox_embed
        if kind == "two stages":
            model.model.decoder.class_embed = model.class_embed
    randomise(model)
    return model


def ours(kind: str = "plain", **settings: Any) -> DeformableDetr:
    config = replace(TINY, **KINDS[kind], **settings)
    return DeformableDetr(config, CLASSES, our_resnet(out=LEVELS)).eval()


# What the release calls the parts, read from its source, from right to left.
RELEASE_NAMES = (
    ("query_position_embeddings", "query_embed"),
    ("mlp.fc", "linear"),
    ("o_proj", "out_proj"),
)
RELEASE_NORMS = {
    "encoder": {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"},
    "decoder": {
        "self_attn_layer_norm": "norm2",
        "encoder_attn_layer_norm": "norm1",
        "final_layer_norm": "norm3",
    },
}
IN_TRANSFORMER = r"^(encoder|decoder|level_embed|reference_points|enc_output|pos_trans)"


def release_name(key: str) -> str:
    for old, new in RELEASE_NAMES:
        key = key.replace(old, new)
    for old, new in RELEASE_NORMS.get(key.split(".")[0], {}).items():
        key = key.replace(f".{old}.", f".{new}.")
    return re.sub(IN_TRANSFORMER, r"transformer.\1", key.replace("encoder_attn", "cross_attn"))


def to_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under the release's names, the decoder's projections fused."""
    return released(state, release_name, fused=r"decoder\.layers\.\d\.self_attn")


def convert(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return converted(LAYOUTS, state, name)


def same_weights(kind: str, dtype: torch.dtype = torch.float32) -> tuple[DeformableDetr, nn.Module]:
    reference, model = theirs(kind), ours(kind)
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    return model.to(dtype), reference.to(dtype)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift what transformers pins to float32 even in a float64 model: the proposals' sines.

    They are written out here once more.
    """

    def embed(module: Any, logits: Tensor) -> Tensor:
        width = TINY.dim // 2
        columns = []
        for coordinate in logits.sigmoid().unbind(-1):
            for i in range(width):
                phase = 2 * math.pi * coordinate / 10000 ** (2 * (i // 2) / width)
                columns.append(phase.cos() if i % 2 else phase.sin())
        return torch.stack(columns, -1)

    monkeypatch.setattr(their_module.DeformableDetrModel, "get_proposal_pos_embed", embed)


def worst(model: DeformableDetr, reference: nn.Module, dtype: torch.dtype) -> float:
    """The largest difference of logits and boxes on a padded batch and on one without padding."""
    pixels, mask = padded_batch(dtype)
    inputs = [(pixels, mask), (pixels[:1], mask[:1]), (pixels[:1], None)]
    return furthest(model, reference, dtype, inputs)


LAYOUT_CASES = {
    "release": (to_release, "the Deformable DETR release's"),
    "in memory": (dict, "transformers'"),
}


@kinds
@pytest.mark.parametrize("case", LAYOUT_CASES)
def test_equals_transformers_through_every_layout(case: str, kind: str) -> None:
    rename, name = LAYOUT_CASES[case]
    reference, model = theirs(kind), ours(kind)
    state = convert(rename(reference.state_dict()), name)
    note = initialise(model, Loaded(state=state, origin="test", layout=name))
    assert name in note
    assert worst(model, reference, torch.float32) <= 1e-5


@kinds
def test_equals_transformers_through_its_files(kind: str, tmp_path: Path) -> None:
    """Files have version 4 names, and each of the tied tensors once."""
    reference, model = theirs(kind), ours(kind)
    reference.save_pretrained(tmp_path)
    loaded = load(tmp_path, LAYOUTS)
    assert loaded.layout == "transformers'"
    initialise(model, loaded)
    assert worst(model, reference, torch.float32) <= 1e-5


@pytest.mark.usefixtures("in_float64")
@kinds
def test_equals_transformers_to_the_last_digits(kind: str) -> None:
    model, reference = same_weights(kind, torch.float64)
    assert worst(model, reference, torch.float64) <= 1e-10


def test_equals_transformers_with_timm() -> None:
    reference = theirs(backbone="resnet18", use_timm_backbone=True)
    model = DeformableDetr(TINY, CLASSES, ResNetBackbone("resnet18", out=LEVELS))
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    assert worst(model, reference, torch.float32) <= 1e-5


@pytest.mark.usefixtures("in_float64")
@kinds
def test_every_layer_and_every_gradient_equals_transformers(kind: str) -> None:
    """Outputs of all layers and of the proposals, and gradients where references move."""
    model, reference = same_weights(kind, torch.float64)
    pixels, mask = padded_batch(torch.float64)
    alone = model(pixels, mask)
    assert "aux_outputs" not in alone
    assert "enc_outputs" not in alone
    mine, other = model.train()(pixels, mask), reference(pixels, pixel_mask=mask.long())
    loss, wanted_loss = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    layers = [*mine["aux_outputs"], mine]
    assert len(layers) == TINY.decoder_layers
    for n, layer in enumerate(layers):
        state = other.intermediate_hidden_states[:, n]
        anchor = other.init_reference_points
        if n:
            anchor = other.intermediate_reference_points[:, n - 1]
        step = reference.bbox_embed[n](state)
        size = anchor.shape[-1]
        boxes = torch.cat([step[..., :size] + anchor.logit(1e-5), step[..., size:]], -1).sigmoid()
        expected = {"pred_logits": reference.class_embed[n](state), "pred_boxes": boxes}
        for key, value in expected.items():
            torch.testing.assert_close(layer[key], value, rtol=0, atol=1e-10)
            weight = torch.randn_like(value)
            loss = loss + (layer[key] * weight).sum()
            wanted_loss = wanted_loss + (value * weight).sum()
    if kind == "two stages":
        boxes = other.enc_outputs_coord_logits.sigmoid()
        expected = {"pred_logits": other.enc_outputs_class, "pred_boxes": boxes}
        for key, value in expected.items():
            torch.testing.assert_close(mine["enc_outputs"][key], value, rtol=0, atol=1e-10)
            weight = torch.randn_like(value)
            loss = loss + (mine["enc_outputs"][key] * weight).sum()
            wanted_loss = wanted_loss + (value * weight).sum()
    for key in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(mine[key], alone[key], rtol=0, atol=1e-12)
    loss.backward()
    wanted_loss.backward()
    compare_gradients(model, reference, kind)


def compare_gradients(model: nn.Module, reference: nn.Module, kind: str) -> None:
    grads: dict[str, Tensor] = {}
    for name, parameter in reference.named_parameters(remove_duplicate=kind == "plain"):
        if parameter.grad is not None:
            grads[name] = parameter.grad
    assert same_gradients(model, convert(grads, "transformers'")) > 120


# ---- The paper's parts ------------------------------------------------------------------------


def test_proposals_start_as_squares_that_double_from_level_to_level() -> None:
    module = LevelProjection((8, 8), 32, 3)
    mask = torch.ones(2, 64, 128, dtype=torch.bool)
    mask[1, 40:] = False
    masks = [mask[:, :: 8 * 2**n, :: 8 * 2**n] for n in range(2)]
    levels = module([(torch.randn(2, 8, *m.shape[1:]), m) for m in masks], mask)
    logits, void = initial_proposals(levels)
    start = 0
    for level, (height, width) in enumerate(levels.shapes):
        for image, rows in ((0, height), (1, math.ceil(40 / (8 * 2**level)))):
            for y in range(height):
                for x in range(width):
                    cell = start + y * width + x
                    box = [(x + 0.5) / width, (y + 0.5) / rows, *[0.05 * 2**level] * 2]
                    none = y >= rows
                    assert bool(void[image, cell]) == none
                    if none:
                        assert logits[image, cell].isposinf().all()
                    else:
                        found = logits[image, cell].sigmoid()
                        torch.testing.assert_close(found, torch.tensor(box))
        start += height * width


def test_cells_at_the_very_edge_propose_nothing() -> None:
    module = LevelProjection((8,), 32, 1)
    mask = torch.ones(1, 1, 60, dtype=torch.bool)
    levels = module([(torch.randn(1, 8, 1, 60), mask)], mask)
    _, void = initial_proposals(levels)
    assert void[0].nonzero()[:, 0].tolist() == [0, 59]  # 1 / 120 and 119 / 120


def test_starts_as_the_release() -> None:
    plain, refine, staged = (ours(kind) for kind in KINDS)
    for model, sizes in ((plain, [-2.0]), (refine, [-2.0, 0, 0]), (staged, [0, 0, 0])):
        assert len(model.bbox_embed) == len(model.class_embed) == len(sizes)
        for head, size in zip(model.bbox_embed, sizes, strict=True):
            assert not head.layers[-1].weight.any()
            assert head.layers[-1].bias.tolist() == [0, 0, size, size]
        for head in model.class_embed:
            assert torch.equal(head.weight, model.class_embed[0].weight)
            assert head.bias.sigmoid().tolist() == pytest.approx([0.01] * CLASSES)
    attention = plain.decoder.layers[1].cross_attn
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
    assert attention.sampling_offsets.bias.abs().max() == TINY.num_points
    assert not plain.decoder.layers[0].self_attn.q_proj.bias.any()
    assert not plain.reference_points.bias.any()


def test_looking_forward_twice_sends_gradients_one_layer_back() -> None:
    """DINO's switch: a layer's box then also teaches the head that moved its reference."""
    model = ours("two stages").train()
    decoder, heads = model.decoder, list(model.bbox_embed)
    levels = model.input_proj(model.backbone(*padded_batch()), padded_batch()[1])
    memory = model.encoder(levels)
    x = torch.randn(3, 7, TINY.dim)
    anchors = torch.randn(3, 7, 4)
    for head in heads:
        nn.init.normal_(head.layers[-1].weight, std=0.1)
    found = {}
    for twice in (False, True):
        _, boxes = decoder(
            x,
            anchors,
            memory,
            levels,
            query_pos=x,
            box_heads=heads,
            refine=True,
            every=True,
            look_forward_twice=twice,
        )
        found[twice] = boxes
        last = [h.layers[-1].bias for h in heads]
        grads = torch.autograd.grad(boxes[-1].sum(), last, retain_graph=True)
        assert [bool(g.any()) for g in grads] == [False, twice, True]
    torch.testing.assert_close(found[False], found[True], rtol=0, atol=0)


def test_the_decoder_takes_a_norm_a_mask_and_positions_of_references() -> None:
    torch.manual_seed(2)
    model = ours("two stages")
    levels = model.input_proj(model.backbone(*padded_batch()), padded_batch()[1])
    memory = model.encoder(levels)
    decoder = DeformableDecoder(
        64, 4, 48, 0.0, num_layers=2, num_levels=4, num_points=3, norm=True
    ).eval()
    randomise(decoder)
    heads = [nn.Linear(64, 4), nn.Linear(64, 4)]
    place = nn.Linear(4, 64)
    seen: list[Tensor] = []

    def embed(references: Tensor, content: Tensor, layer: int) -> Tensor:
        seen.append(references)
        return place(references)

    x, anchors = torch.randn(3, 7, 64), torch.randn(3, 7, 4)
    alone = torch.eye(7, dtype=torch.bool)[None, None]
    arguments: dict[str, Any] = {"query_pos": embed, "box_heads": heads, "refine": True}
    states, boxes = decoder(x, anchors, memory, levels, self_mask=alone, every=True, **arguments)
    assert states.shape == (2, 3, 7, 64)
    torch.testing.assert_close(seen[0], levels.scaled(anchors.sigmoid())[:, :, 0])
    # Layer by layer: the reference moves by the head over the state before the norm.
    state, base = x, anchors
    for n, layer in enumerate(decoder.layers):
        references = levels.scaled(base.sigmoid())
        state = layer(
            state,
            place(references[:, :, 0]),
            references,
            memory,
            levels.shapes,
            memory_mask=levels.mask,
            self_mask=alone,
        )
        torch.testing.assert_close(states[n], decoder.norm(state))
        torch.testing.assert_close(boxes[n], (base + heads[n](decoder.norm(state))).sigmoid())
        base = base + heads[n](state)
    # Who sees only itself does not change with the others.
    other = x.clone()
    other[:, 1:] += 1.0
    changed, _ = decoder(other, anchors, memory, levels, self_mask=alone, every=True, **arguments)
    torch.testing.assert_close(changed[:, :, 0], states[:, :, 0])
    last, _ = decoder(x, anchors, memory, levels, self_mask=alone, **arguments)
    torch.testing.assert_close(last[0], states[-1])


@kinds
def test_padding_is_not_looked_at(kind: str) -> None:
    """What stands in masked cells changes nothing."""
    model, _ = same_weights(kind)
    pixels, mask = padded_batch()
    levels = model.input_proj(model.backbone(pixels, mask), mask)
    assert levels.mask is not None
    memory = model.encoder(levels)
    tokens = torch.where(levels.mask[..., None], levels.tokens, 7.0)
    other = model.encoder(replace(levels, tokens=tokens))
    torch.testing.assert_close(memory[levels.mask], other[levels.mask])


@kinds
def test_trains_every_parameter(kind: str) -> None:
    spec = model_spec("deformable_detr_r50", **KINDS[kind])
    criterion = spec.criterion(spec.config, CLASSES)
    assert isinstance(criterion, SetCriterion)
    model = ours(kind).train()
    pixels, mask = padded_batch()
    losses = criterion(model(pixels, mask), some_targets())
    staged = kind == "two stages"
    assert ("enc_loss_giou" in losses.terms) == staged
    assert "loss_ce_1" in losses.terms
    reaches_every_parameter(model, losses)
    if staged:
        assert model.proposals.bbox_embed.layers[-1].bias.grad.abs().max() > 0


def test_small_pictures_have_fewer_queries() -> None:
    model = ours("two stages", num_queries=300)
    with torch.no_grad():
        out = model(torch.randn(2, 3, 64, 64))
    assert out["pred_boxes"].shape == (2, 64 + 16 + 4 + 1, 4)
    assert out["pred_boxes"].isfinite().all()


def test_bfloat16_keeps_boxes_exact() -> None:
    model, _ = same_weights("refine")
    mixed, exact = mixed_and_exact(model, *padded_batch())
    assert (mixed["pred_boxes"] - exact["pred_boxes"]).abs().mean() < 0.02


def test_the_heads_of_any_file_are_arranged() -> None:
    head = torch.randn(5, 3)
    equal = {f"class_embed.{n}.weight": head for n in range(3)}
    assert list(arrange_heads(equal)) == ["class_embed.0.weight"]
    marked = {**equal, "decoder.bbox_embed.0.bias": head, "decoder.bbox_embed.1.bias": head}
    assert set(arrange_heads(marked)) == {*equal, "bbox_embed.0.bias", "bbox_embed.1.bias"}
    apart = {**equal, "class_embed.2.weight": head + 1}
    assert set(arrange_heads(apart)) == set(equal)
    staged = arrange_heads({**marked, "proposals.proj.weight": head})
    wanted = {"class_embed.0.weight", "class_embed.1.weight", "proposals.class_embed.weight"}
    assert wanted < set(staged)
    assert "class_embed.2.weight" not in staged


def test_class_rows_are_carried_over_by_name() -> None:
    config = replace(TINY, **KINDS["two stages"])
    model, names = ours("two stages"), ("cat", "dog", "owl", "bee", "ant")
    rows = [k for k in model.state_dict() if "class_embed" in k]
    assert len(rows) == 2 * (config.decoder_layers + 1)
    loaded = Loaded(
        state=model.state_dict(), origin="test", layout="test", class_names=names, class_ids=()
    )
    small = DeformableDetr(config, 2, our_resnet(out=LEVELS))
    initialise(small, loaded, class_rows=CLASS_ROWS, class_names=("owl", "newt"))
    for key in rows:
        assert torch.equal(small.state_dict()[key][0], model.state_dict()[key][2])


def test_two_stages_need_refinement() -> None:
    with pytest.raises(ZooError, match=r"set model.box_refine=true"):
        DeformableDetr(replace(TINY, two_stage=True), CLASSES)


def test_becomes_a_graph_for_any_size() -> None:
    settings = {"num_levels": 2, "encoder_layers": 0, "decoder_layers": 1, "dim": 32}
    config = replace(TINY, **settings)
    backbone = NanoBackbone((8, 8), (1, 1), out_strides=(8,))  # tracing takes its time
    model = DeformableDetr(config, CLASSES, backbone).eval()
    randomise(model)
    program = to_program(model).module()
    for size in ((2, 192, 256), (1, 128, 160), (3, 160, 96)):
        inputs = example(*size, seed=4)
        with torch.no_grad():
            expected = model(*inputs)
            logits, boxes = program(*inputs)
        torch.testing.assert_close(logits, expected["pred_logits"], rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes, expected["pred_boxes"], rtol=0, atol=1e-5)

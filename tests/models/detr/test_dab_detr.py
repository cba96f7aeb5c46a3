"""DAB-DETR against transformers' implementation, and what the paper asks of it besides."""

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
from transformers import DabDetrConfig as TheirConfig
from transformers import DabDetrForObjectDetection
from transformers.models.dab_detr import modeling_dab_detr as their_module

from zoo.errors import ZooError
from zoo.models.detr.anchors import Anchors, QuerySelection, even_points
from zoo.models.detr.dab_detr import DabDetr, DabDetrConfig
from zoo.models.detr.dab_keys import LAYOUTS
from zoo.models.layers.backbone import ResNetBackbone
from zoo.models.layers.conditional import ConditionalDecoderLayer
from zoo.models.layers.fusion import LevelFusion
from zoo.registry import model_spec
from zoo.weights import Loaded, initialise

TINY = DabDetrConfig(
    dim=32, num_heads=4, encoder_layers=2, decoder_layers=3, ffn_dim=48, num_queries=7
)
SMALL: dict[str, Any] = {"widths": (16, 16, 24, 32), "depths": (1, 1, 1, 1), "dim": 32}
NANOLIKE: dict[str, Any] = {
    **SMALL,
    "strides": (8, 16, 32),
    "memory_stride": 16,
    "query_selection": True,
    "refine_normed": True,
    "local_start": True,
    "anchor_temperature": 20.0,
}


def randomise(model: nn.Module) -> None:
    checks.randomise(model, reaches={"refpoint|anchors|patterns": 2.0})


def theirs(block: str = "bottleneck", **settings: Any) -> nn.Module:
    """transformers' DAB-DETR of ``TINY``'s shape, with a tiny ResNet unless timm's is named."""
    if "backbone" not in settings:
        settings |= their_resnet(block)
    config = TheirConfig(hidden_size=TINY.dim, **their_sizes(TINY), **settings)
    model = DabDetrForObjectDetection(config).eval()
    randomise(model)
    return model


def ours(block: str = "bottleneck", **settings: Any) -> DabDetr:
    config = replace(TINY, **settings)
    if config.widths:
        return DabDetr(config, CLASSES).eval()
    return DabDetr(config, CLASSES, our_resnet(block)).eval()


# What transformers' conversion script calls the release's parts, from right to left.
RELEASE_NAMES = (
    ("input_projection", "input_proj"),
    ("query_refpoint_embeddings", "refpoint_embed"),
    ("bbox_predictor", "bbox_embed"),
    ("decoder.layernorm", "decoder.norm"),
    ("self_attn.self_attn.output_proj", "self_attn.out_proj"),
    ("cross_attn.cross_attn.output_proj", "cross_attn.out_proj"),
    ("self_attn.self_attn_layer_norm", "norm1"),
    ("cross_attn.cross_attn_layer_norm", "norm2"),
    ("mlp.final_layer_norm", "norm3"),
    ("self_attn_layer_norm", "norm1"),
    ("final_layer_norm", "norm2"),
    ("self_attn.self_attn_query_content_proj", "sa_qcontent_proj"),
    ("self_attn.self_attn_query_pos_proj", "sa_qpos_proj"),
    ("self_attn.self_attn_key_content_proj", "sa_kcontent_proj"),
    ("self_attn.self_attn_key_pos_proj", "sa_kpos_proj"),
    ("self_attn.self_attn_value_proj", "sa_v_proj"),
    ("cross_attn.cross_attn_query_content_proj", "ca_qcontent_proj"),
    ("cross_attn.cross_attn_query_pos_sine_proj", "ca_qpos_sine_proj"),
    ("cross_attn.cross_attn_query_pos_proj", "ca_qpos_proj"),
    ("cross_attn.cross_attn_key_content_proj", "ca_kcontent_proj"),
    ("cross_attn.cross_attn_key_pos_proj", "ca_kpos_proj"),
    ("cross_attn.cross_attn_value_proj", "ca_v_proj"),
    ("mlp.fc", "linear"),
    (".fc", ".linear"),
    ("mlp.activation_fn", "activation"),
    ("activation_fn", "activation"),
)


def release_name(key: str) -> str:
    for old, new in RELEASE_NAMES:
        key = key.replace(old, new)
    return re.sub(r"^(encoder|decoder|patterns)\.", r"transformer.\1.", key)


def to_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors under the DAB-DETR release's names, the encoder's projections fused."""
    return released(state, release_name, fused=r"encoder\.layers\.\d\.self_attn")


def as_saved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the tied copy of the box head, which transformers leaves out of its files."""
    return {k: v for k, v in state.items() if not k.startswith("model.decoder.bbox_embed.")}


def convert(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return converted(LAYOUTS, state, name)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift what transformers pins to float32 even in a float64 model: sines and softmax.

    The sines are written out here once more, from the paper.
    """

    def waves(values: Tensor, dim: int, temperature: float) -> Tensor:
        columns = []
        for i in range(dim):
            phase = 2 * math.pi * values / temperature ** (2 * (i // 2) / dim)
            columns.append(phase.cos() if i % 2 else phase.sin())
        return torch.stack(columns, dim=-1)

    def of_anchors(boxes: Tensor, num_pos_feats: int, temperature: float = 10000.0) -> Tensor:
        x, y, w, h = (waves(v, num_pos_feats, temperature) for v in boxes.unbind(-1))
        return torch.cat([y, x, w, h], dim=-1)

    def of_cells(module: Any, pixels: Tensor, mask: Tensor) -> Tensor:
        count = mask.double()
        y = count.cumsum(1) / (count.sum(1, keepdim=True) + 1e-6)
        x = count.cumsum(2) / (count.sum(2, keepdim=True) + 1e-6)
        half = TINY.dim // 2
        both = [waves(v, half, module.temperature_height) for v in (y, x)]
        return torch.cat(both, dim=-1).permute(0, 3, 1, 2)

    def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return x.softmax(dim)

    monkeypatch.setattr(their_module, "encode_sinusoidal_position_embedding", of_anchors)
    monkeypatch.setattr(their_module.DabDetrSinePositionEmbedding, "forward", of_cells)
    monkeypatch.setattr(nn.functional, "softmax", softmax)
    torch.set_default_dtype(torch.float64)  # their first contents are zeros of the default dtype
    yield
    torch.set_default_dtype(torch.float32)


LAYOUT_CASES = {
    "release": (to_release, "the DAB-DETR release's"),
    "in memory": (dict, "transformers'"),
    "saved": (as_saved, "transformers'"),
}
CASES = [(c, b, p) for c in LAYOUT_CASES for b in ("bottleneck", "basic") for p in (0, 3)]


@pytest.mark.parametrize(("case", "block", "patterns"), CASES)
def test_equals_transformers_through_every_layout(case: str, block: str, patterns: int) -> None:
    rename, name = LAYOUT_CASES[case]
    reference = theirs(block, num_patterns=patterns)
    model = ours(block, num_patterns=patterns)
    state = convert(rename(reference.state_dict()), name)
    note = initialise(model, Loaded(state=state, origin="test", layout=name))
    assert name in note
    assert furthest(model, reference, torch.float32) <= 1e-5


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("patterns", [0, 3])
@pytest.mark.parametrize("case", ["release", "saved"])
def test_equals_transformers_to_the_last_digits(case: str, patterns: int) -> None:
    rename, name = LAYOUT_CASES[case]
    reference = theirs(num_patterns=patterns)
    model = ours(num_patterns=patterns)
    model.load_state_dict(convert(rename(reference.state_dict()), name))
    assert furthest(model, reference, torch.float64) <= 1e-11


def test_equals_transformers_with_timm() -> None:
    reference = theirs(backbone="resnet18", use_timm_backbone=True, use_pretrained_backbone=False)
    model = DabDetr(TINY, CLASSES, ResNetBackbone("resnet18"))
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    assert furthest(model, reference, torch.float32) <= 1e-5


def test_equals_transformers_with_auxiliary_losses_on() -> None:
    """There they must not change the forward either (they do in its DETR)."""
    reference = theirs(auxiliary_loss=True)
    model = ours()
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    assert furthest(model, reference, torch.float32) <= 1e-5
    pixels, mask = padded_batch()
    with torch.no_grad():
        alone = model.eval()(pixels, mask)
        out = model.train()(pixels, mask)
        states = reference.model(pixels, pixel_mask=mask.long())
    assert "aux_outputs" not in alone
    assert len(out["aux_outputs"]) == TINY.decoder_layers - 1
    torch.testing.assert_close(out["pred_logits"], alone["pred_logits"], rtol=0, atol=1e-6)
    torch.testing.assert_close(out["pred_boxes"], alone["pred_boxes"], rtol=0, atol=1e-6)
    # Every layer's outputs, from their layers' states and anchors.
    for n, aux in enumerate([*out["aux_outputs"], out]):
        state, anchor = states.intermediate_hidden_states[n], states.reference_points[n]
        boxes = (reference.bbox_predictor(state) + anchor.logit(1e-5)).sigmoid()
        expected = {"pred_logits": reference.class_embed(state), "pred_boxes": boxes}
        for key, value in expected.items():
            torch.testing.assert_close(aux[key], value, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("in_float64")
def test_gradients_equal_transformers() -> None:
    """Also where the anchor of one layer is the base of the next one's box."""
    reference = theirs().double()
    model = ours().double()
    model.load_state_dict(convert(reference.state_dict(), "transformers'"))
    pixels, mask = padded_batch(torch.float64)
    mine, other = model(pixels, mask), reference(pixels, pixel_mask=mask.long())
    (mine["pred_logits"].square().sum() + mine["pred_boxes"].square().sum()).backward()
    (other.logits.square().sum() + other.pred_boxes.square().sum()).backward()
    wanted = {k: p.grad for k, p in reference.named_parameters(remove_duplicate=False)}
    wanted = convert({k: g for k, g in wanted.items() if g is not None}, "transformers'")
    assert same_gradients(model, wanted) > 100


# ---- The paper's parts ------------------------------------------------------------------------


def test_boxes_begin_at_the_anchors() -> None:
    model = ours(anchor_sizes=(0.1, 0.3))
    pixels, mask = padded_batch()
    with torch.no_grad():
        out = model(pixels, mask)
    assert set(out) == {"pred_logits", "pred_boxes"}
    boxes = out["pred_boxes"]
    places = even_points(TINY.num_queries).clamp(0.01, 0.99)
    sides = torch.tensor([0.1, 0.3] * TINY.num_queries)[: TINY.num_queries, None].expand(-1, 2)
    expected = torch.cat([places, sides], dim=1).expand_as(boxes)
    torch.testing.assert_close(boxes, expected, rtol=0, atol=1e-5)
    assert 0.002 < out["pred_logits"].sigmoid().mean() < 0.05  # the focal prior is .01


def test_anchors_move_layer_by_layer_and_are_read_detached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ours()
    randomise(model)
    decoder = model.decoder
    read: list[Tensor] = []
    embed = decoder.embed

    def spy(x: Tensor, anchors: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        read.append(anchors)
        return embed(x, anchors, first)

    monkeypatch.setattr(decoder, "embed", spy)
    states: list[Tensor] = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda _m, _i, out: states.append(out))
    model(*padded_batch())
    assert [a.requires_grad for a in read] == [True, False, False]
    for n in range(2):
        moved = (decoder.bbox_embed(states[n]) + read[n].logit()).sigmoid()
        assert (moved - read[n]).abs().max() > 0.01
        torch.testing.assert_close(read[n + 1], moved, rtol=0, atol=1e-5)


def test_look_forward_changes_gradients_only() -> None:
    grads, outs = [], []
    first, batch = ours(), padded_batch()
    randomise(first)
    for look_forward in (True, False):
        model = ours(look_forward=look_forward)
        model.load_state_dict(first.state_dict())
        out = model(*batch)
        out["pred_boxes"].sum().backward()
        outs.append(out["pred_boxes"].detach())
        grads.append(model.anchors.xy.grad)
    assert torch.equal(*outs)
    assert (grads[0] - grads[1]).abs().max() > 1e-4


def test_refining_from_normed_states_continues_each_layers_box() -> None:
    model = ours(refine_normed=True).train()
    randomise(model)
    read: list[Tensor] = []
    embed = model.decoder.embed

    def spy(x: Tensor, anchors: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        read.append(anchors)
        return embed(x, anchors, first)

    model.decoder.embed = spy  # type: ignore[method-assign]
    with torch.no_grad():
        out = model(*padded_batch())
    for aux, anchors in zip(out["aux_outputs"], read[1:], strict=True):
        torch.testing.assert_close(aux["pred_boxes"], anchors, rtol=0, atol=1e-5)


def test_frozen_centres_do_not_move() -> None:
    model = ours(random_refpoints_xy=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert "anchors.xy" not in dict(model.named_parameters())
    assert before["anchors.xy"].sigmoid().mean().sub(0.5).abs() < 0.3
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    out = model(*padded_batch())
    (out["pred_logits"].square().sum() + out["pred_boxes"].square().sum()).backward()
    optimizer.step()
    assert torch.equal(model.anchors.xy, before["anchors.xy"])
    assert not torch.equal(model.anchors.wh, before["anchors.wh"])
    # The layout of the state is that of learned centres.
    ours().load_state_dict(model.state_dict())


def test_initialisation_is_the_releases() -> None:
    model = DabDetr(DabDetrConfig(), 91, ResNetBackbone("resnet18"))
    fused = math.sqrt(6 / (4 * 256))
    for name, child in [*model.encoder.named_modules(), *model.decoder.named_modules()]:
        if not isinstance(child, nn.Linear) or name.startswith("bbox_embed"):
            continue
        size = child.weight.abs().max().item()
        bound = math.sqrt(6 / sum(child.weight.shape))
        of_encoder_attention = bool(re.search(r"self_attn\.[qkv]_proj", name))
        assert 0.98 < size / (fused if of_encoder_attention else bound) < 1.00001, name
        assert child.bias.any() == (not of_encoder_attention and not name.endswith("o_proj")), name
    assert not model.decoder.bbox_embed.layers[-1].weight.any()
    assert not model.decoder.bbox_embed.layers[-1].bias.any()
    prior = model.class_embed.bias.sigmoid()
    torch.testing.assert_close(prior, torch.full((91,), 0.01))
    for part in (model.anchors.xy, model.anchors.wh):
        assert abs(part.mean().item()) < 0.15
        assert abs(part.std().item() - 1) < 0.15
    slopes = [p for n, p in model.named_parameters() if n.endswith("activation.weight")]
    assert len(slopes) == 12
    assert all(slope.item() == 0.25 for slope in slopes)


def test_a_vanishing_anchor_stays_finite() -> None:
    model = ours()
    with torch.no_grad():
        model.anchors.wh.fill_(-200.0)
    out = model(*padded_batch())
    out["pred_logits"].sum().backward()
    assert out["pred_boxes"].isfinite().all()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)


def test_attention_weights_are_those_attended_with() -> None:
    layer = ConditionalDecoderLayer(32, 4, 48, first=True)
    query, key, value = torch.randn(2, 5, 64), torch.randn(2, 9, 64), torch.randn(2, 9, 32)
    mask = torch.rand(2, 1, 1, 9) < 0.6
    mask[..., 0] = True
    attention = layer.cross_attn
    weights = attention.weights(query, key, mask)
    assert weights.shape == (2, 4, 5, 9)
    assert not weights[~mask.expand_as(weights)].any()
    mixed = weights @ value.unflatten(-1, (4, 8)).transpose(1, 2)
    expected = attention.o_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(query, key, value, mask), expected, rtol=0, atol=1e-5)


# ---- Training ---------------------------------------------------------------------------------

GRADIENT_CASES = {
    "paper": {},
    "patterns": {"num_patterns": 2},
    "one layer": {"decoder_layers": 1},
    "nano": NANOLIKE,
    "nano without auxiliary losses": {**NANOLIKE, "aux_loss": False},
    "even anchors": {**SMALL, "anchor_sizes": (0.1, 0.2)},
}


@pytest.mark.parametrize("case", list(GRADIENT_CASES))
@pytest.mark.parametrize("counts", [(2, 0, 4), (0, 0, 0)])
def test_every_parameter_gets_a_finite_gradient(case: str, counts: tuple[int, ...]) -> None:
    """Also from a batch without objects: processes would wait for each other's gradients."""
    model = ours(**GRADIENT_CASES[case]).train()
    criterion = model_spec("dab_detr_r50").criterion(model.config, CLASSES)
    targets = some_targets(counts)
    losses = criterion(model(*padded_batch(), targets=targets), targets)
    reaches_every_parameter(model, losses)


def test_targets_mean_nothing_without_denoising() -> None:
    model = ours().train()
    batch = padded_batch()
    with torch.no_grad():
        without, with_them = model(*batch), model(*batch, targets=some_targets())
    assert set(without) == set(with_them) == {"pred_logits", "pred_boxes", "aux_outputs"}
    assert torch.equal(without["pred_boxes"], with_them["pred_boxes"])


def test_padding_does_not_reach_the_decoder() -> None:
    model = ours(query_selection=True, num_queries=3).double()
    randomise(model)
    reads_no_padding(model, *padded_batch(torch.float64))


def test_no_mask_is_a_mask_of_all() -> None:
    model = ours(**NANOLIKE)
    randomise(model)
    pixels, mask = padded_batch()
    with torch.no_grad():
        without = model(pixels)
        with_all = model(pixels, torch.ones_like(mask))
    torch.testing.assert_close(without["pred_boxes"], with_all["pred_boxes"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, NANOLIKE])
def test_mixed_precision_keeps_boxes_in_float32(settings: dict[str, Any]) -> None:
    model = ours(**settings)
    mixed, exact = mixed_and_exact(model, *padded_batch())
    if not settings:  # proposals may come in another order
        torch.testing.assert_close(mixed["pred_boxes"], exact["pred_boxes"], rtol=0, atol=0.02)


# ---- The nano variants' parts -----------------------------------------------------------------


def test_proposals_are_the_best_cells_of_the_image() -> None:
    selection = QuerySelection(16, CLASSES, num_queries=4, side=0.1)
    memory = torch.randn(2, 6 * 8, 16)
    mask = torch.ones(2, 6, 8, dtype=torch.bool)
    mask[1, 3:] = False
    mask[1, :, 4:] = False
    content, logits, boxes = selection(memory, mask)
    assert content.shape == (2, 4, 16)
    states = selection.norm(selection.proj(memory))
    scores = selection.class_embed(states).amax(-1).view(2, 6, 8)
    for image, (height, width) in enumerate([(6, 8), (3, 4)]):
        best = scores[image, :height, :width].flatten().topk(4)
        torch.testing.assert_close(logits[image].amax(-1), best.values)
        expected = torch.stack([best.indices % width, best.indices // width], dim=1) + 0.5
        expected = expected / torch.tensor([width, height])
        torch.testing.assert_close(boxes[image].sigmoid()[:, :2], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes.sigmoid()[..., 2:], torch.full((2, 4, 2), 0.1))


def test_small_images_have_fewer_proposals() -> None:
    model = ours(**NANOLIKE, num_queries=50)
    out = model(torch.zeros(1, 3, 64, 48, dtype=torch.uint8))
    assert out["pred_boxes"].shape == (1, 4 * 3, 4)


@pytest.mark.parametrize("count", [30, 60, 100, 300])
def test_even_points_cover_the_image(count: int) -> None:
    points = even_points(count)
    assert points.min() >= 0
    assert points.max() < 1
    cells = (points * 3).long()
    per_cell = torch.bincount(cells[:, 1] * 3 + cells[:, 0], minlength=9)
    assert per_cell.min() >= count / 9 * 0.6
    assert per_cell.max() <= count / 9 * 1.5 + 1


def test_anchor_sizes_are_dealt_out_in_turn() -> None:
    anchors = Anchors(5, freeze_xy=False, sizes=(0.1, 0.4))().sigmoid()
    torch.testing.assert_close(anchors[:, 2], torch.tensor([0.1, 0.4, 0.1, 0.4, 0.1]))
    torch.testing.assert_close(anchors[:, 2], anchors[:, 3])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_takes_part_in_the_fusion(level: int) -> None:
    fusion = LevelFusion((4, 5, 6), 8, level)
    sizes = [(17, 13), (9, 7), (5, 4)]  # odd sizes round up, as strided convolutions do
    maps = [
        torch.randn(2, c, *size, requires_grad=True)
        for c, size in zip((4, 5, 6), sizes, strict=True)
    ]
    fused = fusion(maps)
    assert fused.shape == (2, 8, *sizes[level])
    fused.square().sum().backward()
    assert all(m.grad is not None and m.grad.any() for m in maps)
    assert all(p.grad is not None and p.grad.any() for p in fusion.parameters())


def test_a_local_start_attends_to_the_anchor() -> None:
    """Of content-free queries, every layer's attention is largest near the anchor."""
    settings = {"anchor_sizes": (0.1,), "encoder_layers": 0, "num_queries": 30}

    def distance(**more: Any) -> float:
        torch.manual_seed(0)
        config = DabDetrConfig(
            dim=64, num_heads=2, ffn_dim=64, decoder_layers=2, widths=(16, 16, 16, 16),
            depths=(1, 1, 1, 1), **settings, **more,
        )  # fmt: skip
        model = DabDetr(config, CLASSES).eval()
        calls = []
        attention = model.decoder.layers[-1].cross_attn
        attention.register_forward_hook(lambda _m, args, _out: calls.append(args))
        model(torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8))
        weights = attention.weights(*calls[0][:2]).mean(1)[0]  # [Q, 256]
        grid = (torch.arange(16) + 1) / 16
        cells = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1).flatten(0, 1)
        away = torch.cdist(even_points(30), cells)
        return (weights.detach() * away).sum(1).mean().item()

    aligned = distance(local_start=True, anchor_temperature=20.0)
    assert aligned < 0.7 * distance()


def test_bad_settings_are_named() -> None:
    with pytest.raises(ZooError, match=r"no level of stride 4 .*memory_stride.*8, 16"):
        ours(**{**SMALL, "strides": (8, 16), "memory_stride": 4})
    with pytest.raises(ZooError, match=r"activation 'tanh'.*relu"):
        ours(activation="tanh")
    with pytest.raises(ZooError, match=r"num_patterns.*query_selection"):
        ours(query_selection=True, num_patterns=2)


def test_class_rows_are_carried_over_by_name() -> None:
    spec = model_spec("dab_detr_nano", **{**NANOLIKE, "decoder_layers": 1})
    big, small = spec.build(spec.config, 4), spec.build(spec.config, 2)
    names = ("cat", "dog", "cow", "owl")
    loaded = Loaded(state=big.state_dict(), origin="test", layout="ours", class_names=names)
    randomise(big)
    loaded = replace(loaded, state=big.state_dict())
    initialise(small, loaded, class_rows=spec.class_rows, class_names=("owl", "newt"))
    for head, other in (
        (small.class_embed, big.class_embed),
        (small.selection.class_embed, big.selection.class_embed),
    ):
        assert torch.equal(head.weight[0], other.weight[3])
        assert torch.equal(head.bias[0], other.bias[3])


@pytest.mark.parametrize("name", ["dab_detr_r50", "dab_detr_r50_dc5"])
def test_published_shapes(name: str) -> None:
    """Parameters as many as transformers' default configuration has."""
    spec = model_spec(name)
    with torch.device("meta"):
        model = spec.build(spec.config, 91)
        reference = DabDetrForObjectDetection(TheirConfig(num_labels=91))
    counted = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in model.parameters()) == counted
    assert model.backbone.strides == ((16,) if "dc5" in name else (32,))

"""DN-DETR: what denoising adds in training, and that it adds nothing else."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from detector_checks import CLASSES, shaken, some_targets
from torch import Tensor, nn

from zoo.models.detr.dab_detr import DabDetr, DabDetrConfig
from zoo.models.detr.dab_keys import LAYOUTS
from zoo.models.detr.focal import LayeredOutput
from zoo.registry import build_model, model_spec
from zoo.weights import Loaded, initialise

PLAIN = DabDetrConfig(
    widths=(16, 16, 24, 32),
    depths=(1, 1, 1, 1),
    dim=32,
    num_heads=4,
    encoder_layers=1,
    decoder_layers=3,
    ffn_dim=48,
    num_queries=7,
    denoising=True,
    dn_groups=3,
)
SELECTING = replace(
    PLAIN, strides=(8, 16, 32), memory_stride=16, query_selection=True, local_start=True
)
CONFIGS = {"plain": PLAIN, "selecting": SELECTING}


def batch() -> tuple[Tensor, Tensor]:
    pixels = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8)
    mask = torch.ones(3, 96, 128, dtype=torch.bool)
    mask[1, 64:] = False
    mask[2, :, 80:] = False
    return pixels * mask[:, None], mask


def moving(config: DabDetrConfig) -> nn.Module:
    """A model whose box head moves anchors, unlike a fresh one's."""
    return shaken(DabDetr(config, CLASSES))


def matching(out: LayeredOutput) -> list[Tensor]:
    """All outputs of the queries that are matched."""
    return [v for o in [out, *out["aux_outputs"]] for v in (o["pred_logits"], o["pred_boxes"])]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_matching_queries_see_nothing_of_the_objects(name: str) -> None:
    """Neither other noise, other objects, more or none of them change their outputs."""
    model = moving(CONFIGS[name]).train()
    images = batch()
    runs: dict[str, list[Tensor]] = {}
    denoised = []
    for case, targets in {
        "none": None,
        "some": some_targets(),
        "the same with other noise": some_targets(),
        "others": some_targets(seed=4),
        "more": some_targets((9, 1, 3)),
        "empty": some_targets((0, 0, 0)),
    }.items():
        with torch.no_grad():
            out = model(*images, targets=targets)
        runs[case] = matching(out)
        if "noise" in case or case == "some":
            denoised.append(out["dn_outputs"]["pred_boxes"])
    assert not torch.allclose(*denoised)
    for case, values in runs.items():
        for value, expected in zip(values, runs["none"], strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=2e-5, msg=case)


def test_denoising_queries_see_the_matching_ones() -> None:
    """Or they could not learn from their neighbours' boxes; and each other within a group."""
    model = moving(PLAIN).train()
    images, targets = batch(), some_targets((2, 2, 2))
    torch.manual_seed(5)
    with torch.no_grad():
        before = model(*images, targets=targets)["dn_outputs"]["pred_boxes"]
        model.anchors.xy.add_(0.5)
        torch.manual_seed(5)
        after = model(*images, targets=targets)["dn_outputs"]["pred_boxes"]
    assert not torch.allclose(before, after, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_evaluation_runs_nothing_of_it(name: str) -> None:
    model = moving(CONFIGS[name]).eval()
    images = batch()
    state = torch.get_rng_state()
    with torch.no_grad():
        out = model(*images, targets=some_targets())
        alone = model(*images)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(out) == {"pred_logits", "pred_boxes"}
    assert torch.equal(out["pred_boxes"], alone["pred_boxes"])


def test_evaluation_is_dab_detrs_with_the_same_weights() -> None:
    """With a single pattern, DAB-DETR's contents can be what DN-DETR's are: the unknown label."""
    model = moving(PLAIN).eval()
    plain = DabDetr(replace(PLAIN, denoising=False, num_patterns=1), CLASSES).eval()
    state = model.state_dict()
    labels = state.pop("label_embed.embedding.weight")
    state["patterns.weight"] = torch.cat([labels[-1:], torch.zeros(1, 1)], dim=1)
    plain.load_state_dict(state)
    images = batch()
    with torch.no_grad():
        ours, theirs = model(*images), plain(*images)
    assert torch.equal(ours["pred_logits"], theirs["pred_logits"])
    assert torch.equal(ours["pred_boxes"], theirs["pred_boxes"])


@pytest.mark.parametrize("name", list(CONFIGS))
def test_outputs_in_training(name: str) -> None:
    config = CONFIGS[name]
    model = DabDetr(config, CLASSES).train()
    targets = some_targets()
    out = model(*batch(), targets=targets)
    noised = out["dn_outputs"]["denoising"]
    assert noised.length == 3 * 4  # three groups of as many slots as the richest image has
    assert out["dn_outputs"]["pred_logits"].shape == (3, 3, 12, CLASSES)
    assert out["dn_outputs"]["pred_boxes"].shape == (3, 3, 12, 4)
    assert out["pred_boxes"].shape == (3, 7, 4)
    assert len(out["aux_outputs"]) == 2 + config.query_selection
    # A fresh box head moves nothing: the boxes are the noised objects.
    boxes = out["dn_outputs"]["pred_boxes"]
    expected = noised.boxes.clamp(1e-5, 1 - 1e-5).expand_as(boxes)
    torch.testing.assert_close(boxes, expected, rtol=0, atol=1e-5)


def test_contents_are_labels_with_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DabDetr(PLAIN, CLASSES).train()
    contents: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _m, args: contents.append(args[0]))
    out = model(*batch(), targets=some_targets())
    noised = out["dn_outputs"]["denoising"]
    table = model.label_embed.embedding.weight
    first = noised.length
    content = contents[0]
    assert torch.equal(content[:, :first, :-1], table[noised.labels])
    assert torch.equal(content[:, first:, :-1], table[-1].expand(3, 7, -1))
    assert (content[:, :first, -1] == 1).all()
    assert (content[:, first:, -1] == 0).all()


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("counts", [(2, 0, 4), (0, 0, 0)])
def test_every_parameter_gets_a_finite_gradient(name: str, counts: tuple[int, ...]) -> None:
    model = DabDetr(CONFIGS[name], CLASSES).train()
    criterion = model_spec("dn_detr_nano").criterion(model.config, CLASSES)
    targets = some_targets(counts)
    losses = criterion(model(*batch(), targets=targets), targets)
    losses.total.backward()
    assert losses.total.isfinite()
    assert {"loss_ce", "loss_bbox_0", "dn_loss_ce", "dn_loss_giou_1"} <= set(losses.terms)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_the_number_of_denoising_queries_can_be_bounded() -> None:
    model = DabDetr(replace(PLAIN, dn_queries=10), CLASSES).train()
    for counts, length in {(2, 1, 0): 10, (4, 4, 4): 8, (12, 0, 1): 12}.items():
        out = model(*batch(), targets=some_targets(counts))
        assert out["dn_outputs"]["denoising"].length == length


def test_reads_the_releases_label_table() -> None:
    """It is the one thing that DN-DETR's checkpoints have and DAB-DETR's have not."""
    (layout,) = [k for k in LAYOUTS if "release" in k.name]
    table = torch.randn(92, 255)
    state = {
        "label_enc.weight": table,
        "refpoint_embed.weight": torch.randn(300, 4),
        "bbox_embed.layers.0.bias": torch.ones(256),
        "transformer.decoder.bbox_embed.layers.0.bias": torch.ones(256),
        "transformer.decoder.ref_anchor_head.layers.0.weight": torch.randn(256, 256),
    }
    assert layout.recognises(state)
    out = layout.convert(state)
    assert torch.equal(out["label_embed.embedding.weight"], table)
    spec = model_spec("dn_detr_r50")
    with torch.device("meta"):
        own = spec.build(spec.config, 91).state_dict()
    assert {k: v.shape for k, v in out.items()} == {k: own[k].shape for k in out}


def test_label_rows_are_carried_over_by_name() -> None:
    spec = model_spec("dn_detr_nano")
    settings: dict[str, Any] = {"widths": (16, 16, 16, 16), "depths": (1, 1, 1, 1), "dim": 32}
    big = build_model("dn_detr_nano", num_classes=3, **settings)
    small = build_model("dn_detr_nano", num_classes=2, **settings)
    loaded = Loaded(
        state=big.state_dict(), origin="test", layout="ours", class_names=("cat", "dog", "owl")
    )
    initialise(small, loaded, class_rows=spec.class_rows, class_names=("owl", "newt"))
    table, old = small.label_embed.embedding.weight, big.label_embed.embedding.weight
    assert torch.equal(table[0], old[2])
    assert torch.equal(table[2], old[3])  # "unknown", the last

"""DETR's mask head on members with one memory: what it reads, and that the detector stays alike."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from panoptic_checks import CLASSES, DEPTHS, WIDTHS, batch, randomise, target
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.models.detr.panoptic import (
    PanopticDabDetr,
    PanopticDabDetrConfig,
    PanopticSmcaDetr,
    PanopticSmcaDetrConfig,
)
from zoo.models.layers.backbone import ResNetBackbone, ResNetSpec
from zoo.registry import model_spec
from zoo.weights import Loaded

MEMBERS = ["conditional", "dab", "dn", "smca", "sam"]
SHAPE: dict[str, Any] = {
    "dim": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 48,
    "num_queries": 7, "dropout": 0.0,
}  # fmt: skip
FUSED: dict[str, Any] = {
    "strides": (8, 16, 32), "memory_stride": 16, "query_selection": True, "dense_side": 0.3,
}  # fmt: skip


def backbone(first: int = 1) -> ResNetBackbone:
    spec = ResNetSpec(block="bottleneck", depths=DEPTHS, widths=WIDTHS, stem=8)
    return ResNetBackbone(spec, out=tuple(f"layer{n}" for n in range(first, 5)))


def built(member: str, fused: bool, **more: Any) -> tuple[Any, nn.Module]:
    spec = model_spec(f"panoptic_{member}_detr_r50", **SHAPE, **(FUSED if fused else {}), **more)
    model = spec.build(spec.config, CLASSES, backbone()).eval()
    randomise(model)
    return spec, model


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("member", MEMBERS)
def test_the_detector_is_the_member_without_masks(member: str, fused: bool) -> None:
    _, model = built(member, fused)
    plain = type(model.detr)(model.detr.config, CLASSES, backbone(2 if fused else 4)).eval()
    plain.load_state_dict(model.detr.state_dict())
    pixels, mask = batch()
    with torch.no_grad():
        mine, alone = model(pixels, mask), plain(pixels, mask)
    for key in ("pred_logits", "pred_boxes"):
        assert torch.equal(mine[key], alone[key])
    assert mine["pred_masks"].shape == (2, 7, 18, 26)
    assert mine["pred_masks"].std() > 0.01


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("member", MEMBERS)
def test_the_head_reads_features_memory_and_last_states(member: str, fused: bool) -> None:
    _, model = built(member, fused)
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            seen[name] = out

        return hook

    detr = model.detr
    parts = {"features": detr.input_proj, "memory": detr.encoder, "levels": detr.backbone}
    parts["norm"] = detr.decoder.norm
    handles = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    pixels, mask = batch()
    with torch.no_grad():
        trace = model.trace(pixels, mask, None)
    for handle in handles:
        handle.remove()
    assert torch.equal(trace.features, seen["features"])
    assert torch.equal(trace.memory, seen["memory"])
    states = seen["norm"]
    assert torch.equal(trace.states, states[-1] if states.ndim == 4 else states)
    levels = [x for x, _ in seen["levels"]]
    assert len(trace.finer) == (2 if fused else 3)
    for found, wanted in zip(trace.finer, [1, 0] if fused else [2, 1, 0], strict=True):
        assert found is levels[wanted]
    assert trace.mask.shape == trace.features.shape[:1] + trace.features.shape[2:]


@pytest.mark.parametrize("member", MEMBERS)
def test_masks_of_matched_queries_are_those_of_evaluation(member: str) -> None:
    """Noised queries, too, change none of them."""
    _, model = built(member, True)
    pixels, mask = batch()
    with torch.no_grad():
        whole = model(pixels, mask)["pred_masks"]
    out = model.train()(pixels, mask, [target(0), target(1)])
    assert ("dn_outputs" in out) == (member == "dn")
    image, query, row = out["mask_pairs"]
    assert image.tolist() == [0, 0, 1, 1]
    assert sorted(row[:2].tolist()) == [0, 1]
    torch.testing.assert_close(out["pred_masks"], whole[image, query], rtol=0, atol=1e-4)


@pytest.mark.parametrize("member", MEMBERS)
def test_every_parameter_learns(member: str) -> None:
    spec, model = built(member, True)
    pixels, mask = batch()
    targets = [target(0), target(1)]
    losses = spec.criterion(spec.config, CLASSES)(model.train()(pixels, mask, targets), targets)
    losses.total.backward()
    assert {"loss_mask", "loss_dice", "loss_ce"} <= set(losses.terms)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name


def test_a_plain_detectors_weights_begin_it() -> None:
    spec, model = built("dn", True)
    plain = model_spec("dn_detr_r50", **SHAPE, **FUSED)
    trained = plain.build(plain.config, CLASSES, backbone(2))
    randomise(trained)
    state: dict[str, Tensor] = dict(trained.state_dict())
    note = spec.start(model, Loaded(state=state, origin="x", layout=""), class_rows=spec.class_rows)
    assert "the mask head is new" in note
    mine = model.detr.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in state.items())


def test_scores_of_independent_classes_are_sigmoids() -> None:
    from zoo.types import Meta

    spec, model = built("dn", True, threshold=0.5)
    pixels, mask = batch()
    with torch.no_grad():
        out = model(pixels, mask)
    best = out["pred_logits"].amax(-1)
    middle = best.median()
    out["pred_logits"] = out["pred_logits"] - middle  # half of the queries are above 0.5
    metas = [Meta(image_id=n, orig_size=s, size=s) for n, s in enumerate([(70, 101), (50, 64)])]
    shown = spec.postprocess(spec.config)(out, metas)
    for n, found in enumerate(shown):
        kept = (best[n] - middle).sigmoid()
        scores = set(kept[kept > 0.5].tolist())
        assert len(found.panoptic_scores)
        assert set(found.panoptic_scores) <= scores


def test_what_has_no_single_memory_is_refused() -> None:
    with pytest.raises(ZooError, match=r"model\.num_levels=1"):
        PanopticSmcaDetr(replace(PanopticSmcaDetrConfig(**SHAPE), num_levels=3), 5, backbone())
    with pytest.raises(ZooError, match=r"model\.many_groups"):
        PanopticDabDetr(replace(PanopticDabDetrConfig(**SHAPE), many_groups=2), 5, backbone())

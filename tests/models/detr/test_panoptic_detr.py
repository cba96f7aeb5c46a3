"""Panoptic DETR against transformers' implementation, and its mask head against the plain form."""

import copy
import re
from typing import Any

import pytest
import torch
from panoptic_checks import CLASSES, DEPTHS, WIDTHS, batch, randomise, target
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DetrConfig as TheirConfig
from transformers import DetrForSegmentation, ResNetConfig

from zoo.errors import ZooError
from zoo.models.detr.coco_panoptic_classes import COCO_250, COCO_STUFF
from zoo.models.detr.mask_head import AttentionMaps, MaskHead
from zoo.models.detr.panoptic_detr import LAYOUTS, PanopticDetr, PanopticDetrConfig
from zoo.models.layers.backbone import ResNetBackbone, ResNetSpec
from zoo.registry import model_spec
from zoo.weights import Loaded, initialise

SHAPE: dict[str, Any] = {
    "dim": 32, "num_heads": 8, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 48,
    "num_queries": 7,
}  # fmt: skip
TINY = PanopticDetrConfig(**SHAPE)


def theirs() -> nn.Module:
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=list(WIDTHS), depths=list(DEPTHS), layer_type="bottleneck",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = TheirConfig(
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=7,
        num_labels=CLASSES, backbone_config=backbone, use_timm_backbone=False,
    )  # fmt: skip
    model = DetrForSegmentation(config).eval()
    randomise(model)
    return model


def ours(config: PanopticDetrConfig = TINY) -> PanopticDetr:
    spec = ResNetSpec(block="bottleneck", depths=DEPTHS, widths=WIDTHS, stem=8)
    backbone = ResNetBackbone(spec, out=("layer1", "layer2", "layer3", "layer4"))
    return PanopticDetr(config, CLASSES, backbone).eval()


HEAD = {  # in memory -> hub files and the release
    r"bbox_attention\.([qk])_proj": r"bbox_attention.\1_linear",
    r"mask_head\.conv([12])\.conv": r"mask_head.lay\1",
    r"mask_head\.conv([12])\.norm": r"mask_head.gn\1",
    r"mask_head\.output_conv": "mask_head.out_lay",
    **{rf"mask_head\.fpn_stages\.{n}\.fpn_adapter": f"mask_head.adapter{n + 1}" for n in range(3)},
    **{rf"mask_head\.fpn_stages\.{n}\.refine\.conv": f"mask_head.lay{n + 3}" for n in range(3)},
    **{rf"mask_head\.fpn_stages\.{n}\.refine\.norm": f"mask_head.gn{n + 3}" for n in range(3)},
}
RELEASE = {  # hub files of the detector, timm-free -> the release
    r"detr\.model\.backbone\.(conv_encoder\.)?model\.": "detr.backbone.0.body.",
    r"embedder\.embedder\.convolution": "conv1",
    r"embedder\.embedder\.normalization": "bn1",
    **{rf"encoder\.stages\.{n}\.layers\.": f"layer{n + 1}." for n in range(4)},
    **{rf"\.layer\.{n}\.convolution": f".conv{n + 1}" for n in range(3)},
    **{rf"\.layer\.{n}\.normalization": f".bn{n + 1}" for n in range(3)},
    r"shortcut\.convolution": "downsample.0",
    r"shortcut\.normalization": "downsample.1",
    r"detr\.model\.input_projection": "detr.input_proj",
    r"detr\.model\.query_position_embeddings": "detr.query_embed",
    r"detr\.model\.(encoder|decoder)\.": r"detr.transformer.\1.",
    r"decoder\.layernorm": "decoder.norm",
    r"(encoder\.layers.*)\.final_layer_norm": r"\1.norm2",
    r"(decoder\.layers.*)\.final_layer_norm": r"\1.norm3",
    r"encoder_attn_layer_norm": "norm2",
    r"self_attn_layer_norm": "norm1",
    r"encoder_attn\.": "multihead_attn.",
    r"mlp\.fc": "linear",
    r"\.o_proj\.": ".out_proj.",
    r"class_labels_classifier": "class_embed",
    r"bbox_predictor": "bbox_embed",
}


def renamed(state: dict[str, Tensor], rules: dict[str, str]) -> dict[str, Tensor]:
    out = {}
    for key, value in state.items():
        for old, new in rules.items():
            key = re.sub(old, new, key)
        out[key] = value
    return out


def as_hub_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = {r"backbone\.model\.": "backbone.conv_encoder.model.", r"\.mlp\.fc": ".fc"}
    return renamed(state, HEAD | rules | {r"\.o_proj\.": ".out_proj."})


def as_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = renamed(state, HEAD | RELEASE)
    stems = {k.rsplit(".q_proj", 1)[0] for k in out if ".q_proj." in k}
    for stem in stems:
        for kind in ("weight", "bias"):
            parts = [out.pop(f"{stem}.{p}_proj.{kind}") for p in "qkv"]
            out[f"{stem}.in_proj_{kind}"] = torch.cat(parts)
    return out


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return theirs()


@pytest.mark.parametrize("names", ["memory", "hub", "release"])
def test_released_names_load_and_masks_equal_transformers(reference, names) -> None:
    state = dict(reference.state_dict())
    if names == "hub":
        state = as_hub_file(state)
        assert "mask_head.lay1.weight" in state
    elif names == "release":
        state = as_release(state)
        assert "detr.backbone.0.body.conv1.weight" in state
        assert "detr.transformer.decoder.layers.1.multihead_attn.in_proj_weight" in state
    found = [layout for layout in LAYOUTS if layout.recognises(state)]
    assert len(found) == 1
    model = ours()
    initialise(
        model, Loaded(state=found[0].convert(state), origin="x", layout=found[0].name),
        class_rows=model_spec("panoptic_detr_nano").class_rows,
    )  # fmt: skip
    pixels, mask = batch()
    with torch.no_grad():
        mine, other = model(pixels, mask), reference(pixels, pixel_mask=mask.long())
    torch.testing.assert_close(mine["pred_logits"], other.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine["pred_boxes"], other.pred_boxes, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine["pred_masks"], other.pred_masks, rtol=0, atol=1e-5)
    assert other.pred_masks.std() > 0.05


def test_masks_equal_transformers_in_float64(reference) -> None:
    model = ours().double()
    model.load_state_dict(LAYOUTS[1].convert(dict(reference.double().state_dict())))
    pixels, mask = batch(torch.float64)
    with torch.no_grad():
        mine, other = model(pixels, mask), reference(pixels, pixel_mask=mask.long())
    reference.float()
    torch.testing.assert_close(mine["pred_masks"], other.pred_masks, rtol=0, atol=1e-10)


def plain(head: MaskHead, features: Tensor, maps: Tensor, levels: list[Tensor]) -> Tensor:
    """The head with everything repeated for every query, as the paper draws it."""
    count = maps.shape[1]

    def repeat(x: Tensor) -> Tensor:
        return x.repeat_interleave(count, dim=0)

    x = torch.cat([repeat(features), maps.flatten(0, 1)], dim=1)
    x = head.norm1(head.conv1(x)).relu()
    x = head.norm2(head.conv2(x)).relu()
    for level, adapter, conv, norm in zip(
        levels, head.adapters, head.convs, head.norms, strict=True
    ):
        x = F.interpolate(x, size=level.shape[-2:], mode="nearest") + adapter(repeat(level))
        x = norm(conv(x)).relu()
    return head.out(x)[:, 0].unflatten(0, maps.shape[:2])


def head_and_inputs() -> tuple[Any, ...]:
    draw = torch.Generator().manual_seed(4)
    head = MaskHead(16, 4, (10, 6)).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    return head, rand(2, 16, 5, 6), rand(2, 20, 4, 5, 6), [rand(2, 10, 9, 12), rand(2, 6, 18, 23)]


def test_sharing_and_chunks_change_nothing() -> None:
    head, features, maps, levels = head_and_inputs()
    with torch.no_grad():
        shared = head.shared(features, levels)
        wanted = plain(head, features, maps, levels)
        torch.testing.assert_close(head.every(shared, maps), wanted, rtol=0, atol=1e-11)
        image, query = torch.tensor([1, 0, 1]), torch.tensor([3, 7, 19])
        some = head(shared, maps[image, query], image)
        torch.testing.assert_close(some, wanted[image, query], rtol=0, atol=1e-11)


def test_gradients_of_chosen_masks_equal_those_of_all_queries() -> None:
    head, features, maps, levels = head_and_inputs()
    other = copy.deepcopy(head)
    image, query = torch.tensor([1, 0, 1]), torch.tensor([3, 7, 19])
    inputs = [
        features.requires_grad_(),
        maps.requires_grad_(),
        *(x.requires_grad_() for x in levels),
    ]
    mine = head(head.shared(features, levels), maps[image, query], image)
    wanted = plain(other, features, maps, levels)[image, query]
    a = torch.autograd.grad(mine.square().sum(), [*head.parameters(), *inputs])
    b = torch.autograd.grad(wanted.square().sum(), [*other.parameters(), *inputs])
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_training_keeps_a_fraction_of_what_the_plain_form_keeps() -> None:
    """Bytes kept for the backward pass: 3 masks of 40 are to cost far less than all."""
    head, features, maps, levels = head_and_inputs()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        image, query = torch.tensor([1, 0, 1]), torch.tensor([3, 7, 19])
        alive = [head(head.shared(features, levels), maps[image, query], image)]
        mine = sum(kept.values())
        kept.clear()
        alive.append(plain(head, features, maps, levels))
    assert mine < 0.15 * sum(kept.values())


def test_attention_maps_are_one_softmax_over_heads_and_valid_cells() -> None:
    module = AttentionMaps(16, 4).double()
    with torch.no_grad():
        module.q_proj.bias.normal_()
        module.k_proj.bias.normal_()
    queries, memory = torch.randn(2, 3, 16).double(), torch.randn(2, 12, 16).double()
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[1, :, 2:] = False
    maps = module(queries, memory, mask)
    q, k = module.q_proj(queries), module.k_proj(memory)
    scores = torch.stack(
        [q[..., 4 * a : 4 * a + 4] @ k[..., 4 * a : 4 * a + 4].mT / 2 for a in range(4)], dim=2
    )
    weights = scores.exp() * mask.flatten(1)[:, None, None]
    wanted = weights / weights.sum((2, 3), keepdim=True)
    torch.testing.assert_close(maps.flatten(3), wanted, rtol=0, atol=1e-12)
    module.relative = True
    uniform = 1 / (4 * mask.sum((1, 2)).double())
    multiples = module(queries, memory, mask).flatten(3)
    torch.testing.assert_close(multiples, wanted / uniform[:, None, None, None], rtol=0, atol=1e-10)


def test_training_makes_the_masks_of_matched_queries_only() -> None:
    model = ours()
    randomise(model)
    pixels, mask = batch()
    with torch.no_grad():
        whole = model(pixels, mask)["pred_masks"]
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    out = model(pixels, mask, [target(0), target(1)])
    image, query, row = out["mask_pairs"]
    assert image.tolist() == [0, 0, 1, 1]
    assert sorted(row[:2].tolist()) == sorted(row[2:].tolist()) == [0, 1]
    torch.testing.assert_close(out["pred_masks"], whole[image, query], rtol=0, atol=1e-5)
    assert "pred_masks" not in model(pixels, mask)

    some = model(pixels, mask, [target(0, masks=False), target(1)])
    assert some["mask_pairs"][0].tolist() == [1, 1]
    none = model(pixels, mask, [target(0, masks=False), target(1, masks=False)])
    assert len(none["mask_pairs"][0]) == 0
    assert len(none["pred_masks"]) == 1


def test_a_frozen_detector_stays_as_it_is() -> None:
    from dataclasses import replace

    from zoo.engine import train_steps
    from zoo.types import Batch, Meta

    spec = model_spec("panoptic_detr_nano")
    config = replace(spec.config, **SHAPE, freeze_detector=True)
    model = spec.build(config, CLASSES).train()
    assert not model.detr.training
    assert model.mask_head.training
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pixels, mask = batch()
    metas = [Meta(image_id=n, orig_size=(70, 101), size=(70, 101)) for n in (0, 1)]
    data = Batch({"pixel_values": pixels, "pixel_mask": mask}, [target(0), target(1)], metas)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    criterion = spec.criterion(config, CLASSES)
    losses = [
        float(s.losses.total)
        for s in train_steps(model, criterion, [data] * 12, optimizer, device=torch.device("cpu"))
    ]
    assert losses[-1] < 0.95 * losses[0]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("detr."), key
    data.targets[:] = [target(0, masks=False), target(1, masks=False)]
    with pytest.raises(ZooError, match=r"have no masks.*coco_panoptic"):
        next(iter(train_steps(model, criterion, [data], optimizer, device=torch.device("cpu"))))


def test_the_second_stage_starts_from_a_detector() -> None:
    spec, first = model_spec("panoptic_detr_nano"), model_spec("detr_nano")
    from dataclasses import replace

    shape = {k: v for k, v in SHAPE.items() if k != "num_heads"}
    detector = first.build(replace(first.config, **shape), CLASSES)
    config = replace(spec.config, **shape, num_heads=first.config.num_heads)
    model = spec.build(config, CLASSES)
    loaded = Loaded(state=detector.state_dict(), origin="run", layout="ours")
    said = spec.start(model, loaded, class_rows=spec.class_rows, class_names=())
    assert "mask head is new" in said
    for key, value in detector.state_dict().items():
        assert torch.equal(model.state_dict()[f"detr.{key}"], value)
    with pytest.raises(ZooError, match="does not fit"):
        spec.start(model, loaded, class_rows=spec.class_rows, class_names=(), whole=True)


def test_released_classes() -> None:
    assert len(COCO_250) == 250
    assert COCO_250[1] == "person"
    assert COCO_250[184] == "tree-merged"
    assert len(COCO_STUFF) == 53
    spec = model_spec("panoptic_detr_r50")
    with torch.device("meta"):
        model = spec.build(spec.config, 250)
    # 42.9 M in the release's count, where frozen norms are buffers as here.
    assert sum(p.numel() for p in model.parameters()) == 42_899_288
    state = model.state_dict()
    loaded = Loaded(state=state, origin="x", layout="x", class_names=COCO_250)
    adapted = spec.adapt(spec, loaded)
    assert adapted is not None
    assert 92 in adapted.config.stuff
    assert 90 not in adapted.config.stuff

"""RT-DETR 1 and 2 against transformers' implementations, and what the paper asks of it besides."""

import re
from dataclasses import replace
from typing import Any

import detector_checks as checks
import pytest
import torch
from detector_checks import CLASSES
from torch import Tensor, nn
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from zoo.errors import ZooError
from zoo.inference import load_model, prepare
from zoo.models.detr.rt_detr import RtDetr, RtDetrConfig
from zoo.models.detr.rt_detr_keys import COCO_IDS, COCO_NAMES, LAYOUTS, coco_classes, start
from zoo.models.layers.backbone import Backbone, ResNetSpec
from zoo.models.layers.deformable_transformer import initial_proposals
from zoo.models.layers.levels import flat_levels
from zoo.models.layers.resnet_vd import ResNetVdBackbone
from zoo.registry import list_models, model_spec
from zoo.types import Target
from zoo.weights import Loaded, initialise

TINY = RtDetrConfig(
    dim=32, encoder_scale=0.75, num_heads=4, ffn_dim=40, encoder_ffn_scale=0.9, expansion=0.5,
    decoder_layers=3, num_queries=9, dn_queries=4,
)  # fmt: skip
SHAPES: dict[str, ResNetSpec] = {
    "basic": ResNetSpec(block="basic", depths=(2, 1, 1, 2), widths=(8, 16, 24, 32), stem=8),
    "bottleneck": ResNetSpec(
        block="bottleneck", depths=(1, 2, 1, 1), widths=(16, 24, 32, 40), stem=8
    ),
}
NANOLIKE: dict[str, Any] = {
    "widths": (16, 16, 24, 32),
    "depths": (1, 1, 1, 1),
    "encoder_scale": 1.0,
}


def randomise(model: nn.Module) -> None:
    reaches = {"n_points_scale": None, "bbox_(embed|head)": 0.3}
    checks.randomise(model, reaches=reaches, kernels=True)


def theirs(version: int = 2, block: str = "bottleneck", **settings: Any) -> nn.Module:
    """transformers' RT-DETR of ``TINY``'s shape with every parameter of its own."""
    kind = RTDetrV2Config if version == 2 else RTDetrConfig
    shape = SHAPES[block]
    config = kind(
        backbone_config=RTDetrResNetConfig(
            embedding_size=shape.stem,
            hidden_sizes=list(shape.widths),
            depths=list(shape.depths),
            layer_type=block,
            out_indices=[2, 3, 4],
        ),
        d_model=TINY.dim,
        encoder_hidden_dim=24,
        encoder_in_channels=list(shape.widths[1:]),
        decoder_in_channels=[24] * 3,
        encoder_attention_heads=TINY.num_heads,
        decoder_attention_heads=TINY.num_heads,
        encoder_ffn_dim=36,
        decoder_ffn_dim=TINY.ffn_dim,
        decoder_layers=TINY.decoder_layers,
        hidden_expansion=TINY.expansion,
        num_queries=TINY.num_queries,
        num_denoising=TINY.dn_queries,
        num_labels=CLASSES,
        tie_word_embeddings=False,
        **settings,
    )
    model = (RTDetrV2ForObjectDetection if version == 2 else RTDetrForObjectDetection)(config)
    randomise(model)
    return model.eval()


def ours(block: str = "bottleneck", **settings: Any) -> RtDetr:
    config = replace(TINY, **settings)
    backbone = None if config.widths else ResNetVdBackbone(SHAPES[block], norm=config.norm)
    return RtDetr(config, CLASSES, backbone).eval()


def load(model: RtDetr, state: dict[str, Tensor]) -> RtDetr:
    """The state into the model, through the one layout that recognises it, strictly."""
    [layout] = [known for known in LAYOUTS if known.recognises(state)]
    loaded = Loaded(state=layout.convert(state), origin="test", layout=layout.name)
    initialise(model, loaded, class_names=("?",))
    return model


def pixels(height: int = 64, width: int = 96) -> Tensor:
    """Two pictures of coloured squares, so that cells differ."""
    draw = torch.Generator().manual_seed(5)
    shape = (2, 3, -(-height // 12), -(-width // 12))
    squares = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    squares = squares.repeat_interleave(12, 2).repeat_interleave(12, 3)
    return squares[..., :height, :width].contiguous()


# -- parity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_transformers(version, block, dtype, atol):
    reference = theirs(version, block).to(dtype)
    model = load(ours(block).to(dtype), reference.state_dict())
    images = pixels()
    with torch.no_grad():
        wanted = reference(images.to(dtype) / 255)
        found = model(images)
    spread = wanted.pred_boxes.flatten(0, 1)
    assert (spread.amax(0) - spread.amin(0)).min() > 0.01  # no constants
    torch.testing.assert_close(found["pred_logits"], wanted.logits, rtol=0, atol=atol)
    torch.testing.assert_close(found["pred_boxes"], wanted.pred_boxes, rtol=0, atol=atol)


def test_equals_transformers_where_edge_cells_propose_nothing():
    # 52 cells a side at stride 8: the first is nearer than 0.01 to the edge.
    reference = theirs(block="basic").double()
    model = load(ours("basic").double(), reference.state_dict())
    images = pixels(64, 448)
    maps = [torch.zeros(1, 1, 64 // s, 448 // s) for s in (8, 16, 32)]
    starts, void = initial_proposals(flat_levels(maps, None))
    assert 0 < void.sum() < void.numel()
    assert torch.equal(starts.isinf().all(-1), void)
    with torch.no_grad():
        wanted = reference(images.double() / 255)
        found = model(images)
    torch.testing.assert_close(found["pred_logits"], wanted.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["pred_boxes"], wanted.pred_boxes, rtol=0, atol=1e-5)


def test_equals_transformers_with_other_points_and_discrete_sampling():
    for settings, own in (
        ({"decoder_n_points": 2}, {"num_points": (2,)}),
        ({"decoder_method": "discrete"}, {"discrete": True}),
    ):
        reference = theirs(**settings).double()
        model = load(ours(**own).double(), reference.state_dict())
        with torch.no_grad():
            wanted = reference(pixels().double() / 255)
            found = model(pixels())
        torch.testing.assert_close(found["pred_logits"], wanted.logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(found["pred_boxes"], wanted.pred_boxes, rtol=0, atol=1e-10)


def test_intermediate_layers_equal_transformers_and_exits_take_them():
    reference = theirs().double()
    model = load(ours().double(), reference.state_dict())
    with torch.no_grad():
        wanted = reference(pixels().double() / 255)
        for layers in (1, 2, 3):
            model.config = replace(model.config, exit_layer=layers)
            found = model(pixels())
            for name, whole in (
                ("pred_logits", wanted.intermediate_logits),
                ("pred_boxes", wanted.intermediate_reference_points),
            ):
                torch.testing.assert_close(found[name], whole[:, layers - 1], rtol=0, atol=1e-10)


def test_a_fused_model_says_the_same():
    model = ours("basic")
    randomise(model)
    with torch.no_grad():
        before = model(pixels())
        keys = len(model.state_dict())
        prepare(model)
        prepare(model)  # a second time changes nothing
        after = model(pixels())
    assert len(model.state_dict()) < keys / 2
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=2e-5)


# -- names --------------------------------------------------------------------------------------

# What transformers' conversion scripts call the release's parts, from right to left.
RELEASE_NAMES = (
    (r"^model\.backbone\.model\.embedder\.embedder\.0\.", "backbone.conv1.conv1_1."),
    (r"^model\.backbone\.model\.embedder\.embedder\.1\.", "backbone.conv1.conv1_2."),
    (r"^model\.backbone\.model\.embedder\.embedder\.2\.", "backbone.conv1.conv1_3."),
    (
        r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d)\.",
        r"backbone.res_layers.\1.blocks.\2.",
    ),
    (r"\.layer\.0\.", ".branch2a."),
    (r"\.layer\.1\.", ".branch2b."),
    (r"\.layer\.2\.", ".branch2c."),
    (r"\.shortcut\.1\.", ".short.conv."),
    (r"\.shortcut\.", ".short."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".norm."),
    (r"^model\.encoder\.aifi\.0\.layers\.", "encoder.encoder.0.layers."),
    (r"^model\.encoder\.", "encoder."),
    (r"^model\.decoder\.layers\.", "decoder.decoder.layers."),
    (r"^model\.decoder\.class_embed\.", "decoder.dec_score_head."),
    (r"^model\.decoder\.bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^model\.decoder\.query_pos_head\.", "decoder.query_pos_head."),
    (r"^model\.decoder_input_proj\.(\d)\.0\.", r"decoder.input_proj.\1.conv."),
    (r"^model\.decoder_input_proj\.(\d)\.1\.", r"decoder.input_proj.\1.norm."),
    (r"^model\.(denoising_class_embed|enc_score_head|enc_bbox_head)\.", r"decoder.\1."),
    (r"^(encoder.*)\.final_layer_norm\.", r"\1.norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn\.n_points_scale", ".cross_attn.num_points_scale"),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.mlp\.fc", ".linear"),
    (r"\.o_proj\.", ".out_proj."),
    (r"^(class|bbox)_embed\..*$", ""),
)
OF_VERSION = {
    1: (
        (r"^model\.encoder_input_proj\.", "encoder.input_proj."),
        (r"^model\.enc_output\.", "decoder.enc_output."),
    ),
    2: (
        (r"^model\.encoder_input_proj\.(\d)\.0\.", r"encoder.input_proj.\1.conv."),
        (r"^model\.encoder_input_proj\.(\d)\.1\.", r"encoder.input_proj.\1.norm."),
        (r"^model\.enc_output\.0\.", "decoder.enc_output.proj."),
        (r"^model\.enc_output\.1\.", "decoder.enc_output.norm."),
    ),
}


def as_released(state: dict[str, Tensor], version: int) -> dict[str, Tensor]:
    """A state in transformers' names under the release's."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, replacement in (*RELEASE_NAMES, *OF_VERSION[version]):
            key = re.sub(pattern, replacement, key)
        if key:
            out[key] = value
    for key in [k for k in out if k.endswith("self_attn.q_proj.weight")]:
        stem = key.removesuffix("q_proj.weight")
        for kind in ("weight", "bias"):
            parts = [out.pop(f"{stem}{n}_proj.{kind}") for n in "qkv"]
            out[f"{stem}in_proj_{kind}"] = torch.cat(parts)
    out["decoder.anchors"], out["decoder.valid_mask"] = torch.ones(1, 9, 4), torch.ones(1, 9, 1)
    return out


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_the_releases_names_load(version, block):
    state = theirs(version, block).state_dict()
    named = as_released(state, version)
    assert not [k for k in named if k.startswith("model.")]
    one, other = ours(block), ours(block)
    load(one, state)
    load(other, named)
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_older_files_of_transformers_load():
    state = theirs().state_dict()
    older = {}
    for key, value in state.items():
        key = key.replace(".aifi.", ".encoder.").replace(".o_proj.", ".out_proj.")
        older[key.replace(".mlp.fc", ".fc")] = value
    assert older.keys() != state.keys()
    kept = {k: v for k, v in older.items() if not k.endswith("num_batches_tracked")}
    one, other = load(ours(), state), load(ours(), kept)
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("left_out", ["model.decoder.", ""])
def test_heads_are_found_at_either_place(left_out):
    state = theirs().state_dict()
    heads = re.compile(rf"^{re.escape(left_out)}(class|bbox)_embed\.")
    part = {k: v for k, v in state.items() if not heads.match(k)}
    assert len(part) < len(state)
    model = load(ours(), part)
    source = "" if left_out else "model.decoder."
    for n in range(TINY.decoder_layers):
        wanted = state[f"{source}class_embed.{n}.weight"]
        assert torch.equal(model.decoder.class_embed[n].weight, wanted)


def test_a_published_folder_is_recognised_and_says_cocos_classes(tmp_path):
    spec = model_spec("rt_detr_v2_r18")
    names = [
        {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor",
         "potted plant": "pottedplant", "dining table": "diningtable"}.get(n, n)
        for n in COCO_NAMES
    ]  # fmt: skip
    resnet = RTDetrResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
        layer_type="basic", out_indices=[2, 3, 4],
    )  # fmt: skip
    config = RTDetrV2Config(
        backbone_config=resnet, encoder_in_channels=[128, 256, 512], hidden_expansion=0.5,
        decoder_layers=3, id2label=dict(enumerate(names)),
    )  # fmt: skip
    reference = RTDetrV2ForObjectDetection(config).eval()
    reference.save_pretrained(tmp_path)
    detector = load_model(tmp_path, device="cpu", fast=False)
    assert detector.spec.name in ("rt_detr_r18", "rt_detr_v2_r18")
    assert detector.class_names == COCO_NAMES
    assert detector.class_ids == COCO_IDS
    assert detector.resizing.val_size == spec.preprocess["val_size"] == 640
    images = pixels(160, 160)[:1]
    with torch.no_grad():
        wanted = reference(images / 255.0)
        found = detector.model(images)
    torch.testing.assert_close(found["pred_logits"], wanted.logits, rtol=0, atol=1e-4)


def test_other_classes_stay_as_they_are():
    assert coco_classes(("a", "b"), (3, 4)) == (("a", "b"), (3, 4))


def test_starting_from_other_spellings_of_cocos_classes():
    """Rows go over by COCO's names, and counts that a checkpoint lacks begin at 0."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.zeros(2, 1))
            self.norm = nn.BatchNorm2d(2)

    model = Rows()
    state = {k: v for k, v in model.state_dict().items() if "batches" not in k}
    state["rows"] = torch.arange(80.0)[:, None]
    spelled = tuple({"couch": "sofa", "tv": "tvmonitor"}.get(name, name) for name in COCO_NAMES)
    loaded = Loaded(state=state, origin="test", layout="t", class_names=spelled)
    note = start(model, loaded, class_rows=("rows",), class_names=("couch", "person"))
    assert "2 classes carried over by name" in note
    assert model.rows.flatten().tolist() == [COCO_NAMES.index("couch"), 0.0]


# -- padding and sizes --------------------------------------------------------------------------


class Noisy(Backbone):
    """Features that are the pictures', except in the padding, where they are ``noise``."""

    num_channels = (4, 4, 4)
    strides = (8, 16, 32)

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, pixel_values, pixel_mask=None):
        out = []
        for stride in self.strides:
            draw = torch.Generator().manual_seed(stride)
            height, width = (n // stride for n in pixel_values.shape[2:])
            x = torch.rand(len(pixel_values), 4, height, width, generator=draw)
            mask = pixel_mask[:, ::stride, ::stride]
            out.append((torch.where(mask[:, None], x, self.noise), mask))
        return out


def test_what_lies_in_the_padding_is_ignored():
    mask = torch.ones(2, 64, 128, dtype=torch.bool)
    mask[1, :, 96:] = False
    mask[1, 32:] = False
    image = torch.zeros(2, 3, 64, 128)
    found = []
    for noise in (0.0, 7.0):
        model = RtDetr(replace(TINY, num_queries=20), CLASSES, Noisy(noise)).eval()
        randomise(model)
        with torch.no_grad():
            found.append(model(image, mask))
    for name in ("pred_logits", "pred_boxes"):
        assert torch.equal(found[0][name], found[1][name])


def test_boxes_are_of_the_unpadded_image():
    """With convolutions of one cell there is nothing that sees the padding's edge."""
    draw = torch.Generator().manual_seed(2)
    maps = [torch.rand(1, 24, 8 >> n, 12 >> n, generator=draw) for n in range(3)]
    padded = [torch.nn.functional.pad(x, (0, 4 >> n, 0, 4 >> n)) for n, x in enumerate(maps)]
    masks = [torch.nn.functional.pad(x[:, 0] > -1, (0, 4 >> n, 0, 4 >> n), value=False)
             for n, x in enumerate(maps)]  # fmt: skip
    model = ours(encoder_scale=1.0, dim=24, num_queries=20).double()
    randomise(model)
    found = []
    with torch.no_grad():
        for levels in (flat_levels(maps, None), flat_levels(padded, masks)):
            levels = replace(levels, tokens=levels.tokens.double())
            chosen = model.selection(levels)
            logits, boxes = model.decoder(chosen["content"], chosen["boxes"], levels)
            found.append((chosen["boxes"], logits, boxes))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def test_padded_cells_are_chosen_last():
    maps = [torch.rand(1, 32, 2, 4), torch.rand(1, 32, 1, 2), torch.rand(1, 32, 1, 1)]
    masks = [torch.ones(1, *x.shape[2:], dtype=torch.bool) for x in maps]
    masks[0][:, :, 2:] = False
    levels = flat_levels(maps, masks)
    model = ours(num_queries=7)
    randomise(model)
    chosen = model.selection(levels)
    states = model.selection.norm(model.selection.proj(levels.tokens))
    valid = states[0][levels.mask[0]]
    for content in chosen["content"][0]:
        assert (content - valid).abs().sum(-1).min() < 1e-5


@pytest.mark.parametrize("size", [(72, 104), (33, 65), (100, 40)])
def test_any_size_works(size):
    model = ours(**NANOLIKE)
    with torch.no_grad():
        found = model(pixels(*size), torch.ones(2, *size, dtype=torch.bool))
        plain = model(pixels(*size))
    assert found["pred_boxes"].shape == (2, TINY.num_queries, 4)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-6)


def test_first_boxes_are_kept_by_shape():
    maps = [torch.zeros(1, 4, 4, 6), torch.zeros(1, 4, 2, 3)]
    with torch.inference_mode():
        first, _ = initial_proposals(flat_levels(maps, None))
    again, _ = initial_proposals(flat_levels([x + 1 for x in maps], None))
    assert again.data_ptr() == first.data_ptr()
    other, _ = initial_proposals(
        flat_levels([maps[0].transpose(2, 3), maps[1].transpose(2, 3)], None)
    )
    assert other.data_ptr() != first.data_ptr()
    assert not again.is_inference()  # a tensor of inference mode could not be trained with
    boxes = again.sigmoid()[0]
    torch.testing.assert_close(boxes[0], torch.tensor([0.5 / 6, 0.5 / 4, 0.05, 0.05]))
    torch.testing.assert_close(boxes[-1], torch.tensor([2.5 / 3, 0.75, 0.1, 0.1]))


# -- training -----------------------------------------------------------------------------------


def some_targets() -> list[Target]:
    boxes = torch.tensor([[0.3, 0.4, 0.3, 0.5], [0.7, 0.6, 0.4, 0.4]])
    return [
        {"labels": torch.tensor([0, 4]), "boxes": boxes},
        {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]


def test_training_outputs():
    model = ours(**NANOLIKE).train()
    out = model(pixels(), targets=some_targets())
    assert len(out["aux_outputs"]) == 1 + 2  # the proposals and all layers but the last
    denoised = out["dn_outputs"]
    assert denoised["pred_logits"].shape == (3, 2, 2 * 2 * 2, CLASSES)
    assert denoised["denoising"].groups == 2
    assert "dn_outputs" not in model(pixels())
    assert model.eval()(pixels(), targets=some_targets()).keys() == {"pred_logits", "pred_boxes"}
    none = ours(**NANOLIKE, dn_queries=0, aux_loss=False).train()
    out = none(pixels(), targets=some_targets())
    assert len(out["aux_outputs"]) == 1
    assert "dn_outputs" not in out


def test_denoising_changes_nothing_for_the_other_queries():
    model = ours(**NANOLIKE).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    randomise(model)
    with_it = model(pixels(), targets=some_targets())
    without = model(pixels())
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(with_it[name], without[name], rtol=0, atol=1e-5)


def test_a_layers_box_teaches_the_layer_before():
    """Look forward twice: the second box's gradient reaches the first layer's head."""
    model = ours(**NANOLIKE).train()
    randomise(model)
    out = model(pixels())
    out["aux_outputs"][2]["pred_boxes"].sum().backward()
    heads = model.decoder.bbox_embed
    assert heads[0].layers[2].weight.grad.abs().sum() > 0
    assert heads[1].layers[2].weight.grad.abs().sum() > 0
    model.zero_grad()
    out = model(pixels())
    out["pred_boxes"].sum().backward()
    assert heads[0].layers[2].weight.grad.abs().sum() == 0  # no further than one layer
    assert heads[1].layers[2].weight.grad.abs().sum() > 0


def test_selection_is_trained_and_not_through_the_decoder():
    model = ours(**NANOLIKE).train()
    randomise(model)
    out = model(pixels())
    (out["pred_logits"].sum() + out["pred_boxes"].sum()).backward()
    assert model.selection.bbox_embed.layers[2].weight.grad is None
    proposals = model(pixels())["aux_outputs"][0]
    (proposals["pred_logits"].sum() + proposals["pred_boxes"].sum()).backward()
    assert model.selection.bbox_embed.layers[2].weight.grad.abs().sum() > 0


# -- the rest -----------------------------------------------------------------------------------


def test_variants():
    names = [n for n in list_models("rt_detr*") if n != "rt_detr_nano"]
    assert len(names) == 6
    for name in names:
        spec = model_spec(name)
        with torch.device("meta"):
            model = spec.build(spec.config, 80)
            millions = sum(p.numel() for p in model.parameters()) / 1e6
        said = float(re.search(r"([\d.]+) M parameters", spec.summary)[1])
        assert abs(millions - said) < 1.5, (name, millions)
        weights = spec.weights["coco"]
        assert weights.source.startswith("PekingU/rtdetr_" + "v2_" * ("v2" in name))
        heads = {k for k in model.state_dict() if "class_embed" in k.split(".")}
        assert len(heads) == 2 * (1 + spec.config.decoder_layers)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_points": (4, 4)}, "num_points"),
        ({"exit_layer": 4}, "exit_layer=4"),
        ({"encoder_activation": "gleu"}, "gelu"),
    ],
)
def test_wrong_settings_are_said(settings, said):
    with pytest.raises(ZooError, match=said):
        ours(**NANOLIKE, **settings)


def test_points_may_differ_by_level():
    model = ours(**NANOLIKE, num_points=(2, 4, 3))
    assert model.decoder.layers[0].cross_attn.num_points == (2, 4, 3)
    with torch.no_grad():
        assert model(pixels())["pred_boxes"].isfinite().all()

"""Detectors as graphs: any batch, any size, and the outputs of the model."""

import json

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.inference import prepare
from zoo.models.detr.graph import (
    INPUTS,
    apart,
    differences,
    distance,
    example,
    to_onnx,
    to_program,
)
from zoo.registry import build_model

MEMBERS = ("detr_nano", "dn_detr_nano", "deformable_detr_nano", "dino_nano", "rt_detr_nano")
IN_ONNX = ("detr_nano", "dn_detr_nano", "rt_detr_nano")  # plain, anchors, deformable attention
SIZES = [(1, 160, 224), (4, 256, 200), (3, 165, 197)]


def trained_like(name):
    """A member of few layers with random weights, its head's too: no output is a constant."""
    torch.manual_seed(3)
    model = build_model(name, num_classes=4, encoder_layers=1, decoder_layers=2)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return prepare(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMBERS)
def test_a_graph_is_the_model_for_every_batch_and_size(name, tmp_path):
    """As a program of torch's, and as an ONNX file under onnxruntime."""
    model = trained_like(name)
    program = to_program(model)
    assert distance(model, program.module(), SIZES) < 1e-5
    if name in IN_ONNX:
        check_onnx(model, program, tmp_path / "model.onnx")


def check_onnx(model, program, path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    to_onnx(program, path, class_names=["a", "b", "c", "d"], class_ids=[1, 2, 3, 7])
    assert differences(model, path, SIZES) < 1e-4

    # Four images at once are what each is alone.
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["pred_logits", "pred_boxes"]
    pixels, mask = (x.numpy() for x in example(4, 128, 160, seed=9))
    together = session.run(None, dict(zip(INPUTS, (pixels, mask), strict=True)))
    for i in range(4):
        feed = dict(zip(INPUTS, (pixels[i : i + 1], mask[i : i + 1]), strict=True))
        alone = [torch.from_numpy(x) for x in session.run(None, feed)]
        assert apart([torch.from_numpy(x[i : i + 1]) for x in together], alone) < 1e-4

    facts = {p.key: json.loads(p.value) for p in onnx.load(str(path)).metadata_props}
    assert facts["class_names"] == ["a", "b", "c", "d"]
    assert facts["class_ids"] == [1, 2, 3, 7]


def test_models_that_make_masks_are_refused():
    with pytest.raises(ZooError, match="PanopticDetr makes masks, which a graph can't have yet; "):
        to_program(trained_like("panoptic_detr_nano"))


def test_a_difference_of_one_query_is_seen_and_another_order_is_none():
    draw = torch.Generator().manual_seed(0)
    logits, boxes = torch.rand(2, 9, 5, generator=draw), torch.rand(2, 9, 4, generator=draw)
    order = torch.randperm(9, generator=draw)
    assert apart((logits, boxes), (logits[:, order], boxes[:, order])) == 0
    assert apart((logits, boxes), (logits[:, order], boxes)) > 0.05  # classes of other boxes
    for place in (0, 1):
        other = [logits.clone(), boxes.clone()]
        other[place][1, 7, 2] += 0.01
        assert apart((logits, boxes), other) == pytest.approx(0.01, abs=1e-6)
        assert apart(other, (logits, boxes)) == pytest.approx(0.01, abs=1e-6)
    fewer = (logits[:, 1:], boxes[:, 1:])
    assert apart((logits, boxes), fewer) > 0.05
    assert apart(fewer, (logits, boxes)) > 0.05


class Undecided(nn.Module):
    """Looks into its input: no graph does."""

    def forward(self, pixel_values, pixel_mask):
        values = pixel_values.float().mean((2, 3))
        if values.sum() > 0:
            values = values + 1
        return {"pred_logits": values[:, None], "pred_boxes": values[:, None]}


def test_what_can_not_be_traced_is_told_in_one_sentence():
    with pytest.raises(ZooError) as caught:
        to_program(Undecided())
    assert str(caught.value).startswith("Undecided can't be traced for every size: ")
    assert "\n" not in str(caught.value)


class Exotic(nn.Module):
    """Has an operation that ONNX lacks."""

    def forward(self, pixel_values, pixel_mask):
        values = torch.special.bessel_j0(pixel_values.float().mean((2, 3)))
        return {"pred_logits": values[:, None], "pred_boxes": values[:, None]}


def test_what_onnx_lacks_is_told_in_one_sentence(tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(ZooError) as caught:
        to_onnx(to_program(Exotic()), tmp_path / "model.onnx")
    assert "can't be written as ONNX (" in str(caught.value)
    assert "--format program" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_detector_is_told():
    with pytest.raises(ZooError, match="Linear is no detector"):
        to_program(nn.Linear(3, 3))


def test_packages_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ZooError, match=r"onnx and onnxscript and onnxruntime.*\[onnx\]"):
        to_onnx(None, tmp_path / "model.onnx")

"""Detectors as graphs: any batch, any size, and the outputs of the model."""

import json

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.inference import prepare
from zoo.models.detr.graph import (
    INPUTS,
    OUTPUTS,
    DetectorGraph,
    differences,
    example,
    to_onnx,
    to_program,
)
from zoo.registry import build_model

MEMBERS = ("detr_nano", "dn_detr_nano", "deformable_detr_nano", "dino_nano")
SIZES = [(1, 160, 224), (4, 256, 200), (3, 165, 197)]


def trained_like(name):
    """A member with random weights, its head's too, so that no output is a constant."""
    torch.manual_seed(3)
    model = build_model(name, num_classes=4)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return prepare(model)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_program_is_the_model_for_every_batch_and_size(name):
    model = trained_like(name)
    program = to_program(model).module()
    for n, size in enumerate(SIZES):
        inputs = example(*size, seed=n)
        with torch.no_grad():
            for got, want in zip(program(*inputs), DetectorGraph(model)(*inputs), strict=True):
                assert torch.allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["detr_nano", "dn_detr_nano"])
def test_onnxruntime_gives_the_models_outputs(name, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = trained_like(name)
    path = tmp_path / "model.onnx"
    to_onnx(to_program(model), path, class_names=["a", "b", "c", "d"], class_ids=[1, 2, 3, 7])
    assert differences(model, path, SIZES) < 1e-4

    # Four images at once are what each is alone.
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels, mask = (x.numpy() for x in example(4, 128, 160, seed=9))
    together = session.run(list(OUTPUTS), dict(zip(INPUTS, (pixels, mask), strict=True)))
    for i in range(4):
        feed = dict(zip(INPUTS, (pixels[i : i + 1], mask[i : i + 1]), strict=True))
        for all_four, alone in zip(together, session.run(list(OUTPUTS), feed), strict=True):
            assert abs(all_four[i : i + 1] - alone).max() < 1e-4

    facts = {p.key: json.loads(p.value) for p in onnx.load(str(path)).metadata_props}
    assert facts["class_names"] == ["a", "b", "c", "d"]
    assert facts["class_ids"] == [1, 2, 3, 7]


def test_what_is_no_detector_is_told():
    with pytest.raises(ZooError, match="Linear is no detector"):
        to_program(nn.Linear(3, 3))


def test_packages_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ZooError, match=r"onnx and onnxscript and onnxruntime.*\[onnx\]"):
        to_onnx(None, tmp_path / "model.onnx")

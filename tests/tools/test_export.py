"""tools/export.py: a run of a detector as a graph, with its card."""

import json

import pytest
import torch

from zoo import checkpoint
from zoo.config import to_plain
from zoo.models.detr.graph import example
from zoo.registry import build_model, model_spec
from zoo.tools import export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint of a small detector with random weights."""
    folder = tmp_path_factory.mktemp("run") / "best"
    spec = model_spec("detr_nano")
    torch.manual_seed(5)
    card = checkpoint.Card(
        name=spec.name,
        config=to_plain(spec.config),
        class_names=("cup", "plate"),
        class_ids=(3, 7),
        preprocess={"val_size": 200, "val_max_size": 320},
    )
    model = build_model("detr_nano", num_classes=2)
    checkpoint.save(folder, card=card, weights=model.state_dict())
    return folder


def test_a_program_is_written_with_its_card(run, tmp_path, capsys):
    out = tmp_path / "graph"
    assert export.main([str(run), str(out), "--format", "program"]) == 0
    assert "wrote" in capsys.readouterr().out
    program = torch.export.load(out / "model.pt2").module()
    logits, boxes = program(*example(3, 130, 170))
    assert logits.shape == (3, boxes.shape[1], 3)
    card = json.loads((out / "model.json").read_text())
    assert (card["class_names"], card["class_ids"]) == (["cup", "plate"], [3, 7])
    assert card["preprocess"]["val_size"] == 200


def test_an_onnx_file_is_written_and_compared(run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert export.main([str(run), str(tmp_path / "a"), "--format", "onnx"]) == 0
    assert (tmp_path / "a" / "model.onnx").stat().st_size > 1e6
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    assert export.main([str(run), str(tmp_path / "b"), "--format", "onnx"]) == 2
    assert "the graph differs from the model by" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_graph_is_of_a_detector_in_float32_and_in_a_new_folder(run, tmp_path, capsys):
    out = str(tmp_path / "graph")
    assert export.main([str(run), out, "--format", "onnx", "--dtype", "int8"]) == 2
    assert "not in int8" in capsys.readouterr().err
    assert export.main([str(run), str(tmp_path), "--format", "onnx"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert export.main(["doc_nano", out, "--format", "program"]) == 2
    assert "is no detector" in capsys.readouterr().err

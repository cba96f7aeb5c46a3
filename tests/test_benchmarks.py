"""Every row of the benchmark runs on tiny work, and its check of equal work can fail."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    pytest.importorskip("timm")
    spec = importlib.util.spec_from_file_location("bench_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


DETECTION = ["inference", "training", "matching", "evaluation"]
FAMILY = ["deformable", "deformable_bf16", "deformable_training"]
DOCUMENTS = ["encoder", "encoder_batch", "encoder_bf16", "encoder_training"]
SCANS = ["ocr", "ten_questions"]


@pytest.mark.filterwarnings("ignore")  # of the reference
@pytest.mark.parametrize("name", [*DETECTION, *FAMILY, *DOCUMENTS, *SCANS])
def test_a_row_runs(bench, name):
    if name in SCANS and shutil.which("tesseract") is None:
        pytest.skip("no Tesseract here")
    row = bench.ROWS[name](True)
    assert row.ratio > 0
    assert row.verdict == "met" or row.verdict.startswith("below the target")


def test_work_that_differs_is_not_compared(bench, monkeypatch):
    sharpen = bench.rows.sharpen

    def spoil(model):
        sharpen(model)
        model.class_labels_classifier.bias.data[3] += 0.5

    ours = bench.rows.ours

    def other(reference, **settings):
        spec, model = ours(reference, **settings)
        spoil(reference)
        return spec, model

    monkeypatch.setattr(bench.rows, "ours", other)
    with pytest.raises(bench.rows.WorkDiffersError, match="outputs differ"):
        bench.rows.inference(True, half=False)


def test_the_table_is_written(bench, tmp_path, capsys):
    assert bench.main(["--quick", "--rows", "matching", "--out", str(tmp_path / "R.md")]) == 0
    assert "| matcher + losses" in (tmp_path / "R.md").read_text()

"""Every row of the benchmark runs on tiny work, and its check of equal work can fail."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

import zoo.registry

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
FAMILY = ["deformable", "deformable_bf16", "deformable_training", "rt_detr", "rt_detr_bf16"]
SETS = ["focal_matching", "denoising", "contrastive", "sampling", "sampling_cells"]
DOCUMENTS = ["encoder", "encoder_batch", "encoder_bf16", "encoder_training"]
SCANS = ["ocr", "ten_questions"]


@pytest.mark.filterwarnings("ignore")  # of the reference
@pytest.mark.parametrize("name", [*DETECTION, *FAMILY, *SETS, *DOCUMENTS, *SCANS])
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


def test_other_weights_of_rt_detr_are_not_compared(bench, monkeypatch):
    family = bench.family_rows
    ours = family.ours

    def other(reference, name, **settings):
        spec, model = ours(reference, name, **settings)
        with torch.no_grad():
            model.decoder.bbox_embed[-1].layers[-1].bias[0] += 0.1
        return spec, model

    monkeypatch.setattr(family, "ours", other)
    with pytest.raises(bench.rows.WorkDiffersError, match="boxes differ"):
        family.rt_detr_inference(True, half=False)


def test_losses_that_differ_are_not_compared(bench, monkeypatch):
    spec = zoo.registry.model_spec
    heavier = lambda name, **settings: spec(name, **settings, coef_giou=2.5)  # noqa: E731
    monkeypatch.setattr(zoo.registry, "model_spec", heavier)
    with pytest.raises(bench.rows.WorkDiffersError, match="losses"):
        bench.rows.focal_matching(True)


@pytest.mark.filterwarnings("ignore")
def test_mask_losses_that_differ_are_not_compared(bench, monkeypatch):
    memory = bench.memory_rows
    ours = memory.ours
    heavier = lambda *args, **settings: ours(*args, **settings, coef_dice=1.1)  # noqa: E731
    monkeypatch.setattr(memory, "ours", heavier)
    with pytest.raises(bench.rows.WorkDiffersError, match="mask losses"):
        memory.mask_sides(True)


@pytest.mark.parametrize(
    ("part", "said"), [("content", "contents"), ("anchors", "boxes"), ("bias", "masks")]
)
def test_denoising_queries_that_differ_are_not_compared(bench, monkeypatch, part, said):
    rows = bench.denoising_rows
    usual = rows.usual

    def other(*args):
        built = usual(*args)
        changed = getattr(built, part).clone()
        changed[..., 0] += 1.0
        return built._replace(**{part: changed})

    monkeypatch.setattr(rows, "usual", other)
    with pytest.raises(bench.rows.WorkDiffersError, match=said):
        rows.noised_groups(True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["detr", "deformable", "masks"])
def test_both_sides_of_a_memory_row_take_a_step(bench, kind):
    sides = bench.memory_rows.SIDES[kind](True)
    assert set(sides) == {"ours", "theirs"}
    assert all(step() > 0 for step in sides.values())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_measured_in_a_process_of_its_own(bench, monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as in the Makefile
    assert bench.memory_rows.peak("masks", "ours", quick=True) > 0


def test_a_process_that_fails_is_an_error(bench, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho of no memory >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match="masks, theirs: of no memory"):
        bench.memory_rows.peak("masks", "theirs", quick=True)


def test_filled_masks_are_the_boxes(bench):
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.26, 0.3, 0.01, 0.01]])
    masks = bench.memory_rows.filled(boxes, 8, 12)
    assert masks.shape == (2, 8, 12)
    assert masks[0].sum() == 4 * 6
    assert masks[0, 2:6, 3:9].all()
    assert masks[1].nonzero().tolist() == [[2, 3]]


def test_the_table_is_written(bench, tmp_path, capsys):
    assert bench.main(["--quick", "--rows", "matching", "--out", str(tmp_path / "R.md")]) == 0
    assert "| matcher + losses" in (tmp_path / "R.md").read_text()

"""The comparison of the family: a table and curves of finished runs, and what failed is told."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "family.py"


@pytest.fixture(scope="module")
def family():
    spec = importlib.util.spec_from_file_location("bench_family", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_family"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_family"]


def write_run(folder, model, seed, scores):
    run = folder / f"{model}_{seed}"
    run.mkdir(parents=True)
    rows = [
        {"kind": "eval", "step": 10 * (n + 1), "epoch": n, "minutes": 0.5 * (n + 1), "AP": ap}
        | {"AP50": 2 * ap}
        for n, ap in enumerate(scores)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (run / "config.yaml").write_text("loader: {batch_size: 8}\noptim: {accumulate: 2}\n")
    facts = {"parameters": 3.6e6, "milliseconds": 12.0, "megabytes": 40.0}
    (run / "family.json").write_text(json.dumps(facts))


def test_the_table_has_the_best_first_and_the_seeds_together(family, tmp_path):
    write_run(tmp_path / "shapes", "detr_nano", 0, [0.0, 0.01])
    write_run(tmp_path / "shapes", "dn_detr_nano", 0, [0.1, 0.3])
    write_run(tmp_path / "shapes", "dn_detr_nano", 1, [0.1, 0.4])
    names = ["detr_nano", "dn_detr_nano"]
    command = ["--data", "shapes", "--table", "--out", str(tmp_path), "--seeds", "0", "1"]
    assert family.main([*command, "--models", *names]) == 0
    rows = (tmp_path / "shapes" / "table.md").read_text().splitlines()[4:]
    assert rows[0].startswith("| `dn_detr_nano` | 0.350 (0.300 .. 0.400) | 0.700")
    assert "| 2 | 320 | 3.6 M | 12 | 40 |" in rows[0]
    assert rows[1].startswith("| `detr_nano` | 0.010 | 0.020 | 1 |")
    for picture in ("by_minutes.png", "by_images.png"):
        assert (tmp_path / "shapes" / picture).stat().st_size > 5000


def test_a_run_that_fails_is_told_and_the_others_go_on(family, tmp_path, capsys):
    out = ["--out", str(tmp_path), "--minutes", "0.05"]
    assert family.main(["--data", str(tmp_path / "none"), "--models", "detr_nano", *out]) == 1
    assert "none" in capsys.readouterr().err


def test_the_members_are_the_small_detectors(family):
    names = family.nanos()
    assert {"detr_nano", "dab_detr_nano", "dn_detr_nano"} <= set(names)
    assert not any(n.startswith("doc") for n in names)


def test_a_run_is_trained_and_measured(family, tmp_path):
    small = ["data.train_images=8", "data.val_images=4", "loader.num_workers=0"]
    out = ["--out", str(tmp_path), "--minutes", "0.05", "--models", "detr_nano"]
    assert family.main(["--data", "shapes", *out, "--set", *small]) == 0
    facts = json.loads((tmp_path / "shapes" / "detr_nano_0" / "family.json").read_text())
    assert facts["parameters"] > 1e6
    assert facts["milliseconds"] > 0
    assert "`detr_nano`" in (tmp_path / "shapes" / "table.md").read_text()

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.datasets.coco_eval import evaluate_results
from zoo.errors import ZooError
from zoo.tools import convert as convert_tool
from zoo.tools.evaluate import by_name, main, open_data
from zoo.tools.predict import main as predict_main

FIGURES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
Make = Callable[..., Path]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def run(*args: Any, status: int = 0) -> None:
    assert main([str(a) for a in args]) == status


def test_a_run_is_scored_and_everything_written(
    make_run: Make, make_data: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, data = make_run(), make_data()
    run("--weights", weights, "--data", data, "--device", "cpu", "--float32")
    out = weights / "evaluation"
    metrics = read(out / "metrics.json")
    assert list(metrics) == FIGURES
    assert 0.05 < metrics["AP"] < 0.95
    # The reference, on the written results.
    truth = read(data / "annotations" / "instances_val.json")
    reference = evaluate_results(truth, read(out / "results.json"), backend="pycocotools")
    assert list(metrics.values()) == pytest.approx(list(reference.metrics().values()), abs=1e-9)
    per_class = read(out / "per_class.json")
    assert {n: v["AP"] for n, v in per_class.items()} == pytest.approx(reference.per_class())
    assert (out / "precision_recall.png").stat().st_size > 1000
    printed = capsys.readouterr().out.splitlines()
    first = printed[0]
    for part in ("detr_nano", "M parameters", str(data), "7 pictures", "cpu", "float32", str(out)):
        assert part in first
    table = "\n".join(printed)
    assert f"AP50   {metrics['AP50']:.3f}" in table
    assert f"{per_class['fig']['AP']:5.3f}" in table
    assert "apple" in table


def test_results_score_as_the_model_that_made_them(
    make_run: Make, make_data: Make, tmp_path: Path
) -> None:
    weights, data = make_run(), make_data()
    run("--weights", weights, "--data", data, "--out", tmp_path / "a", "--device", "cpu")
    results = tmp_path / "a" / "results.json"
    annotations = data / "annotations" / "instances_val.json"
    for name, target in (("b", data), ("c", annotations)):
        out = tmp_path / name
        run("--results", results, "--data", target, "--out", out, "--backend", "pycocotools")
        assert read(out / "metrics.json") == pytest.approx(
            read(tmp_path / "a" / "metrics.json"), abs=1e-9
        )
    assert not (tmp_path / "b" / "results.json").exists()


def test_batch_size_does_not_matter_for_pictures_of_one_shape(
    make_run: Make, make_data: Make, tmp_path: Path
) -> None:
    weights, data = make_run(), make_data(pictures=3)
    for size in (1, 5):
        args = ("--batch-size", size, "--out", tmp_path / str(size), "--device", "cpu", "--float32")
        run("--weights", weights, "--data", data, *args)
    one, five = (read(tmp_path / n / "results.json") for n in "15")
    assert [r["image_id"] for r in one] == [r["image_id"] for r in five]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_published_results_score_as_published(
    shared_data: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_data / "coco_eval_parity"
    expected = read(folder / "expected.json")["runs"][["bbox", "segm"].index(kind)]
    run("--results", folder / expected["dt"], "--data", folder / expected["gt"], "--out", tmp_path)
    ours = read(tmp_path / "metrics.json")
    assert list(ours.values()) == pytest.approx(list(expected["stats"].values()), abs=1e-9)
    what = {"bbox": "734 boxes", "segm": "734 segments"}[kind]
    assert capsys.readouterr().out.startswith(what)


def test_results_are_scored_without_the_pictures(make_data: Make, tmp_path: Path) -> None:
    data = make_data()
    for picture in (data / "val").iterdir():
        picture.unlink()
    (data / "val").rmdir()
    results = tmp_path / "r.json"
    results.write_text("[]")
    run("--results", results, "--data", data)


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_results_are_scored_against_every_format(
    make_data: Make, tmp_path: Path, kind: str
) -> None:
    data = make_data()
    converted = tmp_path / kind
    assert convert_tool.main([str(data), "--to", kind, "--out", str(converted)]) == 0
    results = tmp_path / "r.json"
    results.write_text("[]")
    for n, target in enumerate((converted, f"{kind}:{converted}")):
        run("--results", results, "--data", target, "--out", tmp_path / f"out{n}")
        assert read(tmp_path / f"out{n}" / "metrics.json")["AP"] == 0


def test_classes_are_matched_by_name(
    make_run: Make, make_data: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = make_data("same")
    other = make_data("other", class_names=("Fig", "apple", "pear"), class_ids=(1, 2, 90))
    weights = make_run()
    for data in (same, other):
        args = ("--data", data, "--out", tmp_path / f"{data.name}_out", "--device", "cpu")
        run("--weights", weights, *args)
    printed = capsys.readouterr().out
    a, b = (read(tmp_path / f"{n}_out" / "per_class.json") for n in ("same", "other"))
    assert {n.lower(): v for n, v in b.items()} == a
    ids = {r["category_id"] for r in read(tmp_path / "other_out" / "results.json")}
    assert ids <= {1, 2, 90}
    assert printed.count("another order; matched by name") == 1


def test_classes_that_the_data_lacks_are_left_out_and_named(
    make_run: Make, make_data: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data()
    truth = data / "annotations" / "instances_val.json"
    content = read(truth)
    content["categories"] = [c for c in content["categories"] if c["name"] != "pear"]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 7]
    truth.write_text(json.dumps(content))
    run("--weights", make_run(), "--data", data, "--out", tmp_path / "out", "--device", "cpu")
    assert "1 classes of the model that the data does not have are left out: pear" in (
        capsys.readouterr().out
    )
    assert set(read(tmp_path / "out" / "per_class.json")) == {"apple", "fig"}
    assert {r["category_id"] for r in read(tmp_path / "out" / "results.json")} <= {3, 20}


def test_classes_that_the_model_lacks_are_an_error(
    make_run: Make, make_data: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data()
    weights = make_run("other", class_names=("apple", "plum", "kiwi"))
    run("--weights", weights, "--data", data, status=2)
    error = capsys.readouterr().err
    assert "error: the model does not know 2 of the data's 3 classes: pear, fig" in error
    assert "Traceback" not in error


def test_two_classes_of_one_name_cannot_be_matched() -> None:
    class Predictor:
        class_names = ("a", "b", "c")
        postprocess = None

    class Source:
        name = "coco"
        class_names = ("a", "b", "B")

    with pytest.raises(ZooError, match="two classes of one name"):
        by_name(Predictor(), Source())  # type: ignore[arg-type]
    Source.class_names = ("a", "b", "c")
    assert by_name(Predictor(), Source()) == (None, [])  # type: ignore[arg-type]


def test_pictures_are_prepared_as_the_checkpoint_says(make_run: Make, make_data: Make) -> None:
    model = zoo.load_model(make_run(), device="cpu")
    source = open_data(str(make_data()), "val", [], model)
    assert source.train is None
    assert source.val is not None
    assert source.val.sizes()[:3] == [(64, 85), (85, 64), (64, 64)]


def test_built_in_data_can_be_scored_on(
    make_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from zoo.registry import data_spec

    names = data_spec("shapes").build(data_spec("shapes").config).class_names
    weights = make_run("shapes", names, tuple(range(1, len(names) + 1)))
    run("--weights", weights, "--data", "shapes", "--device", "cpu", "data.val_images=4")
    assert "4 pictures" in capsys.readouterr().out
    results = weights / "evaluation" / "results.json"
    run("--results", results, "--data", "shapes", status=0)
    run("--weights", weights, "--data", "shapes", "--split", "test", status=2)
    assert "has the split val only" in capsys.readouterr().err


def test_bad_pictures_end_it_or_are_skipped(
    make_run: Make, make_data: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, data = make_run(), make_data()
    (data / "val" / "02.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    run("--weights", weights, "--data", data, "--device", "cpu", status=2)
    assert "02.png" in capsys.readouterr().err
    run("--weights", weights, "--data", data, "--device", "cpu", "data.on_error=skip")
    assert read(weights / "evaluation" / "metrics.json")["AP50"] > 0


BAD = {
    "no such run": (["--weights", "NONE", "--data", "DATA"], "no weights at NONE"),
    "no such data": (["--weights", "RUN", "--data", "NONE"], "no data folder NONE"),
    "no such split": (["--weights", "RUN", "--data", "DATA", "--split", "x"], "split 'x'"),
    "no such setting": (["--weights", "RUN", "--data", "DATA", "data.foo=1"], "foo"),
    "no such section": (["--weights", "RUN", "--data", "DATA", "optim.lr=1"], "section 'optim'"),
    "batch of none": (["--weights", "RUN", "--data", "DATA", "--batch-size", "0"], "--batch-size"),
    "no such results": (["--results", "NONE", "--data", "DATA"], "no results file NONE"),
    "results of other data": (["--results", "BAD", "--data", "DATA"], "BAD: result 0 is of image"),
    "results on nothing": (["--results", "BAD", "--data", "NONE"], "no file or folder NONE"),
    "results, no such split": (
        ["--results", "BAD", "--data", "DATA", "--split", "x"],
        "split 'x'",
    ),
    "segments on shapes": (["--results", "SEGM", "--data", "shapes"], "no segments to score"),
    "unwritable": (["--results", "EMPTY", "--data", "DATA", "--out", "BAD"], "can't be written"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_status_two(
    name: str,
    make_run: Make,
    make_data: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run("RUN")
    make_data("DATA")
    result = {"image_id": 5, "category_id": 3, "score": 0.5}
    (tmp_path / "BAD").write_text(json.dumps([result | {"bbox": [1, 1, 2, 2]}]))
    (tmp_path / "SEGM").write_text(json.dumps([result | {"segmentation": []}]))
    (tmp_path / "EMPTY").write_text("[]")
    args, message = BAD[name]
    run(*args, status=2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_weights_or_results_have_to_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--data", "x"], ["--data", "x", "--weights", "a", "--results", "b"]):
        with pytest.raises(SystemExit) as caught:
            main(args)
        assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "torchrun --nproc-per-node 8 tools/evaluate.py" in capsys.readouterr().out


def in_two_processes(tool: str, args: list[str]) -> list[int]:
    """The exit codes of both; what torchrun does, without its agent, which stops at the first 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(Path(__file__).resolve().parents[2] / "tools" / tool)
    processes = [
        subprocess.Popen(
            [sys.executable, script, *args],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in (0, 1)
    ]
    return [process.wait(timeout=240) for process in processes]


@pytest.mark.slow
def test_two_processes_evaluate_and_predict_as_one_does(
    make_run: Make, make_data: Make, tmp_path: Path
) -> None:
    weights, data = str(make_run()), make_data()
    (data / "val" / "bad.png").write_bytes(b"no picture")
    common = ["--weights", weights, "--device", "cpu", "--float32"]
    share = ["--threshold", "0.2"]

    def commands(out: str) -> list[list[str]]:
        return [
            [*common, "--data", str(data), "--out", str(tmp_path / out / "scores")],
            [str(data / "val"), *common, *share, "--out", str(tmp_path / out / "found")],
        ]

    one = commands("one")
    assert main(one[0]) == 0
    assert predict_main(one[1]) == 1
    two = commands("two")
    assert in_two_processes("evaluate.py", two[0]) == [0, 0]
    assert in_two_processes("predict.py", two[1]) == [1, 0]  # there is a bad file
    for name in ("metrics.json", "results.json", "per_class.json"):
        assert read(tmp_path / "two" / "scores" / name) == read(tmp_path / "one" / "scores" / name)
    a, b = (tmp_path / n / "found" for n in ("one", "two"))
    found = [read(f / "predictions.json") for f in (a, b)]
    assert found[0]["images"] == found[1]["images"]
    assert len(found[0]["annotations"]) == len(found[1]["annotations"]) > 7
    for ours, theirs in zip(found[0]["annotations"], found[1]["annotations"], strict=True):
        # Equal to rounding: a batch of another size may be multiplied in another order.
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)
        assert ours["category_id"] == theirs["category_id"]
    assert (a / "failed.txt").read_text() == (b / "failed.txt").read_text()
    files = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in (a, b)]
    assert files[0] == files[1]
    assert len([f for f in files[0] if f.startswith("pictures/")]) == 7

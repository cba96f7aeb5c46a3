"""The conversion tool as people use it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.datasets.shapes import ShapesConfig, export
from zoo.errors import ZooError
from zoo.tools.convert import main
from zoo.tools.evaluate import main as evaluate
from zoo.tools.train import data_settings
from zoo.tools.train import main as train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    config = ShapesConfig(short_side=(64, 80), long_side=100, empty=0.15)
    export(folder, {"train": 6, "val": 3}, config)
    return folder


def test_there_and_back(shapes, tmp_path, capsys):
    for start, to, out in ((shapes, "voc", "v"), (f"voc:{tmp_path / 'v'}", "yolo", "y"),
                           (tmp_path / "y", "coco", "c")):  # fmt: skip
        assert main([str(start), "--to", to, "--out", str(tmp_path / out), "--strict"]) in (0, 1)
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    for word in (str(shapes), "(coco)", "train, val", "to voc", "copied", str(tmp_path / "v")):
        assert word in first
    assert "train: 6 pictures" in out
    assert f"wrote {tmp_path / 'c'}" in out
    old, new = (
        json.loads((d / "annotations/instances_val.json").read_text())
        for d in (shapes, tmp_path / "c")
    )
    kept = [a["bbox"] for a in old["annotations"] if not a["iscrowd"]]
    assert [a["bbox"] for a in new["annotations"]] == [pytest.approx(b, abs=1e-6) for b in kept]


@pytest.mark.data
@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_the_blood_cells_go_there_and_back(shared_data, tmp_path, capsys, to):
    """Every annotation: its class, its box to 1e-6 pixels and area; and every picture's bytes."""
    source, there, back = shared_data / "bccd", tmp_path / to, tmp_path / "back"
    assert main([str(source), "--to", to, "--out", str(there), "--strict"]) == 0
    assert main([str(there), "--to", "coco", "--out", str(back), "--strict"]) == 0
    out = capsys.readouterr().out
    assert out.count("train: 205 pictures, 2804 objects") == 2
    assert out.count("val: 87 pictures, 1137 objects") == 2
    assert not [line for line in out.splitlines() if line.startswith("left out: ")]
    for split in ("train", "val"):
        old, new = (
            json.loads((d / f"annotations/instances_{split}.json").read_text())
            for d in (source, back)
        )
        assert [(c["id"], c["name"]) for c in new["categories"]] == [
            (c["id"], c["name"]) for c in old["categories"]
        ]
        names = [[image["file_name"] for image in data["images"]] for data in (old, new)]
        assert sorted(names[0]) == sorted(names[1])
        assert len(new["annotations"]) == len(old["annotations"])
        found = (by_picture(new, names[0]), by_picture(old, names[0]))
        for name, ours, theirs in zip(names[0], *found, strict=True):
            assert (ours[0], len(ours[1])) == (theirs[0], len(theirs[1])), name
            for a, b in zip(ours[1], theirs[1], strict=True):
                assert (a["category_id"], a["iscrowd"]) == (b["category_id"], b["iscrowd"])
                assert a["bbox"] == pytest.approx(b["bbox"], rel=0, abs=1e-6)
                assert a["area"] == pytest.approx(b["area"], rel=0, abs=1e-3)
            assert (back / split / name).read_bytes() == (source / split / name).read_bytes()


def by_picture(data, names):
    """Size and annotations of each picture, in the order of the file and of ``names``."""
    found = {
        image["file_name"]: ((image["height"], image["width"]), []) for image in data["images"]
    }
    files = {image["id"]: image["file_name"] for image in data["images"]}
    for annotation in data["annotations"]:
        found[files[annotation["image_id"]]][1].append(annotation)
    return [found[name] for name in names]


def test_what_is_left_out_is_told(shapes, tmp_path, capsys):
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").symlink_to(shapes / "train")
    data = json.loads((shapes / "annotations/instances_train.json").read_text())
    data["annotations"][0]["iscrowd"] = 1
    (folder / "annotations/instances_train.json").write_text(json.dumps(data))
    command = [str(folder), "--to", "yolo", "--out"]
    assert main([*command, str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "left out: crowd regions or difficult objects: 1" in out
    assert "note: image ids are numbered anew: 6" in out
    assert main([*command, str(tmp_path / "b"), "--strict"]) == 1
    assert (tmp_path / "b/data.yaml").is_file()


def test_one_split_with_links(shapes, tmp_path, capsys):
    arguments = ["--to", "yolo", "--out", str(tmp_path / "out"), "--split", "val", "--link"]
    assert main([str(shapes), *arguments]) == 0
    assert "linked" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "out/images").iterdir()] == ["val"]
    picture = tmp_path / "out/images/val/000000.png"
    assert picture.stat().st_ino == (shapes / "val/000000.png").stat().st_ino


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--to", "voc", "--out", "out"], "no data folder nowhere"),
        (["voc:nowhere", "--to", "voc", "--out", "out"], "no data folder nowhere"),
        ([".", "--to", "voc", "--out", "out"], "of no known format (looked for coco: "),
        (["SHAPES", "--to", "voc", "--out", "."], "is not an empty folder"),
        (["SHAPES", "--to", "voc", "--out", "out", "--split", "night"], "the split 'night'"),
        (["yolo:SHAPES", "--to", "voc", "--out", "out"], "has no data.yaml"),
        (["voc:SHAPES", "--to", "yolo", "--out", "out"], "has no VOC annotations"),
        (["SHAPES", "--to", "voc", "--out", "out", "data.one_based=false"], "data.one_based"),
    ],
)
def test_faults_are_one_line_and_leave_nothing(
    shapes, tmp_path, capsys, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("x")
    assert main([a.replace("SHAPES", str(shapes)) for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_wrong_flags(shapes, capsys):
    for more in (["--to", "txt"], ["--to", "voc", "--copy", "--link"]):
        with pytest.raises(SystemExit) as caught:
            main([str(shapes), "--out", "out", *more])
        assert caught.value.code == 2
    capsys.readouterr()


def test_training_recognises_what_was_written(shapes, tmp_path):
    for to in ("voc", "yolo"):
        folder = str(tmp_path / to)
        assert main([str(shapes), "--to", to, "--out", folder]) == 0
        assert data_settings(folder) == data_settings(f"{to}:{folder}") == (to, {"folder": folder})
        with pytest.raises(ZooError, match=f"is not of the format {to}: it lacks"):
            data_settings(f"{to}:{shapes}")
    assert data_settings(str(shapes))[0] == "coco"


def test_a_model_scores_the_same_on_every_format(make_run, make_data, tmp_path, capsys):
    folder, run = make_data(), make_run()
    figures = {}
    for to in ("coco", "voc", "yolo"):
        assert main([str(folder), "--to", to, "--out", str(tmp_path / to)]) == 0
        arguments = ["--weights", str(run), "--device", "cpu", "--float32", "--data"]
        out = tmp_path / f"{to}_scores"
        assert evaluate([*arguments, f"{to}:{tmp_path / to}", "--out", str(out)]) == 0
        figures[to] = json.loads((out / "metrics.json").read_text())
    assert 0 < figures["coco"]["AP"] < 1
    for to in ("voc", "yolo"):
        assert figures[to] == pytest.approx(figures["coco"], abs=1e-9)


def test_training_runs_on_other_formats(shapes, tmp_path, capsys):
    assert main([str(shapes), "--to", "voc", "--out", str(tmp_path / "voc")]) == 0
    small = ["dim=32", "num_heads=4", "encoder_layers=1", "decoder_layers=1", "ffn_dim=32"]
    arguments = [
        "--model", "detr_nano", "--data", str(tmp_path / "voc"), "--out", str(tmp_path / "run"),
        "--weights", "none", "run.epochs=1", "run.device=cpu", "loader.num_workers=0",
        *(f"model.{item}" for item in small),
    ]  # fmt: skip
    assert train(arguments) == 0
    card = json.loads((tmp_path / "run/best/model.json").read_text())
    assert card["class_names"][0] == "circle"


@pytest.mark.slow
def test_as_a_program(shapes, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(ROOT / "tools/convert.py")]
    shown = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, env=env, check=True
    )
    assert "tools/convert.py voc:FOLDER --to coco" in shown.stdout
    arguments = [str(shapes), "--to", "voc", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/ImageSets/Main/val.txt").is_file()

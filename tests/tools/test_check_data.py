"""The data doctor on clean, real and broken folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from defects import (
    DEFECTS,
    change,
    edit,
    first_picture,
    found,
    lie_down,
    run,
    truncate,
)
from PIL import Image

from zoo.datasets.coco import CocoConfig, open_coco
from zoo.datasets.inspection import inspect, probe, splits_of
from zoo.datasets.inspection_findings import KINDS, LEVELS
from zoo.errors import ZooError
from zoo.tools.check_data import main

ROOT = Path(__file__).resolve().parents[2]

# --- a folder that is fine ---------------------------------------------------------------------


def test_a_clean_folder(clean, tmp_path, capsys):
    assert run(clean, tmp_path, "--strict") == 0
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    for word in (str(clean), "annotations/instances_train.json", "val/", str(tmp_path / "out")):
        assert word in first
    assert "train: 30 pictures" in out
    assert "is fit to train on: 0 errors, 0 warnings" in out
    truth = json.loads((clean / "annotations/instances_train.json").read_text())
    hearts = sum(a["category_id"] == 21 for a in truth["annotations"])
    (row,) = [line.split() for line in out.splitlines() if line.startswith("heart")]
    assert row[1:3] == ["21", str(hearts)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "classes.png", "report.json", "samples_train.png", "samples_val.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "out/samples_train.png") as sheet:
        assert sheet.width > 1000
        assert np.asarray(sheet).std() > 20


def test_figures(clean, tmp_path, capsys):
    assert run(clean, tmp_path, "--json", "--samples", "0") == 0
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert content == json.loads((tmp_path / "out/report.json").read_text())
    assert str(clean) in printed.err.splitlines()[0]
    truth = json.loads((clean / "annotations/instances_train.json").read_text())
    split = content["splits"]["train"]
    assert split["pictures"] == 30
    assert split["boxes"] == split["annotations"] == len(truth["annotations"])
    sides = sorted(np.sqrt(a["bbox"][2] * a["bbox"][3]) for a in truth["annotations"])
    assert split["box_side"]["least"] == pytest.approx(sides[0])
    assert split["box_side"]["median"] == pytest.approx(np.median(sides))
    assert split["width"]["greatest"] == max(im["width"] for im in truth["images"])
    assert sum(c["boxes"] for c in split["per_class"].values()) == split["boxes"]
    assert sum(split["small_medium_large"]) == pytest.approx(1)
    assert split["formats"] == {"PNG RGB": 30}
    assert not list((tmp_path / "out").glob("*.png"))


def test_one_split_alone(clean, tmp_path, capsys):
    assert run(clean, tmp_path, "--split", "val", "--samples", "3") == 0
    out = capsys.readouterr().out
    assert "val: 8 pictures" in out
    assert "train:" not in out


def test_old_sheets_do_not_stay(clean, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "flagged_train.png").write_bytes(b"old")
    (out / "mine.png").write_bytes(b"mine")
    assert run(clean, tmp_path, "--samples", "2") == 0
    assert not (out / "flagged_train.png").exists()
    assert (out / "mine.png").exists()


# --- what is wrong -----------------------------------------------------------------------------


# Defects that the sheets have to survive; drawing is what takes time.
DRAWN = {"json", "missing", "unreadable", "size", "degenerate", "outside", "clipped", "turned"}


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_a_defect_is_found_and_sets_the_exit_status(folder, defect, tmp_path, capsys):
    code = defect.partition(",")[0]
    before = found(folder)
    DEFECTS[defect](folder)
    after = found(folder)
    new = {key: n for key, n in after.items() if n > before.get(key, 0)}
    assert code in {c for c, _ in new}, new
    level = KINDS[code].level
    worst = min((LEVELS.index(KINDS[c].level) for c, _ in new), default=2)
    assert LEVELS[worst] == level, new  # nothing worse is said of it
    status = {"error": (2, 2), "warning": (0, 1), "note": (0, 0)}[level]
    assert run(folder, tmp_path, "--samples", "4" if code in DRAWN else "0") == status[0]
    out = capsys.readouterr().out
    assert KINDS[code].what in " ".join(out.split())
    assert "Traceback" not in out
    assert run(folder, tmp_path, "--samples", "0", "--strict") == status[1]


@pytest.mark.parametrize("defect", [d for d in DEFECTS if d != "leak"])
def test_errors_are_what_training_refuses(folder, defect, caplog):
    """And warnings and notes are what it takes."""
    DEFECTS[defect](folder)

    def read():
        source = open_coco(CocoConfig(folder=str(folder)))
        source.evaluator()
        return [samples[i] for samples in (source.train, source.val) for i in range(len(samples))]

    if KINDS[defect.partition(",")[0]].level == "error":
        with pytest.raises(ZooError):
            read()
    else:
        assert len(read()) >= 38


def test_examples_name_the_record(folder):
    change(folder, lambda c: c["annotations"][3].update(bbox=[9000, 1, 2, 3]))
    first_picture(folder).unlink()
    result = inspect(folder, splits_of(folder))
    texts = {f.code: f.text for f in result.findings()}
    assert "1 (000000.png)" in texts["missing"]
    assert "[9000, 1, 2, 3]" in texts["outside"]


def test_flagged_boxes_are_drawn(folder, tmp_path):
    edit("annotations", 0, bbox=[-5, 10, 20, 20])(folder)
    assert run(folder, tmp_path) == 0
    with Image.open(tmp_path / "out/flagged_train.png") as sheet:
        assert sheet.width > 100


def test_a_picture_that_was_turned_is_drawn_as_training_sees_it(folder):
    from zoo.tools.check_data import annotated

    lie_down(folder)
    (split, _) = inspect(folder, splits_of(folder)).splits
    picture = split.pictures[0]
    drawn = annotated(split, picture, {n: i for i, n in enumerate(split.categories)}, flagged=False)
    assert drawn.width > drawn.height
    picture.size = (60, 40)
    drawn = annotated(split, picture, {n: i for i, n in enumerate(split.categories)}, flagged=False)
    assert drawn.width < drawn.height


def test_many_faults_at_once(folder, tmp_path, capsys):
    """One split has no readable JSON, the other is all wrong; still everything is told."""
    DEFECTS["json"](folder)

    def ruin(content):
        content["images"] += [None, {"id": "a"}, {"id": True, "file_name": 3}, [1]]
        content["categories"] += ["x", {"id": 3.5, "name": "y"}]
        content["annotations"] += [
            None, {}, {"id": [1], "image_id": [2]}, {"id": None, "image_id": 1_000_001},
            {"image_id": 1_000_001, "category_id": {}, "bbox": "abcd"},
            {"image_id": 1_000_001, "category_id": 1, "bbox": ["a", 2, 3, 4]},
            {"image_id": 1_000_001, "category_id": 1, "bbox": [1, 2, 1e308, 1e308]},
        ]  # fmt: skip

    change(folder, ruin, "val")
    for n, content in enumerate([b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"]):
        (folder / "val" / f"{n:06d}.png").write_bytes(content)
    assert run(folder, tmp_path) == 2
    out = capsys.readouterr().out
    assert "train: 0 pictures" in out
    counts = found(folder)
    assert counts["json", "train"] == 1
    assert counts["record", "val"] == 7
    assert counts["unreadable", "val"] == 4
    assert counts["bad_box", "val"] == 2
    assert counts["unknown_category", "val"] == 2
    assert counts["unknown_image", "val"] == 2


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"images": {}}', "\x00", "[" * 100_000])
def test_files_of_another_kind(folder, content):
    (folder / "annotations/instances_train.json").write_text(content)
    assert {"json", "lists"} & {code for code, _ in found(folder)}


def test_no_folder_and_no_annotations(tmp_path, capsys):
    for place, words in ((tmp_path / "nowhere", "no data folder"), (tmp_path, "looked for")):
        assert main([str(place), "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(clean, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert run(clean, tmp_path) == 2
    assert "give another --out" in capsys.readouterr().err


def test_export_layout(clean, tmp_path):
    for split, name in (("train", "train"), ("val", "valid")):
        shutil.copytree(clean / split, tmp_path / name)
        shutil.copy(
            clean / f"annotations/instances_{split}.json",
            tmp_path / name / "_annotations.coco.json",
        )
    assert list(splits_of(tmp_path)) == ["train", "val"]
    assert {KINDS[code].level for code, _ in found(tmp_path)} <= {"note"}


def test_probe_never_raises(tmp_path):
    for name, content in (("a", b""), ("b", b"GIF89a"), ("c", os.urandom(500))):
        path = tmp_path / name
        path.write_bytes(content)
        assert str(path) in probe(path).error
    assert str(tmp_path) in probe(tmp_path).error
    assert "nowhere" in probe(tmp_path / "nowhere").error


def test_flat_pictures_are_not_alike(tmp_path):
    """White pages and night skies have nothing to compare."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / "annotations").mkdir(exist_ok=True)
        rng = np.random.default_rng(len(split))
        images = []
        for n in range(3):
            pixels = rng.integers(250, 255, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{n}.png")
            images.append({"id": n, "file_name": f"{n}.png", "width": 40, "height": 40})
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    codes = {code for code, _ in found(tmp_path)}
    assert not codes & {"alike", "leak", "duplicate"}
    assert "empty_split" in codes


# --- real data, and as a program ---------------------------------------------------------------


@pytest.mark.data
def test_tiny_coco_is_what_its_readme_says(shared_data, tmp_path, capsys):
    assert run(shared_data / "tiny_coco", tmp_path, "--json", "--samples", "2") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["errors"] == 0
    train, val = content["splits"]["train"], content["splits"]["val"]
    for split, pictures, annotations, used, crowds in (
        (train, 50, 470, 49, 5),
        (val, 25, 182, 39, 2),
    ):
        assert split["pictures"] == pictures
        assert split["annotations"] == annotations
        assert split["classes"] == 80
        assert split["crowds"] == crowds
        assert split["boxes"] == annotations - crowds
        assert split["classes_used"] == used
    texts = {(f["code"], f["split"]): f for f in content["findings"]}
    assert texts["background", "train"]["examples"] == ["000000262284.jpg"]
    assert texts["background", "val"]["examples"] == ["000000226111.jpg"]
    crowds = " ".join(texts["crowd", "train"]["examples"] + texts["crowd", "val"]["examples"])
    for number in (184613, 293802, 204805, 223648, 87038, 329323):
        assert f"{number:012d}.jpg" in crowds
    assert texts["gaps", "train"]["examples"][0] == "11 to 13"
    assert {f["level"] for f in content["findings"]} <= {"warning", "note"}


@pytest.mark.slow
def test_as_a_program_with_several_processes(folder, tmp_path):
    truncate(folder)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    command = [
        sys.executable, str(ROOT / "tools/check_data.py"), str(folder), "--out",
        str(tmp_path / "out"), "--workers", "2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2, done.stderr
    assert "pictures that can't be read: 1" in done.stdout
    content = json.loads((tmp_path / "out/report.json").read_text())
    alone = found(folder)
    assert {(f["code"], f["split"]): f["count"] for f in content["findings"]} == alone

"""The data doctor on folders in the formats of VOC and YOLO."""

import json
import shutil
from pathlib import Path

import pytest
from defects import DEFECTS, found, run

from zoo.datasets.coco import CocoConfig
from zoo.datasets.convert import convert
from zoo.datasets.formats import open_set
from zoo.datasets.inspection import inspect, splits_of
from zoo.datasets.inspection_findings import KINDS, LEVELS
from zoo.datasets.voc import VocConfig, open_voc
from zoo.datasets.yolo import open_yolo
from zoo.errors import ZooError


@pytest.fixture(scope="module")
def converted(clean, tmp_path_factory):
    base = tmp_path_factory.mktemp("converted")
    for to in ("voc", "yolo"):
        convert(open_set(clean), to, base / to)
    return base


@pytest.fixture
def other(converted, tmp_path):
    return lambda to: Path(shutil.copytree(converted / to, tmp_path / "data"))


SOURCES = {"voc": (VocConfig, open_voc), "yolo": (CocoConfig, open_yolo)}


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_the_report_is_that_of_coco(clean, converted, tmp_path, capsys, to):
    def figures(folder):
        assert run(folder, tmp_path, "--json", "--samples", "0", "--strict") == 0
        splits = json.loads(capsys.readouterr().out)["splits"]
        for split in splits.values():
            classes = split.pop("per_class").values()
            split["per_class"] = {c["name"]: (c["boxes"], c["pictures"]) for c in classes}
        return splits

    expected, got = figures(clean), figures(converted / to)
    for split, values in expected.items():
        for key, value in values.items():
            if isinstance(value, dict) and key != "per_class":
                assert got[split][key] == pytest.approx(value, abs=1e-5), key
            else:
                assert got[split][key] == value, key


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_other_formats_are_told_and_drawn(converted, tmp_path, capsys, to):
    assert run(f"{to}:{converted / to}", tmp_path, "--samples", "3") == 0
    out = capsys.readouterr().out
    assert f"({to}) | train: " in out.splitlines()[0]
    assert "train: 30 pictures" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "classes.png", "report.json", "samples_train.png", "samples_val.png",
    ]  # fmt: skip


def test_settings_of_voc_are_taken(converted, tmp_path, capsys):
    assert run(f"voc:{converted / 'voc'}", tmp_path, "--samples", "0", "data.one_based=0") == 0
    assert run(f"yolo:{converted / 'yolo'}", tmp_path, "data.one_based=0") == 2
    assert "data.one_based does not say how yolo is read" in capsys.readouterr().err


def sub(name, old, new):
    """Replace text in a file, where it stands first."""

    def do(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return do


def line(text):
    return lambda f: (f / "labels/train/000000.txt").write_text(text + "\n")


def corners(*box):
    """An object with these corners in the first picture."""
    keys = ("xmin", "ymin", "xmax", "ymax")
    shown = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, box, strict=True))
    more = f"<object><name>heart</name><bndbox>{shown}</bndbox></object></annotation>"
    return sub(XML, "</annotation>", more)


XML = "Annotations/train_000000.xml"

OTHER = {
    ("voc", "json"): lambda f: (f / XML).write_text("<annotation>"),
    ("voc", "json, entities"): sub(XML, "<annotation>", "<!DOCTYPE a><annotation>"),
    ("voc", "record"): lambda f: (f / XML).unlink(),
    ("voc", "record, size"): sub(XML, "<width>", "<width>wide"),
    ("voc", "record, list"): sub("ImageSets/Main/train.txt", "train_000001", "../train_000001"),
    ("voc", "unknown_category"): sub("labels.txt", "heart", "liver"),
    ("voc", "bad_box"): corners("x", 1, 9, 9),
    ("voc", "bad_box, exchanged"): corners(9, 1, 3, 9),
    ("voc", "missing"): lambda f: (f / "JPEGImages/train_000000.png").unlink(),
    ("voc", "unreadable"): lambda f: (f / "JPEGImages/train_000000.png").write_bytes(b""),
    ("voc", "outside"): corners(500, 1, 509, 9),
    ("voc", "clipped"): corners(-5, 1, 9, 9),
    ("voc", "from_zero"): corners(0, 1, 9, 9),
    ("voc", "crowd"): sub("Annotations/train_000001.xml", "cult>0", "cult>1"),
    ("voc", "unlisted"): lambda f: shutil.copy(
        f / "JPEGImages/train_000000.png", f / "JPEGImages/new.png"
    ),
    ("yolo", "json"): lambda f: (f / "labels/train/000000.txt").write_bytes(b"\xff"),
    ("yolo", "lists"): lambda f: (f / "labels/train").rename(f / "labels/old"),
    ("yolo", "unknown_category"): line("77 0.5 0.5 0.1 0.1"),
    ("yolo", "bad_box"): line("0 0.5 0.5 0.1"),
    ("yolo", "bad_box, text"): line("0 0.5 0.5 0.1 x"),
    ("yolo", "bad_box, pixels"): line("0 20 30 10 10"),
    ("yolo", "missing"): lambda f: (
        sub("data.yaml", "images/train", "t.txt")(f), (f / "t.txt").write_text("a.png\n"),
    ),
    ("yolo", "unreadable"): lambda f: (f / "images/train/000000.png").write_bytes(b""),
    ("yolo", "degenerate"): line("0 0.5 0.5 0 0.1"),
    ("yolo", "same_box"): line("0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1"),
    ("yolo", "orphan"): lambda f: (f / "labels/train/new.txt").write_text("0 0.5 0.5 0.1 0.1\n"),
    ("yolo", "leak"): lambda f: shutil.copy(
        f / "images/train/000000.png", f / "images/val/000000.png"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("to", "defect"), list(OTHER))
def test_a_defect_of_another_format_is_found(other, tmp_path, capsys, to, defect):
    folder, code = other(to), defect.partition(",")[0]
    before = found(folder)
    OTHER[to, defect](folder)
    new = {key: n for key, n in found(folder).items() if n > before.get(key, 0)}
    assert code in {c for c, _ in new}, new
    level = KINDS[code].level
    worst = min(LEVELS.index(KINDS[c].level) for c, _ in new)
    assert LEVELS[worst] == level, new
    status = {"error": (2, 2), "warning": (0, 1), "note": (0, 0)}[level]
    assert run(folder, tmp_path, "--samples", "0") == status[0]
    assert KINDS[code].what in " ".join(capsys.readouterr().out.split())
    assert run(folder, tmp_path, "--samples", "0", "--strict") == status[1]
    if code == "leak":  # a fault of the whole, which training can't know of
        return
    config, build = SOURCES[to]

    def read():
        source = build(config(folder=str(folder)))
        source.evaluator()
        return [samples[i] for samples in (source.train, source.val) for i in range(len(samples))]

    if level == "error":
        with pytest.raises(ZooError):
            read()
    else:
        assert len(read()) >= 38


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_all_faults_of_another_format_are_counted(other, tmp_path, capsys, to):
    folder = other(to)
    if to == "voc":
        for n, text in enumerate(("", "<a/>", "<annotation><object/></annotation>")):
            (folder / f"Annotations/val_{n:06d}.xml").write_text(text)
        expected = {"json": 2, "record": 1}
    else:
        lines = ["9 9 9 9 9", "", "0 0 0 0", "x", "0 1 1 1 1", "0 nan 1 1 1", "0.5 1 1 1 1"]
        (folder / "labels/val/000000.txt").write_text("\n".join(lines))
        expected = {"bad_box": 3, "unknown_category": 2}
    assert run(folder, tmp_path, "--samples", "2") == 2
    counts = found(folder)
    assert {code: counts[code, "val"] for code in expected} == expected
    text = {f.code: f.text for f in inspect(folder, splits_of(folder)).findings()}
    where = "val_000002.xml, object 1 has no name" if to == "voc" else "000000.txt, line 1: class 9"
    assert where in text["record" if to == "voc" else "unknown_category"]


def test_a_set_that_cannot_be_found_at_all(other, tmp_path, capsys):
    folder = other("yolo")
    (folder / "data.yaml").write_text("names: [")
    assert run(folder, tmp_path) == 2
    assert "data.yaml, line 1 is not readable YAML" in capsys.readouterr().err


def test_every_kind_is_tested():
    tested = {d.partition(",")[0] for _, d in OTHER} | {d.partition(",")[0] for d in DEFECTS}
    assert set(KINDS) - tested == {"background", "gaps", "unused", "rare", "many"}

"""The data doctor on clean, real and broken folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.datasets.coco import CocoConfig, open_coco
from zoo.datasets.convert import convert
from zoo.datasets.formats import open_set
from zoo.datasets.inspection import inspect, probe, splits_of
from zoo.datasets.inspection_findings import KINDS, LEVELS
from zoo.datasets.shapes import ShapesConfig, export
from zoo.datasets.voc import VocConfig, open_voc
from zoo.datasets.yolo import open_yolo
from zoo.errors import ZooError
from zoo.tools.check_data import main

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ShapesConfig(short_side=(64, 80), long_side=100, empty=0.15)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    export(folder, {"train": 30, "val": 8}, SHAPES)
    return folder


@pytest.fixture
def folder(clean, tmp_path):
    return Path(shutil.copytree(clean, tmp_path / "data"))


def change(folder, edit, split="train"):
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def found(folder, **more):
    """Count of each kind of finding."""
    result = inspect(folder, splits_of(folder), **more)
    return {(f.code, f.split): f.count for f in result.findings()}


def run(folder, tmp_path, *more):
    return main([str(folder), "--out", str(tmp_path / "out"), *more])


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


def edit(key, place, **values):
    """Set values of a record; where one is the whole ... the key is removed."""

    def do(content):
        for name, value in values.items():
            if value is ...:
                del content[key][place][name]
            else:
                content[key][place][name] = value

    return lambda folder: change(folder, do)


def append(key, place=0, **values):
    """One more record like another."""
    return lambda folder: change(
        folder, lambda content: content[key].append({**content[key][place], **values})
    )


def first_picture(folder, split="train"):
    return folder / split / "000000.png"


def truncate(folder):
    path = first_picture(folder)
    path.write_bytes(path.read_bytes()[:-2000])


def resize(folder, factor):
    with Image.open(first_picture(folder)) as image:
        size = (image.width * 2, round(image.height * factor))
        image.resize(size).save(first_picture(folder))


def lie_down(folder, orientation=6, width=60, height=40):
    """A picture stored as 60 x 40 with an orientation, whose record says something else."""
    tags = Image.Exif()
    tags[274] = orientation
    with Image.open(first_picture(folder)) as image:
        image.crop((0, 0, 60, 40)).save(first_picture(folder).with_suffix(".jpg"), exif=tags)

    def do(content):
        content["images"][0] |= {"file_name": "000000.jpg", "width": width, "height": height}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1]

    change(folder, do)
    first_picture(folder).unlink()


def copy(folder, to):
    shutil.copy(first_picture(folder), folder / to)


def recompress(folder):
    """The same picture in both splits, in other bytes and at another scale."""
    with Image.open(first_picture(folder)) as image:
        image.resize((image.width * 2, image.height * 2)).save(
            folder / "val/000000.jpg", quality=80
        )
        size = {"width": image.width * 2, "height": image.height * 2}

    def do(content):
        content["images"][0] |= {"file_name": "000000.jpg", **size}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1_000_001]

    change(folder, do, "val")
    (folder / "val/000000.png").unlink()


def leak(folder):
    copy(folder, "val/000000.png")
    with Image.open(first_picture(folder)) as image:
        size = {"width": image.width, "height": image.height}

    def do(content):
        content["images"][0] |= size
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 1_000_001]

    change(folder, do, "val")


def duplicate(folder):
    copy(folder, "train/copy.png")
    append("images", id=999, file_name="copy.png")(folder)


def without_class(folder):
    def do(content):
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 21]

    change(folder, do)


DEFECTS = {
    "json": lambda f: (f / "annotations/instances_train.json").write_text('{"images": [}'),
    "lists": lambda f: change(f, lambda c: c.pop("categories")),
    "record": edit("images", 0, width="wide"),
    "record, not one": lambda f: change(f, lambda c: c["annotations"].append(3)),
    "record, outside": edit("images", 0, file_name="../val/000000.png"),
    "record, no id": edit("images", 29, id=...),
    "record, no name": edit("categories", 7, name=...),
    "image_id": append("images", file_name="000001.png"),
    "category_id": append("categories", name="twice"),
    "missing": lambda f: first_picture(f).unlink(),
    "unreadable": truncate,
    "unreadable, empty": lambda f: first_picture(f).write_bytes(b""),
    "unknown_image": edit("annotations", 0, image_id=77_777),
    "unknown_image, none": edit("annotations", 0, image_id=...),
    "unknown_category": edit("annotations", 0, category_id=4),
    "bad_box": edit("annotations", 0, bbox=[1, 2, float("nan"), 4]),
    "bad_box, negative": edit("annotations", 0, bbox=[1, 2, -3, 4]),
    "bad_box, short": edit("annotations", 0, bbox=[1, 2, 3]),
    "bad_box, none": edit("annotations", 0, bbox=...),
    "size": lambda f: resize(f, 3),
    "categories": edit("categories", 3, name="sun"),
    "leak": leak,
    "alike": recompress,
    "duplicate": duplicate,
    "listed_twice": append("images", id=999),
    "degenerate": edit("annotations", 0, bbox=[10, 10, 0, 20]),
    "outside": edit("annotations", 0, bbox=[5000, 10, 10, 20]),
    "clipped": edit("annotations", 0, bbox=[-5, 10, 20, 20]),
    "same_box": append("annotations", id=9999),
    "annotation_id": append("annotations", place=1, bbox=[3, 3, 9, 9]),
    "turned": lie_down,
    "scaled": lambda f: resize(f, 2),
    "unlisted": lambda f: Image.new("RGB", (5, 5)).save(f / "train/more.png"),
    "unlearnable": without_class,
    "empty_split": lambda f: change(f, lambda c: c["annotations"].clear(), "val"),
    "crowd": edit("annotations", 0, iscrowd=1),
    "oriented": lambda f: lie_down(f, 6, width=40, height=60),
    "oriented, half a turn": lambda f: lie_down(f, 3),
}


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


def test_every_kind_is_tested():
    tested = {d.partition(",")[0] for _, d in OTHER} | {d.partition(",")[0] for d in DEFECTS}
    assert set(KINDS) - tested == {"background", "gaps", "unused", "rare", "many"}


# --- the other formats -------------------------------------------------------------------------


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

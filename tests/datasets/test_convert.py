"""Conversion: there and back again, and what is told of what gets lost."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from zoo.datasets.convert import convert
from zoo.datasets.formats import open_set
from zoo.datasets.inspection import inspect
from zoo.datasets.voc_records import parse
from zoo.errors import ZooError

SPLITS = ("train", "val")


def there_and_back(source, to, tmp_path, **more):
    first = convert(open_set(source), to, tmp_path / to, **more)
    back = convert(open_set(tmp_path / to), "coco", tmp_path / "back", **more)
    return first, back


def content(folder, split):
    return json.loads((folder / f"annotations/instances_{split}.json").read_text())


def by_name(data):
    """Boxes, classes by name and crowds of every picture, in order."""
    names = {c["id"]: c["name"] for c in data["categories"]}
    found = {im["file_name"]: [] for im in data["images"]}
    files = {im["id"]: im["file_name"] for im in data["images"]}
    for a in data["annotations"]:
        found[files[a["image_id"]]].append((names[a["category_id"]], a["iscrowd"], a["bbox"]))
    return found


def assert_same(a, b, atol):
    assert list(a) == list(b)
    for name in a:
        assert [o[:2] for o in a[name]] == [o[:2] for o in b[name]], name
        boxes = [np.array([o[2] for o in objects[name]]).reshape(-1, 4) for objects in (a, b)]
        assert np.allclose(*boxes, rtol=0, atol=atol), name


@pytest.mark.data
@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_the_blood_cells_go_there_and_back(shared_data, tmp_path, to):
    source = shared_data / "bccd"
    first, back = there_and_back(source, to, tmp_path)
    for result in (first, back):
        assert result.pictures == {"train": 205, "val": 87}
        assert result.objects == {"train": 2804, "val": 1137}
        assert not result.lost
    assert first.changed["image ids are numbered anew"] == 292
    assert not back.changed
    for split in SPLITS:
        old, new = content(source, split), content(tmp_path / "back", split)
        assert [(c["id"], c["name"]) for c in new["categories"]] == [
            (c["id"], c["name"]) for c in old["categories"]
        ]
        assert_same(by_name(old), by_name(new), atol=1e-6)
        areas = [sorted(a["area"] for a in data["annotations"]) for data in (old, new)]
        assert np.allclose(*areas, rtol=0, atol=1e-2)
        assert [(im["width"], im["height"]) for im in new["images"]] == [(640, 480)] * len(
            old["images"]
        )
        for image in old["images"][:5]:
            pictures = [d / split / image["file_name"] for d in (source, tmp_path / "back")]
            assert pictures[0].read_bytes() == pictures[1].read_bytes()
    # What was written is what training and the data check take.
    for place in (tmp_path / to, tmp_path / "back"):
        found = open_set(place)
        kinds = Counter(f.code for f in inspect(place, found.splits, workers=1).findings("error"))
        assert not kinds


@pytest.mark.data
@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_crowds_and_segments_are_told(shared_data, tmp_path, to):
    source = shared_data / "tiny_coco"
    first, _ = there_and_back(source, to, tmp_path, link=False)
    crowds = 5 + 2
    shapes = 470 + 182 - (crowds if to == "yolo" else 0)
    assert first.lost["segments"] == shapes
    assert first.lost["areas that are not their box's"] > 0
    if to == "yolo":
        assert first.lost["crowd regions or difficult objects"] == crowds
    else:
        assert first.changed["crowd regions are difficult objects"] == crowds
    assert first.changed["category ids are numbered anew"] == 80
    assert first.changed["'license' of pictures is left out"] == 75
    for split in SPLITS:
        old, new = content(source, split), content(tmp_path / "back", split)
        assert [c["name"] for c in new["categories"]] == [c["name"] for c in old["categories"]]
        expected = by_name(old)
        if to == "yolo":
            expected = {k: [o for o in v if not o[1]] for k, v in expected.items()}
            expected = dict(sorted(expected.items()))
        assert_same(expected, by_name(new), atol=1e-6)


def test_coco_stays_as_it_is_in_another_layout(folder, tmp_path, coco_kit):
    source = tmp_path / "export"
    for split, name in (("train", "train"), ("val", "valid")):
        (source / name).mkdir(parents=True)
        data = content(folder, split)
        data["info"] = {"year": 2026}
        data["annotations"][0]["score"] = 3
        (source / name / "_annotations.coco.json").write_text(json.dumps(data))
        for image in data["images"]:
            os.link(folder / split / image["file_name"], source / name / image["file_name"])
    result = convert(open_set(source), "coco", tmp_path / "out")
    assert (result.lost, result.changed) == (Counter(), Counter())
    assert content(tmp_path / "out", "val") == data


def test_links_are_the_same_files(folder, tmp_path, coco_kit):
    result = convert(open_set(folder), "yolo", tmp_path / "out", link=True)
    assert result.pictures == {"train": 4, "val": 4}
    new, old = tmp_path / "out/images/val/0.jpg", folder / "val/0.jpg"
    assert new.stat().st_ino == old.stat().st_ino
    convert(open_set(folder), "yolo", tmp_path / "copy")
    assert (tmp_path / "copy/images/val/0.jpg").stat().st_ino != old.stat().st_ino


def test_what_voc_says_goes_through_coco(folder, tmp_path, coco_kit):
    def change(data):
        data["annotations"][0] |= {"truncated": 1, "occluded": 1, "pose": "Left", "score": 0.5}

    coco_kit.rewrite(folder, change)
    first = convert(open_set(folder), "voc", tmp_path / "voc")
    assert first.lost == {"'score' of objects": 1}
    # One folder holds the pictures of both splits, which have the same names.
    assert first.changed["pictures are named after their split, as names occur in two"] == 8
    assert (tmp_path / "voc/ImageSets/Main/train.txt").read_text().split()[0] == "train_0"
    root = parse(tmp_path / "voc/Annotations/train_0.xml")
    assert [root.findtext(f"object/{k}") for k in ("name", "pose", "truncated", "difficult")] == [
        "dog", "Left", "1", "0",
    ]  # fmt: skip
    assert [root.findtext(f"object/bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax")] == [
        "6", "6", "25", "15",
    ]  # fmt: skip
    convert(open_set(tmp_path / "voc"), "coco", tmp_path / "back")
    new = content(tmp_path / "back", "train")
    kept = {k: new["annotations"][0].get(k) for k in ("truncated", "occluded", "pose")}
    assert kept == {"truncated": 1, "occluded": 1, "pose": "Left"}
    assert [c["name"] for c in new["categories"]] == ["dog", "cat", "eel"]
    assert [a["iscrowd"] for a in new["annotations"]].count(1) == 1
    last = convert(open_set(tmp_path / "voc"), "yolo", tmp_path / "yolo")
    assert last.lost == {
        "crowd regions or difficult objects": 2, "'truncated' of objects": 1,
        "'occluded' of objects": 1, "'pose' of objects": 1,
    }  # fmt: skip


def test_settings_of_reading_are_taken(folder, tmp_path, coco_kit):
    convert(open_set(folder), "voc", tmp_path / "voc")
    used = open_set(tmp_path / "voc", overrides=["data.difficult=use", "data.one_based=false"])
    convert(used, "coco", tmp_path / "back")
    new = content(tmp_path / "back", "train")
    assert not any(a["iscrowd"] for a in new["annotations"])
    assert new["annotations"][0]["bbox"] == [6, 6, 19, 9]


def test_polygons_become_segments(tmp_path):
    (tmp_path / "y/images/train").mkdir(parents=True)
    (tmp_path / "y/labels/train").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "y/images/train/a.png")
    (tmp_path / "y/labels/train/a.txt").write_text("1 0 0 0.5 0 0.5 0.5\n")
    (tmp_path / "y/data.yaml").write_text("train: images/train\nnames: [b, a]\n")
    convert(open_set(tmp_path / "y"), "coco", tmp_path / "c")
    data = content(tmp_path / "c", "train")
    assert data["annotations"] == [
        {
            "id": 1, "image_id": 1, "category_id": 2, "iscrowd": 0, "bbox": [0, 0, 30, 20],
            "area": 300, "segmentation": [[0, 0, 30, 0, 30, 20]],
        }
    ]  # fmt: skip
    assert data["categories"] == [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}]
    assert data["images"] == [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}]
    lost = convert(open_set(tmp_path / "y"), "voc", tmp_path / "v").lost
    assert lost == {"segments": 1, "areas that are not their box's": 1}


def test_boxes_that_yolo_has_no_numbers_for(folder, tmp_path, coco_kit):
    def change(data):
        data["annotations"] = [
            coco_kit.annotation(1, 10, 2, [-10, 5, 30, 10]),  # its centre is inside: kept
            coco_kit.annotation(2, 10, 2, [-40, 5, 60, 10]),  # its centre is not
            coco_kit.annotation(3, 10, 2, [70, 5, 10, 10]),
            coco_kit.annotation(4, 10, 2, [5, 5, 0, 10]),
        ]

    coco_kit.rewrite(folder, change)
    result = convert(open_set(folder, ["train"]), "yolo", tmp_path / "out")
    assert result.lost == {
        "parts of boxes that stand over the edge of their picture": 1,
        "boxes outside their picture": 1,
    }
    convert(open_set(tmp_path / "out"), "coco", tmp_path / "back")
    boxes = [a["bbox"] for a in content(tmp_path / "back", "train")["annotations"]]
    assert np.allclose(boxes, [[-10, 5, 30, 10], [0, 5, 20, 10], [5, 5, 0, 10]], atol=1e-6)


def test_names_and_folders_survive(folder, tmp_path, coco_kit):
    names = ["the 'big' one: #1", "no", "\u65e5\u672c <&>"]

    def change(data):
        for category, name in zip(data["categories"], names, strict=True):
            category["name"] = name

    for split in SPLITS:
        coco_kit.rewrite(folder, change, split)
    (folder / "train/day/images").mkdir(parents=True)
    (folder / "train/0.jpg").rename(folder / "train/day/images/\u00e4 b.jpg")
    coco_kit.rewrite(folder, lambda d: d["images"][0].update(file_name="day/images/\u00e4 b.jpg"))
    for to in ("voc", "yolo"):
        convert(open_set(folder, ["train"]), to, tmp_path / to)
        convert(open_set(tmp_path / to), "coco", tmp_path / f"{to}_back")
        new = content(tmp_path / f"{to}_back", "train")
        assert [c["name"] for c in new["categories"]] == [names[1], names[0], names[2]]
        boxes = by_name(new)["day/images/\u00e4 b.jpg"]
        assert [o[0] for o in boxes] == [names[1], names[0]]
    keys = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text(encoding="utf-8"))
    assert keys["nc"] == 3
    assert keys["train"] == "images/train"


def test_sizes_that_records_lack_come_from_the_pictures(folder, tmp_path, coco_kit):
    def change(data):
        for record in data["images"]:
            del record["width"], record["height"]

    coco_kit.rewrite(folder, change)
    there_and_back(folder, "yolo", tmp_path)
    assert_same(
        {k: [o for o in v if not o[1]] for k, v in by_name(content(folder, "train")).items()},
        by_name(content(tmp_path / "back", "train")),
        atol=1e-6,
    )


# -- what is refused ----------------------------------------------------------------------------


def rename_class(name):
    return lambda d: d["categories"][0].update(name=name)


def turn(folder):
    """The picture lies on its side; its record has the size of the stored pixels."""
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (60, 40)).save(folder / "train/0.jpg", exif=exif)


def reshape(folder):
    Image.new("RGB", (50, 50)).save(folder / "train/0.jpg")


def rename_picture(folder, coco_kit, name):
    os.link(folder / "train/0.jpg", folder / "train" / name)
    coco_kit.rewrite(folder, lambda d: d["images"][0].update(file_name=name))


REFUSED = {
    "broken": ("voc", lambda f, k: k.rewrite(f, lambda d: d["annotations"][0].pop("bbox")), "bbox"),
    "unknown image": (
        "voc", lambda f, k: k.rewrite(f, lambda d: d["annotations"][0].update(image_id=5)),
        "of image id 5",
    ),
    "missing": ("yolo", lambda f, k: (f / "train/0.jpg").unlink(), "lacks 1 of the 4", "0.jpg"),
    "classes differ": (
        "coco", lambda f, k: k.rewrite(f, rename_class("tiger")), "differ in their categories",
    ),
    "same stem": ("yolo", lambda f, k: rename_picture(f, k, "1.jpeg"), "share one file of labels"),
    "no picture's name": (
        "yolo", lambda f, k: rename_picture(f, k, "a.dat"), "a.dat", "found again",
    ),
    "hidden": ("voc", lambda f, k: rename_picture(f, k, ".a.jpg"), ".a.jpg", "found again"),
    "two of one name": (
        "voc", lambda f, k: [k.rewrite(f, rename_class("dog"), s) for s in SPLITS], "one name",
    ),
    "line break": (
        "voc", lambda f, k: [k.rewrite(f, rename_class("a\u2028b"), s) for s in SPLITS], "class 7",
    ),
    "blank name": (
        "yolo", lambda f, k: [k.rewrite(f, rename_class(" "), s) for s in SPLITS],
        "class 7 has no name",
    ),
    "turned": ("yolo", lambda f, k: turn(f), "0.jpg is turned by its EXIF orientation"),
    "another shape": ("yolo", lambda f, k: reshape(f), "0.jpg has 50 x 50 pixels", "60 x 40"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_nothing_is_written_of_what_is_refused(folder, tmp_path_factory, case, coco_kit):
    to, change, *parts = REFUSED[case]
    change(folder, coco_kit)
    base = tmp_path_factory.mktemp("out")
    with pytest.raises(ZooError) as caught:
        convert(open_set(folder), to, base / "new")
    coco_kit.one_sentence(caught, "; ", *parts)
    assert not list(base.iterdir())


def test_output_folders_that_are_not_taken(folder, tmp_path, coco_kit):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    for out in (full, full / "mine", full / "mine" / "below"):
        with pytest.raises(ZooError) as caught:
            convert(open_set(folder), "voc", out)
        coco_kit.one_sentence(caught, out)
    assert [p.name for p in full.iterdir()] == ["mine"]
    with pytest.raises(ZooError, match="no format 'txt'"):
        convert(open_set(folder), "txt", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    convert(open_set(folder), "voc", tmp_path / "empty")
    assert (tmp_path / "empty/labels.txt").is_file()


def test_a_kill_leaves_no_half_of_a_set(folder, tmp_path):
    def stop(items, total, name):
        yield from list(items)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(open_set(folder), "coco", tmp_path / "deep/out", track=stop)
    assert not list(Path(tmp_path / "deep").iterdir())


# -- finding the format -------------------------------------------------------------------------


def test_formats_are_recognised_and_chosen(folder, tmp_path, coco_kit):
    for to in ("voc", "yolo"):
        convert(open_set(folder), to, tmp_path / to)
        found = open_set(tmp_path / to)
        assert (found.format.name, list(found.splits)) == (to, ["train", "val"])
    assert open_set(folder).format.name == "coco"
    (folder / "data.yaml").write_text("train: train\nnames: [cat, dog, eel]\n")
    (folder / "train/0.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert open_set(folder).format.name == "coco"
    found = open_set(f"yolo:{folder}")
    assert (found.format.name, list(found.splits)) == ("yolo", ["train"])


def test_splits_that_are_not_there(folder, tmp_path, coco_kit, caplog):
    convert(open_set(folder), "yolo", tmp_path / "yolo")
    path = tmp_path / "yolo/data.yaml"
    path.write_text(path.read_text() + "test: images/test\n")
    assert list(open_set(tmp_path / "yolo").splits) == ["train", "val"]
    assert "test split that is not there" in caplog.text
    with pytest.raises(ZooError, match="test leads to"):
        open_set(tmp_path / "yolo", ["test"])
    convert(open_set(folder), "voc", tmp_path / "voc")
    lists = tmp_path / "voc/ImageSets/Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    assert list(open_set(tmp_path / "voc").splits) == ["val"]
    (lists / "val.txt").rename(lists / "test.txt")
    assert list(open_set(tmp_path / "voc").splits) == ["test", "trainval"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.one_based=perhaps", "data.one_based='perhaps'"),
        ("data.difficult=drop", "data.difficult=drop"),
        ("data.seed=1", "data.seed does not say how voc is read"),
        ("run.seed=1", "run does not say how voc is read"),
        ("one_based", "is not section.key=value"),
    ],
)
def test_settings_that_are_none(folder, tmp_path, coco_kit, override, words):
    convert(open_set(folder), "voc", tmp_path / "voc")
    with pytest.raises(ZooError) as caught:
        open_set(tmp_path / "voc", overrides=[override])
    coco_kit.one_sentence(caught, words)

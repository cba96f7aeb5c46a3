"""YOLO's format: layouts, lines, data.yaml, and what is wrong with each."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.ops import box_convert

from zoo.datasets.yolo import matches, open_yolo
from zoo.datasets.yolo_records import find_split, label_path, read_set
from zoo.errors import ZooError
from zoo.registry import data_spec
from zoo.types import Detections

LABELS = {"a": "0 0.25 0.25 0.5 0.25\n2 0.5 0.5 1 1\n", "b": "", "c": "1 0 0 0.5 0 0.5 0.5\n"}


def picture(path, width=60, height=40, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **more)


def write_split(folder, images, labels):
    for name, text in LABELS.items():
        picture(folder / images / f"{name}.jpg")
        if name != "b":  # a picture without a file shows nothing
            (folder / labels).mkdir(parents=True, exist_ok=True)
            (folder / labels / f"{name}.txt").write_text(text)


def set_yaml(folder, **keys):
    content = {
        "train": "images/train",
        "val": "images/val",
        "nc": 3,
        "names": ["cat", "dog", "eel"],
    }
    content = {k: v for k, v in {**content, **keys}.items() if v is not None}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def yolo(tmp_path):
    folder = tmp_path / "yolo"
    for split in ("train", "val"):
        write_split(folder, f"images/{split}", f"labels/{split}")
    set_yaml(folder)
    return folder


def config(folder, coco_kit, **more):
    return coco_kit.config(folder, **more)


def corners(sample):
    height, width = sample.meta.size
    boxes = box_convert(sample.target["boxes"], "cxcywh", "xyxy")
    return boxes * torch.tensor([width, height, width, height])


def test_a_folder_opens_as_a_source(yolo, coco_kit):
    assert data_spec("yolo").matches(yolo) is None
    source = open_yolo(config(yolo, coco_kit))
    assert (source.name, source.better) == ("yolo", "AP")
    assert source.class_names == ("cat", "dog", "eel")
    assert source.class_ids == (0, 1, 2)
    assert len(source.train) == len(source.val) == 3
    sample = source.val[0]
    assert sample.meta.path == str(yolo / "images/val/a.jpg")
    assert sample.target["labels"].tolist() == [0, 2]
    assert torch.allclose(corners(sample), torch.tensor([[0.0, 5, 30, 15], [0, 0, 60, 40]]))
    assert source.val[1].target["boxes"].shape == (0, 4)
    assert corners(source.val[2]).tolist() == [[0, 0, 30, 20]]
    assert source.val.ground_truth()["annotations"][2]["area"] == pytest.approx(300)  # a triangle
    assert source.collate([source.train[i] for i in range(3)]).inputs["pixel_values"].ndim == 4
    assert len(source.overfit(1).train) == 1


def test_perfect_predictions_score_one(yolo, coco_kit):
    """Class 0 is a category id 0, which evaluations have to be able to live with."""
    source = open_yolo(config(yolo, coco_kit))
    batch = source.collate([source.val[i] for i in range(3)])
    found = [
        Detections(corners(source.val[i]), torch.ones(n), source.val[i].target["labels"])
        for i, n in enumerate((2, 0, 1))
    ]
    evaluator = source.evaluator()
    evaluator.update(found, batch)
    evaluator.gather()
    assert evaluator.compute()["AP"] == pytest.approx(1)


LAYOUTS = {
    "../ that is not meant": ({"train": "../train/images"}, "train/images", "train/labels"),
    "path": ({"path": "sub", "train": "images"}, "sub/images", "sub/labels"),
    "beside": ({"train": "pics"}, "pics", "pics"),
    "images twice": ({"train": "images/images/t"}, "images/images/t", "images/labels/t"),
    "list of folders": ({"train": ["images/one"]}, "images/one", "labels/one"),
    "subfolders": ({"train": "images"}, "images/one/two", "labels/one/two"),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_known_layouts(tmp_path, layout, coco_kit):
    keys, images, labels = LAYOUTS[layout]
    write_split(tmp_path, images, labels)
    set_yaml(tmp_path, val=None, **keys)
    train = open_yolo(config(tmp_path, coco_kit, val_split="")).train
    records = train.records
    assert [records.path(i) for i in range(3)] == [tmp_path / images / f"{n}.jpg" for n in "abc"]
    assert [len(records.objects(i)[1]) for i in range(3)] == [2, 0, 1]


def test_a_set_in_a_folder_called_images(tmp_path, coco_kit):
    """The rule of images and labels ends at data.yaml."""
    folder = tmp_path / "images" / "cells"
    write_split(folder, "train", "train")
    set_yaml(folder, train="train", val=None)
    records = open_yolo(config(folder, coco_kit, val_split="")).train.records
    assert len(records.boxes) == 3
    assert label_path(Path("/x/images/a.jpg"), Path("/y")) == Path("/x/labels/a.txt")


def test_list_files(yolo, coco_kit, tmp_path):
    absolute = yolo / "images/val/c.jpg"
    (yolo / "lists").mkdir()
    (yolo / "lists/some.txt").write_text(f"{absolute}\n\n../images/train/a.jpg\nimages/val/b.jpg\n")
    set_yaml(yolo, train="lists/some.txt")
    files = find_split(yolo, "train")
    assert files.images == yolo / "images"
    records = open_yolo(config(yolo, coco_kit)).train.records
    assert [records.path(i).relative_to(yolo).as_posix() for i in range(3)] == [
        "images/val/c.jpg", "images/train/a.jpg", "images/val/b.jpg",
    ]  # fmt: skip
    assert [len(records.objects(i)[1]) for i in range(3)] == [1, 2, 0]


def test_other_names_of_files_and_splits(yolo, tmp_path, coco_kit):
    set_yaml(yolo, val=None, valid="images/val", night="images/train", license="MIT")
    assert sorted(read_set(yolo).splits) == ["night", "train", "valid"]
    source = open_yolo(config(yolo, coco_kit, train_split="night"))
    assert len(source.train) == len(source.val) == 3
    (yolo / "data.yaml").rename(yolo / "yolo.yaml")  # called as the folder
    assert matches(yolo) is None
    assert len(open_yolo(config(yolo / "yolo.yaml", coco_kit)).train) == 3


def test_names_may_be_a_table_or_numbers(yolo, coco_kit):
    set_yaml(yolo, names={2: "eel", 0: 7, 1: "dog"})
    assert open_yolo(config(yolo, coco_kit)).class_names == ("7", "dog", "eel")


def test_what_leads_out_is_told(yolo, tmp_path, coco_kit, caplog):
    write_split(tmp_path / "other", "images", "labels")
    for place in ("../other/images", str(tmp_path / "other/images")):
        set_yaml(yolo, train=place)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "zoo"):
            source = open_yolo(config(yolo, coco_kit))
        (record,) = caplog.records
        assert f"leads out of its folder, to {tmp_path / 'other/images'}" in record.getMessage()
        assert len(source.train.records.boxes) == 3


def test_values_are_of_the_upright_picture(yolo, coco_kit):
    exif = Image.Exif()
    exif[274] = 6
    picture(yolo / "images/val/a.jpg", exif=exif)
    val = open_yolo(config(yolo, coco_kit)).val
    assert val.records.sizes[0].tolist() == [60, 40]
    assert val[0].meta.orig_size == (60, 40)
    assert val.records.objects(0)[0][1].tolist() == [0, 0, 40, 60]


def test_rounding_is_forgiven_and_edges_are_clipped(yolo, coco_kit):
    (yolo / "labels/val/a.txt").write_text("0.0 1.00001 0.5 0.2 -0.00001\n1 0.9 0.5 0.4 0.5\n")
    val = open_yolo(config(yolo, coco_kit)).val
    boxes, labels = val.records.objects(0)
    assert labels.tolist() == [1]  # the first has no height
    assert np.allclose(boxes, [[42, 10, 60, 30]])


def set_line(line):
    return lambda f: (f / "labels/train/a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")


def keys(**values):
    return lambda f: set_yaml(f, **values)


def raw(text):
    content = text if isinstance(text, bytes) else text.encode()
    return lambda f: (f / "data.yaml").write_bytes(content)


def with_list(text):
    return lambda f: (set_yaml(f, train="t.txt"), (f / "t.txt").write_text(text))


BAD = {
    "class above": (set_line("3 0.5 0.5 0.1 0.1"), "a.txt, line 2: class 3 is not among 0..2"),
    "class below": (set_line("-1 0.5 0.5 0.1 0.1"), "a.txt, line 2: class -1 is not among"),
    "class half": (set_line("0.5 0.5 0.5 0.1 0.1"), "a.txt, line 2: class 0.5 is not among"),
    "class nan": (set_line("nan 0.5 0.5 0.1 0.1"), "a.txt, line 2: class nan is not among"),
    "class text": (set_line("cat 0.5 0.5 0.1 0.1"), "a.txt, line 2: 'cat' is not a number"),
    "text": (set_line("0 0.5 0,5 0.1 0.1"), "a.txt, line 2: '0,5' is not a number"),
    "pixels": (set_line("0 30 0.5 0.1 0.1"), "a.txt, line 2: 30 is outside 0..1"),
    "negative": (set_line("0 0.5 0.5 -0.1 0.1"), "a.txt, line 2: -0.1 is outside 0..1"),
    "nan": (set_line("0 0.5 nan 0.1 0.1"), "a.txt, line 2: nan is outside 0..1"),
    "infinite": (set_line("0 0.5 inf 0.1 0.1"), "a.txt, line 2: inf is outside 0..1"),
    "polygon": (set_line("0 0.5 0.5 0.1 0.1 1.5 0.1"), "a.txt, line 2: 1.5 is outside 0..1"),
    "four": (set_line("0 0.5 0.5 0.1"), "a.txt, line 2 has 4 values"),
    "with a score": (set_line("0 0.5 0.5 0.1 0.1 0.9"), "a.txt, line 2 has 6 values"),
    "odd polygon": (set_line("0 0.5 0.5 0.1 0.1 0.9 0.1 0.2"), "a.txt, line 2 has 8 values"),
    "not a text": (
        lambda f: (f / "labels/train/a.txt").write_bytes(b"\xff\xfe0"), "a.txt is not a text",
    ),
    "large": (
        lambda f: (f / "labels/train/a.txt").write_bytes(b"\n" * (16 * 2**20 + 1)),
        "a.txt has more than 16777216 bytes",
    ),
    "no labels": (
        lambda f: (f / "labels/train").rename(f / "labels/old"),
        "none of the 3 pictures", "labels/train/a.txt",
    ),
    "yaml": (raw("names: [a\ntrain: {"), "data.yaml, line 2 is not readable YAML"),
    "code": (raw("names: !!python/object/apply:os.getcwd []"), "data.yaml, line 1 is not readable"),
    "a list": (raw("- 1\n"), "data.yaml holds no keys"),
    "empty": (raw(""), "data.yaml holds no keys"),
    "yaml bytes": (raw(b"names: \xff"), "data.yaml is not a text"),
    "yaml size": (raw("#" * (2**20 + 1)), "data.yaml has more than"),
    "no names": (keys(names=None), "data.yaml has no names"),
    "empty names": (keys(names=[]), "data.yaml has no names"),
    "Norway": (keys(names=["se", False, "dk"]), "names[1] is False"),
    "blank": (keys(names=["se", " ", "dk"]), "names[1] is ' '"),
    "lists as names": (keys(names=["se", ["no"], "dk"]), "names[1] is no text"),
    "gap": (keys(names={0: "a", 1: "b", 3: "c"}), "names are not 0..2"),
    "text keys": (keys(names={"0": "a", "1": "b", "2": "c"}), "names are not 0..2"),
    "nc": (keys(nc=4), "nc is 4 where names has 3"),
    "nc text": (keys(nc="three"), "nc is three"),
    "nc list": (keys(nc=[3]), "nc is list"),
    "path": (keys(path=["x"]), "path is a list"),
    "no train": (keys(train=None), "has no split 'train'", "splits that it has: val"),
    "no place": (keys(train={"a": 1}), "train is no place"),
    "place not there": (keys(train="images/new"), "train leads to", "images/new", "not there"),
    "no pictures": (
        lambda f: (set_yaml(f, train="images/new"), (f / "images/new").mkdir()),
        "images/new, which has no picture",
    ),
    "keypoints": (keys(kpt_shape=[17, 3]), "kpt_shape"),
    "list": (
        with_list("images/val/a.jpg\nno\n"),
        "t.txt, line 2: 'no' is not a picture's name",
    ),
    "listed picture": (
        with_list("images/train/a.jpg\nx.png"), "lacks 1 of the 2 pictures", "x.png",
    ),
    "unreadable": (
        lambda f: (f / "images/train/a.jpg").write_bytes(b"no"), "a.jpg is not a picture",
    ),
    "no file": (lambda f: (f / "data.yaml").unlink(), "has no data.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_told_in_one_sentence(yolo, case, coco_kit):
    change, *parts = BAD[case]
    change(yolo)
    with pytest.raises(ZooError) as caught:
        open_yolo(config(yolo, coco_kit))
    coco_kit.one_sentence(caught, yolo, "; ", *parts)


def test_a_bomb_of_aliases_is_not_printed(yolo, coco_kit):
    text = "a: &a [x, x]\n"
    for before, name in zip("abcdefghijklmnopqrs", "bcdefghijklmnopqrst", strict=True):
        text += f"{name}: &{name} [*{before}, *{before}]\n"
    raw(f"{text}names: [cat, *t]\ntrain: *t\n")(yolo)
    with pytest.raises(ZooError) as caught:
        open_yolo(config(yolo, coco_kit))
    coco_kit.one_sentence(caught, "names[1] is no text")
    assert len(str(caught.value)) < 300


def test_folders_that_are_none(tmp_path, coco_kit):
    with pytest.raises(ZooError, match="no data folder"):
        open_yolo(config(tmp_path / "nowhere", coco_kit))
    assert matches(tmp_path) == "data.yaml or dataset.yaml"


def test_unreadable_pictures_may_be_skipped(yolo, coco_kit):
    for split in ("train", "val"):
        (yolo / f"images/{split}/a.jpg").write_bytes(b"no")
    source = open_yolo(config(yolo, coco_kit, on_error="skip"))
    assert Path(source.train[0].meta.path).name == "b.jpg"
    assert "unreadable" in source.val[0].meta.extra
    # What it shows is still looked for.
    assert len(source.val.ground_truth()["annotations"]) == 3

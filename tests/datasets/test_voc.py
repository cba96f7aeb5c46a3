"""Pascal VOC's format: layouts, what its numbers mean, and what is wrong with a file."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

from zoo.datasets.voc import VocConfig, matches, open_voc
from zoo.datasets.voc_records import class_names, find_split, parse
from zoo.errors import ZooError
from zoo.registry import data_spec
from zoo.types import Detections


def an_object(name, box, extra=""):
    corners = "".join(
        f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def document(*objects, filename="x.jpg", size="<size><width>60</width><height>40</height></size>"):
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def picture(path, width=60, height=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


DOCUMENTS = {
    "a": document(an_object("dog", (6, 6, 25, 15)), an_object("cat", (31, 11, 50, 35))),
    "b": document(an_object("eel", (1, 1, 60, 40), "<difficult>1</difficult>")),
    "c": document(),
}


def write(folder: Path, xml="Annotations", images="JPEGImages", lists=("train", "val")):
    for name, text in DOCUMENTS.items():
        (folder / xml).mkdir(parents=True, exist_ok=True)
        (folder / xml / f"{name}.xml").write_text(text)
        picture(folder / images / f"{name}.jpg")
    for split in lists:
        (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (folder / f"ImageSets/Main/{split}.txt").write_text("a\nb\n\nc\n")
    return folder


@pytest.fixture
def voc(tmp_path):
    return write(tmp_path / "voc")


def config(folder, coco_kit, **more):
    return VocConfig(folder=str(folder), augment=coco_kit.small, **more)


def corners(sample):
    height, width = sample.meta.size
    boxes = box_convert(sample.target["boxes"], "cxcywh", "xyxy")
    return boxes * torch.tensor([width, height, width, height])


def test_a_folder_opens_as_a_source(voc, coco_kit):
    spec = data_spec("voc")
    assert spec.matches(voc) is None
    source = open_voc(config(voc, coco_kit))
    assert (source.name, source.better) == ("voc", "AP")
    assert source.class_names == ("cat", "dog", "eel")
    assert source.class_ids == (1, 2, 3)
    assert len(source.train) == len(source.val) == 3
    sample = source.val[0]
    assert sample.meta.path == str(voc / "JPEGImages/a.jpg")
    assert sample.meta.orig_size == (40, 60)
    assert sample.target["labels"].tolist() == [1, 0]
    # Pixels count from 1 and the last is inside: 6..25 are 20 pixels from 5 on.
    assert torch.allclose(corners(sample), torch.tensor([[5.0, 5, 25, 15], [30, 10, 50, 35]]))
    assert source.val[2].target["boxes"].shape == (0, 4)
    source.train.set_epoch(3)
    assert source.collate([source.train[i] for i in range(3)]).inputs["pixel_values"].ndim == 4
    assert len(source.overfit(1).train) == 1


def test_difficult_objects_are_ignored_or_used(voc, coco_kit):
    source = open_voc(config(voc, coco_kit))
    assert source.val[1].target["labels"].tolist() == []
    (eel,) = [a for a in source.val.ground_truth()["annotations"] if a["category_id"] == 3]
    assert (eel["iscrowd"], eel["bbox"]) == (1, [0, 0, 60, 40])
    used = open_voc(config(voc, coco_kit, difficult="use"))
    assert used.val[1].target["labels"].tolist() == [2]
    assert not any(a["iscrowd"] for a in used.val.ground_truth()["annotations"])


def test_a_detection_in_a_difficult_object_is_not_wrong(voc, coco_kit):
    def ap50(difficult):
        source = open_voc(config(voc, coco_kit, difficult=difficult))
        batch = source.collate([source.val[i] for i in range(3)])
        found = [
            Detections(
                torch.tensor([[5.0, 5, 25, 15], [30, 10, 50, 35]]), torch.tensor([0.8, 0.8]),
                torch.tensor([1, 0]),
            ),
            # Half of the eel as a dog that is surer than the true one, and as an eel.
            Detections(torch.tensor([[0.0, 0, 25, 40]]), torch.tensor([0.9]), torch.tensor([2])),
            Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)),
        ]  # fmt: skip
        evaluator = source.evaluator()
        evaluator.update(found, batch)
        evaluator.gather()
        return evaluator.compute()["AP50"]

    assert ap50("ignore") == pytest.approx(1)  # of dog and cat: there is no eel to find
    assert ap50("use") == pytest.approx(2 / 3)


def test_sets_that_count_from_zero(voc, coco_kit):
    source = open_voc(config(voc, coco_kit, one_based=False))
    assert torch.allclose(
        corners(source.val[0]), torch.tensor([[6.0, 6, 25, 15], [31, 11, 50, 35]])
    )


@pytest.mark.parametrize(
    ("xml", "images", "lists", "split"),
    [
        ("Annotations", "JPEGImages", ["train"], "train"),
        ("Annotations", "JPEGImages", ["trainval"], "trainval"),
        ("annotations", "images", ["valid"], "val"),
        ("train/Annotations", "train/JPEGImages", [], "train"),
        ("valid/annotations", "valid/images", [], "val"),
        ("train", "train", [], "train"),
    ],
)
def test_known_layouts(tmp_path, xml, images, lists, split, coco_kit):
    write(tmp_path, xml, images, lists)
    assert matches(tmp_path) is None
    source = open_voc(config(tmp_path, coco_kit, train_split=split, val_split=""))
    assert [Path(source.train[i].meta.path).name for i in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert source.class_names == ("cat", "dog", "eel")
    assert find_split(tmp_path, split).images == tmp_path / images


def test_a_list_chooses_and_orders(voc, coco_kit):
    (voc / "ImageSets/Main/val.txt").write_text("c\r\na\r\n")
    source = open_voc(config(voc, coco_kit))
    assert [Path(source.val[i].meta.path).stem for i in range(2)] == ["c", "a"]
    assert source.val[1].meta.image_id == 2
    # Classes are those of the whole set, so that the splits agree.
    assert source.class_names == ("cat", "dog", "eel")
    assert open_voc(config(voc, coco_kit, train_split="")).class_names == source.class_names


def test_a_labels_file_rules_the_order(voc, coco_kit):
    (voc / "labels.txt").write_text("dog\nwolf\neel\ncat\n")
    source = open_voc(config(voc, coco_kit))
    assert source.class_names == ("dog", "wolf", "eel", "cat")
    assert source.val[0].target["labels"].tolist() == [0, 3]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("", [40, 60]),
        ("<size><width>0</width><height>0</height><depth/></size>", [40, 60]),
        ("<size><width>120.0</width><height>80</height></size>", [80, 120]),
    ],
)
def test_the_size_is_the_files_or_the_pictures(voc, size, expected, coco_kit):
    (voc / "Annotations/a.xml").write_text(document(an_object("dog", (1, 1, 9, 9)), size=size))
    source = open_voc(config(voc, coco_kit))
    assert source.val.records.sizes[0].tolist() == expected
    assert source.val[0].meta.orig_size == tuple(expected)  # a picture at another scale is scaled


def test_pictures_are_found_by_the_files_name_then_by_filename(voc, coco_kit):
    (voc / "JPEGImages/a.jpg").rename(voc / "JPEGImages/a.png.jpeg")
    text = DOCUMENTS["a"].replace("x.jpg", "C:\\data\\a.png.jpeg")
    (voc / "Annotations/a.xml").write_text(text)
    picture(voc / "JPEGImages/x.jpg")  # what b's stale filename says
    val = open_voc(config(voc, coco_kit)).val
    assert [Path(val[i].meta.path).name for i in range(2)] == ["a.png.jpeg", "b.jpg"]


def test_boxes_over_the_edge_are_clipped_and_told(voc, coco_kit, caplog):
    boxes = [(0, -9, 20, 10), (70, 5, 80, 10)]
    (voc / "Annotations/a.xml").write_text(document(*(an_object("dog", b) for b in boxes)))
    with caplog.at_level(logging.WARNING, "zoo"):
        val = open_voc(config(voc, coco_kit, train_split="")).val
    assert corners(val[0]).tolist() == [[0, 0, 20, 10]]
    (record,) = caplog.records
    assert f"left out: 1 (first: {voc / 'Annotations/a.xml'}, object 2)" in record.getMessage()


def set_text(text):
    return lambda folder: (folder / "Annotations/b.xml").write_text(text)


def with_box(*box):
    return set_text(document(an_object("dog", (1, 1, 9, 9)), an_object("dog", box)))


LAUGHS = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]>'

BAD = {
    "broken": (set_text("<annotation>\n <size>"), "b.xml: broken XML in line 2, column"),
    "empty": (set_text(""), "b.xml: broken XML"),
    "entities": (set_text(LAUGHS + document()), "b.xml: it declares a document type"),
    "entities in UTF-16": (
        lambda f: (f / "Annotations/b.xml").write_bytes((LAUGHS + document()).encode("utf-16")),
        "b.xml: it declares a document type",
    ),
    "encoding": (set_text('<?xml version="1.0" encoding="x-no"?><annotation/>'), "b.xml"),
    "large": (
        lambda f: (f / "Annotations/b.xml").write_bytes(b" " * (16 * 2**20 + 1)),
        "b.xml has more than 16777216 bytes",
    ),
    "another root": (set_text("<html/>"), "b.xml: its root is <html>"),
    "no name": (set_text(document(an_object(" ", (1, 1, 9, 9)))), "b.xml, object 1 has no name"),
    "no box": (set_text(document("<object><name>dog</name></object>")), "object 1 has a bndbox of"),
    "text": (with_box(1, 2, "x", 4), "b.xml, object 2 has a bndbox of", "xmax 'x'"),
    "nan": (with_box(1, "nan", 3, 4), "object 2 has a bndbox of", "ymin 'nan'"),
    "infinite": (with_box(1, 1, "inf", 4), "object 2 has a bndbox of"),
    "exchanged": (with_box(9, 1, 3, 4), "object 2 has a bndbox (9, 1, 3, 4) that ends before"),
    "flag": (
        set_text(document(an_object("dog", (1, 1, 9, 9), "<difficult>yes</difficult>"))),
        "object 1 has difficult 'yes'",
    ),
    "size": (
        set_text(document(size="<size><width>wide</width><height>4</height></size>")),
        "b.xml has a size of height '4' and width 'wide'",
    ),
    "half a size": (set_text(document(size="<size><width>60</width></size>")), "height '0'"),
    "no file": (
        lambda f: (f / "Annotations/b.xml").unlink(), "train.txt: 'b' has no file", "Annotations",
    ),
    "no picture": (lambda f: (f / "JPEGImages/b.jpg").unlink(), "lacks 1 of the 3", "b.jpg"),
    "a picture outside": (
        lambda f: (
            set_text(document(filename="../x.jpg"))(f), picture(f / "x.jpg"),
            (f / "JPEGImages/b.jpg").unlink(),
        ),
        "lacks 1 of the 3", "b.jpg",
    ),
    "twice": (
        lambda f: (f / "ImageSets/Main/train.txt").write_text("a\nb\na\n"),
        "train.txt, line 3: 'a' stands there twice",
    ),
    "up": (
        lambda f: (f / "ImageSets/Main/train.txt").write_text("a\n../../b\n"),
        "train.txt, line 2: '../../b' leads out of the set",
    ),
    "absolute": (
        lambda f: (f / "ImageSets/Main/train.txt").write_text("/etc/passwd\n"), "train.txt, line 1",
    ),
    "not a text": (
        lambda f: (f / "ImageSets/Main/train.txt").write_bytes(b"a\n\xff\xfe"), "train.txt",
        "UTF-8",
    ),
    "unknown class": (
        lambda f: (f / "labels.txt").write_text("dog\ncat\n"),
        "b.xml, object 1 is of the class 'eel'",
    ),
    "class twice": (
        lambda f: (f / "labels.txt").write_text("dog\ncat\ndog\n"), "labels.txt, line 3", "'dog'",
    ),
    "no class line": (
        lambda f: (f / "labels.txt").write_text("dog\n\ncat\n"), "labels.txt, line 2",
    ),
    "no pictures": (
        lambda f: (f / "JPEGImages").rename(f / "Pictures"), "has no folder of pictures",
    ),
    "no split": (
        lambda f: (f / "ImageSets/Main/train.txt").unlink(), "split 'train'",
        "splits that are there: val",
    ),
    "another shape": (
        set_text(document(size="<size><width>50</width><height>50</height></size>")),
        "b.jpg has 60 x 40 pixels", "50 x 50",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_told_in_one_sentence(voc, case, coco_kit):
    change, *parts = BAD[case]
    change(voc)

    def read():
        source = open_voc(config(voc, coco_kit))
        return [source.train[i] for i in range(3)]

    with pytest.raises(ZooError) as caught:
        read()
    coco_kit.one_sentence(caught, voc, "; ", *parts)


def test_sets_without_a_class(tmp_path, coco_kit):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.xml").write_text(document())
    picture(tmp_path / "train/a.jpg")
    with pytest.raises(ZooError) as caught:
        open_voc(config(tmp_path, coco_kit, val_split=""))
    coco_kit.one_sentence(caught, "no object names a class", "labels.txt")


def test_folders_that_are_none(tmp_path, coco_kit):
    with pytest.raises(ZooError, match="no data folder"):
        open_voc(config(tmp_path / "nowhere", coco_kit))
    assert "ImageSets/Main/train.txt" in matches(tmp_path)
    (tmp_path / ".idea").mkdir()
    (tmp_path / ".idea/a.xml").write_text("<x/>")
    assert matches(tmp_path) is not None
    with pytest.raises(ZooError, match=r"data\.difficult=drop"):
        VocConfig(difficult="drop")
    with pytest.raises(ZooError, match=r"data\.on_error=ignore"):
        VocConfig(on_error="ignore")


def test_unreadable_pictures_and_missing_ones_may_be_skipped(voc, coco_kit):
    (voc / "JPEGImages/a.jpg").write_bytes(b"no")
    (voc / "JPEGImages/b.jpg").unlink()
    source = open_voc(config(voc, coco_kit, on_error="skip"))
    assert len(source.train) == 2
    assert [Path(source.train[i].meta.path).name for i in range(2)] == ["c.jpg", "c.jpg"]
    assert "unreadable" in source.val[0].meta.extra
    assert len(source.val.ground_truth()["images"]) == 3


def test_parts_are_no_objects_and_comments_may_say_anything(voc, coco_kit):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    text = f"<!-- <!DOCTYPE a> -->{document(an_object('dog', (1, 1, 9, 9), part))}"
    (voc / "Annotations/a.xml").write_text(text)
    assert parse(voc / "Annotations/a.xml").tag == "annotation"
    assert class_names(voc) == ("dog", "eel")
    assert len(open_voc(config(voc, coco_kit)).val[0].target["boxes"]) == 1


@pytest.mark.data
def test_the_original_of_the_blood_cells_reads_as_its_conversion(shared_data, tmp_path, coco_kit):
    """The COCO file was made from VOC's with other code; written back, it reads the same."""
    truth = json.loads((shared_data / "bccd/annotations/instances_val.json").read_text())
    names = {c["id"]: c["name"] for c in truth["categories"]}
    for image in truth["images"][:20]:
        objects = [
            an_object(names[a["category_id"]], (x + 1, y + 1, x + w, y + h))
            for a in truth["annotations"]
            if a["image_id"] == image["id"]
            for x, y, w, h in [a["bbox"]]
        ]
        size = "<size><width>640</width><height>480</height></size>"
        (tmp_path / "val").mkdir(exist_ok=True)
        stem = image["file_name"].removesuffix(".jpg")
        (tmp_path / f"val/{stem}.xml").write_text(document(*objects, size=size))
        (tmp_path / f"val/{stem}.jpg").symlink_to(shared_data / "bccd/val" / image["file_name"])
    read = open_voc(config(tmp_path, coco_kit, train_split="")).val.ground_truth()
    assert [im["file_name"] for im in read["images"]] == [
        im["file_name"] for im in truth["images"][:20]
    ]
    by_name = {im["id"]: im["file_name"] for im in truth["images"]}
    expected = [
        (by_name[a["image_id"]], a["bbox"])
        for a in truth["annotations"]
        if a["image_id"] in {im["id"] for im in truth["images"][:20]}
    ]
    files = {im["id"]: im["file_name"] for im in read["images"]}
    assert [(files[a["image_id"]], a["bbox"]) for a in read["annotations"]] == expected

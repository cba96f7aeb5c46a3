"""FUNSD, CORD and SROIE: their own formats in small, and the real forms."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.datasets import cord_records, funsd_records, sroie_records
from zoo.datasets.cord_records import read_cord
from zoo.datasets.document_records import read_ids
from zoo.datasets.funsd_records import read_funsd
from zoo.datasets.ser_eval import entities
from zoo.datasets.sroie_records import read_sroie, share_out
from zoo.errors import ZooError


def picture(path: Path, size=(200, 100)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0]), 255, dtype=np.uint8)).save(path)


def put(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def one_sentence(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def entity(number, label, *words):
    return {
        "id": number, "label": label, "linking": [], "box": [0, 0, 1, 1], "text": "",
        "words": [{"text": text, "box": box} for text, box in words],
    }  # fmt: skip


FORM = {
    "form": [
        entity(0, "question", ("Date:", [10, 10, 40, 20])),
        entity(1, "answer", ("9/", [50, 10, 60, 20]), (" ", [0, 0, 9, 9]), ("92", [62, 8, 75, 21])),
        entity(2, "other", ("page", [150, 80, 230, 120])),
        entity(3, "header", ("", [0, 0, 5, 5])),
    ]
}  # fmt: skip


def write_funsd(folder: Path, part="training_data", form=None) -> Path:
    put(folder / part / "annotations" / "f1.json", form or FORM)
    picture(folder / part / "images" / "f1.png")
    return folder / part / "annotations" / "f1.json"


def test_funsd_as_it_unpacks(tmp_path, caplog):
    write_funsd(tmp_path)
    assert funsd_records.matches(tmp_path) is None
    (form,) = read_funsd(tmp_path, "train")
    assert form.page.words == ("Date:", "9/", "92", "page")
    assert form.tags == ("B-QUESTION", "B-ANSWER", "I-ANSWER", "O")
    assert form.page.lines == (0, 1, 1, 2)
    assert form.page.boxes[2:] == ((62, 8, 75, 21), (150, 80, 200, 100))  # clipped to the page
    [told] = [r.getMessage() for r in caplog.records]
    assert told.startswith(
        f"{tmp_path}, split train: 1 of 4 boxes were over their page or inverted"
    )
    assert told.endswith("f1.json, entity 2)")
    assert form.document.image == tmp_path / "training_data" / "images" / "f1.png"
    write_funsd(tmp_path, "testing_data")
    assert len(read_funsd(tmp_path, "val")) == len(read_funsd(tmp_path, "test")) == 1
    assert funsd_records.TAG_NAMES == (
        "O", "B-HEADER", "I-HEADER", "B-QUESTION", "I-QUESTION", "B-ANSWER", "I-ANSWER",
    )  # fmt: skip


def test_a_folder_of_forms_needs_lists(tmp_path):
    write_funsd(tmp_path, ".")
    with pytest.raises(ZooError) as caught:
        read_funsd(tmp_path, "train")
    one_sentence(caught, "does not say which pages are of the split 'train'", "train.txt")
    put(tmp_path / "train.txt", "# pages\nf1\n\n")
    assert funsd_records.matches(tmp_path) is None
    assert len(read_funsd(tmp_path, "train")) == 1
    put(tmp_path / "train.txt", "f1\nf2\n")
    with pytest.raises(ZooError, match=r"there is no annotation .*f2\.json; restore it"):
        read_funsd(tmp_path, "train")
    put(tmp_path / "train.txt", "# none\n")
    with pytest.raises(ZooError, match="has no page"):
        read_funsd(tmp_path, "train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda e: e.update(label="anwser"),
            "entity 1 has the label 'anwser'; did you mean answer",
        ),
        (lambda e: e.pop("label"), "entity 1 has the label None"),
        (lambda e: e.pop("words"), "entity 1 has no list 'words'"),
        (lambda e: e["words"].append({"box": [1, 2, 3, 4]}), "entity 1 has the word"),
        (lambda e: e["words"][0].update(box=[1, 2, 3]), "entity 1 has the box [1, 2, 3]"),
        (lambda e: e["words"][0].update(box=[1, 2, 3, None]), "entity 1 has the box"),
        (lambda e: e["words"][0].update(box=[1, 2, 3, float("nan")]), "entity 1 has the box"),
    ],
)
def test_bad_forms_are_named(tmp_path, change, words):
    form = json.loads(json.dumps(FORM))
    change(form["form"][1])
    path = write_funsd(tmp_path, form=form)
    with pytest.raises(ZooError) as caught:
        read_funsd(tmp_path, "train")
    one_sentence(caught, path, words)


def test_broken_and_missing_forms(tmp_path):
    assert "training_data/annotations/" in str(funsd_records.matches(tmp_path))
    with pytest.raises(ZooError) as caught:
        read_funsd(tmp_path, "train")
    one_sentence(caught, tmp_path, "guillaumejaume.github.io/FUNSD", "non-commercial")
    path = write_funsd(tmp_path, form='{"form": [}')
    with pytest.raises(ZooError, match="line 1, column 11: broken JSON"):
        read_funsd(tmp_path, "train")
    put(path, [])
    with pytest.raises(ZooError, match="has no list 'form'"):
        read_funsd(tmp_path, "train")
    put(path, FORM)
    (tmp_path / "training_data" / "images" / "f1.png").unlink()
    with pytest.raises(ZooError, match=r"has no picture f1\.png or \.jpg"):
        read_funsd(tmp_path, "train")


@pytest.mark.data
@pytest.mark.parametrize(
    ("split", "pages", "words", "counts"),
    [
        ("train", 120, 18054, {"QUESTION": 2717, "ANSWER": 2246, "HEADER": 374}),
        ("val", 29, 3834, {"QUESTION": 549, "ANSWER": 556, "HEADER": 67}),
    ],
)
def test_real_forms(split, pages, words, counts, shared_data):
    folder = shared_data / "funsd"
    ids = read_ids(shared_data / "convert" / "splits" / f"funsd_{split}.txt")
    forms = read_funsd(folder, split, ids)
    assert len(forms) == pages
    empty = Counter()
    for form in forms:
        content = json.loads(
            (folder / "annotations" / f"{form.document.document_id}.json").read_text()
        )
        for e in content["form"]:
            if not any(w["text"].strip() for w in e["words"]):
                empty[e["label"].upper()] += 1
    found = Counter(name for form in forms for name, _, _ in entities(form.tags))
    assert {name: found[name] + empty[name] for name in counts} == counts
    assert sum(len(form.page) for form in forms) == words


def quad(x1, y1, x2, y2):
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y1, "x3": x2, "y3": y2, "x4": x1, "y4": y2}


def line(category, *words):
    return {
        "category": category, "group_id": 1,
        "words": [{"text": t, "quad": q, "is_key": 0, "row_id": 1} for t, q in words],
    }  # fmt: skip


RECEIPT = {
    "valid_line": [
        line("menu.nm", ("Iced", quad(10, 10, 40, 20)), ("Tea", quad(45, 10, 60, 20))),
        line("menu.price", ("9.00", quad(160, 20, 120, -5)), ("", quad(0, 0, 1, 1))),
        line("other", ("thanks", quad(10, 50, 60, 60))),
    ],
    "gt_parse": {},
}


def write_cord(folder: Path, split="train", content=None) -> Path:
    path = folder / split / "json" / "receipt_00000.json"
    put(path, content or RECEIPT)
    picture(folder / split / "image" / "receipt_00000.png")
    return path


def test_cord_as_it_unpacks(tmp_path, caplog):
    write_cord(tmp_path)
    assert cord_records.matches(tmp_path) is None
    (receipt,) = read_cord(tmp_path, "train")
    assert receipt.page.words == ("Iced", "Tea", "9.00", "thanks")
    assert receipt.tags == ("B-MENU.NM", "I-MENU.NM", "B-MENU.PRICE", "O")
    assert receipt.page.boxes[2] == (120, 0, 160, 20)  # corners swapped, one over the edge
    assert "split train: 1 of 4 boxes were over their page or inverted, and were" in caplog.text
    assert "receipt_00000.json, valid_line[1])" in caplog.text
    assert receipt.page.lines == (0, 0, 1, 2)
    assert len(cord_records.CATEGORIES) == 30
    assert len(cord_records.TAG_NAMES) == 61
    write_cord(tmp_path, "dev")
    assert len(read_cord(tmp_path, "val")) == 1
    with pytest.raises(ZooError) as caught:
        read_cord(tmp_path, "test")
    one_sentence(caught, "looked for test/json", "github.com/clovaai/cord", "CC BY 4.0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["valid_line"][1].update(category="menu.prise"),
         "valid_line[1] has the category 'menu.prise'; did you mean menu.price"),
        (lambda r: r["valid_line"][1].pop("words"), "valid_line[1] has no list 'words'"),
        (lambda r: r["valid_line"][1]["words"][0]["quad"].pop("x3"), "valid_line[1] has the box"),
        (lambda r: r["valid_line"].append(7), "valid_line[3] has the category None"),
        (lambda r: r.pop("valid_line"), "has no list 'valid_line'"),
    ],
)  # fmt: skip
def test_bad_receipts_of_cord_are_named(tmp_path, change, words):
    content = json.loads(json.dumps(RECEIPT))
    change(content)
    path = write_cord(tmp_path, content=content)
    with pytest.raises(ZooError) as caught:
        read_cord(tmp_path, "train")
    one_sentence(caught, path, words)


def test_broken_and_missing_receipts_of_cord(tmp_path):
    assert "CORD" in str(cord_records.matches(tmp_path))
    path = write_cord(tmp_path, content='{"valid_line": [}')
    with pytest.raises(ZooError, match="line 1, column 17: broken JSON"):
        read_cord(tmp_path, "train")
    path.unlink()
    with pytest.raises(ZooError, match="has no annotation"):
        read_cord(tmp_path, "train")
    write_cord(tmp_path)
    (tmp_path / "train" / "image" / "receipt_00000.png").unlink()
    with pytest.raises(ZooError, match=r"has no picture receipt_00000\.png"):
        read_cord(tmp_path, "train")


BOXES = """10,5,190,5,190,15,10,15,ACME LTD, KUALA LUMPUR
10,20,100,20,100,30,10,30,Tea 9.00
10,35,100,35,100,45,10,45,TOTAL 9.00

10,50,100,50,100,60,10,60,DATE: 12/03/2018
"""
KEYS = {"company": "ACME LTD", "date": "12/03/2018", "total": "9.00", "address": "ELSEWHERE 5"}


def write_sroie(folder: Path, split="train", boxes=BOXES, keys=None) -> None:
    picture(folder / split / "img" / "X1.jpg")
    put(folder / split / "box" / "X1.txt", boxes)
    put(folder / split / "entities" / "X1.txt", keys or KEYS)


def test_sroie_fields_become_tags_and_lost_ones_are_told(tmp_path, caplog):
    write_sroie(tmp_path)
    assert sroie_records.matches(tmp_path) is None
    with caplog.at_level(logging.WARNING, "zoo"):
        (receipt,) = read_sroie(tmp_path, "train")
    tagged = {w: t for w, t in zip(receipt.page.words, receipt.tags, strict=True) if t != "O"}
    assert tagged == {
        "ACME": "B-COMPANY", "LTD,": "I-COMPANY", "9.00": "B-TOTAL", "12/03/2018": "B-DATE",
    }  # fmt: skip
    assert receipt.tags[5] == "O"  # the price of the tea, on the line without the word "total"
    assert receipt.page.words[5] == "9.00"
    assert receipt.fields == KEYS
    assert "1 of 4 labels are not in the transcript" in caplog.text
    assert "receipt X1, address" in caplog.text
    assert receipt.page.lines == (0, 0, 0, 0, 1, 1, 2, 2, 4, 4)
    write_sroie(tmp_path, "test")
    assert len(read_sroie(tmp_path, "val")) == 1


def test_a_line_is_shared_out_by_characters():
    assert share_out(" ab  c ", (10.0, 0.0, 20.0, 5.0)) == [
        ("ab", (10.0, 0.0, 14.0, 5.0)),
        ("c", (18.0, 0.0, 20.0, 5.0)),
    ]
    assert share_out("a a", (0.0, 0.0, 3.0, 1.0))[1] == ("a", (2.0, 0.0, 3.0, 1.0))
    assert share_out("  ", (0.0, 0.0, 3.0, 1.0)) == []


@pytest.mark.data
def test_real_receipts(tmp_path, shared_data, caplog):
    """The real transcripts, put back into SROIE's own arrangement of lines."""
    real = shared_data / "sroie_qa"
    ids = read_ids(shared_data / "convert" / "splits" / "sroie_val.txt")
    (tmp_path / "documents").symlink_to(real / "documents")
    (tmp_path / "keys").symlink_to(real / "keys")
    theirs = {}
    for name in ids:
        content = json.loads((real / "ocr" / f"{name}.json").read_text(encoding="utf-8"))
        lines = content["recognitionResults"][0]["lines"]
        rows = [",".join([*map(str, e["boundingBox"]), e["text"]]) for e in lines]
        put(tmp_path / "box" / f"{name}.txt", "\n".join(rows))
        theirs[name] = [(w["text"], w["boundingBox"]) for e in lines for w in e["words"]]
    with caplog.at_level(logging.WARNING, "zoo"):
        receipts = read_sroie(tmp_path, "val", ids)
    assert len(receipts) == 40
    assert sum(len(receipt.fields) for receipt in receipts) == 160
    for receipt in receipts:
        known = theirs[receipt.document.document_id]
        assert receipt.page.words == tuple(text for text, _ in known)
        ours = np.array(receipt.page.boxes)
        wanted = np.array([[b[0], b[1], b[4], b[5]] for _, b in known])
        assert np.abs(ours - wanted).max() <= 1.0  # theirs are whole pixels
    tagged = sum(len(entities(receipt.tags)) for receipt in receipts)
    lost = [r.getMessage() for r in caplog.records]
    assert tagged >= 158
    assert tagged == 160 if not lost else f": {160 - tagged} of 160 labels are not" in lost[0]


def test_transcripts_in_latin_1_and_other_layouts(tmp_path):
    picture(tmp_path / "images" / "X1.png")
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "X1.txt").write_bytes("1,1,50,1,50,9,1,9,CAF\u00c9".encode("latin-1"))
    put(tmp_path / "key" / "X1.json", {"company": "CAF\u00c9"})
    with pytest.raises(ZooError, match="does not say which receipts"):
        read_sroie(tmp_path, "train")
    put(tmp_path / "train.txt", "X1\n")
    assert sroie_records.matches(tmp_path) is None
    (receipt,) = read_sroie(tmp_path, "train")
    assert receipt.page.words == ("CAF\u00c9",)
    assert receipt.tags == ("B-COMPANY",)


@pytest.mark.parametrize(
    ("boxes", "keys", "words"),
    [
        ("1,2,3,4,5,6,7,ACME\n", None, "X1.txt, line 1: '1,2,3,4,5,6,7,ACME' is not x1,y1"),
        ("\nwords\n", None, "X1.txt, line 2: 'words' is not x1,y1"),
        (BOXES, {"compnay": "A"}, "X1.txt has the field 'compnay'; did you mean company"),
        (BOXES, {"total": 9}, "X1.txt has the total 9; give a text"),
        (BOXES, "[1]", "X1.txt is no JSON object"),
        (BOXES, '{"total": ', "line 1, column 11: broken JSON"),
    ],
)
def test_bad_receipts_of_sroie_are_named(tmp_path, boxes, keys, words):
    write_sroie(tmp_path, boxes=boxes, keys=keys)
    with pytest.raises(ZooError) as caught:
        read_sroie(tmp_path, "train")
    one_sentence(caught, words)


def test_boxes_of_sroie_are_mended_and_told(tmp_path, caplog):
    write_sroie(tmp_path, boxes="190,1,250,1,250,9,190,9,ACME\n1,1,9,1,9,9,1,9,B\n")
    (receipt,) = read_sroie(tmp_path, "train")
    assert receipt.page.boxes[0] == (190, 1, 200, 9)
    assert "split train: 1 of 2 boxes were over their page or inverted" in caplog.text
    assert "X1.txt, line 1)" in caplog.text


def test_missing_files_of_sroie(tmp_path):
    assert "SROIE" in str(sroie_records.matches(tmp_path))
    with pytest.raises(ZooError) as caught:
        read_sroie(tmp_path, "train")
    one_sentence(caught, tmp_path, "rrc.cvc.uab.es/?ch=13")
    write_sroie(tmp_path)
    (tmp_path / "train" / "entities" / "X1.txt").unlink()
    with pytest.raises(ZooError, match="there is no labels"):
        read_sroie(tmp_path, "train")
    with pytest.raises(ZooError, match="has no picture X2"):
        read_sroie(tmp_path, "train", ["X2"])
    picture(tmp_path / "train" / "img" / "X2.jpg")
    with pytest.raises(ZooError, match="there is no transcript"):
        read_sroie(tmp_path, "train", ["X2"])
    (tmp_path / "train" / "box" / "X1.txt").unlink()
    with pytest.raises(ZooError, match="has no receipt"):
        read_sroie(tmp_path, "train")

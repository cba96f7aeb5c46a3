"""The readers of DocVQA's format and of JSON lines, and what all readers share."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.datasets import docvqa_records, jsonl_records
from zoo.datasets.document_records import (
    Document,
    Mender,
    bio_names,
    class_index,
    load_json,
    read_page,
    with_segment_boxes,
)
from zoo.datasets.docvqa_records import read_docvqa
from zoo.datasets.jsonl_records import kind_of, read_labels, read_questions, read_tags
from zoo.datasets.ocr.page import Page
from zoo.errors import ZooError


def picture(path: Path, size=(60, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0]), 255, dtype=np.uint8)).save(path)


def record(number, image="a.png", **more):
    return {
        "questionId": number, "question": f"What is {number}?", "image": f"documents/{image}",
        "docId": 1, "ucsf_document_id": "a", "ucsf_document_page_no": "1",
        "answers": ["9.00", "nine"], "data_split": "val", **more,
    }  # fmt: skip


def write_docvqa(folder: Path, records, *, name="val_v1.0.json", images="documents", ocr="ocr"):
    content = {"dataset_name": "x", "dataset_version": "1.0", "dataset_split": "val"}
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({**content, "data": records}), encoding="utf-8")
    for image in ("a.png", "b.png"):
        picture(folder / images / image)
        if ocr:
            (folder / ocr).mkdir(exist_ok=True)
            result = {"width": 60, "height": 40, "words": ["total", "9.00"]}
            (folder / ocr / image).with_suffix(".json").write_text(json.dumps(result))
    return folder


def read_tiny(path: Path, size: tuple[int, int]) -> Page:
    content = load_json(path)
    return Page(
        words=tuple(content["words"]),
        boxes=((0.0, 0.0, 5.0, 5.0),) * len(content["words"]),
        width=content["width"],
        height=content["height"],
    )


def one_sentence(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    assert message[-1] != "."
    for part in parts:
        assert str(part) in message, message


@pytest.mark.parametrize(
    ("name", "images", "ocr"),
    [
        ("val_v1.0.json", "documents", "ocr_results"),
        ("val_v1.0_withQT.json", "documents", "ocr"),
        ("spdocvqa_qas/val_v1.0_withQT.json", "spdocvqa_images", "spdocvqa_ocr"),
    ],
)
def test_docvqa_is_read_as_it_unpacks(tmp_path, name, images, ocr):
    records = [
        record(7),
        record(5, "b.png", question_types=["form", "layout"]),
        record(6, answers=["x"]),
    ]
    write_docvqa(tmp_path, records, name=name, images=images, ocr=ocr)
    assert docvqa_records.matches(tmp_path) is None
    questions = read_docvqa(tmp_path, "val")
    assert [q.question_id for q in questions] == [7, 5, 6]
    assert questions[0].text == "What is 7?"
    assert questions[0].answers == ("9.00", "nine")
    assert [q.types for q in questions] == [(), ("form", "layout"), ()]
    document = questions[0].document
    assert document.image == tmp_path / images / "a.png"
    assert document.ocr == tmp_path / ocr / "a.json"
    assert questions[2].document is document
    page = read_page(document, read_tiny)
    assert page.words == ("total", "9.00")
    assert page.source == str(document.ocr)


def test_questions_with_types_are_preferred(tmp_path):
    write_docvqa(tmp_path, [record(1)])
    write_docvqa(tmp_path, [record(1, question_types=["form"])], name="val_v1.0_withQT.json")
    assert read_docvqa(tmp_path, "val")[0].types == ("form",)


def test_ocr_is_optional_and_a_test_split_has_no_answers(tmp_path):
    records = [record(n) for n in (1, 2)]
    for r in records:
        del r["answers"]
    write_docvqa(tmp_path, records, name="test_v1.0.json", ocr="")
    questions = read_docvqa(tmp_path, "test")
    assert [q.answers for q in questions] == [(), ()]
    assert questions[0].document.ocr is None
    with pytest.raises(ZooError) as caught:
        read_page(questions[0].document, read_tiny)
    one_sentence(caught, "a.png has no OCR file; add one")
    write_docvqa(tmp_path, [record(1)])
    assert read_docvqa(tmp_path, "val", use_ocr=False)[0].document.ocr is None


BAD = {
    "no gold": (lambda r: r.update(answers=[]), "question 2 has no right answer"),
    "gold absent": (lambda r: r.pop("answers"), "question 2 has the answers None; give a list"),
    "gold text": (lambda r: r.update(answers="9"), "question 2 has the answers '9'"),
    "gold number": (lambda r: r.update(answers=[9]), "question 2 has the answers [9]"),
    "twice": (lambda r: r.update(questionId=1), "question 1 occurs twice; give every question"),
    "text id": (lambda r: r.update(questionId="2"), "data[1] has questionId '2'"),
    "empty": (lambda r: r.update(question="  "), "question 2 has the question '  '; write a"),
    "absent": (lambda r: r.pop("question"), "question 2 has the question None"),
    "types": (lambda r: r.update(question_types=[1]), "question 2 has the question types [1]"),
    "no image": (lambda r: r.pop("image"), "question 2 has the file name None"),
    "up": (lambda r: r.update(image="../b.png"), "question 2 has the file name '../b.png'"),
    "root": (lambda r: r.update(image="/b.png"), "question 2 has the file name '/b.png'"),
    "gone": (
        lambda r: r.update(image="documents/c.png"),
        "names 1 of 2 pictures that are missing (first: ", "c.png); restore them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_questions_are_named_with_file_and_remedy(tmp_path, case):
    change, *parts = BAD[case]
    records = [record(1), record(2, "b.png")]
    change(records[1])
    write_docvqa(tmp_path, records)
    with pytest.raises(ZooError) as caught:
        read_docvqa(tmp_path, "val")
    one_sentence(caught, tmp_path / "val_v1.0.json", "; ", *parts)


def test_files_that_are_missing_or_broken(tmp_path):
    with pytest.raises(ZooError) as caught:
        read_docvqa(tmp_path, "val")
    one_sentence(caught, "looked for val_v1.0_withQT.json", "https://rrc.cvc.uab.es/?ch=17")
    assert "withQT" in str(docvqa_records.matches(tmp_path))
    path = tmp_path / "val_v1.0.json"
    for text, words in (
        ('{"data": [\n{"questionId" 1}]}', "line 2, column 15: broken JSON"),
        ("[]", "has no list 'data'"),
        ('{"data": []}', "has no list 'data' of questions"),
    ):
        path.write_text(text)
        with pytest.raises(ZooError) as caught:
            read_docvqa(tmp_path, "val")
        one_sentence(caught, path, words)
    path.write_bytes(b'"\xff\xfe"')
    with pytest.raises(ZooError, match="can't be read as JSON"):
        read_docvqa(tmp_path, "val")
    path.write_text('{"data": [1]}')
    with pytest.raises(ZooError, match="has no folder of pictures"):
        read_docvqa(tmp_path, "val")
    (tmp_path / "documents").mkdir()
    with pytest.raises(ZooError, match=r"data\[0\] is not a record"):
        read_docvqa(tmp_path, "val")


def test_a_missing_ocr_file_is_told(tmp_path):
    write_docvqa(tmp_path, [record(1), record(2, "b.png")])
    (tmp_path / "ocr" / "b.json").unlink()
    with pytest.raises(ZooError) as caught:
        read_docvqa(tmp_path, "val")
    one_sentence(caught, "1 of 2 OCR files that are missing", tmp_path / "ocr" / "b.json")
    lone = Document(document_id="b", image=tmp_path / "b.png", ocr=tmp_path / "b.json")
    with pytest.raises(ZooError, match="there is no OCR file"):
        read_page(lone, read_tiny)


def test_ocr_of_another_page_is_told(tmp_path):
    write_docvqa(tmp_path, [record(1)])
    picture(tmp_path / "documents" / "a.png", (50, 40))
    (question,) = read_docvqa(tmp_path, "val")
    with pytest.raises(ZooError) as caught:
        read_page(question.document, read_tiny)
    one_sentence(caught, "a.json is of a page of 60 x 40", "a.png has 50 x 40 pixels; give the OCR")


def test_boxes_of_others_are_mended_and_told_once(caplog):
    mender = Mender()
    assert mender.box([1, 2, 3, 4], (40, 60), "x, word 0") == (1, 2, 3, 4)
    mender.tell("data, split train")
    assert not caplog.records
    assert mender.box([50, 9, 20, 5], (40, 60), "x, word 1") == (20, 5, 50, 9)
    assert mender.box([-5, 9, 70, 9, 70, 45, -5, 45], (40, 60), "x, word 2") == (0, 9, 60, 40)
    mender.tell("data, split train")
    [record] = caplog.records
    assert record.getMessage() == (
        "data, split train: 2 of 3 boxes were over their page or inverted, and were mended "
        "(first: x, word 1)"
    )


def test_boxes_of_segments_are_unions():
    page = Page(
        words=("a", "b", "c"), lines=(3, 3, 5), width=100, height=100,
        boxes=((10.0, 5.0, 20.0, 9.0), (22.0, 4.0, 30.0, 10.0), (1.0, 50.0, 2.0, 60.0)),
    )  # fmt: skip
    whole = (10.0, 4.0, 30.0, 10.0)
    assert with_segment_boxes(page).boxes == (whole, whole, (1.0, 50.0, 2.0, 60.0))


def test_unknown_classes_are_told_with_the_nearest():
    names = bio_names(["TOTAL", "DATE"])
    assert names == ("O", "B-TOTAL", "I-TOTAL", "B-DATE", "I-DATE")
    assert class_index("I-TOTAL", names, "x") == 2
    with pytest.raises(
        ZooError, match=r"a\.json has the label 'B-TOTALS', .* did you mean B-TOTAL"
    ):
        class_index("B-TOTALS", names, "a.json")


def write_lines(folder: Path, *records, split="train", text=None):
    picture(folder / "a.png")
    path = folder / f"{split}.jsonl"
    path.write_text(text or "\n".join(map(json.dumps, records)) + "\n\n", encoding="utf-8")
    return path


ASKED = {"image": "a.png", "question": "What?", "answers": ["9"]}


def test_own_questions(tmp_path):
    (tmp_path / "ocr").mkdir()
    (tmp_path / "ocr" / "a.json").write_text('{"width": 60, "height": 40, "words": ["9"]}')
    write_lines(
        tmp_path, ASKED, {**ASKED, "id": "mine", "types": ["form"], "ocr": "ocr/a.json", "page": 1}
    )
    assert jsonl_records.matches(tmp_path) is None
    assert kind_of(tmp_path, "train") == "question"
    first, second = read_questions(tmp_path, "train")
    assert (first.question_id, second.question_id) == (0, "mine")
    assert first.answers == ("9",)
    assert first.document.image == tmp_path / "a.png"
    assert first.document.ocr is None
    assert second.types == ("form",)
    assert (second.document.page, second.document.ocr) == (1, tmp_path / "ocr" / "a.json")
    page = read_page(second.document, read_tiny)
    assert (page.words, page.number) == (("9",), 1)


def test_text_separators_do_not_split_records(tmp_path):
    line = json.dumps({**ASKED, "question": "a\u2028b?"}, ensure_ascii=False)
    write_lines(tmp_path, text=line)
    assert read_questions(tmp_path, "train")[0].text == "a\u2028b?"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": []}, "line 2 has no right answer"),
        ({"answers": None}, "line 2 has the answers None"),
        ({"question": ""}, "line 2 has the question ''"),
        ({"id": 0}, "line 2: question id 0 occurs twice"),
        ({"id": "0"}, "line 2: question id 0 occurs twice"),
        ({"id": [1]}, "line 2 has the id [1]"),
        ({"anwser": "9"}, "line 2 has the unknown key 'anwser'; did you mean answers?"),
        ({"image": "b.png"}, "names 1 of 2 pictures that are missing"),
        ({"image": 5}, "line 2 has the file name 5"),
        ({"ocr": "b.json"}, "names 1 of 1 OCR files that are missing"),
        ({"page": -1}, "line 2 has the page -1"),
    ],
)
def test_bad_lines_are_named(tmp_path, change, words):
    path = write_lines(tmp_path, ASKED, ASKED | change)
    with pytest.raises(ZooError) as caught:
        read_questions(tmp_path, "train")
    one_sentence(caught, path, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"image": "a.png",}', "line 1: broken JSON"),
        ("5", "line 1 is not a record"),
        ("\n\n", "has no record"),
        ('{"image": "a.png", "label": "x"}', "line 1 has no 'question'; all records"),
        ('{"image": "a.png"}', "line 1 has no 'question'"),
    ],
)
def test_broken_files_of_lines(tmp_path, text, words):
    path = write_lines(tmp_path, text=text)
    with pytest.raises(ZooError) as caught:
        read_questions(tmp_path, "train")
    one_sentence(caught, path, words)


def test_missing_and_undecodable_files_of_lines(tmp_path):
    assert "train.jsonl" in str(jsonl_records.matches(tmp_path))
    with pytest.raises(ZooError, match=r"has no train\.jsonl; add it"):
        read_questions(tmp_path, "train")
    (tmp_path / "train.jsonl").write_bytes(b"\xff")
    with pytest.raises(ZooError, match="is not UTF-8"):
        kind_of(tmp_path, "train")
    (tmp_path / "train.jsonl").write_text('{"image": "a.png"}')
    with pytest.raises(ZooError, match="line 1 has no question, label or tags"):
        kind_of(tmp_path, "train")
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(ZooError, match="has no record"):
        kind_of(tmp_path, "train")


def test_own_classes(tmp_path):
    write_lines(tmp_path, {"image": "a.png", "label": "invoice"})
    assert kind_of(tmp_path, "train") == "label"
    (page,) = read_labels(tmp_path, "train")
    assert (page.label, page.document.image) == ("invoice", tmp_path / "a.png")
    write_lines(tmp_path, {"image": "a.png", "label": 3})
    with pytest.raises(ZooError, match="has the label 3; give the class's name"):
        read_labels(tmp_path, "train")


TAGGED = {
    "image": "a.png", "words": ["Total", "9.00"], "boxes": [[5, 5, 30, 15], [35, 5, 55, 15]],
    "tags": ["O", "B-TOTAL"],
}  # fmt: skip


def test_own_tags(tmp_path):
    write_lines(tmp_path, TAGGED)
    assert kind_of(tmp_path, "train") == "tags"
    (page,) = read_tags(tmp_path, "train")
    assert page.tags == ("O", "B-TOTAL")
    assert page.page.boxes == ((5, 5, 30, 15), (35, 5, 55, 15))
    assert (page.page.width, page.page.height) == (60, 40)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tags": ["O"]}, "has 2 words, 2 boxes and 1 tags"),
        ({"tags": ["O", "TOTAL"]}, "has the tag 'TOTAL'; tags are O, B-NAME and I-NAME"),
        ({"words": ["Total", " "]}, "has the word ' '"),
        ({"words": "Total 9.00"}, "needs lists of words, boxes and tags"),
        ({"boxes": [[5, 5, 30, 15], [35, 5, 55]]}, "has the box [35, 5, 55]; give 4 finite"),
        ({"boxes": [[5, 5, 30, 15], [35, 5, 65, 15]]}, "reaches over the page of 60 x 40"),
        ({"boxes": [[5, 5, 30, 15], [35, 5, 25, 15]]}, "is inverted"),
    ],
)
def test_bad_tags_are_named(tmp_path, change, words):
    path = write_lines(tmp_path, TAGGED | change)
    with pytest.raises(ZooError) as caught:
        read_tags(tmp_path, "train")
    one_sentence(caught, f"{path}, line 1", words)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "split", "count", "pages"),
    [
        ("sroie_qa", "train", 479, 120),
        ("sroie_qa", "val", 160, 40),
        ("funsd", "train", 995, 114),
        ("funsd", "val", 238, 28),
        ("docvqa_sample", "val", 16, 7),
    ],
)
def test_real_questions_are_read(name, split, count, pages, shared_data):
    assert docvqa_records.matches(shared_data / name) is None
    questions = read_docvqa(shared_data / name, split)
    assert len(questions) == count
    assert len({q.document for q in questions}) == pages
    assert all(q.answers for q in questions)
    assert all((q.document.ocr is None) == (name == "docvqa_sample") for q in questions)
    if name == "sroie_qa":
        assert {q.types for q in questions} == {("company",), ("date",), ("address",), ("total",)}

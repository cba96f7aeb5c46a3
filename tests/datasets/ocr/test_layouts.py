"""OCR files of others: Microsoft Read, Tesseract's table, our own; what is mended, what is not."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from zoo.datasets.ocr.layouts import read_ocr
from zoo.datasets.ocr.page import Page
from zoo.datasets.ocr.tesseract import Tesseract
from zoo.errors import ZooError

PAGE = Page(
    words=("TOTAL", "12.50", "東京"),
    boxes=((10, 10, 50, 20), (60, 10, 100, 21.5), (0, 150, 100, 200)),
    width=100, height=200, confidences=(0.9, 1.0, 0.5), lines=(0, 0, 1), blocks=(0, 0, 1),
    source="scan.png",
)  # fmt: skip


def microsoft(**changes) -> dict:
    words = [
        {"boundingBox": [10, 10, 50, 10, 50, 20, 10, 20], "text": "TOTAL", "confidence": "Low"},
        {"boundingBox": [60, 10, 120, 10, 120, 20, 60, 20], "text": "12.50", "confidence": 0.8},
        {"boundingBox": [60, 10, 90, 10, 90, 20, 60, 20], "text": " "},
    ]
    lines = [{"boundingBox": [0] * 8, "text": "TOTAL 12.50", "words": words}]
    result = {"page": 1, "width": 100, "height": 200, "unit": "pixel", "lines": lines}
    return {"status": "Succeeded", "recognitionResults": [result | changes]}


@pytest.mark.parametrize("generation", [2, 3])
def test_microsoft_read(tmp_path, caplog, generation) -> None:
    content = microsoft()
    if generation == 3:
        content = {"analyzeResult": {"readResults": content["recognitionResults"]}}
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    page = read_ocr(path, (200, 100))
    assert page.words == ("TOTAL", "12.50")
    assert page.boxes == ((10, 10, 50, 20), (60, 10, 100, 20))
    assert page.confidences == (0.3, 0.8)
    assert f"{path}: 1 of 2 boxes were over the page or inverted" in caplog.text


@pytest.mark.parametrize(
    ("box", "mended"),
    [
        ([50, 20, 10, 10], (10, 10, 50, 20)),
        ([-7, 10, 50, 20], (0, 10, 50, 20)),
        ([10, 150, 50, 220], (10, 150, 50, 200)),
        ([300, 10, 350, 20], (100, 10, 100, 20)),
    ],
)
def test_boxes_of_others_are_mended_and_told_and_ours_are_errors(
    tmp_path, caplog, box, mended
) -> None:
    words = [{"text": "a", "boundingBox": box}, {"text": "b", "boundingBox": [1, 2, 3, 4]}]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(microsoft(lines=[{"words": words}])))
    assert read_ocr(path, (200, 100)).boxes == (mended, (1, 2, 3, 4))
    assert "1 of 2 boxes were over the page or inverted" in caplog.text
    own = json.loads(PAGE.to_json())
    own["boxes"][1] = box
    path.write_text(json.dumps(own))
    with pytest.raises(ZooError, match=r"p\.json, word 1 '12\.50': its box .*; give "):
        read_ocr(path, (200, 100))


def test_our_own_format_is_read_too(tmp_path) -> None:
    path = tmp_path / "p.json"
    path.write_text(PAGE.to_json())
    assert read_ocr(path, (200, 100)) == PAGE
    with pytest.raises(ZooError, match=r"p\.json has one page, and page 3 was asked for"):
        read_ocr(path, (200, 100), 2)
    path.write_text(replace(PAGE, number=2).to_json())
    assert read_ocr(path, (200, 100), 2).words == PAGE.words


def test_a_page_that_was_turned_is_of_the_turned_picture(tmp_path) -> None:
    path = tmp_path / "p.json"
    path.write_text(replace(PAGE, rotation=90).to_json())
    assert read_ocr(path, (100, 200)).rotation == 90
    with pytest.raises(ZooError, match="is of a page of 100 x 200"):
        read_ocr(path, (200, 100))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "line 1: broken JSON"),
        ("", "is empty"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "of no known OCR format"),
        (json.dumps(microsoft(unit="inch")), "boxes in inch"),
        (json.dumps(microsoft(width=90)), "is of a page of 90 x 200, its image has 100 x 200"),
        (json.dumps(microsoft(width=1e999)), "broken result of Microsoft"),
        (json.dumps(microsoft(lines=[{"words": [{"text": "a"}]}])), "broken result of Microsoft"),
        (json.dumps(microsoft(lines=[{"words": [{"text": "a", "boundingBox": [1, 2, 3]}]}])),
         "is no box"),
    ],
)  # fmt: skip
def test_files_that_are_no_ocr_of_the_image(tmp_path, content, fault) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(ZooError, match=rf"p\.json.*{fault}.*; "):
        read_ocr(path, (200, 100))


def test_a_page_that_the_file_does_not_have(tmp_path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(microsoft()))
    with pytest.raises(ZooError, match="has 1 pages, and page 3 was asked for"):
        read_ocr(path, (200, 100), 2)


def test_a_page_without_pixels_is_scaled(tmp_path) -> None:
    """A PDF's: its OCR may be of any resolution, or in inches, and only its shape has to fit."""
    path = tmp_path / "p.json"
    path.write_text(PAGE.to_json())
    page = read_ocr(path, (400, 200), any_scale=True)
    assert (page.width, page.height) == (200, 400)
    assert page.boxes[1] == (120, 20, 200, 43)
    path.write_text(json.dumps(microsoft(unit="inch", width=8.5, height=11, lines=[
        {"words": [{"text": "a", "boundingBox": [1, 2, 3, 2.5]}]}
    ])))  # fmt: skip
    page = read_ocr(path, (2200, 1700), any_scale=True)
    assert page.boxes[0] == pytest.approx((200, 400, 600, 500))
    with pytest.raises(ZooError, match="is of a page of 2550 x 3300, its image has 1700 x 1700"):
        read_ocr(path, (1700, 1700), any_scale=True)


HEAD = "level page_num block_num par_num line_num word_num left top width height conf text"
ROWS = (
    "1 1 0 0 0 0 0 0 100 200 -1 ",
    "2 1 1 0 0 0 10 10 90 30 -1 ",
    "4 1 1 1 1 0 10 10 90 10 -1 ",
    "5 1 1 1 1 1 10 10 40 10 96.5 TOTAL",
    "5 1 1 1 1 2 60 10 40 10 80 12\"50",
    "5 1 1 1 2 1 10 30 0 0 40 .",
    "5 1 1 1 2 2 10 40 90 5 95  ",
    "2 1 2 0 0 0 5 90 50 10 -1 ",
    "5 1 2 1 1 1 5 90 120 10 50 über",
    "1 2 0 0 0 0 0 0 100 200 -1 ",
    "5 2 1 1 1 1 1 2 3 4 100 second",
)  # fmt: skip


def table(*rows: str, head: str = HEAD) -> str:
    return "\n".join(row.replace(" ", "\t", 11) for row in (head, *rows)) + "\n"


def test_tesseracts_table(tmp_path, caplog) -> None:
    path = tmp_path / "p.tsv"
    path.write_text(table(*ROWS), encoding="utf-8")
    page = read_ocr(path, (200, 100))
    assert page.words == ("TOTAL", '12"50', ".", "über")
    assert page.boxes == ((10, 10, 50, 20), (60, 10, 100, 20), (10, 30, 11, 31), (5, 90, 100, 100))
    assert page.confidences == (0.965, 0.8, 0.4, 0.5)
    assert page.lines == (0, 0, 1, 2)
    assert page.blocks == (1, 1, 1, 2)
    assert page.source == str(path)
    assert "p.tsv: 1 of 4 boxes were over the page or inverted" in caplog.text
    assert read_ocr(path, (200, 100), 1).words == ("second",)
    path.write_bytes(table(*ROWS).replace("\n", "\r\n").encode())  # as Windows writes it
    assert read_ocr(path, (200, 100)).words == page.words


@pytest.mark.parametrize(
    ("content", "number", "fault"),
    [
        (table(*ROWS), 2, "has 2 pages, and page 3 was asked for"),
        (table(*ROWS).replace("100\t200", "90\t200"), 0, "is of a page of 90 x 200, its image has"),
        (table(*ROWS, head=HEAD.replace("line_num", "x")), 0, "has no column line_num"),
        (table(*ROWS, "5 1 1 1 1 3 9 9 wide 9 50 x"), 0, "line 13 is no row of Tesseract's table"),
        (table(*ROWS, "5 1 1"), 0, "line 13 is no row"),
        (table(*ROWS, "5 1 1 1 1 3 9 9 9 9 nan x"), 0, "line 13 is no row .*out of range"),
    ],
)
def test_tables_that_are_none_of_the_image(tmp_path, content, number, fault) -> None:
    path = tmp_path / "p.tsv"
    path.write_text(content)
    with pytest.raises(ZooError, match=rf"p\.tsv.*{fault}"):
        read_ocr(path, (200, 100), number)


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="no Tesseract here")
def test_what_the_program_writes_is_what_the_engine_reads(tmp_path: Path) -> None:
    image = Image.new("L", (700, 300), 255)
    pen = ImageDraw.Draw(image)
    for n, line in enumerate(("Invoice number 20418", 'Wooden "shelf" 12.50')):
        pen.text((40, 40 + 90 * n), line, 0, ImageFont.load_default(size=40))
    image.save(tmp_path / "p.png", dpi=(200, 200))
    command = ["tesseract", "p.png", "out", "--dpi", "200", "tsv"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    read = read_ocr(tmp_path / "out.tsv", (300, 700))
    engine = Tesseract()(image, 200)
    assert "20418" in read.words
    assert read == replace(engine, dpi=0.0, engine="tesseract")

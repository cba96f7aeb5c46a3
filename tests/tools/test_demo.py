"""The document part of the demo: a drawn receipt is read and asked, with and without Tesseract."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.datasets.ocr import tesseract
from zoo.datasets.papers.document import draw_document
from zoo.tools import demo

DRAWN = draw_document(*demo.RECEIPT, "receipt", ocr_noise=0.0)
RIGHT = {q.field: q.answers[0] for q in DRAWN.questions if q.field in demo.QUESTIONS}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def check(out: Path, said: str) -> list[str]:
    """What holds with any words; the lines of the answers."""
    lines = said.splitlines()
    rows = [line for line in lines if re.search(r" \d+%$", line)]
    assert len(rows) == len(demo.QUESTIONS) == len(RIGHT) == 3
    for row, field in zip(rows, demo.QUESTIONS, strict=True):
        assert RIGHT[field] in row
    assert re.search(r"\d+ words, 3 questions, \d+\.\d s in all", lines[-1])
    with Image.open(out / "scan.png") as scan, Image.open(out / "answers.png") as marked:
        width, height = DRAWN.page.width, DRAWN.page.height
        assert scan.size == (width, height)
        assert marked.width == width
        assert marked.height > height  # what the colours mean stands below
        page = marked.crop((0, 0, width, height))
        differs = (np.asarray(scan) != np.asarray(page)).any(-1)
    # The answers, and most of the page as it was.
    assert 0.005 < differs.mean() < 0.3
    return rows


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="no Tesseract here")
def test_a_scan_is_read_and_its_answers_are_marked(tmp_path, capsys) -> None:
    out = tmp_path / "document"
    assert demo.ask_a_receipt(out, device="cpu") == out / "answers.png"
    said = capsys.readouterr().out
    assert "of the drawing" not in said
    check(out, said)
    assert list((tmp_path / "cache").rglob("*.json"))  # it was read


def test_without_tesseract_the_drawn_words_are_used_and_that_is_said(
    tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(tesseract, "_program", lambda: str(tmp_path / "nothing"))
    tesseract._version.cache_clear()
    tesseract._languages.cache_clear()
    try:
        demo.ask_a_receipt(tmp_path / "document", device="cpu")
    finally:
        tesseract._version.cache_clear()
        tesseract._languages.cache_clear()
    said = capsys.readouterr().out
    assert "Tesseract is not installed; install it (Debian: apt install tesseract-ocr)" in said
    assert "Here the words of the drawing are used" in said
    rows = check(tmp_path / "document", said)
    # With exact words the bundled model is right: each answer stands twice in its line.
    for row, field in zip(rows, demo.QUESTIONS, strict=True):
        assert row.count(RIGHT[field]) == 2
    assert f"{len(DRAWN.page)} words" in said


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert demo.main(["--out", str(tmp_path / "file"), "--minutes", "0.01"]) == 2
    assert "can't be written" in capsys.readouterr().err

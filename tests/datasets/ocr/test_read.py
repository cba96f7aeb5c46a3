"""Reading files whole: words beside a file, long files, and what is said of bad pages."""

import gc
import json
import threading
import weakref
from pathlib import Path

import pytest
from pdfs import write_pdf
from PIL import Image

from zoo.datasets.ocr import read
from zoo.datasets.ocr.files import PageImage
from zoo.datasets.ocr.page import Page
from zoo.datasets.ocr.read import NAMES, engine_named, read_pages
from zoo.datasets.ocr.tesseract import OcrOptions
from zoo.errors import ZooError

pdfium = pytest.importorskip("pypdfium2")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def scan(path: Path, *words: str, size=(100, 60)) -> Page:
    """A blank picture, and the page that is said to be on it."""
    Image.new("L", size, 255).save(path)
    return page_of(*words, size=size)


def page_of(*words: str, size=(100, 60), number: int = 0) -> Page:
    boxes = tuple((10.0, 10.0 * n, 50.0, 10.0 * n + 8) for n in range(len(words)))
    return Page(words=words, boxes=boxes, width=size[0], height=size[1], number=number)


TABLE = (
    "level page_num block_num par_num line_num word_num left top width height conf text\n"
    "1 1 0 0 0 0 0 0 100 60 -1 \n5 1 1 1 1 1 1 2 30 9 90 first\n"
    "1 2 0 0 0 0 0 0 100 60 -1 \n5 2 1 1 1 1 1 2 30 9 90 second\n"
).replace(" ", "\t")


class TestWordsBesideAFile:
    def test_of_a_picture(self, tmp_path, monkeypatch) -> None:
        own = scan(tmp_path / "scan.png", "Total", "12.50")
        (tmp_path / "scan.json").write_text(own.to_json())
        [page] = read_pages(tmp_path / "scan.png", engine="json")
        assert page.words == ("Total", "12.50")
        assert page.source == str(tmp_path / "scan.png")
        assert not (tmp_path / "cache").exists()
        (tmp_path / "scan.json").write_text(page_of("new").to_json())  # read anew, not kept
        [page] = read_pages(tmp_path / "scan.png", engine="json")
        assert page.words == ("new",)
        (tmp_path / "scan.json").unlink()
        (tmp_path / "scan.tsv").write_text(TABLE)
        [page] = read_pages(tmp_path / "scan.png", engine="json")
        assert page.words == ("first",)

    def test_of_several_pages(self, tmp_path) -> None:
        scan(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as one:
            one.save(tmp_path / "many.tiff", save_all=True, append_images=[one, one])
        (tmp_path / "many.tsv").write_text(TABLE)
        (tmp_path / "many.page3.json").write_text(page_of("third").to_json())
        pages = read_pages(tmp_path / "many.tiff", engine="json")
        assert [p.words for p in pages] == [("first",), ("second",), ("third",)]
        assert [p.number for p in pages] == [0, 1, 2]
        (tmp_path / "many.page3.json").unlink()
        with pytest.raises(ZooError, match=r"many\.tsv has 2 pages, and page 3 was asked for"):
            read_pages(tmp_path / "many.tiff", engine="json")

    def test_of_a_pdf_at_any_resolution_and_before_its_own_words(self, tmp_path) -> None:
        path = write_pdf(tmp_path / "a.pdf", ["Total due 12.50"], size=(360, 720))
        (tmp_path / "a.json").write_text(page_of("mine", size=(180, 360)).to_json())
        [page] = read_pages(path, engine="json")
        assert page.words == ("mine",)
        assert (page.width, page.height) == (1000, 2000)
        assert page.boxes[0] == pytest.approx((10 / 0.18, 0, 50 / 0.18, 8 / 0.18))
        (tmp_path / "a.json").write_text(page_of("mine", size=(360, 360)).to_json())
        with pytest.raises(ZooError, match=r"a\.json is of a page of 360 x 360, its image has"):
            read_pages(path, engine="json")

    def test_a_missing_file_is_named_with_the_places(self, tmp_path) -> None:
        scan(tmp_path / "scan.png")
        with pytest.raises(ZooError) as caught:
            read_pages(tmp_path / "scan.png", engine="json")
        said = str(caught.value)
        assert f"there are no words of {tmp_path / 'scan.png'}, page 1" in said
        for name in ("scan.page1.json", "scan.page1.tsv", "scan.json", "scan.tsv", str(tmp_path)):
            assert name in said
        assert "write one of these, or choose an engine" in said

    def test_of_another_picture(self, tmp_path) -> None:
        scan(tmp_path / "scan.png")
        (tmp_path / "scan.json").write_text(page_of("a", size=(90, 60)).to_json())
        with pytest.raises(
            ZooError, match=r"scan\.json is of a page of 90 x 60, its image has 100"
        ):
            read_pages(tmp_path / "scan.png", engine="json")

    def test_a_picture_in_memory_has_none(self) -> None:
        with pytest.raises(ZooError, match=r"a picture in memory has none; give the file's path"):
            read_pages(Image.new("L", (9, 9)), engine="json")


def test_engines_by_name() -> None:
    assert NAMES == ("tesseract", "rapidocr", "json")
    assert engine_named("json").name == "json"
    with pytest.raises(ZooError, match="no OCR engine 'jsno'; did you mean json"):
        read_pages("there is no such file", engine="jsno")


class Counting:
    """An engine that knows how many pictures are in memory at once while it reads."""

    name, version = "counting", "1"

    def __init__(self, options: OcrOptions) -> None:
        self.options = options

    def __call__(self, image: Image.Image, dpi: float = 0.0) -> Page:
        if image.getpixel((0, 0))[0] == 13:
            raise ZooError("the engine gave up")
        return Page(words=(), boxes=(), width=image.width, height=image.height)


def test_a_long_file_takes_the_memory_of_few_pages(tmp_path, monkeypatch) -> None:
    alive, most, lock = 0, 0, threading.Lock()
    opened = read.open_words

    def less() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def counted(*given, **options):
        nonlocal alive, most
        for item in opened(*given, **options):
            weakref.finalize(item, less)
            with lock:
                alive += 1
                most = max(most, alive)
            assert isinstance(item, PageImage)
            yield item
            del item

    monkeypatch.setattr(read, "open_words", counted)
    monkeypatch.setitem(read.ENGINES, "tesseract", Counting)
    frames = [Image.new("L", (20, 10 + n), 255) for n in range(60)]
    frames[0].save(tmp_path / "long.tiff", save_all=True, append_images=frames[1:])
    gc.disable()  # nothing may wait for it
    try:
        pages = read_pages(tmp_path / "long.tiff", workers=2, cache=False)
    finally:
        gc.enable()
    assert [p.height for p in pages] == list(range(10, 70))
    assert alive == 0
    assert most <= 5  # of two workers: read, waiting, and the one that comes next


def test_a_page_that_cannot_be_read_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(read.ENGINES, "tesseract", Counting)
    frames = [Image.new("L", (20, 10), shade) for shade in (255, 13)]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    with pytest.raises(ZooError, match=r"a\.tiff, page 2: the engine gave up"):
        read_pages(tmp_path / "a.tiff")


def test_five_hundred_pages_are_told_one_by_one_and_chosen_without_the_others(
    tmp_path, monkeypatch
) -> None:
    path = write_pdf(tmp_path / "long.pdf", *([f"page number {n}"] for n in range(1, 501)))
    loaded, drawn = [], []
    get = pdfium.PdfDocument.get_page
    monkeypatch.setattr(
        pdfium.PdfDocument, "__getitem__", lambda self, n: loaded.append(n) or get(self, n)
    )
    monkeypatch.setattr(pdfium.PdfPage, "render", lambda *_, **__: drawn.append(1))
    told = []

    def watch(pages):
        for page in pages:
            told.append((page.number, len(loaded)))
            yield page

    pages = read_pages(path, workers=2, progress=watch)
    assert [p.words[2] for p in pages] == [str(n) for n in range(1, 501)]
    assert [number for number, _ in told] == list(range(500))
    assert max(done - number for number, done in told) <= 4  # told when read, not in the end
    loaded.clear()
    few = read_pages(path, pages="7,499-")
    assert [p.number for p in few] == [6, 498, 499]
    assert loaded == [6, 498, 499]
    assert drawn == []


def test_the_locked_file_is_read_with_its_password(tmp_path) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["Total due 12.50"], password="sesame")
    with pytest.raises(ZooError, match=r"a\.pdf: it is locked by a password; give the right one"):
        read_pages(path)
    [page] = read_pages(path, password="sesame")
    assert page.words == ("Total", "due", "12.50")
    assert json.loads(page.to_json())["engine"] == "pdf text"

"""Files of pages: pictures of any mode, TIFFs of several pages, PDFs, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pdfs import write_pdf
from PIL import Image, ImageDraw, ImageFont

from zoo.datasets.ocr.files import PageImage, count_pages, open_pages, open_words, parse_pages
from zoo.datasets.ocr.page import Page
from zoo.errors import ZooError

pdfium = pytest.importorskip("pypdfium2")


def picture(text: str = "Total 12.50", size: tuple[int, int] = (400, 200)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 60), text, "black", ImageFont.load_default(size=40))
    return image


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "I;16"])
def test_pictures_of_any_mode_are_rgb(tmp_path, mode) -> None:
    image = picture()
    if mode == "I;16":
        image = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "scan.tiff")
    [page] = open_pages(tmp_path / "scan.tiff")
    assert (page.image.mode, page.image.size, page.number) == ("RGB", (400, 200), 0)
    pixels = np.asarray(page.image)
    assert pixels[5, 5].min() > 240
    assert pixels.min() < 60


def test_a_tiff_of_several_pages_and_its_resolution(tmp_path) -> None:
    first, *others = (picture(f"page {n}", (100 + n, 80)) for n in range(3))
    first.save(tmp_path / "x", "TIFF", save_all=True, append_images=others, dpi=(300, 300))
    found = list(open_pages(tmp_path / "x"))
    assert [(p.number, p.image.width, p.dpi) for p in found] == [
        (0, 100, 300.0), (1, 101, 300.0), (2, 102, 300.0),
    ]  # fmt: skip
    assert [p.number for p in open_pages(tmp_path / "x", pages="3,1-2")] == [2, 0, 1]


def test_a_photograph_is_upright(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "p.jpg", exif=exif)
    [page] = open_pages(tmp_path / "p.jpg")
    assert page.image.size == (200, 400)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_pdfs_own_words_stand_where_they_are_drawn(tmp_path, rotation) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["Total due 12.50", "Thank you"], rotation=rotation)
    [page] = open_pages(path)
    assert page.text is not None
    words = ("Total", "due", "12.50", "Thank", "you")
    if rotation == 90:  # the lines stand side by side, the last one on the left
        assert sorted(page.text.words) == sorted(words)
    else:
        assert page.text.words == words
    assert (page.text.width, page.text.height) == page.image.size
    lines = dict(zip(page.text.words, page.text.lines, strict=True))
    assert lines["Total"] == lines["due"] != lines["Thank"]
    dark = np.asarray(page.image.convert("L")) < 128
    inside = np.zeros_like(dark)
    for x1, y1, x2, y2 in page.text.boxes:
        inside[int(y1) : int(np.ceil(y2)) + 1, int(x1) : int(np.ceil(x2)) + 1] = True
        assert dark[int(y1) : int(np.ceil(y2)) + 1, int(x1) : int(np.ceil(x2)) + 1].any()
    assert (dark & ~inside).sum() <= 0.02 * dark.sum()


def test_a_pdf_of_pictures_has_no_words_of_its_own(tmp_path) -> None:
    picture().save(tmp_path / "scan.pdf", resolution=100)
    [page] = open_pages(tmp_path / "scan.pdf")
    assert page.text is None
    assert page.image.size == (800, 400)


def test_pages_of_a_long_pdf_are_chosen(tmp_path) -> None:
    path = write_pdf(tmp_path / "long.pdf", *[["some words here"]] * 500)
    assert [p.number for p in open_pages(path, pages="499-", dpi=20)] == [498, 499]
    assert count_pages(path) == 500
    assert count_pages(path, pages="499-,7") == 3
    with pytest.raises(ZooError, match=r"long\.pdf has 500 pages; '501' is not among them"):
        count_pages(path, pages="501")


def test_a_page_with_words_of_its_own_is_not_drawn(tmp_path, monkeypatch) -> None:
    drawn = []
    render = pdfium.PdfPage.render
    monkeypatch.setattr(
        pdfium.PdfPage, "render", lambda page, **how: drawn.append(page) or render(page, **how)
    )
    path = write_pdf(tmp_path / "a.pdf", ["Total due 12.50"], [], ["Thank you"])
    first, blank, last = open_words(path)
    assert isinstance(first, Page)
    assert isinstance(blank, PageImage)
    assert (first.words, last.words, last.number) == (
        ("Total", "due", "12.50"),
        ("Thank", "you"),
        2,
    )
    assert len(drawn) == 1
    [whole, *_] = open_pages(path)
    assert whole.text == first
    assert (first.width, first.height) == whole.image.size
    assert (whole.path, whole.of_pdf) == (path, True)


@pytest.mark.parametrize(
    ("wanted", "fault"),
    [("0", "'0' is not among them"), ("4", "has 3 pages"), ("2-1", "not among"), ("x", "no")],
)
def test_pages_that_are_not_there(wanted, fault) -> None:
    with pytest.raises(ZooError, match=fault if fault != "no" else "is not a range of pages"):
        parse_pages(wanted, 3, "a.pdf")


def test_files_that_are_no_pages(tmp_path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "words.docx").write_bytes(b"PK no picture at all" * 9)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing else")
    picture().save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    faults = {
        "empty.png": "is empty",
        "words.docx": "neither a picture nor a PDF",
        "broken.pdf": "is a broken PDF",
        "half.png": "is a broken picture",
        "none.png": "there is no file",
    }
    for name, fault in faults.items():
        with pytest.raises(ZooError, match=rf"{name}.*{fault}|{fault}.*{name}"):
            list(open_pages(tmp_path / name))


def test_a_bomb_is_not_opened(tmp_path, monkeypatch) -> None:
    picture().save(tmp_path / "p.png")
    with pytest.raises(ZooError, match="400 x 200 pixels are more than the limit of 1000"):
        list(open_pages(tmp_path / "p.png", max_pixels=1000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ZooError, match="too large a picture"):
        list(open_pages(tmp_path / "p.png"))
    path = write_pdf(tmp_path / "a.pdf", ["x"])
    with pytest.raises(ZooError, match="read it at a lower dpi"):
        list(open_pages(path, max_pixels=1000))


def test_a_picture_that_claims_to_be_huge_is_not_decoded(tmp_path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    def claim(side: int) -> Path:
        head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        pixels = zlib.compress(b"0" * 99)
        path = tmp_path / f"{side}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels))
        return path

    with pytest.raises(ZooError, match=r"60000\.png is too large a picture .*; make it smaller"):
        list(open_pages(claim(60000)))
    # Pillow would only warn of this one, and a warning is an error here.
    with pytest.raises(ZooError, match=r"11000\.png, page 1: 11000 x 11000 pixels are more than"):
        list(open_pages(claim(11000)))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(
        ZooError, match=r"folder\.png can't be read \(Is a directory\); give a file"
    ):
        list(open_pages(tmp_path / "folder.png"))
    picture().save(tmp_path / "a.png")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ZooError, match=r"a\.png can't be read \(Permission denied\); give a file"):
        list(open_pages(tmp_path / "a.png"))


def test_a_locked_pdf_says_so_and_opens_with_its_password(tmp_path) -> None:
    path = write_pdf(tmp_path / "a.pdf", ["Total due 12.50"], password="sesame")
    assert b"Total" not in path.read_bytes()
    for read in (open_pages, open_words):
        with pytest.raises(ZooError, match=r"a\.pdf: it is locked by a password; give the right"):
            list(read(path))
        with pytest.raises(ZooError, match=r"a\.pdf: the password is wrong; give the right one"):
            list(read(path, password="guess"))
    with pytest.raises(ZooError, match="locked"):
        count_pages(path)
    [page] = open_pages(path, password="sesame")
    assert page.text is not None
    assert page.text.words == ("Total", "due", "12.50")
    assert count_pages(path, password="sesame") == 1


def test_a_pdf_without_pages_or_with_a_broken_one(tmp_path) -> None:
    path = write_pdf(tmp_path / "locked.pdf", ["x"], password="sesame")
    with pytest.raises(ZooError, match="locked by a password"):
        list(open_pages(path))
    path = write_pdf(tmp_path / "none.pdf")  # PDFium still says that the password is wrong
    with pytest.raises(
        ZooError, match=r"none\.pdf is a broken PDF, or one without pages .*; fetch"
    ):
        list(open_pages(path))
    path = write_pdf(tmp_path / "a.pdf", ["one"], ["two"])
    path.write_bytes(
        path.read_bytes().replace(b"6 0 obj\n<< /Type /Page ", b"6 0 obj\n<< /Type /Pape ")
    )
    with pytest.raises(ZooError, match=r"a\.pdf, page 2 is broken .*; fetch the file again"):
        list(open_pages(path))

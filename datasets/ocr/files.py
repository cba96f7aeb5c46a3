"""Any file of pages as pictures, one after the other: photographs, TIFFs of many pages, PDFs.

What a file is, its first bytes say, not its name. The pages of a PDF that have words of their own
bring them along: exact, and for nothing.
"""

from __future__ import annotations

import ctypes
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.datasets.images import MAX_PIXELS, as_rgb
from zoo.datasets.ocr.page import Box, Page
from zoo.errors import ZooError

DPI = 200.0  # at which the pages of a PDF are drawn
FEWEST = 5  # letters of a PDF's page from which on its own words are taken


@dataclass(frozen=True, eq=False)
class PageImage:
    """A page of a file: its picture (RGB, upright as far as EXIF says), its number from 0.

    ``dpi`` is 0 where unknown. ``text`` is a PDF's own words, where it has any. ``path`` is the
    file, None for a picture in memory; ``of_pdf`` says that the resolution is our choice.
    """

    image: Image.Image
    number: int
    dpi: float = 0.0
    text: Page | None = None
    path: Path | None = None
    of_pdf: bool = False


def parse_pages(wanted: str, count: int, source: str) -> list[int]:
    """Pages as people write them, ``1-3,7``, as numbers from 0.

    Raises :class:`ZooError` for what can't be understood or is not among the ``count`` pages.
    """
    found: list[int] = []
    for part in wanted.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d*)\s*)?", part)
        if not match:
            raise ZooError(f"'{wanted}' is not a range of pages; write it as 1-3,7")
        first = int(match.group(1))
        last = first if match.group(2) is None else int(match.group(2) or count)
        if not 1 <= first <= last <= count:
            raise ZooError(f"{source} has {count} pages; '{part.strip()}' is not among them")
        found += range(first - 1, last)
    return list(dict.fromkeys(found))


def open_pages(
    path: str | Path,
    *,
    pages: str | None = None,
    password: str | None = None,
    dpi: float = DPI,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[PageImage]:
    """The pages of a file in its order, or those of ``pages`` (``1-3,7``).

    Pages are made one at a time: a long file needs the memory of one page. ``dpi`` is for PDFs.

    Raises :class:`ZooError` naming the file where it is missing, empty, broken, of no known kind,
    locked by a password, or has a page of more than ``max_pixels`` pixels.
    """
    path = Path(path).expanduser()
    if not _is_pdf(path):
        yield from _pictures(path, pages, max_pixels)
        return
    for number, page in _pdf_pages(path, pages, password, dpi, max_pixels):
        yield _drawn(path, page, number, dpi, _text_layer(page, number, dpi))


def open_words(
    path: str | Path,
    *,
    pages: str | None = None,
    password: str | None = None,
    dpi: float = DPI,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[PageImage | Page]:
    """As :func:`open_pages`; but pages of a PDF with words of their own are given as these words.

    They are not drawn, which takes most of the time of a long text.
    """
    path = Path(path).expanduser()
    if not _is_pdf(path):
        yield from _pictures(path, pages, max_pixels)
        return
    for number, page in _pdf_pages(path, pages, password, dpi, max_pixels):
        text = _text_layer(page, number, dpi)
        yield _drawn(path, page, number, dpi, None) if text is None else text


def count_pages(path: str | Path, *, pages: str | None = None, password: str | None = None) -> int:
    """How many pages :func:`open_pages` would give; none of them is drawn.

    Raises :class:`ZooError` as it does where the file can't be opened.
    """
    path = Path(path).expanduser()
    if _is_pdf(path):
        with _opened_pdf(path, password) as document:
            count = len(document)
    else:
        with _opened_picture(path) as image:
            count = getattr(image, "n_frames", 1)
    return count if pages is None else len(parse_pages(pages, count, str(path)))


def _is_pdf(path: Path) -> bool:
    """What a file begins like. Raises :class:`ZooError` where it can't be read, or is empty."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except FileNotFoundError:
        raise ZooError(f"there is no file {path}; correct the path") from None
    except OSError as error:
        raise ZooError(f"{path} can't be read ({error.strerror}); give a file of pages") from None
    if not start:
        raise ZooError(f"{path} is empty; fetch it again")
    return b"%PDF-" in start


@contextmanager
def _opened_picture(path: Path) -> Iterator[Image.Image]:
    """The file opened by Pillow; whatever goes wrong until it is closed becomes a ZooError."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures (max_pixels decides) and of odd metadata (unused).
            warnings.simplefilter("ignore")
            image = Image.open(path)
        with image:
            yield image
    except Image.DecompressionBombError as error:
        raise ZooError(f"{path} is too large a picture ({error}); make it smaller") from None
    except UnidentifiedImageError:
        raise ZooError(f"{path} is neither a picture nor a PDF; give one of these") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ZooError(f"{path} is a broken picture ({error}); fetch it again") from None


def _pictures(path: Path, wanted: str | None, max_pixels: int) -> Iterator[PageImage]:
    with _opened_picture(path) as image:
        count = getattr(image, "n_frames", 1)
        chosen = range(count) if wanted is None else parse_pages(wanted, count, str(path))
        for number in chosen:
            image.seek(number)
            if image.width * image.height > max_pixels:
                raise ZooError(
                    f"{path}, page {number + 1}: {image.width} x {image.height} pixels are "
                    f"more than the limit of {max_pixels}; make it smaller"
                )
            stated = image.info.get("dpi", (0.0, 0.0))
            upright = as_rgb(ImageOps.exif_transpose(image))
            yield PageImage(upright, number, _sensible(stated), path=path)


def _sensible(stated: Any) -> float:
    """A resolution that a scanner may have had, else 0 (screens and phones state 72)."""
    try:
        value = float(stated[0])
    except (TypeError, ValueError, IndexError):
        return 0.0
    return value if 100 <= value <= 1200 else 0.0


@contextmanager
def _opened_pdf(path: Path, password: str | None) -> Iterator[Any]:
    """The document, closed in the end. Raises :class:`ZooError` where it is broken or locked."""
    import pypdfium2 as pdfium

    try:
        document = pdfium.PdfDocument(path, password=password)
    except pdfium.PdfiumError as error:
        # PDFium's reason may be that of the file before, so the file is asked, too.
        if "password" in str(error).lower() and b"/Encrypt" in path.read_bytes():
            what = "the password is wrong" if password else "it is locked by a password"
            raise ZooError(f"{path}: {what}; give the right one (password)") from None
        raise ZooError(
            f"{path} is a broken PDF, or one without pages ({error}); fetch it again"
        ) from None
    try:
        yield document
    finally:
        document.close()


def _pdf_pages(
    path: Path, wanted: str | None, password: str | None, dpi: float, max_pixels: int
) -> Iterator[tuple[int, Any]]:
    """Number and page (pypdfium2's) of the pages asked for; each is open until the next."""
    import pypdfium2 as pdfium

    with _opened_pdf(path, password) as document:
        count = len(document)
        chosen = range(count) if wanted is None else parse_pages(wanted, count, str(path))
        for number in chosen:
            try:
                page = document[number]
            except pdfium.PdfiumError as error:
                raise ZooError(
                    f"{path}, page {number + 1} is broken ({error}); fetch the file again, or "
                    "choose other pages"
                ) from None
            width, height = _pixels(page, dpi)
            if width * height > max_pixels:
                raise ZooError(
                    f"{path}, page {number + 1}: {width} x {height} pixels at {dpi:g} dpi are more "
                    f"than the limit of {max_pixels}; read it at a lower dpi"
                )
            yield number, page
            page.close()


def _pixels(page: Any, dpi: float) -> tuple[int, int]:
    """(width, height) of a PDF's page as it is drawn."""
    scale = dpi / 72
    width, height = (max(1, math.ceil(side * scale)) for side in page.get_size())
    return width, height


def _drawn(path: Path, page: Any, number: int, dpi: float, text: Page | None) -> PageImage:
    image = page.render(scale=dpi / 72).to_pil().convert("RGB")
    return PageImage(image, number, dpi, text, path, of_pdf=True)


def _text_layer(page: Any, number: int, dpi: float) -> Page | None:
    """The words that a PDF's page has of its own; None where it has next to none."""
    import pypdfium2.raw as raw

    width, height = _pixels(page, dpi)
    text_page = page.get_textpage()
    x, y = ctypes.c_int(), ctypes.c_int()
    # Whole pixels are too coarse: the page is placed on a device of a hundredth of a pixel.
    fine = 100

    def placed(left: float, bottom: float, right: float, top: float) -> Box:
        corners = []
        for px, py in ((left, bottom), (right, top)):
            # Turns and crops as the picture is turned and cropped.
            raw.FPDF_PageToDevice(
                page, 0, 0, width * fine, height * fine, 0, px, py, ctypes.byref(x), ctypes.byref(y)
            )
            corners.append((x.value / fine, y.value / fine))
        (x1, y1), (x2, y2) = corners
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    words: list[str] = []
    boxes: list[Box] = []
    lines: list[int] = []
    line, word = 0, ""
    parts: list[Box] = []

    def finish() -> None:
        nonlocal word, parts
        inside = [b for b in parts if b[2] > 0 and b[3] > 0 and b[0] < width and b[1] < height]
        if word.strip() and inside:
            words.append(word)
            lines.append(line)
            boxes.append(
                (
                    max(0.0, min(b[0] for b in inside)),
                    max(0.0, min(b[1] for b in inside)),
                    min(float(width), max(b[2] for b in inside)),
                    min(float(height), max(b[3] for b in inside)),
                )
            )
        word, parts = "", []

    count = text_page.count_chars()
    text = text_page.get_text_range(0, count) if count else ""
    # Characters outside of the basic plane take two places of pdfium's count: read them singly.
    if len(text) != count:
        text = "".join((text_page.get_text_range(n, 1) or " ")[:1] for n in range(count))
    for n, letter in enumerate(text):
        if letter in "\r\n":
            finish()
            line += letter == "\n"
        elif letter.isspace() or letter == "\x00":
            finish()
        else:
            word += letter
            parts.append(placed(*text_page.get_charbox(n)))
    finish()
    text_page.close()
    if sum(map(len, words)) < FEWEST:
        return None
    return Page(
        words=tuple(words), boxes=tuple(boxes), width=width, height=height, lines=tuple(lines),
        number=number, dpi=dpi, engine="pdf text",
    )  # fmt: skip

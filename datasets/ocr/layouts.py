"""OCR files from elsewhere as pages: Microsoft Read (also DocVQA's), Tesseract's table, our own.

Others' files are taken as they come: boxes over the page's edge are clipped, inverted ones turned,
words without text left out; what was done is counted and told once a file. In our own format such
boxes are errors: who writes it can mend them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.datasets.ocr.page import Box, Page, on_page, page_from_json
from zoo.datasets.ocr.tsv import is_table, page_in_file
from zoo.errors import ZooError
from zoo.types import Size

log = logging.getLogger("zoo")

FORMAT = "zoo-page-1"  # our own
SHAPE = 0.02  # by how much the shape of a page may differ whose boxes are scaled
_INCH = 300  # pixels that an inch is taken for, before its page is scaled

# Microsoft Read sometimes says how sure it is in words.
_CONFIDENCES = {"low": 0.3, "medium": 0.6, "high": 0.9}


def read_ocr(path: Path, size: Size, number: int = 0, *, any_scale: bool = False) -> Page:
    """The page of an OCR file whose image has (height, width) ``size``.

    What the file is, its content says. ``number`` chooses the page of a file with several, from
    0. ``any_scale`` is for pages without pixels of their own (a PDF's): the file may be of the
    page at any resolution, or in inches, and its boxes are scaled to ``size``.

    Raises :class:`ZooError` naming the file where it is broken, of no known format, or of an image
    of another size (with ``any_scale``: of another shape).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"{path} can't be read as OCR ({error}); restore the file") from None
    mended = 0
    if is_table(text):
        page, mended = page_in_file(text, str(path), number, size)
    else:
        content = _json(text, path)
        if isinstance(content, dict) and content.get("format") == FORMAT:
            page = page_from_json(text, str(path))
            if number not in (0, page.number):
                raise ZooError(f"{path} has one page, and page {number + 1} was asked for")
        else:
            page, mended = _microsoft(content, path, number, any_scale)
    if mended:
        log.warning("%s: %d of %d boxes were over the page or inverted", path, mended, len(page))
    # A page that was turned before it was read is of the turned picture's size.
    height, width = size[::-1] if page.rotation % 180 else size
    if (page.height, page.width) == (height, width):
        return page
    scale = (width / page.width, height / page.height)
    if any_scale and abs(scale[0] / scale[1] - 1) <= SHAPE:
        return _scaled(page, (height, width), scale)
    raise ZooError(
        f"{path} is of a page of {page.width} x {page.height}, its image has {width} x "
        f"{height} pixels; give the OCR of this image"
    )


def _json(text: str, path: Path) -> Any:
    if not text.strip():
        raise ZooError(f"{path} is empty; write the page's words there, or take it away")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ZooError(
            f"{path}, line {error.lineno}: broken JSON ({error.msg}); restore the file"
        ) from None
    except RecursionError:
        raise ZooError(f"{path} is nested too deeply to be OCR; restore the file") from None


def _scaled(page: Page, size: Size, scale: tuple[float, float]) -> Page:
    """The page at another resolution: of (height, width) ``size``, x and y times ``scale``."""
    boxes = [
        on_page([c * scale[n % 2] for n, c in enumerate(box)], size[1], size[0])[0]
        for box in page.boxes
    ]
    return replace(page, boxes=tuple(boxes), height=size[0], width=size[1], dpi=0.0)


def _microsoft(content: Any, path: Path, number: int, inches: bool) -> tuple[Page, int]:
    """A result of Microsoft Read: version 2 (DocVQA's) or 3 (``analyzeResult``)."""
    if isinstance(content, Mapping):
        inner = content.get("analyzeResult")
        results = content.get("recognitionResults") or (
            inner.get("readResults") if isinstance(inner, Mapping) else None
        )
    else:
        results = None
    if not isinstance(results, list) or not results:
        raise ZooError(
            f"{path} is of no known OCR format (looked for recognitionResults, analyzeResult, "
            f"{FORMAT} and Tesseract's tsv); see docs/documents.md"
        )
    if not 0 <= number < len(results):
        raise ZooError(f"{path} has {len(results)} pages, and page {number + 1} was asked for")
    try:
        return _result(results[number], path, number, inches)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ZooError(
            f"{path} is a broken result of Microsoft Read ({type(error).__name__}: {error}); "
            "restore the file"
        ) from None


def _result(result: Mapping[str, Any], path: Path, number: int, inches: bool) -> tuple[Page, int]:
    unit = result.get("unit", "pixel")
    if unit != "pixel" and not (inches and unit == "inch"):
        raise ZooError(f"{path} has boxes in {unit}; give the OCR of the picture, in pixels")
    factor = _INCH if unit == "inch" else 1
    width, height = (round(float(result[k]) * factor) for k in ("width", "height"))
    words: list[str] = []
    boxes: list[Box] = []
    confidences: list[float] = []
    lines: list[int] = []
    mended = 0
    for line, content in enumerate(result["lines"]):
        for word in content["words"]:
            text = " ".join(str(word["text"]).split())
            if not text:
                continue
            corners = [float(value) * factor for value in word["boundingBox"]]
            box, changed = on_page(corners, width, height)
            mended += changed
            words.append(text)
            boxes.append(box)
            confidences.append(_confidence(word.get("confidence", 1.0)))
            lines.append(line)
    page = Page(
        words=tuple(words), boxes=tuple(boxes), width=width, height=height,
        confidences=tuple(confidences), lines=tuple(lines), number=number,
        engine="Microsoft Read", source=str(path),
    )  # fmt: skip
    return page, mended


def _confidence(value: Any) -> float:
    if isinstance(value, str):
        return _CONFIDENCES.get(value.lower(), 1.0)
    return min(max(float(value), 0.0), 1.0)

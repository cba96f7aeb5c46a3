"""RapidOCR: an engine that pip alone installs, models included (PP-OCRv4's, Apache-2.0).

    pip install 'layout-detr-zoo[rapidocr]'

It finds lines of text, not words: a line is split at its spaces, and its length shared out to the
words by their numbers of characters, so boxes of words are less exact than Tesseract's. Its models
are for Chinese and English, and lose many spaces of English lines: where letters stand further
apart than the others of their line, one is put back. How both engines fare on receipts is in
docs/documents.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
from PIL import Image

from zoo.datasets.ocr.lines import shared_out
from zoo.datasets.ocr.page import Box, Page, on_page
from zoo.datasets.ocr.tesseract import (
    OcrOptions,
    looks_turned,
    stands_upright,
    sure_letters,
    turned,
)
from zoo.errors import ZooError

LANGUAGES = ("eng", "chi_sim", "chi_tra")  # Tesseract's names of what the models read
PACKAGE = "rapidocr-onnxruntime"
CALL = 1  # of how it is called: what was read otherwise is read anew, not from the cache
GAP = 1.5  # times the usual distance of letters, from which on there is a space between two
FIRST_CHINESE = "\u2e80"  # and of what else is written without spaces
STANDS = 1.5  # a line so many times taller than wide stands on its side

# Loaded models that nobody uses at the moment. They are kept for the next page and file; a page
# needs some of its own, since they keep a page's state while they read it.
_idle: list[Any] = []


class RapidOcr:
    """Reads a picture with RapidOCR, one thread a page.

    Raises :class:`ZooError` where the package is missing, for a language that its models don't
    read and for a page segmentation mode, which is Tesseract's. ``timeout`` is not kept.
    """

    name = "rapidocr"

    def __init__(self, options: OcrOptions | None = None) -> None:
        self.options = options or OcrOptions()
        foreign = [n for n in self.options.language.split("+") if n not in LANGUAGES]
        if foreign:
            raise ZooError(
                f"engine rapidocr reads {', '.join(LANGUAGES)}, not {' and '.join(foreign)}; read "
                "that with tesseract"
            )
        if self.options.psm != OcrOptions().psm:
            raise ZooError("engine rapidocr has no psm; leave it out, or read with tesseract")
        _idle.append(_idle.pop() if _idle else _load())
        self.version = f"{metadata.version(PACKAGE)}, call {CALL}"

    def __call__(self, image: Image.Image, dpi: float = 0.0) -> Page:
        """The words of ``image`` (any mode); ``dpi`` 0 where unknown, it does not matter here.

        A page that was hard to read, or whose lines stand upright, is read in its three other
        positions as well, and of those whose lines lie the one is taken of which most was read;
        ``rotation`` says which. A blank page has no words.
        """
        picture = image.convert("RGB")
        page = self._read(picture, dpi, 0)
        if not looks_turned(page):
            return page
        others = [self._read(turned(picture, angle), dpi, angle) for angle in (90, 180, 270)]
        # It reads lines that stand, too, so that as much may be read of a page on its side.
        return max([page, *others], key=lambda p: (not stands_upright(p), sure_letters(p)))

    def _read(self, picture: Image.Image, dpi: float, rotation: int) -> Page:
        # It takes blue, green, red. Unsure lines are kept, as Tesseract's words are.
        pixels = np.ascontiguousarray(np.asarray(picture)[..., ::-1])
        try:
            reader = _idle.pop()
        except IndexError:  # as many are in use as pages are read at once
            reader = _load()
        try:
            found, _ = reader(pixels, return_word_box=True, text_score=0.0)
        finally:
            _idle.append(reader)
        lines = [
            (quad, spaced(text, letters, places), sure)
            for quad, text, sure, places, letters, _ in found or []
        ]
        return page_of_lines(
            lines, picture.size, rotation=rotation, dpi=dpi,
            engine=f"rapidocr {metadata.version(PACKAGE)}",
        )  # fmt: skip


def spaced(text: str, letters: Sequence[str], places: Sequence[Any]) -> str:
    """A line with the spaces put back that stand out as gaps between its ``letters``.

    ``places`` are their boxes, of four corners each. Chinese characters are written without spaces,
    and nothing is put between them.
    """
    if list(letters) != list(text) or len(letters) != len(places) or len(letters) < 3:
        return text  # parts of several letters: nothing is known of the gaps within
    centres = np.asarray(places, dtype=np.float64).mean(axis=1)
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    wide = steps > GAP * np.median(steps)
    out = [letters[0]]
    for before, letter, gap in zip(letters, letters[1:], wide, strict=False):
        if gap and max(before, letter) < FIRST_CHINESE:
            out.append(" ")
        out.append(letter)
    return " ".join("".join(out).split())


def page_of_lines(
    found: Sequence[Sequence[Any]], size: tuple[int, int], *, rotation: int, dpi: float, engine: str
) -> Page:
    """The words of lines (four corners from the top left clockwise, text, confidence 0..1).

    ``size`` is (width, height). A line that stands on its side is shared out from top to bottom.
    """
    width, height = size
    words: list[str] = []
    boxes: list[Box] = []
    confidences: list[float] = []
    lines: list[int] = []
    for line, (quad, text, sure) in enumerate(found):
        corners = np.asarray(quad, dtype=np.float64)
        across = np.linalg.norm(corners[1] - corners[0])
        down = np.linalg.norm(corners[3] - corners[0])
        if down > STANDS * across and len(text.strip()) > 1:
            corners = corners[[1, 2, 3, 0]]  # the line's upper edge is on the right
        begin, end = corners[[0, 3]], corners[[1, 2]]  # its first and its last edge
        for word, first, last in shared_out(text):
            edges = np.concatenate([begin + (end - begin) * part for part in (first, last)])
            box, _ = on_page(edges.reshape(-1).tolist(), width, height)
            words.append(word)
            boxes.append(box)
            confidences.append(min(max(float(sure), 0.0), 1.0))
            lines.append(line)
    return Page(
        words=tuple(words), boxes=tuple(boxes), width=width, height=height,
        confidences=tuple(confidences), lines=tuple(lines), rotation=rotation, dpi=dpi,
        engine=engine,
    )  # fmt: skip


def _load() -> Any:
    """The models, of one thread each, without the one that turns lines upside down.

    A page is turned as a whole: of lines turned each by itself the order would be the wrong way
    round.
    """
    try:
        package = importlib.import_module("rapidocr_onnxruntime")
    except ImportError as error:
        raise ZooError(
            f"the OCR engine rapidocr is not installed ({error}); install it: pip install "
            "'layout-detr-zoo[rapidocr]'"
        ) from None
    return package.RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1, use_cls=False)

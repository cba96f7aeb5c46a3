"""Tesseract as the default OCR engine: one thread a page, its picture without loss, turned upright.

What a plain call costs and loses is in docs/documents.md: Tesseract's own threads make it several
times slower, JPEG pictures are compressed once more, a page that lies on its side is read as
garbage. The program is called directly with the picture on its standard input (``pytesseract``
finds it): so the environment is the child's alone, and no file is written.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from statistics import mean

from PIL import Image

from zoo.datasets.ocr.page import Page
from zoo.datasets.ocr.tsv import page_of, rows_of
from zoo.errors import ZooError

LONGEST = 3500  # pixels: a larger page is reduced, Tesseract does not read it any better
SURE = 0.6  # mean confidence below which a page may lie on its side
MARGIN = 0.1  # the part of what was read that a page may lose by being turned upright
CALL = 2  # of how Tesseract is called: what was read otherwise is read anew, not from the cache
UNKNOWN_DPI = 200.0  # what a page is taken for that does not say (Tesseract would take 70)

_TURNS = {
    90: Image.Transpose.ROTATE_270,  # Pillow counts the other way round
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class OcrOptions:
    """How pages are read; every value is a part of the cache's key.

    ``language``: Tesseract's names, joined by ``+``. ``psm``: its page segmentation mode (3:
    automatic, 6: one block, 11: sparse text). ``timeout``: seconds for one page; only Tesseract
    can be stopped.
    """

    language: str = "eng"
    psm: int = 3
    timeout: float = 120.0


class Tesseract:
    """Reads a picture with Tesseract 4 or newer.

    Raises :class:`ZooError` where the program or a language is missing, before anything is read.
    """

    name = "tesseract"

    def __init__(self, options: OcrOptions | None = None) -> None:
        self.options = options or OcrOptions()
        self.version = f"{_version()}, call {CALL}"
        missing = [name for name in self.options.language.split("+") if name not in _languages()]
        if missing:
            packages = " ".join(f"tesseract-ocr-{name.replace('_', '-')}" for name in missing)
            raise ZooError(
                f"Tesseract has no language {' and '.join(missing)} (it has "
                f"{', '.join(sorted(_languages()))}); install it: apt install {packages}"
            )

    def __call__(self, image: Image.Image, dpi: float = 0.0) -> Page:
        """The words of ``image`` (any mode); ``dpi`` 0 where unknown.

        A page that was hard to read is tried upright as well: the page's ``rotation`` says by how
        much it was turned, and its size and boxes are of the turned page. A blank page has no
        words. Raises :class:`ZooError` where Tesseract fails or takes longer than ``timeout``.
        """
        grey = image.convert("L")
        page = self._read(grey, dpi)
        if not looks_turned(page):
            return page
        turn = self._turn(grey, dpi)
        if turn == 0:
            return page
        again = self._read(turned(grey, turn), dpi, rotation=turn)
        # By how much was read, not how surely: garbage can be a few sure words. Lines on their
        # side may be read well, too; but then words stand upright, and turning loses next to none.
        kept = 1.0 - MARGIN if stands_upright(page) else 1.0
        return again if sure_letters(again) > kept * sure_letters(page) else page

    def _read(self, grey: Image.Image, dpi: float, rotation: int = 0) -> Page:
        scale = min(1.0, LONGEST / max(grey.size))
        small = grey
        if scale < 1:
            size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
            small = grey.resize(size, Image.Resampling.LANCZOS)
        text = self._run(small, dpi * scale, self.options.psm, "tsv")
        page, _ = page_of(
            rows_of(text), (grey.height, grey.width), scale=scale, rotation=rotation, dpi=dpi,
            engine=f"tesseract {_version()}",
        )  # fmt: skip
        return page

    def _turn(self, grey: Image.Image, dpi: float) -> int:
        """Degrees clockwise that would turn the page upright; 0 where that can't be told."""
        try:
            text = self._run(grey, dpi, 0, language="osd")
        except ZooError:
            return 0  # too few characters
        found = re.search(r"^Rotate: (\d+)", text, re.M)
        turn = int(found.group(1)) if found else 0
        return turn if turn in _TURNS else 0

    def _run(
        self, image: Image.Image, dpi: float, psm: int, *outputs: str, language: str = ""
    ) -> str:
        content = io.BytesIO()
        image.save(content, "PPM")
        command = [
            _program(), "stdin", "stdout", "-l", language or self.options.language,
            "--psm", str(psm), "--dpi", str(round(dpi or UNKNOWN_DPI)), *outputs,
        ]  # fmt: skip
        # Its threads mostly wait for each other: one is several times as fast a page of work.
        environment = {"OMP_THREAD_LIMIT": "1", **os.environ}
        try:
            done = subprocess.run(
                command, input=content.getvalue(), capture_output=True, env=environment,
                timeout=self.options.timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ZooError(
                f"Tesseract took over {self.options.timeout:g} s for a page of {image.width} x "
                f"{image.height}; give it longer (timeout), or a smaller picture"
            ) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
            raise ZooError(f"Tesseract failed (status {done.returncode}): {said[-1]}")
        return done.stdout.decode("utf-8", errors="replace")


def sure_letters(page: Page) -> float:
    """Letters read, each counted by the confidence of its word."""
    pairs = zip(page.confidences, page.words, strict=True)
    return sum(sure * len(word) for sure, word in pairs)


def stands_upright(page: Page) -> bool:
    """Whether most of the longer words are taller than wide."""
    long = [b for b, word in zip(page.boxes, page.words, strict=True) if len(word) >= 3]
    return bool(long) and mean(b[3] - b[1] > b[2] - b[0] for b in long) > 0.5


def looks_turned(page: Page) -> bool:
    """Whether a page may lie on its side: hard to read, or its longer words stand upright."""
    letters = sum(map(len, page.words))
    return bool(letters) and (sure_letters(page) < SURE * letters or stands_upright(page))


def turned(image: Image.Image, degrees: int) -> Image.Image:
    """The picture turned clockwise by 0, 90, 180 or 270 degrees."""
    return image.transpose(_TURNS[degrees]) if degrees else image


def _program() -> str:
    import pytesseract

    return str(pytesseract.pytesseract.tesseract_cmd)


@cache
def _version() -> str:
    return _ask("--version").split()[1]


@cache
def _languages() -> frozenset[str]:
    return frozenset(_ask("--list-langs").splitlines()[1:])


def _ask(argument: str) -> str:
    try:
        done = subprocess.run([_program(), argument], capture_output=True, text=True, timeout=60)
    except OSError:
        raise ZooError(
            "Tesseract is not installed; install it (Debian: apt install tesseract-ocr), or give "
            "the words of the pages yourself"
        ) from None
    return done.stdout or done.stderr

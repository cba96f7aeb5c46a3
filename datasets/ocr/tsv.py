"""Tesseract's table (``tesseract page.png out tsv``): its rows as words with their places.

A row is a page, a block, a paragraph, a line or a word (``level`` 1 to 5): ``level page_num
block_num par_num line_num word_num left top width height conf text``, boxes in pixels, ``conf``
0..100, and -1 where the row is no word. The engine reads the same table, so both give one page.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from zoo.datasets.ocr.page import Box, Page, on_page
from zoo.errors import ZooError
from zoo.types import Size

COLUMNS = ("level", "page_num", "block_num", "par_num", "line_num", "left", "top", "width",
           "height", "conf", "text")  # fmt: skip

Row = Mapping[str, str]


def is_table(text: str) -> bool:
    """Whether a text begins like Tesseract's table."""
    return {"left", "conf", "text"} <= set(text.partition("\n")[0].rstrip("\r").split("\t"))


def rows_of(text: str) -> list[Row]:
    """The rows of a table; quotes are letters like others."""
    table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [{key: value or "" for key, value in row.items() if key} for row in table]


def page_of(
    rows: Sequence[Row], size: Size, *, scale: float = 1.0, rotation: int = 0, dpi: float = 0.0,
    engine: str = "tesseract", source: str = "",
) -> tuple[Page, int]:  # fmt: skip
    """The page of (height, width) ``size`` that the words of a table make; how many were mended.

    The table is of a picture reduced by ``scale``. Rows that are no words, or empty ones, are left
    out. Raises ``KeyError`` and ``ValueError`` for a row that is none of Tesseract's.
    """
    height, width = size
    words: list[str] = []
    boxes: list[Box] = []
    confidences: list[float] = []
    lines: list[int] = []
    blocks: list[int] = []
    known: dict[tuple[str, ...], int] = {}
    mended = 0
    for row in rows:
        text = row["text"].strip()
        confidence = float(row["conf"])
        if confidence < 0 or not text:
            continue
        # A word has a pixel at least, so that every word has a place.
        left, top = float(row["left"]) / scale, float(row["top"]) / scale
        across, down = float(row["width"]) / scale, float(row["height"]) / scale
        right = left + (across if across < 0 else max(1.0, across))
        bottom = top + (down if down < 0 else max(1.0, down))
        box, changed = on_page((left, top, right, bottom), width, height)
        line = tuple(row[key] for key in ("block_num", "par_num", "line_num"))
        mended += changed
        words.append(text)
        boxes.append(box)
        confidences.append(min(confidence / 100, 1.0))
        lines.append(known.setdefault(line, len(known)))
        blocks.append(int(row["block_num"]))
    page = Page(
        words=tuple(words), boxes=tuple(boxes), width=width, height=height,
        confidences=tuple(confidences), lines=tuple(lines), blocks=tuple(blocks),
        rotation=rotation, dpi=dpi, engine=engine, source=source,
    )  # fmt: skip
    return page, mended


def page_in_file(text: str, path: str, number: int, size: Size) -> tuple[Page, int]:
    """Page ``number`` (from 0) of a table that is a file; how many of its boxes were mended.

    Its size is what its first row says, else that of the image: (height, width) ``size``. Raises
    :class:`ZooError` naming the file for missing columns, a row that can't be understood and a
    page that is not there.
    """
    rows = rows_of(text)
    named = text.partition("\n")[0].rstrip("\r").split("\t")
    if missing := [name for name in COLUMNS if name not in named]:
        raise ZooError(f"{path} has no column {missing[0]}; give Tesseract's table as it is (tsv)")
    for line, row in enumerate(rows, 2):
        try:
            own = [int(row[key]) for key in ("level", "page_num", "block_num")]
            places = [float(row[key]) for key in ("left", "top", "width", "height", "conf")]
            if own[1] < 1 or not all(abs(value) < 2**31 for value in places):
                raise ValueError("a number is out of range")
        except ValueError as error:
            raise ZooError(
                f"{path}, line {line} is no row of Tesseract's table ({error}); restore the file"
            ) from None
    wanted = [row for row in rows if int(row["page_num"]) == number + 1]
    if not wanted:
        count = len({row["page_num"] for row in rows})
        raise ZooError(f"{path} has {count} pages, and page {number + 1} was asked for")
    whole = next((row for row in wanted if int(row["level"]) == 1), None)
    own_size = size if whole is None else (int(float(whole["height"])), int(float(whole["width"])))
    return page_of(wanted, own_size, source=path)

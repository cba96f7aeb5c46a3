"""A page as everything else sees it: words with their places, whoever read them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from zoo.errors import ZooError

Box = tuple[float, float, float, float]

GRID = 1000  # boxes of words are 0..GRID inside models (LayoutLM, arXiv 1912.13318, section 2.2)


class Picture(Protocol):
    """Where a page's picture is to be had (:mod:`zoo.datasets.page_pictures`)."""

    def load(self) -> Image.Image:
        """RGB, as the page's boxes see it."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The words of one page, in reading order.

    ``boxes`` are xyxy in pixels of the page as it was read: EXIF orientation applied and turned
    by ``rotation`` degrees clockwise (0, 90, 180 or 270), so that its lines run from left to
    right; ``width`` and ``height`` are that picture's. ``confidences`` are 0..1 (1 where the
    reader gave none). ``lines`` and ``blocks`` are ids: words of one line share a line, lines of
    one block a block. ``number`` counts the pages of the file from 0; ``dpi`` is 0 where unknown;
    ``engine`` says who read it; ``picture`` where the page's picture is, if it has one.

    Raises :class:`ZooError` that names the word where a box is not finite, negative, inverted or
    over the page's edge, and where the columns differ in length.
    """

    words: tuple[str, ...]
    boxes: tuple[Box, ...]
    width: int
    height: int
    confidences: tuple[float, ...] = ()
    lines: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    rotation: int = 0
    number: int = 0
    dpi: float = 0.0
    engine: str = ""
    source: str = field(default="", compare=False)
    picture: Picture | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        where = self.source or "a page"
        if self.width < 1 or self.height < 1:
            raise ZooError(f"{where}: {self.width} x {self.height} is no size of a page")
        count = len(self.words)
        for name, filler in (("confidences", 1.0), ("lines", 0), ("blocks", 0)):
            if not getattr(self, name):
                object.__setattr__(self, name, (filler,) * count)
        for name in ("boxes", "confidences", "lines", "blocks"):
            if len(getattr(self, name)) != count:
                raise ZooError(
                    f"{where}: {len(getattr(self, name))} {name} for {count} words; give one each"
                )
        for number, (word, box) in enumerate(zip(self.words, self.boxes, strict=True)):
            if fault := box_fault(box, self.width, self.height):
                raise ZooError(f"{where}, word {number} '{word}': its box {list(box)} {fault}")

    def __len__(self) -> int:
        return len(self.words)

    def bbox(self) -> Tensor:
        """[N, 4] int64: the boxes on the grid of 0..1000 that models take."""
        if not self.words:
            return torch.zeros((0, 4), dtype=torch.int64)
        scale = torch.tensor([self.width, self.height, self.width, self.height])
        boxes = torch.tensor(self.boxes, dtype=torch.float64)
        return (boxes * GRID / scale).long().clamp_(0, GRID)

    def text(self) -> str:
        """The words, one line of the page a line."""
        out: list[str] = []
        for number, word in enumerate(self.words):
            new = number == 0 or self.lines[number] != self.lines[number - 1]
            out.append(("\n" if new and number else "" if new else " ") + word)
        return "".join(out)

    def ordered(self, order: Sequence[int]) -> Page:
        """The same page with its words in another order: ``order`` lists old places."""
        if sorted(order) != list(range(len(self))):
            raise ValueError("an order has to name every word once")

        def pick(column: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(column[n] for n in order)

        return replace(
            self,
            words=pick(self.words),
            boxes=pick(self.boxes),
            confidences=pick(self.confidences),
            lines=pick(self.lines),
            blocks=pick(self.blocks),
        )

    def to_json(self) -> str:
        """Our own OCR format; :func:`page_from_json` reads it."""
        content = asdict(replace(self, picture=None))
        del content["picture"]
        return json.dumps({"format": "zoo-page-1", **content}, ensure_ascii=False)


def box_fault(box: Sequence[float], width: float, height: float) -> str | None:
    """What is wrong with a word's box on a page of that size; None where nothing is."""
    if len(box) != 4 or not all(math.isfinite(c) for c in box):
        return "is not four finite numbers"
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return "is inverted; give x1 <= x2 and y1 <= y2"
    if x1 < 0 or y1 < 0:
        return "is negative; give pixels of the page"
    if x2 > width or y2 > height:
        return f"reaches over the page of {width} x {height}; give pixels of this page"
    return None


def on_page(corners: Sequence[float], width: float, height: float) -> tuple[Box, bool]:
    """Corners (x, y, x, y, ...) in any order as an xyxy box on the page; and if that changed it.

    Raises ``ValueError`` for anything but an even number of at least four finite numbers.
    """
    values = [float(c) for c in corners]
    if len(values) < 4 or len(values) % 2 or not all(abs(v) < 2**31 for v in values):
        raise ValueError(f"{corners} is no box")
    xs, ys = values[::2], values[1::2]
    plain = (min(xs), min(ys), max(xs), max(ys))
    box = (
        min(max(plain[0], 0.0), width),
        min(max(plain[1], 0.0), height),
        min(max(plain[2], 0.0), width),
        min(max(plain[3], 0.0), height),
    )
    inverted = len(values) == 4 and (xs[0] > xs[1] or ys[0] > ys[1])
    return box, box != plain or inverted


def page_from_json(text: str, source: str) -> Page:
    """A page in our own OCR format. Raises :class:`ZooError` naming ``source``."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.pop("format", None) != "zoo-page-1":
            raise ZooError(f"{source} is not of the format zoo-page-1; see docs/documents.md")
        content["source"] = source
        columns = ("words", "confidences", "lines", "blocks")
        content |= {k: tuple(content[k]) for k in columns if k in content}
        content["boxes"] = tuple((*map(float, box),) for box in content["boxes"])
        return Page(**content)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ZooError(f"{source} is a broken page ({error}); write it anew") from None

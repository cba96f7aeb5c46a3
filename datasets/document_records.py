"""What document data sets say, in the house's own records, and what is common to their readers.

A reader of a format (``docvqa_records``, ``funsd_records``, ...) finds the files of a split, checks
them and gives plain tuples of the records below. It reads no OCR: a record names its OCR file, and
:func:`read_page` makes a :class:`~zoo.datasets.ocr.page.Page` of it with whatever reader of OCR
files one has.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo.datasets.images import image_size
from zoo.datasets.ocr.page import Box, Page, on_page
from zoo.errors import ZooError, nearest
from zoo.types import Size

log = logging.getLogger("zoo")

QuestionId = int | str
ReadOcr = Callable[[Path, Size], Page]  # (OCR file, (height, width) of its image) -> page


@dataclass(frozen=True, kw_only=True)
class Document:
    """One page: its picture, its OCR file (None where it has none) and its number.

    ``page`` is the page's number in the file ``image``, from 0.
    """

    document_id: str
    image: Path
    ocr: Path | None = None
    page: int = 0


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question on a page. ``answers`` are all right ones; empty in a split without answers."""

    question_id: QuestionId
    text: str
    answers: tuple[str, ...]
    document: Document
    types: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaggedPage:
    """A page whose words have BIO tags (``O``, ``B-TOTAL``, ``I-TOTAL``), one each.

    The page's ``lines`` number its segments (an entity or a line, as the data set has it), see
    :func:`with_segment_boxes`. ``fields`` are values known for the whole page, by name.
    """

    document: Document
    page: Page
    tags: tuple[str, ...]
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.tags) != len(self.page):
            raise ValueError(f"{len(self.tags)} tags for {len(self.page)} words")


@dataclass(frozen=True, kw_only=True)
class LabelledDocument:
    """A page of a class."""

    document: Document
    label: str


@dataclass(frozen=True)
class RankedAnswer:
    """A candidate: its text as the page has it, and words ``first`` to ``last`` of ``page``.

    ``first`` and ``last`` (both included) are None, and ``page`` is -1, where the answer is not
    from the page's words; the text of "there is no answer" is empty.
    """

    text: str
    score: float
    page: int = -1
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True)
class Answers:
    """The prediction for one question: its candidates, best first."""

    ranked: tuple[RankedAnswer, ...]

    @property
    def text(self) -> str:
        """The best candidate's text; empty where there is none."""
        return self.ranked[0].text if self.ranked else ""


@dataclass(frozen=True)
class Tags:
    """The prediction for a page's words: ``labels`` are class indices 0..K-1.

    ``words`` are the places in the page of the words that they are for; None where they are for
    all. So a page that was read through several windows may have a prediction of each.
    """

    labels: tuple[int, ...]
    words: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.words is not None and len(self.words) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels for {len(self.words)} words")


@dataclass(frozen=True)
class Label:
    """The prediction of a page's class: its index 0..K-1 and its score."""

    label: int
    score: float = 1.0


def read_page(document: Document, read_ocr: ReadOcr) -> Page:
    """The words of a document from its OCR file.

    Raises :class:`ZooError` where it has none, where image or OCR file are missing, and where the
    OCR is of a page of another size than the image.
    """
    if document.ocr is None:
        raise ZooError(f"{document.image} has no OCR file; add one or read the picture's words")
    if not document.ocr.is_file():
        raise ZooError(f"there is no OCR file {document.ocr}; restore it")
    height, width = image_size(document.image)
    page = read_ocr(document.ocr, (height, width))
    if (page.height, page.width) != (height, width):
        raise ZooError(
            f"{document.ocr} is of a page of {page.width} x {page.height}, and its image "
            f"{document.image} has {width} x {height} pixels; give the OCR of this image"
        )
    return replace(page, number=document.page, source=str(document.ocr))


def with_segment_boxes(page: Page) -> Page:
    """The page with every word's box widened to its line's ("segment-level layout").

    LayoutLMv3 (arXiv 2204.08387, section 3.2) reports its figures with these boxes.
    """
    unions: dict[int, Box] = {}
    for line, box in zip(page.lines, page.boxes, strict=True):
        a = unions.get(line, box)
        unions[line] = (
            min(a[0], box[0]),
            min(a[1], box[1]),
            max(a[2], box[2]),
            max(a[3], box[3]),
        )
    return replace(page, boxes=tuple(unions[line] for line in page.lines))


def bio_names(classes: Iterable[str]) -> tuple[str, ...]:
    """All tags of entity classes: ``O``, then B- and I- of every class in its order."""
    return ("O", *(f"{prefix}-{name}" for name in classes for prefix in "BI"))


def bio_tags(name: str | None, count: int) -> list[str]:
    """The tags of an entity of ``count`` words; ``O`` throughout for None."""
    if name is None:
        return ["O"] * count
    return [f"{'I' if place else 'B'}-{name}" for place in range(count)]


def class_index(name: str, names: Sequence[str], where: str) -> int:
    """The place of ``name`` among the classes.

    Raises :class:`ZooError` that begins with ``where`` (file and record) for an unknown one.
    """
    try:
        return names.index(name)
    except ValueError:
        raise ZooError(
            f"{where} has the label '{name}', which is not a class; {nearest(name, list(names))}"
        ) from None


def load_json(path: Path, what: str = "") -> Any:
    """A JSON file's content. Raises :class:`ZooError` with the place where it is broken."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ZooError(f"there is no {what or 'file'} {path}; restore it") from None
    except json.JSONDecodeError as error:
        raise ZooError(
            f"{path}, line {error.lineno}, column {error.colno}: broken JSON ({error.msg}); "
            "restore the file"
        ) from None
    except (UnicodeDecodeError, RecursionError, OSError) as error:
        raise ZooError(f"{path} can't be read as JSON ({error}); restore the file") from None


def question_text(value: Any, where: str) -> str:
    """A question's text, checked. Raises :class:`ZooError` beginning with ``where``."""
    if not isinstance(value, str) or not value.strip():
        raise ZooError(f"{where} has the question {value!r}; write a question there")
    return value


def answer_texts(value: Any, where: str) -> tuple[str, ...]:
    """The gold answers, checked. Raises :class:`ZooError` beginning with ``where``."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ZooError(f"{where} has the answers {value!r}; give a list of texts")
    if not value:
        raise ZooError(
            f"{where} has no right answer, and can't be scored; add one or remove the question"
        )
    return tuple(value)


def type_names(value: Any, where: str) -> tuple[str, ...]:
    """The kinds of a question, checked; none for None."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ZooError(f"{where} has the question types {value!r}; give a list of names")
    return tuple(value)


def inside(folder: Path, name: Any, where: str) -> Path:
    """The file ``name`` (relative) of ``folder``; it may not lead out of it."""
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else []
    if not parts or not parts[-1] or parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise ZooError(f"{where} has the file name {name!r}; give a path under {folder}")
    return folder.joinpath(*parts)


def check_files(documents: Iterable[Document], listing: Path) -> None:
    """Raise one :class:`ZooError` for all pictures and OCR files that are not there."""
    unique = list(dict.fromkeys(documents))
    for what, paths in (
        ("pictures", [d.image for d in unique]),
        ("OCR files", [d.ocr for d in unique if d.ocr is not None]),
    ):
        missing = [path for path in dict.fromkeys(paths) if not path.is_file()]
        if missing:
            raise ZooError(
                f"{listing} names {len(missing)} of {len(set(paths))} {what} that are missing "
                f"(first: {missing[0]}); restore them"
            )


class Mender:
    """Puts the boxes of others' files on their pages: over the edge is clipped, inverted turned.

    What had to be mended is counted, and :meth:`tell` says it once for a whole split.
    """

    def __init__(self) -> None:
        self.count = self.mended = 0
        self.first = ""

    def box(self, corners: Sequence[float], size: Size, where: str) -> Box:
        """Corners in any order (x, y, x, y ...) as an xyxy box on a page of (height, width)."""
        box, changed = on_page(corners, size[1], size[0])
        self.count += 1
        self.mended += changed
        if changed and not self.first:
            self.first = where
        return box

    def tell(self, split: str) -> None:
        """Say how many boxes of a split were mended, and where the first is; silent for none."""
        if self.mended:
            log.warning(
                "%s: %d of %d boxes were over their page or inverted, and were mended (first: %s)",
                split, self.mended, self.count, self.first,
            )  # fmt: skip


def numbers(value: Any, count: int, where: str) -> list[float]:
    """A list of ``count`` finite numbers. Raises :class:`ZooError` beginning with ``where``."""
    if (
        not isinstance(value, list | tuple)
        or len(value) != count
        or any(type(v) not in (int, float) or not abs(v) < 2**31 for v in value)
    ):
        raise ZooError(f"{where} has the box {value!r}; give {count} finite numbers")
    return list(value)


def first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these subfolders that is there."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def picture_named(folder: Path, stem: str, where: str) -> Path:
    """The picture ``stem`` with any of the usual suffixes."""
    for suffix in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".JPG", ".PNG"):
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return path
    raise ZooError(f"{where} has no picture {stem}.png or .jpg in {folder}; restore it")


def read_ids(path: Path) -> list[str]:
    """The ids of a list file: one a line, blank lines and ``#`` comments left out."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]

"""What every format of annotated pictures has in common: the files of one split.

A format finds a split's files, and gives what they say as a COCO dict
``{"images", "annotations", "categories"}``: so checks, arrays, evaluation, inspection and
conversion are written once (:mod:`zoo.datasets.coco_records` and others). Keys of records that
begin with ``_`` are ours and are never written to a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, Protocol

from zoo.datasets.picture_files import SUFFIXES
from zoo.errors import ZooError

ORIGIN = "_origin"  # of an annotation: the place it was read from, for messages

_ALIASES = {
    "val": ("valid", "validation"),
    "valid": ("val", "validation"),
    "validation": ("val", "valid"),
}


Tell = Callable[[str, str], None]
"""Is told of a fault: its kind (of :data:`zoo.datasets.inspection_findings.KINDS`), and one
sentence that names file and line, and after a semicolon the remedy. Either it raises, or the
reader goes on without the faulty record."""

_HARMLESS = ("from_zero", "orphan")  # kinds that are worth a word in an inspection only


def refuse(code: str, sentence: str) -> None:
    """A :data:`Tell` that raises :class:`ZooError`: what training does with a fault."""
    if code not in _HARMLESS:
        raise ZooError(sentence)


class SplitFiles(Protocol):
    """Where a split's annotations and pictures are, and how they are read."""

    @property
    def annotations(self) -> Path:
        """What messages name: the file that says which pictures there are, or its folder."""

    @property
    def images(self) -> Path:
        """The folder that the records' file names are relative to."""

    def read(self) -> dict[str, Any]:
        """The content as a COCO dict. Raises :class:`ZooError` for the first fault."""

    def survey(self, tell: Tell) -> Any:
        """As much of the content as can be understood; every fault goes to ``tell``."""

    def unlisted(self, listed: Set[str]) -> list[str]:
        """Names of pictures that lie there and that no split uses; ``listed`` are this one's."""


def names_of(split: str) -> tuple[str, ...]:
    """A split's name and the others that are common for it: ``valid`` is ``val``."""
    return (split, *_ALIASES.get(split, ()))


def origin(annotation: Mapping[str, Any]) -> str:
    """Where an annotation stands, in words."""
    return str(annotation.get(ORIGIN) or f"annotation id {annotation.get('id')}")


def pictures_below(folder: Path) -> set[str]:
    """Names of all pictures in a folder and its subfolders, relative to it, with ``/``."""
    return {
        os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")
        for place, _, names in os.walk(folder)
        for name in names
        if is_picture(name)
    }


def is_picture(name: str) -> bool:
    """Whether a file's name ends as a picture's does."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def leads_out(name: str) -> bool:
    """Whether a relative file name is none, or leads out of its folder."""
    parts = name.replace("\\", "/").split("/")
    return not parts[0] or ".." in parts or ":" in parts[0] or "\0" in name


def read_limited(path: Path, limit: int) -> bytes:
    """A file's bytes. Raises :class:`ZooError` where it can't be read or is over ``limit``."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ZooError(f"{path} can't be read ({error.strerror}); make it readable") from None
    if len(content) > limit:
        raise ZooError(
            f"{path} has more than {limit} bytes, which no file of its kind needs; give the right "
            "file"
        )
    return content


def decoded(path: Path, limit: int) -> str:
    """A text file's content. Raises :class:`ZooError` also where it is not UTF-8."""
    try:
        return read_limited(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ZooError(
            f"{path} is not a text in UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None

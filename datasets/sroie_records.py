"""SROIE, task 3: scanned receipts with company, date, address and total.

Huang et al., "ICDAR2019 Competition on Scanned Receipt OCR and Information Extraction", arXiv
2103.10213; 626 receipts to train on and 347 to test. To be had after registration at
https://rrc.cvc.uab.es/?ch=13 under the terms stated there; no part of it comes with this project.
The usual arrangement of its files is read::

    FOLDER/{train,test}/img/*.jpg                      or images/, documents/
    FOLDER/{train,test}/box/*.txt                      x1,y1,..,x4,y4,transcript of a line
    FOLDER/{train,test}/entities/*.txt                 or key/, keys/; JSON in .txt or .json

or the three folders in FOLDER itself with lists of ids, ``train.txt`` and ``val.txt``.

The data set has no word boxes and no tags. A line's box is shared out to its words by their
numbers of characters, and a field's words are found by :mod:`zoo.datasets.spans`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from zoo.datasets.document_records import (
    Document,
    Mender,
    TaggedPage,
    bio_names,
    bio_tags,
    first_folder,
    load_json,
    picture_named,
    read_ids,
)
from zoo.datasets.images import image_size
from zoo.datasets.ocr.lines import shared_out
from zoo.datasets.ocr.page import Box, Page
from zoo.datasets.spans import PageIndex, find_spans
from zoo.errors import ZooError, nearest
from zoo.types import Size

log = logging.getLogger("zoo")

FIELDS = ("company", "date", "address", "total")
CLASSES = tuple(name.upper() for name in FIELDS)
TAG_NAMES = bio_names(CLASSES)
WHERE = (
    "SROIE is to be had after registration at https://rrc.cvc.uab.es/?ch=13 under the terms "
    "stated there"
)

_IMAGES = ("img", "images", "image", "documents")
_BOXES = ("box", "boxes")
_KEYS = ("entities", "key", "keys")
_ALIASES = {"val": ("val", "test"), "test": ("test",)}


def matches(folder: Path) -> str | None:
    """None where the folder is of this format, else what was looked for."""
    parts = (folder / "train", folder / "test", folder)
    if any(first_folder(p, _BOXES) and first_folder(p, _KEYS) for p in parts):
        return None
    return "train/box/ and train/entities/, or box/ and entities/ (SROIE)"


def read_sroie(
    folder: Path, split: str, ids: Sequence[str] | None = None
) -> tuple[TaggedPage, ...]:
    """The receipts of a split, in the order of their names, with the tags of :data:`TAG_NAMES`.

    ``ids`` chooses receipts by name. ``fields`` of a page are the labels as they stand in the
    file. Where a field's text stands on a receipt several times, the place is tagged whose line
    has the field's name ("TOTAL 9.00"), else the first. Labels that are nowhere in the transcript
    are counted and told; nothing is tagged for them.

    Raises :class:`ZooError` naming file and line for whatever is missing, broken or unknown.
    """
    places = [folder / name for name in _ALIASES.get(split, (split,))]
    part = next((p for p in places if first_folder(p, _BOXES)), folder)
    boxes, keys, images = (first_folder(part, names) for names in (_BOXES, _KEYS, _IMAGES))
    if boxes is None or keys is None or images is None:
        raise ZooError(
            f"{folder} has no receipts of the split '{split}' (looked for {'|'.join(_BOXES)}, "
            f"{'|'.join(_KEYS)} and {'|'.join(_IMAGES)} in {', '.join(p.name for p in places)} "
            f"and in the folder itself); name another folder or split; {WHERE}"
        )
    if ids is None and part == folder:
        listing = folder / f"{split}.txt"
        if not listing.is_file():
            raise ZooError(
                f"{folder} does not say which receipts are of the split '{split}'; list their "
                f"names in {listing}, one a line"
            )
        ids = read_ids(listing)
    if ids is None:
        ids = sorted(path.stem for path in boxes.glob("*.txt"))
    if not ids:
        raise ZooError(f"the split '{split}' of {folder} has no receipt; add some to {boxes}")
    pages: list[TaggedPage] = []
    lost: list[str] = []
    mender = Mender()
    for name in ids:
        page, missed = _receipt(name, boxes, keys, images, mender)
        pages.append(page)
        lost += [f"{name}, {key}" for key in missed]
    mender.tell(f"{folder}, split {split}")
    if lost:
        total = sum(len(page.fields) for page in pages)
        log.warning(
            "%s, split %s: %d of %d labels are not in the transcript and are not tagged "
            "(first: receipt %s)",
            folder,
            split,
            len(lost),
            total,
            lost[0],
        )
    return tuple(pages)


def _receipt(
    name: str, boxes: Path, keys: Path, images: Path, mender: Mender
) -> tuple[TaggedPage, list[str]]:
    """A receipt, and the fields whose text is nowhere on it."""
    image = picture_named(images, name, f"receipt {name}")
    page = _page(boxes / f"{name}.txt", image_size(image), mender)
    fields = _fields(keys, name)
    index = PageIndex(page)
    tags = ["O"] * len(page)
    lost = []
    for key, value in fields.items():
        found = find_spans(index, [value], key) if value.strip() else None
        free = [
            (a, b)
            for a, b in (found.spans if found else ())
            if all(tag == "O" for tag in tags[a : b + 1])
        ]
        if not free:
            lost.append(key)
            continue
        first, last = free[0]
        tags[first : last + 1] = bio_tags(key.upper(), last + 1 - first)
    document = Document(document_id=name, image=image)
    return TaggedPage(document=document, page=page, tags=tuple(tags), fields=fields), lost


def _fields(keys: Path, name: str) -> dict[str, str]:
    path = next(
        (p for p in (keys / f"{name}.json", keys / f"{name}.txt") if p.is_file()),
        keys / f"{name}.txt",
    )
    content = load_json(path, "labels")
    if not isinstance(content, dict):
        raise ZooError(f"{path} is no JSON object; give it some of {', '.join(FIELDS)}")
    for key, value in content.items():
        if key not in FIELDS:
            raise ZooError(f"{path} has the field '{key}'; {nearest(key, FIELDS)}")
        if not isinstance(value, str):
            raise ZooError(f"{path} has the {key} {value!r}; give a text")
    return {key: content[key].strip() for key in FIELDS if key in content}


def _page(path: Path, size: Size, mender: Mender) -> Page:
    """The lines of a transcript as a page of words."""
    words: list[str] = []
    boxes: list[Box] = []
    lines: list[int] = []
    for place, line in enumerate(_text(path).splitlines()):
        if not line.strip():
            continue
        *corners, transcript = line.split(",", 8)
        try:
            if len(corners) != 8:
                raise ValueError
            box = mender.box([float(c) for c in corners], size, f"{path}, line {place + 1}")
        except (ValueError, IndexError):
            raise ZooError(
                f"{path}, line {place + 1}: '{line[:60]}' is not x1,y1,x2,y2,x3,y3,x4,y4,"
                "transcript; mend it there"
            ) from None
        found = share_out(transcript, box)
        words += [word for word, _ in found]
        boxes += [box for _, box in found]
        lines += [place] * len(found)
    return Page(
        words=tuple(words),
        boxes=tuple(boxes),
        height=size[0],
        width=size[1],
        lines=tuple(lines),
        engine="sroie",
        source=str(path),
    )


def _text(path: Path) -> str:
    """A transcript's text: the files are partly UTF-8 and partly Latin-1."""
    try:
        content = path.read_bytes()
    except OSError:
        raise ZooError(f"there is no transcript {path}; restore it") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def share_out(text: str, box: Box) -> list[tuple[str, Box]]:
    """A line's words, its width shared out to them by their numbers of characters."""
    x1, y1, x2, y2 = box
    width = x2 - x1
    return [
        (word, (x1 + begin * width, y1, min(x1 + end * width, x2), y2))
        for word, begin, end in shared_out(text)
    ]

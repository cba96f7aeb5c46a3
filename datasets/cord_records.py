"""CORD: receipts whose words belong to 30 fields.

Park et al., "CORD: A Consolidated Receipt Dataset for Post-OCR Parsing", NeurIPS 2019 Workshop on
Document Intelligence; 800, 100 and 100 receipts. Licence CC BY 4.0, to be had at
https://github.com/clovaai/cord; no part of it comes with this project. It is read as it unpacks::

    FOLDER/{train,dev,test}/{image/*.png,json/*.json}        split val is dev
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.datasets.document_records import (
    Document,
    Mender,
    TaggedPage,
    bio_names,
    bio_tags,
    load_json,
    numbers,
    picture_named,
)
from zoo.datasets.images import image_size
from zoo.datasets.ocr.page import Box, Page
from zoo.errors import ZooError, nearest

_FIELDS = {
    "menu": "nm num unitprice cnt discountprice price itemsubtotal vatyn etc "
    "sub_nm sub_unitprice sub_cnt sub_price sub_etc",
    "void_menu": "nm price",
    "sub_total": "subtotal_price discount_price service_price othersvc_price tax_price etc",
    "total": "total_price total_etc cashprice changeprice creditcardprice emoneyprice "
    "menutype_cnt menuqty_cnt",
}
CATEGORIES = tuple(f"{group}.{name}" for group, names in _FIELDS.items() for name in names.split())
CLASSES = tuple(category.upper() for category in CATEGORIES)
TAG_NAMES = bio_names(CLASSES)  # 61
WHERE = "CORD is to be had at https://github.com/clovaai/cord under CC BY 4.0"

_FOLDERS = {"val": ("dev", "val", "valid")}
_QUAD = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")


def matches(folder: Path) -> str | None:
    """None where the folder is of this format, else what was looked for."""
    for split in ("train", "val", "test"):
        if any(
            (part / "json").is_dir() and (part / "image").is_dir() for part in _parts(folder, split)
        ):
            return None
    return "{train,dev,test}/json/ and image/ (CORD)"


def _parts(folder: Path, split: str) -> list[Path]:
    return [folder / name for name in _FOLDERS.get(split, (split,))]


def read_cord(folder: Path, split: str) -> tuple[TaggedPage, ...]:
    """The receipts of a split, in the order of their names, with the tags of :data:`TAG_NAMES`.

    Words are in the order of the annotation; a page's ``lines`` are its ``valid_line`` s. Words
    without text are left out. Corners in any order are taken (some pages of the test split have
    them swapped), and boxes are clipped to the picture, which is told.

    Raises :class:`ZooError` naming file and line for whatever is missing, broken or unknown.
    """
    part = next((p for p in _parts(folder, split) if (p / "json").is_dir()), None)
    if part is None:
        looked = " or ".join(str(p.relative_to(folder) / "json") for p in _parts(folder, split))
        raise ZooError(
            f"{folder} has no receipts of the split '{split}' (looked for {looked}); name another "
            f"folder or split; {WHERE}"
        )
    files = sorted((part / "json").glob("*.json"))
    if not files:
        raise ZooError(f"{part / 'json'} has no annotation; unpack the split there; {WHERE}")
    mender = Mender()
    found = tuple(_page(path, part / "image", mender) for path in files)
    mender.tell(f"{folder}, split {split}")
    return found


def _page(path: Path, images: Path, mender: Mender) -> TaggedPage:
    content = load_json(path, "annotation")
    found = content.get("valid_line") if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise ZooError(f"{path} has no list 'valid_line'; give an annotation in CORD's format")
    image = picture_named(images, path.stem, str(path))
    size = image_size(image)
    words: list[str] = []
    boxes: list[Box] = []
    lines: list[int] = []
    tags: list[str] = []
    for place, line in enumerate(found):
        where = f"{path}, valid_line[{place}]"
        name = _class(line, where)
        kept = [w for w in _words(line, where) if w["text"].strip()]
        words += [word["text"].strip() for word in kept]
        boxes += [mender.box(_corners(word.get("quad"), where), size, where) for word in kept]
        lines += [place] * len(kept)
        tags += bio_tags(name, len(kept))
    page = Page(
        words=tuple(words),
        boxes=tuple(boxes),
        height=size[0],
        width=size[1],
        lines=tuple(lines),
        engine="cord",
        source=str(path),
    )
    document = Document(document_id=path.stem, image=image)
    return TaggedPage(document=document, page=page, tags=tuple(tags))


def _class(line: Any, where: str) -> str | None:
    """The line's class, None for "other"."""
    category = line.get("category") if isinstance(line, dict) else None
    if category == "other":
        return None
    if category not in CATEGORIES:
        raise ZooError(
            f"{where} has the category {category!r}; {nearest(str(category), list(CATEGORIES))}"
        )
    return str(category).upper()


def _words(line: Any, where: str) -> list[dict[str, Any]]:
    words = line.get("words")
    if not isinstance(words, list) or not all(
        isinstance(word, dict) and isinstance(word.get("text"), str) for word in words
    ):
        raise ZooError(f"{where} has no list 'words' with texts; mend the annotation")
    return words


def _corners(quad: Any, where: str) -> list[float]:
    values = [quad.get(name) for name in _QUAD] if isinstance(quad, dict) else quad
    return numbers(values, 8, where)

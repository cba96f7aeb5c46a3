"""FUNSD: forms whose words belong to headers, questions and answers.

Jaume, Ekenel, Thiran, "FUNSD: A Dataset for Form Understanding in Noisy Scanned Documents", arXiv
1905.13538; 149 pages to train on and 50 to test. To be had at
https://guillaumejaume.github.io/FUNSD/ "for non-commercial, research and educational purposes"; no
part of it comes with this project. Its folders are read as they unpack::

    FOLDER/training_data/{annotations/*.json,images/*.png}      split train
    FOLDER/testing_data/{annotations/*.json,images/*.png}       splits val and test

A folder with ``annotations/`` and ``images/`` (or ``documents/``) of its own is read with lists of
ids, ``train.txt`` and ``val.txt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.datasets.document_records import (
    Document,
    Mender,
    TaggedPage,
    bio_names,
    bio_tags,
    first_folder,
    load_json,
    numbers,
    picture_named,
    read_ids,
)
from zoo.datasets.images import image_size
from zoo.datasets.ocr.page import Box, Page
from zoo.errors import ZooError, nearest

CLASSES = ("HEADER", "QUESTION", "ANSWER")
TAG_NAMES = bio_names(CLASSES)
WHERE = (
    "FUNSD is to be had at https://guillaumejaume.github.io/FUNSD/ for non-commercial, research "
    "and educational purposes"
)

_LABELS = {"header": "HEADER", "question": "QUESTION", "answer": "ANSWER", "other": None}
_FOLDERS = {"train": "training_data", "val": "testing_data", "test": "testing_data"}
_IMAGES = ("images", "documents")


def matches(folder: Path) -> str | None:
    """None where the folder is of this format, else what was looked for."""
    if any((folder / name / "annotations").is_dir() for name in _FOLDERS.values()):
        return None
    if (folder / "annotations").is_dir() and (folder / "train.txt").is_file():
        return None
    return "training_data/annotations/, or annotations/ and train.txt (FUNSD)"


def read_funsd(
    folder: Path, split: str, ids: Sequence[str] | None = None
) -> tuple[TaggedPage, ...]:
    """The pages of a split, in the order of their ids, with the tags of :data:`TAG_NAMES`.

    ``ids`` chooses pages by name, in that order. Words are in the order of the annotation; a
    page's ``lines`` are its entities, so that :func:`~zoo.datasets.document_records
    .with_segment_boxes` gives the boxes of entities. Words without text are left out; boxes are
    clipped to the page, which is told.

    Raises :class:`ZooError` naming file and entity for whatever is missing, broken or unknown.
    """
    part = folder / _FOLDERS.get(split, split)
    if not (part / "annotations").is_dir():
        part = folder
    annotations, images = part / "annotations", first_folder(part, _IMAGES)
    if not annotations.is_dir() or images is None:
        raise ZooError(
            f"{folder} has no pages of the split '{split}' (looked for annotations/ and "
            f"{'/ or '.join(_IMAGES)}/ in {_FOLDERS.get(split, split)}/ and in the folder itself); "
            f"name another folder or split; {WHERE}"
        )
    if ids is None and part == folder:
        listing = folder / f"{split}.txt"
        if not listing.is_file():
            raise ZooError(
                f"{folder} does not say which pages are of the split '{split}'; list their names "
                f"in {listing}, one a line"
            )
        ids = read_ids(listing)
    if ids is None:
        ids = sorted(path.stem for path in annotations.glob("*.json"))
    if not ids:
        raise ZooError(f"the split '{split}' of {folder} has no page; add annotations to it")
    mender = Mender()
    found = tuple(_page(annotations / f"{name}.json", images, mender) for name in ids)
    mender.tell(f"{folder}, split {split}")
    return found


def _page(path: Path, images: Path, mender: Mender) -> TaggedPage:
    content = load_json(path, "annotation")
    form = content.get("form") if isinstance(content, dict) else None
    if not isinstance(form, list):
        raise ZooError(f"{path} has no list 'form'; give an annotation in FUNSD's format")
    image = picture_named(images, path.stem, str(path))
    size = image_size(image)
    words: list[str] = []
    boxes: list[Box] = []
    lines: list[int] = []
    tags: list[str] = []
    for place, entity in enumerate(form):
        where = f"{path}, entity {_name(entity, place)}"
        found = _words(entity, where)
        label = entity.get("label")
        if not isinstance(label, str) or label not in _LABELS:
            raise ZooError(f"{where} has the label {label!r}; {nearest(str(label), list(_LABELS))}")
        words += [text for text, _ in found]
        boxes += [mender.box(numbers(box, 4, where), size, where) for _, box in found]
        lines += [place] * len(found)
        tags += bio_tags(_LABELS[label], len(found))
    page = Page(
        words=tuple(words),
        boxes=tuple(boxes),
        height=size[0],
        width=size[1],
        lines=tuple(lines),
        engine="funsd",
        source=str(path),
    )
    document = Document(document_id=path.stem, image=image)
    return TaggedPage(document=document, page=page, tags=tuple(tags))


def _name(entity: Any, place: int) -> Any:
    return entity.get("id", place) if isinstance(entity, dict) else place


def _words(entity: Any, where: str) -> list[tuple[str, Any]]:
    """Text and box of an entity's words, those without text left out."""
    words = entity.get("words") if isinstance(entity, dict) else None
    if not isinstance(words, list):
        raise ZooError(f"{where} has no list 'words'; mend the annotation")
    for word in words:
        if not isinstance(word, dict) or not isinstance(word.get("text"), str):
            raise ZooError(f"{where} has the word {word!r} without text; mend the annotation")
    return [(word["text"].strip(), word.get("box")) for word in words if word["text"].strip()]

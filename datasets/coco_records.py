"""What a COCO annotation file says, checked once and held as flat arrays.

Finding the files of a split, reading and checking the JSON. Arrays instead of a hundred thousand
small objects: a forked loading process that touches an object copies its page of memory, arrays
stay shared. The other formats (:mod:`zoo.datasets.voc_records`, :mod:`zoo.datasets.yolo_records`)
give what they read in COCO's form, and are checked and held here, too.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.datasets.images import image_size
from zoo.datasets.split_files import SplitFiles, Tell, names_of, origin, pictures_below
from zoo.errors import ZooError
from zoo.types import Size

log = logging.getLogger("zoo")

_TOLERANCE = 1.0  # pixels that a box may stand over its picture without being counted as clipped


class CocoFiles(NamedTuple):
    """A split's annotation file and its folder of pictures."""

    annotations: Path
    images: Path

    def read(self) -> dict[str, Any]:
        """The file's content; see :func:`read_json`."""
        return read_json(self.annotations)

    def survey(self, tell: Tell) -> Any:
        """The file's content, of whatever form; ``tell`` is told where it is no JSON."""
        try:
            return json.loads(self.annotations.read_bytes())
        except (ValueError, RecursionError, OSError) as error:
            tell("json", f"{self.annotations}: {error}; restore the file")
            return {"images": [], "annotations": [], "categories": []}

    def unlisted(self, listed: Set[str]) -> list[str]:
        """Pictures in the folder that no record lists."""
        return sorted(pictures_below(self.images) - listed)


def candidates(folder: Path, split: str) -> list[tuple[Path, str]]:
    """Annotation files that a split may have, each with its pictures' folder, best first."""
    names = names_of(split)
    ours = [(folder / "annotations" / f"instances_{n}.json", n) for n in names]
    export = [(folder / n / "_annotations.coco.json", n) for n in names]
    years = [
        (folder / "annotations" / f"instances_{split}{year}.json", f"{split}{year}")
        for year in (2017, 2014)
    ]
    return ours + export + years


def find_split(folder: Path, split: str) -> CocoFiles:
    """The files of a split in any of the known layouts.

    Raises :class:`ZooError` where there is no such folder or no annotation file (naming what was
    looked for), or where the pictures' folder is missing.
    """
    if not folder.is_dir():
        raise ZooError(f"there is no data folder {folder}; correct data.folder")
    known = candidates(folder, split)
    for file, name in known:
        if not file.is_file():
            continue
        places = [folder / name, folder / "images" / name]
        for images in places:
            if images.is_dir():
                return CocoFiles(file, images)
        raise ZooError(f"{file} has no folder of pictures beside it; put them in {places[0]}")
    looked = ", ".join(str(path.relative_to(folder)) for path, _ in known)
    raise ZooError(
        f"{folder} has no annotations of the split '{split}' (looked for {looked}); "
        "add one of these files or name another split"
    )


@dataclass(frozen=True, eq=False)
class Records:
    """One split: N pictures, and the A boxes that are targets, grouped by picture.

    ``sizes`` [N, 2] (height, width) from the file; ``boxes`` [A, 4] float32 xyxy in pixels,
    clipped to the picture; ``labels`` [A] class indices; picture i has the boxes
    ``starts[i]:starts[i + 1]``. Crowds are not among them. ``categories`` maps id to name, in the
    order of ids.
    """

    files: SplitFiles
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    categories: Mapping[int, str]
    names: bytes  # all file names in UTF-8, one after the other
    name_ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, i: int) -> Path:
        """The file of picture i."""
        start = int(self.name_ends[i - 1]) if i else 0
        return self.files.images / self.names[start : int(self.name_ends[i])].decode()

    def take(self, places: Sequence[int]) -> Records:
        """The pictures at these places as a split of their own."""
        paths = [self.path(i).relative_to(self.files.images).as_posix().encode() for i in places]
        objects = [self.objects(i) for i in places]
        counts = [len(labels) for _, labels in objects]
        return replace(
            self,
            image_ids=self.image_ids[list(places)],
            sizes=self.sizes[list(places)],
            boxes=np.concatenate([boxes for boxes, _ in objects] or [self.boxes[:0]]),
            labels=np.concatenate([labels for _, labels in objects] or [self.labels[:0]]),
            starts=np.cumsum([0, *counts], dtype=np.int64),
            names=b"".join(paths),
            name_ends=np.cumsum([len(p) for p in paths], dtype=np.int64),
        )

    def objects(self, i: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes [M, 4] and labels [M] of picture i."""
        span = slice(int(self.starts[i]), int(self.starts[i + 1]))
        return self.boxes[span], self.labels[span]


def read_json(path: Path) -> dict[str, Any]:
    """The annotation file's content.

    Raises :class:`ZooError` with line and column where it is no JSON, or where one of the lists
    ``images``, ``annotations`` and ``categories`` is missing.
    """
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ZooError(
            f"{path}, line {error.lineno}, column {error.colno}: broken JSON ({error.msg}); "
            "restore the file"
        ) from None
    except (UnicodeDecodeError, RecursionError, OSError) as error:
        raise ZooError(f"{path} can't be read as JSON ({error}); restore the file") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ZooError(f"{path} has no list '{key}'; give a file in COCO's instances format")
        for place, record in enumerate(content[key]):
            if not isinstance(record, dict):
                raise ZooError(f"{path}: {key}[{place}] is not a record; mend it there")
    return content


def read_records(
    files: SplitFiles, on_missing: Literal["raise", "drop", "keep"] = "raise"
) -> Records:
    """Read and check a split.

    A listed picture that is not there is an error, is left out with its boxes and reported
    (``drop``), or is kept for the caller to deal with (``keep``). Boxes without area or outside
    their picture are dropped and those that stand over its edge are clipped; both are counted and
    reported in one line.
    """
    content = files.read()
    categories = _categories(files.annotations, content["categories"])
    images, annotations = content["images"], content["annotations"]
    _check_images(files.annotations, images)
    missing = missing_pictures(files.images, images)
    if missing and on_missing != "keep":
        what = _lacks(files, images, missing)
        if on_missing == "raise":
            raise ZooError(f"{what}; restore them, or leave them out with data.on_error=skip")
        log.warning("%s; they are left out", what)
        gone = set(missing)
        lost = {images[i]["id"] for i in missing}
        images = [im for i, im in enumerate(images) if i not in gone]
        annotations = [a for a in annotations if a.get("image_id") not in lost]
    image_ids = np.array([im["id"] for im in images], dtype=np.int64)
    sizes = _sizes(files, images, strict=on_missing == "raise")
    encoded = [im["file_name"].encode() for im in images]
    boxes, labels, owner = _objects(files.annotations, annotations, image_ids, sizes, categories)
    counts = np.bincount(owner, minlength=len(images))
    return Records(
        files=files,
        image_ids=image_ids,
        sizes=sizes,
        boxes=boxes,
        labels=labels,
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        categories=categories,
        names=b"".join(encoded),
        name_ends=np.cumsum([len(name) for name in encoded], dtype=np.int64),
    )


def read_checked(files: SplitFiles) -> tuple[dict[str, Any], dict[int, Size]]:
    """A split's content as it stands, and (height, width) by image id.

    Raises :class:`ZooError` for what :func:`read_records` does; boxes are not clipped.
    """
    content = files.read()
    categories = _categories(files.annotations, content["categories"])
    images, annotations = content["images"], content["annotations"]
    _check_images(files.annotations, images)
    if missing := missing_pictures(files.images, images):
        raise ZooError(f"{_lacks(files, images, missing)}; restore them")
    image_ids = [image["id"] for image in images]
    _owners(files.annotations, annotations, image_ids, categories)
    _boxes(files.annotations, annotations)
    sizes = _sizes(files, images, strict=True).tolist()
    return content, {n: (h, w) for n, (h, w) in zip(image_ids, sizes, strict=True)}


def read_ground_truth(files: SplitFiles, image_ids: Iterable[int]) -> dict[str, Any]:
    """A COCO dict of these images for an evaluator.

    Everything is left as it stands in the file, crowds included, but what evaluators rely on is
    made sure of: ``iscrowd`` and ``area`` exist, and annotation ids are unique and not 0.
    """
    content = files.read()
    kept = set(image_ids)
    content["images"] = [im for im in content["images"] if im["id"] in kept]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    annotations = content["annotations"]
    ids = [a.get("id") for a in annotations]
    # 0 is how COCO's evaluation marks "matched to nothing".
    renumber = len(set(ids)) < len(ids) or any(type(i) is not int or i <= 0 for i in ids)
    for number, a in enumerate(annotations, 1):
        a.setdefault("iscrowd", 0)
        if "area" not in a:
            a["area"] = a["bbox"][2] * a["bbox"][3]
        if renumber:
            a["id"] = number
    return content


def _categories(file: Path, records: Sequence[dict[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for place, record in enumerate(records):
        number, name = record.get("id"), record.get("name")
        if type(number) is not int or not isinstance(name, str):
            raise ZooError(
                f"{file}: categories[{place}] has id {number!r} and name {name!r}; "
                "give a whole number and a text"
            )
        if number in found:
            raise ZooError(
                f"{file}: category id {number} stands for '{found[number]}' and for '{name}'; "
                "give every category its own id"
            )
        found[number] = name
    if not found:
        raise ZooError(f"{file}: the list 'categories' is empty; add the classes")
    return dict(sorted(found.items()))


def _check_images(file: Path, images: Sequence[dict[str, Any]]) -> None:
    """Ids and file names: of the right type, unique, and inside the folder."""
    seen: set[int] = set()
    for place, record in enumerate(images):
        number, name = record.get("id"), record.get("file_name")
        if type(number) is not int or abs(number) >= 2**62:
            raise ZooError(f"{file}: images[{place}] has id {number!r}; give a whole number")
        if number in seen:
            raise ZooError(f"{file}: image id {number} occurs twice; give every image its own id")
        seen.add(number)
        if not isinstance(name, str) or not name or "\0" in name:
            raise ZooError(f"{file}: image id {number} has file_name {name!r}; name its file")
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raise ZooError(
                f"{file}: image id {number} has file_name {name!r}, which leads out of the "
                "pictures' folder; give a path inside it"
            )


def _lacks(files: SplitFiles, images: Sequence[Mapping[str, Any]], missing: Sequence[int]) -> str:
    first = images[missing[0]]
    return (
        f"{files.images} lacks {len(missing)} of the {len(images)} pictures that "
        f"{files.annotations} lists (first: image id {first['id']}, {first['file_name']})"
    )


def missing_pictures(folder: Path, images: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the images whose file is not there, by listing each folder once."""
    listed: dict[str, set[str]] = {}
    absent = []
    for place, record in enumerate(images):
        below, _, name = record["file_name"].rpartition("/")
        if below not in listed:
            try:
                listed[below] = {e.name for e in os.scandir(folder / below)}
            except (FileNotFoundError, NotADirectoryError):
                listed[below] = set()
        if name not in listed[below]:
            absent.append(place)
    return absent


def _sizes(
    files: SplitFiles, images: Sequence[dict[str, Any]], *, strict: bool
) -> NDArray[np.int64]:
    """(height, width) of every image: from its record, else from the file's header.

    Where that can't be read either, 1 x 1 stands in unless ``strict``: reading the pixels will
    fail as well, and tell why.
    """
    found = np.ones((len(images), 2), dtype=np.int64)
    for place, record in enumerate(images):
        height: Any = record.get("height")
        width: Any = record.get("width")
        if height is None and width is None:
            try:
                found[place] = image_size(files.images / record["file_name"])
            except ZooError:
                if strict:
                    raise
        elif _is_side(height) and _is_side(width):
            found[place] = height, width
        else:
            raise ZooError(
                f"{files.annotations}: image id {record['id']} has height {height!r} and width "
                f"{width!r}; give both in whole pixels, or neither"
            )
    return found


def _is_side(value: Any) -> bool:
    return type(value) in (int, float) and 1 <= value < 2**31 and value % 1 == 0


def _objects(
    file: Path,
    annotations: Sequence[dict[str, Any]],
    image_ids: NDArray[np.int64],
    sizes: NDArray[np.int64],
    categories: Mapping[int, str],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Boxes xyxy, class indices and the owning picture's place of all targets, by picture."""
    owner, labels = _owners(file, annotations, image_ids.tolist(), categories)
    boxes = _boxes(file, annotations)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
    limit = np.tile(sizes[owner][:, ::-1], 2)  # width, height, width, height
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    clipped = corners.clip(0, limit)
    empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    over = (np.abs(corners - clipped) > _TOLERANCE).any(axis=1) & ~empty & ~crowd
    _report(file, annotations, empty & ~crowd, over)
    kept = np.flatnonzero(~crowd & ~empty)
    kept = kept[np.argsort(owner[kept], kind="stable")]
    return clipped[kept].astype(np.float32), labels[kept], owner[kept]


def _owners(
    file: Path,
    annotations: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    categories: Mapping[int, str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of every annotation the place of its picture and the index of its class."""
    place_of = {number: place for place, number in enumerate(image_ids)}
    label_of = {number: label for label, number in enumerate(categories)}
    owner = np.array([place_of.get(_whole(a, "image_id"), -1) for a in annotations], np.int64)
    labels = np.array([label_of.get(_whole(a, "category_id"), -1) for a in annotations], np.int64)
    if (bad := np.flatnonzero(owner < 0)).size:
        a = annotations[bad[0]]
        raise ZooError(
            f"{file}: annotation id {a.get('id')} is of image id {a.get('image_id')!r}, which is "
            "not among the images; add the image or remove the annotation"
        )
    if (bad := np.flatnonzero(labels < 0)).size:
        a = annotations[bad[0]]
        raise ZooError(
            f"{file}: annotation id {a.get('id')} is of category id {a.get('category_id')!r}, "
            "which is not among the categories; add the category or correct the annotation"
        )
    return owner, labels


def _whole(record: Mapping[str, Any], key: str) -> int:
    value = record.get(key)
    return value if type(value) is int else -(2**62)


def _boxes(file: Path, annotations: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """[A, 4] left, top, width, height; every value finite, no width or height negative."""
    if not annotations:
        return np.zeros((0, 4))
    try:
        raw = np.array([a["bbox"] for a in annotations])
    except (KeyError, ValueError):
        raw = np.zeros(0)
    if raw.dtype.kind in "if" and raw.shape == (len(annotations), 4):
        boxes = raw.astype(np.float64)
        if np.isfinite(boxes).all() and (boxes[:, 2:] >= 0).all():
            return boxes
    for a in annotations:  # at least one is at fault: name it
        _check_box(file, a)
    return np.array([a["bbox"] for a in annotations], dtype=np.float64)


def _check_box(file: Path, annotation: Mapping[str, Any]) -> None:
    box = annotation.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or any(type(v) not in (int, float) or not abs(v) < 2**53 for v in box)
        or min(box[2:]) < 0
    ):
        raise ZooError(
            f"{file}: annotation id {annotation.get('id')} of image id "
            f"{annotation.get('image_id')} has bbox {box}; give four finite numbers: left, top, "
            "width and height, the last two not negative"
        )


def _report(
    file: Path,
    annotations: Sequence[dict[str, Any]],
    empty: NDArray[np.bool_],
    over: NDArray[np.bool_],
) -> None:
    parts = []
    for mask, what in (
        (empty, "boxes without area or outside their picture left out"),
        (over, "boxes clipped to their picture"),
    ):
        if mask.any():
            first = origin(annotations[int(np.flatnonzero(mask)[0])])
            parts.append(f"{what}: {int(mask.sum())} (first: {first})")
    if parts:
        log.warning("%s: %s", file, ", ".join(parts))

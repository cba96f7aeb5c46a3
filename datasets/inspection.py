"""What is in a folder of annotated pictures, and what is wrong with it.

Unlike the readers that training uses (:mod:`zoo.datasets.coco`), which stop at the first fault,
this goes on past every fault and counts it. Formats other than COCO are surveyed in COCO's form
(:mod:`zoo.datasets.split_files`). The kinds of finding, and which are errors, are in
:mod:`zoo.datasets.inspection_findings`.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.datasets.formats import open_set
from zoo.datasets.images import image_size, read_image
from zoo.datasets.inspection_findings import MANY, Inspection, Object, Picture, Probe, Split
from zoo.datasets.split_files import ORIGIN, SplitFiles, leads_out, origin
from zoo.errors import ZooError
from zoo.types import Size

_THUMB = 24  # side of the small grey pictures that are compared
_ALIKE = 0.995  # correlation of two of them
_PARALLEL = 400  # pictures from which on processes are worth their start
_ORIENTATION = 274  # EXIF tag
_TOLERANCE = 1.0  # pixels that a box may stand over its picture


def splits_of(data: str | Path, wanted: Sequence[str] = ()) -> Mapping[str, SplitFiles]:
    """The files of the splits ``wanted``, or of those among train, val and test that exist.

    Raises :class:`ZooError` where one is wanted and not there, or where there is none at all.
    """
    return open_set(data, wanted).splits


def inspect(
    folder: Path,
    splits: Mapping[str, SplitFiles],
    *,
    workers: int = 0,
    track: Callable[[Iterable[Probe], int, str], Iterable[Probe]] = lambda items, total, name: (
        items
    ),
) -> Inspection:
    """Read every record and every picture of the splits.

    ``workers`` are processes that read pictures; 0: as many as are useful. ``track(items, total,
    name)`` may wrap the pictures of a split in a progress bar.
    """
    result = Inspection(folder)
    for name, files in splits.items():
        split = _read_split(result, name, files)
        result.splits.append(split)
        present = _present(result, split)
        probes = _probe_all([p.path for p in present], workers)
        for picture, probe in zip(present, track(probes, len(present), name), strict=True):
            picture.probe = probe
            _check_picture(result, split, picture, probe)
        _check_boxes(result, split)
        _check_same_files(result, split)
    _compare(result)
    return result


# -- one split ----------------------------------------------------------------------------------


def _read_split(result: Inspection, name: str, files: SplitFiles) -> Split:
    split = Split(name, files)
    # The remedy behind the semicolon is said once for all findings of a kind.
    content = files.survey(lambda code, fault: result.add(code, name, fault.rpartition("; ")[0]))
    lists: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    for key in lists:
        value: Any = content.get(key) if isinstance(content, dict) else None
        if isinstance(value, list):
            lists[key] = value
        else:
            result.add("lists", name, f"'{key}'")
    split.annotations = len(lists["annotations"])
    _read_categories(result, split, lists["categories"])
    by_id = _read_images(result, split, lists["images"])
    _read_annotations(result, split, lists["annotations"], by_id)
    return split


def _read_categories(result: Inspection, split: Split, records: Sequence[Any]) -> None:
    for place, record in enumerate(records):
        number, name = _get(record, "id"), _get(record, "name")
        if type(number) is not int or not isinstance(name, str):
            result.add("record", split.name, f"categories[{place}]")
        elif number in split.categories:
            result.add("category_id", split.name, f"{number} ('{name}')")
        else:
            split.categories[number] = name
    split.categories = dict(sorted(split.categories.items()))
    ids = list(split.categories)
    for before, after in pairwise(ids):
        if after > before + 1:
            result.add("gaps", split.name, f"{before} to {after}")


def _read_images(result: Inspection, split: Split, records: Sequence[Any]) -> dict[int, Picture]:
    by_id: dict[int, Picture] = {}
    for place, record in enumerate(records):
        number, name = _get(record, "id"), _get(record, "file_name")
        sides = [_get(record, key) for key in ("height", "width")]
        given = all(type(v) in (int, float) and 1 <= v < 2**31 and v % 1 == 0 for v in sides)
        inside = isinstance(name, str) and not leads_out(name)
        if type(number) is not int or not inside or not (given or sides == [None, None]):
            result.add("record", split.name, f"images[{place}]")
            continue
        if number in by_id:
            result.add("image_id", split.name, f"{number} ({name})")
            continue
        size = (int(sides[0]), int(sides[1])) if given else None
        by_id[number] = Picture(number, name, split.files.images / name, size)
    split.pictures = list(by_id.values())
    return by_id


def _read_annotations(
    result: Inspection, split: Split, records: Sequence[Any], by_id: Mapping[int, Picture]
) -> None:
    ids: set[Any] = set()
    annotated: set[int] = set()
    for place, record in enumerate(records):
        if not isinstance(record, dict):
            result.add("record", split.name, f"annotations[{place}]")
            continue
        number, image = record.get("id"), record.get("image_id")
        category = record.get("category_id")
        box: Any = record.get("bbox")
        shown = f"annotation {number}" if number is not None else f"annotations[{place}]"
        if ORIGIN in record:
            shown = origin(record)
        if isinstance(number, int | str):
            if number in ids:
                result.add("annotation_id", split.name, str(number))
            ids.add(number)
        picture = by_id.get(image) if type(image) is int else None
        if picture is None:
            result.add("unknown_image", split.name, f"{shown} of image {image!r}")
            continue
        annotated.add(picture.number)
        if type(category) is not int or category not in split.categories:
            result.add("unknown_category", split.name, f"{shown} of category {category!r}")
            continue
        if not _is_box(box):
            result.add("bad_box", split.name, f"{shown} of {picture.name}: {box}")
            continue
        x, y, width, height = (float(v) for v in box)
        crowd = bool(record.get("iscrowd", 0))
        if crowd:
            result.add("crowd", split.name, f"{shown} of {picture.name}")
        picture.objects.append(Object(category, (x, y, x + width, y + height), crowd))
    for picture in by_id.values():
        if picture.number not in annotated:
            result.add("background", split.name, picture.name)


def _get(record: Any, key: str) -> Any:
    return record.get(key) if isinstance(record, dict) else None


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(v) in (int, float) and abs(v) < 2**53 for v in box)
        and min(box[2:]) >= 0
    )


def _check_boxes(result: Inspection, split: Split) -> None:
    """Each box against its picture and against the others."""
    for picture in split.pictures:
        size = picture.size or (picture.probe.upright if picture.probe else (0, 0))
        seen: set[tuple[int, tuple[float, ...]]] = set()
        for place, found in enumerate(picture.objects):
            fault = "" if found.crowd else _fault(found.box, size)
            if not fault and (found.category, found.box) in seen:
                fault = "same_box"
            seen.add((found.category, found.box))
            if fault:
                picture.objects[place] = found._replace(fault=fault)
                x1, y1, x2, y2 = found.box
                box = ", ".join(f"{v:g}" for v in (x1, y1, x2 - x1, y2 - y1))
                result.add(fault, split.name, f"{picture.name} [{box}]")
        if len(picture.objects) > MANY:
            result.add("many", split.name, f"{picture.name}: {len(picture.objects)}")
    if split.pictures and not any(True for _ in split.boxes()):
        result.add("empty_split", split.name, split.name)


def _fault(box: tuple[float, float, float, float], size: Size) -> str:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return "degenerate"
    height, width = size
    if not height:  # neither the record nor the file says
        return ""
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return "outside"
    over = max(-x1, -y1, x2 - width, y2 - height)
    return "clipped" if over > _TOLERANCE else ""


# -- the files ----------------------------------------------------------------------------------


def _present(result: Inspection, split: Split) -> list[Picture]:
    """The pictures whose file is there; files that no record lists are reported."""
    listed = Counter(p.name for p in split.pictures)
    for name, count in listed.items():
        if count > 1:
            result.add("listed_twice", split.name, name)
    for name in split.files.unlisted(listed.keys()):
        result.add("unlisted", split.name, name)
    present = []
    for picture in split.pictures:
        if picture.path.is_file() or picture.path.is_symlink():  # a broken link can't be read
            present.append(picture)
        else:
            result.add("missing", split.name, picture.name)
    return present


def probe(path: Path) -> Probe:
    """Read a picture wholly, and say what it is like; never raises for a bad one."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        stored, upright = image_size(path, upright=False), image_size(path)
        pixels = read_image(path, draft_size=(_THUMB * 2, _THUMB * 2))
        kind, orientation = _header(path)
    except ZooError as error:
        return Probe(error=str(error))
    except (OSError, MemoryError) as error:
        return Probe(error=f"{path} can't be read ({error})")
    grey = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L")
    thumb = grey.resize((_THUMB, _THUMB), Image.Resampling.BOX).tobytes()
    return Probe("", digest, upright, stored, orientation, kind, thumb)


def _header(path: Path) -> tuple[str, int]:
    """Format and mode, and the EXIF orientation, of a picture that can be read."""
    with warnings.catch_warnings():  # of odd metadata and large pictures
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            try:
                orientation = image.getexif().get(_ORIENTATION, 1)
            except Exception:  # metadata that can't be parsed say nothing
                orientation = 1
            return f"{image.format} {image.mode}", orientation if orientation in range(2, 9) else 1


def _probe_all(paths: Sequence[Path], workers: int) -> Iterator[Probe]:
    workers = workers or (min(os.cpu_count() or 1, 16) if len(paths) >= _PARALLEL else 1)
    if workers == 1:
        yield from map(probe, paths)
        return
    # Not forked: a fork of a process with threads (PyTorch's) may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(probe, paths, chunksize=16)


def _check_picture(result: Inspection, split: Split, picture: Picture, found: Probe) -> None:
    if found.error:
        result.add("unreadable", split.name, found.error)
        return
    if picture.size is None or picture.size == found.upright:
        if found.orientation > 1:
            result.add("oriented", split.name, picture.name)
        return
    if picture.size == found.stored:
        result.add("turned", split.name, picture.name)
        return
    says = f"{picture.size[1]} x {picture.size[0]}"
    is_size = f"{found.upright[1]} x {found.upright[0]}"
    width = found.upright[1] * picture.size[0] / picture.size[1]
    same_shape = abs(found.upright[0] - width) <= max(1.0, 0.01 * found.upright[0])
    code = "scaled" if same_shape else "size"
    result.add(code, split.name, f"{picture.name} is {is_size}, not {says}")


def _check_same_files(result: Inspection, split: Split) -> None:
    first: dict[str, str] = {}
    for picture in split.pictures:
        if picture.probe is None or picture.probe.error:
            continue
        before = first.setdefault(picture.probe.digest, picture.name)
        if before != picture.name:
            result.add("duplicate", split.name, f"{picture.name} = {before}")


# -- the splits beside each other ---------------------------------------------------------------


def _compare(result: Inspection) -> None:
    splits = result.splits
    for n, a in enumerate(splits):
        for b in splits[n + 1 :]:
            both = f"{a.name} and {b.name}"
            for number in sorted(a.categories.keys() | b.categories.keys()):
                if a.categories.get(number) != b.categories.get(number):
                    names = [repr(s.categories.get(number, "missing")) for s in (a, b)]
                    result.add("categories", both, f"{number}: {' and '.join(names)}")
            _compare_pictures(result, a, b, both)
    counts = {s.name: s.class_counts() for s in splits}
    named = {number: name for s in splits for number, name in s.categories.items()}
    for number, name in named.items():
        boxes = [c[number] for c in counts.values()]
        if not any(boxes):
            result.add("unused", "all", name)
        elif "train" in counts and not counts["train"][number]:
            result.add("unlearnable", "all", name)
        elif "train" in counts and counts["train"][number] < 10:
            result.add("rare", "train", f"{name} {counts['train'][number]}")


def _compare_pictures(result: Inspection, a: Split, b: Split, both: str) -> None:
    readable = [[p for p in s.pictures if p.probe and not p.probe.error] for s in (a, b)]
    in_a: dict[str, str] = {}
    for picture in readable[0]:
        in_a.setdefault(picture.probe.digest, picture.name)  # type: ignore[union-attr]
    leaked = set()
    for picture in readable[1]:
        if other := in_a.get(picture.probe.digest):  # type: ignore[union-attr]
            result.add("leak", both, f"{a.name}/{other} = {b.name}/{picture.name}")
            leaked.add(picture.number)
    for i, j in _alike(readable[0], readable[1]):
        one, two = readable[0][i], readable[1][j]
        if two.number not in leaked:
            result.add("alike", both, f"{a.name}/{one.name} and {b.name}/{two.name}")


def _alike(first: Sequence[Picture], second: Sequence[Picture]) -> Iterator[tuple[int, int]]:
    """For each of ``second`` the place of the most alike of ``first``, where it is alike."""
    if not first or not second:
        return
    a, b = _normalised(first), _normalised(second)
    for start in range(0, len(b), 256):
        alike = b[start : start + 256] @ a.T
        best = alike.argmax(axis=1)
        for n, (place, value) in enumerate(zip(best, alike.max(axis=1), strict=True)):
            if value > _ALIKE:
                yield int(place), start + n


def _normalised(pictures: Sequence[Picture]) -> np.ndarray:
    """Small grey pictures [N, values] of mean 0 and length 1; those of hardly any contrast 0."""
    raw = b"".join(p.probe.thumb for p in pictures if p.probe)
    values = np.frombuffer(raw, np.uint8).reshape(len(pictures), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.where(length > 4 * _THUMB, values / np.maximum(length, 1), 0)

"""What YOLO's text files say, in COCO's form.

``data.yaml`` (or ``dataset.yaml``, or one called as the folder) names the classes and the splits::

    path: .                 # optional; the other places are relative to it, it to the file
    train: images/train     # a folder, a list of pictures (.txt), or a list of these
    val: images/val
    names: [cat, dog]       # or {0: cat, 1: dog}
    nc: 2                   # optional; checked

- **Labels** of ``.../images/a/b.jpg`` stand in ``.../labels/a/b.txt`` (the last folder called
  ``images`` below the set's own), those of a path without such a folder beside the picture. No
  file and an empty file mean no object, but a split without any label file is an error.
- **Lines** are ``class cx cy w h`` in 0..1 of the upright picture, or ``class x1 y1 x2 y2 x3 y3
  ...``, a polygon: its bounding box is the box, its area the object's area.
- **Ids**: categories have the class numbers 0, 1, ... as ids; pictures are 1, 2, ... by name, or
  in the order of the list.
- **Places.** A relative place is looked for below ``path``. One that begins with ``../`` and is not
  there is looked for without that: many exports are written so. What leads out of the folder of
  ``data.yaml`` is used, and told once.

The format is that of Ultralytics' documentation of detection and segmentation data sets.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zoo.datasets.images import image_size
from zoo.datasets.split_files import (
    ORIGIN,
    Tell,
    decoded,
    is_picture,
    names_of,
    pictures_below,
    refuse,
)
from zoo.errors import ZooError

log = logging.getLogger("zoo")

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
MAX_YAML = 2**20  # bytes
MAX_LABELS = 16 * 2**20
MAX_LIST = 256 * 2**20

_OVER = 1e-4  # how far rounding may bring a value out of 0..1


@dataclass(frozen=True)
class YoloFiles:
    """A split's pictures, found in ``sources`` (folders and lists) again whenever it is read."""

    annotations: Path  # data.yaml
    images: Path  # the folder that holds all pictures
    root: Path  # the set's folder, which the rule of images and labels ends at
    sources: tuple[Path, ...]
    names: tuple[str, ...]

    def read(self) -> dict[str, Any]:
        """The split as a COCO dict. Raises :class:`ZooError` for the first fault."""
        return self.survey(refuse)

    def survey(self, tell: Tell) -> dict[str, Any]:
        """As much as can be understood; see :class:`zoo.datasets.split_files.SplitFiles`."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        labelled = False
        paths = [path for source in self.sources for path in _pictures(source, self.root)]
        for number, path in enumerate(paths, 1):
            size = _size(path)
            height, width = size or (None, None)
            name = path.relative_to(self.images).as_posix()
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            file = label_path(path, self.root)
            if not file.is_file():
                continue
            labelled = True
            try:
                text = decoded(file, MAX_LABELS)
            except ZooError as error:
                tell("json", str(error))
                continue
            for line_number, line in enumerate(text.splitlines(), 1):
                where = f"{file}, line {line_number}"
                if line.strip() and (found := self._object(line, where, size or (1, 1), tell)):
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": number, **found, ORIGIN: where}
                    )
        if paths and not labelled:
            tell(
                "lists",
                f"{self.annotations}: none of the {len(paths)} pictures in {self.images} has a "
                f"label file (the first would be {label_path(paths[0], self.root)}); put the "
                "labels there",
            )
        for file in orphans(paths, self.root):
            tell("orphan", f"{file}; restore the picture")
        categories = [{"id": number, "name": name} for number, name in enumerate(self.names)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def unlisted(self, listed: Set[str]) -> list[str]:
        """None: folders mean all their pictures, and lists are meant to choose."""
        return []

    def _object(
        self, line: str, where: str, size: tuple[int, int], tell: Tell
    ) -> dict[str, Any] | None:
        """An annotation without its ids, None for a line that is at fault."""
        words = line.split()
        try:
            values = [float(word) for word in words]
        except ValueError:
            bad = next(word for word in words if not _is_number(word))
            tell("bad_box", f"{where}: '{bad[:40]}' is not a number; correct it")
            return None
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            tell(
                "bad_box",
                f"{where} has {len(values)} values; give class, cx, cy, w, h, or the class and the "
                "x, y of three points or more",
            )
            return None
        number, rest = values[0], values[1:]
        if not 0 <= number < len(self.names) or number % 1:
            tell(
                "unknown_category",
                f"{where}: class {words[0][:40]} is not among 0..{len(self.names) - 1}, the "
                f"classes of {self.annotations}; add its name or correct the number",
            )
            return None
        for word, value in zip(words[1:], rest, strict=True):
            if not -_OVER <= value <= 1 + _OVER:  # a NaN isn't either
                tell(
                    "bad_box",
                    f"{where}: {word[:40]} is outside 0..1; divide by the picture's width or "
                    "height, or correct it",
                )
                return None
        height, width = size
        found: dict[str, Any] = {"category_id": int(number), "iscrowd": 0}
        if len(rest) == 4:
            cx, cy, w, h = rest
            w, h = max(w, 0.0), max(h, 0.0)
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            return {**found, "bbox": box, "area": box[2] * box[3]}
        xs, ys = [x * width for x in rest[::2]], [y * height for y in rest[1::2]]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        points = [v for point in zip(xs, ys, strict=True) for v in point]
        return {**found, "bbox": box, "area": _area(xs, ys), "segmentation": [points]}


@dataclass(frozen=True)
class YoloSet:
    """What ``data.yaml`` says: where its places are relative to, the classes, the splits."""

    file: Path
    base: Path
    names: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]


def yaml_of(folder: Path) -> Path | None:
    """The file that describes the set in a folder, or the folder itself where it is that file."""
    if folder.is_file() and folder.suffix in (".yaml", ".yml"):
        return folder
    known = [folder / name for name in (*YAML_NAMES, f"{folder.resolve().name}.yaml")]
    return next((file for file in known if file.is_file()), None)


def read_set(folder: Path) -> YoloSet:
    """Read and check ``data.yaml``.

    Raises :class:`ZooError` where there is none, or naming the key that is at fault.
    """
    if not folder.exists():
        raise ZooError(f"there is no data folder {folder}; correct data.folder")
    file = yaml_of(folder)
    if file is None:
        raise ZooError(f"{folder} has no {' or '.join(YAML_NAMES[::2])}; add it")
    try:
        content = yaml.safe_load(decoded(file, MAX_YAML))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = str(getattr(error, "problem", None) or type(error).__name__)
        raise ZooError(
            f"{file}{where} is not readable YAML ({' '.join(what.split())}); mend it there"
        ) from None
    if not isinstance(content, dict):
        raise ZooError(f"{file} holds no keys; give names, train and val")
    if "kpt_shape" in content:
        raise ZooError(
            f"{file} is of keypoints (kpt_shape), whose lines would be taken for polygons; give a "
            "set of boxes or polygons"
        )
    names = _names(file, content.get("names"))
    nc: Any = content.get("nc", len(names))
    if type(nc) is not int or nc != len(names):
        shown = nc if isinstance(nc, int | float | str) else type(nc).__name__
        raise ZooError(f"{file}: nc is {shown} where names has {len(names)}; correct one of them")
    base = content.get("path") or "."
    if not isinstance(base, str):
        raise ZooError(f"{file}: path is a {type(base).__name__}; give a folder")
    found = YoloSet(file, file.parent / Path(base).expanduser(), names, {})
    for key, value in content.items():
        usual = key in ("train", *names_of("val"), "test")
        places = [value] if isinstance(value, str) else value
        if isinstance(places, list) and places and all(isinstance(p, str) for p in places):
            # Of other keys (a licence, an address) only a place that is there makes a split.
            if usual or (places[0] and _resolved(found, places[0])):
                found.splits[str(key)] = tuple(places)
        elif usual and value is not None:
            raise ZooError(f"{file}: {key} is no place; give a folder, a list file, or several")
    return found


def find_split(folder: Path, split: str) -> YoloFiles:
    """The files of a split.

    Raises :class:`ZooError` for what is wrong with ``data.yaml``, for a split that it does not
    name, and for a place that is not there or holds no picture.
    """
    found = read_set(folder)
    key = next((name for name in names_of(split) if name in found.splits), None)
    if key is None:
        there = ", ".join(found.splits) or "none"
        raise ZooError(
            f"{found.file} has no split '{split}' (splits that it has: {there}); add it or name "
            "another split"
        )
    root = Path(os.path.abspath(found.file.parent))
    sources = tuple(_place(found, key, place) for place in found.splits[key])
    paths = [path for source in sources for path in _pictures(source, root)]
    if not paths:
        raise ZooError(f"{found.file}: {key} leads to {sources[0]}, which has no picture; add some")
    images = Path(os.path.commonpath([path.parent for path in paths]))
    outside = [p for p in (*sources, images) if not p.is_relative_to(root)]
    if outside:
        log.warning("%s: %s leads out of its folder, to %s", found.file, key, outside[0])
    return YoloFiles(found.file, images, root, sources, found.names)


def has_split(folder: Path, split: str) -> bool:
    """Whether ``data.yaml`` names a split. Raises :class:`ZooError` where it can't be read."""
    return any(name in read_set(folder).splits for name in names_of(split))


def split_exists(folder: Path, split: str) -> bool:
    """Whether a place of a split that ``data.yaml`` names is there."""
    found = read_set(folder)
    return any(
        _resolved(found, place) for name in names_of(split) for place in found.splits.get(name, ())
    )


def label_path(picture: Path, root: Path) -> Path:
    """Where the labels of a picture are; see the module's description."""
    inside = picture.is_relative_to(root)
    parts = list(picture.relative_to(root).parts) if inside else list(picture.parts)
    places = [n for n, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    moved = Path(*parts).with_suffix(".txt")
    return root / moved if inside else moved


def orphans(pictures: Sequence[Path], root: Path) -> list[Path]:
    """Label files in the folders of these pictures' labels whose picture is not there."""
    found = []
    for folder in sorted({p.parent for p in pictures}):
        labels = label_path(folder / "any.jpg", root).parent
        try:
            files = sorted(p for p in labels.iterdir() if p.suffix == ".txt")
            stems = {p.stem for p in folder.iterdir() if is_picture(p.name)}
        except OSError:
            continue
        skipped = {"classes", "labels"} | (set() if labels != folder else {"train", "val", "test"})
        found += [f for f in files if f.stem not in stems and f.stem not in skipped]
    return found


def _names(file: Path, value: Any) -> tuple[str, ...]:
    if isinstance(value, dict):
        numbers = [key for key in value if type(key) is int]
        if len(numbers) != len(value) or sorted(numbers) != list(range(len(value))):
            raise ZooError(
                f"{file}: the keys of names are not 0..{len(value) - 1}; give every class number "
                "one name"
            )
        value = [value[number] for number in range(len(value))]
    if not isinstance(value, list) or not value:
        raise ZooError(f"{file} has no names; list the classes, as in names: [cat, dog]")
    names = []
    for place, name in enumerate(value):
        if type(name) in (int, float):
            name = str(name)
        if not isinstance(name, str) or not name.strip():
            what = repr(name) if name is None or isinstance(name, str | bool) else "no text"
            raise ZooError(f"{file}: names[{place}] is {what}; give a text, in quotes")
        names.append(name)
    return tuple(names)


def _place(found: YoloSet, key: str, place: str) -> Path:
    """The folder or list file that a place means, absolute and without ``..``."""
    if path := _resolved(found, place):
        return path
    path = Path(os.path.abspath(found.base / place))
    raise ZooError(
        f"{found.file}: {key} leads to {path}, which is not there; correct {key} or path"
    )


def _resolved(found: YoloSet, place: str) -> Path | None:
    tried = [place]
    while tried[-1].startswith("../"):
        tried.append(tried[-1].removeprefix("../"))
    paths = (Path(os.path.abspath(found.base / Path(item).expanduser())) for item in tried)
    return next((path for path in paths if path.exists()), None)


def _pictures(source: Path, root: Path) -> Iterator[Path]:
    """The pictures of a folder (with subfolders, by name), or of a list file (in its order)."""
    if source.is_dir():
        names = (n for n in pictures_below(source) if not n.rpartition("/")[2].startswith("."))
        yield from (source / name for name in sorted(names))
        return
    if is_picture(source.name):
        yield source
        return
    for number, line in enumerate(decoded(source, MAX_LIST).splitlines(), 1):
        if not (text := line.strip()):
            continue
        if "\0" in text or not is_picture(text):
            raise ZooError(
                f"{source}, line {number}: '{text[:80]}' is not a picture's name; correct the line"
            )
        places = [Path(os.path.abspath(base / text)) for base in (source.parent, root)]
        yield next((p for p in places if p.is_file()), places[0])


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except ZooError:  # whoever reads the pixels is told why
        return None


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _area(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of a polygon, by the shoelace formula."""
    after = zip([*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x * v - u * y for x, y, (u, v) in zip(xs, ys, after, strict=True))) / 2

"""Annotated pictures from one format into another: COCO, Pascal VOC, YOLO.

Everything is read and checked before anything is written, into a folder that gets its name when it
is whole. What the new format has no place for is counted in a :class:`Conversion`:

=======================  ====================  =================================================
of COCO                  in VOC                in YOLO
=======================  ====================  =================================================
crowd regions            difficult objects     left out
difficult, truncated...  kept                  left out
segments, their areas    left out              left out
ids                      by order from 1       by order, of classes from 0
=======================  ====================  =================================================

COCO takes everything: VOC's flags stay as keys of the annotations, YOLO's polygons as segments.
VOC's corners may be fractions and are written exactly; YOLO's numbers have ten decimals, 1e-6
pixels of a picture 10 000 wide. COCO's get six, which takes the rounding of the others back.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from zoo.datasets.coco import same_shape
from zoo.datasets.coco_records import read_checked
from zoo.datasets.formats import PictureSet
from zoo.datasets.images import image_size
from zoo.datasets.split_files import SplitFiles, is_picture
from zoo.datasets.voc_records import FLAGS, LABEL_FILES
from zoo.datasets.yolo_records import YAML_NAMES, label_path
from zoo.errors import ZooError
from zoo.types import Size

TARGETS = ("coco", "voc", "yolo")

_ANNOTATION = frozenset(
    {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}
)
_IMAGE = frozenset({"id", "file_name", "height", "width"})
_DECIMALS = 6  # of pixels in COCO's boxes

Record = Mapping[str, Any]
Track = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass
class Conversion:
    """What was written, and what could not be.

    ``lost`` counts what training or scoring would see; ``changed`` what is there under another
    number or name, and what is for reference only.
    """

    out: Path
    pictures: dict[str, int] = field(default_factory=dict)
    objects: Counter[str] = field(default_factory=Counter)  # by split
    lost: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Split:
    """A split that was read: (height, width) and annotations by image id, boxes not clipped."""

    name: str
    files: SplitFiles
    content: dict[str, Any]
    sizes: Mapping[int, Size]
    annotations: Mapping[int, list[Record]]


_Writer = Callable[[Sequence[_Split], Mapping[int, str], Path, Conversion], None]


def convert(
    source: PictureSet,
    to: str,
    out: Path,
    *,
    link: bool = False,
    track: Track = lambda items, total, name: items,
) -> Conversion:
    """Write the splits of ``source`` in the format ``to`` below ``out``, pictures included.

    Pictures are copied, or with ``link`` are the same files under a second name (who changes one
    changes both). ``track(items, total, name)`` may wrap them in a progress bar. Raises
    :class:`ZooError` for the first fault of the source, for a folder ``out`` that is not empty,
    and for what the format can't tell apart; then nothing is written.
    """
    if to not in TARGETS:
        raise ZooError(f"there is no format '{to}' to convert to; known: {', '.join(TARGETS)}")
    _check_empty(out)
    splits = [_read(name, files) for name, files in source.splits.items()]
    names = _classes(splits)
    if to != "coco":
        _check_names(splits)
        if blank := [number for number, name in names.items() if not name.strip()]:
            raise ZooError(f"{splits[0].files.annotations}: class {blank[0]} has no name; name it")
    result, out = Conversion(out), Path(os.path.abspath(out))
    fresh = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        fresh.mkdir(parents=True)
        if to == "coco":
            own = source.format.name == "coco"
            placed = _write_coco(splits, names, fresh, result, as_it_is=own)
        else:
            if source.format.name == "coco":
                _count_reference(splits, names, to, result)
            placed = {"voc": _write_voc, "yolo": _write_yolo}[to](splits, names, fresh, result)
        for split, pairs in zip(splits, placed, strict=True):
            result.pictures[split.name] = len(pairs)
            # COCO may list a file twice.
            for old, new in track(list(dict.fromkeys(pairs)), len(pairs), split.name):
                _place(old, new, link=link)
        if out.exists():
            out.rmdir()
        fresh.rename(out)
    except OSError as error:
        raise ZooError(
            f"{out} can't be written ({error.strerror}: {error.filename or fresh}); free space, or "
            "give another --out"
        ) from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return result


# -- reading ------------------------------------------------------------------------------------


def _check_empty(out: Path) -> None:
    try:
        free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    except OSError:
        free = False
    if not free:
        raise ZooError(f"{out} is not an empty folder; give another --out, or empty it")


def _read(name: str, files: SplitFiles) -> _Split:
    content, sizes = read_checked(files)
    by_image: dict[int, list[Record]] = {number: [] for number in sizes}
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return _Split(name, files, content, sizes, by_image)


def _classes(splits: Sequence[_Split]) -> dict[int, str]:
    """Class names by id, in the order of ids; the same in all splits."""
    found = [{c["id"]: c["name"] for c in split.content["categories"]} for split in splits]
    for split, classes in zip(splits, found, strict=True):
        if classes != found[0]:
            raise ZooError(
                f"{splits[0].files.annotations} and {split.files.annotations} differ in their "
                "categories; make them agree, or convert one at a time with --split"
            )
    return dict(sorted(found[0].items()))


def _check_names(splits: Sequence[_Split]) -> None:
    """Labels are found by the name of the picture without its ending: it has to be one's own."""
    for split in splits:
        seen: dict[str, str] = {}
        for image in split.content["images"]:
            name: str = image["file_name"]
            stem, own = name.rpartition(".")[0], name.rpartition("/")[2]
            usual = stem == stem.strip() and name.isprintable() and not own.startswith(".")
            if not is_picture(name) or not usual:
                raise ZooError(
                    f"{split.files.images / name} would not be found again by its name; give it "
                    "one without odd characters, that ends as a picture's"
                )
            if stem in seen:
                raise ZooError(
                    f"{split.files.annotations}: {seen[stem]} and {name} would share one file of "
                    "labels; rename one, or list it once"
                )
            seen[stem] = name


def _count_reference(
    splits: Sequence[_Split], names: Mapping[int, str], to: str, result: Conversion
) -> None:
    """What a COCO file says for reference: neither VOC nor YOLO has a place for it."""
    changed = result.changed
    first = int(to == "voc")
    if list(names) != list(range(first, first + len(names))):
        changed["category ids are numbered anew"] += len(names)
    for split in splits:
        changed["image ids are numbered anew"] += len(split.content["images"])
        changed["annotation ids are left out"] += len(split.content["annotations"])
        for key in split.content.keys() - {"images", "annotations", "categories"}:
            changed[f"'{key}' of the file is left out"] += 1
        for image in split.content["images"]:
            for key in image.keys() - _IMAGE:
                changed[f"'{key}' of pictures is left out"] += 1
    for category in splits[0].content["categories"]:
        for key in category.keys() - {"id", "name"}:
            changed[f"'{key}' of categories is left out"] += 1


# -- writing ------------------------------------------------------------------------------------

_Pairs = list[tuple[Path, Path]]  # the pictures of a split: from where to where


def _write_coco(
    splits: Sequence[_Split],
    names: Mapping[int, str],
    out: Path,
    result: Conversion,
    *,
    as_it_is: bool,
) -> list[_Pairs]:
    """``annotations/instances_SPLIT.json`` and ``SPLIT/``; COCO's own records ``as_it_is``."""
    numbers = {number: place for place, number in enumerate(names, 1)}
    placed = []
    for split in splits:
        content = split.content
        images = content["images"]
        if not as_it_is:
            sizes = split.sizes
            content = {
                "images": [
                    {**im, "height": sizes[im["id"]][0], "width": sizes[im["id"]][1]}
                    for im in images
                ],
                "categories": [{"id": numbers[n], "name": name} for n, name in names.items()],
                "annotations": [
                    _coco_annotation(a, numbers, result) for a in content["annotations"]
                ],
            }
        result.objects[split.name] += len(content["annotations"])
        _write(out / "annotations" / f"instances_{split.name}.json", json.dumps(content))
        folder = out / split.name
        placed.append(
            [(split.files.images / im["file_name"], folder / im["file_name"]) for im in images]
        )
    return placed


def _coco_annotation(
    annotation: Record, numbers: Mapping[int, int], result: Conversion
) -> dict[str, Any]:
    for tag in annotation.get("_other", ()):
        result.lost[f"<{tag}> of objects"] += 1
    kept = {key: value for key, value in annotation.items() if not key.startswith("_")}
    segments = [[_rounded(v) for v in points] for points in kept.get("segmentation", ())]
    return {
        **kept,
        "category_id": numbers[annotation["category_id"]],
        "bbox": [_rounded(v) for v in annotation["bbox"]],
        "area": _rounded(annotation["area"]),
        "segmentation": segments,
    }


def _write_voc(
    splits: Sequence[_Split], names: Mapping[int, str], out: Path, result: Conversion
) -> list[_Pairs]:
    """``Annotations/``, ``JPEGImages/``, ``ImageSets/Main/SPLIT.txt`` and ``labels.txt``."""
    for number, name in names.items():
        if name != name.strip() or not name.isprintable():
            raise ZooError(f"class {number} '{name}' can't be a line of a file; rename it")
    if len(set(names.values())) < len(names):
        raise ZooError("two classes have one name, by which VOC tells classes apart; rename one")
    _write(out / LABEL_FILES[0], "".join(f"{name}\n" for name in names.values()))
    stems = [{_stem(im) for im in split.content["images"]} for split in splits]
    shared = sum(map(len, stems)) > len(set().union(*stems))
    placed = []
    for split in splits:
        pairs, lines = [], []
        for image in split.content["images"]:
            name = image["file_name"]
            if shared:  # one folder holds the pictures of all splits
                below, slash, own = name.rpartition("/")
                name = f"{below}{slash}{split.name}_{own}"
                result.changed["pictures are named after their split, as names occur in two"] += 1
            root = _voc_root(name, split.sizes[image["id"]])
            for annotation in split.annotations[image["id"]]:
                _count_lost(annotation, {*FLAGS, "pose"}, result)
                if annotation.get("iscrowd") and not annotation.get("difficult"):
                    result.changed["crowd regions are difficult objects"] += 1
                root.append(_voc_object(annotation, names))
                result.objects[split.name] += 1
            stem = name.rpartition(".")[0]
            ElementTree.indent(root)
            _write(
                out / "Annotations" / f"{stem}.xml", ElementTree.tostring(root, encoding="unicode")
            )
            lines.append(f"{stem}\n")
            pairs.append((split.files.images / image["file_name"], out / "JPEGImages" / name))
        _write(out / "ImageSets" / "Main" / f"{split.name}.txt", "".join(lines))
        placed.append(pairs)
    return placed


def _voc_root(name: str, size: Size) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", name.rpartition("/")[2])
    place = ElementTree.SubElement(root, "size")
    # Pictures of any kind are read as RGB.
    for key, value in (("width", size[1]), ("height", size[0]), ("depth", 3)):
        _add(place, key, str(value))
    _add(root, "segmented", "0")
    return root


def _voc_object(annotation: Record, names: Mapping[int, str]) -> ElementTree.Element:
    element = ElementTree.Element("object")
    _add(element, "name", names[annotation["category_id"]])
    _add(element, "pose", str(annotation.get("pose") or "Unspecified"))
    difficult = annotation.get("difficult") or annotation.get("iscrowd")
    _add(element, "truncated", str(int(bool(annotation.get("truncated")))))
    _add(element, "difficult", str(int(bool(difficult))))
    if annotation.get("occluded"):
        _add(element, "occluded", "1")
    x, y, w, h = annotation["bbox"]
    corners = ElementTree.SubElement(element, "bndbox")
    # Pixels count from 1, and the last one is inside.
    for key, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h)):
        _add(corners, key, _shown(value))
    return element


def _write_yolo(
    splits: Sequence[_Split], names: Mapping[int, str], out: Path, result: Conversion
) -> list[_Pairs]:
    """``images/SPLIT/``, ``labels/SPLIT/`` and ``data.yaml``."""
    numbers = {number: place for place, number in enumerate(names)}
    placed = []
    for split in splits:
        pairs = []
        for image in split.content["images"]:
            old = split.files.images / image["file_name"]
            new = out / "images" / split.name / image["file_name"]
            size = split.sizes[image["id"]]
            _check_frame(old, size)
            lines = []
            for annotation in split.annotations[image["id"]]:
                if line := _yolo_line(annotation, numbers, size, result):
                    lines.append(line)
                    result.objects[split.name] += 1
            _write(label_path(new, out), "".join(lines))
            pairs.append((old, new))
        placed.append(pairs)
    content = {
        **{split.name: f"images/{split.name}" for split in splits},
        "nc": len(names),
        "names": dict(enumerate(names.values())),
    }
    _write(out / YAML_NAMES[0], yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return placed


def _yolo_line(
    annotation: Record, numbers: Mapping[int, int], size: Size, result: Conversion
) -> str | None:
    if annotation.get("iscrowd"):
        result.lost["crowd regions or difficult objects"] += 1
        return None
    _count_lost(annotation, set(), result)
    height, width = size
    x, y, w, h = annotation["bbox"]
    values = _normalised(x, y, w, h, width, height)
    if not all(0 <= v <= 1 for v in values):
        # The format has no numbers for it.
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if x2 <= x1 or y2 <= y1:
            result.lost["boxes outside their picture"] += 1
            return None
        result.lost["parts of boxes that stand over the edge of their picture"] += 1
        values = _normalised(x1, y1, x2 - x1, y2 - y1, width, height)
    return f"{numbers[annotation['category_id']]} {' '.join(_shown(v) for v in values)}\n"


def _normalised(x: float, y: float, w: float, h: float, width: int, height: int) -> list[float]:
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]


def _check_frame(path: Path, frame: Size) -> None:
    """Values in 0..1 are of the upright picture; its boxes have to be, too."""
    upright = image_size(path)
    if upright == frame:
        return
    if image_size(path, upright=False) == frame:
        raise ZooError(
            f"{path} is turned by its EXIF orientation, and its boxes are those of the unturned "
            "picture, which YOLO can't say; save it without the orientation"
        )
    if not same_shape(upright, frame):
        raise ZooError(
            f"{path} has {upright[1]} x {upright[0]} pixels where its record says {frame[1]} x "
            f"{frame[0]}; correct width and height, with the boxes, or the file"
        )


def _count_lost(annotation: Record, kept: set[str], result: Conversion) -> None:
    """What the new format has no place for."""
    if annotation.get("segmentation"):
        result.lost["segments"] += 1
    _, _, w, h = annotation["bbox"]
    area = annotation.get("area", w * h)
    if type(area) not in (int, float) or abs(area - w * h) > 1e-3 * max(w * h, 1):
        result.lost["areas that are not their box's"] += 1
    for key in annotation.keys() - _ANNOTATION - kept:
        if annotation[key] and not key.startswith("_"):
            result.lost[f"'{key}' of objects"] += 1
    for tag in annotation.get("_other", ()):
        result.lost[f"<{tag}> of objects"] += 1


def _place(old: Path, new: Path, *, link: bool) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    if not link:
        shutil.copyfile(old, new)
        return
    try:
        os.link(old.resolve(), new)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        raise ZooError(
            f"{old} can't be linked from there ({error.strerror}); leave --link out to copy"
        ) from None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _stem(image: Record) -> str:
    return str(image["file_name"]).rpartition(".")[0]


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def _rounded(value: float) -> float:
    return round(float(value), _DECIMALS)


def _shown(value: float) -> str:
    """Ten decimals, without zeros at the end."""
    return f"{value:.10f}".rstrip("0").rstrip(".")

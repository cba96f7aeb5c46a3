"""Files in COCO's panoptic format: finding, reading, checking and writing them.

A JSON lists per picture a PNG and its ``segments_info`` (id, category_id, iscrowd, bbox, area); in
the PNG a pixel's segment is R + 256 G + 65536 B, 0 for none (github.com/cocodataset/panopticapi).
Categories have ``isthing``. Segments are handed on as a COCO dict of boxes, so that
:mod:`zoo.datasets.coco_records` checks them and holds them; the maps are read when needed.

Layouts of a split called ``train``, pictures first::

    train/*.jpg         annotations/panoptic_train.json      annotations/panoptic_train/*.png
    train2017/*.jpg     annotations/panoptic_train2017.json  annotations/panoptic_train2017/*.png
    input_images/*.jpg  train.json                           train/*.png
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.datasets.coco_records import missing_pictures, read_json
from zoo.datasets.images import read_image
from zoo.datasets.masks import Ids, ids_of, pixels_of, present
from zoo.datasets.panoptic_eval import Segmentation
from zoo.datasets.split_files import Tell, leads_out, names_of, pictures_below
from zoo.errors import ZooError
from zoo.files import write_json

HIGHEST = 2**24  # ids are below it


class PanopticFiles(NamedTuple):
    """A split's JSON, its folder of pictures and its folder of maps."""

    annotations: Path
    images: Path
    maps: Path

    def read(self) -> dict[str, Any]:
        """Pictures and segments as a COCO dict, crowds included; every segment checked."""
        return as_coco(read_panoptic(self.annotations), self.annotations)

    def survey(self, tell: Tell) -> Any:
        """As :meth:`read`; ``tell`` is told the first fault, and nothing is found then."""
        try:
            return self.read()
        except ZooError as error:
            tell("json", str(error))
            return {"images": [], "annotations": [], "categories": []}

    def unlisted(self, listed: Set[str]) -> list[str]:
        """Pictures in the folder that no record lists."""
        return sorted(pictures_below(self.images) - listed)


def candidates(folder: Path, split: str) -> list[tuple[Path, Path, tuple[Path, ...]]]:
    """JSON, folder of maps and possible folders of pictures of a split, best first."""
    known: list[tuple[Path, Path, tuple[Path, ...]]] = []
    for name in (*names_of(split), f"{split}2017"):
        file = folder / "annotations" / f"panoptic_{name}.json"
        known.append((file, file.with_suffix(""), (folder / name, folder / "images" / name)))
    for name in names_of(split):
        known.append((folder / f"{name}.json", folder / name, (folder / "input_images",)))
    return known


def find_split(folder: Path, split: str) -> PanopticFiles:
    """The files of a split in any of the known layouts.

    Raises :class:`ZooError` where the folder, the JSON (naming what was looked for), the folder of
    maps or that of pictures is missing.
    """
    if not folder.is_dir():
        raise ZooError(f"there is no data folder {folder}; correct data.folder")
    known = candidates(folder, split)
    for file, maps, places in known:
        if not file.is_file():
            continue
        if not maps.is_dir():
            raise ZooError(f"{file} has no folder of maps; put its PNG files in {maps}")
        for images in places:
            if images.is_dir():
                return PanopticFiles(file, images, maps)
        raise ZooError(f"{file} has no folder of pictures beside it; put them in {places[0]}")
    looked = ", ".join(str(file.relative_to(folder)) for file, _, _ in known)
    raise ZooError(
        f"{folder} has no panoptic annotations of the split '{split}' (looked for {looked}); "
        "add one of these files or name another split"
    )


def read_panoptic(file: Path) -> dict[str, Any]:
    """A panoptic JSON whose records are checked.

    Raises :class:`ZooError` for broken JSON and for the first record that is at fault: a picture
    listed twice or without annotation, a map without a name, ``segments_info`` that is no list, an
    id that is no whole number in 1..2**24 - 1 or occurs twice, a category without ``isthing``.
    """
    content = read_json(file)
    for place, category in enumerate(content["categories"]):
        if type(category.get("id")) is not int:
            raise ZooError(
                f"{file}: categories[{place}] has id {category.get('id')!r}; give a whole number"
            )
        if category.get("isthing") not in (0, 1):
            raise ZooError(
                f"{file}: categories[{place}] has isthing {category.get('isthing')!r}; give 1 for "
                "things and 0 for stuff"
            )
    listed = _by_id(content["images"])
    seen = set()
    for place, record in enumerate(content["annotations"]):
        number = record.get("image_id")
        if type(number) is not int or number not in listed:
            raise ZooError(
                f"{file}: annotations[{place}] is of image id {number!r}, which is not among the "
                "images; add the image or remove the annotation"
            )
        if number in seen:
            raise ZooError(f"{file}: image id {number} has two annotations; keep one")
        seen.add(number)
        _check_record(record, f"{file}: the annotation of image id {number}")
    if lost := sorted(n for n in listed if n not in seen):
        raise ZooError(f"{file}: image id {lost[0]} has no annotation; add it or remove the image")
    return content


def _by_id(records: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Records by their ids; those without one are told of by :mod:`zoo.datasets.coco_records`."""
    return {record["id"]: record for record in records if type(record.get("id")) is int}


def _check_record(record: Mapping[str, Any], origin: str) -> None:
    name, segments = record.get("file_name"), record.get("segments_info")
    if not isinstance(name, str) or leads_out(name):
        raise ZooError(f"{origin} has file_name {name!r}; name its PNG, inside the maps' folder")
    if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
        raise ZooError(f"{origin} has no list segments_info; list its segments")
    used = set()
    for place, segment in enumerate(segments):
        number = segment.get("id")
        if type(number) is not int or not 0 < number < HIGHEST:
            raise ZooError(
                f"{origin}: segments_info[{place}] has id {number!r}; give a whole number in "
                f"1..{HIGHEST - 1}"
            )
        if number in used:
            raise ZooError(f"{origin} lists segment {number} twice; give each its own id")
        used.add(number)


def as_coco(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A COCO dict with an annotation a segment; ``segment`` is the segment's id in its map."""
    annotations: list[dict[str, Any]] = []
    images, classes = _by_id(content["images"]), _by_id(content["categories"])
    for record in content["annotations"]:
        image = images[record["image_id"]]
        for segment in record["segments_info"]:
            box: Any = segment.get("bbox")
            label: Any = segment.get("category_id")
            origin = f"{file}: segment {segment['id']} of image id {image['id']}"
            if type(label) is not int or label not in classes:
                raise ZooError(
                    f"{origin} has category id {label!r}, which is not among the categories; add "
                    "the category or correct the segment"
                )
            if not _has_area(box, image):
                raise ZooError(
                    f"{origin} has bbox {box}; give left, top, width and height in pixels, with "
                    "an area inside the picture"
                )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": label,
                    "bbox": box,
                    "area": segment.get("area", box[2] * box[3]),
                    "iscrowd": int(bool(segment.get("iscrowd", 0))),
                    "segment": segment["id"],
                    "_origin": origin,
                }
            )
    return {**content, "annotations": annotations}


def _has_area(box: Any, image: Mapping[str, Any]) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    if any(type(v) not in (int, float) or not abs(v) < 2**31 for v in box):
        return False
    left, top, width, height = box
    most = [image.get(key) or 2**31 for key in ("width", "height")]
    return bool(
        min(left + width, most[0]) > max(left, 0) and min(top + height, most[1]) > max(top, 0)
    )


def read_map(path: Path) -> Ids:
    """The segment ids [H, W] of a PNG.

    Raises :class:`ZooError` where it is missing, no picture, or of another mode than 8-bit RGB:
    of a palette, say, the colours would be taken for ids.
    """
    if path.is_file():
        try:
            with Image.open(path) as image:
                if image.mode not in ("RGB", "RGBA"):
                    raise ZooError(
                        f"{path} is of mode {image.mode}, which holds no panoptic ids; save it as "
                        "8-bit RGB with id = R + 256 G + 65536 B"
                    )
                return ids_of(np.asarray(image))
        except (OSError, SyntaxError, ValueError):
            pass  # read_image says what is wrong
    return ids_of(read_image(path, upright=False).permute(1, 2, 0).numpy())


@dataclass(frozen=True, eq=False)
class PanopticTruth:
    """A panoptic JSON and its maps as a truth, or as a prediction; see :mod:`panoptic_eval`.

    ``content`` is what :func:`read_panoptic` gives. ``only`` are the pictures that count.
    """

    file: Path
    maps: Path
    content: Mapping[str, Any]
    only: frozenset[int] | None = None

    @staticmethod
    def open(file: Path, maps: Path | None = None) -> PanopticTruth:
        """Read a JSON; the maps are in the folder of its name beside it unless given."""
        return PanopticTruth(file, maps or file.with_suffix(""), read_panoptic(file))

    @cached_property
    def categories(self) -> Mapping[int, str]:
        """Category id to name, in the order of ids."""
        listed = sorted(self.content["categories"], key=lambda c: c["id"])
        return {c["id"]: str(c.get("name", c["id"])) for c in listed}

    @cached_property
    def things(self) -> frozenset[int]:
        """The ids of categories that are things."""
        return frozenset(c["id"] for c in self.content["categories"] if c.get("isthing"))

    @cached_property
    def _records(self) -> Mapping[int, Mapping[str, Any]]:
        return {record["image_id"]: record for record in self.content["annotations"]}

    @cached_property
    def _sizes(self) -> Mapping[int, tuple[Any, Any]]:
        images = _by_id(self.content["images"])
        return {number: (im.get("height"), im.get("width")) for number, im in images.items()}

    def image_ids(self) -> list[int]:
        """The pictures that count, in the order of the file."""
        return [n for n in self._records if self.only is None or n in self.only]

    def path(self, image_id: int) -> Path:
        """The PNG of a picture."""
        return self.maps / self._records[image_id]["file_name"]

    def segments(self, image_id: int) -> Segmentation:
        """What the JSON says of a picture; the map is empty (0 x 0)."""
        infos = self._records[image_id]["segments_info"]
        for info in infos:
            if type(info.get("category_id")) is not int:
                raise ZooError(
                    f"{self.file}: segment {info['id']} of image id {image_id} has category_id "
                    f"{info.get('category_id')!r}; give a whole number"
                )
        return Segmentation(
            np.zeros((0, 0), np.int32),
            np.array([info["id"] for info in infos], dtype=np.int64),
            np.array([info["category_id"] for info in infos], dtype=np.int64),
            np.array([bool(info.get("iscrowd", 0)) for info in infos], dtype=bool),
        )

    def segmentation(self, image_id: int) -> Segmentation:
        """A picture's map and segments, which have to be the same ones.

        Raises :class:`ZooError` where the PNG can't be read, has another size than the record
        says, lacks a listed segment, or has one that is not listed.
        """
        path, listed = self.path(image_id), self.segments(image_id)
        ids = read_map(path)
        height, width = self._sizes.get(image_id, (None, None))
        if height is not None and (height, width) != ids.shape:
            raise ZooError(
                f"{path} has {ids.shape[1]} x {ids.shape[0]} pixels where the record of image id "
                f"{image_id} says {width} x {height}; make them agree"
            )
        there = set(present(ids).tolist()) - {0}
        given = set(listed.numbers.tolist())
        if there != given:
            what = (
                f"lacks segment {min(given - there)}, which {self.file} lists"
                if given - there
                else f"has pixels of segment {min(there - given)}, which {self.file} does not list"
            )
            raise ZooError(f"{path} {what} (image id {image_id}); mend segments_info or the map")
        return Segmentation(ids, listed.numbers, listed.labels, listed.crowd)


def check_maps(truth: PanopticTruth) -> None:
    """Raise :class:`ZooError` where a listed PNG is not in the folder of maps."""
    records = list(truth.content["annotations"])
    if missing := missing_pictures(truth.maps, records):
        first = records[missing[0]]
        raise ZooError(
            f"{truth.maps} lacks {len(missing)} of the {len(records)} maps that {truth.file} lists "
            f"(first: image id {first['image_id']}, {first['file_name']}); restore them"
        )


def predictions(file: Path, truth: PanopticTruth, maps: Path | None = None) -> PanopticTruth:
    """A prediction's JSON and folder of PNG files, for :func:`panoptic_eval.evaluate_panoptic`.

    It needs ``annotations`` only; pictures and categories are the truth's. Where it lists
    ``images`` with their file names, its pictures are the truth's of these names, whatever their
    ids: ``tools/predict.py`` numbers the pictures that it is given.
    """
    content = read_lenient(file)
    ids = _ids_by_name(content.get("images"), truth, file)
    given = [(record, record.get("image_id")) for record in content["annotations"]]
    records = [{**record, "image_id": ids.get(number, number)} for record, number in given]
    whole = {"images": truth.content["images"], "annotations": records, "categories": []}
    listed = set(truth.image_ids())
    for place, record in enumerate(records):
        if record["image_id"] not in listed:
            raise ZooError(
                f"{file}: annotations[{place}] is of image id {record['image_id']!r}, which "
                f"{truth.file} does not hold; score predictions on the data they were made for"
            )
        _check_record(record, f"{file}: the annotation of image id {record['image_id']}")
    return PanopticTruth(file, maps or file.with_suffix(""), whole)


def _ids_by_name(images: Any, truth: PanopticTruth, file: Path) -> dict[Any, int]:
    """The truth's image id for each of a prediction's own; empty where its ids are the truth's.

    Names are compared with their folders, and where that fails without. Raises :class:`ZooError`
    where neither tells all pictures apart and an id means different pictures there and here.
    """
    own = _names(images if isinstance(images, list) else [])
    known = _names(truth.content["images"])
    if not own or not known:
        return {}
    for key in (str, lambda name: PurePosixPath(name).name):
        place = {key(name): number for number, name in known.items()}
        wanted = [key(name) for name in own.values()]
        unique = len(place) == len(known) and len(set(wanted)) == len(wanted)
        if unique and place.keys() >= set(wanted):
            return {number: place[key(name)] for number, name in own.items()}
    for number, name in own.items():
        if number in known and PurePosixPath(known[number]).stem != PurePosixPath(name).stem:
            raise ZooError(
                f"{file}: image id {number} is {name}, and {known[number]} in {truth.file}; give "
                "the pictures the truth's file names, or leave images out to go by ids"
            )
    return {}


def _names(images: Iterable[Any]) -> dict[int, str]:
    """File names by image id, of the records that have both."""
    records = [r for r in images if isinstance(r, dict) and isinstance(r.get("file_name"), str)]
    return {number: record["file_name"] for number, record in _by_id(records).items()}


def read_lenient(file: Path) -> dict[str, Any]:
    """A JSON with a list ``annotations`` of records; :class:`ZooError` where it is none."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ZooError(f"there is no file {file}; correct the path") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ZooError(f"{file} can't be read as JSON ({error}); write it anew") from None
    records = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise ZooError(f"{file} has no list 'annotations'; give COCO's panoptic format")
    return content


def write_panoptic(
    file: Path,
    found: Iterable[tuple[int, str, Segmentation]],
    *,
    class_ids: Sequence[int] = (),
    scores: Mapping[int, Sequence[float]] | None = None,
    images: Sequence[Mapping[str, Any]] = (),
    categories: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write COCO's panoptic format: ``file`` (JSON) and a PNG a picture in the folder of its name.

    ``found`` are image id, the picture's file name and its segments, whose labels are class
    indices if ``class_ids`` are given, else category ids. ``scores`` are the segments', by image.
    ``images`` and ``categories``, a COCO file's, are written along where they are given.
    """
    maps = file.with_suffix("")
    maps.mkdir(parents=True, exist_ok=True)
    annotations = []
    for image_id, picture, segments in found:
        name = Path(picture).with_suffix(".png").name
        save_map(maps / name, segments)
        infos = segments_info(segments, class_ids, (scores or {}).get(image_id, ()))
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": infos})
    write_json(
        file,
        {"images": list(images), "annotations": annotations, "categories": list(categories)},
    )


def save_map(path: Path, segments: Segmentation) -> None:
    """Write a PNG whose pixels say their segment; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(segments.ids)).save(path)


def segments_info(
    segments: Segmentation, class_ids: Sequence[int] = (), scores: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """What COCO's panoptic format says of each segment: id, category, crowd, bbox and area.

    ``labels`` are class indices if ``class_ids`` are given, else category ids. ``scores`` are the
    segments', where they have any.
    """
    numbers = segments.numbers.tolist()
    labels = [class_ids[n] if class_ids else n for n in segments.labels.tolist()]
    infos = [
        {"id": number, "category_id": label, "iscrowd": int(crowd), **_measured(ids)}
        for number, label, crowd, ids in zip(
            numbers,
            labels,
            segments.crowd.tolist(),
            (segments.ids == number for number in numbers),
            strict=True,
        )
    ]
    for info, score in zip(infos, scores, strict=False):
        info["score"] = float(score)
    return infos


def _measured(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Area and bbox (left, top, width, height) of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return {"area": 0, "bbox": [0, 0, 0, 0]}
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    return {"area": int(mask.sum()), "bbox": box}


def from_two_channels(path: Path) -> Segmentation:
    """A picture in the two-channel format: R is the category id, G tells its segments apart.

    Category 0 is void. A segment's number is category + 256 * instance, its label the category.
    """
    ids = read_map(path)
    ids = np.where(ids & 255, ids & 0xFFFF, 0).astype(np.int32)
    numbers = present(ids)
    numbers = numbers[numbers != 0]
    return Segmentation(ids, numbers, numbers & 255, np.zeros(len(numbers), dtype=bool))

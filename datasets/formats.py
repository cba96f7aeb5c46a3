"""The formats of annotated pictures, and which of them a folder is of.

``--data FOLDER`` and ``--data FORMAT:FOLDER`` mean the same here as in training, which asks the
registry (:mod:`zoo.registry`); this is for what works on annotations: inspection and conversion.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.config import from_plain, parse_overrides
from zoo.datasets import coco_records, voc_records, yolo_records
from zoo.datasets.split_files import SplitFiles
from zoo.errors import ZooError
from zoo.registry import data_spec

log = logging.getLogger("zoo")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Format:
    """A format: whether a folder has a split, the split's files, what that was looked for.

    ``settings`` are the fields of the format's data config that ``find`` takes.
    """

    name: str
    has: Callable[[Path, str], bool]
    find: Callable[..., SplitFiles]
    looked_for: Callable[[Path], str]
    settings: tuple[str, ...] = ()


def _has_coco(folder: Path, split: str) -> bool:
    return any(file.is_file() for file, _ in coco_records.candidates(folder, split))


def _coco_places(folder: Path) -> str:
    known = coco_records.candidates(folder, SPLITS[0])
    return ", ".join(str(file.relative_to(folder)) for file, _ in known)


def _has_yolo(folder: Path, split: str) -> bool:
    return yolo_records.yaml_of(folder) is not None and yolo_records.has_split(folder, split)


FORMATS: Mapping[str, Format] = {
    f.name: f
    for f in (
        Format("coco", _has_coco, coco_records.find_split, _coco_places),
        Format(
            "voc",
            voc_records.has_split,
            voc_records.find_split,
            lambda folder: voc_records.looked_for(SPLITS[0]),
            ("one_based", "difficult"),
        ),
        Format(
            "yolo",
            _has_yolo,
            yolo_records.find_split,
            lambda folder: " or ".join(yolo_records.YAML_NAMES[::2]),
        ),
    )
}


@dataclass(frozen=True)
class PictureSet:
    """A folder of a known format, and the files of its splits by name."""

    folder: Path
    format: Format
    splits: Mapping[str, SplitFiles]


def open_set(
    data: str | Path, splits: Sequence[str] = (), overrides: Sequence[str] = ()
) -> PictureSet:
    """Find the splits of ``FOLDER`` or ``FORMAT:FOLDER``: those named, or all common ones.

    ``overrides`` are settings of how the format is read, such as ``data.one_based=false``. Raises
    :class:`ZooError` where the folder is of no known format (saying what was looked for), where a
    split is not there, and for a setting that the format lacks.
    """
    format, folder = _format_of(data, splits)
    sections = parse_overrides(overrides)
    values = sections.pop("data", {})
    for key in (*sections, *(f"data.{key}" for key in values if key not in format.settings)):
        known = ", ".join(f"data.{k}" for k in format.settings) or "none"
        raise ZooError(f"{key} does not say how {format.name} is read; settings that do: {known}")
    config = from_plain(data_spec(format.name).config, values, "data.")
    given = {key: getattr(config, key) for key in format.settings}
    wanted = splits or _there(format, folder)
    found = {split: format.find(folder, split, **given) for split in dict.fromkeys(wanted)}
    return PictureSet(folder, format, found)


def _format_of(data: str | Path, splits: Sequence[str]) -> tuple[Format, Path]:
    name, colon, rest = str(data).partition(":")
    folder = Path(data).expanduser()
    if isinstance(data, str) and colon and name in FORMATS:
        return FORMATS[name], Path(rest).expanduser()
    if not folder.is_dir():
        raise ZooError(f"there is no data folder {folder}; correct its path")
    for format in FORMATS.values():
        if any(format.has(folder, split) for split in (*SPLITS, "trainval", *splits)):
            return format, folder
    looked = "; ".join(f"{f.name}: {f.looked_for(folder)}" for f in FORMATS.values())
    raise ZooError(f"{folder} is of no known format (looked for {looked}); add annotations")


def _there(format: Format, folder: Path) -> list[str]:
    """The common splits of a folder; train where there is none, so that its lack is told."""
    found = [split for split in SPLITS if format.has(folder, split)]
    if not {"train", "val"} & set(found) and format.has(folder, "trainval"):
        found.append("trainval")
    # Many exports name a test split that they do not hold.
    if format.name == "yolo" and "test" in found and not yolo_records.split_exists(folder, "test"):
        log.warning("%s names a test split that is not there; it is left out", folder)
        found.remove("test")
    return found or [SPLITS[0]]

"""Folders in Pascal VOC's format as a data source; see :mod:`zoo.datasets.voc_records`.

Samples, augmentation and scores are those of :mod:`zoo.datasets.coco`, COCO's measure included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zoo.datasets.coco import CocoConfig, open_splits
from zoo.datasets.voc_records import VocFiles, all_splits, class_names, find_split, looked_for
from zoo.errors import ZooError
from zoo.registry import DataSpec, register_data
from zoo.types import DataSource


@dataclass(frozen=True, kw_only=True)
class VocConfig(CocoConfig):
    """The settings of COCO's format, and two of what VOC's numbers mean."""

    one_based: bool = True  # pixels count from 1 and corners are inclusive, as VOC's do
    difficult: str = "ignore"  # what difficult objects are: ignored like crowds, or used

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.difficult not in ("ignore", "use"):
            raise ZooError(f"data.difficult={self.difficult} is not one of ignore, use")


def open_voc(config: VocConfig) -> DataSource:
    """Open the splits of a folder; see :class:`VocConfig`.

    Raises :class:`ZooError` naming file and object for whatever is wrong with them.
    """

    @cache  # of all splits: read once
    def names(folder: Path) -> tuple[str, ...]:
        return class_names(folder) if folder.is_dir() else ()

    def find(folder: Path, split: str) -> VocFiles:
        return find_split(
            folder,
            split,
            names=names(folder),
            one_based=config.one_based,
            difficult=config.difficult,
        )

    return open_splits("voc", config, find)


def matches(folder: Path) -> str | None:
    """None where a folder has a split in one of VOC's layouts."""
    return None if all_splits(folder) else looked_for("train")


@register_data
def voc() -> DataSpec:
    """A folder of pictures with annotations in Pascal VOC's XML files."""
    return DataSpec(config=VocConfig(), build=open_voc, matches=matches)

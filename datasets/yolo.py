"""Folders in YOLO's format as a data source; see :mod:`zoo.datasets.yolo_records`.

Samples, augmentation and scores are those of :mod:`zoo.datasets.coco`, COCO's measure included.
"""

from __future__ import annotations

from pathlib import Path

from zoo.datasets.coco import CocoConfig, open_splits
from zoo.datasets.yolo_records import YAML_NAMES, find_split, yaml_of
from zoo.registry import DataSpec, register_data
from zoo.types import DataSource


def open_yolo(config: CocoConfig) -> DataSource:
    """Open the splits that ``data.yaml`` names; see :class:`zoo.datasets.coco.CocoConfig`.

    Raises :class:`ZooError` naming file and line for whatever is wrong with them.
    """
    return open_splits("yolo", config, find_split)


def matches(folder: Path) -> str | None:
    """None where a folder has a ``data.yaml``."""
    return None if yaml_of(folder) else " or ".join(YAML_NAMES[::2])


@register_data
def yolo() -> DataSpec:
    """A folder of pictures with labels in YOLO's text files, and data.yaml."""
    return DataSpec(config=CocoConfig(), build=open_yolo, matches=matches)

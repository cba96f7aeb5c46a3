"""The built-in shapes with their segments: panoptic truth that needs no download.

The pictures are those of :mod:`zoo.datasets.shapes`. Every shape is a thing whose segment is what
is visible of it; all the rest of a picture is one segment of the one class of stuff, "ground".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from zoo.datasets.coco_panoptic import refuse_mixing, with_masks
from zoo.datasets.mask_eval import SegmentsEvaluator
from zoo.datasets.masks import Ids
from zoo.datasets.panoptic_eval import Segmentation
from zoo.datasets.shapes import ShapesConfig, ShapesSet
from zoo.datasets.shapes_scene import CLASSES, Scene
from zoo.datasets.transforms import (
    collate_detection,
    detection_sample,
    plan_train,
    plan_val,
    preprocess_of,
)
from zoo.registry import DataSpec, register_data
from zoo.types import DataSource, Evaluator, Sample, Size

GROUND = 200  # its category id
NAMES: Mapping[int, str] = {**CLASSES, GROUND: "ground"}


def segments(scene: Scene) -> Segmentation:
    """What is visible of each shape, 1, 2, ... in their order, and last the ground.

    ``labels`` are category ids. A picture without a pixel of ground has no such segment.
    """
    ids: Ids = np.full(scene.size, len(scene.items) + 1, dtype=np.int32)
    height, width = scene.size
    for number, item in enumerate(scene.items, 1):
        h, w = item.mask.shape
        top, left = max(item.top, 0), max(item.left, 0)
        bottom, right = min(item.top + h, height), min(item.left + w, width)
        part = item.mask[top - item.top : bottom - item.top, left - item.left : right - item.left]
        ids[top:bottom, left:right][part >= 128] = number
    labels = [list(CLASSES)[k] for k in scene.labels.tolist()]
    if (ids == len(scene.items) + 1).any():
        labels.append(GROUND)
    count = len(labels)
    return Segmentation(
        ids,
        np.arange(1, count + 1, dtype=np.int64),
        np.array(labels, dtype=np.int64),
        np.zeros(count, dtype=bool),
    )


@dataclass(eq=False)
class ShapesPanoptic:
    """Samples of ``shapes`` whose targets have masks, and their truth.

    It is also the set's :class:`zoo.datasets.panoptic_eval.Truth`.
    """

    shapes: ShapesSet

    def __post_init__(self) -> None:
        self.categories = NAMES
        self.things = frozenset(CLASSES)
        self._places = {self.shapes.image_id(i): i for i in range(len(self.shapes))}

    def __len__(self) -> int:
        return len(self.shapes)

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation that the following draws use."""
        self.shapes.set_epoch(epoch)

    def sizes(self) -> list[Size]:
        """(height, width) of every sample in the current epoch."""
        return self.shapes.sizes()

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shapes = self.shapes
        scene, config = shapes.scene(index), shapes.config
        if shapes.augmented:
            plans = plan_train(
                [scene.size],
                config.augment,
                seed=config.seed,
                epoch=shapes.epoch,
                indices=shapes.places[index : index + 1],
            )
        else:
            plans = plan_val([scene.size], config.augment)
        shown = segments(scene)
        boxes, labels = torch.from_numpy(scene.boxes), torch.from_numpy(scene.labels)
        if GROUND in shown.labels:
            mask = shown.ids == len(scene.items) + 1
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            boxes = torch.cat([boxes, torch.tensor([box], dtype=boxes.dtype)])
            labels = torch.cat([labels, torch.tensor([len(CLASSES)])])
        sample = detection_sample(
            shapes.picture(index, scene),
            boxes,
            torch.arange(len(labels)),
            plans[0],
            frame=scene.size,
            image_id=shapes.image_id(index),
        )
        numbers = torch.from_numpy(shown.numbers)
        target = with_masks(sample.target, labels, numbers, shown.ids, plans[0])
        meta = replace(sample.meta, extra={"stuff": (len(CLASSES),)})
        return Sample(sample.inputs, target, meta)

    def image_ids(self) -> list[int]:
        """The ids of all pictures."""
        return list(self._places)

    def segmentation(self, image_id: int) -> Segmentation:
        """What a picture shows; labels are category ids."""
        return segments(self.shapes.scene(self._places[image_id]))

    def overfit(self, count: int) -> ShapesPanoptic:
        """The first ``count`` pictures that have shapes, not augmented."""
        return ShapesPanoptic(self.shapes.overfit(count))


def open_shapes_panoptic(config: ShapesConfig) -> DataSource:
    """The training and evaluation pictures; see :class:`zoo.datasets.shapes.ShapesConfig`."""
    refuse_mixing(config.augment)
    train = ShapesPanoptic(ShapesSet(config, "train", augmented=True))
    return _source(config, train, ShapesPanoptic(ShapesSet(config, "val", augmented=False)))


def _source(config: ShapesConfig, train: ShapesPanoptic, val: ShapesPanoptic) -> DataSource:
    def evaluator() -> Evaluator:
        return SegmentsEvaluator(val, tuple(NAMES))

    def overfit(count: int) -> DataSource:
        part = train.overfit(count)
        return _source(config, part, part)

    return DataSource(
        name="shapes_panoptic",
        train=train,
        val=val,
        collate=collate_detection,
        evaluator=evaluator,
        class_names=tuple(NAMES.values()),
        class_ids=tuple(NAMES),
        better="PQ",
        preprocess={**preprocess_of(config.augment), "stuff": [len(CLASSES)]},
        overfit=overfit,
    )


@register_data
def shapes_panoptic() -> DataSpec:
    """Drawn shapes with their segments: things, and the ground as stuff."""
    return DataSpec(
        config=ShapesConfig(),
        build=open_shapes_panoptic,
        matches=lambda _: "drawn, not read from a folder",
    )

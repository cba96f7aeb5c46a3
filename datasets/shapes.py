"""The built-in data set: pictures of shapes, drawn on the fly, with COCO-format ground truth.

Eight classes of objects (filled, shaded, textured, outlined, hollow; any size and colour, tilted;
covering each other or standing out of the picture) among things that are none (writing, strokes,
blobs, specks), some pictures with nothing in them. It needs no download, and behaves like a real
set: pictures of many sizes, category ids with gaps, boxes of what is visible. What is hidden how
far is said in :mod:`zoo.datasets.shapes_scene`.

A picture is a pure function of (seed, split, index), the same in every epoch; what differs
between epochs is its augmentation, as with pictures from files. The ground truth does not depend
on the version of the libraries that paint; single pixels may.

To look at the pictures, or to have a folder in COCO's format::

    python -m zoo.datasets.shapes OUT --train 200 --val 50
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert
from tqdm import tqdm

from zoo.datasets.mixing import mixed
from zoo.datasets.shapes_paint import LARGEST, paint
from zoo.datasets.shapes_scene import CLASSES, Draws, Scene, lay_out
from zoo.datasets.transforms import (
    AugmentConfig,
    Plan,
    collate_detection,
    detection_sample,
    plan_train,
    plan_val,
    preprocess_of,
)
from zoo.errors import ZooError
from zoo.registry import DataSpec, register_data
from zoo.sampling import uniforms
from zoo.types import DataSource, Evaluator, Sample, Size

# What a split's pictures are drawn from: streams of random numbers for sizes, scenes and looks,
# and the number before the first image id, so that no id occurs in two splits.
_SPLITS = {"train": (30, 0), "val": (40, 1_000_000)}


def _augment() -> AugmentConfig:
    return AugmentConfig(
        sizes=(144, 152, 160, 168, 176),
        max_size=256,
        crop=0.0,
        val_size=160,
        val_max_size=256,
    )


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """How many pictures, how large, and how hard. Lengths are in pixels."""

    train_images: int = 4000
    val_images: int = 200
    seed: int = 0  # of the pictures and of their augmentation
    short_side: tuple[int, int] = (144, 176)  # least and greatest
    long_side: int = 240  # at most
    max_objects: int = 10  # in a picture; objects' sides are 10 to 72 % of its short side
    empty: float = 0.04  # probability of a picture without objects
    clutter: float = 1.0  # number of things that are no objects; 0: none
    cache_mb: int = 0  # pictures kept in memory, in each loading process; all of them take 370
    augment: AugmentConfig = field(default_factory=_augment)

    def __post_init__(self) -> None:
        if len(self.short_side) != 2 or not (
            48 <= self.short_side[0] <= self.short_side[1] <= self.long_side <= LARGEST
        ):
            raise ZooError(
                f"data.short_side={self.short_side} and data.long_side={self.long_side} do not "
                f"satisfy 48 <= least <= greatest <= long_side <= {LARGEST}"
            )
        limits = {
            "train_images": (1, 1_000_000),
            "val_images": (1, 1_000_000),
            "max_objects": (1, 100),
            "cache_mb": (0, 1_000_000),
            "empty": (0, 1),
            "clutter": (0, 2),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ZooError(f"data.{name}={getattr(self, name)} is not in {least}..{most}")


class ShapesSet:
    """The pictures of one split, ``train`` or ``val``, as samples for a detector.

    With ``augmented`` they are flipped and resized as ``config.augment`` says, a pure function
    of (seed, epoch, index); else they are as in evaluation. ``places`` are the pictures' numbers
    in the split, all of them by default.
    """

    def __init__(
        self,
        config: ShapesConfig,
        split: str,
        *,
        augmented: bool,
        places: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        count = config.train_images if split == "train" else config.val_images
        self.config, self.split, self.augmented = config, split, augmented
        self.places = np.asarray(np.arange(count) if places is None else places, dtype=np.int64)
        self.epoch = 0
        self._stream, self._first_id = _SPLITS[split]
        self._drawn = self._sizes()
        self._cache: dict[int, tuple[Scene, Tensor]] = {}
        self._room = config.cache_mb * 2**20

    def __len__(self) -> int:
        return len(self.places)

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation that the following draws use."""
        self.epoch = epoch

    def sizes(self) -> list[Size]:
        """(height, width) of every sample in the current epoch; nothing is drawn."""
        config = self.config
        if not self.augmented:
            return plan_val(self._drawn, config.augment).sizes()
        return plan_train(
            self._drawn, config.augment, seed=config.seed, epoch=self.epoch, indices=self.places
        ).sizes()

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.planned(index, self._plan)

    def _plan(self, index: int) -> Plan:
        config, size = self.config, self._drawn[index : index + 1]
        if not self.augmented:
            return plan_val(size, config.augment)[0]
        places = self.places[index : index + 1]
        return plan_train(size, config.augment, seed=config.seed, epoch=self.epoch, indices=places)[
            0
        ]

    def frames(self) -> NDArray[np.int64]:
        """(height, width) [N, 2] of the pictures as they are drawn."""
        return self._drawn

    def planned(self, index: int, plan_of: Callable[[int], Plan]) -> Sample:
        """The sample of a picture under ``plan_of(index)``."""
        scene, picture = self._draw(index)
        return detection_sample(
            picture,
            torch.from_numpy(scene.boxes),
            torch.from_numpy(scene.labels),
            plan_of(index),
            frame=scene.size,
            image_id=self.image_id(index),
        )

    def image_id(self, index: int) -> int:
        """The picture's id in the ground truth."""
        return self._first_id + int(self.places[index]) + 1

    def scene(self, index: int) -> Scene:
        """The objects of a picture and their boxes, without its pixels."""
        height, width = self._drawn[index].tolist()
        draws = Draws(self.config.seed, self._stream + 1, int(self.places[index]))
        return lay_out(
            draws, (height, width), max_objects=self.config.max_objects, empty=self.config.empty
        )

    def picture(self, index: int, scene: Scene | None = None) -> Tensor:
        """The picture as it is drawn, uint8 RGB [3, H, W]."""
        draws = Draws(self.config.seed, self._stream + 2, int(self.places[index]))
        pixels = paint(scene or self.scene(index), draws, self.config.clutter)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _draw(self, index: int) -> tuple[Scene, Tensor]:
        if index in self._cache:
            return self._cache[index]
        scene = self.scene(index)
        picture = self.picture(index, scene)
        if (room := self._room - picture.numel()) >= 0:
            self._room = room
            self._cache[index] = replace(scene, items=()), picture
        return scene, picture

    def overfit(self, count: int) -> ShapesSet:
        """The first ``count`` pictures that have objects (all, where none has), not augmented."""
        found: list[int] = []
        for index in range(len(self)):
            if len(found) == count:
                break
            if self.scene(index).items:
                found.append(index)
        places = self.places[found or range(min(count, len(self)))]
        return ShapesSet(self.config, self.split, augmented=False, places=places)

    def ground_truth(self) -> dict[str, Any]:
        """A COCO dict of these pictures: boxes of what is visible, and its area."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            scene, number = self.scene(index), self.image_id(index)
            height, width = scene.size
            images.append(
                {
                    "id": number,
                    "file_name": f"{self.places[index]:06d}.png",
                    "height": height,
                    "width": width,
                }
            )
            boxes = box_convert(torch.from_numpy(scene.boxes).double(), "xyxy", "xywh").tolist()
            for box, label, area in zip(boxes, scene.labels, scene.areas, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": list(CLASSES)[label],
                        "bbox": [round(v, 3) for v in box],
                        "area": float(area),
                        "iscrowd": 0,
                    }
                )
        return {
            "info": {"description": "Drawn shapes", "seed": self.config.seed, "split": self.split},
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name, "supercategory": "shape"}
                for number, name in CLASSES.items()
            ],
        }

    def _sizes(self) -> NDArray[np.int64]:
        """(height, width) [N, 2] of the pictures: 4 in 5 at most 4:3, some wider, 60 % lying."""
        u = uniforms(3, self.places, seed=self.config.seed, epoch=0, stream=self._stream)
        least, most = self.config.short_side
        short = least + (u[:, 0] * (most - least + 1)).astype(np.int64)
        part = u[:, 1]
        ratio = np.where(part < 0.8, 1 + part / 0.8 / 3, 4 / 3 + (part - 0.8) / 0.2 * 0.45)
        long = np.rint(short * ratio).astype(np.int64).clip(max=self.config.long_side)
        lying = u[:, 2] < 0.6
        return np.stack([np.where(lying, short, long), np.where(lying, long, short)], axis=1)


def open_shapes(config: ShapesConfig) -> DataSource:
    """The training and evaluation pictures; see :class:`ShapesConfig`."""
    train = ShapesSet(config, "train", augmented=True)
    return _source(config, train, ShapesSet(config, "val", augmented=False))


def _source(config: ShapesConfig, train: ShapesSet, val: ShapesSet) -> DataSource:
    def evaluator() -> Evaluator:
        from zoo.datasets.coco_eval import CocoEvaluator

        return CocoEvaluator(val.ground_truth(), tuple(CLASSES))

    def overfit(count: int) -> DataSource:
        part = train.overfit(count)
        return _source(config, part, part)

    augment, seed = config.augment, config.seed
    return DataSource(
        name="shapes",
        train=mixed(train, augment, seed=seed) if train.augmented else train,
        val=val,
        collate=collate_detection,
        evaluator=evaluator,
        class_names=tuple(CLASSES.values()),
        class_ids=tuple(CLASSES),
        better="AP",
        preprocess=preprocess_of(config.augment),
        overfit=overfit,
    )


def export(
    folder: Path,
    counts: Mapping[str, int],
    config: ShapesConfig | None = None,
    *,
    progress: bool = False,
) -> None:
    """Write pictures and annotations as a folder in COCO's format.

    ``counts`` is the number of pictures for each split, of ``train`` and ``val``: they are the
    first ones of the built-in set. Makes ``folder/<split>/*.png`` and
    ``folder/annotations/instances_<split>.json``; writing the same again is harmless. Raises
    :class:`ZooError` where a split's folder holds other files than those to be written.
    """
    config = config or ShapesConfig()
    for split, count in counts.items():
        if split not in _SPLITS:
            raise ZooError(f"shapes have no split '{split}'; known: {', '.join(_SPLITS)}")
        pictures = ShapesSet(config, split, augmented=False, places=range(count))
        content = pictures.ground_truth()
        names = [image["file_name"] for image in content["images"]]
        place = folder / split
        place.mkdir(parents=True, exist_ok=True)
        if foreign := sorted({p.name for p in place.iterdir()} - set(names)):
            raise ZooError(
                f"{place} holds other files, such as {foreign[0]}; give another folder or empty it"
            )
        for index, name in enumerate(tqdm(names, split, disable=not progress, unit="img")):
            pixels = pictures.picture(index).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(place / name, compress_level=3)
        annotations = folder / "annotations" / f"instances_{split}.json"
        annotations.parent.mkdir(exist_ok=True)
        annotations.write_text(json.dumps(content), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Write a folder of shapes; returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m zoo.datasets.shapes",
        description="Write pictures of shapes as a folder in COCO's format.",
        epilog="example: python -m zoo.datasets.shapes /tmp/shapes --train 200 --val 50",
    )
    p.add_argument("out", type=Path, metavar="OUT")
    p.add_argument("--train", type=int, default=200, metavar="N", help="default: %(default)s")
    p.add_argument("--val", type=int, default=50, metavar="N", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = p.parse_args(argv)
    counts = {split: n for split, n in (("train", args.train), ("val", args.val)) if n > 0}
    try:
        export(args.out, counts, ShapesConfig(seed=args.seed), progress=True)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: " + ", ".join(f"{n} pictures for {split}" for split, n in counts.items()))
    return 0


if __name__ == "__main__":  # and no further: what is registered belongs to a module of its name
    raise SystemExit(main())


@register_data
def shapes() -> DataSpec:
    """Pictures of shapes, drawn on the fly: for demos and tests, without any download."""
    return DataSpec(
        config=ShapesConfig(), build=open_shapes, matches=lambda _: "drawn, not read from a folder"
    )

"""Folders in COCO's panoptic format as a data source.

The format is that of :mod:`zoo.datasets.coco_panoptic_records`.

Every segment that is no crowd is an object, a thing or stuff: its box is the segment's, as DETR
trains on it (arXiv 2005.12872, section 4), and its mask a bool map at a quarter of the resized
picture's side (:mod:`zoo.datasets.masks`): 100 kB for each object of an 800 x 1333 picture, in
place of 1 MB at full size.
Pictures, boxes and augmentation are those of :mod:`zoo.datasets.coco`; segments follow the same
plans. An object whose box is in a crop and none of its pixels is none.

Scores are panoptic quality, and COCO's on the boxes and masks of things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.datasets.coco import CocoConfig, CocoDetection
from zoo.datasets.coco_panoptic_records import (
    PanopticTruth,
    candidates,
    check_maps,
    find_split,
    read_panoptic,
)
from zoo.datasets.coco_records import read_records
from zoo.datasets.mask_eval import SegmentsEvaluator, things_of
from zoo.datasets.masks import Ids, masks_of, place_ids, present
from zoo.datasets.transforms import (
    AugmentConfig,
    Plan,
    collate_detection,
    plan_train,
    plan_val,
    preprocess_of,
)
from zoo.errors import ZooError
from zoo.registry import DataSpec, register_data
from zoo.types import DataSource, Evaluator, Sample, Size, Target

MIXING = ("mosaic", "mixup", "copy_paste")  # augmentation that maps can't follow yet


def with_masks(target: Target, labels: Tensor, numbers: Tensor, ids: Ids, plan: Plan) -> Target:
    """A target with ``masks`` bool [M, h, w], at stride 4 of the resized picture.

    ``target["labels"]`` are the objects' places among ``labels`` and ``numbers`` [A], their class
    indices and segments; ``ids`` [H, W] is the map before the plan. Objects without any pixel in
    the result are left out.
    """
    chosen = target["labels"]
    seen = present(place_ids(ids, plan.geometry, stride=1))
    kept = torch.from_numpy(np.isin(numbers[chosen].numpy(), seen))
    chosen = chosen[kept]
    of_object = ("boxes", "area", "iscrowd")
    return {
        **{k: v[kept] if k in of_object else v for k, v in target.items()},
        "labels": labels[chosen],
        "masks": masks_of(place_ids(ids, plan.geometry), numbers[chosen].numpy()),
    }


@dataclass(eq=False)
class PanopticSet:
    """Samples of ``pictures`` whose targets have masks.

    The labels of ``pictures`` are the objects' places in their picture; ``labels`` and ``numbers``
    give their class index and segment id by image id.
    """

    pictures: CocoDetection
    truth: PanopticTruth
    labels: dict[int, NDArray[np.int64]]
    numbers: dict[int, NDArray[np.int64]]

    def __post_init__(self) -> None:
        ids = self.pictures.records.image_ids.tolist()
        self._places = {number: place for place, number in enumerate(ids)}
        order = {number: k for k, number in enumerate(self.truth.categories)}
        self._stuff = tuple(k for number, k in order.items() if number not in self.truth.things)

    def __len__(self) -> int:
        return len(self.pictures)

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation that the following draws use."""
        self.pictures.set_epoch(epoch)

    def sizes(self) -> list[Size]:
        """(height, width) of every sample in the current epoch."""
        return self.pictures.sizes()

    def __getitem__(self, index: int) -> Sample:
        sample = self.pictures[index]
        number = sample.meta.image_id
        ids = self.truth.segmentation(number).ids
        if ids.shape != sample.meta.orig_size:
            raise ZooError(
                f"{self.truth.path(number)} has {ids.shape[1]} x {ids.shape[0]} pixels where the "
                f"record of image id {number} says {sample.meta.orig_size[1]} x "
                f"{sample.meta.orig_size[0]}; make them agree"
            )
        labels, numbers = (torch.from_numpy(t[number]) for t in (self.labels, self.numbers))
        target = with_masks(sample.target, labels, numbers, ids, self._plan(number))
        extra = {**sample.meta.extra, "stuff": self._stuff}
        return Sample(sample.inputs, target, replace(sample.meta, extra=extra))

    def _plan(self, number: int) -> Plan:
        """What was done to a picture: plans are functions of (seed, epoch, index)."""
        pictures, place = self.pictures, self._places[number]
        sizes, config = pictures.records.sizes[place : place + 1], pictures.config
        if not pictures.train:
            return plan_val(sizes, config.augment)[0]
        plans = plan_train(
            sizes, config.augment, seed=config.seed, epoch=pictures.epoch, indices=[place]
        )
        return plans[0]

    def overfit(self, count: int) -> PanopticSet:
        """The first ``count`` pictures that have segments, not augmented."""
        return replace(self, pictures=self.pictures.overfit(count))

    def evaluated(self) -> PanopticTruth:
        """The truth of these pictures."""
        return replace(self.truth, only=frozenset(self._places))


def read_set(config: CocoConfig, split: str, *, train: bool) -> PanopticSet:
    """Open a split; raises :class:`ZooError` naming file and record for what is wrong with it."""
    files = find_split(Path(config.folder).expanduser(), split)
    skip = config.on_error == "skip"
    on_missing: Any = ("drop" if train else "keep") if skip else "raise"
    records = read_records(files, on_missing)
    content = read_panoptic(files.annotations)
    truth = PanopticTruth(files.annotations, files.maps, content)
    check_maps(truth)
    numbers = {}
    for number in records.image_ids.tolist():
        listed = truth.segments(number)
        numbers[number] = listed.numbers[~listed.crowd]
    spans = [slice(a, b) for a, b in zip(records.starts[:-1], records.starts[1:], strict=True)]
    ids = records.image_ids.tolist()
    labels = {number: records.labels[span] for number, span in zip(ids, spans, strict=True)}
    places = [np.arange(span.stop - span.start) for span in spans]
    by_place = replace(records, labels=np.concatenate([np.zeros(0, np.int64), *places]))
    return PanopticSet(CocoDetection(by_place, config, train=train), truth, labels, numbers)


def open_coco_panoptic(config: CocoConfig) -> DataSource:
    """Open the splits of a folder; see :class:`zoo.datasets.coco.CocoConfig`.

    Raises :class:`ZooError` naming file and record for whatever is wrong with them, where the
    splits differ in their categories, or for augmentation that mixes pictures.
    """
    if not config.folder:
        raise ZooError("data.folder is empty; give the folder of the pictures")
    if not config.train_split and not config.val_split:
        raise ZooError("data.train_split and data.val_split are both empty; name a split")
    refuse_mixing(config.augment)
    train = read_set(config, config.train_split, train=True) if config.train_split else None
    val = read_set(config, config.val_split, train=False) if config.val_split else None
    if train and val:
        a, b = train.truth, val.truth
        if dict(a.categories) != dict(b.categories) or a.things != b.things:
            raise ZooError(
                f"{a.file} and {b.file} differ in their categories (ids, names or isthing); make "
                "them agree"
            )
    return _source(config, train, val)


def refuse_mixing(augment: AugmentConfig) -> None:
    """Raise :class:`ZooError` where several pictures are to share a sample."""
    for name in MIXING:
        if getattr(augment, name):
            raise ZooError(
                f"data.augment.{name}={getattr(augment, name)} can't be used with masks; set it "
                "to 0"
            )


def _source(config: CocoConfig, train: PanopticSet | None, val: PanopticSet | None) -> DataSource:
    truth = (train or val).truth  # type: ignore[union-attr]
    class_ids = tuple(truth.categories)
    stuff = [k for k, number in enumerate(class_ids) if number not in truth.things]

    @cache
    def things() -> dict[str, Any]:
        return things_of(val.evaluated(), masks=True) if val else {}

    def evaluator() -> Evaluator:
        if val is None:
            raise ZooError(f"{config.folder} was opened without a split to evaluate on")
        return SegmentsEvaluator(val.evaluated(), class_ids, things())

    def overfit(count: int) -> DataSource:
        if train is None:
            raise ZooError(f"{config.folder} was opened without a training split")
        part = train.overfit(count)
        return _source(config, part, part)

    return DataSource(
        name="coco_panoptic",
        train=train,
        val=val,
        collate=collate_detection,
        evaluator=evaluator,
        class_names=tuple(truth.categories.values()),
        class_ids=class_ids,
        better="PQ",
        preprocess={**preprocess_of(config.augment), "stuff": stuff},
        overfit=overfit,
    )


def matches(folder: Path) -> str | None:
    """None where a folder has a split in a known layout, whatever the split is called."""
    known: Sequence[Path] = [
        path for split in ("train", "val") for path, _, _ in candidates(folder, split)
    ]
    # A file called train.json may hold anything: only names that say panoptic are recognised.
    known = [path for path in known if path.name.startswith("panoptic_")]
    places = (folder, folder / "annotations")
    others = [path for place in places for path in place.glob("panoptic_*.json")]
    if any(path.is_file() for path in known):
        return None
    if any(path.with_suffix("").is_dir() for path in others):
        return None
    return ", ".join(str(path.relative_to(folder)) for path in known)


@register_data
def coco_panoptic() -> DataSpec:
    """A folder of pictures with segments in COCO's panoptic format."""
    return DataSpec(config=CocoConfig(), build=open_coco_panoptic, matches=matches)

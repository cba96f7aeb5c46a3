"""Folders in COCO's format: pictures, and one JSON file of boxes a split.

Three layouts are known, for a split called ``train``::

    train/*.jpg       annotations/instances_train.json        ours
    train2017/*.jpg   annotations/instances_train2017.json    COCO's own (also under images/)
    train/*.jpg       train/_annotations.coco.json            common export (valid for val)

Category ids may have gaps and start anywhere; inside, classes are 0..K-1 in the order of ids.

**Frame of the boxes.** ``width`` and ``height`` of an image record say in which pixel grid its
boxes were drawn, so they rule: ``orig_size``, plans and predictions are in that grid. Pictures are
turned upright by their EXIF orientation, but where the record's size is that of the *stored*
pixels and not that of the upright ones, the annotator saw it unturned, and so it is used. A file
of the same aspect ratio at another scale is brought to the record's grid. Both are reported once.
A file of another shape is an error.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.datasets.coco_eval import CocoEvaluator
from zoo.datasets.coco_records import (
    Records,
    candidates,
    find_split,
    read_ground_truth,
    read_records,
)
from zoo.datasets.images import MAX_PIXELS, image_size, read_image
from zoo.datasets.mixing import mixed
from zoo.datasets.split_files import SplitFiles
from zoo.datasets.transforms import (
    AugmentConfig,
    Geometry,
    Plan,
    collate_detection,
    detection_sample,
    plan_train,
    plan_val,
    preprocess_of,
)
from zoo.errors import ZooError
from zoo.registry import DataSpec, register_data
from zoo.types import Batch, DataSource, Detections, Evaluator, Sample, SampleSet, Size

log = logging.getLogger("zoo")


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """Where the pictures are and how they are read. An empty split name: that set isn't opened."""

    folder: str = ""
    train_split: str = "train"
    val_split: str = "val"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    on_error: str = "raise"  # what an unreadable picture does: raise, or skip
    max_pixels: int = MAX_PIXELS  # of one picture
    cache_mb: int = 0  # decoded pictures kept in memory, in each loading process
    seed: int = 0  # of the augmentation

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ZooError(f"data.on_error={self.on_error} is not one of raise, skip")
        if self.max_pixels < 1 or self.cache_mb < 0:
            raise ZooError(
                f"data.max_pixels={self.max_pixels} has to be 1 or more, and data.cache_mb="
                f"{self.cache_mb} 0 or more"
            )


class CocoDetection:
    """The pictures of one split as samples for a detector.

    In training (``train=True``) samples are augmented as a pure function of (seed, epoch, index).
    A picture that can't be read raises :class:`ZooError`, or with ``on_error="skip"`` gives way
    to the next readable one in training, and in evaluation is a black picture whose
    ``meta.extra["unreadable"]`` says why, to be scored as one without detections. Each is
    reported once, whatever the number of loading processes; :meth:`unreadable` lists them.
    """

    def __init__(self, records: Records, config: CocoConfig, *, train: bool) -> None:
        self.records, self.config, self.train = records, config, train
        self.epoch = 0
        # In memory that loading processes share, so that what one finds the others know.
        self._bad = torch.zeros(len(records), dtype=torch.bool).share_memory_()
        self._told = torch.zeros(2, dtype=torch.bool).share_memory_()
        self._cache: dict[int, Tensor] = {}
        self._room = config.cache_mb * 2**20

    def __len__(self) -> int:
        return len(self.records)

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation that the following draws use."""
        self.epoch = epoch

    def sizes(self) -> list[Size]:
        """(height, width) of every sample in the current epoch."""
        sizes = self.records.sizes
        if not self.train:
            return plan_val(sizes, self.config.augment).sizes()
        seed = self.config.seed
        return plan_train(sizes, self.config.augment, seed=seed, epoch=self.epoch).sizes()

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.planned(index, self._plan) if self.train else self._evaluated(index)

    def frames(self) -> NDArray[np.int64]:
        """(height, width) [N, 2] of the pictures before any change."""
        return self.records.sizes

    def planned(self, index: int, plan_of: Callable[[int], Plan]) -> Sample:
        """The training sample of a picture, or of the next one that can be read, as planned."""
        error: ZooError | None = None
        for step in range(len(self.records)):
            other = (index + step) % len(self.records)
            try:
                extra = {"instead_of": str(self.records.path(index))} if step else {}
                return self._sample(other, plan_of(other), extra)
            except ZooError as caught:
                error = self._note(other, caught)
        raise ZooError(f"no picture of {self.records.files.annotations} can be read: {error}")

    def overfit(self, count: int) -> CocoDetection:
        """The first ``count`` pictures that have boxes (all, where none has), not augmented."""
        starts = self.records.starts
        places = [i for i in range(len(self)) if starts[i + 1] > starts[i]] or range(len(self))
        return CocoDetection(self.records.take(places[:count]), self.config, train=False)

    def ground_truth(self) -> dict[str, Any]:
        """A COCO dict of these pictures, crowds included, for the evaluator."""
        return read_ground_truth(self.records.files, self.records.image_ids.tolist())

    def unreadable(self) -> list[str]:
        """Paths of the pictures that could not be read so far, in any loading process."""
        return [str(self.records.path(int(i))) for i in self._bad.nonzero().flatten()]

    def _plan(self, place: int) -> Plan:
        sizes, config = self.records.sizes[place : place + 1], self.config
        if not self.train:
            return plan_val(sizes, config.augment)[0]
        plans = plan_train(
            sizes, config.augment, seed=config.seed, epoch=self.epoch, indices=[place]
        )
        return plans[0]

    def _evaluated(self, place: int) -> Sample:
        plan = self._plan(place)
        try:
            return self._sample(place, plan, {})
        except ZooError as caught:
            reason = str(self._note(place, caught))
        blank = torch.zeros((3, *plan.geometry.size), dtype=torch.uint8)
        return self._sample(place, plan, {"unreadable": reason}, blank)

    def _note(self, place: int, error: ZooError) -> ZooError:
        """Remember and report an unreadable picture, or raise, as ``on_error`` says."""
        if self.config.on_error == "raise":
            raise error
        if not self._bad[place]:
            self._bad[place] = True
            log.warning("skipped: %s", error)
        return error

    def _sample(
        self, place: int, plan: Plan, extra: dict[str, str], image: Tensor | None = None
    ) -> Sample:
        records = self.records
        if image is None:
            image = self._pixels(place, plan.geometry)
        height, width = records.sizes[place].tolist()
        boxes, labels = records.objects(place)
        return detection_sample(
            image,
            torch.from_numpy(boxes),
            torch.from_numpy(labels),
            plan,
            frame=(height, width),
            image_id=int(records.image_ids[place]),
            path=str(records.path(place)),
            extra=extra,
        )

    def _pixels(self, place: int, geometry: Geometry) -> Tensor:
        """The decoded picture, perhaps at a smaller scale, in the orientation of its boxes."""
        if place in self._cache:
            return self._cache[place]
        path, image_id = self.records.path(place), int(self.records.image_ids[place])
        if self._bad[place]:
            raise ZooError(f"{path} (image id {image_id}) could not be read before")
        height, width = self.records.sizes[place].tolist()
        draft = None
        if self.train and not self.config.cache_mb:
            draft = draft_size((height, width), geometry)
        try:
            image = self._in_frame(path, (height, width), draft)
        except ZooError as error:
            raise ZooError(
                f"{error} (image id {image_id} of {self.records.files.annotations}; "
                "data.on_error=skip goes on without it)"
            ) from None
        if (room := self._room - image.numel()) >= 0:
            self._room = room
            self._cache[place] = image
        return image

    def _in_frame(self, path: Path, frame: Size, draft: Size | None) -> Tensor:
        """Read a picture so that it shows what the boxes' frame shows, whatever its scale."""
        limit = self.config.max_pixels
        image = read_image(path, max_pixels=limit, draft_size=draft)
        found: Size = (image.shape[1], image.shape[2])
        if found == frame or (draft is not None and _is_reduced(found, frame)):
            return image
        upright = image_size(path)
        stored = image_size(path, upright=False)
        if stored == frame and stored != upright:
            self._tell(
                0,
                f"{path} is turned by its EXIF orientation, but its record has the size of the "
                "unturned picture; such pictures are used unturned",
            )
            return read_image(path, max_pixels=limit, draft_size=draft, upright=False)
        if not same_shape(upright, frame):
            raise ZooError(
                f"{path} has {upright[1]} x {upright[0]} pixels where its record says "
                f"{frame[1]} x {frame[0]}; correct width and height, with the boxes, or the file"
            )
        if upright != frame:
            self._tell(
                1,
                f"{path} has {upright[1]} x {upright[0]} pixels where its record says {frame[1]} x "
                f"{frame[0]}; boxes of such pictures are scaled",
            )
        return image

    def _tell(self, which: int, what: str) -> None:
        if not self._told[which]:
            self._told[which] = True
            log.warning("%s", what)


class ReadableEvaluator(CocoEvaluator):
    """COCO's evaluation that takes no prediction for pictures that could not be read.

    So they count as without detections, and are reported as not predicted.
    """

    def update(self, predictions: Sequence[Detections], batch: Batch) -> None:
        """Add the predictions of a batch, one a picture; see :class:`CocoEvaluator`."""
        read = [i for i, meta in enumerate(batch.metas) if "unreadable" not in meta.extra]
        metas = [batch.metas[i] for i in read]
        super().update([predictions[i] for i in read], replace(batch, metas=metas))


def draft_size(frame: Size, geometry: Geometry) -> Size | None:
    """(height, width) that a picture has to be decoded at, if half of it or less is enough."""
    _, _, height, width = geometry.crop
    scale = max(geometry.size[0] / height, geometry.size[1] / width)
    if scale > 0.5:
        return None
    return math.ceil(frame[0] * scale), math.ceil(frame[1] * scale)


def _is_reduced(found: Size, frame: Size) -> bool:
    """Whether ``found`` is surely what a JPEG of ``frame`` gives at 1/2, 1/4 or 1/8."""
    if found[0] == found[1] and frame[0] != frame[1]:
        return False  # the same comes of a picture that lies on its side
    return any(found == tuple(-(-side // by) for side in frame) for by in (2, 4, 8))


def same_shape(found: Size, frame: Size) -> bool:
    """Whether one is a scaled version of the other, to rounding or one percent."""
    expected = found[1] * frame[0] / frame[1]
    return abs(found[0] - expected) <= max(1.0, 0.01 * found[0])


def open_coco(config: CocoConfig) -> DataSource:
    """Open the splits of a folder; see :class:`CocoConfig`.

    Raises :class:`ZooError` naming file and record for whatever is wrong with them, or where
    training and evaluation split differ in their categories.
    """
    return open_splits("coco", config, find_split)


def open_splits(
    name: str, config: CocoConfig, find: Callable[[Path, str], SplitFiles]
) -> DataSource:
    """Open the splits of a folder of any format, whose ``find(folder, split)`` finds the files."""
    folder = Path(config.folder).expanduser()
    if not config.folder:
        raise ZooError("data.folder is empty; give the folder of the pictures")
    if not config.train_split and not config.val_split:
        raise ZooError("data.train_split and data.val_split are both empty; name a split")
    skip = config.on_error == "skip"
    train = val = None
    if config.train_split:
        files = find(folder, config.train_split)
        train = CocoDetection(read_records(files, "drop" if skip else "raise"), config, train=True)
    if config.val_split:
        files = find(folder, config.val_split)
        val = CocoDetection(read_records(files, "keep" if skip else "raise"), config, train=False)
    if train is not None and val is not None:
        _check_same_classes(train.records, val.records)
    records = (train or val).records  # type: ignore[union-attr]
    return _source(name, records, config, train, val)


def _source(
    name: str,
    records: Records,
    config: CocoConfig,
    train: CocoDetection | None,
    val: CocoDetection | None,
) -> DataSource:
    class_ids = tuple(records.categories)

    def evaluator() -> Evaluator:
        if val is None:
            raise ZooError(f"{config.folder} was opened without a split to evaluate on")
        return ReadableEvaluator(val.ground_truth(), class_ids)

    def overfit(count: int) -> DataSource:
        if train is None:
            raise ZooError(f"{config.folder} was opened without a training split")
        part = train.overfit(count)
        return _source(name, records, config, part, part)

    samples: SampleSet | None = train
    if train is not None and train.train:
        samples = mixed(train, config.augment, seed=config.seed)
    return DataSource(
        name=name,
        train=samples,
        val=val,
        collate=collate_detection,
        evaluator=evaluator,
        class_names=tuple(records.categories.values()),
        class_ids=class_ids,
        better="AP",
        preprocess=preprocess_of(config.augment),
        overfit=overfit,
    )


def _check_same_classes(train: Records, val: Records) -> None:
    a, b = train.categories, val.categories
    differences = [f"id {i} '{a[i]}' only in the first" for i in a if i not in b]
    differences += [f"id {i} '{b[i]}' only in the second" for i in b if i not in a]
    differences += [f"id {i} '{a[i]}' and '{b[i]}'" for i in a if i in b and a[i] != b[i]]
    if differences:
        shown = ", ".join(differences[:5]) + (", ..." if len(differences) > 5 else "")
        raise ZooError(
            f"{train.files.annotations} and {val.files.annotations} differ in their categories "
            f"({shown}); make them agree"
        )


def matches(folder: Path) -> str | None:
    """None where a folder has a training or evaluation split in a known layout."""
    known = [path for split in ("train", "val") for path, _ in candidates(folder, split)]
    if any(path.is_file() for path in known):
        return None
    return "none of " + ", ".join(str(path.relative_to(folder)) for path in known)


@register_data
def coco() -> DataSpec:
    """A folder of pictures with annotations in COCO's format."""
    return DataSpec(config=CocoConfig(), build=open_coco, matches=matches)

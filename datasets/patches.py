"""Unlabelled pictures, and random patches of them to be found again (UP-DETR, arXiv 2011.09094).

Every sample is a picture with ``patches`` random boxes. The model is given the boxes as an input,
``query_boxes`` [P, 4], looks at what is in them, and has to find where in the picture it came from:
the boxes are the targets, too, of one class, "patch" (section 3.1). No annotation is read.

Pictures come from a folder (with its subfolders; a share of them is for evaluation), or, where
none is given, from the built-in shapes. Boxes of evaluation are the same in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_convert

from zoo.datasets.coco import CocoConfig, CocoDetection
from zoo.datasets.coco_eval import CocoEvaluator
from zoo.datasets.coco_records import Records
from zoo.datasets.images import MAX_PIXELS, image_size
from zoo.datasets.picture_files import list_files
from zoo.datasets.shapes import ShapesConfig, ShapesSet
from zoo.datasets.split_files import Tell
from zoo.datasets.transforms import AugmentConfig, collate_detection, preprocess_of
from zoo.errors import ZooError
from zoo.registry import DataSpec, register_data
from zoo.sampling import uniforms
from zoo.types import DataSource, Evaluator, Sample, SampleSet, Size

LEAST = 8  # pixels: the least side of a patch; the greatest leaves as many of the picture
STREAM = 50  # of the patches' random numbers; the next one is the evaluation's


@dataclass(frozen=True, kw_only=True)
class PatchesConfig:
    """Where the pictures are, and how many patches are to be found in each."""

    folder: str = ""  # of pictures; "": the built-in shapes
    patches: int = 10
    val_share: float = 0.05  # of the folder's pictures
    train_images: int = 4000  # of the built-in shapes
    val_images: int = 200
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    on_error: str = "raise"  # what an unreadable picture does: raise, or skip
    max_pixels: int = MAX_PIXELS
    cache_mb: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        augment = self.augment
        if augment.mosaic or augment.mixup or augment.copy_paste:
            raise ZooError(
                "patches are cut out of whole pictures; set data.augment.mosaic, mixup and "
                "copy_paste to 0"
            )
        if self.patches < 1 or not 0 < self.val_share < 1:
            raise ZooError(
                f"data.patches={self.patches} has to be 1 or more, and data.val_share="
                f"{self.val_share} between 0 and 1"
            )


class Unlabelled(NamedTuple):
    """A folder of pictures in the place of a split's files; nothing in it is annotated."""

    annotations: Path
    images: Path

    def read(self) -> dict[str, Any]:
        """No pictures and no classes: nothing is said of them."""
        return {"images": [], "annotations": [], "categories": []}

    def survey(self, tell: Tell) -> Any:
        """As :meth:`read`; nothing can be wrong."""
        return self.read()

    def unlisted(self, listed: Set[str]) -> list[str]:
        """None: no list says which pictures there are."""
        return []


class PatchSet:
    """Samples of ``pictures`` with ``count`` patches each in the place of their targets.

    A sample's ``inputs["query_boxes"]`` [P, 4] and its target's ``boxes`` are the same: cxcywh in
    0..1 of the picture as the model gets it. In training they are drawn anew in every epoch.
    """

    def __init__(self, pictures: SampleSet, count: int, *, seed: int, train: bool) -> None:
        self.pictures, self.count, self.seed, self.train = pictures, count, seed, train
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation and the patches that the following draws use."""
        self.epoch = epoch
        self.pictures.set_epoch(epoch)

    def sizes(self) -> Sequence[Size]:
        """(height, width) of every sample in the current epoch."""
        return self.pictures.sizes()

    def __getitem__(self, index: int) -> Sample:
        sample = self.pictures[index]
        boxes = self.boxes(index, sample.meta.size)
        height, width = sample.meta.size
        target = {
            "labels": torch.zeros(self.count, dtype=torch.int64),
            "boxes": boxes,
            "area": boxes[:, 2:].prod(1) * (height * width),
            "iscrowd": torch.zeros(self.count, dtype=torch.int64),
            "image_id": torch.tensor([index + 1]),
            "orig_size": torch.tensor(sample.meta.orig_size),
            "size": torch.tensor(sample.meta.size),
        }
        meta = replace(sample.meta, image_id=index + 1)
        return Sample({**sample.inputs, "query_boxes": boxes.clone()}, target, meta)

    def boxes(self, index: int, size: Size) -> torch.Tensor:
        """The patches of a sample of ``size`` (height, width), [P, 4]; sides uniform."""
        stream, epoch = (STREAM, self.epoch) if self.train else (STREAM + 1, 0)
        numbers = np.arange(self.count) + index * self.count
        u = uniforms(4, numbers, seed=self.seed, epoch=epoch, stream=stream)
        whole = np.array([size[1], size[0]], dtype=np.float64)
        least = np.minimum(LEAST, whole / 3)
        sides = least + u[:, :2] * (whole - 2 * least)
        middles = sides / 2 + u[:, 2:] * (whole - sides)
        relative = np.concatenate([middles / whole, sides / whole], 1)
        return torch.from_numpy(relative.astype(np.float32))

    def ground_truth(self, sizes: Sequence[Size]) -> dict[str, Any]:
        """A COCO dict of the patches, in pixels of pictures of ``sizes`` before resizing."""
        annotations: list[dict[str, Any]] = []
        for index, ((height, width), seen) in enumerate(zip(sizes, self.sizes(), strict=True)):
            scale = torch.tensor([width, height, width, height])
            boxes = box_convert(self.boxes(index, seen) * scale, "cxcywh", "xywh")
            for box in boxes.tolist():
                record = {"id": len(annotations) + 1, "image_id": index + 1, "bbox": box}
                area = {"area": box[2] * box[3], "iscrowd": 0, "category_id": 1}
                annotations.append({**record, **area})
        return {
            "images": [
                {"id": i + 1, "height": h, "width": w, "file_name": ""}
                for i, (h, w) in enumerate(sizes)
            ],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "patch"}],
        }


def open_patches(config: PatchesConfig) -> DataSource:
    """The patches of a folder's pictures or of the built-in shapes; see :class:`PatchesConfig`."""
    train, val = _from_folder(config) if config.folder else _from_shapes(config)
    return _source(config, train, val)


@dataclass(frozen=True)
class _Pictures:
    """A split's pictures, and their sizes (height, width) before resizing."""

    samples: CocoDetection | ShapesSet
    frames: Callable[[], list[Size]]


def _from_shapes(config: PatchesConfig) -> tuple[_Pictures, _Pictures]:
    shared = {k: getattr(config, k) for k in ("train_images", "val_images", "seed", "cache_mb")}
    settings = ShapesConfig(augment=config.augment, **shared)

    def opened(split: str) -> _Pictures:
        samples = ShapesSet(settings, split, augmented=split == "train")
        images = samples.ground_truth
        return _Pictures(samples, lambda: [(i["height"], i["width"]) for i in images()["images"]])

    return opened("train"), opened("val")


def _from_folder(config: PatchesConfig) -> tuple[_Pictures, _Pictures]:
    folder = Path(config.folder).expanduser()
    if not folder.is_dir():
        raise ZooError(f"there is no data folder {folder}; correct data.folder")
    names, sizes = [], []
    for path in list_files([str(folder)], folder / "."):
        try:
            sizes.append(image_size(path))
        except ZooError:
            if config.on_error == "raise":
                raise
            continue
        names.append(Path(path).relative_to(folder).as_posix().encode())
    if len(names) < 2:
        raise ZooError(f"{folder} has {len(names)} pictures and 2 or more are needed; add some")
    draws = uniforms(1, np.arange(len(names)), seed=config.seed, epoch=0, stream=STREAM)[:, 0]
    held_out = max(1, round(config.val_share * len(names)))
    order = np.argsort(draws, kind="stable")
    records = Records(
        files=Unlabelled(folder, folder),
        image_ids=np.arange(1, len(names) + 1),
        sizes=np.asarray(sizes, dtype=np.int64),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        starts=np.zeros(len(names) + 1, np.int64),
        categories={1: "patch"},
        names=b"".join(names),
        name_ends=np.cumsum([len(n) for n in names], dtype=np.int64),
    )
    shared = {k: getattr(config, k) for k in ("on_error", "max_pixels", "cache_mb", "seed")}
    settings = CocoConfig(folder=config.folder, augment=config.augment, **shared)

    def opened(places: NDArray[np.int64], train: bool) -> _Pictures:
        part = records.take(sorted(places.tolist()))
        samples = CocoDetection(part, settings, train=train)
        return _Pictures(samples, lambda: [(h, w) for h, w in part.sizes.tolist()])

    return opened(order[held_out:], True), opened(order[:held_out], False)


def _source(config: PatchesConfig, train: _Pictures, val: _Pictures) -> DataSource:
    val_set = PatchSet(val.samples, config.patches, seed=config.seed, train=False)

    def evaluator() -> Evaluator:
        return CocoEvaluator(val_set.ground_truth(val.frames()), (1,))

    def overfit(count: int) -> DataSource:
        # The first pictures, not augmented, with the same patches in every epoch.
        part = train.samples.overfit(count)
        chosen = _Pictures(part, lambda: [part[i].meta.orig_size for i in range(len(part))])
        return _source(config, chosen, chosen)

    return DataSource(
        name="patches",
        train=PatchSet(train.samples, config.patches, seed=config.seed, train=train is not val),
        val=val_set,
        collate=collate_detection,
        evaluator=evaluator,
        class_names=("patch",),
        class_ids=(1,),
        better="AP",
        preprocess=preprocess_of(config.augment),
        overfit=overfit,
    )


@register_data
def patches() -> DataSpec:
    """Unlabelled pictures, with random patches of them to be found again: for pretraining."""
    return DataSpec(
        config=PatchesConfig(),
        build=open_patches,
        matches=lambda _: "only where it is named, as patches:FOLDER",
    )

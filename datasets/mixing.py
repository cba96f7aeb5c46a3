"""Several pictures in one sample: mosaic, copy-paste and mixup, planned as one picture is.

* **Mosaic** (YOLOv4, arXiv 2004.10934, section 3.3): four pictures meet at a drawn point. Here each
  shows a window of itself that fills its part, so nothing is left grey, and the result has the
  size that the sample has without: all together are cut and resized as many pixels as one.
* **Copy-paste** (arXiv 2012.07177, section 3): some objects of another, differently scaled picture
  are laid over this one, as their ``masks`` [M, H, W] where targets have them, else as boxes.
  Objects that they hide are shortened to what is still seen, or are no targets any more; what
  comes along inside a pasted box is one.
* **Mixup** (arXiv 1710.09412; for detection arXiv 1902.04103, section 3.1): another picture shines
  through, and the objects of both are targets, with full weight.

They come in this order. Which pictures, where and how is a function of (seed, epoch, index), the
size of a sample is that of its plan in :mod:`zoo.datasets.transforms`, and pixels are uint8
throughout. Crowds are never pasted.

All of it, and ``scale_jitter``, ends where ``mix_until`` of the run is over: pictures that do not
occur in the evaluation should not be the last that a model sees. The trainer says at the start of
every epoch how far the run is, by steps or by the clock; a whole epoch is mixed or is not. So an
epoch that is longer than what is left of the run after ``mix_until`` stays as it began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert

from zoo.datasets.transforms import (
    MIN_VISIBLE,
    WINDOW_DRAWS,
    AugmentConfig,
    Plan,
    blank,
    plan_train,
    plan_windows,
)
from zoo.sampling import uniforms
from zoo.types import Sample, SampleSet, Size, Target

STREAM = 20  # of random numbers; the next one says which objects are pasted
CENTRE = (0.3, 0.7)  # where the four pictures of a mosaic meet, as a part of its sides
LEAST_SIDE = 16  # pixels: of a sample that becomes a mosaic
# How much a picture is magnified beyond what shows the most of it, by what it is used for. In a
# mosaic 2 is about its usual scale.
MOSAIC_ZOOM, MIXUP_ZOOM, PASTE_ZOOM = (1.0, 2.0), (1.0, 1.5), (0.5, 1.5)
MIXUP_SHARE = (0.35, 0.65)  # of the picture that shines through
PASTED = 0.5  # probability that an object of the other picture is pasted
PASTED_LARGEST = 0.25  # part of the sample that a pasted object covers at most

_HEAD, _PART = 6, 1 + WINDOW_DRAWS
_PER_OBJECT = ("labels", "boxes", "area", "iscrowd", "masks")


class PictureSet(SampleSet, Protocol):
    """Training samples whose pictures can also be had under any other plan."""

    def frames(self) -> NDArray[np.int64]:
        """(height, width) [N, 2] of the pictures before any change."""

    def planned(self, index: int, plan_of: Callable[[int], Plan]) -> Sample:
        """The sample of a picture under ``plan_of(index)``.

        Where it can't be read and another is to take its place, under that one's plan.
        """


def mixed(pictures: PictureSet, config: AugmentConfig, *, seed: int) -> SampleSet:
    """``pictures`` with what ``config`` says of mixing; they themselves where it says nothing."""
    plain = config.scale_jitter == (1.0, 1.0)
    if plain and not (config.mosaic or config.mixup or config.copy_paste):
        return pictures
    return MixedSet(pictures, config, seed=seed)


class MixedSet:
    """Training samples, some of them made of several pictures, until ``mix_until`` of the run.

    ``seed`` is that of the pictures' augmentation: a sample that is not mixed is what it is
    without this class.
    """

    def __init__(self, pictures: PictureSet, config: AugmentConfig, *, seed: int) -> None:
        self.pictures, self.seed = pictures, seed
        self.epoch, self.progress = 0, 0.0
        self._mixing = config
        self._plain = replace(config, scale_jitter=(1.0, 1.0), mosaic=0, mixup=0, copy_paste=0)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def config(self) -> AugmentConfig:
        """What holds in the current epoch."""
        return self._mixing if self.progress < self._mixing.mix_until else self._plain

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation and the mixture that the following draws use."""
        self.epoch = epoch
        self.pictures.set_epoch(epoch)

    def set_progress(self, progress: float) -> None:
        """Say which part of the run, 0..1, is over at the start of the current epoch."""
        self.progress = progress

    def sizes(self) -> list[Size]:
        """(height, width) of every sample in the current epoch; mixing changes none."""
        return plan_train(
            self.pictures.frames(), self._plain, seed=self.seed, epoch=self.epoch
        ).sizes()

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        config = self.config
        if not (config.mosaic or config.mixup or config.copy_paste):
            return self.pictures.planned(index, self._plan)
        count = _HEAD + 6 * _PART
        u = uniforms(count, [index], seed=self.seed, epoch=self.epoch, stream=STREAM)[0]
        parts = u[_HEAD:].reshape(6, _PART)
        size = self._plan(index).geometry.size
        if u[0] < config.mosaic and min(size) >= LEAST_SIDE:
            sample = self._mosaic(index, size, u[3:5], parts[:4])
        else:
            sample = self.pictures.planned(index, self._plan)
        size = sample.meta.size
        if u[1] < config.copy_paste:
            donor = self._part(parts[4], size, PASTE_ZOOM)
            sample = paste(sample, donor, self._chosen(index, donor.target))
        if u[2] < config.mixup:
            other = self._part(parts[5], size, MIXUP_ZOOM)
            least, most = MIXUP_SHARE
            sample = blend(sample, other, least + float(u[5]) * (most - least))
        return sample

    def _plan(self, index: int) -> Plan:
        """The plan of a picture that is not mixed."""
        frame = self.pictures.frames()[index : index + 1]
        plans = plan_train(frame, self.config, seed=self.seed, epoch=self.epoch, indices=[index])
        return plans[0]

    def _part(
        self,
        u: NDArray[np.float64],
        size: Size,
        zoom: tuple[float, float],
        index: int | None = None,
    ) -> Sample:
        """A window of a picture, drawn where none is named, that fills ``size``."""
        frames, config = self.pictures.frames(), self.config

        def plan_of(place: int) -> Plan:
            frame, out = frames[place : place + 1], np.asarray([size], dtype=np.int64)
            return plan_windows(frame, out, config, u[None, 1:], zoom)[0]

        return self.pictures.planned(int(u[0] * len(self)) if index is None else index, plan_of)

    def _mosaic(
        self, index: int, size: Size, centre: NDArray[np.float64], parts: NDArray[np.float64]
    ) -> Sample:
        (height, width), (least, most) = size, CENTRE
        y, x = (
            int(side * (least + u * (most - least))) for side, u in zip(size, centre, strict=True)
        )
        corners = [(0, 0), (0, x), (y, 0), (y, x)]
        sides = [(y, x), (y, width - x), (height - y, x), (height - y, width - x)]
        tiles = [
            self._part(u, tile, MOSAIC_ZOOM, None if n else index)
            for n, (u, tile) in enumerate(zip(parts, sides, strict=True))
        ]
        return assemble(tiles, corners, size)

    def _chosen(self, index: int, target: Target) -> Tensor:
        """Which objects of the other picture are pasted, bool [M]."""
        count = len(target["labels"])
        u = uniforms(count, [index], seed=self.seed, epoch=self.epoch, stream=STREAM + 1)[0]
        small = target["boxes"][:, 2:].prod(1) <= PASTED_LARGEST
        return torch.from_numpy(u < PASTED) & small & (target["iscrowd"] == 0)


def assemble(tiles: Sequence[Sample], corners: Sequence[tuple[int, int]], size: Size) -> Sample:
    """Samples side by side in one of ``size``, each with its (top, left) corner where it is said.

    The result is known by the first one's image.
    """
    height, width = size
    canvas = blank(size)
    whole = torch.tensor([width, height, width, height])
    targets: list[Target] = []
    for tile, (top, left) in zip(tiles, corners, strict=True):
        tall, wide = tile.meta.size
        area = (slice(top, top + tall), slice(left, left + wide))
        canvas[:, *area] = tile.inputs["pixel_values"]
        boxes = tile.target["boxes"] * torch.tensor([wide, tall, wide, tall])
        moved = {**tile.target, "boxes": (boxes + boxes.new_tensor([left, top, 0, 0])) / whole}
        if "masks" in moved:
            masks = moved["masks"]
            moved["masks"] = masks.new_zeros(len(masks), height, width)
            moved["masks"][:, *area] = masks
        targets.append(moved)
    target = {**_together(targets), "size": torch.tensor([height, width])}
    meta = replace(tiles[0].meta, size=size)
    return _noted(Sample({"pixel_values": canvas}, target, meta), tiles[1:])


def blend(first: Sample, second: Sample, share: float) -> Sample:
    """A sample through which another of its size shines with a ``share`` in 0..1."""
    one, other = (sample.inputs["pixel_values"] for sample in (first, second))
    pixels = one.float().lerp_(other.float(), share).round_().to(torch.uint8)
    target = _together([first.target, second.target])
    return _noted(Sample({"pixel_values": pixels}, target, first.meta), [second])


def paste(onto: Sample, donor: Sample, chosen: Tensor) -> Sample:
    """A sample with the ``chosen`` (bool [M]) objects of another of its size laid over it."""
    hidden = np.zeros(onto.meta.size, dtype=bool)
    regions = _regions(donor.target, onto.meta.size)
    for (place, shape), pasted in zip(regions, chosen.tolist(), strict=True):
        if pasted:
            hidden[place] |= shape
    if not hidden.any():
        return onto
    mask = torch.from_numpy(hidden)
    old, new = (sample.inputs["pixel_values"] for sample in (onto, donor))
    pixels = old.where(~mask, new)
    seen = _seen(onto.target, ~hidden)
    target = _together([seen, _seen(donor.target, hidden, crowds=False)])
    return _noted(Sample({"pixel_values": pixels}, target, onto.meta), [donor])


def _regions(target: Target, size: Size) -> list[tuple[tuple[slice, slice], NDArray[np.bool_]]]:
    """For each object the whole pixels (rows, columns) around it, and which of them are its own."""
    sides = np.array([size[1], size[0], size[1], size[0]])
    corners = box_convert(target["boxes"], "cxcywh", "xyxy").double().numpy() * sides
    first = np.rint(corners[:, :2]).clip(0, sides[:2] - 1).astype(np.int64)
    last = np.maximum(np.rint(corners[:, 2:]).clip(None, sides[2:]).astype(np.int64), first + 1)
    regions = []
    for n, (left, top, right, bottom) in enumerate(np.hstack([first, last]).tolist()):
        place = (slice(top, bottom), slice(left, right))
        shape = np.ones((bottom - top, right - left), dtype=bool)
        if "masks" in target:
            shape = target["masks"][n, top:bottom, left:right].bool().numpy()
        regions.append((place, shape))
    return regions


def _seen(target: Target, visible: NDArray[np.bool_], *, crowds: bool = True) -> Target:
    """What is left of objects of which only the ``visible`` [H, W] pixels are seen.

    An object of which less than ``MIN_VISIBLE`` is seen is dropped; the box of one that is partly
    seen ends where that part does. Crowds are kept as they are, or dropped.
    """
    size: Size = (visible.shape[0], visible.shape[1])
    whole = torch.tensor([size[1], size[0], size[1], size[0]])
    corners = box_convert(target["boxes"], "cxcywh", "xyxy") * whole
    kept: list[int] = []
    crowded = target["iscrowd"].tolist()
    for n, (place, shape) in enumerate(_regions(target, size)):
        if crowded[n]:
            kept += [n] * crowds
            continue
        own = shape & visible[place]
        left_over, all_of_it = int(own.sum()), int(shape.sum())
        if left_over < max(MIN_VISIBLE * all_of_it, 1):
            continue
        kept.append(n)
        if left_over < all_of_it:
            rows, columns = (np.flatnonzero(own.any(axis)) for axis in (1, 0))
            start = corners.new_tensor([columns[0] + place[1].start, rows[0] + place[0].start])
            end = start + start.new_tensor([np.ptp(columns) + 1, np.ptp(rows) + 1])
            corners[n, :2] = corners[n, :2].maximum(start)
            corners[n, 2:] = corners[n, 2:].minimum(end)
    out = {k: v[kept] for k, v in target.items() if k in _PER_OBJECT}
    out["boxes"] = box_convert(corners[kept] / whole, "xyxy", "cxcywh")
    out["area"] = (corners[kept, 2:] - corners[kept, :2]).prod(1)
    if "masks" in out:
        out["masks"] = out["masks"] * torch.from_numpy(visible)
    return {**target, **out}


def _together(targets: Sequence[Target]) -> Target:
    """The first target with the objects of all."""
    shared = {k: torch.cat([t[k] for t in targets]) for k in _PER_OBJECT if k in targets[0]}
    return {**targets[0], **shared}


def _noted(sample: Sample, others: Sequence[Sample]) -> Sample:
    """A sample whose ``meta.extra["mixed"]`` lists the images of ``others``, too."""
    extra = sample.meta.extra
    ids = [
        *extra.get("mixed", ()),
        *(i for s in others for i in (s.meta.image_id, *s.meta.extra.get("mixed", ()))),
    ]
    return replace(sample, meta=replace(sample.meta, extra={**extra, "mixed": tuple(ids)}))

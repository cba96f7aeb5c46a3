"""Augmentation and preprocessing of detection pictures: planned in numbers, then done in one go.

What happens to a sample is a :class:`Plan` that is drawn before its picture is read, as a pure
function of (seed, epoch, index). So the size of every sample of an epoch is known ahead (batches
of like shapes need it), all plans of an epoch are drawn at once, and the picture is cropped and
resized once, on uint8, instead of once a step of the recipe.

The recipe is DETR's (Carion et al., ECCV 2020, section 4 and its release): a horizontal flip with
probability 0.5; then either the short side is resized to one of 480, 512, ... 800 with the long
one at most 1333, or, with probability 0.5, the short side to 400, 500 or 600, a random part of
384 to 600 pixels a side is cut out, and that is resized in the first way. The three steps of the
second way are composed into one crop of the original and one resize, with the sizes, the rounding
and the distribution of the original steps.

``scale_jitter`` is the large-scale jitter of arXiv 2012.07177 (section 3; 0.1 to 2.0 there): what
the recipe shows is magnified or made smaller by a drawn factor, in the frame that it has anyway,
so that a result's size does not depend on it. What then lies beyond the picture is grey.

Several pictures in one sample (mosaic, mixup, copy-paste) are :mod:`zoo.datasets.mixing`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from zoo.collate import Collate, Pad
from zoo.errors import ZooError
from zoo.sampling import uniforms
from zoo.types import Meta, Sample, Size

collate_detection = Collate({"pixel_values": Pad(0, dims=(1, 2), mask="pixel_mask")})

GREY = 114  # what there is beyond a picture's edge: about the mean of ImageNet's pixels
MIN_VISIBLE = 0.25  # of its area a box keeps, or it goes, where cuts are many (see Plan.visible)
_SPREAD = np.array([0.125, 0.5, 0.5, 0.05])  # of colours at jitter 1: those of SSD


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to training pictures, and to the ones that are evaluated (``val_``).

    Lengths are in pixels. The defaults are DETR's for COCO.
    """

    sizes: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # short side
    max_size: int = 1333  # of the long side
    crop: float = 0.5  # probability that a random part is cut out
    crop_resize: tuple[int, ...] = (400, 500, 600)  # short side before cutting
    crop_size: tuple[int, int] = (384, 600)  # least and greatest side of the part
    flip: float = 0.5  # probability of a left-right flip
    vertical_flip: float = 0.0  # probability of an upside-down flip
    jitter: float = 0.0  # strength of changes of colour; 0: none, 1: those of SSD
    scale_jitter: tuple[float, float] = (1.0, 1.0)  # least and greatest magnification
    mosaic: float = 0.0  # probability that a sample is put together of four pictures
    mixup: float = 0.0  # probability that another picture shines through
    copy_paste: float = 0.0  # probability that another picture's objects are pasted into it
    # The part of the run after which the four above are off; decided at the start of an epoch.
    mix_until: float = 0.85
    val_size: int = 800
    val_max_size: int = 1333
    square: bool = False  # bring everything to squares of these sizes, whatever the shape was
    # Both sides go to the nearest multiple, also in evaluation: few shapes, so that what a library
    # prepares for a shape serves again, batches without padding, cells that end with the picture.
    multiple: int = 1

    def __post_init__(self) -> None:
        shares = ("crop", "flip", "vertical_flip", "mosaic", "mixup", "copy_paste", "mix_until")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ZooError(f"data.augment.{name}={getattr(self, name)} is not in 0..1")
        if len(self.scale_jitter) != 2 or not (
            0.05 <= self.scale_jitter[0] <= self.scale_jitter[1] <= 10
        ):
            raise ZooError(
                f"data.augment.scale_jitter={self.scale_jitter} is not (least, greatest) in "
                "0.05..10"
            )
        if not 1 <= self.multiple <= 256:
            raise ZooError(f"data.augment.multiple={self.multiple} is not in 1..256")
        if not 0 <= self.jitter <= 2:
            raise ZooError(f"data.augment.jitter={self.jitter} is not in 0..2")
        for name in ("sizes", "crop_resize", "crop_size", "max_size", "val_size", "val_max_size"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if not values or min(values) < 1:
                raise ZooError(f"data.augment.{name}={value} has to hold sizes of 1 pixel or more")
        if len(self.crop_size) != 2 or self.crop_size[0] > self.crop_size[1]:
            raise ZooError(f"data.augment.crop_size={self.crop_size} is not (least, greatest)")


@dataclass(frozen=True)
class Geometry:
    """Where the pixels come from: a part of the picture, brought to a size, then flipped.

    ``crop`` is (top, left, height, width) in pixels of the original picture, not rounded; it may
    stand over the picture's edges, and is grey there. ``size`` is (height, width) of the result.
    """

    crop: tuple[float, float, float, float]
    size: Size
    hflip: bool = False
    vflip: bool = False


@dataclass(frozen=True)
class Colour:
    """Changes of colour: three factors (1: none) and a shift of the hue in turns (0: none)."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All that is done to one picture.

    A box that keeps less than the part ``visible`` of its area, or has a side below one pixel
    then, is no target any more; with 0, as in DETR, whatever is left of a box stays one.
    """

    geometry: Geometry
    colour: Colour = Colour()
    visible: float = 0.0


@dataclass(frozen=True)
class Plans:
    """The plans of N samples as arrays; ``plans[i]`` is sample i's.

    ``crops`` [N, 4] float64, ``out`` [N, 2] int64 (height, width), ``flips`` [N, 2] bool
    (left-right, upside-down), ``colours`` [N, 4] float64; ``visible`` is the same for all.
    """

    crops: NDArray[np.float64]
    out: NDArray[np.int64]
    flips: NDArray[np.bool_]
    colours: NDArray[np.float64]
    visible: float = 0.0

    def __len__(self) -> int:
        return len(self.out)

    def __getitem__(self, i: int) -> Plan:
        top, left, height, width = self.crops[i].tolist()
        size: Size = (int(self.out[i, 0]), int(self.out[i, 1]))
        hflip, vflip = self.flips[i].tolist()
        geometry = Geometry((top, left, height, width), size, hflip, vflip)
        return Plan(geometry, Colour(*self.colours[i].tolist()), self.visible)

    def sizes(self) -> list[Size]:
        """(height, width) of every result."""
        return list(zip(self.out[:, 0].tolist(), self.out[:, 1].tolist(), strict=True))


def resized(
    sizes: NDArray[np.int64], short: NDArray[np.int64], longest: int | None
) -> NDArray[np.int64]:
    """(height, width) [N, 2] after the short side is brought to ``short`` [N].

    Keeps the aspect ratio; where the long side would pass ``longest``, the short side gives way.
    As in DETR's release the long side is truncated, not rounded, and may pass ``longest`` by what
    the rounding of the short side makes of it. Where that would be rounded to nothing, it is 1.
    """
    least, most = sizes.min(axis=1), sizes.max(axis=1)
    if longest is not None:
        over = most / least * short > longest
        short = np.where(over, np.rint(longest * least / most).astype(np.int64), short)
    long = (short * most / least).astype(np.int64)
    if longest is not None:
        long = np.where(short < 1, longest, long)
    short = np.maximum(short, 1)
    upright = sizes[:, 0] > sizes[:, 1]
    return np.stack([np.where(upright, long, short), np.where(upright, short, long)], axis=1)


def _shaped(
    sizes: NDArray[np.int64], short: NDArray[np.int64], longest: int, config: AugmentConfig
) -> NDArray[np.int64]:
    """(height, width) [N, 2] of results: as :func:`resized`, or squares where they are wanted.

    Then both sides go to the nearest multiple of ``config.multiple``.
    """
    out = np.stack([short, short], axis=1) if config.square else resized(sizes, short, longest)
    if config.multiple > 1:
        out = np.maximum(np.rint(out / config.multiple).astype(np.int64), 1) * config.multiple
    return out


def _pick(draws: NDArray[np.float64], choices: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(choices, dtype=np.int64)[(draws * len(choices)).astype(np.int64)]


def _between(
    draws: NDArray[np.float64], least: NDArray[np.int64], most: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Whole numbers in least..most, both included."""
    return least + (draws * (most - least + 1)).astype(np.int64)


def plan_train(
    sizes: NDArray[Any] | Sequence[Size],
    config: AugmentConfig,
    *,
    seed: int,
    epoch: int,
    indices: Sequence[int] | NDArray[Any] | None = None,
) -> Plans:
    """The training plans of pictures of ``sizes`` (height, width).

    ``indices`` are the pictures' places in the data set (0, 1, ... by default): the plan of a
    picture depends on its own size and index, the seed and the epoch, and on nothing else.
    """
    orig = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    places = np.arange(len(orig)) if indices is None else np.asarray(indices)
    u = uniforms(20, places, seed=seed, epoch=epoch)

    whole = np.zeros((len(orig), 4))
    whole[:, 2:] = orig
    first = resized(orig, _pick(u[:, 2], config.crop_resize), None)
    least, most = (np.minimum(first, bound) for bound in config.crop_size)
    part = _between(u[:, 3:5], least, most)
    corner = _between(u[:, 5:7], np.zeros_like(part), first - part)
    back = np.tile(orig / first, 2)  # pixels of the original a pixel of the first resize
    cut = (u[:, 0] < config.crop)[:, None]
    crops = np.where(cut, np.concatenate([corner, part], axis=1) * back, whole)
    short = _pick(u[:, 1], config.sizes)
    out = _shaped(np.where(cut, part, orig), short, config.max_size, config)
    flips = u[:, 7:9] < (config.flip, config.vertical_flip)
    jittered = config.scale_jitter != (1.0, 1.0)
    if jittered:
        crops = _zoomed(crops, u[:, 17:20], config.scale_jitter)
    colours = _colours(u[:, 9:17], config)
    return Plans(crops, out, flips, colours, MIN_VISIBLE if jittered else 0.0)


def _colours(u: NDArray[np.float64], config: AugmentConfig) -> NDArray[np.float64]:
    """Factors and hues [N, 4] of draws [N, 8].

    The ranges of SSD (Liu et al., ECCV 2016) at strength 1, each applied to every other picture.
    """
    shift = np.where(u[:, :4] < 0.5, (2 * u[:, 4:] - 1) * (config.jitter * _SPREAD), 0.0)
    colours = np.array([1.0, 1.0, 1.0, 0.0]) + shift
    colours[:, :3] = colours[:, :3].clip(min=0)
    return colours


def _zoomed(
    crops: NDArray[np.float64], u: NDArray[np.float64], factors: tuple[float, float]
) -> NDArray[np.float64]:
    """Windows [N, 4] that show ``crops`` magnified by a factor of draws [N, 3], somewhere.

    A smaller window lies inside the one that was there, a larger one around it.
    """
    least, most = factors
    sides = crops[:, 2:] / (least + u[:, :1] * (most - least))
    return np.concatenate([crops[:, :2] + u[:, 1:] * (crops[:, 2:] - sides), sides], axis=1)


WINDOW_DRAWS = 13  # random numbers that a window takes


def plan_windows(
    frames: NDArray[np.int64],
    sizes: NDArray[np.int64],
    config: AugmentConfig,
    u: NDArray[np.float64],
    zoom: tuple[float, float],
) -> Plans:
    """Plans that fill results of given ``sizes`` with a window of each picture, as it stands.

    ``frames`` and ``sizes`` [N, 2] are (height, width) of the pictures and of the results; ``u``
    [N, ``WINDOW_DRAWS``] are draws in 0..1. At zoom 1 a window is the largest part of the picture
    that has the result's shape; it is magnified by a factor between those of ``zoom``, and where
    that is below 1 there is grey around the picture.
    """
    least, most = zoom
    scale = (sizes / frames).max(axis=1, keepdims=True) * (least + u[:, :1] * (most - least))
    sides = sizes / scale
    crops = np.concatenate([u[:, 1:3] * (frames - sides), sides], axis=1)
    flips = u[:, 3:5] < (config.flip, config.vertical_flip)
    return Plans(crops, sizes, flips, _colours(u[:, 5:13], config), MIN_VISIBLE)


def plan_val(sizes: NDArray[Any] | Sequence[Size], config: AugmentConfig) -> Plans:
    """The plans of evaluation: the whole picture at ``val_size``, nothing drawn."""
    orig = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    crops = np.zeros((len(orig), 4))
    crops[:, 2:] = orig
    out = _shaped(orig, np.full(len(orig), config.val_size), config.val_max_size, config)
    colours = np.tile([1.0, 1.0, 1.0, 0.0], (len(orig), 1))
    return Plans(crops, out, np.zeros((len(orig), 2), bool), colours)


def preprocess_of(config: AugmentConfig) -> dict[str, int | bool]:
    """What prediction has to repeat of the evaluation's preprocessing, as plain JSON values."""
    plain: dict[str, int | bool] = {
        "val_size": config.val_size, "val_max_size": config.val_max_size
    }  # fmt: skip
    # What is as usual is left out, as in older checkpoints.
    unusual = {name: getattr(config, name) for name in ("square", "multiple")}
    usual = AugmentConfig()
    return plain | {k: v for k, v in unusual.items() if v != getattr(usual, k)}


def apply_geometry(
    image: Tensor, boxes: Tensor, geometry: Geometry, frame: Size
) -> tuple[Tensor, Tensor]:
    """Crop, resize and flip a picture and its boxes.

    ``image`` is uint8 [3, h, w]: the original picture, or the same decoded at another scale.
    ``frame`` (height, width) is the pixel grid in which ``geometry.crop`` and ``boxes`` (xyxy
    [M, 4]) are given. Returns the image [3, *geometry.size] and the boxes in its pixels, clipped
    to it; a box that was cut off has no width or height left. The crop is rounded to whole pixels
    of ``image``, and the boxes follow the rounded one. Where it stands over the picture's edges,
    the picture's share of the result is rounded to whole pixels of that, instead.
    """
    inner, share = _within(geometry, frame)
    if share is not None:
        return _on_grey(image, boxes, geometry, inner, share, frame)
    height, width = image.shape[-2:]
    down, right = height / frame[0], width / frame[1]
    scale = torch.tensor([right, down, right, down])
    picture = tv_tensors.Image(image)
    found = tv_tensors.BoundingBoxes(
        boxes.float() * scale,
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=(height, width),
    )
    top, bottom = _edges(geometry.crop[0], geometry.crop[2], down, height)
    left, side = _edges(geometry.crop[1], geometry.crop[3], right, width)
    if (top, left, bottom, side) != (0, 0, height, width):
        window = (top, left, bottom - top, side - left)
        picture, found = F.crop(picture, *window), F.crop(found, *window)
    else:
        found = F.clamp_bounding_boxes(found)
    if tuple(picture.shape[-2:]) != geometry.size:
        picture = F.resize(picture, list(geometry.size), antialias=True)
        found = F.resize(found, list(geometry.size))
    if geometry.hflip:
        picture, found = F.horizontal_flip(picture), F.horizontal_flip(found)
    if geometry.vflip:
        picture, found = F.vertical_flip(picture), F.vertical_flip(found)
    return picture.as_subclass(Tensor), found.as_subclass(Tensor)


def _within(geometry: Geometry, frame: Size) -> tuple[Geometry, tuple[int, int, int, int] | None]:
    """The part of a plan that shows the picture, unflipped, and where in the result it lies.

    As (top, left, height, width) in pixels of the result; None where it is the whole result.
    """
    spans, parts = [], []
    for axis in (0, 1):
        start, length, out = geometry.crop[axis], geometry.crop[axis + 2], geometry.size[axis]
        scale = out / length
        first = min(max(round(-start * scale), 0), out - 1)
        last = max(min(round((frame[axis] - start) * scale), out), first + 1)
        parts.append((first, last))
        spans.append((max(start, 0.0), min(start + length, frame[axis])))
    (top, bottom), (left, right) = parts
    if (top, left, bottom, right) == (0, 0, *geometry.size):
        return geometry, None
    crop = (spans[0][0], spans[1][0], spans[0][1] - spans[0][0], spans[1][1] - spans[1][0])
    place = (top, left, bottom - top, right - left)
    return Geometry(crop, (bottom - top, right - left)), place


def _on_grey(
    image: Tensor,
    boxes: Tensor,
    geometry: Geometry,
    inner: Geometry,
    place: tuple[int, int, int, int],
    frame: Size,
) -> tuple[Tensor, Tensor]:
    """The picture as ``inner`` says, at its place in a grey result, flipped with it."""
    height, width = geometry.size
    top, left, tall, wide = place
    if geometry.vflip:
        top = height - top - tall
    if geometry.hflip:
        left = width - left - wide
    inner = replace(inner, hflip=geometry.hflip, vflip=geometry.vflip)
    pixels, found = apply_geometry(image, boxes, inner, frame)
    canvas = blank((height, width))
    canvas[:, top : top + tall, left : left + wide] = pixels
    return canvas, found + found.new_tensor([left, top, left, top])


def blank(size: Size) -> Tensor:
    """A grey picture, uint8 [3, H, W], in the memory order of decoded ones."""
    return torch.full((*size, 3), GREY, dtype=torch.uint8).permute(2, 0, 1)


def _edges(start: float, length: float, scale: float, limit: int) -> tuple[int, int]:
    """First and one past the last whole pixel of a span, at least one pixel long."""
    first = min(max(round(start * scale), 0), limit - 1)
    return first, max(min(round((start + length) * scale), limit), first + 1)


def apply_colour(image: Tensor, colour: Colour) -> Tensor:
    """Change brightness, contrast, saturation and hue of a uint8 picture [3, H, W]."""
    if colour.brightness != 1:
        image = F.adjust_brightness(image, colour.brightness)
    if colour.contrast != 1:
        image = F.adjust_contrast(image, colour.contrast)
    if colour.saturation != 1:
        image = F.adjust_saturation(image, colour.saturation)
    if colour.hue != 0:
        image = F.adjust_hue(image, colour.hue)
    return image


def detection_sample(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    plan: Plan,
    *,
    frame: Size,
    image_id: int,
    path: str = "",
    extra: Mapping[str, Any] | None = None,
) -> Sample:
    """Carry out a plan on a decoded picture and make the sample that detectors train on.

    ``image`` uint8 [3, h, w] at any scale of the original, ``boxes`` [M, 4] xyxy in pixels of
    ``frame`` (height, width), the original's size; ``labels`` [M] class indices. Boxes that the
    crop leaves nothing of, or too little (``plan.visible``), are dropped with their labels. The
    target holds ``boxes`` normalised cxcywh of the result, ``area`` of the boxes in its pixels,
    and the sizes before and after.
    """
    height, width = plan.geometry.size
    pixels, found = apply_geometry(image, boxes, plan.geometry, frame)
    pixels = apply_colour(pixels, plan.colour)
    kept = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
    if plan.visible > 0:
        _, _, tall, wide = plan.geometry.crop
        whole = (boxes[:, 2:] - boxes[:, :2]).float().prod(1) * (height / tall * width / wide)
        sides = found[:, 2:] - found[:, :2]
        kept = (sides.prod(1) >= plan.visible * whole) & (sides >= 1).all(1)
    found, labels = found[kept], labels[kept]
    area = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    relative = found / torch.tensor([width, height, width, height], dtype=torch.float32)
    target = {
        "labels": labels.to(torch.int64),
        "boxes": box_convert(relative, "xyxy", "cxcywh"),
        "area": area,
        "iscrowd": torch.zeros(len(labels), dtype=torch.int64),
        "image_id": torch.tensor([image_id], dtype=torch.int64),
        "orig_size": torch.tensor(frame, dtype=torch.int64),
        "size": torch.tensor([height, width], dtype=torch.int64),
    }
    meta = Meta(
        image_id=image_id, orig_size=frame, size=(height, width), path=path, extra=extra or {}
    )
    return Sample({"pixel_values": pixels}, target, meta)

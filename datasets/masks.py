"""Segments of a picture through its augmentation, and as masks for training.

A picture's segments are kept as one map of ids, whatever their number, and follow the picture's
crop, resize and flips in one lookup. Masks for training are made of it at a quarter of the
resized picture's side (``STRIDE``), which is the resolution of DETR's mask logits (arXiv
2005.12872, section 4): 1/16 of the memory of full masks, and no logits have to be enlarged for the
loss. A cell is the pixel at its centre. What is thinner than a cell may have an empty mask.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoo.datasets.transforms import Geometry
from zoo.types import Size

STRIDE = 4  # pixels of the resized picture a cell of the training masks

Ids = NDArray[np.int32]


def ids_of(pixels: NDArray[np.uint8]) -> Ids:
    """Segment ids [H, W] of RGB pixels [H, W, 3]: R + 256 G + 65536 B, COCO's panoptic format."""
    wide = pixels.astype(np.int32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16


def pixels_of(ids: Ids) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3] uint8 of segment ids [H, W] in 0..2**24 - 1."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def place_ids(ids: Ids, geometry: Geometry, stride: int = STRIDE) -> Ids:
    """A map of ids as the picture's plan changes it, one cell every ``stride`` pixels.

    ``ids`` [h, w] is the map in the grid that ``geometry.crop`` is given in; the result is
    [ceil(H / stride), ceil(W / stride)] for the result's (H, W), 0 where it lies beyond the
    picture's edges. The crop is rounded to whole pixels as the picture's is.
    """
    rows = _sources(geometry, ids.shape[0], 0, geometry.vflip, stride)
    columns = _sources(geometry, ids.shape[1], 1, geometry.hflip, stride)
    inside = (rows >= 0)[:, None] & (columns >= 0)[None]
    return np.where(inside, ids[rows[:, None], columns[None]], 0)


def _sources(
    geometry: Geometry, limit: int, axis: int, flip: bool, stride: int
) -> NDArray[np.int64]:
    """The row (or column) that every cell shows, -1 where it shows none."""
    start, length, out = geometry.crop[axis], geometry.crop[axis + 2], geometry.size[axis]
    centres = np.arange(0, out, stride) + stride // 2
    pixels = np.minimum(centres, out - 1)  # the last cell may be cut off
    if flip:
        pixels = out - 1 - pixels
    scale = out / length  # as zoo.datasets.transforms places the picture in its result
    first = min(max(round(-start * scale), 0), out - 1)
    last = max(min(round((limit - start) * scale), out), first + 1)
    begin, end = max(start, 0.0), min(start + length, limit)
    top = min(max(round(begin), 0), limit - 1)
    bottom = max(min(round(end), limit), top + 1)
    found = top + ((pixels - first + 0.5) * (bottom - top) / (last - first)).astype(np.int64)
    return np.where((pixels >= first) & (pixels < last), found.clip(top, bottom - 1), -1)


def masks_of(ids: Ids, numbers: NDArray[np.int64]) -> Tensor:
    """The masks bool [N, h, w] of the segments ``numbers`` [N]."""
    return torch.from_numpy(ids[None] == numbers.astype(np.int32)[:, None, None])


def present(ids: Ids) -> NDArray[np.int64]:
    """The ids that occur in a map, each once; by its runs, without sorting every pixel."""
    flat = ids.ravel()
    if not flat.size:
        return np.zeros(0, dtype=np.int64)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.unique(flat[np.concatenate([[0], changes])]).astype(np.int64)


def cells(size: Size, stride: int = STRIDE) -> Size:
    """(height, width) of the masks of a picture of that size."""
    return -(-size[0] // stride), -(-size[1] // stride)

"""Masks on pictures, in the colours that :mod:`zoo.visualize` gives the classes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoo.visualize import Picture, as_pil, class_colour


def draw_masks(
    image: Picture,
    masks: Iterable[NDArray[np.bool_]],
    labels: Iterable[int],
    *,
    strength: float = 0.5,
) -> Image.Image:
    """The image with masks over it, through which it can be seen.

    ``masks`` are bool [H, W] of the image's size and are taken one at a time; ``labels``, one for
    each, choose the colours. Later ones lie over earlier ones. ``strength`` 0..1 is how much of the
    image a mask covers. Raises ``ValueError`` for a mask of another size.
    """
    pixels = np.array(as_pil(image))
    for mask, label in zip(masks, labels, strict=True):
        if mask.shape != pixels.shape[:2]:
            raise ValueError(f"a mask {list(mask.shape)} is not of a picture {pixels.shape[:2]}")
        colour = np.array(class_colour(label))
        mixed = pixels[mask] * (1 - strength) + colour * strength
        pixels[mask] = mixed.round().astype(np.uint8)
    return Image.fromarray(pixels)

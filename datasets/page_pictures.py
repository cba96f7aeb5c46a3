"""The picture of a page, for models that look at it beside its words.

Pages know where their pictures are and don't carry them: a picture is opened when a model is to
see it, turned as the page's words were read, and made small. What a model wants to see is part of
its :class:`~zoo.datasets.windows.EncodingConfig`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zoo.datasets.ocr.files import open_pages
from zoo.datasets.ocr.page import Page
from zoo.datasets.ocr.tesseract import turned
from zoo.datasets.windows import LONGEST_TO_SHORTEST, EncodingConfig
from zoo.errors import ZooError

KEPT = 256  # small pictures a data set keeps: 0.15 MB each at 224 pixels
PAPER = 255  # what is around a page that was made smaller


@dataclass(frozen=True)
class PictureOfFile:
    """The picture of page ``number`` (from 0) of a file, turned clockwise by ``rotation``."""

    path: str
    number: int = 0
    rotation: int = 0
    password: str | None = None

    def load(self) -> Image.Image:
        """RGB. Raises :class:`ZooError` naming the file where it can't be read."""
        pages = str(self.number + 1)
        [item] = open_pages(self.path, pages=pages, password=self.password)
        return turned(item.image, self.rotation)


@dataclass(frozen=True, eq=False)
class HeldPicture:
    """A picture that is in memory anyway, turned clockwise by ``rotation`` when it is looked at."""

    image: Image.Image
    rotation: int = 0

    def load(self) -> Image.Image:
        """RGB."""
        return turned(self.image.convert("RGB"), self.rotation)


class PagePictures:
    """Pages' pictures as a model sees them; the last :data:`KEPT` are kept.

    ``encoding.image`` is the side in pixels. With ``image_fit=square`` the page fills a square;
    with ``shorter`` it keeps its shape, its shorter side is that long and its longer side at most
    640 / 384 of it (ViLT; Kim et al., arXiv 2102.03334, section 4.2), both in whole patches of
    ``image_multiple``.
    """

    def __init__(self, encoding: EncodingConfig) -> None:
        self.encoding = encoding
        self._kept: OrderedDict[int, tuple[Page, Tensor]] = OrderedDict()

    def __call__(
        self, page: Page, draws: NDArray[np.float64] | None = None, most: float = 0.0
    ) -> dict[str, Tensor]:
        """``pixel_values`` [3, H, W] uint8 RGB; nothing for a model without an image.

        ``draws`` and ``most`` make the page smaller and move it on paper, just as
        :func:`zoo.datasets.questions.moved` does its boxes. Raises :class:`ZooError` naming the
        page where it has no picture.
        """
        if not self.encoding.image:
            return {}
        pixels = self._pixels(page)
        if draws is not None and most > 0:
            pixels = moved_picture(pixels, draws, most)
        return {"pixel_values": pixels}

    def _pixels(self, page: Page) -> Tensor:
        known = self._kept.get(id(page))
        if known is None:
            if page.picture is None:
                raise ZooError(
                    f"{page.source or 'a page'} has words and no picture, and this model looks at "
                    "the page's picture too; give the picture or PDF itself"
                )
            known = (page, self._small(page.picture.load()))  # the page: so that its id stays its
            self._kept[id(page)] = known
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(id(page))
        return known[1]

    def _small(self, image: Image.Image) -> Tensor:
        small = image.convert("RGB").resize(
            self._size(image.width, image.height), Image.Resampling.BILINEAR, reducing_gap=3.0
        )
        return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).contiguous()

    def _size(self, width: int, height: int) -> tuple[int, int]:
        side, multiple = self.encoding.image, self.encoding.image_multiple
        if self.encoding.image_fit == "square":
            return side, side
        scale = side / min(width, height)
        longest = LONGEST_TO_SHORTEST * side
        scale = min(scale, longest / max(width, height))
        found = (
            max(multiple, int(n * scale + 0.5) // multiple * multiple) for n in (width, height)
        )
        return (next(found), next(found))


def moved_picture(pixels: Tensor, draws: NDArray[np.float64], most: float) -> Tensor:
    """``pixels`` [3, H, W] with the page made smaller by up to ``most`` and put anywhere on paper.

    ``draws`` are four numbers in 0..1: how much and where to, across and down.
    """
    _, height, width = pixels.shape
    new_width, new_height = (
        max(1, round(n * (1 - most * draw)))
        for n, draw in zip((width, height), draws, strict=False)
    )
    left = round((width - new_width) * draws[2])
    top = round((height - new_height) * draws[3])
    small = F.interpolate(
        pixels[None].float(), (new_height, new_width), mode="bilinear", antialias=True
    )[0]
    out = torch.full_like(pixels, PAPER)
    part = small.round_().clamp_(0, 255).to(torch.uint8)
    out[:, top : top + new_height, left : left + new_width] = part
    return out


def picture_of(path: Path, page: Page) -> PictureOfFile:
    """Where to find the picture of a page that was read from the file ``path``."""
    return PictureOfFile(str(path), page.number, page.rotation)

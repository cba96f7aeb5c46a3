"""Pages' pictures: where they come from, how small they are, and that boxes stay on their words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.datasets.documents import DocumentsConfig, draw
from zoo.datasets.ocr.page import Page, page_from_json
from zoo.datasets.page_pictures import (
    HeldPicture,
    PagePictures,
    PictureOfFile,
    moved_picture,
)
from zoo.datasets.questions import moved
from zoo.datasets.windows import EncodingConfig
from zoo.errors import ZooError

SQUARE = EncodingConfig(image=40)
SHAPED = EncodingConfig(image=96, image_fit="shorter")


def page_of(image: Image.Image, **more) -> Page:
    size = {"width": image.width, "height": image.height}
    return Page(words=(), boxes=(), **size, picture=HeldPicture(image), **more)


def test_a_model_without_an_image_gets_none() -> None:
    assert PagePictures(EncodingConfig())(Page(words=(), boxes=(), width=9, height=9)) == {}


def test_a_page_fills_a_square() -> None:
    image = Image.new("RGB", (300, 500), (10, 20, 30))
    pixels = PagePictures(SQUARE)(page_of(image))["pixel_values"]
    assert pixels.shape == (3, 40, 40)
    assert pixels.dtype == torch.uint8
    assert pixels.flatten(1).unique(dim=1).tolist() == [[10], [20], [30]]


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((300, 300), (96, 96)),
        ((300, 400), (128, 96)),
        ((3000, 300), (32, 160)),
        ((40, 20), (64, 160)),
    ],
)
def test_a_page_keeps_its_shape(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """The shorter side, or the longer at most 640 / 384 of it; whole patches of 32."""
    pixels = PagePictures(SHAPED)(page_of(Image.new("L", size, 200)))["pixel_values"]
    assert tuple(pixels.shape[1:]) == wanted


def test_a_file_is_turned_as_its_words_were_read(tmp_path) -> None:
    image = Image.new("RGB", (20, 10), "white")
    image.putpixel((0, 0), (255, 0, 0))
    image.save(tmp_path / "a.png")
    upright = PictureOfFile(str(tmp_path / "a.png")).load()
    assert upright.size == (20, 10)
    turned = PictureOfFile(str(tmp_path / "a.png"), rotation=90).load()
    assert turned.size == (10, 20)
    assert turned.getpixel((9, 0)) == (255, 0, 0)
    assert HeldPicture(image, 90).load().getpixel((9, 0)) == (255, 0, 0)


def test_a_page_of_words_only_is_refused() -> None:
    page = Page(words=("a",), boxes=((0, 0, 5, 5),), width=9, height=9, source="mine.json")
    with pytest.raises(ZooError, match=r"mine\.json has words and no picture"):
        PagePictures(SQUARE)(page)


def test_pictures_are_opened_once_and_the_oldest_forgotten(monkeypatch) -> None:
    from zoo.datasets import page_pictures

    opened = []

    class Counted(HeldPicture):
        def load(self) -> Image.Image:
            opened.append(self.image.width)
            return super().load()

    monkeypatch.setattr(page_pictures, "KEPT", 2)
    pages = [
        replace(page_of(image), picture=Counted(image))
        for image in (Image.new("L", (n, 9)) for n in (7, 8, 9))
    ]
    pictures = PagePictures(SQUARE)
    for n in (0, 0, 1, 0, 2, 0, 1):
        pictures(pages[n])
    assert opened == [7, 8, 9, 8]


def test_a_moved_picture_keeps_words_under_their_boxes() -> None:
    pixels = torch.full((3, 200, 100), 255, dtype=torch.uint8)
    pixels[:, 60:100, 20:60] = 0  # a word, at 200..600 and 300..500 of 1000
    bbox = torch.tensor([[200, 300, 600, 500]])
    for draws in np.random.default_rng(3).uniform(size=(20, 4)):
        new = moved(bbox, torch.tensor([True]), draws, 0.4)[0] / 1000
        dark = (moved_picture(pixels, draws, 0.4)[0] < 128).nonzero()
        y1, x1 = dark.min(0).values.tolist()
        y2, x2 = (dark.max(0).values + 1).tolist()
        found = torch.tensor([x1 / 100, y1 / 200, x2 / 100, y2 / 200])
        assert (found - new).abs().max() < 0.02


def test_a_picture_is_no_part_of_what_is_saved() -> None:
    page = page_of(Image.new("L", (9, 9)), source="a.png")
    again = page_from_json(page.to_json(), "x")
    assert again == page
    assert again.picture is None


def test_drawn_documents_are_painted_when_looked_at() -> None:
    document = draw(DocumentsConfig(ocr_noise=0.0), 3)
    assert document.page.picture is not None
    image = document.page.picture.load()
    assert image.size == (document.page.width, document.page.height)
    assert np.asarray(image).std() > 5

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.visualize import class_colour
from zoo.visualize_masks import draw_masks


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("strength", [0.5, 0.25, 1.0])
def test_masks_take_the_colours_of_their_classes_and_nothing_else_does(strength: float) -> None:
    masks = [rectangle(5, 5, 20, 30), rectangle(25, 40, 35, 55)]
    image = torch.full((3, 40, 60), 90, dtype=torch.uint8)
    found = draw_masks(image, masks, [0, 4], strength=strength)
    pixels = np.asarray(found)
    for mask, label in zip(masks, (0, 4), strict=True):
        wanted = np.round(90 * (1 - strength) + np.array(class_colour(label)) * strength)
        assert (pixels[mask] == wanted).all()
    assert (pixels[~(masks[0] | masks[1])] == 90).all()
    assert (image == 90).all()  # itself it stays as it was


def test_later_masks_lie_over_earlier_ones() -> None:
    below, above = rectangle(0, 0, 20, 30), rectangle(10, 10, 40, 60)
    pixels = np.asarray(
        draw_masks(Image.new("RGB", (60, 40)), iter([below, above]), iter([1, 2]), strength=1.0)
    )
    assert (pixels[above] == class_colour(2)).all()
    assert (pixels[below & ~above] == class_colour(1)).all()


def test_a_picture_without_masks_stays_and_a_mask_of_another_size_is_refused() -> None:
    picture = Image.new("RGB", (60, 40), (10, 20, 30))
    assert (np.asarray(draw_masks(picture, [], [])) == (10, 20, 30)).all()
    with pytest.raises(ValueError, match=r"a mask \[60, 40\] is not of a picture"):
        draw_masks(picture, [np.ones((60, 40), bool)], [0])
    with pytest.raises(ValueError, match="shorter"):
        draw_masks(picture, [np.ones((40, 60), bool)], [])

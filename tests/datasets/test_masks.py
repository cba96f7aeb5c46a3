"""Maps of ids: colours and back, and the same way through a plan that the picture takes."""

import numpy as np
import pytest
import torch

from zoo.datasets.masks import cells, ids_of, masks_of, pixels_of, place_ids, present
from zoo.datasets.transforms import Geometry, apply_geometry


def blocks():
    """A map [60, 80] of 20-pixel blocks 1, 2, ..., and a picture whose red channel it is."""
    ids = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((20, 20), int)).astype(np.int32)
    return ids, torch.from_numpy((ids * 20).astype(np.uint8)).expand(3, -1, -1).contiguous()


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((0, 0, 60, 80), (60, 80)),
        Geometry((0, 0, 60, 80), (90, 120), True, False),
        Geometry((10.4, 17.8, 41.3, 50.2), (66, 80), False, True),
        Geometry((10.4, 17.8, 41.3, 50.2), (37, 45), True, True),
        Geometry((-20.0, -30.0, 120.0, 160.0), (120, 160), True, False),
        Geometry((30.0, 40.0, 60.0, 80.0), (60, 80), False, True),
    ],
)
def test_a_map_goes_where_its_picture_goes(geometry):
    ids, picture = blocks()
    pixels, _ = apply_geometry(picture, torch.zeros(0, 4), geometry, (60, 80))
    found = place_ids(ids, geometry, stride=1)
    assert found.shape == geometry.size
    shown = pixels[0].numpy().astype(int)
    expected = np.where(found == 0, 114, found * 20)  # grey beyond the edges
    # Where blocks meet, the picture is a mixture.
    same = np.ones(found.shape, bool)
    for step in (1, 2):
        for axis in (0, 1):
            for shift in (step, -step):
                same &= np.roll(found, shift, axis) == found
    assert same.sum() > 500
    assert np.abs(shown - expected)[same].max() <= 1
    assert len(np.unique(found)) > 1


@pytest.mark.parametrize("size", [(60, 80), (37, 45), (66, 81)])
def test_cells_are_the_pixels_at_their_centres(size):
    ids, _ = blocks()
    geometry = Geometry((3.0, 5.0, 50.0, 60.0), size, True, False)
    fine, coarse = place_ids(ids, geometry, stride=1), place_ids(ids, geometry)
    assert coarse.shape == cells(size)
    rows = np.minimum(np.arange(0, size[0], 4) + 2, size[0] - 1)
    columns = np.minimum(np.arange(0, size[1], 4) + 2, size[1] - 1)
    np.testing.assert_array_equal(coarse, fine[rows][:, columns])


def test_colours_and_back():
    ids = np.array([[0, 1, 256], [65536, 2**24 - 1, 3937500]], np.int32)
    assert pixels_of(ids)[0, 2].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(ids_of(pixels_of(ids)), ids)


def test_masks_and_what_is_present():
    ids, _ = blocks()
    masks = masks_of(ids, np.array([3, 99]))
    assert masks.dtype == torch.bool
    assert masks.flatten(1).sum(1).tolist() == [400, 0]
    assert present(ids).tolist() == list(range(1, 13))
    assert present(np.zeros((0, 4), np.int32)).tolist() == []

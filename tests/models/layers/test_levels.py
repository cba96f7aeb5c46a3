"""Feature levels as tokens: where they stand, what they know of their place and of padding."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.models.layers.backbone import Level, resize_mask
from zoo.models.layers.deformable_transformer import DeformableEncoder
from zoo.models.layers.levels import LevelProjection, flat_levels
from zoo.models.layers.position import sine_position

DIM = 64
SHAPES = [(12, 16), (6, 8), (3, 4)]
SIZES = [(96, 128), (50, 128), (96, 70)]  # of the images in pixels; the first fills the batch


def pixel_mask() -> Tensor:
    mask = torch.zeros(3, 96, 128, dtype=torch.bool)
    for image, (height, width) in enumerate(SIZES):
        mask[image, :height, :width] = True
    return mask


def backbone_levels(mask: Tensor | None, count: int = 2) -> list[Level]:
    whole = torch.ones(3, 96, 128, dtype=torch.bool) if mask is None else mask
    channels = (8, 10)
    return [
        (torch.randn(3, c, h, w, dtype=torch.float64), resize_mask(whole, h, w))
        for c, (h, w) in zip(channels[:count], SHAPES[:count], strict=True)
    ]


def projection(levels: int = 3) -> LevelProjection:
    module = LevelProjection((8, 10), DIM, levels).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1.0, 1.0)
    return module


def test_tokens_are_the_projected_maps_row_by_row() -> None:
    module, levels = projection(), backbone_levels(pixel_mask())
    flat = module(levels, pixel_mask())
    assert flat.shapes == SHAPES
    (fine, _), (coarse, _) = levels
    maps = []
    for number, (x, stride) in enumerate(((fine, 1), (coarse, 1), (coarse, 2))):
        conv, norm = module.projections[number]
        y = F.conv2d(x, conv.weight, conv.bias, stride, padding=stride - 1)
        y = y.unflatten(1, (32, -1))
        mean, var = y.mean((2, 3, 4), keepdim=True), y.var((2, 3, 4), keepdim=True, correction=0)
        y = ((y - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
        maps.append(y * norm.weight[:, None, None] + norm.bias[:, None, None])
    expected = torch.cat([m.flatten(2).mT for m in maps], 1)
    torch.testing.assert_close(flat.tokens, expected, rtol=0, atol=1e-10)


def test_a_level_after_the_added_one_is_made_of_it() -> None:
    module, levels = projection(4), backbone_levels(pixel_mask())
    maps = module.maps([x for x, _ in levels])
    torch.testing.assert_close(maps[3], module.projections[3](maps[2]), rtol=0, atol=0)
    assert [tuple(m.shape[2:]) for m in maps] == [*SHAPES, (2, 2)]


def test_positions_masks_and_ratios_of_a_padded_batch() -> None:
    module, mask = projection(), pixel_mask()
    flat = module(backbone_levels(mask), mask)
    assert flat.mask is not None
    start = 0
    for level, (h, w) in enumerate(SHAPES):
        cells = slice(start, start + h * w)
        own = resize_mask(mask, h, w)
        assert torch.equal(flat.mask[:, cells], own.flatten(1))
        sines = sine_position(own, DIM, offset=-0.5, dtype=torch.float64)
        expected = sines + module.level_embed[level]
        torch.testing.assert_close(flat.pos[:, cells], expected, rtol=0, atol=1e-12)
        for image in range(3):
            rows, columns = int(own[image].any(1).sum()), int(own[image].any(0).sum())
            ratio = torch.tensor([columns / w, rows / h], dtype=torch.float64)
            torch.testing.assert_close(flat.ratios[image, level], ratio)
            for y, x in ((0, 0), (1, 2), (h - 1, w - 1)):
                place = torch.tensor([(x + 0.5) / columns, (y + 0.5) / rows], dtype=torch.float64)
                found = flat.centres[image, start + y * w + x]
                torch.testing.assert_close(found, place)
        start += h * w


def test_references_are_scaled_to_every_padded_map() -> None:
    flat = projection()(backbone_levels(pixel_mask()), pixel_mask())
    for size in (2, 4):
        references = torch.rand(3, 5, size)
        found = flat.scaled(references)
        assert found.shape == (3, 5, 3, size)
        for level in range(3):
            wanted = references * flat.ratios[:, None, level].repeat(1, 1, size // 2).float()
            torch.testing.assert_close(found[:, :, level], wanted)


@pytest.mark.parametrize("given", [True, False])
def test_without_padding_images_share_what_is_alike(given: bool) -> None:
    module = projection()
    full = torch.ones(3, 96, 128, dtype=torch.bool)
    levels = backbone_levels(full)
    flat = module(levels, full if given else None)
    assert flat.mask is None
    assert flat.pos.shape == (1, flat.tokens.shape[1], DIM)
    assert flat.centres.shape == (1, flat.tokens.shape[1], 2)
    assert flat.scaled(torch.rand(3, 5, 4)).shape == (3, 5, 1, 4)
    # The same as what a batch with padding somewhere says of an image that has none.
    padded = module(levels, pixel_mask())
    for name in ("pos", "centres"):
        torch.testing.assert_close(getattr(flat, name)[0], getattr(padded, name)[0])


def test_begins_as_the_release() -> None:
    module = LevelProjection((8, 10), DIM, 3)
    for part in module.projections:
        assert not part[0].bias.any()
        bound = (6 / ((part[0].in_channels + DIM) * part[0].kernel_size[0] ** 2)) ** 0.5
        assert bound * 0.9 < part[0].weight.abs().max() <= bound
    assert 0.8 < module.level_embed.std() < 1.2


def test_misfits_are_refused() -> None:
    with pytest.raises(ZooError, match=r"gives 2 levels, more than the 1 of the model"):
        LevelProjection((8, 10), DIM, 1)
    with pytest.raises(ZooError, match=r"a width of 48 can't be normalised in 32 groups"):
        LevelProjection((8, 10), 48, 2)


def test_levels_without_positions() -> None:
    """As with positions of zero; the cells of one shape without padding are kept."""
    maps = [torch.randn(2, DIM, *shape) for shape in SHAPES]
    plain = flat_levels(maps, None)
    assert plain.pos is None
    placed = flat_levels(maps, None, torch.zeros(1, plain.tokens.shape[1], DIM))
    assert placed.centres.data_ptr() == plain.centres.data_ptr()
    encoder = DeformableEncoder(DIM, 4, 32, 0.0, num_layers=1, num_levels=3)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert torch.equal(encoder(plain), encoder(placed))
    masks = [torch.ones(2, *shape, dtype=torch.bool) for shape in SHAPES]
    masked = flat_levels(maps, masks)
    torch.testing.assert_close(masked.centres, plain.centres.expand(2, -1, -1))
    assert torch.equal(masked.ratios, torch.ones(2, 3, 2))
    torch.testing.assert_close(encoder(masked), encoder(plain))

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lib_dino.tiling.resample import resize, tile_operators

PAIRS = [
    ((100, 80), (50, 40)),
    ((37, 53), (74, 106)),
    ((40, 30), (61, 77)),
    ((1, 1), (8, 8)),
    ((1, 50), (3, 150)),
    ((50, 1), (150, 3)),
    ((100, 2), (50, 1)),
    ((64, 64), (64, 64)),
    ((9, 7), (1, 1)),
]


@pytest.mark.parametrize(("size", "target"), PAIRS)
def test_resize_is_pillows_bicubic(size, target, generator):
    # One-pixel-wide pictures are in the list because torch itself gets them wrong.
    image = torch.rand(2, 3, *size, generator=generator)
    plane = Image.fromarray(image[1, 2].numpy()).resize((target[1], target[0]), Image.Resampling.BICUBIC)
    assert_close(resize(image, target)[1, 2], torch.from_numpy(np.asarray(plane).copy()), atol=3e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "target"), [((60, 45), (150, 113)), ((40, 40), (80, 80)), ((33, 20), (33, 20)), ((5, 9), (40, 72))]
)
def test_operators_of_the_whole_picture_are_the_resize(size, target, generator):
    source = torch.rand(1, 3, *size, generator=generator)
    large = torch.rand(1, 3, *target, generator=generator)
    whole = tile_operators(size, target, slice(0, target[0]), slice(0, target[1]))
    assert_close(whole.down(large), resize(large, size), atol=1e-5, rtol=0)
    assert_close(whole.up(source), resize(source, target), atol=1e-5, rtol=0)
    assert_close(whole.crop(source), source)


@pytest.mark.parametrize("target", [(150, 113), (120, 90), (137, 101)])
def test_a_tile_alone_sees_exactly_what_the_whole_picture_shows(target, generator):
    large = torch.rand(1, 3, *target, generator=generator)
    small = resize(large, (60, 45))
    tile = tile_operators((60, 45), target, slice(30, 94), slice(21, 85))
    assert_close(tile.down(large[..., 30:94, 21:85]), tile.crop(small), atol=1e-5, rtol=0)
    assert min(tile.crop(small).shape[-2:]) > 64 * 45 / 113 - 6


def test_pulling_back_fades_out_at_inner_borders():
    tile = tile_operators((60, 60), (120, 120), slice(30, 94), slice(30, 94))
    pull = tile.up(torch.ones(1, 3, *tile.down(torch.zeros(1, 3, 64, 64)).shape[-2:]))
    assert_close(pull[..., 16:48, 16:48], torch.ones(1, 3, 32, 32))
    assert pull[..., 0, :].abs().max() < 0.2


def test_padding_beyond_the_result_is_ignored(generator):
    source = torch.rand(1, 3, 20, 20, generator=generator)
    tile = tile_operators((20, 20), (40, 40), slice(16, 48), slice(16, 48))
    image = torch.rand(1, 3, 32, 32, generator=generator)
    other = image.clone()
    other[..., 24:, :] = 0
    other[..., :, 24:] = 0
    assert_close(tile.down(image), tile.down(other))
    assert tile.up(tile.crop(source))[..., 24:, :].abs().max() == 0


def test_a_tile_smaller_than_a_source_pixel_knows_nothing():
    tile = tile_operators((20, 20), (160, 160), slice(40, 48), slice(40, 48))
    assert not tile.covers_source
    assert tile.up(tile.down(torch.rand(1, 3, 8, 8))).abs().max() == 0


def test_rows_and_columns_are_not_swapped(generator):
    source = torch.rand(1, 3, 12, 31, generator=generator)
    tile = tile_operators((12, 31), (24, 62), slice(0, 24), slice(30, 62))
    assert tile.crop(source).shape[-2:] == (12, 31 - tile.cols.first)
    assert tile.cols.first > 12

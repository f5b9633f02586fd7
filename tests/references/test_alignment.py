import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lib_dino.cli.parser import EXAMPLE
from lib_dino.pictures.picture import read_picture
from lib_dino.references.alignment import Alignment, align, blurred, sampled
from lib_dino.references.motion import Motion
from lib_dino.tiling.resample import resize


@pytest.fixture(scope="module")
def photo():
    return read_picture(EXAMPLE).pixels[..., 100:356, 100:356]


def whole(alignment, size):
    return alignment.places(size, slice(0, size[0]), slice(0, size[1]))


@pytest.mark.parametrize(("right", "down"), [(0.0, 0.0), (5.0, -3.0), (-6.5, 2.25)])
def test_a_motion_that_is_a_pixel_off_is_put_right(photo, right, down):
    source = resize(photo, (64, 64)).clamp(0, 1)
    motion = Motion(4 * torch.eye(2), torch.tensor([right, down]), 20)
    found = whole(align(source, photo, motion), (64, 64))
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    true = 4 * torch.stack([x, y], -1)
    off = (found[0] - true).norm(dim=-1)[8:-8, 8:-8]
    assert off.median() < 0.4, "a tenth of a source pixel"


def test_another_exposure_does_not_matter(photo):
    source = resize(photo, (64, 64)).clamp(0, 1)
    motion = Motion(4 * torch.eye(2), torch.tensor([4.0, 0.0]), 20)
    found = align(source, 0.5 * photo**1.5 + 0.1, motion)
    assert found.offset[:, 0, 8:-8, 8:-8].median() == pytest.approx(-4, abs=0.4)


def test_a_picture_of_one_colour_stays_where_the_motion_puts_it():
    flat = torch.full((1, 3, 40, 40), 0.5)
    found = align(flat, flat, Motion(torch.eye(2), torch.zeros(2), 20))
    assert float(found.offset.abs().max()) < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (16, 17)])
def test_small_pictures_are_aligned_too(size, generator):
    source = torch.rand(1, 3, *size, generator=generator)
    found = align(source, source, Motion(torch.eye(2), torch.zeros(2), 20))
    assert torch.isfinite(found.offset).all()


def test_places_of_a_part_are_the_part_of_all_places(generator):
    offset = torch.randn(1, 2, 10, 12, generator=generator)
    alignment = Alignment(Motion(2 * torch.eye(2), torch.ones(2), 20), offset, (10, 12))
    every = whole(alignment, (40, 48))
    part = alignment.places((40, 48), slice(7, 19), slice(30, 48))
    assert_close(part, every[:, 7:19, 30:48])


def test_sampling_in_place_gives_the_picture_back(photo):
    y, x = torch.meshgrid(torch.arange(256) + 0.5, torch.arange(256) + 0.5, indexing="ij")
    assert_close(sampled(photo, torch.stack([x, y], -1)[None], (256, 256)), photo, atol=1e-4, rtol=0)


def test_blurring_keeps_an_even_picture_up_to_its_edge():
    assert_close(blurred(torch.full((1, 2, 5, 9), 0.3), 3.0), torch.full((1, 2, 5, 9), 0.3))
    spot = F.pad(torch.ones(1, 1, 1, 1), (6, 6, 6, 6))
    assert float(blurred(spot, 1.5).sum()) == pytest.approx(1, abs=0.02)

import pytest
import torch

from lib_dino.measure.features import feature_grid
from lib_dino.measure.regions import Subject, busiest, is_flat, subject_map
from lib_dino.tiling.plan import Tile

PLAIN = torch.full((1, 3, 24, 32), 0.5)


@pytest.fixture
def grid(generator):
    """Features of a thing in the middle left of a 12 x 16 grid, and of what is around it."""
    thing, around = torch.randn(2, 8, generator=generator)
    out = around[:, None, None].expand(8, 12, 16).clone()
    out[:, 4:8, 3:8] = thing[:, None, None]
    return (out + 0.05 * torch.randn(out.shape, generator=generator))[None]


def test_the_subject_is_what_stands_out_from_the_borders(grid):
    expected = torch.zeros(12, 16)
    expected[4:8, 3:8] = 1
    assert torch.equal(subject_map(grid, PLAIN), expected)
    assert torch.equal(subject_map(-grid, PLAIN), expected)


def test_it_does_not_matter_how_the_picture_is_turned(grid):
    assert torch.equal(subject_map(grid.flip(-1), PLAIN), subject_map(grid, PLAIN).flip(-1))
    assert torch.equal(subject_map(grid.transpose(-1, -2), PLAIN), subject_map(grid, PLAIN).T)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (8, 12)])
def test_where_nothing_stands_out_everything_is_the_subject(shape, generator):
    noise = torch.randn(1, 64, *shape, generator=generator)
    assert subject_map(noise, PLAIN).min() == 1


def test_a_tile_shows_the_subject_by_its_share_of_it(grid):
    subject = Subject(grid, PLAIN, (120, 160))
    assert subject.share(Tile(40, 30, 80, 80)) == pytest.approx(1, abs=0.05)
    assert subject.share(Tile(0, 0, 120, 160)) == pytest.approx(20 / 192, abs=0.01)
    assert subject.share(Tile(0, 100, 120, 168)) == 0  # reaches beyond the picture
    assert subject.shown(Tile(0, 0, 64, 64))
    assert not subject.shown(Tile(0, 96, 64, 160))


@pytest.mark.parametrize("busy_below", [True, False])
def test_where_both_parts_touch_the_borders_the_one_with_detail_is_the_subject(busy_below, generator):
    sky, town = torch.randn(2, 8, generator=generator)
    grid = torch.cat([sky[:, None, None].expand(8, 6, 16), town[:, None, None].expand(8, 6, 16)], 1)[None]
    source = torch.full((1, 3, 48, 64), 0.5)
    rows = slice(24, 48) if busy_below else slice(0, 24)
    source[..., rows, :] = torch.rand(1, 3, 24, 64, generator=generator)
    found = subject_map(grid + 0.01 * torch.randn(grid.shape, generator=generator), source)
    assert (found[6:].min() == 1 and found[:6].max() == 0) if busy_below else (found[:6].min() == 1)


def test_noise_a_single_star_and_a_second_thing_are_not_flat(quick_dino, generator):
    sky = torch.linspace(0.3, 0.5, 48)[None, None, :, None].expand(1, 3, 48, 48)

    def flat(region):
        return is_flat(region, feature_grid(quick_dino, region))

    assert flat(sky)
    assert not flat((sky + 0.03 * torch.randn(sky.shape, generator=generator)).clamp(0, 1))
    star = sky.clone()
    star[..., 20:22, 20:22] = 0.9
    assert not flat(star)
    assert busiest(star) > 5 * busiest(sky)
    two = feature_grid(quick_dino, sky).clone()
    two[..., :8] *= -1  # no detail, but the network sees two things
    assert not is_flat(sky, two)

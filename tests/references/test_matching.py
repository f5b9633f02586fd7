import pytest
import torch

from benchmarks.references import View, by_network, by_pixels, second_view
from lib_dino.cli.parser import EXAMPLE
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.pictures.picture import read_picture
from lib_dino.references.matching import Matcher, matches
from lib_dino.tiling.resample import resize

SIDE = 224


@pytest.fixture(scope="module")
def dino():
    return load_dinov2()


@pytest.fixture(scope="module")
def photo():
    return read_picture(EXAMPLE).pixels


@pytest.fixture(scope="module")
def source(photo):
    """The middle of the photograph, made small by 4."""
    top = (photo.shape[-2] - SIDE) // 2
    return resize(photo[..., top : top + SIDE, top : top + SIDE], (SIDE // 4, SIDE // 4)).clamp(0, 1)


def test_patches_match_where_they_are_the_same_and_not_where_they_repeat(generator):
    grid = torch.randn(1, 8, 6, 7, generator=generator)
    at, found = matches(grid, grid.roll(2, -1))
    assert len(at) > 20
    moved = (found - at - torch.tensor([2.0, 0.0])).remainder(7)
    assert float(moved.abs().max()) == 0
    alike = grid[..., :1].expand(-1, -1, -1, 7)
    assert not len(matches(alike, alike)[0]), "patches alike cannot be told apart"


@pytest.mark.parametrize("view", [View(5, 1.0), View(20, 0.7), View(30, 1.4)], ids=lambda view: view.name)
def test_a_second_view_is_found_where_it_is(photo, source, dino, view):
    reference = second_view(photo, SIDE, view)
    found = Matcher(source, by_network(dino)).motions(reference)
    assert found[0].scale == pytest.approx(4 * view.scale, rel=0.1)
    # The view was cut 3 px to the right of the middle and 5 above.
    middle = found[0](torch.tensor([SIDE / 8, SIDE / 8]))
    away = (middle - reference.shape[-1] / 2) / view.scale
    assert away.norm() == pytest.approx(5.8, abs=4)


def test_another_picture_does_not_match(source, dino, generator):
    other = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12, generator=generator), size=(300, 300))
    assert Matcher(source, by_network(dino)).motions(other) == []


def test_features_find_what_pixels_do_not(photo, source, dino):
    reference = second_view(photo, SIDE, View(30, 0.5))
    assert Matcher(source, by_network(dino)).motions(reference)
    assert not Matcher(source, by_pixels).motions(reference)

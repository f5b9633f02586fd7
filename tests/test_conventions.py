"""The conventions at the head of `lib_dino/__init__.py`."""

import pytest
import torch

from lib_dino.sampling.consistency import back_project
from lib_dino.tiling.blend import Canvas
from lib_dino.tiling.plan import plan_tiles
from lib_dino.tiling.resample import resize


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_functions_give_back_their_inputs_dtype(dtype, generator):
    image = torch.rand(1, 3, 24, 32, generator=generator).to(dtype)
    assert resize(image, (12, 16)).dtype == dtype
    assert back_project(image, resize(image, (12, 16)), strength=1.0).dtype == dtype
    canvas = Canvas(image, plan_tiles((24, 32), tile_px=20, overlap_px=4), feather_px=4)
    assert canvas.result().dtype == dtype


def test_height_comes_before_width(generator):
    image = torch.rand(1, 3, 10, 40, generator=generator)
    assert resize(image, (5, 20)).shape == (1, 3, 5, 20)
    plan = plan_tiles((10, 40), tile_px=16, overlap_px=4)
    assert plan.tile == (10, 16)
    assert plan[1].y0 == 0 and plan[1].x0 > 0


def test_boxes_are_half_open():
    tile = plan_tiles((10, 40), tile_px=16, overlap_px=4)[0]
    assert len(range(40)[tile.cols]) == tile.size[1] == 16


def test_pictures_stay_in_their_range(generator):
    source = (torch.rand(1, 3, 12, 16, generator=generator) > 0.5).float()
    out = back_project(torch.rand(1, 3, 24, 32, generator=generator), source, strength=1.0)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_the_convention_list_is_where_readers_look():
    import lib_dino

    for promise in ("(B, 3, H, W)", "[0, 1]", "half-open", "Height comes before width"):
        assert promise in lib_dino.__doc__

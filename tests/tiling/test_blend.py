import pytest
import torch
from torch.testing import assert_close

from lib_dino.tiling.blend import Canvas, axis_windows
from lib_dino.tiling.plan import plan_tiles

CASES = [
    ((40, 56), 24, 8),
    ((24, 24), 24, 0),
    ((41, 73), 24, 16),
    ((8, 100), 24, 8),
    ((1, 1), 24, 8),
    ((90, 31), 30, 29),
]


@pytest.mark.parametrize("feather_px", [0, 5, 8, 64])
@pytest.mark.parametrize(("size", "tile_px", "overlap_px"), CASES)
def test_weights_sum_to_one_at_every_pixel(size, tile_px, overlap_px, feather_px):
    plan = plan_tiles(size, tile_px=tile_px, overlap_px=overlap_px)
    for side, tile, starts in zip(size, plan.tile, (plan.tops, plan.lefts), strict=True):
        total = torch.zeros(side, dtype=torch.float64)
        for start, window in zip(starts, axis_windows(starts, tile, feather_px=feather_px), strict=True):
            assert window.min() >= 0
            total[start : start + tile] += window
        assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(("size", "tile_px", "overlap_px"), CASES)
def test_tiles_cut_from_an_image_blend_back_to_it(size, tile_px, overlap_px, generator):
    image = torch.rand(1, 3, *size, generator=generator)
    plan = plan_tiles(size, tile_px=tile_px, overlap_px=overlap_px)
    canvas = Canvas(torch.rand(1, 3, *size, generator=generator), plan, feather_px=overlap_px)
    for tile in plan:
        canvas.add(tile, image[..., tile.rows, tile.cols])
    assert_close(canvas.result(), image)


def test_what_has_not_landed_shows_the_base(generator):
    base = torch.rand(1, 3, 40, 40, generator=generator)
    plan = plan_tiles((40, 40), tile_px=24, overlap_px=8)
    canvas = Canvas(base, plan, feather_px=8)
    canvas.add(plan[0], torch.ones(1, 3, 24, 24))
    result = canvas.result()
    assert_close(result[..., 24:, :], base[..., 24:, :])
    assert_close(result[..., :16, :16], torch.ones(1, 3, 16, 16))


def test_no_border_pixel_is_lost(generator):
    # The ancestor's ramp began at exactly zero: the outermost pixels of its result were black.
    plan = plan_tiles((96, 96), tile_px=40, overlap_px=12)
    canvas = Canvas(torch.zeros(1, 3, 96, 96), plan, feather_px=12)
    for tile in plan:
        canvas.add(tile, torch.ones(1, 3, *tile.size))
    assert_close(canvas.result(), torch.ones(1, 3, 96, 96))


def test_windows_mirror():
    windows = axis_windows([0, 24], 40, feather_px=8)
    assert_close(windows[0], windows[1].flip(0))


def test_textures_mix_over_the_asked_feather_only():
    left, right = axis_windows([0, 100], 300, feather_px=16)
    mixed = (left[100:] > 0) & (right[:200] > 0)
    assert int(mixed.sum()) == 16


def test_a_base_of_another_size_is_refused():
    with pytest.raises(ValueError, match="40"):
        Canvas(torch.zeros(1, 3, 40, 40), plan_tiles((40, 48), tile_px=24, overlap_px=8), feather_px=8)

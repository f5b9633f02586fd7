import time
from itertools import pairwise

import pytest

from lib_dino.errors import SettingsError
from lib_dino.tiling.plan import padded_size, plan_tiles

SIZES = [(1, 1), (1, 5000), (511, 512), (512, 513), (1024, 1024), (1440, 2560), (100, 2047), (777, 1999)]
TILES = [(64, 0), (64, 63), (512, 64), (512, 0), (768, 128), (640, 320)]


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize(("tile_px", "overlap_px"), TILES)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_cover_the_canvas_evenly_and_overlap_enough(size, tile_px, overlap_px, shrink):
    plan = plan_tiles(size, tile_px=tile_px, overlap_px=overlap_px, shrink=shrink)
    for side, tile, starts in zip(size, plan.tile, (plan.tops, plan.lefts), strict=True):
        assert tile <= min(side, tile_px)
        assert starts[0] == 0
        assert starts[-1] + tile == side
        gaps = [b - a for a, b in pairwise(starts)]
        assert all(0 < gap <= tile - overlap_px for gap in gaps)
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("tile_px", "overlap_px"), TILES)
@pytest.mark.parametrize("size", SIZES)
def test_no_tile_can_be_left_out(size, tile_px, overlap_px):
    plan = plan_tiles(size, tile_px=tile_px, overlap_px=overlap_px)
    for side, starts in zip(size, (plan.tops, plan.lefts), strict=True):
        fewer = len(starts) - 1
        reach = fewer * tile_px - (fewer - 1) * overlap_px if fewer else 0
        assert reach < side


@pytest.mark.parametrize("size", [(64, 64), (512, 1024), (1440, 2560), (8, 8), (1000, 1304)])
def test_a_latent_model_gets_whole_cells(size):
    plan = plan_tiles(size, tile_px=517, overlap_px=61, multiple_px=8)
    assert all(value % 8 == 0 for value in (*plan.tile, *plan.tops, *plan.lefts))
    assert plan[-1].y1 == size[0]
    assert plan[-1].x1 == size[1]
    for starts, tile in zip((plan.tops, plan.lefts), plan.tile, strict=True):
        assert all(a + tile - b >= 61 for a, b in pairwise(starts))


def test_shrinking_keeps_the_number_of_tiles_and_saves_pixels():
    wide = plan_tiles((1024, 1024), tile_px=640, overlap_px=64)
    small = plan_tiles((1024, 1024), tile_px=640, overlap_px=64, shrink=True)
    assert len(small) == len(wide) == 4
    assert small.tile == (544, 544)


def test_a_2048_picture_needs_no_repeated_edge_tiles():
    plan = plan_tiles((2048, 2048), tile_px=1024, overlap_px=0)
    assert len(plan) == 4
    assert len(set(plan)) == 4


def test_tiles_come_in_rows_from_the_top_left():
    plan = plan_tiles((200, 300), tile_px=100, overlap_px=0)
    assert [(t.y0, t.x0) for t in plan] == [(0, 0), (0, 100), (0, 200), (100, 0), (100, 100), (100, 200)]
    assert plan[-1].size == (100, 100)
    assert list(plan[1:3]) == [plan[1], plan[2]]
    with pytest.raises(IndexError):
        plan[6]


def test_a_hundred_thousand_pixels_a_side_plan_in_milliseconds():
    started = time.perf_counter()
    plan = plan_tiles((100_000, 100_000), tile_px=64, overlap_px=32)
    assert time.perf_counter() - started < 0.1
    assert len(plan) > 9_000_000
    assert (plan[-1].y1, plan[-1].x1) == (100_000, 100_000)


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(64, 64), (64, -1), (4, 0)])
def test_an_impossible_overlap_is_refused(tile_px, overlap_px):
    with pytest.raises(SettingsError, match=str(overlap_px)):
        plan_tiles(
            (100, 100) if tile_px > 4 else (104, 104),
            tile_px=tile_px,
            overlap_px=overlap_px,
            multiple_px=1 if tile_px > 4 else 8,
        )


def test_padding_goes_up_to_the_next_multiple():
    assert padded_size((720, 1281), 64) == (768, 1344)
    assert padded_size((64, 8), 8) == (64, 8)

"""Blending of any plan: weights sum to one, what goes in comes out, order does not matter."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_dino.tiling.blend import Canvas, axis_windows
from lib_dino.tiling.plan import plan_tiles


@st.composite
def plans(draw):
    tile = draw(st.integers(2, 40))
    size = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    plan = plan_tiles(size, tile_px=tile, overlap_px=draw(st.integers(0, tile - 1)), shrink=draw(st.booleans()))
    while len(plan) > 400:
        size = (size[0] + 1) // 2, (size[1] + 1) // 2
        plan = plan_tiles(size, tile_px=tile, overlap_px=draw(st.integers(0, tile - 1)))
    return plan, draw(st.integers(0, 60))


@given(plans())
def test_weights_are_between_nought_and_one_and_sum_to_one_at_every_pixel(case):
    plan, feather = case
    for starts, tile, side in zip((plan.tops, plan.lefts), plan.tile, plan.size, strict=True):
        windows = axis_windows(starts, tile, feather_px=feather)
        total = torch.zeros(side, dtype=torch.float64)
        for start, window in zip(starts, windows, strict=True):
            total[start : start + tile] += window
        assert torch.allclose(total, torch.ones_like(total), atol=1e-12, rtol=0)
        assert float(windows.min()) >= -1e-12 and float(windows.max()) <= 1 + 1e-12


@given(plans(), st.integers(0, 2**31))
def test_tiles_cut_from_a_picture_blend_back_to_it_in_any_order(case, seed):
    plan, feather = case
    generator = torch.Generator().manual_seed(seed)
    base, image = torch.rand(2, 1, 3, *plan.size, generator=generator)
    canvas = Canvas(base, plan, feather_px=feather)
    for tile in random.Random(seed).sample(list(plan), len(plan)):
        canvas.add(tile, image[..., tile.rows, tile.cols])
    assert torch.allclose(canvas.result(), image, atol=2e-6, rtol=0)


@given(plans(), st.integers(0, 2**31))
def test_what_no_tile_has_reached_is_the_base(case, seed):
    plan, feather = case
    base = torch.rand(1, 3, *plan.size, generator=torch.Generator().manual_seed(seed))
    canvas = Canvas(base, plan, feather_px=feather)
    [tile] = random.Random(seed).sample(list(plan), 1)
    canvas.add(tile, torch.ones(1, 3, *tile.size))
    changed = (canvas.result() != base).any(1)[0]
    changed[tile.rows, tile.cols] = False
    assert not changed.any()

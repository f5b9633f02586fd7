"""Plans of any canvas: nothing left out, nothing outside, nothing thinner than asked."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lib_dino.tiling.plan import padded_size, plan_tiles


@st.composite
def canvases(draw):
    multiple = draw(st.sampled_from([1, 8, 16, 64]))
    tile = draw(st.integers(multiple, 2000))
    overlap = draw(st.integers(0, tile - 1))
    sides = st.integers(1, 20_000 // multiple)
    size = draw(sides) * multiple, draw(sides) * multiple
    # What `run.plan` refuses later need not be laid out tile by tile here.
    step = max(1, (tile - overlap) // multiple) * multiple
    if size[0] // step * (size[1] // step) > 4096:
        size = min(size[0], 40 * step), min(size[1], 40 * step)
    return size, {"tile_px": tile, "overlap_px": overlap, "multiple_px": multiple, "shrink": draw(st.booleans())}


@given(canvases())
def test_tiles_cover_the_canvas_overlap_as_asked_and_stay_inside(canvas):
    size, how = canvas
    plan = plan_tiles(size, **how)
    multiple = how["multiple_px"]
    for starts, length, side in zip((plan.tops, plan.lefts), plan.tile, size, strict=True):
        assert starts[0] == 0 and starts[-1] + length == side and length <= max(how["tile_px"], multiple)
        assert all(start % multiple == 0 for start in starts) and length % multiple == 0
        # One step of the multiple is the least by which neighbours can be apart.
        least = min(how["overlap_px"], length - multiple)
        assert all(a < b and a + length - b >= least for a, b in pairwise(starts))
    assert len(plan) == len(plan.tops) * len(plan.lefts) == len(set(plan))
    assert plan == plan_tiles(size, **how)


@given(canvases())
def test_no_plan_has_a_tile_too_many(canvas):
    size, how = canvas
    plan = plan_tiles(size, **how)
    tile = how["tile_px"] // how["multiple_px"] * how["multiple_px"]
    overlap = min(-(-how["overlap_px"] // how["multiple_px"]) * how["multiple_px"], tile - how["multiple_px"])
    for starts, side in zip((plan.tops, plan.lefts), size, strict=True):
        fewer = len(starts) - 1
        assert fewer == 0 or fewer * tile - (fewer - 1) * overlap < side


@given(st.tuples(st.integers(1, 10**5), st.integers(1, 10**5)), st.sampled_from([1, 8, 16, 64]))
def test_padding_adds_less_than_one_multiple(size, multiple):
    padded = padded_size(size, multiple)
    assert all(p % multiple == 0 and 0 <= p - side < multiple for p, side in zip(padded, size, strict=True))

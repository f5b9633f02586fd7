import pytest
import torch

from lib_dino.run.dial import DENOISES, choose, probes, ways
from lib_dino.run.painter import Painting
from lib_dino.run.run import Run
from lib_dino.settings import Settings
from lib_dino.tiling.plan import Tile
from lib_dino.tiling.resample import resize

FIRST = Painting(0, 1, 0.8, 0.5, 0.3)


def test_the_ways_start_as_asked_and_become_more_careful():
    found = ways(FIRST, guides=True)
    assert found[0] == FIRST
    assert [p.denoise for p in found[1:]] == [0.8 * part for part in DENOISES]
    assert {p.strength for p in found[1:]} == {1.0}
    assert len(ways(FIRST, guides=False)) == len(DENOISES)


def test_the_first_way_within_the_allowed_drift_is_taken_and_no_more_are_tried():
    tried = []

    def worst(painting):
        tried.append(painting)
        return painting.denoise

    choice = choose(ways(FIRST, guides=False), worst, allowed=0.65)
    assert choice.painting.denoise == pytest.approx(0.6)
    assert choice.within and len(tried) == 2
    hopeless = choose(ways(FIRST, guides=False), worst, allowed=0.01)
    assert hopeless.painting.denoise == pytest.approx(0.2) and not hopeless.within
    assert "no probe could be kept within it" in hopeless.note(0.01, None)
    assert choose(ways(FIRST, guides=False), lambda p: None, allowed=0.1) is None


def test_probes_are_the_flattest_a_typical_and_the_busiest_tile():
    tiles = [Tile(0, 8 * i, 8, 8 * i + 8) for i in range(5)]
    assert probes(tiles, lambda t: (t.x0 * 3) % 40) == [tiles[3], tiles[4], tiles[0]]
    assert probes(tiles[:1], lambda t: 0.0) == tiles[:1]
    assert probes([], lambda t: 0.0) == []


class Painter:
    """Turns tiles inside out, as far as the denoise lets it."""

    name, tile_px, multiple_px, channels, factor, fits_any_tile = "painter", 64, 8, 4, 8, False

    def __init__(self):
        self.denoises = []

    def calls(self, denoise, steps):
        return 1

    def __call__(self, tiles, noise, *, denoise, steps, correct, called):
        self.denoises.append(denoise)
        called()
        return torch.lerp(tiles, 1 - tiles, 0.25 * denoise)


def test_a_run_takes_the_most_denoise_that_the_allowed_drift_lets_it(quick_dino, generator):
    source = (0.2 + 0.6 * resize(torch.rand(1, 3, 10, 14, generator=generator), (60, 84))).clamp(0, 1)

    def run(allowed):
        given = {"seed": 1, "overlap": 16, "denoise": 0.9, "consistency": 0.0, "dino_enabled": False}
        seen, model = [], Painter()
        task = Run(source, (120, 168), Settings(**given, allowed_drift=allowed), model, quick_dino, measure=True)
        task.progress = seen.append
        report = task.report(task.render(), 0.0)
        assert seen[-1].call == seen[-1].calls == len(model.denoises)
        assert seen[-1].tile == len(task.plan)
        return report, model.denoises[-1], max(tile.drift_peak for tile in report.tiles)

    free, strict = run(1.0), run(0.02)
    assert free[1] == pytest.approx(0.9) and 0 < strict[1] < 0.9
    assert strict[2] < free[2]
    assert all(tile.denoise == pytest.approx(strict[1]) for tile in strict[0].tiles)
    [note] = [note for note in strict[0].notes if "Allowed drift 0.02" in note]
    assert f"the finished picture {strict[2]:.3g}" in note
    dial = strict[0].dial
    assert (dial["asked"], dial["denoise"], dial["achieved"]) == (0.02, strict[1], strict[2])
    assert 0 < dial["probes"] <= 0.02 and dial["within"] is (strict[2] <= 0.02)
    assert free[0].dial["within"] is True

import dataclasses

import pytest
import torch
from made import ran
from torch.testing import assert_close

import lib_dino.run.prepare
from lib_dino.errors import SettingsError
from lib_dino.measure.calibration import Calibration, Thresholds
from lib_dino.measure.drift import DriftMeter, TileDrift
from lib_dino.measure.quality import detail_energy
from lib_dino.run.plan import plan_job
from lib_dino.run.prepare import prepare
from lib_dino.run.progress import ProgressCounter
from lib_dino.run.retry import Attempt, AttemptSettings, judge, towards_alarm
from lib_dino.run.tiles import Conditions, TileSampler
from lib_dino.sampling.correction import PixelCodec
from lib_dino.settings import Settings
from lib_dino.tiling.blend import Canvas
from lib_dino.tiling.plan import Tile
from lib_dino.tiling.resample import resize


@pytest.fixture(scope="module")
def dino(quick_dino):
    return quick_dino


@pytest.fixture
def source(generator):
    return (0.2 + 0.6 * resize(torch.rand(1, 3, 10, 14, generator=generator), (60, 84))).clamp(0, 1)


class Inventor:
    """Sharpens every tile; in some paintings, counted over the run, it turns the tile's middle inside out."""

    name, tile_px, multiple_px, channels, factor, fits_any_tile = "inventor", 96, 8, 4, 8, False

    def __init__(self, invents=(), blurs=(), stops=None):
        self.invents, self.blurs, self.stops = set(invents), set(blurs), stops
        self.painted = 0
        self.batches, self.noises, self.denoises = [], [], []

    def calls(self, denoise, steps):
        return 2

    def render(self, batch, corrector, on_step):
        self.batches.append(len(batch.images))
        self.noises.append(batch.noise)
        self.denoises.append(batch.denoise)
        if self.stops == len(self.batches) - 1:
            return None
        images = torch.cat([self.paint(tile[None]) for tile in batch.images])
        for _ in range(2):
            images = (corrector(2 * images - 1, 0.5, PixelCodec()) + 1) / 2
            on_step()
        return images.clamp(0, 1)

    def paint(self, tile):
        number, self.painted = self.painted, self.painted + 1
        if number in self.blurs:
            return resize(resize(tile, (12, 12)), (96, 96)).clamp(0, 1)
        ripple = 0.05 * torch.cos(torch.pi * torch.arange(96.0))
        sharp = (tile + ripple[:, None] * ripple[None, :] * 20).clamp(0, 1)
        if number in self.invents:
            sharp[..., 24:72, 24:72] = 1 - sharp[..., 24:72, 24:72]
        return sharp


def run(source, dino, model, **settings):
    given = {"seed": 1, "overlap": 16, "consistency": 0.0, "dino_enabled": False, "repair_tries": 2, "max_drift": 0.0,
             "texture": 0.0, "clean_source": 0.0}  # fmt: skip
    return ran(source, Settings(**{**given, **settings}), model, dino)


def test_an_invention_is_painted_again_and_the_other_tiles_stay_as_they_are(source, dino):
    plain = run(source, dino, Inventor(), repair_tries=0).image
    model = Inventor(invents=[1])
    task = run(source, dino, model)
    image, report = task.image, task.report()
    assert [tile.tries for tile in report.tiles] == [0, 1, 0, 0]
    assert [tile.kept for tile in report.tiles] == [0, 1, 0, 0]
    assert report.tiles[1].drift_first > 3 * report.tiles[1].drift
    assert [tile.seed for tile in report.tiles] == [1, 2, 1, 1]
    assert torch.equal(image[..., :, :72], plain[..., :, :72])
    assert any("Sampled 1 tile again" in note for note in report.notes)


def test_only_the_failed_tiles_of_a_batch_are_redone(source, dino):
    model = Inventor(invents=[1, 2])
    run(source, dino, model, tile_batch_size=4)
    assert model.batches == [4, 2]


def test_nothing_is_redone_or_changed_where_nothing_is_wrong(source, dino):
    model = Inventor()
    image = run(source, dino, model).image
    assert model.batches == [1] * 4
    assert torch.equal(image, run(source, dino, Inventor(), repair_tries=0).image)


def test_a_tile_is_redone_at_most_so_often_and_the_least_drift_is_kept(source, dino):
    model = Inventor(invents=range(100))
    task = run(source, dino, model, repair_tries=3)
    report = task.report()
    assert all(1 <= tile.tries <= 3 for tile in report.tiles)
    assert len(model.batches) == 4 + sum(tile.tries for tile in report.tiles)
    # Redone tiles keep ever more to the source, so that even these inventions fade.
    assert all(tile.kept > 0 and tile.drift < tile.drift_first for tile in report.tiles)


def test_blur_never_wins(source, dino):
    # The first tile invents; painted again it is blurred: perfectly faithful, and no detail left.
    model = Inventor(invents=[0], blurs=[1, 2])
    task = run(source, dino, model)
    report = task.report()
    assert [tile.tries for tile in report.tiles] == [2, 0, 0, 0]
    assert report.tiles[0].kept == 0


def test_a_redone_tile_keeps_the_detail(source, dino):
    first = run(source, dino, Inventor(invents=[0]), repair_tries=0).image
    redone = run(source, dino, Inventor(invents=[0])).image
    assert detail_energy(redone[..., :72, :72]) > 0.8 * detail_energy(first[..., :72, :72])


def test_each_try_is_closer_to_the_source_than_the_one_before():
    tries = [AttemptSettings(0, 2**32 - 1, 0.5, 0.5, 0.0)]
    for _ in range(3):
        tries.append(tries[-1].next())
    assert [p.number for p in tries] == [0, 1, 2, 3]
    assert [p.seed for p in tries] == [2**32 - 1, 0, 1, 2]
    for name, rising in (("denoise", False), ("consistency", True)):
        values = [getattr(p, name) for p in tries]
        assert values == sorted(values, reverse=not rising) and values[0] != values[-1]
    assert {p.strength for p in tries} == {0.5}


def test_a_redone_tile_starts_from_the_neighbours_noise_at_its_border_and_its_own_inside(source):
    model = Inventor()
    settings = Settings(seed=1, dino_enabled=False, tile_size=96, overlap=48, clean_source=0.0)
    job = prepare(source, plan_job(settings, (60, 84), model), settings)
    start = job.padded(job.start)
    canvas = Canvas(start, job.plan.tiles, feather_px=48)
    sampler = TileSampler(job, model, canvas, start, Conditions())
    first = AttemptSettings(0, 1, 0.5, 0.0, 0.0)
    for how in (first, sampler.next_attempt(first)):
        sampler.sample([job.plan.tiles[0]], how, ProgressCounter(1, 2, None))
    old, new = model.noises
    assert_close(new[..., -1:, :], old[..., -1:, :], atol=0.1, rtol=0)
    assert_close(new[..., :, -1:], old[..., :, -1:], atol=0.1, rtol=0)
    inner_old, inner_new = old[..., :6, :6].flatten(), new[..., :6, :6].flatten()
    assert abs(float(torch.corrcoef(torch.stack([inner_old, inner_new]))[0, 1])) < 0.35
    assert float(new.std()) == pytest.approx(1, abs=0.1)


def test_a_denoise_the_model_cannot_work_with_is_not_tried(source, dino):
    class Picky(Inventor):
        def calls(self, denoise, steps):
            if denoise < 0.2:
                raise SettingsError("too few steps", field="steps", value=steps, limit="more")
            return 2

    model = Picky(invents=range(100))
    run(source, dino, model, denoise=0.2, repair_tries=3)
    assert set(model.denoises) == {0.2}


def test_stopping_in_the_middle_of_a_repair_keeps_the_first_painting(source, dino):
    model = Inventor(invents=[0], stops=1)
    task = run(source, dino, model)
    image = task.image
    assert task.finished.sampled.stopped and model.batches == [1, 1]
    assert (image[..., 40, 40] != task.job.start[..., 40, 40]).any()
    assert torch.equal(image[..., -1, -1], task.job.start[..., -1, -1])


def test_progress_says_how_many_tiles_were_redone_and_ends_full(source, dino):
    seen = run(source, dino, Inventor(invents=[0, 4])).steps
    assert [p.call for p in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].call == seen[-1].calls and seen[-1].tile == seen[-1].tiles == 4
    assert [p.redone for p in seen] == sorted(p.redone for p in seen)
    assert seen[-1].redone == 2


def test_what_the_final_consistency_would_only_hide_is_painted_again(source, dino):
    class Rough(PixelCodec):
        def consistency(self, number, pull, strength):
            return lambda clean, _: clean

    class Host(Inventor):
        def render(self, batch, corrector, on_step):
            return super().render(batch, lambda x, ratio, codec: corrector(x, ratio, Rough()), on_step)

    found = []
    for tries in (0, 2):
        task = run(source, dino, Host(invents=[0]), repair_tries=tries, consistency=1.0)
        found.append((task.image, task.report().tiles[0]))
    (ghost, first), (redone, tile) = found
    assert first.drift < 0.02 and (tile.tries, tile.kept) == (1, 1)
    clean = run(source, dino, Host(), repair_tries=0, consistency=1.0).image
    middle = (..., slice(30, 66), slice(30, 66))
    assert (redone - clean)[middle].abs().mean() < 0.3 * (ghost - clean)[middle].abs().mean()


def drift_of(suspicion=None, alarm=None, patch=0.0, invented=0.5):
    patches = torch.full((4, 4), patch)
    told = None if suspicion is None else torch.full((8, 8), suspicion)
    limits = Thresholds(0.1, invented, alarm, measured=True)
    whole = slice(0, 56)
    return TileDrift(patches, torch.ones(4, 4), patch, patch, 0.0, limits, whole, whole, edit_map=told)


@pytest.mark.parametrize("alarm", [0.3, 0.9, 0.9996])
def test_a_tile_fails_by_suspicion_exactly_above_the_alarm_and_more_the_surer_it_is(alarm):
    values = [0.0, 0.5 * alarm, alarm - 1e-4 * (1 - alarm), alarm + 1e-1 * (1 - alarm), 1.0]
    found = [towards_alarm(drift_of(value, alarm)) for value in values]
    assert found == sorted(found) and found[0] == 0
    assert [value > 1 for value in found] == [drift_of(value, alarm).alarm for value in values]
    assert found[-1] < float("inf")
    assert towards_alarm(drift_of(0.9, None)) == towards_alarm(drift_of(None, 0.9)) == 0


def test_suspicion_alone_fails_a_tile_and_drift_is_held_against_the_calibrated_thresholds():
    first = Attempt(Tile(0, 0, 56, 56), AttemptSettings(0, 1, 0.5, 0.5, 1.0), torch.rand(1, 3, 56, 56), 0.0, 0.0)
    consistent = first.image.clone()

    def failing(before, after):
        return judge(first, consistent, 0.1, lambda image, detail: after if detail else before).failing

    assert failing(drift_of(), drift_of(0.95, 0.9)) > 1 > failing(drift_of(), drift_of(0.85, 0.9))
    assert failing(drift_of(patch=0.2, invented=0.15), drift_of()) == pytest.approx(0.2 / 0.15)
    assert failing(drift_of(patch=0.2, invented=0.5), drift_of()) == pytest.approx(0.4)
    assert failing(drift_of(), drift_of(patch=0.15)) == pytest.approx(1.5)


def test_a_run_repairs_by_the_thresholds_and_the_head_that_belong_to_its_network(source, dino, monkeypatch):
    limits = Thresholds(0.1, 0.5, 0.9, measured=True)
    monkeypatch.setattr(lib_dino.run.prepare, "load_calibration", lambda network: Calibration(limits))
    seen, plain = [], DriftMeter.tile

    def tile(self, made, operators, *, detail=False):
        found = plain(self, made, operators)
        if not detail:
            return found
        seen.append(len(seen))  # the third tile's first painting is suspicious, whatever drift says
        return dataclasses.replace(found, edit_map=torch.full((4, 4), 0.95 if seen[-1] == 2 else 0.1))

    monkeypatch.setattr(DriftMeter, "tile", tile)
    task = run(source, dino, Inventor())
    tiles = task.report(measures=False).tiles
    assert [each.tries for each in tiles] == [0, 0, 1, 0]
    assert [each.kept for each in tiles] == [0, 0, 1, 0]
    assert "Sampled 1 tile again: too much drift, or something that looks invented." in task.events

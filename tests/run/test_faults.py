"""Tiles of which the model makes no picture."""

import contextlib
import dataclasses
import json
import math

import pytest
import torch
from made import FakeModel, ran

from lib_dino.memory import is_out_of_memory
from lib_dino.run import outcome
from lib_dino.run.faults import is_valid
from lib_dino.run.finish import Finished
from lib_dino.run.tiles import PATIENCE
from lib_dino.sampling import correction
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize


@pytest.fixture
def source(generator):
    return (0.2 + 0.6 * torch.rand(1, 3, 40, 61, generator=generator)).clamp(0, 1)


class Faulty(FakeModel):
    """Gives tiles back, but for some, counted over the run: they have `fault` in one pixel; 0 makes them black."""

    def __init__(self, faults, fault=math.nan):
        super().__init__(self.answer)
        self.faults, self.fault, self.seen = set(faults), fault, 0
        self.noises = []

    def answer(self, tiles, noise):
        out = tiles.clone()
        self.noises.append(noise)
        for tile in out:
            if self.seen in self.faults:
                if self.fault == 0:
                    tile.zero_()
                else:
                    tile[:, 5, 5] = self.fault
            self.seen += 1
        return out


def run(source, model, dino=None, **settings):
    given = {"seed": 1, "overlap": 16, "consistency": 0.0, "dino_enabled": False, "clean_source": 0.0}
    return ran(source, Settings(**{**given, **settings}), model, dino)


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf, 0])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_faulty_tile_is_sampled_again_with_other_noise_and_the_picture_is_whole(source, fault, batch):
    model = Faulty({1}, fault)
    task = run(source, model, tile_batch_size=batch)
    sound = run(source, Faulty(()), tile_batch_size=batch)
    assert torch.equal(task.image, sound.image)
    assert model.seen == len(task.plan) + 1
    assert not torch.equal(model.noises[-1], model.noises[0][-1:])
    assert task.finished.sampled.faulty == 0 and task.finished.sampled.redone == 0
    assert sum(tile.tries for tile in task.report().tiles) == 1


def test_consistency_does_not_carry_a_fault_into_other_tiles(source):
    task, sound = (run(source, Faulty(faults), consistency=1.0) for faults in ({0, 1}, ()))
    assert torch.isfinite(task.image).all()
    # The final pass reaches a few pixels over the border of the one tile that lacks its corrections.
    assert torch.allclose(task.image[..., 72:], sound.image[..., 72:], atol=1e-6)


@pytest.mark.parametrize("fault", [math.nan, 0])
def test_a_tile_that_stays_faulty_keeps_the_enlarged_source_and_the_fault_stays_in_it(source, fault):
    task = run(source, Faulty({0, 1}, fault))
    sound = run(source, Faulty(()))
    assert torch.isfinite(task.image).all()
    assert torch.allclose(task.image, sound.image, atol=1e-6)  # this model gives tiles back as they came
    report = task.report()
    assert [tile.valid for tile in report.tiles] == [False] + [True] * (len(task.plan) - 1)
    assert "1 tile keeps the enlarged source: no valid picture came, or no memory was left." in report.notes
    assert "NaN" not in json.dumps(report.to_dict())


def test_where_every_tile_is_faulty_the_result_is_the_enlarged_source(source):
    task = run(source, Faulty(range(1000)))
    assert torch.allclose(task.image, resize(source, (80, 122)).clamp(0, 1), atol=1e-6)
    assert task.finished.sampled.faulty == len(task.plan)
    assert any(note.startswith(f"{len(task.plan)} tiles keep the enlarged") for note in task.report().notes)


@pytest.mark.parametrize("faults", [{0}, {0, 1}, {0, 1, 2}, range(1000)])
def test_retries_for_drift_bear_faults(source, quick_dino, faults):
    task = run(source, Faulty(faults), quick_dino, repair_tries=2)
    assert torch.isfinite(task.image).all()
    report = task.report()
    assert report.tiles[0].valid is (len(faults) < 4)
    assert all(tile.drift is not None and math.isfinite(tile.drift) for tile in report.tiles)


def test_stopping_while_a_fault_is_mended_keeps_the_enlarged_source_there(source):
    model = Faulty({0})
    model.stop_after = 1
    task = run(source, model)
    assert task.finished.sampled.stopped and torch.isfinite(task.image).all()


def test_a_dark_tile_may_stay_dark():
    dark, black = torch.full((1, 3, 8, 8), 0.02), torch.zeros(1, 3, 8, 8)
    assert is_valid(black, dark)
    assert not is_valid(black, torch.full((1, 3, 8, 8), 0.5))
    assert is_valid(torch.full((1, 3, 8, 8), 0.02), torch.full((1, 3, 8, 8), 0.5))


def test_a_tile_of_values_that_exploded_is_no_picture(generator):
    burnt = (torch.rand(1, 3, 8, 8, generator=generator) > 0.5).float()
    assert not is_valid(burnt, torch.full((1, 3, 8, 8), 0.5))
    assert is_valid(burnt, burnt)  # pixel art may stay what it is
    assert is_valid((0.7 * burnt).clamp(0.1, 1), torch.full((1, 3, 8, 8), 0.5))


class Narrow(Faulty):
    """Has memory for so many tiles at once."""

    def __init__(self, most, error, faults=()):
        super().__init__(faults)
        self.most, self.error = most, error

    def answer(self, tiles, noise):
        if len(tiles) > self.most:
            raise self.error
        return super().answer(tiles, noise)


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
]  # fmt: skip


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("most", [1, 2])
def test_a_batch_that_does_not_fit_into_memory_is_halved_and_the_picture_is_the_same(source, error, most):
    narrow = run(source, Narrow(most, error), tile_batch_size=4)
    assert torch.equal(narrow.image, run(source, Faulty(()), tile_batch_size=4).image)
    assert [shape[0] for shape in narrow.model.batches][:3] == ([4, 2, 1] if most == 1 else [4, 2, 2])
    assert any("smaller batches" in text for text in narrow.events)
    assert narrow.steps[-1].tile == len(narrow.plan)


def test_faults_in_a_halved_batch_are_still_seen(source):
    task = run(source, Narrow(1, MemoryError(), faults={1}), tile_batch_size=4)
    assert torch.equal(task.image, run(source, Faulty(())).image)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("shape '[2]' is invalid"), KeyError("memory")])
def test_what_halving_cannot_help_is_raised(source, error):
    with pytest.raises(type(error)):
        run(source, Narrow(0, error), tile_batch_size=4)


class Small(FakeModel):
    """Has memory for tiles of so many pixels, and gives them back a little changed."""

    tile_px = 256

    def __init__(self, most_px, fits_first=0):
        super().__init__(self.answer)
        self.most_px, self.fits_first = most_px, fits_first

    def answer(self, tiles, noise):
        if tiles.shape[-1] > self.most_px and len(self.batches) > self.fits_first:
            raise MemoryError
        return 0.9 * tiles + 0.02 * noise


@pytest.fixture
def larger_source(generator):
    return (0.2 + 0.6 * torch.rand(1, 3, 150, 170, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("most_px", [140, 100])
def test_a_tile_that_does_not_fit_into_memory_is_sampled_in_parts(larger_source, most_px):
    whole, parts = run(larger_source, Small(256)), run(larger_source, Small(most_px))
    assert min(shape[-1] for shape in parts.model.batches) <= most_px
    # this model treats every pixel alone, and parts start from the tile's noise: blended they are the tile
    assert torch.allclose(parts.image, whole.image, atol=1e-5)
    assert parts.finished.sampled.faulty == 0
    assert any("in smaller batches or parts" in text for text in parts.events)
    assert parts.steps[-1].tile == len(parts.plan)


def test_parts_of_a_tile_that_is_sampled_anew_share_its_noise(larger_source, quick_dino):
    given = {"repair_tries": 2, "max_drift": 0.01, "consistency": 1.0}
    whole, parts = (run(larger_source, Small(most), quick_dino, **given) for most in (256, 140))
    assert whole.finished.sampled.redone == parts.finished.sampled.redone > 0
    assert torch.allclose(parts.image, whole.image, atol=0.02)


def test_where_not_even_the_smallest_part_fits_the_tile_keeps_the_enlarged_source(larger_source):
    task = run(larger_source, Small(50, fits_first=1))
    assert task.finished.sampled.faulty == len(task.plan) - 1
    assert any("no memory was left" in text for text in task.events)


def test_where_nothing_ever_fitted_the_error_is_raised(larger_source):
    with pytest.raises(MemoryError, match="not one tile fitted"):
        run(larger_source, Small(50))


def test_a_run_with_too_little_memory_for_every_tile_ends_early(larger_source):
    model = Small(50)
    with pytest.raises(MemoryError):
        run(larger_source, model, tile_size=64)
    assert len(model.batches) == 2 * PATIENCE  # each tile twice


def test_a_first_tile_that_memory_is_short_for_costs_no_other(larger_source):
    class FirstShort(Small):
        def answer(self, tiles, noise):
            if len(self.batches) <= 6:  # whole, its first part, the first part of that, and so once more
                raise MemoryError
            return super().answer(tiles, noise)

    task = run(larger_source, FirstShort(256))
    assert task.finished.sampled.faulty == 1


def test_memory_is_known_by_its_cause_too():
    wrapped = RuntimeError("DINO guidance stopped")
    wrapped.__cause__ = OUT_OF_MEMORY[0]
    assert is_out_of_memory(wrapped) and all(map(is_out_of_memory, OUT_OF_MEMORY))
    assert not is_out_of_memory(RuntimeError("the memory format is wrong"))


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_correction_that_is_no_number_is_left_out_and_said(source, monkeypatch, fault):
    pulls, true = [], correction.tile_pull

    def pull(picture, *args, **kwargs):
        pulls.append(1)
        found = true(picture, *args, **kwargs)
        return torch.full_like(found, fault) if len(pulls) == 2 else found

    monkeypatch.setattr(correction, "tile_pull", pull)
    task = run(source, Faulty(()), consistency=1.0)
    assert torch.isfinite(task.image).all() and task.finished.sampled.faulty == 0
    assert [each.best.dropped for each in task.finished.sampled.candidates][:3] == [1, 0, 0]
    assert any("1 tile a correction gave no valid numbers" in text for text in task.events)


def test_a_correction_is_not_blamed_for_the_models_own_fault(source):
    task = run(source, Faulty({0, 1}), consistency=1.0)
    assert not any("correction" in text for text in task.events)


class Half(Faulty):
    """Has faults in half precision alone, and in float32 with some noises too."""

    def __init__(self, faults, *, fits=True, precise_faults=()):
        super().__init__(faults)
        self.precise, self.fits, self.precise_faults, self.tried = False, fits, set(precise_faults), 0

    def computes_in_half(self):
        return True

    @contextlib.contextmanager
    def in_float32(self):
        self.precise = self.fits
        try:
            yield self.fits
        finally:
            self.precise = False

    def answer(self, tiles, noise):
        out = super().answer(tiles, noise)
        if self.precise:
            out = torch.where(out.isfinite(), out, tiles)
            if self.tried in self.precise_faults:
                out[0, 0, 0, 0] = math.nan
            self.tried += 1
        return out


def test_a_faulty_tile_is_redone_in_float32_with_the_same_noise_first(source):
    model = Half({1})
    task = run(source, model)
    assert torch.equal(model.noises[2], model.noises[1]) and not model.precise
    assert [each.best.settings.precise for each in task.finished.sampled.candidates][:3] == [False, True, False]
    assert "1 tile gave no valid numbers in half precision and was redone in float32." in task.events
    assert task.finished.sampled.faulty == 0 and len(model.noises) == len(task.plan) + 1


@pytest.mark.parametrize("short", [False, "to enter", "to sample"])
def test_then_with_another_seed_then_the_enlarged_source_is_kept(source, short):
    model = Half({1, 2}, fits=short != "to enter", precise_faults=() if short else {0})
    if short == "to sample":
        render = model.render

        def out_of_memory(*args):
            if model.precise:
                raise MemoryError
            return render(*args)

        model.render = out_of_memory
    task = run(source, model)
    [numbers] = [[a.settings.number for a in c.attempts] for c in task.finished.sampled.candidates if c.retries]
    assert numbers == [0, 1, 2]
    assert task.finished.sampled.faulty == (1 if short else 0)
    assert not any("float32" in text for text in task.events)


def test_the_finished_picture_is_checked_once_more(source, monkeypatch):
    def fault(job, image, sampled, saved):
        image = image.clone()
        image[0, 1, 7, 8:10] = math.nan
        image[0, 2, 7, 8] = math.inf
        return Finished(image, sampled)

    sound = run(source, Faulty(()))
    monkeypatch.setattr(outcome, "finish", fault)
    task = run(source, Faulty(()))
    assert torch.isfinite(task.image).all() and task.finished.mended == 2
    assert torch.equal(task.image[..., 8:, :], sound.image[..., 8:, :])
    assert torch.equal(task.image[0, :, 7, 8:10], task.job.start[0, :, 7, 8:10])
    assert any("2 pixels of the finished picture" in text for text in task.report().notes)


def test_a_finished_picture_that_is_black_is_not_called_done(source, monkeypatch):
    monkeypatch.setattr(
        outcome, "finish", lambda job, image, sampled, saved: Finished(torch.zeros_like(image), sampled)
    )
    task = run(source, Faulty(()))
    assert torch.equal(task.image, task.job.start)
    assert task.finished.mended == 80 * 122


def test_a_report_is_valid_json_whatever_was_measured(source, tmp_path):
    report = dataclasses.replace(
        run(source, Faulty(())).report(), source_psnr=math.inf, detail=math.nan, source_noise=-math.inf
    )
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["detail"] is values["source_noise"] is values["source_psnr"] is None


def test_whatever_goes_wrong_in_float32_is_no_more_than_a_lost_try(source):
    model = Half({1})
    render = model.render

    def mismatch(*args):
        if model.precise:
            raise RuntimeError("expected Half but found Float")
        return render(*args)

    model.render = mismatch
    task = run(source, model, tile_batch_size=2)
    assert task.finished.sampled.faulty == 0 and task.finished.sampled.precise == 0
    assert torch.isfinite(task.image).all()

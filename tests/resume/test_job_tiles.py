"""A job that was cut short goes on, bitwise; nothing foreign is ever taken."""

import dataclasses
import os
import random
import time

import pytest
import torch
from made import FakeModel

from lib_dino import Settings, pipeline
from lib_dino.errors import Interrupted
from lib_dino.pictures.picture import Picture
from lib_dino.resume import job_tiles as module
from lib_dino.resume import place
from lib_dino.resume.job_tiles import forget, job_tiles, kept_batches, kept_seed
from lib_dino.resume.place import Keeping

TILES = 12
GIVEN = {"seed": 1, "overlap": 16, "tile_size": 64, "dino_enabled": False, "clean_source": 0.0, "steps": 4}


class Model(FakeModel):
    """Repaints by tile, noise and the size of its batch, as real networks do in the last bit."""

    fingerprint = "one"

    def __init__(self, *, dies_at=None, fault=None, short_at=()):
        super().__init__(self.answer)
        self.dies_at, self.fault, self.short_at = dies_at, fault, short_at

    def answer(self, tiles, noise):
        if self.dies_at is not None and len(self.batches) > self.dies_at:
            raise KeyboardInterrupt
        if len(self.batches) - 1 in self.short_at:
            raise MemoryError
        out = (0.9 * tiles + 0.02 * noise + 1e-4 * len(tiles)).clamp(0, 1)
        if self.fault is not None and len(self.batches) - 1 == self.fault:
            out[0, :, 3, 3] = torch.nan
        return out


@pytest.fixture
def source(generator):
    return Picture(0.2 + 0.6 * torch.rand(1, 3, 60, 81, generator=generator))


@pytest.fixture
def keeping(tmp_path):
    return Keeping(tmp_path / "tiles", resumes=True)


def upscale(source, model, keeping=None, **settings):
    return pipeline.upscale(source, Settings(**{**GIVEN, **settings}), model=model, keeping=keeping)


def cut_short(source, keeping, at, **settings):
    with pytest.raises(KeyboardInterrupt):
        upscale(source, Model(dies_at=at), keeping, **settings)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("texture", [0.0, 1.0])
def test_wherever_it_was_cut_short_the_picture_is_bitwise_the_undisturbed_one(source, keeping, batch, texture):
    whole = upscale(source, model := Model(), tile_batch_size=batch, texture=texture)
    for at in range(len(model.batches)):
        cut_short(source, keeping, at, tile_batch_size=batch, texture=texture)
        resumed = upscale(source, again := Model(), keeping, tile_batch_size=batch, texture=texture)
        assert torch.equal(resumed.picture.pixels, whole.picture.pixels)
        assert len(again.batches) == len(model.batches) - at
        assert resumed.report.model_calls == whole.report.model_calls
        assert resumed.figures() == whole.figures()
        assert any("Went on after" in note for note in resumed.report.notes) == (at > 0)
        forget(keeping, resumed.job)


def test_retries_and_their_figures_are_kept_too(source, keeping):
    whole = upscale(source, Model(fault=1))
    with pytest.raises(KeyboardInterrupt):
        upscale(source, Model(dies_at=4, fault=1), keeping)
    resumed = upscale(source, Model(), keeping)
    assert torch.equal(resumed.picture.pixels, whole.picture.pixels)
    told = [dataclasses.replace(tile, seconds=0) for tile in resumed.report.tiles]
    assert told == [dataclasses.replace(tile, seconds=0) for tile in whole.report.tiles]
    assert sum(tile.tries for tile in resumed.report.tiles) == 1


def test_a_tile_that_memory_was_short_for_is_made_by_the_next_run(source, keeping):
    whole = upscale(source, Model())
    with pytest.raises(KeyboardInterrupt):
        upscale(source, Model(dies_at=6, short_at={2, 3}), keeping)  # the third tile, and its second try
    resumed = upscale(source, Model(), keeping)
    assert torch.equal(resumed.picture.pixels, whole.picture.pixels)
    assert not any("enlarged source" in note for note in resumed.report.notes)


def test_where_nothing_fitted_the_next_run_begins_anew(source, keeping):
    whole = upscale(source, Model())
    with pytest.raises(MemoryError, match="not one tile fitted"):
        upscale(source, Model(short_at=range(100)), keeping)
    assert torch.equal(upscale(source, Model(), keeping).picture.pixels, whole.picture.pixels)


def test_repair_goes_on_with_what_was_judged(source, keeping, quick_dino):
    settings = Settings(**{**GIVEN, "repair_tries": 2, "consistency": 0.0, "denoise": 0.5})

    def run(model, held):
        return pipeline.upscale(source, settings, model=model, dino=quick_dino, keeping=held, measure=True)

    whole = run(first := Model(), None)
    with pytest.raises(KeyboardInterrupt):
        run(Model(dies_at=len(first.batches) - 2), keeping)
    resumed = run(Model(), keeping)
    assert torch.equal(resumed.picture.pixels, whole.picture.pixels)
    for a, b in zip(resumed.report.tiles, whole.report.tiles, strict=True):
        assert dataclasses.replace(a, seconds=0) == dataclasses.replace(b, seconds=0)


def test_a_drawn_seed_is_drawn_once(source, keeping):
    cut_short(source, keeping, 3, seed=-1)
    first, second = upscale(source, Model(), keeping, seed=-1), upscale(source, Model(), seed=-1)
    assert first.settings.seed != second.settings.seed
    assert torch.equal(first.picture.pixels, upscale(source, Model(), seed=first.settings.seed).picture.pixels)
    forget(keeping, first.job)
    assert kept_seed(keeping, first.job) is None


def test_a_job_with_a_seed_does_not_take_what_another_drew(source, keeping):
    cut_short(source, keeping, 3, seed=-1)
    upscale(source, model := Model(), keeping, seed=5)
    assert len(model.batches) == len(upscale(source, whole := Model(), seed=5).report.tiles) == len(whole.batches)


def test_without_resume_tiles_are_kept_and_none_are_taken(source, keeping):
    afresh = dataclasses.replace(keeping, resumes=False)
    cut_short(source, afresh, 3)
    upscale(source, model := Model(), afresh)
    assert len(model.batches) == len(upscale(source, Model()).report.tiles)


CHANGES = [
    {"seed": 2}, {"steps": 5}, {"denoise": 0.3}, {"overlap": 24}, {"tile_size": 72}, {"consistency": 0.5},
    {"texture": 0.5}, {"scale_factor": 1.9}, {"tile_batch_size": 2}, {"clean_source": 0.5}, {"skip_flat": True},
    {"dino_strength": 0.1}, {"max_drift": 0.3}, {"repair_tries": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_another_setting_never_picks_up_tiles(source, keeping, change, quick_dino):
    cut_short(source, keeping, 3)
    settings = Settings(**{**GIVEN, **change})
    made = pipeline.upscale(source, settings, model=Model(), dino=quick_dino, keeping=keeping)
    fresh = pipeline.upscale(source, settings, model=Model(), dino=quick_dino)
    assert torch.equal(made.picture.pixels, fresh.picture.pixels)
    assert not any("Went on" in note for note in made.report.notes)


def test_another_source_model_or_version_never_picks_up_tiles(source, keeping, monkeypatch):
    cut_short(source, keeping, 3)
    chance = random.Random(3)
    names = set()
    for _ in range(20):
        changed = source.pixels.clone()
        place = chance.randrange(changed.numel())
        changed.view(-1)[place] += 1e-6 + 0.01 * chance.random()
        names.add(upscale(Picture(changed), Model(), keeping).job)
    other = Model()
    other.fingerprint = "two"
    assert not any("Went on" in note for note in upscale(source, other, keeping).report.notes)
    monkeypatch.setattr(pipeline, "package_digest", lambda: "another version")
    changed = upscale(source, Model(), keeping)
    assert not any("Went on" in note for note in changed.report.notes)
    assert len({*names, changed.job}) == 21


def test_a_model_without_a_fingerprint_keeps_nothing(source, keeping):
    model = Model()
    model.fingerprint = None
    upscale(source, model, keeping)
    assert not keeping.folder.exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign"])
def test_a_damaged_tile_is_made_again(source, keeping, damage):
    whole = upscale(source, Model())
    cut_short(source, keeping, 4)
    [folder] = place.jobs_in(keeping.folder)
    files = sorted(folder.glob("*.tiles"))
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 1
    files[1].write_bytes(
        {"cut": data[: len(data) // 2], "bit": data, "empty": b"", "foreign": files[0].read_bytes()}[damage]
    )
    resumed = upscale(source, model := Model(), keeping)
    assert torch.equal(resumed.picture.pixels, whole.picture.pixels)
    assert len(model.batches) == len(whole.report.tiles) - 3


def test_what_a_killed_process_was_writing_is_swept(source, keeping):
    cut_short(source, keeping, 3)
    [folder] = place.jobs_in(keeping.folder)
    (folder / "0-0-1.tmp").write_bytes(b"half")
    upscale(source, Model(), keeping)
    assert not list(folder.glob("*.tmp"))


def test_a_job_that_another_run_holds_is_made_without_keeping(source, keeping):
    cut_short(source, keeping, 3)
    name = upscale(source, Model(), keeping).job
    with job_tiles(keeping, name, 1, drawn=False) as held:
        assert held is not None
        with job_tiles(keeping, name, 1, drawn=False) as second:
            assert second is None
        upscale(source, model := Model(), keeping)
        assert len(model.batches) == TILES
        forget(keeping, name)
        assert kept_batches(keeping, name, 1) == TILES
    forget(keeping, name)
    assert place.jobs_in(keeping.folder) == []


def test_there_is_never_more_than_was_allowed_and_the_oldest_goes_first(source, keeping):
    cut_short(source, keeping, 4)
    [old] = place.jobs_in(keeping.folder)
    one = max(path.stat().st_size for path in old.glob("*.tiles"))
    os.utime(old, (time.time() - 9, time.time() - 9))
    tight = dataclasses.replace(keeping, most=6 * one)
    cut_short(source, tight, 4, seed=9)
    assert not old.exists()
    result = upscale(source, Model(), tight, seed=8)
    assert 4 <= kept_batches(tight, result.job, 8) <= 6
    assert sum(map(place.size_of, place.jobs_in(tight.folder))) <= tight.most
    assert torch.equal(upscale(source, Model(), tight, seed=8).picture.pixels, result.picture.pixels)


def test_a_disk_that_will_not_costs_nothing_but_the_kept_tiles(source, keeping, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    whole = upscale(source, Model())
    monkeypatch.setattr(module.os, "replace", full)
    assert torch.equal(upscale(source, Model(), keeping).picture.pixels, whole.picture.pixels)
    assert caplog.text.count("No space left") == 1
    assert not list(keeping.folder.rglob("*.tmp"))


def test_a_folder_that_cannot_be_made_costs_nothing(source, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    whole = upscale(source, Model())
    made = upscale(source, Model(), Keeping(tmp_path / "file" / "tiles", resumes=True))
    assert torch.equal(made.picture.pixels, whole.picture.pixels)
    assert "not kept" in caplog.text


def test_jobs_nobody_went_on_with_are_removed_after_two_weeks(source, keeping):
    cut_short(source, keeping, 3)
    [folder] = place.jobs_in(keeping.folder)
    then = time.time() - 15 * 86400
    os.utime(folder, (then, then))
    upscale(source, Model(), keeping, seed=99)
    assert not folder.exists()


def test_stopping_keeps_the_tiles_and_marks_the_picture(source, keeping):
    calls = []

    def stop():
        calls.append(1)
        return len(calls) > 9

    stopped = pipeline.upscale(source, Settings(**GIVEN), model=Model(), keeping=keeping, stop=stop)
    assert stopped.stopped and stopped.marks["DINO stopped"].startswith("after ")
    done = len(list(place.jobs_in(keeping.folder)[0].glob("*.tiles")))
    assert 0 < done < TILES
    resumed = upscale(source, model := Model(), keeping)
    assert len(model.batches) == TILES - done
    assert torch.equal(resumed.picture.pixels, upscale(source, Model()).picture.pixels)
    assert not resumed.stopped


def test_a_comparison_goes_on_in_every_picture_with_the_seed_it_drew(source, keeping, quick_dino):
    settings = Settings(**{**GIVEN, "seed": -1})
    seen = []

    def stop():
        seen.append(1)
        return len(seen) > 15

    with pytest.raises(Interrupted):
        pipeline.compare(source, settings, model=Model(), dino=quick_dino, keeping=keeping, stop=stop)
    arms = pipeline.compare(source, settings, model=(again := Model()), dino=quick_dino, keeping=keeping)
    assert len(again.batches) < 2 * TILES
    seed = arms["Your settings"].settings.seed
    whole = pipeline.compare(source, settings.replace(seed=seed), model=Model(), dino=quick_dino)
    for label, arm in whole.items():
        assert torch.equal(arm.picture.pixels, arms[label].picture.pixels), label

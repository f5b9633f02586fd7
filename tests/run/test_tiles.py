import pytest
import torch
from made import FakeModel, ran
from torch.testing import assert_close

from lib_dino.report.records import SCHEMA
from lib_dino.run.outcome import marks
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize


def run(source, model, **settings):
    given = {"seed": 1, "overlap": 16, "consistency": 0.0, "dino_enabled": False, "clean_source": 0.0}
    return ran(source, Settings(**{**given, **settings}), model)


@pytest.fixture
def source(generator):
    return torch.rand(1, 3, 40, 61, generator=generator)


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("multiple_px", [1, 8])
def test_a_model_that_changes_nothing_gives_the_enlarged_source_at_the_exact_size(source, batch, multiple_px):
    out = run(source, FakeModel(lambda t, n: t, multiple_px=multiple_px), tile_batch_size=batch).image
    assert_close(out, resize(source, (80, 122)).clamp(0, 1))


def test_overlapping_tiles_start_from_the_same_noise(source):
    # Each tile paints its own noise: if overlaps agreed in nothing else, they agree in that.
    whole = run(source, FakeModel(lambda t, n: 0.5 + 0.1 * n), tile_size=256).image
    tiled = run(source, FakeModel(lambda t, n: 0.5 + 0.1 * n)).image
    assert_close(tiled, whole, atol=1e-6, rtol=0)
    assert float(whole.std()) > 0.05


def test_the_seed_decides_the_noise(source):
    def render(seed):
        return run(source, FakeModel(lambda t, n: 0.5 + 0.1 * n), seed=seed).image

    assert torch.equal(render(5), render(5))
    assert not torch.equal(render(5), render(6))


def test_tiles_reach_the_model_whole_and_in_batches(source):
    model = FakeModel(lambda t, n: t, multiple_px=8)
    task = run(source, model, tile_batch_size=4)
    assert sum(shape[0] for shape in model.batches) == len(task.plan)
    assert {shape[2:] for shape in model.batches} == {(48, 48)}
    assert task.finished.sampled.calls == 2 * len(model.batches)


def test_progress_counts_every_call_and_ends_full(source):
    task = run(source, FakeModel(lambda t, n: t))
    seen = task.steps
    assert [p.call for p in seen] == list(range(1, task.finished.sampled.calls + 1))
    assert (seen[-1].tile, seen[-1].tiles) == (len(task.plan), len(task.plan))


def test_denoise_zero_needs_no_model(source):
    model = FakeModel(lambda t, n: 1 / 0)
    out = run(source, model, denoise=0.0).image
    assert_close(out, resize(source, (80, 122)).clamp(0, 1))


def test_stopping_keeps_what_is_done(source):
    task = run(source, FakeModel(lambda t, n: torch.full_like(t, 0.99), stop_after=2))
    out = task.image
    assert task.finished.sampled.stopped
    assert_close(out[..., 0, 0], torch.full((1, 3), 0.99))
    assert_close(out[..., -1, -1], resize(source, (80, 122)).clamp(0, 1)[..., -1, -1])
    assert any("Stopped" in note for note in task.report().notes)
    assert marks(task.job, task.finished) == {"DINO stopped": f"after 2 of {len(task.plan)} tiles"}


def test_a_run_to_the_end_says_nothing_of_having_been_stopped(source):
    task = run(source, FakeModel(lambda t, n: t))
    assert marks(task.job, task.finished) == {}


def test_consistency_inside_and_after_the_loop_restores_the_source(source):
    # Away from black and white, where clipping takes its share, and smooth, or it would count as noisy.
    source = 0.3 + 0.4 * resize(source[..., ::8, ::8], (40, 61)).clamp(0, 1)

    def paint(tiles, noise):
        return (tiles + 0.2 * noise).clamp(0, 1)

    plain = run(source, FakeModel(paint))
    task = run(source, FakeModel(paint), consistency=1.0)
    assert task.report().source_psnr > plain.report().source_psnr + 15


def test_previews_show_the_whole_canvas(source):
    task = run(source, FakeModel(lambda t, n: torch.full_like(t, 0.99)))
    shown = [event.canvas for event in task.progress if event.canvas is not None]
    assert len(shown) == 1 + len(task.plan)
    assert {tuple(image.shape) for image in shown} == {(1, 3, 80, 122)}
    means = [float(image.mean()) for image in shown]
    assert means == sorted(means)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (5, 3)])
def test_tiny_and_thin_pictures_work(size, generator):
    source = torch.rand(1, 3, *size, generator=generator)
    model = FakeModel(lambda t, n: t, multiple_px=8)
    out = run(source, model, scale_factor=3.0, consistency=1.0).image
    assert tuple(out.shape[-2:]) == (3 * size[0], 3 * size[1])


def test_a_report_is_plain_values(source):
    import json

    task = run(source, FakeModel(lambda t, n: t))
    report = task.report()
    values = json.loads(json.dumps(report.to_dict()))
    assert values["schema"] == SCHEMA
    assert values["result_size"] == [80, 122]
    assert len(values["tiles"]) == len(task.plan)
    assert len(report.summary()) == 5
    assert "61x40 -> 122x80" in report.summary()[0]


def test_a_report_says_for_each_tile_how_much_was_corrected(source):
    source = 0.3 + 0.4 * resize(source[..., ::8, ::8], (40, 61)).clamp(0, 1)

    def tiles(consistency):
        task = run(source, FakeModel(lambda t, n: (t + 0.1).clamp(0, 1)), consistency=consistency)
        return task.report().tiles

    off, half, full = (tiles(consistency) for consistency in (0.0, 0.4, 0.8))
    assert all(t.guidance == 0 and t.seed == 1 and t.denoise == 0.2 for t in off)
    assert all(0 < h.guidance < f.guidance for h, f in zip(half, full, strict=True))

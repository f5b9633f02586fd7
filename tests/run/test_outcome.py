import pytest
import torch
from made import ran

from lib_dino.measure.quality import seam_ratios
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize


class Grainy:
    """Adds its noise to every tile."""

    name, tile_px, multiple_px, channels, factor, fits_any_tile = "grainy", 64, 1, 3, 1, False

    def __init__(self):
        self.tiles = 0

    def calls(self, denoise, steps):
        return 1

    def render(self, batch, corrector, on_step):
        self.tiles += len(batch.images)
        on_step()
        return (batch.images + 0.05 * batch.noise).clamp(0, 1)


@pytest.fixture
def half_sky(generator):
    """A smooth gradient on the left, texture on the right."""
    sky = torch.linspace(0.3, 0.7, 64)[None, None, :, None].expand(1, 3, 64, 96)
    texture = torch.rand(1, 3, 64, 48, generator=generator)
    out = sky.clone()
    out[..., 48:] = texture
    return out


def run(source, dino, model, **settings):
    given = {"seed": 1, "overlap": 16, "consistency": 0.0, "clean_source": 0.0, "dino_enabled": False,
             "skip_flat": True}  # fmt: skip
    return ran(source, Settings(**{**given, **settings}), model, dino)


def test_flat_tiles_keep_the_enlarged_source_and_cost_nothing(half_sky, quick_dino):
    model = Grainy()
    task = run(half_sky, quick_dino, model)
    image, report = task.image, task.report()
    skipped = [tile for tile in report.tiles if tile.skipped]
    assert 0 < len(skipped) < len(task.plan)
    assert model.tiles == len(task.plan) - len(skipped) == task.finished.sampled.calls
    assert all(tile.box[3] <= 96 for tile in skipped)
    alone = (..., slice(skipped[0].box[0], skipped[0].box[2] - 40), slice(0, 24))
    assert torch.allclose(image[alone], resize(half_sky, (128, 192)).clamp(0, 1)[alone], atol=1e-6)
    painted = run(half_sky, quick_dino, Grainy(), skip_flat=False).image
    assert (painted - image)[alone].std() > 0.02
    assert any(f"Left {len(skipped)} tiles alone: the source is flat there." in n for n in report.notes)


def test_no_border_shows_where_a_skipped_tile_meets_a_painted_one(quick_dino, generator):
    source = torch.linspace(0.3, 0.7, 64)[None, None, :, None].expand(1, 3, 64, 96).clone()
    source[..., 20:40, 84:] += 0.1 * torch.rand(1, 3, 20, 12, generator=generator)
    task = run(source, quick_dino, Grainy(), overlap=32)
    image = task.image.transpose(-1, -2)
    told = task.report().tiles
    skipped = [tile for tile, each in zip(task.plan, told, strict=True) if each.skipped]
    edges = {tile.x1 for tile in skipped if tile.x1 < 192}
    assert edges
    # Columns in which the grain sets in step no more than those beside them.
    for edge in edges:
        for line in range(edge - 32, edge):
            assert all(ratio < 2 for ratio in seam_ratios(image[..., :40], [line]))


def test_nothing_is_skipped_unless_asked_for(half_sky, quick_dino):
    model = Grainy()
    task = run(half_sky, quick_dino, model, skip_flat=False)
    assert model.tiles == len(task.plan)


def test_a_wholly_flat_picture_is_done_without_the_model(quick_dino):
    source = torch.full((1, 3, 40, 60), 0.5)
    model = Grainy()
    task = run(source, quick_dino, model)
    assert task.finished.sampled.calls == 0
    image = task.image
    assert model.tiles == 0 and torch.allclose(image, torch.full_like(image, 0.5), atol=1e-5)

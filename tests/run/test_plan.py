import dataclasses

import pytest
import torch
from PIL import Image

from lib_dino import upscale
from lib_dino.errors import SettingsError
from lib_dino.run.plan import MAX_TILES, plan_job
from lib_dino.settings import Settings


@dataclasses.dataclass(frozen=True)
class Facts:
    tile_px: int = 512
    multiple_px: int = 8
    factor: int = 8
    fits_any_tile: bool = False


PIXELS = Facts(tile_px=640, multiple_px=1, factor=1, fits_any_tile=True)


@pytest.mark.parametrize("size", [(211, 313), (8, 2000), (720, 1280)])
@pytest.mark.parametrize("facts", [Facts(), Facts(1024, 16), PIXELS])
def test_tiles_cover_the_exact_target_padded_to_the_models_multiple(size, facts):
    plan = plan_job(Settings(scale_factor=1.7), size, facts)
    assert plan.target_size == Settings(scale_factor=1.7).target_size(size)
    for side, target in zip(plan.tiles.size, plan.target_size, strict=True):
        assert side % facts.multiple_px == 0 and 0 <= side - target < facts.multiple_px


def test_tiles_shrink_where_the_model_does_not_mind_and_no_size_was_asked_for():
    size = (360, 360)
    assert plan_job(Settings(), size, PIXELS).tiles.tile[0] < 640
    assert plan_job(Settings(tile_size=640), size, PIXELS).tiles.tile[0] == 640
    assert plan_job(Settings(), size, Facts()).tiles.tile == (512, 512)


@pytest.mark.parametrize(
    ("settings", "size", "facts", "field"),
    [
        ({"tile_size": 64, "overlap": 32, "scale_factor": 8.0}, (400, 400), Facts(), "tile_size"),
        ({"scale_factor": 8.0}, (20_000, 20_000), Facts(), "scale_factor"),
        ({}, (4, 4), Facts(), "scale_factor"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused_by_name(settings, size, facts, field):
    with pytest.raises(SettingsError) as caught:
        plan_job(Settings(**settings), size, facts)
    assert caught.value.field == field


def test_a_model_that_sees_single_pixels_takes_the_smallest_picture():
    assert plan_job(Settings(), (1, 1), PIXELS).target_size == (2, 2)


def test_without_a_webui_too_many_tiles_are_refused_before_any_work():
    image = Image.new("RGB", (300, 300))
    with pytest.raises(SettingsError, match=f"at most {MAX_TILES} tiles"):
        upscale(image, Settings(scale_factor=8.0, tile_size=64, overlap=48))


def test_the_plan_is_what_a_run_samples(generator):
    from made import FakeModel, ran

    model = FakeModel(lambda tiles, noise: tiles, multiple_px=8)
    settings = Settings(seed=1, overlap=16, dino_enabled=False, clean_source=0.0)
    run = ran(torch.rand(1, 3, 40, 61, generator=generator), settings, model)
    assert run.plan == plan_job(settings, (40, 61), model).tiles
    assert [each.tile for each in run.finished.sampled.candidates] == list(run.plan)

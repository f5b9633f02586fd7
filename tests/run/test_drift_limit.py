import pytest
import torch
from made import ran

from lib_dino.measure.drift import DriftMeter
from lib_dino.pictures.picture import picture_from_pil
from lib_dino.pipeline import upscale
from lib_dino.run.drift_limit import eight_bit, enforce_limit, limit_note
from lib_dino.run.finish import tile_drift
from lib_dino.run.plan import plan_job
from lib_dino.run.prepare import prepare
from lib_dino.settings import Settings
from lib_dino.tiling.plan import plan_tiles
from lib_dino.tiling.resample import resize, tile_operators


@pytest.fixture(scope="module")
def dino(quick_dino):
    return quick_dino


class Scene:
    """A source, its enlargement with things in it that the source does not have, and the measure."""

    def __init__(self, dino, seed, *, inventions=2, factor=2):
        g = torch.Generator().manual_seed(seed)
        self.source = (0.2 + 0.6 * resize(torch.rand(1, 3, 10, 14, generator=g), (60, 84))).clamp(0, 1)
        size = (60 * factor, 84 * factor)
        self.plain = resize(self.source, size).clamp(0, 1)
        self.meter = DriftMeter(dino, self.source, plain=self.plain)
        self.tiles = list(plan_tiles(size, tile_px=96, overlap_px=16))
        self.image = self.plain.clone()
        self.changed = torch.zeros(size, dtype=torch.bool)
        for _ in range(inventions):
            y, x = (int(torch.randint(0, side - 28, (1,), generator=g)) for side in size)
            self.image[..., y : y + 28, x : x + 28] = torch.rand(1, 3, 28, 28, generator=g)
            self.changed[y : y + 28, x : x + 28] = True
        self.scale = (factor, factor)

    def measure(self, tile, image):
        size = tuple(self.image.shape[-2:])
        operators = tile_operators(self.source.shape[-2:], size, tile.rows, tile.cols)
        return self.meter.tile(image[..., tile.rows, tile.cols], operators)

    def worst(self, image):
        return max(float(self.measure(tile, image).patches.max()) for tile in self.tiles)

    def held(self, bound, **more):
        return enforce_limit(
            self.image, self.plain, self.tiles, limit=bound, scale=self.scale, measure=self.measure, **more
        )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bound", [0.01, 0.05, 0.3])
def test_measured_again_no_patch_of_the_rounded_picture_is_over_the_bound(dino, seed, bound):
    scene = Scene(dino, seed, inventions=seed)
    held = scene.held(bound)
    assert held.over == ()
    assert torch.equal(held.image, eight_bit(held.image))
    assert scene.worst(held.image) <= bound
    assert scene.worst(scene.image) > bound or seed == 0


def test_a_picture_within_the_bound_is_only_rounded(dino):
    scene = Scene(dino, 1, inventions=0)
    held = scene.held(0.01)
    assert torch.equal(held.image, eight_bit(scene.image))
    assert held.share.max() == 0
    assert "nothing was blended back" in limit_note(held, 0.01)


def test_what_is_far_from_any_invention_stays_and_a_looser_bound_takes_less(dino):
    scene = Scene(dino, 3, inventions=1)
    tight, loose = scene.held(0.03), scene.held(0.3)
    assert float(loose.share.mean()) < float(tight.share.mean()) < 0.6
    near = torch.nn.functional.max_pool2d(scene.changed[None, None].float(), 97, stride=1, padding=48)
    assert loose.share[near == 0].max() == 0
    assert loose.share[0, 0][scene.changed].mean() > 0.3


def test_the_share_fades_out_without_an_edge(dino):
    share = Scene(dino, 3, inventions=1).held(0.03).share
    steps = torch.cat([share.diff(dim=-1).abs().flatten(), share.diff(dim=-2).abs().flatten()])
    assert share.max() > 0.5
    assert steps.max() < 0.35  # patches of this small tile are 6 px wide


def test_where_the_picture_may_not_change_a_tile_over_the_bound_is_reported(dino):
    scene = Scene(dino, 3, inventions=1)
    forbidden = torch.zeros(1, 1, *scene.changed.shape)
    held = scene.held(0.05, mask=forbidden)
    assert torch.equal(held.image, eight_bit(scene.image))
    assert len(held.over) > 0
    assert f"{len(held.over)} of {len(scene.tiles)} tiles stay over the drift limit" in limit_note(held, 0.05)


def test_where_even_the_picture_it_is_blended_with_drifts_the_plain_enlargement_takes_its_place(dino):
    scene = Scene(dino, 3, inventions=1)
    held = enforce_limit(
        scene.image, 1 - scene.plain, scene.tiles, limit=0.05, scale=scene.scale, measure=scene.measure,
        last=scene.plain,
    )  # fmt: skip
    assert held.over == ()
    assert scene.worst(held.image) <= 0.05


class Inverter:
    """A model that turns its tiles inside out."""

    name, tile_px, multiple_px, channels, factor, fits_any_tile = "inverter", 64, 8, 4, 8, False

    def calls(self, denoise, steps):
        return 1

    def render(self, batch, corrector, on_step):
        on_step()
        return 1 - batch.images


@pytest.mark.parametrize("settings", [{}, {"dino_enabled": True}])
def test_a_run_reports_the_drift_within_the_bound_and_how_much_was_blended(dino, settings):
    source = Scene(dino, 5).source
    settings = Settings(
        seed=1, overlap=16, max_drift=0.05, consistency=0.0, **{"dino_enabled": False, **settings}
    )
    task = ran(source, settings, Inverter(), dino)
    report = task.report()
    assert all(float(tile_drift(task.job, tile, task.image).patches.max()) <= 0.05 for tile in task.plan)
    assert all(tile.drift_first > tile.drift for tile in report.tiles)
    assert any("Every tile is within the drift limit of 0.05" in note for note in report.notes)
    assert max(tile.blended for tile in report.tiles) > 0.1


def test_repair_comes_first_and_leaves_little_to_blend(dino):
    source = Scene(dino, 5).source
    given = {"seed": 1, "overlap": 16, "max_drift": 0.05, "consistency": 0.0, "dino_enabled": False}
    shares = []
    for tries in (0, 2):
        report = ran(source, Settings(**given, repair_tries=tries), Inverter(), dino).report()
        assert all(tile.drift_first > tile.drift for tile in report.tiles)
        shares.append(sum(tile.blended for tile in report.tiles))
    assert shares[1] < 0.3 * shares[0]


def test_a_grey_picture_keeps_the_bound_as_it_is_written(dino):
    grey = resize(Scene(dino, 5).source.mean(1, keepdim=True), (60, 84)).clamp(0, 1)
    picture = picture_from_pil(_grey_image(grey))
    settings = Settings(seed=1, overlap=16, max_drift=0.05, dino_enabled=False, consistency=0.0)
    result = upscale(picture, settings, model=Inverter(), dino=dino)
    written = picture_from_pil(result.picture.to_pil()).pixels
    job = prepare(picture.pixels, plan_job(settings, picture.size, Inverter()), settings, dino=dino)
    assert all(float(tile_drift(job, tile, written).patches.max()) <= 0.05 for tile in job.plan.tiles)


def _grey_image(grey):
    import numpy as np
    from PIL import Image

    return Image.fromarray((grey[0, 0] * 255).round().numpy().astype(np.uint8))

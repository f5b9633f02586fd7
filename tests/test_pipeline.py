"""The whole of it, on the networks that ship and a piece of a real photograph."""

from pathlib import Path

import pytest
import torch

from lib_dino import Settings, upscale
from lib_dino.errors import ModelError, SettingsError
from lib_dino.measure.quality import detail_ratio, psnr
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.pictures.files import read_settings_text
from lib_dino.pictures.infotext import parse_infotext
from lib_dino.pictures.picture import Picture, read_picture
from lib_dino.pipeline import job_fingerprint
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.settings import INFOTEXT_STOPPED_KEY
from lib_dino.tiling.resample import resize

PHOTO = Path(__file__).parent.parent / "examples" / "astronaut.png"


@pytest.fixture(scope="module")
def model():
    return PixelTileModel()


@pytest.fixture(scope="module")
def dino():
    return load_dinov2()


@pytest.fixture(scope="module")
def photo():
    """An eye and hair, 112 px square, and its half."""
    truth = read_picture(PHOTO).pixels[..., 60:172, 170:282]
    return truth, Picture(resize(truth, (56, 56)).clamp(0, 1))


def run(photo, model, dino, **settings):
    settings = Settings(seed=1, **settings)
    return upscale(photo[1], settings, model=model, dino=dino, measure=True)


def test_strength_nought_is_bitwise_off(photo, model, dino):
    off = run(photo, model, dino, dino_enabled=False)
    nought = run(photo, model, dino, dino_strength=0.0)
    assert torch.equal(off.picture.pixels, nought.picture.pixels)


def test_more_strength_is_more_faithful(photo, model, dino):
    loose = {"denoise": 0.5, "consistency": 0.0}
    drifts = [run(photo, model, dino, dino_strength=s, **loose).report.drift for s in (0.0, 0.5, 1.0)]
    assert drifts[0] > drifts[1] > drifts[2]
    assert drifts[2] < 0.7 * drifts[0]


def test_consistency_keeps_the_picture_through_a_strong_repaint(photo, model, dino):
    loose = run(photo, model, dino, denoise=0.5, consistency=0.0, dino_enabled=False)
    kept = run(photo, model, dino, denoise=0.5, dino_enabled=False)
    assert psnr(kept.picture.pixels, photo[0]) > psnr(loose.picture.pixels, photo[0]) + 2
    assert kept.report.drift < 0.1 * loose.report.drift


def test_the_default_is_sharper_than_enlarging_and_as_near_to_the_original(photo, model, dino):
    truth, source = photo
    result = run(photo, model, dino).picture.pixels
    plain = resize(source.pixels, (112, 112)).clamp(0, 1)
    assert detail_ratio(result, truth) > detail_ratio(plain, truth) + 0.5 * (1 - detail_ratio(plain, truth))
    assert psnr(result, truth) > psnr(plain, truth)


def test_the_same_seed_gives_the_same_picture_and_minus_one_draws_one(photo, model, dino):
    first, again = run(photo, model, dino, denoise=0.1), run(photo, model, dino, denoise=0.1)
    assert torch.equal(first.picture.pixels, again.picture.pixels)
    drawn = upscale(photo[1], Settings(denoise=0.0), model=model, dino=dino)
    assert drawn.settings.seed >= 0


class Stopped(PixelTileModel):
    """Told to stop once the first tile is done."""

    rendered = 0

    def render(self, *args):
        self.rendered += 1
        return super().render(*args) if self.rendered == 1 else None


def test_a_network_that_does_not_exist_is_refused_even_where_none_is_needed(photo, model):
    for name in ("no-such-model", "/no/such/folder", "no/such.safetensors"):
        with pytest.raises(ModelError, match=r"No DINOv2 network at"):
            upscale(photo[1], Settings(denoise=0, dino_model=name), model=model)
    assert upscale(photo[1], Settings(denoise=0, dino_model="facebook/dinov2-small"), model=model)


def test_a_stopped_picture_says_so_in_its_text_and_its_settings_are_still_read(photo, dino, tmp_path):
    settings = Settings(seed=1, tile_size=64, overlap=16, dino_enabled=False)
    result = upscale(photo[1], settings, model=Stopped())
    saved = parse_infotext(read_settings_text(result.save(tmp_path / "stopped.png")))
    assert saved[INFOTEXT_STOPPED_KEY] == "after 1 of 4 tiles"
    assert Settings.from_infotext(saved) == settings
    whole = upscale(photo[1], settings.replace(denoise=0.0), model=Stopped())
    assert INFOTEXT_STOPPED_KEY not in parse_infotext(read_settings_text(whole.save(tmp_path / "whole.png")))


@pytest.fixture(scope="module")
def second(photo):
    """The same place again, 5 px aside."""
    return Picture(read_picture(PHOTO).pixels[..., 55:167, 175:287])


def test_a_reference_brings_the_result_nearer_to_the_original_by_its_strength(photo, second, model, dino):
    truth, source = photo

    def made(strength, *references):
        settings = Settings(seed=1, dino_strength=strength)
        return upscale(source, settings, references=references, model=model, dino=dino)

    alone, nought, half, full = made(1.0), made(0.0, second), made(0.5, second), made(1.0, second)
    assert torch.equal(alone.picture.pixels, nought.picture.pixels)
    found = [psnr(result.picture.pixels, truth) for result in (alone, half, full)]
    assert found[0] + 1 < found[1] < found[2]
    assert full.report.references[0].covered > 0.5 and alone.report.references == nought.report.references == ()
    assert full.figures()["DINO references"] == "1" and float(full.figures()["DINO references lend"]) > 0.5
    assert any("lends detail to" in note for note in full.report.notes)
    assert any(tile.lent[0] > 0.5 for tile in full.report.tiles)


def test_a_reference_that_does_not_match_changes_nothing_and_is_named(photo, model, dino, generator):
    other = Picture(torch.rand(1, 3, 150, 150, generator=generator))
    settings = Settings(seed=1, dino_strength=1.0)
    found = upscale(photo[1], settings, references=[other], model=model, dino=dino)
    assert torch.equal(found.picture.pixels, upscale(photo[1], settings, model=model, dino=dino).picture.pixels)
    assert any("Reference 1 lends nothing" in note for note in found.report.notes)


def test_more_references_than_can_be_used_are_refused(photo, model):
    with pytest.raises(SettingsError, match="at most 8 reference pictures: got 9"):
        upscale(photo[1], references=[photo[1]] * 9, model=model)


def test_tiles_of_a_job_with_other_references_are_other_tiles(photo, second, model, dino):
    settings = Settings(seed=1)
    alone = job_fingerprint(photo[1], settings, model, dino, None)
    lent = job_fingerprint(photo[1], settings, model, dino, None, [second.pixels])
    off = settings.replace(dino_strength=0.0)
    assert lent != alone
    assert job_fingerprint(photo[1], off, model, dino, None, [second.pixels]) == job_fingerprint(
        photo[1], off, model, dino, None
    )

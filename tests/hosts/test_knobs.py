"""What is off by default acts when asked for: repair, bound, flat tiles, a prompt beside the subject."""

import math

import pytest
from client import picture
from PIL import Image, ImageChops, ImageDraw, ImageStat

# Texture is matched by neighbourhoods, which reach from tile to tile.
LOOSE = {
    "scale_factor": 2.0, "tile_size": 128, "overlap": 32, "consistency": 0.0, "dino_strength": 0.25, "texture": 0.0,
}  # fmt: skip
REQUEST = {"denoising_strength": 0.9, "steps": 6, "sampler_name": "Euler"}


def source():
    """A house in the middle of nothing at all: some tiles are flat, and some do not show it."""
    image = Image.new("RGB", (144, 144), (120, 160, 220))
    image.paste(picture(64, 64), (8, 72))
    draw = ImageDraw.Draw(image)
    for n in range(8):
        draw.line((10, 76 + 7 * n, 70, 74 + 7 * n), fill=(250 - 30 * n, 40, 30 * n))
    return image


def nearness(image):
    """Decibels between the made small result and the source."""
    small = image.resize((144, 144), Image.Resampling.BICUBIC).convert("RGB")
    squares = ImageStat.Stat(ImageChops.difference(small, source())).sum2
    return -10 * math.log10(sum(squares) / (3 * 144 * 144 * 255**2))


@pytest.fixture
def job(host, probe):
    def run(**settings):
        """The answer, and how often the model was called for it."""
        probe.weights()
        answer = host.dropdown({**LOOSE, **settings}, source=source(), **REQUEST)
        assert answer.status == 200, answer.text[:1000]
        return answer, len(probe.weights())

    return run


@pytest.fixture(scope="module")
def plain(host):
    return host.dropdown(LOOSE, source=source(), **REQUEST)


def worst(answer):
    return float(answer.saved["DINO drift worst"])


def test_tiles_that_drift_are_redone_closer_to_the_source(job, plain):
    _, calls = job()
    answer, more = job(repair_tries=2)
    assert more > calls
    assert nearness(answer.image) > nearness(plain.image)
    assert answer.saved["DINO repair tries"] == "2"


def test_a_bound_on_drift_holds_in_the_finished_picture(job, plain):
    free, calls = job(drift_map=True)
    assert worst(free) > 0.1
    held, same = job(drift_map=True, max_drift=0.05)
    # As reported: three decimals above a floor that the bound does not count.
    assert nearness(held.image) > nearness(plain.image) + 1
    assert worst(held) < worst(free)
    assert same == calls
    assert held.saved["DINO max drift"] == "0.05"


def test_flat_tiles_cost_no_model_call_and_stay_as_they_are(job, plain):
    _, calls = job()
    answer, fewer = job(skip_flat=True)
    assert fewer < calls
    box = (240, 0, 288, 48)
    sky = answer.image.crop(box).convert("RGB")
    assert max(high - low for low, high in sky.getextrema()) <= 2
    assert sky.tobytes() != plain.image.crop(box).convert("RGB").tobytes()


def test_tiles_without_the_subject_get_the_other_prompt(job, plain):
    answer, _ = job(subject_prompt="a plain blue sky")
    changed = ImageChops.difference(answer.image.convert("RGB"), plain.image.convert("RGB"))
    assert changed.getbbox() is not None
    # Tiles that show it are as before.
    assert changed.crop((0, 192, 96, 288)).getbbox() is None


def test_a_noisy_source_is_cleaned_before_tiles_are_held_to_it(host):
    clean = picture(96, 96)
    noise = Image.merge("RGB", [Image.effect_noise((96, 96), 20) for _ in range(3)])
    noisy = ImageChops.add(clean, noise, 1, -128)
    settings = {"scale_factor": 2.0, "tile_size": 128, "overlap": 32, "denoise": 0.2, "texture": 0.0}
    kept, cleaned, again = (
        host.dropdown({**settings, "clean_source": strength}, source=noisy, steps=8) for strength in (0.0, 1.0, 1.0)
    )
    assert cleaned.pixels == again.pixels

    def off(answer):
        small = answer.image.convert("RGB").resize((96, 96), Image.Resampling.BICUBIC)
        return sum(ImageStat.Stat(ImageChops.difference(small, clean)).mean)

    assert off(cleaned) < 0.95 * off(kept)
    assert (kept.saved["DINO clean source"], cleaned.saved["DINO clean source"]) == ("0.0", "1.0")


def test_matching_texture_changes_only_what_the_source_cannot_show(host):
    off, on = (
        host.dropdown({**LOOSE, "consistency": 1.0, "texture": strength}, source=source(), **REQUEST)
        for strength in (0.0, 1.0)
    )
    assert on.pixels != off.pixels
    assert abs(nearness(on.image) - nearness(off.image)) < 3 and nearness(on.image) > 30
    assert (off.saved["DINO texture"], on.saved["DINO texture"]) == ("0.0", "1.0")

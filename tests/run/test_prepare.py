import io

import pytest
import torch
from made import ran
from PIL import Image
from torch.testing import assert_close

from lib_dino.cli.parser import EXAMPLE
from lib_dino.measure.quality import psnr
from lib_dino.networks import cleaner as clean
from lib_dino.pictures.picture import read_picture
from lib_dino.run.prepare import estimate_noise, has_palette, make_reference, needs_features
from lib_dino.sampling.correction import PixelCodec
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize


@pytest.fixture(scope="module")
def sharp():
    """A photograph of 256 px, in steps of 1/255."""
    return eight_bit(resize(read_picture(EXAMPLE).pixels, (256, 256)))


def eight_bit(image):
    return (image.clamp(0, 1) * 255).round() / 255


def noisy(image, sigma, seed=0):
    return eight_bit(image + sigma / 255 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)))


def jpeg(image, quality):
    stream = io.BytesIO()
    Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(stream, "JPEG", quality=quality)
    pixels = torch.frombuffer(bytearray(Image.open(stream).convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(1, image.shape[2], image.shape[3], 3).permute(0, 3, 1, 2) / 255


def test_a_clean_source_is_left_bitwise_alone(sharp):
    found = make_reference(sharp, strength=1.0)
    assert found.image is sharp and found.threshold == 0 and found.removed_rms == 0


@pytest.mark.parametrize(
    ("spoil", "gain"),
    [(lambda x: noisy(x, 4), 1.0), (lambda x: noisy(x, 8), 2.5), (lambda x: jpeg(x, 60), 0.5)],
    ids=["noise 4", "noise 8", "JPEG 60"],
)
def test_noise_and_jpeg_damage_are_taken_off(sharp, spoil, gain):
    given = spoil(sharp)
    found = make_reference(given, strength=1.0)
    assert psnr(found.image, sharp) > psnr(given, sharp) + gain
    assert found.removed_rms == pytest.approx(float((found.image - given).square().mean().sqrt()), rel=1e-3)


def pixel_art(generator, colours=16):
    """Random pixels of a palette of 128 x 96 px: to the network it is all noise."""
    palette = torch.randint(256, (colours, 3), generator=generator) / 255
    return palette[torch.randint(colours, (96, 128), generator=generator)].permute(2, 0, 1)[None]


def test_pixel_art_and_dithering_are_left_bitwise_alone(generator):
    art = pixel_art(generator)
    assert clean.clean_windowed(clean.embedded_cleaner(), art)[1] > 6
    checks = (torch.arange(96)[:, None] + torch.arange(128)) % 2 / 4 + 0.3
    for source in (art, checks.expand(1, 3, 96, 128).clone()):
        found = make_reference(source, strength=1.0)
        assert found.image is source and found.threshold == 0 and found.removed_rms == 0


def test_a_palette_is_few_colours_that_many_pixels_have(generator, sharp):
    art = pixel_art(generator)
    assert has_palette(art) and has_palette(pixel_art(generator, 256))
    assert not has_palette(noisy(art, 1)) and not has_palette(jpeg(art, 90)) and not has_palette(sharp)
    assert not has_palette(art[..., :8, :8])
    grey = sharp.mean(1, keepdim=True).expand(1, 3, 256, 256)
    assert not has_palette(eight_bit(grey)) and has_palette((grey * 15).round() / 15)


def test_damage_too_small_to_be_seen_is_not_spoken_of(sharp):
    given = noisy(resize(sharp, (128, 128)), 8)
    said = [ran(given, Settings(seed=1, dino_enabled=False, clean_source=s), Perfect(sharp)) for s in (0.1, 1.0)]
    assert 0 < 255 * said[0].report().source_cleaned < 1 < 255 * said[1].report().source_cleaned
    assert [any("noise or JPEG damage" in event for event in each.events) for each in said] == [False, True]


def test_half_the_strength_goes_half_the_way_and_nought_holds_to_the_source(sharp):
    given = noisy(sharp, 8)
    none, half, full = (make_reference(given, strength=s) for s in (0.0, 0.5, 1.0))
    assert none.image is given and isinstance(none.threshold, float) and none.threshold > 0
    assert_close(half.image, (given + full.image) / 2)
    assert half.removed_rms == pytest.approx(full.removed_rms / 2)


def test_large_sources_are_cleaned_window_by_window_without_a_trace(sharp, monkeypatch):
    given = noisy(sharp, 8)[..., :201, :167]
    whole = make_reference(given, strength=1.0)
    monkeypatch.setattr(clean, "WINDOW_PX", 64)
    pieces = make_reference(given, strength=1.0)
    assert_close(pieces.image, whole.image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (31, 33)])
def test_any_size_can_be_cleaned(generator, size):
    source = torch.rand(1, 3, *size, generator=generator)
    assert make_reference(source, strength=1.0).image.shape == source.shape


class Perfect:
    """A model that paints the original."""

    name, tile_px, multiple_px, channels, factor, fits_any_tile = "perfect", 512, 1, 3, 1, True

    def __init__(self, original):
        self.original = original

    def calls(self, denoise, steps):
        return 1 if denoise else 0

    def render(self, batch, corrector, on_step):
        on_step()
        return (corrector(2 * self.original - 1, 0.1, PixelCodec()) + 1) / 2


def test_what_was_taken_off_is_not_put_back(sharp):
    given = noisy(resize(sharp, (128, 128)), 8)

    def result(strength):
        settings = Settings(seed=1, dino_enabled=False, clean_source=strength)
        return ran(given, settings, Perfect(sharp))

    cleaned, held = result(1.0), result(0.0)
    assert psnr(cleaned.image, sharp) > psnr(held.image, sharp) + 3
    assert any("noise or JPEG damage" in event for event in cleaned.events)
    assert not any("noise or JPEG damage" in event for event in held.events)
    assert cleaned.report().source_cleaned > 0.01 and held.report().source_cleaned == 0


def test_what_the_mask_protects_is_not_cleaned_either(sharp):
    given = noisy(resize(sharp, (128, 128)), 8)
    enlarged = resize(given, (256, 256)).clamp(0, 1)
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., :128] = 1
    settings = Settings(seed=1, dino_enabled=False)
    for start in (None, enlarged):
        result = ran(given, settings, Perfect(sharp), mask=mask, enlarged=start).image
        assert torch.equal(result[..., 128:], enlarged[..., 128:])
        assert not torch.equal(result[..., :128], enlarged[..., :128])


def test_an_enlarged_picture_of_the_hosts_loses_the_damage_as_well(sharp):
    given = noisy(resize(sharp, (128, 128)), 8)
    enlarged = resize(given, (256, 256)).clamp(0, 1)
    settings = Settings(seed=1, dino_enabled=False, denoise=0.0, consistency=0.0)
    from_host = ran(given, settings, Perfect(sharp), enlarged=enlarged).image
    assert psnr(from_host, ran(given, settings, Perfect(sharp)).image) > 45


def test_noise_is_measured_where_the_picture_is_quiet(generator):
    base = torch.linspace(0.2, 0.8, 128).view(1, 1, 1, 128).expand(1, 3, 128, 128)
    for sigma in (2 / 255, 8 / 255):
        noisy = base + sigma * torch.randn(1, 3, 128, 128, generator=generator)
        assert 0.75 * sigma < estimate_noise(noisy) < 1.15 * sigma
    assert estimate_noise(base) < 1e-4
    assert estimate_noise(torch.rand(1, 3, 4, 4, generator=generator)) == 0

@pytest.mark.parametrize(
    ("settings", "asked", "needs"),
    [
        ({}, {}, False),
        ({"consistency": 0.9}, {}, True),
        ({"consistency": 0.9, "dino_strength": 0.0}, {}, False),
        ({"consistency": 0.9, "dino_enabled": False}, {}, False),
        ({"dino_enabled": False, "repair_tries": 1}, {}, True),
        ({"dino_enabled": False, "max_drift": 0.1}, {}, True),
        ({"dino_enabled": False, "skip_flat": True}, {}, True),
        ({"dino_enabled": False}, {"measures": True}, True),
        ({"dino_enabled": False}, {"adapts": True}, True),
        ({"dino_enabled": False}, {"finds_subject": True}, True),
    ],
)
def test_features_are_needed_for_whatever_looks_at_them_and_for_nothing_else(settings, asked, needs):
    given = {"measures": False, "adapts": False, **asked}
    assert needs_features(Settings(**settings), **given) is needs

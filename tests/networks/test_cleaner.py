import io

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from lib_dino.cli.parser import EXAMPLE
from lib_dino.errors import ModelError
from lib_dino.measure.quality import psnr
from lib_dino.networks import cleaner as clean
from lib_dino.networks.cleaner import Cleaner, held_to, load_cleaner, save_cleaner
from lib_dino.pictures.picture import read_picture
from lib_dino.run.run import Run
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
    found = held_to(sharp, strength=1.0)
    assert found.image is sharp and found.dead_zone == 0 and found.taken == 0


@pytest.mark.parametrize(
    ("spoil", "gain"),
    [(lambda x: noisy(x, 4), 1.0), (lambda x: noisy(x, 8), 2.5), (lambda x: jpeg(x, 60), 0.5)],
    ids=["noise 4", "noise 8", "JPEG 60"],
)
def test_noise_and_jpeg_damage_are_taken_off(sharp, spoil, gain):
    given = spoil(sharp)
    found = held_to(given, strength=1.0)
    assert psnr(found.image, sharp) > psnr(given, sharp) + gain
    assert found.taken == pytest.approx(float((found.image - given).square().mean().sqrt()), rel=1e-3)


def test_half_the_strength_goes_half_the_way_and_nought_holds_to_the_source(sharp):
    given = noisy(sharp, 8)
    none, half, full = (held_to(given, strength=s) for s in (0.0, 0.5, 1.0))
    assert none.image is given and isinstance(none.dead_zone, float) and none.dead_zone > 0
    assert_close(half.image, (given + full.image) / 2)
    assert half.taken == pytest.approx(full.taken / 2)


def test_large_sources_are_cleaned_window_by_window_without_a_trace(sharp, monkeypatch):
    given = noisy(sharp, 8)[..., :201, :167]
    whole = held_to(given, strength=1.0)
    monkeypatch.setattr(clean, "WINDOW_PX", 64)
    pieces = held_to(given, strength=1.0)
    assert_close(pieces.image, whole.image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (31, 33)])
def test_any_size_can_be_cleaned(generator, size):
    source = torch.rand(1, 3, *size, generator=generator)
    assert held_to(source, strength=1.0).image.shape == source.shape


class Perfect:
    """A model that paints the original."""

    name, tile_px, multiple_px, channels, factor, fits_any_tile = "perfect", 512, 1, 3, 1, True

    def __init__(self, original):
        self.original = original

    def calls(self, denoise, steps):
        return 1 if denoise else 0

    def __call__(self, tiles, noise, *, denoise, steps, correct, called):
        called()
        return (correct(2 * self.original - 1, 0.1, PixelCodec()) + 1) / 2


def test_what_was_taken_off_is_not_put_back(sharp):
    given = noisy(resize(sharp, (128, 128)), 8)

    def result(strength):
        settings = Settings(seed=1, dino_enabled=False, clean_source=strength)
        return Run(given, (256, 256), settings, Perfect(sharp))

    cleaned, held = result(1.0), result(0.0)
    assert psnr(cleaned.render(), sharp) > psnr(held.render(), sharp) + 3
    assert any("noise or JPEG damage" in event for event in cleaned.events())
    assert not any("noise or JPEG damage" in event for event in held.events())
    assert cleaned.report(sharp, 0.0).source_cleaned > 0.01 and held.report(sharp, 0.0).source_cleaned == 0


def test_what_the_mask_protects_is_not_cleaned_either(sharp):
    given = noisy(resize(sharp, (128, 128)), 8)
    enlarged = resize(given, (256, 256)).clamp(0, 1)
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., :128] = 1
    settings = Settings(seed=1, dino_enabled=False)
    for start in (None, enlarged):
        result = Run(given, (256, 256), settings, Perfect(sharp), mask=mask, enlarged=start).render()
        assert torch.equal(result[..., 128:], enlarged[..., 128:])
        assert not torch.equal(result[..., :128], enlarged[..., :128])


def test_an_enlarged_picture_of_the_hosts_loses_the_damage_as_well(sharp):
    given = noisy(resize(sharp, (128, 128)), 8)
    enlarged = resize(given, (256, 256)).clamp(0, 1)
    settings = Settings(seed=1, dino_enabled=False, denoise=0.0, consistency=0.0)
    from_host = Run(given, (256, 256), settings, Perfect(sharp), enlarged=enlarged).render()
    assert psnr(from_host, Run(given, (256, 256), settings, Perfect(sharp)).render()) > 45


def test_files_are_read_back_and_damaged_ones_refused(tmp_path, generator):
    cleaner = Cleaner(width=8, blocks=1).eval()
    path = tmp_path / "model.safetensors"
    save_cleaner(cleaner, path)
    again = load_cleaner(path)
    image = torch.rand(1, 3, 8, 8, generator=generator)
    with torch.no_grad():
        for one, two in zip(cleaner(image), again(image), strict=True):
            assert_close(one, two, atol=1e-2, rtol=0)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="no network that cleans"):
        load_cleaner(path)
    with pytest.raises(ModelError, match=r"missing\.safetensors"):
        load_cleaner(tmp_path / "missing.safetensors")

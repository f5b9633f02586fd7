"""Source consistency inside the loop through the checkpoint's own VAE, off until the settings page asks for it."""

import math
from contextlib import contextmanager

import pytest
from client import picture
from PIL import Image, ImageChops, ImageStat

OPTION = "dino_upscale_host_vae"
JOB = {"scale_factor": 2.0, "tile_size": 128, "overlap": 32, "dino_enabled": False, "denoise": 0.75}
KEY = "DINO consistency in loop"


@contextmanager
def vae(host, on):
    assert host.call("/sdapi/v1/options", {OPTION: on}).status == 200
    try:
        yield
    finally:
        host.call("/sdapi/v1/options", {OPTION: False})


@pytest.fixture
def loop_alone(probe):
    probe.final_pass(False)
    yield
    probe.final_pass(True)


def source_psnr(image, source):
    small = image.resize(source.size, Image.Resampling.BICUBIC)
    squares = ImageStat.Stat(ImageChops.difference(small.convert("RGB"), source)).sum2
    return -10 * math.log10(sum(squares) / (3 * source.width * source.height * 255**2))


def upscaled(host, **request):
    return host.dropdown(JOB, source=picture(96, 96), steps=12, sampler_name="Euler", **request)


def test_it_brings_tiles_nearer_to_their_source_and_off_is_as_before(host, loop_alone):
    off = upscaled(host)
    with vae(host, True):
        on, again = upscaled(host), upscaled(host)
    source = picture(96, 96)
    assert source_psnr(on.image, source) > source_psnr(off.image, source) + 1
    assert on.saved[KEY] == "VAE" and KEY not in off.saved
    assert on.pixels == again.pixels
    assert upscaled(host).pixels == off.pixels


def test_tiles_of_one_call_are_held_each_to_their_own_part(host, loop_alone):
    with vae(host, True):
        one = upscaled(host)
        four = host.dropdown({**JOB, "tile_batch_size": 4}, source=picture(96, 96), steps=12, sampler_name="Euler")
    assert source_psnr(four.image, picture(96, 96)) == pytest.approx(source_psnr(one.image, picture(96, 96)), abs=0.5)


def test_nothing_is_said_about_it_where_it_works(host):
    with vae(host, True):
        assert "left out" not in upscaled(host).text

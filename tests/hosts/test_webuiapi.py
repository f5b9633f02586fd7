"""As users of the PyPI package `webuiapi` drive it."""

import urllib.parse

import pytest
from client import SMALL, TITLE, picture

webuiapi = pytest.importorskip("webuiapi", reason="the PyPI package webuiapi is not installed")
SETTINGS = {"steps": 4, "seed": 7, "cfg_scale": 5, "sampler_name": "Euler a", "denoising_strength": 0.5}


@pytest.fixture(scope="module")
def api(host):
    place = urllib.parse.urlsplit(host.address)
    return webuiapi.WebUIApi(host=place.hostname, port=place.port)


@pytest.fixture(scope="module")
def request_fields(host):
    """What the family needs; `distilled_cfg_scale` is as by default."""
    return {name: value for name, value in host.family.request.items() if name == "scheduler"}


def upscaled(api, **more):
    return api.img2img(
        images=[picture()], prompt="a red house", negative_prompt="blurry", width=64, height=64, **SETTINGS, **more
    )


def test_the_script_is_found(api):
    assert TITLE.lower() in api.get_scripts()["img2img"]


def test_dropdown_and_always_on_give_the_pixels_that_plain_http_gives(host, api, request_fields):
    direct = host.dropdown(SMALL).pixels
    chosen = upscaled(api, **request_fields, script_name=TITLE, script_args=[SMALL])
    beside = upscaled(api, **request_fields, alwayson_scripts={TITLE: {"args": [SMALL]}})
    assert chosen.image.size == (128, 96)
    assert chosen.image.tobytes() == beside.image.tobytes() == direct
    assert chosen.info["extra_generation_params"]["DINO upscale"]


def test_a_bad_setting_raises_with_its_name(api):
    with pytest.raises(RuntimeError, match="denoise"):
        upscaled(api, script_name=TITLE, script_args=[{**SMALL, "denoise": 9}])

"""The extension on the host's own tabs: its section of the settings page, and a picture's text sent on by PNG Info."""

import time

import pytest
from client import SMALL, TITLE
from PIL.PngImagePlugin import PngInfo
from test_page import CHOSEN, LINE, page, tab, value  # noqa: F401

OPTIONS = ("model", "folder", "device", "tiny_autoencoder", "host_vae")
SWITCH = "#setting_dino_upscale_host_vae input[type=checkbox]"


def tab_named(window, name):
    """The number of a tab of the host's."""
    return window.run("""
        const buttons = [...document.querySelectorAll('#tabs > .tab-nav > button')];
        return buttons.findIndex((b) => b.innerText.trim() === arguments[0]);
    """, name)  # fmt: skip


@pytest.fixture
def settings_page(page):  # noqa: F811
    tab(page, tab_named(page, "Settings"))
    page.run("""
        const buttons = [...document.querySelectorAll('#settings > .tab-nav > button')];
        buttons.find((b) => b.innerText.trim() === arguments[0]).click();
    """, TITLE)  # fmt: skip
    yield page
    tab(page, 1)


def test_a_switch_on_the_settings_page_takes_effect(host, settings_page):
    def switched(to):
        assert settings_page.run("return document.querySelector(arguments[0]).checked", SWITCH) != to
        settings_page.click(SWITCH)
        time.sleep(0.5)
        settings_page.run("document.querySelector('#settings_submit').click()")
        # Not every host lists extensions' options over its API; what they do shows in a picture.
        end = time.monotonic() + 90
        while ("DINO consistency in loop" in host.dropdown(SMALL).saved) != to:
            assert time.monotonic() < end, "the setting did not arrive"

    shown = settings_page.run("""
        return arguments[0].filter((name) => document.querySelector(`#setting_dino_upscale_${name}`)
            ?.getClientRects().length);
    """, list(OPTIONS))  # fmt: skip
    assert tuple(shown) == OPTIONS
    try:
        switched(True)
        switched(False)
    finally:
        host.call("/sdapi/v1/options", {"dino_upscale_host_vae": False})


def test_png_info_sends_a_result_back_with_its_script_and_settings(host, page, tmp_path):  # noqa: F811
    settings = {"scale_factor": 1.5, "tile_size": 96, "overlap": 24, "dino_strength": 0.35, "denoise": 0.15}
    image = host.dropdown(settings, steps=4).image
    path, text = tmp_path / "result.png", PngInfo()
    text.add_text("parameters", image.info["parameters"])
    image.save(path, pnginfo=text)
    tab(page, tab_named(page, "PNG Info"))
    page.type("#pnginfo_image input[type=file]", str(path))
    page.wait("return document.querySelector('#tab_pnginfo').innerText.includes('DINO strength: 0.35')")
    page.run("document.querySelector('#tab_pnginfo #img2img_tab').click()")
    page.wait("return !!document.querySelector('#img2img_generate').getClientRects().length")
    page.wait(CHOSEN + f" === '{TITLE}'")
    page.wait("return document.querySelector('#dino_upscale_dino_strength input[type=number]').value === '0.35'")
    assert {name: float(value(page, name)) for name in settings} == settings
    page.wait("return dinoUpscale.source()?.width === arguments[0]", image.width)
    page.wait(LINE + f".includes('{image.width} x {image.height} becomes')")

"""The img2img panel in headless Chromium, served by the Gradio of each host; skipped where one of them is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import browser, programs

from lib_dino.webui.panel.arguments import Job, Settings
from lib_dino.webui.panel.size_modes import SIZE_MODES

ROOT = Path(__file__).parents[3]
BY_SCALE, TO_SIZE, TO_AREA = SIZE_MODES
SHOWN = "return !!document.querySelector('#dino_upscale_' + arguments[0])?.getClientRects().length"
VALUE = "return document.querySelector('#dino_upscale_' + arguments[0] + ' input[type=number]').value"
MODE = "return document.querySelector('#dino_upscale_resize input:checked')?.value"
CALLED = """
    const label = document.querySelector('#dino_upscale_group_' + arguments[0] + ' .label-wrap span');
    return label.innerText.trim() === arguments[1];
"""


@pytest.fixture(scope="module", params=["3", "4"])
def window(request):
    python = Path(f"{sys.prefix}-gradio{request.param}") / "bin" / "python"
    if not python.is_file() or programs() is None:
        pytest.skip("Gradio, Chromium or ChromeDriver is not installed")
    environment = {
        **os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONDONTWRITEBYTECODE": "1", "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }  # fmt: skip
    command = [str(python), "-W", "ignore", str(ROOT / "tests" / "panels" / "page.py"), "--serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        cwd=ROOT,
    ) as server:  # fmt: skip
        address = next((line.strip() for line in server.stdout if line.startswith("http")), None)
        assert address, "the page was not served"
        with browser() as opened:
            opened.address = address
            yield opened
        server.terminate()


@pytest.fixture
def page(window):
    """The panel as it is at first."""
    window.open(window.address)
    window.wait(SHOWN, "denoise", seconds=20)
    return window


def fill(page, name, value):
    page.run(
        """
        const field = document.querySelector('#dino_upscale_' + arguments[0] + ' input[type=number]');
        field.value = arguments[1];
        for (const kind of ['input', 'change', 'blur']) field.dispatchEvent(new Event(kind, {bubbles: true}));
        """,
        name, value,
    )  # fmt: skip


def choose(page, mode):
    page.run("""
        const inputs = [...document.querySelectorAll('#dino_upscale_resize input')];
        inputs.find((i) => i.value === arguments[0]).click();
    """, mode)  # fmt: skip


def paste(page, params):
    page.run(
        """
        const field = document.querySelector('#pasted_text textarea');
        field.value = arguments[0];
        field.dispatchEvent(new Event('input', {bubbles: true}));
        """,
        json.dumps(params),
    )
    page.run("setTimeout(() => document.querySelector('#paste').click(), 300)")


def test_one_way_to_give_the_size_is_shown_and_hidden_numbers_do_not_act(page):
    assert page.run(SHOWN, "scale_factor") and not page.run(SHOWN, "width") and not page.run(SHOWN, "megapixels")
    choose(page, TO_SIZE)
    page.wait(SHOWN, "width")
    assert page.run(SHOWN, "height") and not page.run(SHOWN, "scale_factor")
    fill(page, "width", 1200)
    choose(page, TO_AREA)
    page.wait(SHOWN, "megapixels")
    page.wait(VALUE + " === '0'", "width")
    fill(page, "megapixels", 3)
    choose(page, BY_SCALE)
    page.wait(SHOWN, "scale_factor")
    page.wait(VALUE + " === '0'", "megapixels")


def test_a_changed_group_says_so_and_stays_as_open_as_it_was(page):
    assert not page.run(SHOWN, "overlap")
    page.click("#dino_upscale_group_tiles .label-wrap")
    page.wait(SHOWN, "overlap")
    fill(page, "overlap", 32)
    page.wait(CALLED, "tiles", "Tiles (1 changed)")
    assert page.run(SHOWN, "overlap") and not page.run(SHOWN, "max_drift")
    fill(page, "overlap", 64)
    page.wait(CALLED, "tiles", "Tiles")
    assert page.run(SHOWN, "overlap")


def test_a_pasted_text_restores_all_and_opens_nothing(page):
    job = Job(settings=Settings(width=900, denoise=0.35, texture=0.5, max_drift=0.1, tile_size=256, overlap=32))
    paste(page, job.to_infotext())
    page.wait(VALUE + " === '900'", "width")
    page.wait(MODE + f" === '{TO_SIZE}'")
    page.wait(SHOWN, "width")
    page.wait(CALLED, "tiles", "Tiles (2 changed)")
    page.wait(CALLED, "repair_and_limits", "Repair and limits (1 changed)")
    values = {"denoise": "0.35", "texture": "0.5", "max_drift": "0.1", "tile_size": "256", "height": "0"}
    assert {name: page.run(VALUE, name) for name in values} == values
    assert not any(page.run(SHOWN, name) for name in ("texture", "max_drift", "tile_size", "scale_factor"))
    paste(page, Job(settings=Settings(scale_factor=3.0)).to_infotext())
    page.wait(MODE + f" === '{BY_SCALE}'")
    page.wait(SHOWN, "scale_factor")
    assert (page.run(VALUE, "width"), page.run(VALUE, "scale_factor")) == ("0", "3")
    page.wait(CALLED, "tiles", "Tiles")


def test_a_text_of_another_program_leaves_the_size_alone(page):
    choose(page, TO_SIZE)
    page.wait(SHOWN, "width")
    paste(page, {"Steps": "20"})
    fill(page, "width", 700)
    page.wait(VALUE + " === '700'", "width")
    assert page.run(MODE) == TO_SIZE


def test_the_open_panel_of_txt2img_has_the_whole_width_beside_its_neighbours(page):
    # The hosts' own rules for that row, and the class that their script gives to an open accordion.
    page.run(
        """
        const style = document.head.appendChild(document.createElement('style'));
        style.textContent = `
            div.accordions > div.input-accordion { min-width: fit-content !important; }
            div.accordions > div.input-accordion.input-accordion-open { flex: 1 auto; flex-flow: column; }`
            + arguments[0];
        const panel = document.querySelector('#dino_upscale_on_txt2img_enabled');
        panel.querySelector('.label-wrap').click();
        panel.classList.add('input-accordion-open');
        """,
        (ROOT / "style.css").read_text(encoding="utf-8"),
    )
    page.wait("return !!document.querySelector('#dino_upscale_on_txt2img_denoise').getClientRects().length")
    row, panel = page.run("""
        return ['.accordions', '#dino_upscale_on_txt2img_enabled'].map(
            (name) => document.querySelector(name).getBoundingClientRect().width);
    """)
    assert panel == pytest.approx(row, abs=2)

"""What a user sees in a WebUI's page: the same for every host, in headless Chromium."""

import re
import time
from pathlib import Path

import pytest
from browser import browser, programs
from client import TITLE, picture
from PIL import Image

BOX = "const r = document.querySelector(arguments[0])?.getBoundingClientRect();"
RECT = BOX + "return r && r.width ? [r.left, r.top, r.width, r.height] : null"
LINE = "return (document.querySelector('#dino_upscale_summary .dino-upscale-summary')?.innerText || '')"
CALLS = LINE.replace("return ", "return Number(") + ".match(/(\\d+) model calls?/)?.[1])"
SOURCE = "return dinoUpscale.source()?.width"
CHOSEN = "return [...document.querySelectorAll('#script_list input')].find((i) => i.getClientRects().length)?.value"
# The hosts' own: a script that Gradio loads from the web, remarks of Gradio 4 and of Forge's canvas.
FOREIGN = (
    "iframeResizer", "Attempted to select a non-interactive", "Too many arguments", "willReadFrequently",
    "Method not implemented",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(host):
    """A window with the host's page in it, on img2img."""
    if programs() is None:
        pytest.skip("Chromium and ChromeDriver are not installed")
    with browser(1500, 1200) as window:
        window.open(host.address)
        window.wait("return !!window.dinoUpscale && !!document.querySelector('#img2img_generate')", seconds=90)
        time.sleep(2)  # the host's own scripts are not ready earlier
        tab(window, 1)
        yield window
        errors = [e["message"] for e in window.console() if not any(word in e["message"] for word in FOREIGN)]
        assert errors == []


def tab(window, number):
    window.run("document.querySelectorAll('#tabs > .tab-nav > button')[arguments[0]].click()", number)
    time.sleep(0.5)


def upload(window, tmp_path, root, size):
    path = tmp_path / f"source {size[0]}.png"
    picture(*size).save(path)
    window.type(f"{root} input[type=file]", str(path))


def choose(window, name):
    """Take a script of img2img's list."""
    window.run("""
        const list = [...document.querySelectorAll('#script_list input')].find((i) => i.getClientRects().length);
        list.id = 'list_of_scripts';
        list.scrollIntoView({block: 'center'});
    """)
    window.click("#list_of_scripts")
    window.run("document.querySelector('#list_of_scripts').select()")
    window.type("#list_of_scripts", name)
    time.sleep(0.5)
    window.keys("enter")


def fill(window, name, value):
    """Set a number of the panel as by hand."""
    window.run(
        """
        const field = document.querySelector(`#dino_upscale_${arguments[0]} input[type=number]`);
        field.value = arguments[1];
        for (const kind of ['input', 'change', 'blur']) field.dispatchEvent(new Event(kind, {bubbles: true}));
        """,
        name, value,
    )  # fmt: skip


def value(window, name):
    return window.run("return document.querySelector(`#dino_upscale_${arguments[0]} input`).value", name)


def grid_lies_on_picture(window):
    """Whether the grid covers what the page shows of the source."""
    grid = window.run(RECT, ".dino-upscale-grid")
    image = window.run("const r = dinoUpscale.rectOf(dinoUpscale.source().element);"
                       "return [r.left, r.top, r.width, r.height]")  # fmt: skip
    return grid == pytest.approx(image, abs=1.5)


@pytest.fixture(scope="module")
def ready(page, tmp_path_factory):
    """A picture is in, the script is chosen."""
    upload(page, tmp_path_factory.mktemp("page"), "#img2img_image", (160, 120))
    page.wait(SOURCE)
    choose(page, TITLE)
    page.wait(LINE + ".includes('160 x 120 becomes 320 x 240')")
    return page


def test_the_line_and_the_grid_follow_picture_and_controls(ready):
    fill(ready, "tile_size", 128)
    fill(ready, "overlap", 32)
    ready.wait(LINE + ".includes('9 tiles of 128 x 128')")
    data = ready.run("return {...document.querySelector('#dino_upscale_summary .dino-upscale-summary').dataset}")
    assert (data["lefts"], data["tops"], data["target"]) == ("0,96,192", "0,56,112", "320,240")
    ready.wait("return !!document.querySelector('.dino-upscale-grid')")
    assert grid_lies_on_picture(ready)
    fill(ready, "scale_factor", 3)
    ready.wait(LINE + ".includes('becomes 480 x 360')")
    fill(ready, "scale_factor", 2)
    ready.wait(LINE + ".includes('becomes 320 x 240')")


def test_the_line_follows_the_tabs_own_steps(ready):
    before = ready.run(CALLS)
    ready.run("""
        const field = document.querySelector('#img2img_steps input[type=number]');
        field.value = 40;
        for (const kind of ['input', 'change', 'blur']) field.dispatchEvent(new Event(kind, {bubbles: true}));
    """)
    ready.wait(CALLS + " > arguments[0]", before)
    fill(ready, "steps", 11)  # below 10 a tile gets the steps of a few-step model
    ready.wait(CALLS + " < arguments[0]", before)


def test_the_grid_is_hidden_by_its_switch_and_by_another_tab(ready):
    ready.run("document.querySelector('#dino_upscale_summary .dino-upscale-switch input').click()")
    ready.wait("return !document.querySelector('.dino-upscale-grid')")
    ready.run("document.querySelector('#dino_upscale_summary .dino-upscale-switch input').click()")
    ready.wait("return !!document.querySelector('.dino-upscale-grid')")
    tab(ready, 0)
    ready.wait("const g = document.querySelector('.dino-upscale-grid'); return !g || !g.getClientRects().length")
    tab(ready, 1)
    ready.wait("return !!document.querySelector('.dino-upscale-grid')?.getClientRects().length")
    assert grid_lies_on_picture(ready)


def test_every_control_has_a_tooltip(ready):
    found = ready.run("""
        const controls = [...document.querySelectorAll('[id^=dino_upscale_]')].filter((e) => e.querySelector('input')
            && e.matches('.gradio-slider, .gradio-dropdown, .gradio-number, .gradio-checkbox'));
        return controls.map((e) => [e.id, e.title]);
    """)
    assert len(found) > 3 * 15
    switches = ("dino_upscale_enabled", "_enabled-checkbox")
    assert [name for name, title in found if not title and not name.endswith(switches)] == []


@pytest.fixture(scope="module")
def made(ready):
    """A finished upscaling in the gallery."""
    for name, number in (("tile_size", 128), ("overlap", 32), ("denoise", 0.3), ("steps", 4), ("dino_strength", 0.65)):
        fill(ready, name, number)
    time.sleep(1)
    ready.run("document.querySelector('#img2img_generate').click()")
    ready.wait("return document.querySelector('#generation_info_img2img textarea').value.includes('DINO Upscale')",
               seconds=300)  # fmt: skip
    ready.wait("const b = document.querySelector('#dino_upscale_compare'); return b && !b.hidden")
    # The host's live preview covers the gallery until its next look at the progress.
    ready.wait("return !document.querySelector('#img2img_results .livePreview')")
    return ready


def test_the_slider_lies_on_the_result_and_obeys_keys_and_pointer(made):
    made.run("document.querySelector('#dino_upscale_compare').scrollIntoView({block: 'end'})")
    made.click("#dino_upscale_compare")
    left, top, width, height = made.wait(RECT, ".dino-upscale-compare")
    assert width / height == pytest.approx(4 / 3, rel=0.02)
    for name in ("before", "after"):
        assert made.run(RECT, f".dino-upscale-{name}") == pytest.approx([left, top, width, height], abs=1.5)
        made.wait("return document.querySelector(arguments[0]).naturalWidth > 1", f".dino-upscale-{name}")
    now = "return Number(document.querySelector('.dino-upscale-handle').getAttribute('aria-valuenow'))"
    made.keys("left", "left")
    assert made.run(now) == 48
    at, to = (left + width * 0.48, top + height / 3), (left + width * 0.7, top + 30)
    made.pointer(("move", *at), ("down",), ("move", *to), ("up",))
    assert made.run(now) == pytest.approx(70, abs=1)
    assert made.run("const m = document.querySelector('#lightboxModal'); return getComputedStyle(m).display") == "none"
    made.keys("escape")
    assert made.run(RECT, ".dino-upscale-compare") is None


def test_the_text_of_the_result_pasted_back_restores_script_and_controls(made):
    shown = made.run("return document.querySelector('#html_info_img2img').innerText")
    assert "DINO strength: 0.65" in shown and "Script: DINO Upscale" in shown
    names = ("scale_factor", "tile_size", "overlap", "denoise", "steps", "dino_strength")
    before = {name: value(made, name) for name in names}
    for name, other in (("tile_size", 512), ("overlap", 64), ("denoise", 0.9), ("dino_strength", 0.1), ("steps", 9)):
        fill(made, name, other)
    choose(made, "None")
    made.wait("return !document.querySelector('#dino_upscale_summary').getClientRects().length")
    made.run("""
        const prompt = document.querySelector('#img2img_prompt textarea');
        prompt.value = arguments[0];
        prompt.dispatchEvent(new Event('input', {bubbles: true}));
    """, shown.partition("Time taken")[0].strip())  # fmt: skip
    time.sleep(0.5)
    made.run("document.querySelector('#tab_img2img #paste').click()")
    made.wait(CHOSEN + f" === '{TITLE}'")
    made.wait("return document.querySelector('#dino_upscale_dino_strength input[type=number]').value === '0.65'")
    assert {name: value(made, name) for name in names} == before
    made.wait(LINE + ".includes('160 x 120 becomes 320 x 240')")
    # Sent on as the next source, the result keeps its panel.
    made.run("document.querySelector('#img2img_send_to_img2img').click()")
    made.wait("return dinoUpscale.source()?.width === 320")
    made.wait(LINE + ".includes('320 x 240 becomes 640 x 480')")


def test_pictures_dropped_under_references_lend_their_detail(made, tmp_path):
    with Image.open(Path(__file__).parents[2] / "examples" / "astronaut.png") as image:
        photo = image.convert("RGB").crop((150, 60, 374, 284))
    photo.resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / "small.png")
    photo.rotate(5, Image.Resampling.BICUBIC).save(tmp_path / "sharp.png")
    made.type("#img2img_image input[type=file]", str(tmp_path / "small.png"))
    made.wait("return dinoUpscale.source()?.width === 64")
    made.run("document.querySelector('#dino_upscale_group_references .label-wrap')?.click()")
    made.wait("return !!document.querySelector('#dino_upscale_references input[type=file]')")
    made.type("#dino_upscale_references input[type=file]", str(tmp_path / "sharp.png"))
    made.wait("return document.querySelector('#dino_upscale_references').innerText.includes('sharp')")
    for name, number in (("scale_factor", 4), ("tile_size", 256), ("steps", 4), ("dino_strength", 1)):
        fill(made, name, number)
    time.sleep(1)
    made.run("document.querySelector('#img2img_generate').click()")
    told = "return document.querySelector('#generation_info_img2img textarea').value"
    made.wait(f"{told}.includes('DINO references: 1')", seconds=300)
    assert float(re.search(r"DINO references lend: ([\d.]+)", made.run(told)).group(1)) > 0.2

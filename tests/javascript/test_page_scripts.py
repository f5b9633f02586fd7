"""The page's scripts: their rules with Node, their behaviour in Chromium on small pages built like those of the hosts.

Neither is needed to use the extension; where one is not installed, its tests are skipped and say so.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from browser import browser, programs

from lib_dino.settings import INFOTEXT_PICTURE_KEY, INFOTEXT_VERSION_KEY

PAGES = Path(__file__).parents[1] / "page"
SOURCE = (320, 240)
RESULT = "a cat\nSteps: 20, Seed: 1, DINO upscale: 2.0, DINO Upscale version: 0.1.0, Version: 1.9.4"
MAP = RESULT.replace("Version: 1.9.4", "DINO picture: drift map, Version: 1.9.4")
OTHER = "a cat\nSteps: 20, Seed: 1, Version: 1.9.4"
BOX = "const r = document.querySelector(arguments[0])?.getBoundingClientRect();"
RECT = BOX + "return r ? [r.left, r.top, r.width, r.height] : null"


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_rules_of_the_pages_scripts_hold():
    done = subprocess.run(["node", str(PAGES / "rules.js")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_keys_that_tell_a_result_from_the_pictures_beside_it_are_those_that_python_writes():
    script = (PAGES.parent.parent / "javascript" / "dino_upscale_compare.js").read_text(encoding="utf-8")
    assert f"{INFOTEXT_VERSION_KEY}: " in script and f"{INFOTEXT_PICTURE_KEY}: " in script


@pytest.fixture(scope="module")
def window():
    if programs() is None:
        pytest.skip("Chromium and ChromeDriver are not installed")
    with browser() as opened:
        yield opened


@pytest.fixture(params=["gradio3", "gradio4"])
def page(request, window):
    """A page with the extension's panel on it and no picture yet; its console is clean afterwards."""
    window.open((PAGES / f"{request.param}.html").as_uri())
    window.run("localStorage.clear()")
    window.console()
    window.kind = request.param
    yield window
    assert [entry["message"] for entry in window.console()] == []


def put(page, width=SOURCE[0], height=SOURCE[1]):
    page.run("return put(arguments[0], arguments[1])", width, height)


def with_grid(page):
    put(page)
    page.wait("return !!document.querySelector('.dino-upscale-grid')")


def finish(page, *texts, first=0):
    page.run("return finish(arguments[0], 1280, 960, arguments[1])", list(texts), first)
    page.run("dinoUpscale.soon()")
    settle(page)


def settle(page):
    """Until the scripts have looked again."""
    twice = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
    page.call("/execute/async", {"script": twice, "args": []})


def comparing(page):
    with_grid(page)
    finish(page, RESULT)
    page.click("#dino_upscale_compare")
    return page.run(RECT, ".dino-upscale-compare")


def near(found, wanted):
    return found == pytest.approx(wanted, abs=1)


def now(page):
    return float(page.run("return document.querySelector('.dino-upscale-handle').getAttribute('aria-valuenow')"))


def shown_picture(page):
    """Where the source lies in the window: letterboxed by Gradio 3, placed by Forge."""
    left, top, width, height = page.run(RECT, "#img2img_image img")
    scale = min(width / SOURCE[0], height / SOURCE[1])
    inside = SOURCE[0] * scale, SOURCE[1] * scale
    return [left + (width - inside[0]) / 2, top + (height - inside[1]) / 2, *inside]


def test_the_grid_lies_on_the_picture_and_lets_the_mouse_through(page):
    with_grid(page)
    grid = page.run(RECT, ".dino-upscale-grid")
    assert near(grid, shown_picture(page))
    below = page.run(
        "return document.elementFromPoint(arguments[0], arguments[1]).tagName", grid[0] + 50, grid[1] + 50
    )
    assert below == "IMG"
    # Drawn: something at a tile's edge, nothing in the middle of the first tile.
    edge, middle = page.run("""
        const drawn = document.querySelector('.dino-upscale-grid'), c = document.createElement('canvas');
        Object.assign(c, {width: drawn.width, height: drawn.height});
        const pen = c.getContext('2d', {willReadFrequently: true});
        pen.drawImage(drawn, 0, 0);
        return [[0.3, 0.1], [0.15, 0.1]].map(([x, y]) => pen.getImageData(c.width * x, c.height * y, 1, 1).data[3]);
    """)
    assert edge > 0 and middle == 0


def test_python_is_asked_once_for_each_picture_and_each_change_of_the_tab(page):
    page.wait("return asked.length === 1")
    with_grid(page)
    settle(page)
    assert '"width":0,' in page.run("return asked[0]") and page.run("return asked.length") == 2
    assert json.loads(page.run("return asked[1]")) == {
        "width": 320, "height": 240, "batch": False, "steps": 20, "sampler": "Euler a", "checkpoint": "",
    }  # fmt: skip
    put(page, 100, 300)
    page.wait("return asked.length === 3")
    page.run("document.querySelector('#img2img_steps input').value = 33; dinoUpscale.soon()")
    page.wait("return asked.length === 4")
    for _ in range(3):
        page.run("dinoUpscale.soon()")
        settle(page)
    assert page.run("return asked.length") == 4 and '"steps":33' in page.run("return asked[3]")


def test_a_python_that_does_not_answer_is_not_asked_again_and_again(page):
    page.wait("return asked.length === 1")
    page.run("tell = () => {}")
    put(page)
    page.wait("return asked.length === 2")
    for _ in range(3):
        page.run("dinoUpscale.soon()")
        settle(page)
    assert page.run("return asked.length") == 2


def test_the_grid_goes_with_the_switch_which_is_remembered(page):
    with_grid(page)
    assert page.run("return document.querySelector('.dino-upscale-switch input').checked")
    page.click(".dino-upscale-switch input")
    page.wait("return !document.querySelector('.dino-upscale-grid')")
    assert page.run("return localStorage.getItem('dino-upscale-grid')") == "off"
    page.click(".dino-upscale-switch input")
    page.wait("return !!document.querySelector('.dino-upscale-grid')")


def test_the_grid_goes_when_another_script_is_chosen_or_the_picture_is_taken_away(page):
    with_grid(page)
    page.run("document.querySelector('#panel').style.display = 'none'; dinoUpscale.soon()")
    page.wait("return !document.querySelector('.dino-upscale-grid')")
    page.run("document.querySelector('#panel').style.display = ''; dinoUpscale.soon()")
    page.wait("return !!document.querySelector('.dino-upscale-grid')")
    page.run("document.querySelector('#img2img_image img').style.display = 'none'")
    page.wait("return !document.querySelector('.dino-upscale-grid')")


def test_the_grid_follows_a_frame_that_changes_its_size(page):
    with_grid(page)
    if page.kind == "gradio3":
        page.run("document.querySelector('#img2img_image').style.width = '700px'")
    else:  # the user zooms in and pans: what leaves the frame is not drawn
        page.run("Object.assign(document.querySelector('.forge-image').style, {left: '-200px', width: '720px'})")
    settle(page)
    grid = page.run(RECT, ".dino-upscale-grid")
    if page.kind == "gradio3":
        assert near(grid, shown_picture(page))
    else:
        assert near(grid[:3], [*page.run(RECT, ".forge-image-container")[:1], shown_picture(page)[1], 400])
        page.run("document.querySelector('.forge-image').style.left = '100px'")
        settle(page)
        left, _, width, _ = page.run(RECT, ".dino-upscale-grid")
        assert near([left, width], [page.run(RECT, ".forge-image-container")[0] + 100, 300])


def test_the_grid_lies_on_a_canvas_that_is_painted_on_and_in_a_frame_that_is_zoomed(page):
    if page.kind != "gradio3":
        pytest.skip("Forge shows a picture in its own canvas")
    page.run("""
        const canvas = Object.assign(document.createElement('canvas'), {width: 320, height: 240});
        canvas.setAttribute('key', 'drawing');
        canvas.style = 'position: absolute; left: 30px; top: 20px; width: 200px; height: 150px';
        document.querySelector('#img2img_image img').replaceWith(canvas);
        document.querySelector('#img2img_image').style = 'transform: scale(1.5); transform-origin: 0 0';
    """)
    page.wait("return !!document.querySelector('.dino-upscale-grid')")
    canvas = page.run(RECT, "#img2img_image canvas[key]")
    assert canvas[2] == 300 and near(page.run(RECT, ".dino-upscale-grid"), canvas)
    assert '"width":320,"height":240' in page.run("return asked.at(-1)")
    finish(page, RESULT)
    page.run("document.querySelector('#dino_upscale_compare').click()")
    assert page.run("return document.querySelector('.dino-upscale-before').src.slice(0, 15)") == "data:image/png;"


def test_the_button_is_there_for_results_alone(page):
    with_grid(page)
    hidden = "return document.querySelector('#dino_upscale_compare').hidden"
    assert page.run(hidden)
    finish(page, OTHER)
    assert page.run(hidden)
    finish(page, RESULT, MAP)
    assert not page.run(hidden)
    page.run("select(1)")
    page.wait(hidden)
    finish(page, OTHER, OTHER, first=1)
    assert page.run(hidden)


def test_while_a_grid_of_all_pictures_is_chosen_the_first_of_them_is_compared(page):
    with_grid(page)
    finish(page, RESULT + ", grid", RESULT, RESULT, first=1)
    page.run("""
        const [grid, first] = [paint(2560, 960, '#33a'), paint(1280, 960, '#3a3')];
        const items = [...document.querySelectorAll('#img2img_gallery .thumbnail-item img')];
        [items[0].src, items[1].src] = [grid, first];
        document.querySelector('#img2img_gallery .detailed').src = grid;
        return Promise.all(items.map((each) => each.decode())).then(() => true);
    """)
    page.wait("return document.querySelector('#img2img_gallery .detailed').naturalWidth === 2560")
    page.run("dinoUpscale.soon()")
    settle(page)
    page.click("#dino_upscale_compare")
    shown = "const f = document.querySelectorAll('#img2img_gallery .thumbnail-item img')[1].src;"
    assert page.run(shown + "return document.querySelector('.dino-upscale-after').src === f")
    left, _, width, height = page.run(RECT, ".dino-upscale-compare")
    place = page.run(RECT, "#img2img_gallery .detailed")
    assert width / height == pytest.approx(4 / 3, rel=0.01)
    assert near([left + width / 2, height], [place[0] + place[2] / 2, place[3]])
    page.keys("escape")
    page.run("select(1); dinoUpscale.soon()")
    settle(page)
    assert not page.run("return document.querySelector('#dino_upscale_compare').hidden")


def test_the_slider_lies_on_the_result_with_the_source_at_its_size(page):
    box = comparing(page)
    image = page.run(RECT, "#img2img_gallery .detailed")
    assert near(box, [image[0] + (image[2] - image[3] * 4 / 3) / 2, image[1], image[3] * 4 / 3, image[3]])
    before, after = (page.run(RECT, f".dino-upscale-{name}") for name in ("before", "after"))
    assert near(before, box) and near(after, box)
    source = page.run("return document.querySelector('#img2img_image img').src")
    assert page.run("return document.querySelector('.dino-upscale-before').src") == source
    pane = page.run("const r = document.querySelector('.dino-upscale-before').parentElement.getBoundingClientRect();"
                    "return r.width")  # fmt: skip
    assert pane == pytest.approx(box[2] / 2, abs=1)


def test_the_slider_names_itself_and_moves_by_keys_that_no_one_else_hears(page):
    comparing(page)
    page.run("heard.length = 0")
    role, label = page.run("return ['role', 'aria-label'].map((name) => document.activeElement.getAttribute(name))")
    assert role == "slider" and "source and result" in label
    page.keys("left", "left", "left")
    assert now(page) == 47
    page.keys("home")
    assert now(page) == 0
    page.keys("end")
    assert now(page) == 100
    assert page.run("return heard") == []
    page.keys("escape")
    assert page.run(RECT, ".dino-upscale-compare") is None
    assert page.run("return [document.activeElement.id, heard.length]") == ["dino_upscale_compare", 0]


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_the_divider_is_dragged_by_mouse_and_touch_and_the_gallery_hears_no_click(page, kind):
    left, top, width, _ = comparing(page)
    page.run("heard.length = 0")
    page.pointer(
        ("move", left + width / 2, top + 40), ("down",), ("move", left + width / 4, top + 60),
        ("move", left + width * 0.8, top + 60), ("up",), ("move", left + 10, top + 10), kind=kind,
    )  # fmt: skip
    assert now(page) == pytest.approx(80, abs=1)
    pane = page.run("return document.querySelector('.dino-upscale-before').parentElement.getBoundingClientRect().width")
    assert pane == pytest.approx(0.8 * width, abs=2)
    assert page.run("return heard") == []


def test_at_full_size_the_picture_is_dragged_and_the_divider_stays(page):
    left, top, width, _ = comparing(page)
    page.click(".dino-upscale-zoom")
    after = page.run(RECT, ".dino-upscale-after")
    assert near(after[2:], [1280, 960]) and near(after, page.run(RECT, ".dino-upscale-before"))
    page.pointer(("move", left + 40, top + 200), ("down",), ("move", left + 100, top + 230), ("up",))
    moved = page.run(RECT, ".dino-upscale-after")
    assert near([moved[0] - after[0], moved[1] - after[1]], [60, 30]) and now(page) == 50
    page.pointer(("move", left + width / 2, top + 80), ("down",), ("move", left + width * 0.6, top + 80), ("up",))
    assert now(page) == pytest.approx(60, abs=1) and near(page.run(RECT, ".dino-upscale-after"), moved)


def test_arrow_keys_go_on_after_a_click_on_full_size_and_a_pressed_button_keeps_its_focus(page):
    comparing(page)
    page.click(".dino-upscale-zoom")
    page.keys("left")
    assert now(page) == 49
    page.run("document.querySelector('.dino-upscale-zoom').focus()")
    page.keys("enter")
    assert page.run("return document.activeElement.matches('.dino-upscale-zoom')")


def test_the_slider_leaves_nothing_behind(page):
    comparing(page)
    page.click("#dino_upscale_compare")
    assert page.run("return document.querySelectorAll('.dino-upscale-compare').length") == 0
    page.click("#dino_upscale_compare")
    page.run("select(-1); return finish([arguments[0]], 100, 100)", OTHER)
    page.run("dinoUpscale.soon()")
    page.wait("return !document.querySelector('.dino-upscale-compare')")
    finish(page, RESULT)
    page.click("#dino_upscale_compare")
    page.run("document.querySelector('#img2img_generate').click()")
    assert page.run("return document.querySelectorAll('.dino-upscale-compare').length") == 0


def test_the_source_is_the_one_the_result_was_made_from(page):
    with_grid(page)
    made_from = page.run("return document.querySelector('#img2img_image img').src")
    page.run("document.querySelector('#img2img_generate').click()")
    put(page, 64, 48)
    finish(page, RESULT)
    page.click("#dino_upscale_compare")
    assert page.run("return document.querySelector('.dino-upscale-before').src") == made_from

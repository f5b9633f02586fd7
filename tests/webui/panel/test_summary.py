"""The line that says what a job will do, and the tiles it hands to the page."""

import html
import json
import re

import pytest
from made import ran

from lib_dino.run.plan import plan_job
from lib_dino.settings import Settings
from lib_dino.webui.model.family import ASSUMED, Model
from lib_dino.webui.panel.summary import Tab, outlook

XL = Model("sdxl", 4, 1024, 8, False)
FLUX = Model("flux", 16, 1024, 16, True)


def calls(sampler_name, *, denoise, steps):
    """Like the host's first-order samplers; Heun takes two."""
    once = int(min(denoise, 0.999) * steps) + 1 if denoise else 0
    return 2 * once if sampler_name == "Heun" else once


def full_steps(denoise, steps):
    """As for a few-step model: four steps of a tile."""
    return round(4 / denoise) if steps < 10 else steps


def tab(width=640, height=480, **more):
    return Tab.read(json.dumps({"width": width, "height": height, **more}))


def said(values, *, of=None, model=None):
    return outlook(of or tab(), values, model=model, calls=calls, full_steps=full_steps)


def test_the_line_says_size_tiles_and_model_calls():
    found = said({"scale_factor": 2.0, "denoise": 0.2, "steps": 20, "overlap": 64, "tile_size": 512})
    assert found.line == "640 x 480 becomes 1280 x 960 px: 6 tiles of 512 x 512 px, 30 model calls."
    assert found.target == (960, 1280) and len(found.plan) == 6
    assert "1 tile of 128 x 128 px, 0 model calls" in said({"denoise": 0}, of=tab(64, 64)).line


def test_steps_and_sampler_that_are_left_open_are_the_tabs():
    own = tab(64, 64, steps=50, sampler="Heun")
    assert "22 model calls" in said({"steps": 0, "denoise": 0.2, "sampler_name": "Use same sampler"}, of=own).line
    assert "11 model calls" in said({"steps": 0, "denoise": 0.2, "sampler_name": "Euler"}, of=own).line
    assert "5 model calls" in said({"steps": 20, "denoise": 0.2, "sampler_name": "Euler"}, of=own).line


def test_a_few_step_model_is_told_apart_by_its_steps():
    few = said({"steps": 4, "denoise": 0.2}).line
    assert few.endswith("Few-step model: each tile gets 4 steps whatever the denoise.")
    assert "Few-step" not in said({"steps": 20, "denoise": 0.2}).line


def test_tiles_of_a_batch_share_their_calls():
    six = {"tile_size": 512, "denoise": 0.2, "steps": 20}
    assert "10 model calls" in said({**six, "tile_batch_size": 4}).line


def test_an_open_tile_size_follows_the_model_and_says_so():
    assert said({}, model=XL).plan.tile == (960, 1024)
    assert "SDXL" in said({}, model=XL).line
    assert "not known yet" in said({}).line and said({}).plan.tile == (512, 512)
    assert "SD 1.5" not in said({"tile_size": 512}).line
    assert said({}, of=tab(100, 100), model=FLUX).plan.size == (208, 208)


@pytest.mark.parametrize(
    ("values", "word"),
    [({"width": 9999}, "8 times"), ({"overlap": 512, "tile_size": 256}, "Overlap"), ({"scale_factor": 99}, "Scale"),
     ({"scale_factor": 8, "tile_size": 64, "overlap": 0}, "4096 tiles")],
)  # fmt: skip
def test_what_would_be_refused_is_said_beforehand_and_draws_nothing(values, word):
    found = outlook(tab(1000, 1000), values, calls=calls)
    assert word in found.line
    assert found.plan is None and "data-tops" not in found.to_html()


def test_without_a_picture_the_line_asks_for_one():
    assert "Add a picture" in said({}, of=Tab()).line
    assert "data-tops" not in said({}, of=Tab()).to_html()


@pytest.mark.parametrize(
    ("values", "words"),
    [({}, "enlarged 2 times, in tiles of up to 512 x 512 px, 5 model calls a tile."),
     ({"scale_factor": 1.5, "tile_size": 256, "denoise": 0}, "enlarged 1.5 times, in tiles of up to 256 x 256 px, 0 "),
     ({"width": 1024, "height": 768}, "enlarged to 1024 x 768 px, "), ({"width": 1024}, "to a width of 1024 px, "),
     ({"height": 768}, "to a height of 768 px, "), ({"megapixels": 2.5}, "to 2.5 megapixels, "),
     ({"tile_batch_size": 4}, "5 model calls for 4 tiles."), ({"overlap": 512, "tile_size": 256}, "Overlap must be ")],
)  # fmt: skip
def test_of_a_batch_the_line_says_what_happens_to_each_picture(values, words):
    found = said({"denoise": 0.2, "steps": 20, **values}, of=tab(0, 0, batch=True))
    assert words in found.line and "Add a picture" not in found.line
    assert found.plan is None and "data-tops" not in found.to_html()


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "null", '"640x480"', '{"width": 640}', '{"width": "640", "height": 480}', None,
             '{"width": true, "height": 480}', '{"width": -1, "height": 480}', '{"width": 1e400, "height": 2}'],
)  # fmt: skip
def test_nonsense_from_the_page_counts_as_no_picture(text):
    assert Tab.read(text).size is None
    assert Tab.read('{"steps": "many", "sampler": 5}') == Tab(text='{"steps": "many", "sampler": 5}')


def data_of(text):
    return {name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', text)}


def test_the_page_gets_the_very_boxes_that_the_tiles_will_have():
    settings = Settings(scale_factor=1.7, tile_size=200, overlap=40)
    found = said({"scale_factor": 1.7, "tile_size": 200, "overlap": 40}, of=tab(313, 211))
    data = data_of(found.to_html())
    tops, lefts = ([int(n) for n in data[name].split(",")] for name in ("tops", "lefts"))
    width, height = (int(n) for n in data["tile"].split(","))
    boxes = [(y, x, y + height, x + width) for y in tops for x in lefts]
    plan = plan_job(settings, (211, 313), ASSUMED).tiles
    assert boxes == [(t.y0, t.x0, t.y1, t.x1) for t in plan]
    assert data["target"] == "532,359"


@pytest.mark.parametrize("given", [{}, {"tile_size": 256}, {"overlap": 300}, {"scale_factor": 1.35}])
@pytest.mark.parametrize("model", [Model("sd1", 4, 512, 8, False), FLUX], ids=lambda m: m.family)
def test_the_forecast_is_what_a_run_plans(given, model, generator):
    import torch

    class Render:
        name, factor, fits_any_tile = "test", 8, False
        channels, tile_px, multiple_px = model.channels, model.tile_px, model.multiple_px

        def calls(self, denoise, steps):
            return 1

        def render(self, batch, corrector, on_step):
            return batch.images

    settings = Settings(seed=1, dino_enabled=False, **given)
    source = torch.rand(1, 3, 90, 400, generator=generator)
    run = ran(source, settings, Render())
    found = outlook(tab(400, 90), given, model=model, calls=calls)
    assert found.plan == run.plan and found.target == run.job.target_size


def test_what_the_page_sent_comes_back_and_can_end_no_attribute():
    text = '{"sampler": "\\"><script>", "width": 64, "height": 64}'
    made = outlook(Tab.read(text), {}, calls=calls).to_html()
    assert "<script>" not in made
    assert data_of(made)["tab"] == text

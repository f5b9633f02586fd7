"""The nodes in a running ComfyUI: `pytest tests/hosts/test_comfyui.py --comfyui http://127.0.0.1:8188`."""

import json
import time
from pathlib import Path

import pytest
from client import picture
from comfyui import ComfyUI
from PIL import Image, ImageChops, ImageStat


@pytest.fixture(scope="module")
def comfyui(request):
    address = request.config.getoption("--comfyui", default=None)
    if not address:
        pytest.skip("no ComfyUI was named: pytest tests/hosts/test_comfyui.py --comfyui http://127.0.0.1:8188")
    family = request.config.getoption("--family", default="sd1")
    return ComfyUI(address.rstrip("/"), f"tiny-{family}.safetensors", "simple" if family == "flux" else "normal")


@pytest.fixture(scope="module")
def photo():
    """A photograph of 224 px."""
    with Image.open(Path(__file__).parents[2] / "examples" / "astronaut.png") as image:
        return image.convert("RGB").crop((150, 60, 374, 284))


def distance(a, b):
    return sum(ImageStat.Stat(ImageChops.difference(a, b)).rms) / 3


def test_all_nodes_are_known_with_their_limits(comfyui):
    for name in ("DINOUpscale", "ApplyDinoGuidance", "DinoDriftReport"):
        assert comfyui.call(f"/object_info/{name}")[name]["category"] == "image/upscaling"
    inputs = comfyui.call("/object_info/DINOUpscale")["DINOUpscale"]["input"]["required"]
    assert (inputs["dino_strength"][1]["min"], inputs["dino_strength"][1]["max"]) == (0, 1)


@pytest.mark.parametrize(("size", "scale", "wanted"), [((96, 72), 2.0, (192, 144)), ((101, 67), 1.5, (152, 100))])
def test_any_size_comes_out_exactly(comfyui, size, scale, wanted):
    made = comfyui.upscale(picture(*size), scale_factor=scale)
    assert made.ok, made.error
    assert made.images()[0].size == wanted
    assert json.loads(made.text())[0]["result_size"] == [wanted[1], wanted[0]]


def test_the_same_job_gives_the_same_pixels_and_another_seed_others(comfyui):
    source = picture(96, 72)
    first, again, other = (comfyui.upscale(source, seed=seed).pixels() for seed in (3, 3, 4))
    assert first == again and first != other


def test_strength_nought_is_bitwise_off_and_strength_acts_below_full_consistency(comfyui):
    source = picture(96, 72)
    off, nought, half, full = (
        comfyui.upscale(source, consistency=0.5, **s).pixels()[0]
        for s in ({"dino_enabled": False}, {"dino_strength": 0.0}, {"dino_strength": 0.5}, {"dino_strength": 1.0})
    )
    assert off == nought and len({off, half, full}) == 3


def test_consistency_holds_the_picture_to_its_source(comfyui):
    source = picture(96, 72)
    held, free = (comfyui.upscale(source, consistency=c, denoise=0.7).images()[0] for c in (1.0, 0.0))
    away = [distance(image.resize(source.size, Image.Resampling.BICUBIC), source) for image in (held, free)]
    assert away[0] < 0.5 * away[1]


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral", "uni_pc"])
def test_other_samplers_work(comfyui, sampler):
    made = comfyui.upscale(picture(64, 64), sampler_name=sampler, steps=4)
    assert made.ok, made.error
    assert made.images()[0].size == (128, 128)


def test_tile_batches_change_nothing_that_can_be_seen(comfyui):
    source = picture(128, 96)
    one, four = (comfyui.upscale(source, tile_batch_size=size).images()[0] for size in (1, 4))
    assert max(extreme[1] for extreme in ImageChops.difference(one, four).getextrema()) <= 1


def test_it_gives_what_a_webui_gives(comfyui, request):
    """With `--host` too: 11 steps of 20 at a denoise of .5 or .55, as each counts them."""
    if not request.config.getoption("--host", default=None):
        pytest.skip("no WebUI was named beside ComfyUI: --host http://127.0.0.1:7860")
    host, source = request.getfixturevalue("host"), picture(96, 72)
    shared = {"scale_factor": 2.0, "tile_size": 128, "overlap": 32, "consistency": 1.0}
    schedule = {"sampler_name": "Euler", "scheduler": "Normal", "denoise": 0.5, "steps": 20}
    theirs = host.dropdown(
        {**shared, **schedule}, source=source, prompt="a house", negative_prompt="", seed=5, cfg_scale=4.0
    )
    ours = comfyui.upscale(source, **shared, denoise=0.55, steps=11, seed=5, cfg=4.0).images()[0]
    assert max(most for _, most in ImageChops.difference(ours, theirs.image.convert("RGB")).getextrema()) <= 1


def test_the_workflow_of_the_node_it_descends_from_still_runs(comfyui):
    nodes = comfyui.workflow(picture(96, 72))
    links = {"image": ["image", 0], "model": ["model", 0], "vae": ["model", 2], "clip": ["model", 1]}
    old = {
        "scale_factor": 2.0, "denoise": 0.2, "tile_size": 512, "sampler_name": "euler", "scheduler": comfyui.scheduler,
        "steps": 2, "dino_enabled": True, "dino_strength": 0.5, "seed": 2**64 - 1, "prompt": "sharp",
    }  # fmt: skip
    nodes["up"]["inputs"] = {**links, **old}
    made = comfyui.run(nodes)
    assert made.ok, made.error
    assert made.images()[0].size == (192, 144)


def test_references_lend_by_strength(comfyui, photo):
    source = photo.resize((56, 56), Image.Resampling.BICUBIC)
    big = {"scale_factor": 4.0, "tile_size": 256}
    sharp = photo.rotate(4, Image.Resampling.BICUBIC)
    alone = comfyui.upscale(source, dino_strength=1.0, **big).images()[0]
    nought = comfyui.upscale(source, dino_strength=0.0, references=sharp, **big)
    lent = comfyui.upscale(source, dino_strength=1.0, references=sharp, **big)
    assert nought.images()[0].tobytes() == alone.tobytes()
    assert json.loads(lent.text())[0]["references"][0]["covered"] > 0.2
    assert distance(lent.images()[0], photo) < 0.8 * distance(alone, photo)


def ksampler(comfyui, image, *, guided, seed=5):
    nodes = comfyui.base(image)
    nodes["latent"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["image", 0], "vae": ["model", 2]}}
    nodes["guide"] = {
        "class_type": "ApplyDinoGuidance",
        "inputs": {
            "model": ["model", 0], "vae": ["model", 2], "image": ["image", 0], "consistency": 1.0, "dino_strength": 0.5,
        },
    }  # fmt: skip
    nodes["sample"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["guide", 0] if guided else ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["latent", 0], "seed": seed, "steps": 4, "cfg": 4.0, "sampler_name": "euler",
            "scheduler": comfyui.scheduler, "denoise": 0.7,
        },
    }  # fmt: skip
    nodes["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 2]}}
    nodes["out"] = {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}}
    if not guided:
        del nodes["guide"]
    return comfyui.run(nodes)


def test_a_plain_generation_afterwards_is_what_it_was_before(comfyui):
    source = picture(96, 64)
    before = ksampler(comfyui, source, guided=False)
    assert before.ok, before.error
    assert comfyui.upscale(source).ok
    assert ksampler(comfyui, source, guided=False).pixels() == before.pixels()


def test_guidance_holds_what_a_ksampler_makes(comfyui):
    source = picture(96, 64)
    plain, guided = (ksampler(comfyui, source, guided=on) for on in (False, True))
    assert guided.ok, guided.error
    away = [distance(made.images()[0], source) for made in (plain, guided)]
    assert away[1] < away[0]
    assert ksampler(comfyui, source, guided=True).pixels() == guided.pixels()


def test_an_interrupt_ends_the_run_and_the_next_one_is_untouched(comfyui):
    source = picture(128, 128)
    before = comfyui.upscale(source).pixels()
    job = comfyui.begin(comfyui.workflow(source, scale_factor=8.0, steps=10))
    time.sleep(3)
    comfyui.call("/interrupt", {})
    started = time.monotonic()
    assert comfyui.wait(job).interrupted and time.monotonic() - started < 30
    assert comfyui.upscale(source).pixels() == before


def test_the_drift_report_measures_what_another_node_made(comfyui):
    source = picture(96, 72)
    nodes = comfyui.workflow(source)
    nodes["drift"] = {"class_type": "DinoDriftReport", "inputs": {"source": ["image", 0], "result": ["up", 0]}}
    nodes["out"]["inputs"]["images"] = ["drift", 1]
    nodes["text"]["inputs"]["source"] = ["drift", 0]
    made = comfyui.run(nodes)
    assert made.ok, made.error
    assert json.loads(made.text())[0]["drift"]["above"] is not None and made.images()[0].width >= 192


def test_what_tiles_would_get_wrong_is_refused_with_a_sentence(comfyui):
    nodes = comfyui.workflow(picture(64, 64))
    nodes["area"] = {
        "class_type": "ConditioningSetArea",
        "inputs": {"conditioning": ["positive", 0], "width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0},
    }
    nodes["up"]["inputs"]["positive"] = ["area", 0]
    made = comfyui.run(nodes)
    assert not made.ok and "positive carries 'area'" in made.error

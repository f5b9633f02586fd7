"""Other extensions and the host's own extras beside DINO Upscale: each works, or says why it is left out."""

import base64
import io
import json

import pytest
from client import SMALL, TITLE, encoded, picture
from PIL import Image, ImageChops

PLAIN = {**SMALL, "dino_enabled": False}


@pytest.fixture(scope="module")
def scripts(host):
    """Titles of img2img's scripts in lower case, also of those that have no controls."""
    return {name.lower() for name in host.call("/sdapi/v1/scripts").body["img2img"]}


@pytest.fixture(scope="module")
def plain(host):
    return host.dropdown(PLAIN)


def comments(answer):
    return json.loads(answer.body["info"]).get("comments", "") or answer.body["info"]


def beside(host, name, args, settings=PLAIN, **more):
    """Upscale as the chosen script, with the always-on script `name` on."""
    return host.dropdown(settings, alwayson_scripts={name: {"args": args}}, **more)


def needs(scripts, *names):
    found = next((name for name in names if name in scripts), None)
    if found is None:
        pytest.skip(f"the WebUI has none of {', '.join(names)}")
    return found


def test_a_lora_in_the_prompt_acts_once_on_every_tile(host, probe, plain):
    known, lora = host.call("/sdapi/v1/loras").body, host.family.lora_name
    if not any(lora in str(found) for found in known):
        pytest.skip(f"the WebUI has no {lora}: tests/hosts/make_lora.py makes it")
    prompt = f"a red house <lora:{lora}:1>"
    probe.weights()
    host.img2img()
    without = probe.weights()
    host.img2img(prompt=prompt)
    by_the_host = probe.weights()
    acted = host.dropdown(PLAIN, prompt=prompt)
    on_tiles = probe.weights()
    assert acted.pixels != plain.pixels
    assert min(by_the_host) > 1.003 * max(without)
    assert len(on_tiles) >= 4 and on_tiles == pytest.approx([by_the_host[0]] * len(on_tiles), rel=1e-6)
    assert host.dropdown(PLAIN).pixels == plain.pixels
    assert probe.weights() == pytest.approx([without[0]] * len(on_tiles), rel=1e-6)


@pytest.mark.parametrize("way", ["dropdown", "always_on"])
def test_a_detailer_paints_over_the_finished_picture_and_is_not_upscaled_itself(host, probe, scripts, plain, way):
    needs(scripts, "probe detailer")
    probe.seen()
    on = {"Probe detailer": {"args": [True]}}
    if way == "dropdown":
        answer = host.dropdown(PLAIN, alwayson_scripts=on)
    else:
        answer = host.img2img(alwayson_scripts={**on, TITLE: {"args": [PLAIN]}})
    assert probe.seen() == [{"detailed": [128, 96], "dino": False}]
    assert answer.image.size == (128, 96)
    changed = ImageChops.difference(answer.image, plain.image).getbbox()
    assert changed is not None and changed[0] >= 32 and changed[2] <= 96
    assert "DINO upscale" in answer.saved
    assert host.dropdown(PLAIN).pixels == plain.pixels


def test_controlnet_gets_each_tile_with_its_part_of_the_hint(host, probe, scripts):
    needs(scripts, "controlnet")
    hint = picture(64, 48).rotate(180)
    probe.seen()
    beside(host, "ControlNet", [{"image": encoded(hint), "module": "none", "model": "tiny"}])
    calls = probe.seen()
    if not calls or "own" not in calls[0]:
        pytest.skip("the WebUI's ControlNet is not the stand-in")
    assert len(calls) == 6
    for call in calls:
        assert call["tiles"] == [[64, 64]] and call["size"] == [64, 64] and call["upscale_key"]
        part = Image.open(io.BytesIO(base64.b64decode(call["own"])))
        assert part.size == (32, 32)
    first = Image.open(io.BytesIO(base64.b64decode(calls[0]["own"])))
    assert first.tobytes() == hint.crop((0, 0, 32, 32)).tobytes()
    assert len({call["own"] for call in calls}) == 6


def test_hypertile_runs_on_the_tiles(host, scripts, plain):
    needs(scripts, "hypertile")
    answer = host.dropdown(PLAIN, override_settings={"hypertile_enable_unet": True})
    assert answer.image.size == (128, 96)
    assert answer.saved["Hypertile U-Net"] == "True"
    assert host.dropdown(PLAIN).pixels == plain.pixels


def test_the_refiner_is_left_out_and_says_so(host, plain):
    title = host.call("/sdapi/v1/sd-models").body[0]["title"]
    answer = host.dropdown(PLAIN, refiner_checkpoint=title, refiner_switch_at=0.5)
    assert answer.pixels == plain.pixels
    assert "refiner is left out" in str(comments(answer)) or "Refiner" not in answer.saved


def test_soft_inpainting_leaves_the_mask_to_the_upscaling_and_says_so(host, scripts):
    name = needs(scripts, "soft inpainting")
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 24, 48))
    more = {"mask": encoded(mask), "mask_blur": 0, "inpainting_fill": 1}
    alone = host.dropdown(PLAIN, **more)
    answer = beside(host, name, [True], **more)
    assert answer.pixels == alone.pixels


def test_multidiffusion_is_left_out_and_tiled_vae_does_no_harm(host, scripts, plain):
    name = needs(scripts, "tiled diffusion", "multidiffusion integrated")
    answer = beside(host, name, [True])
    assert answer.pixels == plain.pixels
    if "tiled vae" in scripts:
        assert beside(host, "Tiled VAE", [True]).image.size == (128, 96)
    assert host.dropdown(PLAIN).pixels == plain.pixels


def test_lists_of_prompts_give_an_upscaled_picture_each(host):
    found = host.call("/sdapi/v1/script-info").body
    info = next(s for s in found if s["name"] == "prompts from file or textbox" and s["is_img2img"])
    args = [arg["value"] for arg in info["args"]]
    labels = [str(arg["label"]).lower() for arg in info["args"]]
    args[next(i for i, label in enumerate(labels) if "list of prompt inputs" in label)] = "a red house\na blue boat"
    on = {TITLE: {"args": [PLAIN]}}
    answer = host.img2img(script_name=info["name"], script_args=args, alwayson_scripts=on)
    images = [image for image in answer.images if image.size == (128, 96)]
    assert len(images) == 2 and images[0].tobytes() != images[1].tobytes()
    assert images[0].tobytes() == host.dropdown(PLAIN, prompt="a red house a red house").pixels
    assert "a blue boat" in images[1].info["parameters"] and "DINO upscale" in images[1].info["parameters"]


def test_a_grid_of_upscaled_pictures_is_made_where_the_host_makes_grids(host):
    kept = host.options()["return_grid"], host.options()["grid_only_if_multiple"]
    answer = host.dropdown(PLAIN, n_iter=2, save_images=False)
    singles = [image for image in answer.images if image.size == (128, 96)]
    assert len(singles) == 2
    assert len(answer.images) == (3 if kept[0] and len(answer.images) > 2 else 2)


def test_a_prompt_style_reaches_the_tiles(host, plain):
    styles = [style for style in host.call("/sdapi/v1/prompt-styles").body if style["prompt"]]
    if not styles:
        pytest.skip("the WebUI has no prompt styles")
    answer = host.dropdown(PLAIN, styles=[styles[0]["name"]])
    assert answer.pixels != plain.pixels
    assert styles[0]["prompt"].replace("{prompt}", "").strip()[:20] in answer.image.info["parameters"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("sd upscale", ["", 16, 1, 2.0]),
        ("ultimate sd upscale", ["", 64, 64, 8, 32, 64, 0.35, 32, 1, False, 0, False, 8, 0, 2, 2048, 2048, 2]),
    ],
)
def test_the_panel_leaves_the_tiles_of_another_upscaler_alone_and_says_so(host, scripts, name, args):
    chosen = {"script_name": needs(scripts, name), "script_args": args, "denoising_strength": 0.35}
    alone = host.img2img(**chosen)
    both = host.img2img(**chosen, alwayson_scripts={TITLE: {"args": [PLAIN]}})
    # The script's own tiles differ in single bits from call to call.
    apart = ImageChops.difference(both.image, alone.image).convert("L").getextrema()[1]
    assert both.image.size == alone.image.size == (128, 96) and apart <= 2
    assert "DINO left out for" in both.body["info"] and "DINO" not in alone.body["info"]

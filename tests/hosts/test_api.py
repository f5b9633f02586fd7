"""What a WebUI's API promises with DINO Upscale in it; the same for every host."""

import base64
import io
import re
import time
from pathlib import Path

import pytest
from client import SMALL, TITLE, encoded, picture
from PIL import Image, ImageChops, ImageStat

from lib_dino.webui_settings import FIELDS


def positional(**named):
    values = {"enabled": True, **SMALL, **named}
    last = max(FIELDS.index(name) for name in values)
    return [values.get(name) for name in FIELDS[: last + 1]]


@pytest.fixture(scope="module")
def plain(host):
    """The settings of most tests, guided, as a dictionary for the dropdown."""
    return host.dropdown(SMALL)


def test_script_info_lists_both_scripts_with_every_argument(host):
    found = [s for s in host.call("/sdapi/v1/script-info").body if s["name"] == TITLE.lower()]
    assert {(s["is_img2img"], s["is_alwayson"]) for s in found} == {(True, False), (True, True), (False, True)}
    for script in found:
        assert len(script["args"]) == len(FIELDS)
        labels = [arg["label"] for arg in script["args"]]
        assert len(set(labels)) == len(labels) and all(labels)
        strength = script["args"][FIELDS.index("dino_strength")]
        assert (strength["minimum"], strength["maximum"]) == (0, 1)
        choices = script["args"][FIELDS.index("upscaler")]["choices"]
        assert choices[0] == "None" and len(choices) > 1
        assert "creative" in script["args"][FIELDS.index("preset")]["choices"]


def test_the_result_has_the_size_asked_for_and_says_how_it_was_made(plain):
    assert plain.image.size == (128, 96)
    assert plain.saved["DINO upscale"] == "2.0"
    assert plain.saved["DINO tile"] == "64"
    assert plain.saved["Size"] == "128x96"
    assert plain.saved["Seed"] == "7"
    assert plain.saved["Denoising strength"] == "0.5"
    assert plain.saved["Script"] == TITLE
    assert len(plain.images) == 1


def test_dropdown_and_always_on_give_the_same_pixels_by_name_and_by_position(host, plain):
    assert host.always_on(SMALL).pixels == plain.pixels
    assert host.dropdown(*positional()).pixels == plain.pixels
    assert host.always_on(*positional(denoise=None)).pixels == plain.pixels


def test_names_may_come_in_any_order(host, plain):
    assert host.dropdown(dict(reversed(SMALL.items()))).pixels == plain.pixels


def test_strength_nought_is_bitwise_off(host):
    off = host.dropdown({**SMALL, "dino_enabled": False})
    assert host.dropdown({**SMALL, "dino_strength": 0}).pixels == off.pixels


def test_guidance_acts(host, plain):
    off = host.dropdown({**SMALL, "dino_enabled": False})
    full = host.dropdown({**SMALL, "dino_strength": 1})
    assert len({off.pixels, plain.pixels, full.pixels}) == 3


@pytest.mark.parametrize("sampler", ["DDIM", "UniPC", "Heun", "DPM++ SDE", "DPM++ 2M", "LCM"])
def test_guidance_acts_with_every_kind_of_sampler(host, sampler):
    small = {**SMALL, "scale_factor": 1.5, "sampler_name": sampler, "denoise": 0.75}
    off, on = (host.dropdown({**small, "dino_strength": s}) for s in (0, 1))
    assert off.pixels != on.pixels
    difference = ImageChops.difference(off.image.convert("L"), on.image.convert("L"))
    assert max(difference.getdata()) < 128
    assert on.saved.get("DINO sampler", sampler) == sampler


def test_the_seed_decides_and_is_the_requests_own_unless_given(host, plain):
    assert host.dropdown(SMALL).pixels == plain.pixels
    other = host.dropdown(SMALL, seed=8)
    assert other.pixels != plain.pixels
    assert host.dropdown({**SMALL, "seed": 8}).pixels == other.pixels


def test_denoise_and_steps_fall_back_to_the_request(host, plain):
    assert host.dropdown({**SMALL, "denoise": 0.5, "steps": 4}).pixels == plain.pixels
    assert host.dropdown({**SMALL, "denoise": 0.5, "steps": 4}, denoising_strength=0.9, steps=9).pixels == plain.pixels


@pytest.mark.parametrize(
    ("named", "size"),
    [
        ({"width": 131, "height": 97}, (131, 97)),
        ({"width": 150}, (150, 112)),
        ({"scale_factor": 1.01}, (65, 48)),
        ({"scale_factor": 1}, (64, 48)),
        ({"megapixels": 0.02}, (163, 122)),
    ],
)
def test_any_size_comes_out_exactly(host, named, size):
    assert host.dropdown({**SMALL, "dino_enabled": False, **named}).image.size == size


def test_denoise_nought_leaves_the_model_out(host):
    off = host.dropdown({**SMALL, "denoise": 0, "dino_enabled": False})
    assert off.pixels == host.dropdown({**SMALL, "denoise": 0, "dino_enabled": False}, seed=99).pixels


def test_tile_batches_change_nothing_that_can_be_seen(host):
    one, four = (host.dropdown({**SMALL, "dino_enabled": False, "tile_batch_size": n}).image for n in (1, 4))
    assert max(ImageChops.difference(one, four).convert("L").getdata()) <= 6


def test_only_the_masked_part_is_replaced(host):
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 24, 48))
    # Texture is matched by neighbourhoods, which reach over the mask's border.
    settings = {**SMALL, "dino_enabled": False, "denoise": 0.75, "texture": 0.0}
    masked = host.dropdown(settings, mask=encoded(mask), mask_blur=0, inpainting_fill=1).image
    whole = host.dropdown(settings).image
    untouched = host.dropdown({**settings, "denoise": 0, "consistency": 0}).image
    assert masked.size == (128, 96)
    right, left = (60, 0, 128, 96), (0, 0, 40, 96)
    assert masked.crop(right).tobytes() == untouched.crop(right).tobytes()
    assert masked.crop(left).tobytes() == whole.crop(left).tobytes()


def test_batches_give_one_picture_each_with_its_own_seed(host, plain):
    answer = host.dropdown(SMALL, batch_size=2, n_iter=2)
    images = [image for image in answer.images if image.size == (128, 96)]
    assert len(images) == 4
    assert len({image.tobytes() for image in images}) == 4
    assert images[0].tobytes() == plain.pixels
    assert "Seed: 10" in images[3].info["parameters"]


def test_a_grey_a_transparent_and_a_tiny_picture_are_taken(host):
    small = {**SMALL, "dino_enabled": False}
    assert host.dropdown(small, source=picture().convert("L")).image.mode == "RGB"
    transparent = picture().convert("RGBA")
    transparent.putalpha(128)
    assert host.dropdown(small, source=transparent).image.size == (128, 96)
    assert host.dropdown(small, source=picture(9, 7)).image.size == (18, 14)


def test_upscalers_of_the_host_are_used(host):
    info = next(s for s in host.call("/sdapi/v1/script-info").body if s["name"] == TITLE.lower())
    if "Nearest" not in info["args"][FIELDS.index("upscaler")]["choices"]:
        pytest.skip("the WebUI has no upscaler that needs no file")
    none, nearest = (
        host.dropdown({**SMALL, "denoise": 0, "consistency": 0, "dino_enabled": False, "upscaler": u}).pixels
        for u in ("None", "Nearest")
    )
    assert none != nearest


def test_presets_fill_in_what_is_not_given(host):
    creative = host.dropdown({**SMALL, "preset": "creative", "dino_enabled": False}, steps=2).saved
    assert (creative["DINO denoise"], creative["DINO steps"]) == ("0.5", "28")
    assert creative["DINO preset"] == "creative"
    assert host.dropdown({**SMALL, "preset": "creative", "denoise": 0.1, "steps": 3}).saved["DINO denoise"] == "0.1"


def test_txt2img_upscales_what_it_made(host):
    made = host.txt2img()
    settings = {**SMALL, "denoise": 0, "consistency": 1, "dino_enabled": False}
    large = host.txt2img(alwayson_scripts={TITLE: {"args": [settings]}})
    assert large.image.size == (128, 128)
    assert large.saved["Size"] == "64x64"
    small = large.image.resize((64, 64), Image.Resampling.BICUBIC)
    assert ImageStat.Stat(ImageChops.difference(small, made.image).convert("L")).mean[0] <= 3
    guided = host.txt2img(alwayson_scripts={TITLE: {"args": [{**SMALL, "denoise": 0.5, "steps": 4}]}})
    assert guided.image.size == (128, 128)
    assert "DINO upscale" in guided.saved and "Script" not in guided.saved


def test_the_plot_varies_strength_and_preset(host):
    info = next(s for s in host.call("/sdapi/v1/script-info").body if s["name"] == "x/y/z plot" and s["is_img2img"])
    axes = info["args"][0]["choices"]
    wanted = {"x": ("[DINO Upscale] DINO strength", "0, 1"), "y": ("[DINO Upscale] Tile size", "64, 96")}
    args = [arg["value"] for arg in info["args"]]
    for place, (axis, values) in zip((0, 3), wanted.values(), strict=True):
        args[place], args[place + 1], args[place + 2] = axes.index(axis), values, []
    args[6], args[7], args[8] = 0, "", []
    labels = [arg["label"] for arg in info["args"]]
    args[labels.index("Include Sub Images")] = True
    settings = {**SMALL, "enabled": False, "scale_factor": 1.5, "overlap": 16}
    plot = {"script_name": "x/y/z plot", "script_args": args, "alwayson_scripts": {TITLE: {"args": [settings]}}}
    cells = [image for image in host.img2img(**plot).images if image.size == (96, 72)]
    assert len(cells) == 4
    alone = host.dropdown({**SMALL, "scale_factor": 1.5, "dino_strength": 1, "tile_size": 96})
    assert len({cell.tobytes() for cell in cells}) == 4
    assert alone.pixels in {cell.tobytes() for cell in cells}


def test_off_leaves_a_generation_alone(host):
    before = host.img2img().pixels
    assert host.img2img(alwayson_scripts={TITLE: {"args": [False]}}).pixels == before
    assert host.img2img(alwayson_scripts={TITLE: {"args": [{"enabled": False}]}}).pixels == before


@pytest.fixture(scope="module")
def photo():
    """A photograph of 224 px."""
    with Image.open(Path(__file__).parents[2] / "examples" / "astronaut.png") as image:
        return image.convert("RGB").crop((150, 60, 374, 284))


def test_references_lend_by_strength_and_the_text_says_so(host, photo):
    source, small = photo.resize((56, 56), Image.Resampling.BICUBIC), {"tile_size": 256, "scale_factor": 4}
    alone = host.dropdown(small, source=source)
    arms = {}
    for strength in (0, 0.5, 1):
        lent = {"references": [encoded(photo.rotate(4, Image.Resampling.BICUBIC))], "dino_strength": strength}
        arms[strength] = host.dropdown({**small, **lent}, source=source)
    assert "DINO references" not in alone.saved and "DINO references" not in arms[0].saved
    off = host.dropdown({**small, "dino_strength": 0}, source=source)
    assert arms[0].pixels == off.pixels
    assert len({answer.pixels for answer in arms.values()}) == 3
    assert arms[1].saved["DINO references"] == "1" and float(arms[1].saved["DINO references lend"]) > 0.1


def test_a_reference_of_something_else_changes_nothing(host):
    small = {**SMALL, "consistency": 1.0}
    other = encoded(Image.effect_noise((200, 200), 90).convert("RGB"))
    found = host.dropdown({**small, "references": ["data:image/png;base64," + other]})
    assert found.pixels == host.dropdown(small).pixels
    assert float(found.saved["DINO references lend"]) == 0


BAD = [
    ("denoise", 1.5), ("denoise", "0.2"), ("denoise", True), ("scale_factor", 9), ("scale_factor", 0.5),
    ("scale_factor", 1e308), ("steps", -1), ("steps", 2.5), ("steps", 10**40), ("width", -5), ("width", 10),
    ("tile_size", 7), ("tile_size", 10**9), ("overlap", 64), ("overlap", -1), ("tile_batch_size", 0),
    ("dino_strength", 2), ("dino_strength", [1]), ("dino_enabled", "yes"), ("dino_enabled", 1),
    ("dino_model", "no-such-model"), ("dino_model", {"a": 1}), ("consistency", -0.1), ("preset", "wild"),
    ("preset", 3), ("upscaler", "No such upscaler"), ("sampler_name", "Nonsense"), ("scheduler", "Nonsense"),
    ("seed", -2), ("seed", 2**40), ("seed", "7"), ("megapixels", 5), ("enabled", "on"), ("stepz", 3),
    ("\u00fc\u4e2d", 1), ("references", "/etc/passwd"), ("references", [encoded(picture(8, 8))] * 9), ("references", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda v: str(v)[:20])
@pytest.mark.parametrize("way", ["dropdown", "always_on"])
def test_a_bad_value_is_refused_by_name(host, way, name, value):
    answer = getattr(host, way)({**SMALL, name: value})
    assert answer.status == 422, answer.text[:300]
    assert name in str(answer.body["detail"])


def test_too_many_arguments_are_refused_and_too_few_take_defaults(host):
    given = positional()
    answer = host.dropdown(*given, *[None] * (len(FIELDS) + 1 - len(given)))
    assert answer.status == 422 and "script_args" in answer.text
    assert host.dropdown(True, 1.5, source=picture(40, 40), denoising_strength=0).image.size == (60, 60)
    assert host.dropdown(source=picture(40, 40), denoising_strength=0).image.size == (80, 80)


def test_a_sampler_that_would_return_noise_is_refused(host):
    answer = host.dropdown({**SMALL, "sampler_name": "DDIM", "denoise": 0.1, "steps": 10})
    assert answer.status == 422 and "steps" in answer.text


def test_endless_jobs_are_refused(host):
    answer = host.dropdown({"scale_factor": 8, "tile_size": 64, "overlap": 56}, source=picture(768, 768))
    assert answer.status == 422 and "tile_size" in answer.text


def test_an_interrupt_ends_the_run_and_keeps_what_is_done(host):
    settings = {**SMALL, "scale_factor": 6, "dino_enabled": False, "denoise": 0.9, "steps": 20}
    job = host.in_background(host.dropdown, settings)
    host.wait_for_tile(2)
    host.call("/sdapi/v1/interrupt", {})
    job.join(60)
    assert not job.is_alive()
    stopped = job.answer.image
    assert stopped.size == (384, 288)
    # 8 x 6 tiles of 64 px that share 16 px or more, fewer where a host has them share less.
    done = re.fullmatch(r"after (\d+) of (\d+) tiles", job.answer.saved["DINO stopped"])
    # The line under the bar is at the next tile as soon as the last call of one has been made.
    assert done and 1 <= int(done[1]) < int(done[2]) <= 48
    base = host.dropdown({**settings, "denoise": 0}).image
    first, last = (0, 0, 40, 40), (330, 240, 384, 288)
    assert stopped.crop(first).tobytes() != base.crop(first).tobytes()
    assert max(ImageChops.difference(stopped.crop(last), base.crop(last)).convert("L").getdata()) <= 8


def test_skip_ends_one_picture_and_goes_on_with_the_next(host):
    settings = {**SMALL, "scale_factor": 4, "dino_enabled": False, "denoise": 0.9, "steps": 10}
    job = host.in_background(host.dropdown, settings, n_iter=2)
    host.wait_for_tile(2)
    host.call("/sdapi/v1/skip", {})
    job.join(120)
    images = [image for image in job.answer.images if image.size == (256, 192)]
    second = host.dropdown(settings, seed=8).pixels
    assert len(images) == 2 and images[1].tobytes() == second
    marked = ["DINO stopped: after" in image.info["parameters"] for image in images]
    assert marked == [True, False]


def test_the_live_preview_is_the_whole_canvas(host):
    settings = {**SMALL, "scale_factor": 6, "dino_enabled": False, "denoise": 0.9, "steps": 20}
    job = host.in_background(host.dropdown, settings)
    host.wait_for_tile(3)
    # Asked between the host's own look at a tile and ours, the answer is that tile: the canvas is there a moment later.
    # The canvas is renewed every 0.7 s, and at the speed of tiny networks a tile may stand there until then.
    answers = []
    while len(answers) < 12:
        answers.append(host.call("/sdapi/v1/progress").body)
        time.sleep(0.2)
    host.call("/sdapi/v1/interrupt", {})
    job.join(60)
    assert all(0 < seen["progress"] < 1 for seen in answers)
    previews = [Image.open(io.BytesIO(base64.b64decode(seen["current_image"]))) for seen in answers]
    assert any(image.width / image.height == pytest.approx(4 / 3, rel=0.02) for image in previews)


def test_the_next_normal_generation_is_what_it_was_before(host):
    before = host.img2img(), host.txt2img(), host.options()
    host.dropdown({**SMALL, "dino_strength": 1, "sampler_name": "DDIM", "denoise": 0.8})
    host.always_on({**SMALL, "dino_strength": 1})
    host.dropdown({**SMALL, "denoise": 3})
    after = host.img2img(), host.txt2img(), host.options()
    assert [a.pixels for a in before[:2]] == [a.pixels for a in after[:2]]
    assert before[0].saved == after[0].saved
    assert before[2] == after[2]

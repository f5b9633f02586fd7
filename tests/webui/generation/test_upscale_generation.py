"""The extension in a small stand-in for a WebUI, in both kinds that there are."""

import contextlib
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from standin import make_modules
from standin.host import TABLE, CFGDenoiser, Img2Img, Script, Txt2Img, fields, generation

from lib_dino.errors import ImageError, SettingsError
from lib_dino.networks.dinov2 import Dinov2
from lib_dino.networks.dinov2_weights import Weights
from lib_dino.report.records import DRIFT_KEYS
from lib_dino.settings import INFOTEXT_FAULTY_KEY, INFOTEXT_STOPPED_KEY
from lib_dino.webui import memory
from lib_dino.webui.generation import entry, picture, upscale_generation
from lib_dino.webui.model import model_files as weights
from lib_dino.webui.model.cfg_callbacks import GuidanceError
from lib_dino.webui.tiles import tile_img2img as render

SMALL = {"tile_size": 64, "overlap": 16}


class Block(torch.nn.Module):
    def __init__(self, dim, generator):
        super().__init__()
        self.mix = torch.nn.Parameter(torch.randn(dim, dim, generator=generator) / dim**0.5, requires_grad=False)

    def forward(self, tokens):
        return tokens + torch.tanh(tokens @ self.mix)


@pytest.fixture(scope="module")
def dino():
    """A DINOv2 of one made-up block."""
    generator, dim = torch.Generator().manual_seed(3), 8
    tensors = {
        "cls": torch.zeros(1, 1, dim), "positions": torch.zeros(1, 16, dim),
        "patch.weight": torch.randn(dim, 3, 14, 14, generator=generator) / 14, "patch.bias": torch.zeros(dim),
        "norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim), "blocks.0.norm1.weight": torch.ones(dim),
    }  # fmt: skip
    return Dinov2(Weights(tensors, heads=1), torch.nn.ModuleList([Block(dim, generator)]), name="tiny", backend="test")


@pytest.fixture(params=["a1111", "forge"])
def host(request, tmp_path, monkeypatch, dino):
    held, modules = make_modules(request.param, tmp_path)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(weights, "load", lambda name: dino)
    render._tile_script_class.cache_clear()
    return held


@pytest.fixture
def source(generator):
    # Near one tile, so that each test is quick; smooth, so that features have something to say.
    small = torch.rand(3, 6, 8, generator=generator)
    large = torch.nn.functional.interpolate(small[None], size=(40, 48), mode="bilinear")[0]
    return Image.fromarray((large * 255).byte().permute(1, 2, 0).numpy())


class AlwaysOn(Script):
    """As `scripts/dino_upscale.py` has it."""

    args_from, args_to, filename = 1, 40, "x"

    def title(self):
        return "DINO Upscale"

    def before_process(self, p, *args):
        entry.begin(p, args, own=(AlwaysOn,))

    def postprocess(self, p, processed, *args):
        entry.restore(p, processed)


def dropdown(host, source, settings, *, scripts=(), **values):
    p = generation(host, scripts=scripts, init_images=[source], **{"denoising_strength": 0.5, **values})
    return entry.run_as_script(p, AlwaysOn(), [{**SMALL, **settings}], own=(AlwaysOn,)), p


def pixels(processed):
    return [np.array(image).tobytes() for image in processed.images]


def test_both_ways_in_give_the_same_pixels_at_the_exact_size(host, source):
    chosen, _ = dropdown(host, source, {"scale_factor": 1.7})
    p = generation(
        host, scripts=[AlwaysOn()], args=[{**SMALL, "scale_factor": 1.7}], init_images=[source], denoising_strength=0.5
    )
    assert pixels(host.process_images(p)) == pixels(chosen)
    assert chosen.images[0].size == (82, 68)
    assert p.scripts.swallowed == host.callbacks.swallowed == []


def test_the_callers_generation_stays_as_it_was(host, source):
    p = generation(host, scripts=[AlwaysOn()], args=[False], init_images=[source], seed=5)
    before = fields(p)
    entry.run_as_script(p, AlwaysOn(), [SMALL], own=(AlwaysOn,))
    assert fields(p) == before
    assert p.scripts.callback_map == {}


def test_the_always_on_panel_puts_everything_back(host, source):
    args = [{**SMALL, "clean_source": 0}]
    p = generation(host, scripts=[AlwaysOn()], args=args, init_images=[source], denoising_strength=0.5)
    before = fields(p)
    host.process_images(p)
    after = fields(p)
    made_by_the_host = set(after) - set(before) | {"iteration"}
    assert {k: v for k, v in after.items() if k not in made_by_the_host} == {
        k: v for k, v in before.items() if k not in made_by_the_host
    }
    assert upscale_generation.MARK not in vars(p) and "sample" not in vars(p) and "init" not in vars(p)


def test_strength_nought_is_bitwise_off_and_strength_acts(host, source):
    off, nought, half, full = (
        pixels(dropdown(host, source, {**s, "consistency": 0.5})[0])
        for s in ({"dino_enabled": False}, {"dino_strength": 0}, {"dino_strength": 0.5}, {"dino_strength": 1})
    )
    assert off == nought
    assert len({off[0], half[0], full[0]}) == 3


def test_at_full_consistency_guidance_is_not_even_loaded(host, source, monkeypatch):
    off, _ = dropdown(host, source, {"dino_enabled": False})
    monkeypatch.setattr(weights, "load", lambda name: pytest.fail("the feature network was loaded"))
    assert pixels(dropdown(host, source, {"dino_strength": 1, "consistency": 1})[0]) == pixels(off)


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DDIM", "DPM++ SDE"])
def test_guidance_acts_with_every_kind_of_sampler_and_stays_small(host, source, sampler):
    off, on = (
        dropdown(host, source, {"dino_strength": s, "consistency": 0.5}, sampler_name=sampler)[0] for s in (0, 1)
    )
    difference = np.abs(np.array(off.images[0]).astype(int) - np.array(on.images[0]))
    assert 0 < difference.max() < 100


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ SDE"])
def test_tiles_agree_with_one_whole_tile_whatever_noise_the_sampler_draws(host, source, monkeypatch, sampler):
    # A model that looks at each cell alone: tiles can only differ by their noise, drawn at every step.
    monkeypatch.setattr(CFGDenoiser, "model", lambda self, x, ratio: 0.8 * x)
    settings = {"dino_enabled": False, "denoise": 0.9, "consistency": 0}
    whole, tiled = (
        np.array(dropdown(host, source, {**settings, "tile_size": size}, sampler_name=sampler)[0].images[0]).astype(int)
        for size in (512, 64)
    )
    other = np.array(dropdown(host, source, settings, sampler_name=sampler, seed=2)[0].images[0])
    assert np.abs(whole - tiled).max() <= 4  # the autoencoder's own noise
    assert np.abs(other - tiled).max() > 40


def test_tile_batches_change_nothing(host, source):
    one, four = (dropdown(host, source, {"tile_batch_size": n, "dino_enabled": False})[0] for n in (1, 4))
    difference = np.abs(np.array(one.images[0]).astype(int) - np.array(four.images[0]))
    assert difference.max() <= 3  # the autoencoder's own noise


def test_values_are_rounded_and_not_cut(host, source):
    same, _ = dropdown(host, source, {"scale_factor": 1, "denoise": 0, "clean_source": 0})
    assert pixels(same) == [np.array(source).tobytes()]


def test_each_picture_of_a_batch_has_its_own_seed_and_prompt(host, source):
    many, _ = dropdown(
        host, source, {"dino_enabled": False}, batch_size=2, n_iter=2, prompt=["a", "b", "c", "d"], seed=10
    )
    assert len(set(pixels(many))) == 4
    alone, _ = dropdown(host, source, {"dino_enabled": False}, prompt="d", seed=13)
    assert pixels(alone)[0] == pixels(many)[3]
    assert {prompts for prompts, *_ in host.encoded} == {("a",), ("b",), ("c",), ("d",)}


def test_prompts_are_encoded_once_for_all_tiles_and_all_pictures(host, source):
    settings = {"dino_enabled": False, "scale_factor": 3}
    many, _ = dropdown(host, source, settings, batch_size=2, n_iter=2, prompt="a")
    assert len(many.images) == 4 and len(host.calls) > 8
    assert [prompts for prompts, *_ in host.encoded] == [("a",)]
    dropdown(host, source, settings, prompt="a")
    assert len(host.encoded) == 1
    dropdown(host, source, settings, prompt="b")
    assert [prompts for prompts, *_ in host.encoded] == [("a",), ("b",)]


def test_a_txt2img_encodes_its_prompt_once_at_its_own_size_and_once_for_tiles(host):
    p = generation(host, kind=Txt2Img, scripts=[AlwaysOn()], args=[{**SMALL, "denoise": 0.5}], n_iter=3, prompt="a")
    assert len(host.process_images(p).images) == 3
    assert [prompts for prompts, *_ in host.encoded] == [("a",), ("a",)]


def test_a_schedule_that_the_model_cannot_use_is_replaced_for_the_tiles_and_said(host, source, monkeypatch):
    monkeypatch.setattr(picture, "working_schedule", lambda *asked: "Simple")
    result, p = dropdown(host, source, {"dino_enabled": False})
    assert {q.scheduler for q in host.calls[1:]} == {"Simple"} and p.scheduler == "Automatic"
    assert result.images[0].info["parameters"]["DINO scheduler"] == "Simple"
    assert any("used the schedule Simple" in text for text in result.p.comments)


def test_tiles_of_a_few_step_model_get_its_steps(host, source):
    settings = {"dino_enabled": False, "denoise": 0.25, "steps": 4}
    few, _ = dropdown(host, source, settings)
    assert {q.steps for q in host.calls[1:]} == {16}
    assert few.images[0].info["parameters"]["DINO steps"] == "4"
    assert pixels(few) == pixels(dropdown(host, source, {**settings, "steps": 16})[0])


def test_the_saved_text_gives_the_tile_that_was_used(host, source):
    asked, _ = dropdown(host, source, {"dino_enabled": False, "tile_size": 71})
    assert asked.images[0].info["parameters"]["DINO tile"] == "64"
    assert pixels(asked) == pixels(dropdown(host, source, {"dino_enabled": False, "tile_size": 64})[0])


@pytest.mark.parametrize("tries", [0, 2])
def test_a_model_that_gives_no_numbers_leaves_the_enlarged_source_and_a_line(host, source, tries):
    host.nan_at = lambda call: True
    settings = {"repair_tries": tries, "dino_strength": 1.0, "clean_source": 0}
    lost, _ = dropdown(host, source, settings)
    host.nan_at = lambda call: False
    plain, _ = dropdown(host, source, {**settings, "denoise": 0})
    assert np.abs(np.int16(lost.images[0]) - np.int16(plain.images[0])).max() <= 1
    (line,) = (text for text in lost.p.comments if "no valid picture" in text)
    assert lost.images[0].info["parameters"][INFOTEXT_FAULTY_KEY] == ["4"]
    assert "tiles keep the enlarged source: no valid picture came" in line


def test_one_call_that_gives_no_numbers_costs_a_second_try_and_nothing_else(host, source):
    sound, _ = dropdown(host, source, {"tile_batch_size": 2})
    calls = len(host.seen)
    host.seen.clear()
    host.nan_at = lambda call: call == 0 and not host.failed and not host.__dict__.update(failed=True)
    host.failed = False
    mended, _ = dropdown(host, source, {"tile_batch_size": 2})
    assert host.failed and not any("valid numbers" in text for text in mended.p.comments)
    assert len(host.seen) >= calls and mended.images[0].size == sound.images[0].size
    assert np.array(mended.images[0]).mean() > 10 and pixels(mended) != pixels(sound)


def test_hooks_are_gone_afterwards_and_see_no_other_job(host, source):
    dropdown(host, source, {})
    assert host.callbacks.before == host.callbacks.after == []

    other = generation(host, scripts=[], init_images=[source], width=48, height=40)
    alone = pixels(host.process_images(other))

    class Nested(Script):
        """Another extension's pass in the middle of a tile, as by ADetailer."""

        args_from = args_to = 0
        made = None

        def title(self):
            return "Nested"

        def process_before_every_sampling(self, p, *args, **kwargs):
            if Nested.made is None:
                Nested.made = "on its way"
                inner = generation(host, scripts=[], init_images=[source], width=48, height=40)
                Nested.made = pixels(host.process_images(inner))

    script = Nested()
    script.filename = "n"
    torch.manual_seed(1)
    dropdown(host, source, {"dino_strength": 1}, scripts=[script])
    assert host.callbacks.swallowed == []
    assert len(Nested.made[0]) == len(alone[0])


@pytest.mark.parametrize("error", [RuntimeError("device lost"), ValueError("shape")])
def test_a_failing_guidance_is_logged_once_and_ends_the_run_aloud(host, source, monkeypatch, caplog, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("lib_dino.sampling.correction.guide", fail)
    with pytest.raises(GuidanceError, match=str(error)):
        dropdown(host, source, {"consistency": 0.5})
    assert len([r for r in caplog.records if "DINO guidance stopped" in r.message]) == 1
    assert host.callbacks.before == host.callbacks.after == []


def test_where_guidance_never_fits_into_memory_the_run_ends_and_says_so(host, source, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("lib_dino.sampling.correction.guide", fail)
    with pytest.raises((GuidanceError, MemoryError), match="out of memory"):
        dropdown(host, source, {"consistency": 0.5})
    assert host.callbacks.before == host.callbacks.after == []


def test_a_bad_setting_stops_an_always_on_generation_before_anything_runs(host, source):
    p = generation(host, scripts=[AlwaysOn()], args=[{"denoise": 7}], init_images=[source])
    with pytest.raises(SettingsError) as caught:
        host.process_images(p)
    assert caught.value.field == "denoise"
    assert host.seen == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0), ("n_iter", -1), ("cfg_scale", float("nan")), ("cfg_scale", None), ("seed", 2**70),
        ("prompt", None), ("negative_prompt", None), ("eta", -5.0), ("override_settings", {"no such": 1}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", ["dropdown", "always on"])
def test_a_request_no_host_can_follow_is_refused_by_name_and_stays_as_it_was(host, source, way, field, value):
    scripts, args = ([AlwaysOn()], [SMALL]) if way == "always on" else ([], [])
    p = generation(host, scripts=scripts, args=args, init_images=[source])
    setattr(p, field, value)
    held = {name: repr(v) for name, v in fields(p).items() if not name.startswith(("scripts", "all_"))}
    with pytest.raises(SettingsError) as caught:
        if way == "always on":
            host.process_images(p)
        else:
            entry.run_as_script(p, AlwaysOn(), [SMALL], own=(AlwaysOn,))
    assert caught.value.field == field
    assert {name: repr(v) for name, v in fields(p).items() if name in held} == held
    assert host.seen == []


def test_a_result_no_larger_than_a_latents_cell_is_refused(host):
    with pytest.raises(SettingsError, match="more than 8 px"):
        dropdown(host, Image.new("RGB", (1, 1)), SMALL)


def test_interrupt_ends_within_one_model_call_and_keeps_what_is_done(host, source):
    count = 0

    def interrupt():
        nonlocal count
        count += 1
        if count == 8:
            host.shared.state.interrupted = True

    host.on_call = interrupt
    stopped, _ = dropdown(host, source, {"dino_enabled": False, "scale_factor": 3, "denoise": 0.9})
    assert count == 8
    image = np.array(stopped.images[0])
    base = np.array(dropdown_base(host, source, 3))
    assert image.shape == (120, 144, 3)
    assert (image[:30, :30] != base[:30, :30]).any()
    assert np.abs(image[-30:, -30:].astype(int) - base[-30:, -30:]).max() <= 3
    assert host.callbacks.before == []
    assert stops(stopped) == [["after 1 of 9 tiles"]]


def stops(processed):
    """What the hosts find under the key, picture by picture."""
    return [image.info["parameters"].get(INFOTEXT_STOPPED_KEY) for image in processed.images]


def dropdown_base(host, source, scale):
    host.shared.state.interrupted, host.on_call = False, None
    return dropdown(host, source, {"denoise": 0, "dino_enabled": False, "scale_factor": scale})[0].images[0]


def test_the_first_click_on_interrupt_is_enough(host, source):
    def click():
        host.shared.state.stopping_generation = True

    host.on_call = click
    dropdown(host, source, {"dino_enabled": False, "scale_factor": 3})
    assert len(host.seen) == 0


def test_skip_goes_on_with_the_next_picture(host, source):
    def skip():
        host.on_call = None
        host.shared.state.skipped = True

    host.on_call = skip
    two, _ = dropdown(host, source, {"dino_enabled": False}, batch_size=2, seed=4)
    assert pixels(two)[1] == pixels(dropdown(host, source, {"dino_enabled": False}, seed=5)[0])[0]
    assert stops(two) == [["after 0 of 4 tiles", None]] * 2


def test_what_was_skipped_is_marked_and_nothing_after_it(host, source):
    def skip():
        host.on_call = None
        host.shared.state.skipped = True

    host.on_call = skip
    three, _ = dropdown(host, source, {"dino_enabled": False}, n_iter=3, seed=4)
    assert stops(three) == [["after 0 of 4 tiles"], None, None]


def test_only_the_masked_part_is_replaced_and_other_tiles_are_left_out(host, source):
    mask = Image.new("L", source.size, 0)
    mask.paste(255, (0, 0, 10, 40))
    settings = {"dino_enabled": False, "scale_factor": 4, "denoise": 0.9, "clean_source": 0}
    dropdown(host, source, settings)
    all_tiles = len(host.calls)
    masked, _ = dropdown(host, source, settings, mask=mask, mask_blur_x=0, mask_blur_y=0)
    assert len(host.calls) - all_tiles < all_tiles
    base = np.array(dropdown(host, source, {**settings, "denoise": 0, "consistency": 0})[0].images[0])
    image = np.array(masked.images[0])
    assert (image[:, 60:] == base[:, 60:]).all()
    assert (image[:, :30] != base[:, :30]).any()


def test_txt2img_upscales_what_it_made_and_keeps_its_own_size(host):
    plain = host.process_images(generation(host, kind=Txt2Img, width=48, height=40)).images[0]
    settings = {**SMALL, "denoise": 0, "dino_enabled": False}
    p = generation(host, kind=Txt2Img, scripts=[AlwaysOn()], args=[settings], width=48, height=40)
    large = host.process_images(p).images[0]
    assert large.size == (96, 80) and (p.width, p.height) == (48, 40)
    small = np.array(large.resize(plain.size, Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(small - np.array(plain)).mean() < 2
    guided = generation(host, kind=Txt2Img, scripts=[AlwaysOn()], args=[{**SMALL, "denoise": 0.5}], width=48, height=40)
    assert host.process_images(guided).images[0].size == (96, 80)


def test_progress_counts_all_tiles_and_the_preview_is_the_whole_canvas(host, source):
    dropdown(host, source, {"dino_enabled": False, "scale_factor": 3}, n_iter=2)
    state = host.shared.state
    assert state.job_no == state.job_count == len(host.calls) - 1 + 2
    assert {image.size for image in state.previews} == {(144, 120)}
    assert state.textinfo is None


def test_the_file_of_the_last_prompt_holds_the_picture_and_not_a_tile(host, source):
    dropdown(host, source, {"dino_enabled": False}, prompt="a cat")
    assert (host.folder / "params.txt").read_text() == "a cat, Size: 96x80"


def test_torchs_global_generator_is_left_as_it_was(host, source):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dropdown(host, source, {})
    assert torch.equal(torch.get_rng_state(), before)


def test_every_setting_is_in_the_saved_text(host, source):
    made, _ = dropdown(host, source, {"upscaler": "Nearest", "sampler_name": "Heun"})
    saved = made.images[0].info["parameters"]
    assert saved["Script"] == "DINO Upscale"
    assert saved["DINO upscaler"] == "Nearest" and saved["DINO sampler"] == "Heun"
    assert saved["Denoising strength"] == "0.5"


class Hypertile(Script):
    args_from = args_to = 0
    sizes: list = []  # noqa: RUF012

    def title(self):
        return "Hypertile"

    def process(self, p, *args):
        self.sizes.append((p.width, p.height))


class Detailer(Script):
    args_from = args_to = 0
    sizes: list = []  # noqa: RUF012

    def title(self):
        return "ADetailer"

    def postprocess_image(self, p, pp, *args):
        self.sizes.append(pp.image.size)


def test_other_scripts_act_on_the_picture_or_on_each_tile_and_never_on_both(host, source):
    Hypertile.sizes.clear()
    Detailer.sizes.clear()
    dropdown(host, source, {"dino_enabled": False}, scripts=[Hypertile(), Detailer(), AlwaysOn()], width=512)
    assert set(Hypertile.sizes) == {(64, 64)}
    assert Detailer.sizes == [(96, 80)]


def test_tiles_without_the_subject_get_the_neutral_prompt_and_keep_the_extra_networks(host, monkeypatch):
    # A thing in the upper left of a plain picture; what the network sees is its colour.
    thing = Image.new("RGB", (64, 48), (90, 120, 200))
    thing.paste((220, 40, 30), (4, 4, 22, 22))
    monkeypatch.setattr(
        "lib_dino.measure.drift.feature_grid",
        lambda dino, image, **_: torch.nn.functional.interpolate(image, size=(12, 16), mode="area") - 0.4,
    )
    settings = {"dino_enabled": False, "tile_batch_size": 2, "subject_prompt": "sharp photo"}
    made, _ = dropdown(host, thing, settings, prompt="a fox <lora:fur:1>")
    prompts = [text for texts, *_ in host.encoded for text in texts]
    assert set(prompts) == {"a fox <lora:fur:1>", "sharp photo <lora:fur:1>"}
    assert prompts[0] == "a fox <lora:fur:1>" and prompts[-1] == "sharp photo <lora:fur:1>"
    assert made.images[0].info["parameters"]["DINO subject prompt"] == "sharp photo"

    host.encoded.clear()
    dropdown(host, thing, {"dino_enabled": False}, prompt="a fox")
    assert {text for texts, *_ in host.encoded for text in texts} == {"a fox"}


def test_a_redone_tile_counts_as_one_more_job_of_the_host(host, source, monkeypatch):
    monkeypatch.setattr("lib_dino.run.prepare.Prepared.drift_bound", property(lambda self: 1e-6))
    dropdown(host, source, {"repair_tries": 1, "consistency": 0.0})
    state = host.shared.state
    assert state.job_no == state.job_count


def test_pictures_of_different_sizes_are_refused(host, source):
    p = generation(host, init_images=[source, source.resize((20, 20))], batch_size=2)
    with pytest.raises(Exception, match="init_images"):
        entry.run_as_script(p, AlwaysOn(), [SMALL], own=(AlwaysOn,))


def test_an_img2img_of_the_host_itself_still_works(host, source):
    p = generation(host, kind=Img2Img, init_images=[source], width=48, height=40)
    assert host.process_images(p).images[0].size == (48, 40)


def always_on(host, source, settings, **values):
    p = generation(host, scripts=[AlwaysOn()], args=[{**SMALL, **settings}], init_images=[source], **values)
    return host.process_images(p)


@pytest.mark.parametrize("way", [lambda *a, **k: dropdown(*a, **k)[0], always_on])
def test_a_drift_map_and_the_worst_places_join_the_gallery_when_asked_for(host, source, way):
    settings = {"consistency": 0.0, "dino_enabled": False}
    plain = way(host, source, settings, denoising_strength=0.9)
    shown = way(host, source, {**settings, "drift_map": True}, denoising_strength=0.9)
    assert len(plain.images) == 1
    assert shown.infotexts == ["text 0", "text 0, DINO picture: drift map", "text 0, DINO picture: worst places"]
    assert [image.info["parameters"] for image in shown.images[1:]] == shown.infotexts[1:]
    assert shown.images[0].tobytes() == plain.images[0].tobytes()
    assert host.callbacks.swallowed == []


def test_the_three_figures_are_in_each_pictures_text(host, source):
    settings = {"consistency": 0.0, "dino_enabled": False, "drift_map": True}
    processed, _ = dropdown(host, source, settings, batch_size=2, n_iter=2, steps=2)
    texts = [image.info["parameters"] for image in processed.images[:4]]
    assert texts[0]["DINO drift map"] == "True"
    # The host takes the entry of the picture's place in its own iteration.
    figures = [tuple(float(text[key][n % 2]) for key in DRIFT_KEYS) for n, text in enumerate(texts)]
    assert len(set(figures)) == 4 and all(len(text[DRIFT_KEYS[0]]) == 2 for text in texts)
    alone, _ = dropdown(host, source, settings, seed=processed.p.seed + 2, steps=2)
    assert tuple(float(alone.images[0].info["parameters"][key][0]) for key in DRIFT_KEYS) == figures[2]
    assert not any(key in dropdown(host, source, {})[0].images[0].info["parameters"] for key in DRIFT_KEYS)


def test_figures_and_a_page_are_saved_beside_the_picture_the_host_saved(host, source):
    processed, _ = dropdown(host, source, {"save_report": True})
    path = Path(processed.images[0].already_saved_as)
    assert len(processed.images) == 1
    figures = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert figures["result_size"] == [80, 96] and figures["drift"]["above"] is not None
    assert path.name in path.with_name(f"{path.stem}_report.html").read_text(encoding="utf-8")


def test_what_must_not_be_saved_has_no_files_beside_it(host, source):
    before = set(host.folder.rglob("*"))
    processed, _ = dropdown(host, source, {"save_report": True, "drift_map": True}, do_not_save_samples=True)
    # What was kept while it was made is gone, but for the empty folders.
    assert {path.name for path in set(host.folder.rglob("*")) - before if path.is_file()} <= {"params.txt"}
    assert len(processed.images) >= 2


def test_a_report_that_cannot_be_written_costs_no_picture(host, source, monkeypatch, caplog):
    def broken(*args):
        raise ImageError("the disk is full")

    monkeypatch.setattr("lib_dino.report.page.html_report", broken)
    processed, _ = dropdown(host, source, {"save_report": True})
    assert len(processed.images) == 1
    assert "the disk is full" in caplog.text


class NestedDetailer(Script):
    """Repaints a finished picture by a generation of its own, with all of the tab's scripts and arguments."""

    args_from = args_to = 20
    filename = "detailer"

    def __init__(self, host):
        self.host, self.sizes = host, []

    def title(self):
        return "NestedDetailer"

    def postprocess_image(self, p, pp, *args):
        q = generation(self.host, scripts=[AlwaysOn()], args=[SMALL], init_images=[pp.image], width=64, height=64)
        self.sizes.append(self.host.process_images(q).images[0].size)


@pytest.mark.parametrize("way", ["dropdown", "always on"])
def test_a_generation_in_the_middle_of_an_upscaling_is_not_upscaled(host, source, way):
    detailer = NestedDetailer(host)
    if way == "dropdown":
        dropdown(host, source, {}, scripts=[detailer])
    else:
        host.process_images(generation(host, scripts=[AlwaysOn(), detailer], args=[SMALL], init_images=[source]))
    assert detailer.sizes == [(64, 64)]
    again = host.process_images(generation(host, scripts=[AlwaysOn()], args=[SMALL], init_images=[source]))
    assert again.images[0].size == (96, 80)


def test_a_retired_setting_is_ignored_and_said(host, source):
    plain, _ = dropdown(host, source, {"dino_enabled": False})
    old, _ = dropdown(host, source, {"dino_enabled": False, "allowed_drift": 0.05})
    assert pixels(old) == pixels(plain)
    said = [[text for text in done.p.comments if "allowed_drift" in text] for done in (old, plain)]
    assert len(said[0]) == 1 and said[1] == []


def described(host, **more):
    """The host's model as Forge Neo describes it: its latents' colours come with it."""
    latents = types.SimpleNamespace(latent_channels=4, latent_rgb_factors=TABLE.tolist(), latent_rgb_factors_bias=None)
    vars(host.shared.sd_model).update(model_config=types.SimpleNamespace(latent_format=latents), **more)


def drawn(host, source, **settings):
    p = generation(host, init_images=[source], denoising_strength=0.5)
    chosen = {**SMALL, "denoise": 0.5, "steps": 4, "dino_strength": 1.0, "scale_factor": 2.0, **settings}
    processed = entry.run_as_script(p, types.SimpleNamespace(args_from=1, args_to=2), [chosen], own=())
    assert host.callbacks.swallowed == []
    return processed.images[0], processed


def test_latents_with_a_frame_axis_give_the_very_picture_that_others_give(host, source):
    described(host, is_wan=False)
    plain, _ = drawn(host, source)
    host.frames = True
    described(host, is_wan=True)
    framed, processed = drawn(host, source, tile_batch_size=2)
    assert framed.tobytes() == plain.tobytes()
    off, _ = drawn(host, source, dino_enabled=False, consistency=0)
    assert off.tobytes() != framed.tobytes()
    # The host takes one picture a call, whatever was asked for.
    assert {call.batch_size for call in host.calls} == {1}
    assert not any("nothing" in text or "left out" in text for text in processed.p.comments)


def test_a_host_that_rounds_sides_still_gives_and_names_the_exact_size(host, source):
    described(host, is_wan=False)
    host.rounded = 64
    image, _ = drawn(host, source.crop((0, 0, 37, 29)))
    assert image.size == (74, 58) == image.info["size"]


@pytest.mark.parametrize("silent", ["on_cfg_denoiser", "on_cfg_after_cfg"])
def test_corrections_that_the_host_gives_no_chance_to_are_said_once_and_saved(host, source, silent, caplog):
    setattr(host.callbacks, silent, lambda callback: None)
    image, processed = drawn(host, source)
    said = [text for text in processed.p.comments if "did nothing" in text]
    assert len(said) == 1 and caplog.text.count("did nothing") == 1
    assert image.info["parameters"]["DINO corrections"] == "left out"


def test_latents_that_nobody_has_colours_for_are_said_to_be_unknown(host, source):
    described(host)
    host.shared.sd_model.model_config.latent_format.latent_rgb_factors = None
    _, processed = drawn(host, source)
    assert not any("No colours are known" in text for text in processed.p.comments)
    host.shared.sd_model.model_config = type("Wan", (), {})()
    _, processed = drawn(host, source)
    assert [text for text in processed.p.comments if "No colours are known for the latents of Wan (4 channels)" in text]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_through_every_hook(host, source, dtype):
    settings = {"scale_factor": 1.7, "dino_strength": 1.0, "consistency": 0.5, "clean_source": 0}
    single, _ = dropdown(host, source, settings)
    vars(host.shared.opts)[weights.OPTION_VAE] = True
    exact, _ = dropdown(host, source, settings)
    host.dtype = dtype
    half, _ = dropdown(host, source, settings)
    off, _ = dropdown(host, source, {**settings, "dino_enabled": False})
    vars(host.shared.opts)[weights.OPTION_VAE] = False
    colours, _ = dropdown(host, source, settings)
    saved = half.images[0].info["parameters"]
    assert saved["DINO consistency in loop"] == "VAE" and "DINO corrections" not in saved
    for made, like in ((half, exact), (colours, single)):
        assert made.images[0].size == (82, 68)
        apart = np.abs(np.array(made.images[0]).astype(int) - np.array(like.images[0])).mean()
        assert apart < 1.5
    assert pixels(half) != pixels(off)


@pytest.mark.parametrize("fault", [None, RuntimeError("no")])
def test_the_feature_network_is_on_the_hosts_device_while_pictures_are_made(host, source, dino, monkeypatch, fault):
    sent = []
    monkeypatch.setattr(memory, "feature_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(memory, "_move", lambda network, device: sent.append((network, device.type, len(host.seen))))

    def failing():
        raise fault

    host.on_call = failing if fault else None
    with pytest.raises(RuntimeError) if fault else contextlib.nullcontext():
        dropdown(host, source, {"dino_strength": 1.0, "consistency": 0.5})
    assert [entry[:2] for entry in sent] == [(dino, "cuda"), (dino, "cpu")]
    assert sent[0][2] == 0 and sent[1][2] == len(host.seen)
    assert bool(host.seen) is not bool(fault)


class Chosen(Script):
    """An entry of the script list."""

    def __init__(self, name):
        self.name = name

    def title(self):
        return self.name


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("Ultimate SD upscale", True), ("SD upscale", True), ("X/Y/Z plot", False), ("DINO Upscale", False),
        (None, False),
    ],
)  # fmt: skip
def test_the_panel_leaves_the_tiles_of_an_upscaling_script_alone_and_says_so(host, source, name, left_out):
    p = generation(
        host, scripts=[AlwaysOn()], args=[{**SMALL, "scale_factor": 2}], init_images=[source], denoising_strength=0.5,
        width=48, height=40,
    )  # fmt: skip
    p.scripts.selectable_scripts = [Chosen("Loopback"), Chosen(name or "")]
    p.script_args_value[0] = 2 if name else 0
    made = host.process_images(p)
    assert made.images[0].size == ((48, 40) if left_out else (96, 80))
    said = [text for text in p.comments if "left out" in text]
    assert made.images[0].info["parameters"].get("DINO left out for") == (name if left_out else None)
    assert said == ([f"DINO Upscale is left out: {name} enlarges the picture itself."] if left_out else [])


@pytest.mark.parametrize("fault", [None, RuntimeError("no")])
def test_what_models_for_editing_look_at_is_put_back(host, source, monkeypatch, fault):
    """Forge Neo: the next plain picture's prompt may be remembered, and then nobody sets its reference again."""
    arguments, own = types.SimpleNamespace(ref_latents=["its own"]), torch.ones(1)
    monkeypatch.setitem(sys.modules, "backend", types.ModuleType("backend"))
    monkeypatch.setitem(sys.modules, "backend.args", types.SimpleNamespace(dynamic_args=arguments))
    host.shared.sd_model.ini_latent = own

    def on_call():
        arguments.ref_latents, host.shared.sd_model.ini_latent = ["a tile"], None
        if fault:
            raise fault

    host.on_call = on_call
    with pytest.raises(RuntimeError) if fault else contextlib.nullcontext():
        dropdown(host, source, {"dino_enabled": False})
    assert arguments.ref_latents == ["its own"] and host.shared.sd_model.ini_latent is own


def with_detail(source, generator):
    """A sharp picture of four times the size that looks like `source`."""
    large = np.array(source.resize((source.width * 4, source.height * 4), Image.Resampling.BICUBIC)).astype(float)
    noise = torch.randn(*large.shape[:2], 1, generator=generator).numpy()
    stream = io.BytesIO()
    Image.fromarray((large + 20 * noise).clip(0, 255).astype("uint8")).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def busy(generator):
    """A source with enough to match."""
    small = torch.rand(1, 3, 20, 24, generator=generator)
    large = torch.nn.functional.interpolate(small, size=(40, 48), mode="bicubic")[0].clamp(0, 1)
    return Image.fromarray((large * 255).byte().permute(1, 2, 0).numpy())


def test_references_lend_by_strength_and_the_text_says_so(host, busy, generator, monkeypatch):
    from lib_dino.networks.dinov2 import load_dinov2

    monkeypatch.setattr(weights, "load", lambda name: load_dinov2())
    reference, base = with_detail(busy, generator), {"scale_factor": 4, "tile_size": 192, "overlap": 32}
    arms = {s: dropdown(host, busy, {**base, "references": [reference], "dino_strength": s})[0] for s in (0, 0.5, 1)}
    alone, _ = dropdown(host, busy, {**base, "dino_strength": 1})
    assert pixels(arms[0]) == pixels(alone)
    assert len({pixels(made)[0] for made in arms.values()}) == 3
    saved = arms[1].images[0].info["parameters"]
    assert saved["DINO references"] == ["1"] and float(saved["DINO references lend"][0]) > 0.2
    assert not any("DINO references" in made.images[0].info["parameters"] for made in (alone, arms[0]))


@pytest.mark.parametrize("way", ["dropdown", "panel"])
def test_a_reference_that_is_no_picture_stops_before_anything_runs(host, source, way, monkeypatch):
    settings = {**SMALL, "references": [b"no picture"]}
    with pytest.raises(SettingsError, match="reference 1 should be a picture") as caught:
        if way == "dropdown":
            dropdown(host, source, settings)
        else:
            p = generation(host, scripts=[AlwaysOn()], args=[settings], init_images=[source], denoising_strength=0.5)
            host.process_images(p)
    assert caught.value.field == "references"

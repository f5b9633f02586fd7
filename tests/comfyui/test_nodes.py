import importlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from standin.comfy import Bar, Interrupted, Model, Vae, Video
from torch.testing import assert_close

from lib_dino.errors import DinoError, SettingsError
from lib_dino.pictures.picture import picture_from_pil
from lib_dino.settings import PRESETS, knobs
from lib_dino.tiling.resample import resize

PLAIN = [[torch.zeros(1, 4, 8), {}]]
SETTINGS = {
    "scale_factor": 2.0, "denoise": 0.3, "tile_size": 64, "sampler_name": "euler", "scheduler": "normal", "steps": 3,
    "cfg": 5.0, "dino_enabled": True, "dino_strength": 0.5, "seed": 1, "consistency": 1.0, "preset": "Custom",
    "overlap": 16,
}  # fmt: skip


@pytest.fixture
def nodes(host):
    return importlib.import_module("lib_dino.comfyui.nodes")


@pytest.fixture
def image(generator):
    return torch.nn.functional.interpolate(torch.rand(1, 3, 8, 10, generator=generator), size=(40, 50)).movedim(1, -1)


def upscaled(nodes, image, *, model=None, vae=None, positive=PLAIN, negative=PLAIN, **more):
    with torch.inference_mode():
        return nodes.DinoUpscale.execute(
            image, model or Model(), vae or Vae(), **{**SETTINGS, "positive": positive, "negative": negative, **more}
        )


def test_a_picture_comes_out_in_its_exact_size_with_a_report(nodes, image):
    made, report = upscaled(nodes, image, scale_factor=1.7)
    assert made.shape == (1, 68, 85, 3) and float(made.min()) >= 0 and float(made.max()) <= 1
    [found] = json.loads(report)
    assert found["result_size"] == [68, 85] and found["model"] == "SD15" and found["settings"]["seed"] == 1


def test_what_comfyui_cuts_down_to_whole_steps_is_the_nearest_one(nodes):
    import importlib as loader

    from lib_dino.pictures.picture import Picture

    values = torch.tensor([0.0, 0.4, 0.6, 99.5, 100.49, 254.7, 255.0]) / 255
    made = loader.import_module("lib_dino.comfyui.images").batch([Picture(values.expand(1, 3, 1, -1).clone())])
    assert (255 * made[0, 0, :, 0]).clamp(0, 255).to(torch.uint8).tolist() == [0, 0, 1, 100, 100, 255, 255]


def test_the_same_call_gives_the_same_bits_and_another_seed_others(nodes, image):
    first, again, other = (upscaled(nodes, image, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_it_is_held_to_its_source_by_consistency(nodes, image):
    held, free = (upscaled(nodes, image, consistency=c, texture=0.0, clean_source=0.0)[0] for c in (1.0, 0.0))
    source = image.movedim(-1, 1)
    away = [float((resize(made.movedim(-1, 1), (40, 50)) - source).square().mean()) for made in (held, free)]
    assert away[0] < 0.2 * away[1]


def test_strength_nought_is_bitwise_off_and_strength_acts_below_full_consistency(nodes, image):
    off, nought, full = (
        upscaled(nodes, image, consistency=0.5, **s)[0]
        for s in ({"dino_enabled": False}, {"dino_strength": 0.0}, {"dino_strength": 1.0})
    )
    assert torch.equal(off, nought) and not torch.equal(off, full)


def test_the_callers_model_is_never_changed(nodes, image):
    model = Model()
    upscaled(nodes, image, model=model)
    assert model.model_options == {} and len(model.calls) > 0


def test_tiles_are_sampled_as_the_node_says(nodes, image):
    model = Model()
    upscaled(nodes, image, model=model, sampler_name="heun", cfg=3.5, steps=4, tile_size=64)
    shapes, _, names, schedules, guidance, seeds = zip(*model.calls, strict=True)
    assert set(shapes) == {(1, 4, 8, 8)} and len(shapes) % 4 == 0
    assert (set(names), set(schedules), set(guidance), set(seeds)) == ({"heun"}, {"normal"}, {3.5}, {1})


def test_a_denoise_of_nought_leaves_the_model_out(nodes, image):
    model = Model()
    assert upscaled(nodes, image, model=model, denoise=0.0)[0].shape == (1, 80, 100, 3)
    assert model.calls == []


def test_flow_models_and_latents_with_frames_work(nodes, image):
    assert upscaled(nodes, image, model=Model(flow=True))[0].shape == (1, 80, 100, 3)
    frames = upscaled(nodes, image, model=Model(Video), vae=Vae(frames=True))[0]
    assert_close(frames, upscaled(nodes, image)[0], atol=1e-5, rtol=0)


def test_latents_that_have_no_preview_are_held_at_the_end_alone(nodes, image):
    class Unknown(Video):
        latent_dimensions, latent_rgb_factors = 2, None

    made = upscaled(nodes, image, model=Model(Unknown), consistency=1.0)[0]
    small = resize(made.movedim(-1, 1), (40, 50))
    assert float((small - image.movedim(-1, 1)).abs().mean()) < 0.02


def test_a_tiny_autoencoder_on_disk_holds_tiles_closer(nodes, host, image):
    without = upscaled(nodes, image)[0]
    host.files = {"taesd_decoder.pth": "a", "taesd_encoder.pth": "b"}
    assert not torch.equal(upscaled(nodes, image)[0], without)
    host.files = {"taesd_decoder.pth": "a"}
    assert torch.equal(upscaled(nodes, image)[0], without)


def test_only_the_masked_part_changes(nodes, image):
    mask = torch.zeros(1, 40, 50)
    mask[:, :, 25:] = 1
    made = upscaled(nodes, image, mask=mask)[0]
    plain = resize(image.movedim(-1, 1), (80, 100)).clamp(0, 1).movedim(1, -1)
    assert_close(made[:, :, :46], plain[:, :, :46], atol=0.6 / 255, rtol=0)
    assert float((made - plain)[:, :, 54:].abs().max()) > 0.02


def test_each_picture_of_a_batch_has_its_own_seed_and_report(nodes, image):
    made, report = upscaled(nodes, image.expand(2, -1, -1, -1))
    assert made.shape[0] == 2 and not torch.equal(made[0], made[1])
    assert [found["settings"]["seed"] for found in json.loads(report)] == [1, 2]
    assert torch.equal(made[1:], upscaled(nodes, image, seed=2)[0])


def test_progress_counts_all_pictures_and_shows_tiles(nodes, image):
    upscaled(nodes, image.expand(2, -1, -1, -1))
    values, totals, previews = zip(*Bar.shown, strict=True)
    assert list(values) == sorted(values) and values[-1] == totals[-1]
    assert previews[0] == ("JPEG", (1, 4, 8, 8))


def test_an_interrupt_ends_the_run_within_a_step(nodes, host, image):
    host.interrupt_after = 2
    with pytest.raises(Interrupted):
        upscaled(nodes, image)
    assert host.seen == 3


@pytest.mark.parametrize("key", ["control", "reference_latents", "area", "mask", "gligen", "concat_latent_image"])
@pytest.mark.parametrize("name", ["positive", "negative"])
def test_what_tiles_would_get_wrong_is_refused_by_name(nodes, image, name, key):
    with pytest.raises(SettingsError, match=f"{name} carries '{key}'"):
        upscaled(nodes, image, **{name: [[torch.zeros(1, 4, 8), {key: object()}]]})


def test_a_preset_fills_in_denoise_and_strength_and_leaves_the_steps(nodes, image):
    _, report = upscaled(nodes, image, preset="creative")
    [found] = json.loads(report)
    assert found["settings"]["denoise"] == PRESETS["creative"]["denoise"] and found["settings"]["steps"] == 3


def test_references_lend_their_detail(nodes):
    with Image.open(Path(__file__).parents[2] / "examples" / "astronaut.png") as photo:
        sharp = picture_from_pil(photo).pixels[..., 60:172, 170:282]
    small = resize(sharp, (56, 56)).clamp(0, 1).movedim(1, -1)
    alone, nought, lent = (
        upscaled(nodes, small, references=references, dino_strength=strength)[0]
        for references, strength in ((None, 1.0), (sharp.movedim(1, -1), 0.0), (sharp.movedim(1, -1), 1.0))
    )
    assert torch.equal(alone, nought)
    away = [float((made.movedim(-1, 1) - sharp).square().mean()) for made in (alone, lent)]
    assert away[1] < 0.7 * away[0]


def test_inputs_have_the_limits_and_words_of_their_settings(nodes):
    inputs = {each.id: each.more for each in nodes.DinoUpscale.define_schema().inputs}
    for name in ("scale_factor", "denoise", "dino_strength", "consistency", "overlap", "tile_batch_size"):
        knob = knobs()[name]
        limits = inputs[name]["min"], inputs[name]["max"], inputs[name]["default"]
        assert limits == (knob.low, knob.high, knob.default)
        assert inputs[name]["tooltip"] == knob.help
    ancestor = "image scale_factor denoise tile_size sampler_name scheduler steps dino_enabled dino_strength seed model"
    assert {*ancestor.split(), "vae"} <= set(inputs)


def test_no_two_of_a_nodes_inputs_and_outputs_share_a_name(nodes):
    for node in (nodes.DinoUpscale, nodes.ApplyDinoGuidance, nodes.DinoDriftReport):
        schema = node.define_schema()
        names = [each.id for each in (*schema.inputs, *schema.outputs)]
        assert len(set(names)) == len(names)


def test_workflows_of_the_node_it_descends_from_still_load(nodes, image):
    schema = nodes.DinoUpscale.define_schema()
    given = [
        "scale_factor", "denoise", "tile_size", "sampler_name", "scheduler", "steps", "dino_enabled", "dino_strength",
    ]  # fmt: skip
    widgets = [each.id for each in schema.inputs if each.id not in ("image", "model", "vae")]
    assert schema.node_id == "DINOUpscale" and widgets[:10] == [*given, "seed", "prompt"]
    old = {**{name: SETTINGS[name] for name in given}, "tile_size": 512}
    asked = []

    class Clip:
        def tokenize(self, text):
            return text

        def encode_from_tokens_scheduled(self, tokens):
            asked.append(tokens)
            return PLAIN

    with torch.inference_mode():
        made, _ = nodes.DinoUpscale.execute(
            image, Model(), Vae(), clip=Clip(), prompt="a house", seed=2**64 - 1, **old
        )
    assert made.shape == (1, 80, 100, 3) and asked == ["a house", ""]
    with pytest.raises(SettingsError, match="Neither positive nor clip is connected"):
        nodes.DinoUpscale.execute(image, Model(), Vae(), **old)


def test_guidance_holds_what_any_sampler_makes(nodes, image, host):
    from standin.comfy import sample

    model, vae = Model(paint=1.0), Vae()
    with torch.inference_mode():
        (guided,) = nodes.ApplyDinoGuidance.execute(model, vae, image, consistency=1.0, dino_strength=0.5)
    latents = vae.encode(resize(image.movedim(-1, 1), (80, 96)).movedim(1, -1))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))

    def made(used):
        return vae.decode(sample(
            used, noise, 6, 1.0, "euler", "normal", PLAIN, PLAIN, latents, denoise=0.5, callback=lambda *step: None
        ))  # fmt: skip

    away = [float((made(used) - vae.decode(latents)).square().mean()) for used in (model, guided)]
    assert away[1] < 0.5 * away[0] and model.model_options == {}
    assert torch.equal(made(guided), made(guided)), "a second run begins anew"
    with torch.inference_mode():
        assert nodes.ApplyDinoGuidance.execute(model, vae, image, consistency=0.0, dino_strength=0.0) == (model,)


def test_the_drift_report_measures_pairs_and_draws_a_map(nodes, image):
    large = resize(image.movedim(-1, 1), (80, 100)).clamp(0, 1).movedim(1, -1)
    pasted = large.clone()
    pasted[:, 20:50, 20:50] = torch.rand(1, 30, 30, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        report, drawn = nodes.DinoDriftReport.execute(image, torch.cat([large, pasted]))
    plain, changed = json.loads(report)
    assert changed["drift"]["above"] > plain["drift"]["above"] + 0.01 and changed["drift"]["worst_patch"] > 0.1
    assert drawn.shape[0] == 2 and drawn.shape[-1] == 3
    with pytest.raises(DinoError, match="one source"):
        nodes.DinoDriftReport.execute(image.expand(2, -1, -1, -1), torch.cat([large] * 3))


def test_the_root_is_inert_without_comfyui_and_exports_the_entry_with_it(host):
    root = Path(__file__).parents[2] / "__init__.py"
    spec = importlib.util.spec_from_file_location("dino_root", root, submodule_search_locations=[str(root.parent)])
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["dino_root"] = module
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("comfy_api")}
    try:
        spec.loader.exec_module(module)
        assert not hasattr(module, "comfy_entrypoint")
    finally:
        sys.modules.update(held)
        del sys.modules["dino_root"]

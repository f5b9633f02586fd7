"""What is known of the host's model, before and during a generation."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lib_dino.webui.model.family import expected_model, model_facts


@pytest.mark.parametrize(
    ("facts", "family", "tile", "flow"),
    [
        ({}, "sd1", 512, False),
        ({"is_sdxl": True}, "sdxl", 1024, False),
        ({"is_sd3": True, "latent_channels": 16}, "sd3", 1024, True),
        ({"latent_channels": 16}, "simplenamespace", 1024, True),
    ],
)
def test_the_family_is_told_by_the_models_marks_then_by_its_channels(facts, family, tile, flow):
    model = model_facts(types.SimpleNamespace(**facts))
    assert (model.family, model.tile_px, model.flow) == (family, tile, flow)
    assert model.channels == facts.get("latent_channels", 4)


def test_flux_is_told_by_its_class_and_forges_autoencoder():
    vae = types.SimpleNamespace(latent_channels=16)
    kind = type("Flux", (), {"forge_objects": types.SimpleNamespace(vae=vae, unet=None)})
    assert model_facts(kind()).family == "flux"


def neo(kind, channels, ratio, *, frames=False, sdxl=False):
    """A model as Forge Neo describes it."""
    vae = types.SimpleNamespace(latent_channels=channels, downscale_ratio=ratio)
    described = type(kind, (), {"latent_format": types.SimpleNamespace(latent_channels=channels)})()
    objects = types.SimpleNamespace(vae=vae, unet=None)
    return types.SimpleNamespace(model_config=described, forge_objects=objects, is_wan=frames, is_sdxl=sdxl)


@pytest.mark.parametrize(
    ("model", "family", "label", "factor", "flow"),
    [
        (neo("SD15", 4, 8), "sd1", "SD 1.5", 8, False),
        (neo("SDXL", 4, 8, sdxl=True), "sdxl", "SDXL", 8, False),
        (neo("Mugen", 32, 8, sdxl=True), "mugen", "Mugen", 8, True),
        (neo("Flux2K4B", 128, 16), "flux2", "FLUX.2", 16, True),
        (neo("ZImage", 16, 8), "zimage", "Z-Image", 8, True),
        (neo("QwenImage", 16, (lambda a: a, 8, 8), frames=True), "qwenimage", "Qwen-Image", 8, True),
        (neo("Novel", 48, 32), "novel", "novel", 32, True),
    ],
)
def test_what_the_host_says_of_its_model_comes_first(model, family, label, factor, flow):
    facts = model_facts(model)
    assert (facts.family, facts.label, facts.factor, facts.flow) == (family, label, factor, flow)
    assert facts.channels == model.forge_objects.vae.latent_channels
    assert facts.multiple_px == 64 and facts.latent_format is model.model_config.latent_format
    assert facts.frames is model.is_wan


@pytest.mark.parametrize(
    ("marks", "off", "shown"),
    [({}, False, False), ({"klein": True}, False, True), ({"klein": True}, True, False), ({"edit": True}, True, True)],
)
def test_models_that_are_shown_what_they_start_from_are_known(monkeypatch, marks, off, shown):
    held = types.ModuleType("backend.args")
    held.dynamic_args = types.SimpleNamespace(**marks)
    modules = types.ModuleType("modules")
    modules.shared = types.SimpleNamespace(opts=types.SimpleNamespace(klein_no_reference=off))
    monkeypatch.setitem(sys.modules, "backend.args", held)
    monkeypatch.setitem(sys.modules, "modules", modules)
    assert model_facts(neo("Flux2K4B", 128, 16)).reference is shown


class Checkpoints(types.ModuleType):
    """The host's `sd_models`: a model in memory, and files under the names that the page chooses by."""

    def __init__(self, held, files):
        super().__init__("modules.sd_models")
        self.model_data = types.SimpleNamespace(sd_model=held)
        self.get_closet_checkpoint_match = lambda name: files.get(name)


def named(path):
    return types.SimpleNamespace(filename=str(path))


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Say what is in memory and what is chosen; get what will be used."""

    def ask(held, files, chosen, **shown):
        shared = types.SimpleNamespace(opts=types.SimpleNamespace(data={"sd_model_checkpoint": chosen}))
        modules = types.ModuleType("modules")
        modules.shared, modules.sd_models = shared, Checkpoints(held, files)
        monkeypatch.setitem(sys.modules, "modules", modules)
        return expected_model(**shown)

    return ask


def checkpoint(path, *names):
    header = json.dumps({name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return named(path)


@pytest.mark.parametrize(
    ("weight", "family", "tile", "multiple"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "sd1", 512, 8),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "sdxl", 1024, 8),
        ("model.diffusion_model.joint_blocks.0.context_block.attn.proj.bias", "sd3", 1024, 16),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "flux", 1024, 16),
        ("double_blocks.0.img_attn.proj.weight", "flux", 1024, 16),
        ("model.diffusion_model.double_stream_modulation_img.lin.weight", "flux2", 1024, 16),
        ("model.diffusion_model.transformer_blocks.0.attn.add_q_proj.weight", "qwenimage", 1024, 16),
        ("model.diffusion_model.cap_pad_token", "zimage", 1024, 16),
    ],
)
def test_the_family_of_a_file_that_is_chosen_but_not_loaded_is_read_off_its_header(
    host, tmp_path, weight, family, tile, multiple
):
    placeholder = types.SimpleNamespace(cond_stage_model=None)
    model = host(placeholder, {"a": checkpoint(tmp_path / "a.safetensors", weight)}, "a")
    assert (model.family, model.tile_px, model.multiple_px) == (family, tile, multiple)


def test_the_loaded_model_counts_only_while_it_is_the_one_chosen(host, tmp_path):
    files = {"xl": named(tmp_path / "xl.ckpt"), "b": checkpoint(tmp_path / "b.safetensors", "a.input_blocks.0")}
    held = types.SimpleNamespace(is_sdxl=True, sd_checkpoint_info=files["xl"])
    assert host(held, files, "xl").family == "sdxl"
    assert host(held, files, "b").family == "sd1"
    assert host(held, files, "gone").family == "sdxl"


def test_what_cannot_be_told_is_none_and_no_error(host, tmp_path):
    assert host(None, {}, None) is None
    assert host(None, {"a": named(tmp_path / "missing.safetensors")}, "a") is None
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    assert host(None, {"a": named(tmp_path / "old.ckpt")}, "a") is None
    assert host(types.SimpleNamespace(is_sdxl=True), {}, "") is None


def test_the_panel_is_made_without_torch():
    probe = (
        "import sys, lib_dino.webui.panel.widgets, lib_dino.webui.panel.xyz_plot, lib_dino.webui.model.family\n"
        "print([n for n in ('torch', 'numpy', 'gradio', 'modules') if n in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_the_checkpoint_that_the_page_shows_goes_before_the_one_that_the_host_has_heard_of(host, tmp_path):
    old = checkpoint(tmp_path / "old.safetensors", "model.diffusion_model.input_blocks.0.0.weight")
    new = checkpoint(tmp_path / "new.safetensors", "model.diffusion_model.joint_blocks.0.context_block.attn.proj.bias")
    held = types.SimpleNamespace(sd_checkpoint_info=old)
    files = {"old": old, "new": new}
    assert host(held, files, "old", shown="new").family == "sd3"
    assert host(held, files, "old", shown="").family == "sd1"

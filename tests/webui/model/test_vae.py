"""The checkpoint's own autoencoder inside the loop, in the stand-in for a WebUI."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from standin import make_modules
from standin.host import generation

from lib_dino.measure.quality import psnr
from lib_dino.tiling.resample import resize
from lib_dino.webui.generation import entry
from lib_dino.webui.model import model_files as weights
from lib_dino.webui.model.family import ASSUMED
from lib_dino.webui.model.vae import HostVae, tiny_autoencoder
from lib_dino.webui.tiles import tile_img2img as render

PLAIN = {"clean_source": 0, "tile_size": 64, "overlap": 16, "dino_enabled": False, "denoise": 0.5, "steps": 12}
KEY = "DINO consistency in loop"


@pytest.fixture(params=["a1111", "forge"])
def host(request, tmp_path, monkeypatch):
    held, modules = make_modules(request.param, tmp_path)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    # Without the last pass in pixels, which would make up for all that is missing.
    monkeypatch.setattr("lib_dino.run.finish.back_project", lambda image, source, **more: image)
    render._tile_script_class.cache_clear()
    return held


@pytest.fixture
def source(generator):
    small = torch.rand(1, 3, 6, 8, generator=generator)
    large = torch.nn.functional.interpolate(small, size=(40, 48), mode="bilinear")[0]
    return Image.fromarray((large * 255).byte().permute(1, 2, 0).numpy())


def upscaled(host, source, *, vae):
    host.shared.opts.data[weights.OPTION_VAE] = vae
    p = generation(host, init_images=[source], denoising_strength=0.5)
    processed = entry.run_as_script(p, types.SimpleNamespace(args_from=1, args_to=2), [PLAIN], own=())
    assert host.callbacks.swallowed == []
    return processed.images[0], processed


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def fidelity(image, source):
    return psnr(resize(tensor(image), (source.height, source.width)), tensor(source))


def test_it_holds_tiles_to_their_source_and_off_changes_nothing(host, source):
    calls = []
    host.vae_answer = lambda x: calls.append(x.shape) or x
    off, _ = upscaled(host, source, vae=False)
    assert not calls and KEY not in off.info["parameters"]
    on, processed = upscaled(host, source, vae=True)
    assert fidelity(on, source) > fidelity(off, source) + 1
    assert on.info["parameters"][KEY] == "VAE"
    # Four tiles that begin at a ratio of 1, each one decode and two encodes at 0.6 and at 0.4.
    assert len(calls) == 4 * 2 * 3
    assert not processed.p.comments
    assert upscaled(host, source, vae=False)[0].tobytes() == off.tobytes()
    assert upscaled(host, source, vae=True)[0].tobytes() == on.tobytes()


def test_what_it_draws_touches_nothing_else(host, source):
    state = torch.random.get_rng_state()
    HostVae(host.shared.sd_model, ASSUMED).encode(torch.zeros(1, 3, 16, 16))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("trouble", ["no numbers", "no memory", "medvram"])
def test_in_trouble_it_is_left_out_and_said_once(host, source, trouble, caplog):
    def answer(x):
        if trouble == "no memory":
            raise torch.cuda.OutOfMemoryError
        return x * torch.nan

    off, _ = upscaled(host, source, vae=False)
    host.vae_answer = answer
    host.shared.sd_model.lowvram = trouble == "medvram"
    on, processed = upscaled(host, source, vae=True)
    assert on.tobytes() == off.tobytes()
    assert KEY not in on.info["parameters"]
    said = [text for text in processed.p.comments if "VAE was left out" in text]
    assert len(said) == 1 and caplog.text.count("VAE was left out") == 1


def memory(free, *, offload=False):
    states = types.SimpleNamespace(NO_VRAM=1, NORMAL_VRAM=3)
    return types.SimpleNamespace(
        ALWAYS_VRAM_OFFLOAD=offload, VRAMState=states, vram_state=3, minimum_inference_memory=lambda: 2**30,
        get_free_memory=lambda device: free,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "free", "offload", "fits"),
    [
        ("cuda", 5 * 2**30, False, True), ("cuda", 3 * 2**30, False, False), ("cuda", 5 * 2**30, True, False),
        ("cpu", 0, False, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("manager", ["backend.memory_management", "ldm_patched.modules.model_management"])
def test_in_the_forge_family_it_pushes_nothing_off_the_card(
    host, monkeypatch, manager, device, free, offload, fits
):
    parts = manager.split(".")
    for i in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(parts[i - 1]))
    monkeypatch.setitem(sys.modules, manager, memory(free, offload=offload))
    weight = types.SimpleNamespace(nbytes=2**29, device=torch.device("cpu"))
    vae = types.SimpleNamespace(
        device=torch.device(device), latent_channels=4, vae_dtype=torch.float16, memory_used_decode=lambda s, d: 2**31,
        first_stage_model=types.SimpleNamespace(parameters=lambda: [weight]),
    )  # fmt: skip
    held = HostVae(types.SimpleNamespace(forge_objects=types.SimpleNamespace(vae=vae)), ASSUMED)
    assert held.fits((64, 64)) is fits
    assert bool(held.left_out) is not fits


class Encoder(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.map = torch.nn.Conv2d(3, channels, 8, 8)

    def forward(self, image):
        return self.map(image)


class Decoder(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.map = torch.nn.ConvTranspose2d(channels, 3, 8, 8)

    def forward(self, latents):
        return self.map(latents)


def tiny(host, tmp_path, model, encoder, *, files=("encoder", "decoder")):
    folder = tmp_path / "models" / "VAE-taesd"
    folder.mkdir(parents=True)
    for part in files:
        (folder / f"taeodd_{part}.pth").write_bytes(b"")
    module = sys.modules["modules"].sd_vae_taesd
    module.encoder_model, module.decoder_model = (lambda: encoder), (lambda: Decoder(4))
    described = types.SimpleNamespace(taesd_decoder_name="taeodd_decoder")
    return tiny_autoencoder(dataclasses.replace(model, latent_format=described))


def test_the_tiny_autoencoder_goes_by_the_hosts_name(host, tmp_path):
    held, why = tiny(host, tmp_path, ASSUMED, Encoder(4))
    assert held is not None and why == ""
    assert held.decode(held.encode(torch.zeros(1, 3, 16, 24))).shape == (1, 3, 16, 24)


@pytest.mark.parametrize(
    ("encoder", "files", "why"),
    [
        (None, ("encoder", "decoder"), "no encoder"), (Encoder(7), ("encoder", "decoder"), "does not fit"),
        (Encoder(4), ("decoder",), "no file of its encoder"), (Encoder(4), (), ""),
    ],
)  # fmt: skip
def test_without_a_tiny_encoder_that_fits_there_is_none_and_a_reason(host, tmp_path, encoder, files, why):
    held, said = tiny(host, tmp_path, ASSUMED, encoder, files=files)
    assert held is None
    assert (why in said and "left out" in said) if why else said == ""


def test_the_hosts_own_works_on_latents_with_a_frame_axis_and_keeps_the_reference(host):
    host.frames = True
    host.shared.sd_model.ini_latent = kept = torch.ones(1)
    seen = []

    def answer(x):
        seen.append(x.ndim)
        host.shared.sd_model.ini_latent = x
        return x.unsqueeze(1) if x.shape[1] == 3 else x.unsqueeze(2)

    host.vae_answer = answer
    vae = HostVae(host.shared.sd_model, dataclasses.replace(ASSUMED, frames=True))
    assert vae.decode(torch.zeros(1, 4, 2, 3)).shape == (1, 3, 16, 24)
    host.shared.sd_model.ini_latent = kept
    assert vae.encode(torch.zeros(1, 3, 16, 24)).shape == (1, 4, 2, 3)
    assert host.shared.sd_model.ini_latent is kept

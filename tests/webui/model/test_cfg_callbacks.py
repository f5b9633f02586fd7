"""The two callbacks with each model family's latents, noise levels and precisions, as hosts call them."""

import types

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lib_dino.measure.drift import DriftMeter
from lib_dino.sampling.consistency import Autoencoder
from lib_dino.sampling.correction import BatchCorrector, TileCorrections
from lib_dino.sampling.latent_codec import AutoencoderCodec, LatentCodec
from lib_dino.tiling.resample import tile_operators
from lib_dino.webui.model.cfg_callbacks import Batch, Hooks
from lib_dino.webui.model.family import Model
from lib_dino.webui.model.latent_rgb import color_map

FAMILIES = [
    (Model("sd1", 4, 512, 8, False), (2, 4, 8, 10)),
    (Model("sdxl", 4, 1024, 8, False), (2, 4, 16, 12)),
    (Model("sd3", 16, 1024, 16, True), (1, 16, 8, 10)),
    (Model("flux", 16, 1024, 16, True), (1, 16, 10, 8)),
]
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS = torch.cumprod(1 - BETAS, 0).float()


def noisy(clean, noise, sigma, *, flow):
    return sigma * noise + (1 - sigma) * clean if flow else clean + sigma * noise


class CFGDenoiserTimesteps(types.SimpleNamespace):
    """Named as A1111 names its denoiser for samplers that count in timesteps."""


def forward(hooks, owner, out, x, sigma, *, denoiser=types.SimpleNamespace, rows=1):
    """One model call as the host makes it; what its callbacks leave."""
    batched = torch.cat([x] * rows)
    before = types.SimpleNamespace(
        x=batched, sigma=torch.full((len(batched),), sigma), denoiser=denoiser(p=owner), text_uncond=None
    )
    hooks.before_model(before)
    after = types.SimpleNamespace(x=out, sampling_step=0, total_sampling_steps=4)
    hooks.after_guidance(after)
    return after.x


def armed(model, shape, correct):
    hooks, owner = Hooks(model, None if model.flow else ALPHAS), types.SimpleNamespace(init_latent=None)
    colors = color_map(model)
    batch = Batch(owner, shape, correct, lambda start: LatentCodec(colors, model.factor, start), on_step=lambda: None)
    return hooks, owner, batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize(("model", "shape"), FAMILIES, ids=lambda v: getattr(v, "family", ""))
def test_every_family_is_corrected_in_single_precision_with_gradients_at_hand(model, shape, mode, dtype, generator):
    clean, noise = torch.randn(2, *shape, generator=generator)
    seen = []

    def correct(given, ratio, codec):
        assert given.dtype == torch.float32
        with torch.enable_grad():
            leaf = given.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(codec.decode(leaf).sum(), leaf)
        seen.append(ratio)
        return given - 0.1 * gradient.sign()

    hooks, owner, batch = armed(model, shape, correct)
    sigma = 0.75
    with hooks.armed(batch), mode():
        x = noisy(clean, noise, sigma, flow=model.flow).to(dtype)
        out = forward(hooks, owner, clean.to(dtype), x, sigma, rows=2)
    assert hooks.error is None
    assert out.dtype == dtype and out.shape == shape
    assert_close(out.float(), clean, atol=0.11, rtol=0.01)
    assert (out.float() - clean.to(dtype).float()).abs().mean() > 0.05
    assert seen == [pytest.approx(0.75 / 0.25 if model.flow else 0.75)]


@pytest.mark.parametrize(("model", "shape"), FAMILIES[:2], ids=lambda v: getattr(v, "family", ""))
@pytest.mark.parametrize("timestep", [10, 500, 950])
def test_a_predicted_noise_is_corrected_as_the_picture_it_stands_for(model, shape, timestep, generator):
    clean, noise = torch.randn(2, *shape, generator=generator)
    a = float(ALPHAS[timestep])
    wanted = clean + 0.25
    hooks, owner, batch = armed(model, shape, lambda given, ratio, codec: given + 0.25)
    with hooks.armed(batch), torch.no_grad():
        x = a**0.5 * clean + (1 - a) ** 0.5 * noise
        out = forward(hooks, owner, noise, x, float(timestep), denoiser=CFGDenoiserTimesteps, rows=2)
    assert_close((x - (1 - a) ** 0.5 * out) / a**0.5, wanted, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(("model", "shape"), FAMILIES, ids=lambda v: getattr(v, "family", ""))
def test_calls_of_another_size_or_another_job_pass_untouched(model, shape, generator):
    hooks, owner, batch = armed(model, shape, lambda given, ratio, codec: given + 1)
    half = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2, generator=generator)
    whole = torch.randn(shape, generator=generator)
    with hooks.armed(batch):
        assert forward(hooks, owner, half, half, 0.5) is half
        assert forward(hooks, types.SimpleNamespace(), whole, whole, 0.5) is whole
    assert forward(hooks, owner, whole, whole, 0.5) is whole


@pytest.mark.parametrize(("model", "shape"), FAMILIES, ids=lambda v: getattr(v, "family", ""))
def test_nothing_to_correct_gives_back_the_very_tensor(model, shape, generator):
    hooks, owner, batch = armed(model, shape, lambda given, ratio, codec: given)
    out = torch.randn(shape, generator=generator).half()
    with hooks.armed(batch):
        assert forward(hooks, owner, out, out, 1.0 if model.flow else 14.6) is out


def test_the_hosts_look_at_the_tile_is_taken_away_before_the_correction_takes_its_time(generator):
    model, shape = FAMILIES[3]
    told = []
    hooks, owner = Hooks(model, None, after=lambda: told.append("kept")), types.SimpleNamespace(init_latent=None)

    def correct(given, ratio, codec):
        told.append("corrected")
        return given

    batch = Batch(
        owner, shape, correct, lambda start: LatentCodec(color_map(model), model.factor, start),
        lambda: told.append("step"),
    )  # fmt: skip
    x = torch.randn(shape, generator=generator)
    with hooks.armed(batch), torch.no_grad():
        forward(hooks, owner, x, x, 0.5)
    assert told == ["kept", "corrected", "step"]


def test_latents_with_one_frame_are_corrected_without_it_and_handed_back_with_it(generator):
    model, shape = FAMILIES[3]
    seen = []

    def correct(given, ratio, codec):
        seen.append((given.shape, codec.source_latents(0).shape))
        return given + 1

    hooks, owner, batch = armed(model, shape, correct)
    out = torch.randn(shape, generator=generator).unsqueeze(2)
    owner.init_latent = torch.zeros_like(out)
    with hooks.armed(batch):
        corrected = forward(hooks, owner, out, out, 0.5)
        hooks.check_heard(batch)
    assert_close(corrected, out + 1)
    assert seen == [(shape, shape)] and hooks.left_out == ""


def test_a_batch_without_a_call_that_fits_is_said_once_with_both_shapes(generator, caplog):
    model, shape = FAMILIES[0]
    hooks, owner, batch = armed(model, shape, lambda given, ratio, codec: given + 1)
    video = torch.randn(*shape[:2], 3, *shape[2:], generator=generator)
    for _ in range(2):
        with hooks.armed(batch):
            assert forward(hooks, owner, video, video, 0.5) is video
        hooks.check_heard(batch)
    assert str(tuple(video.shape)) in hooks.left_out and str(shape) in hooks.left_out
    assert caplog.text.count("did nothing") == 1


class Waits(TorchDispatchMode):
    """Counts what makes a GPU wait for the CPU: reading a number, or comparing whole tensors."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition(".")[0]
        if name in ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def through_a_tiny_autoencoder(start):
    tiny = Autoencoder(
        lambda picture: torch.nn.functional.avg_pool2d(picture, 8).mean(1, keepdim=True).expand(-1, 4, -1, -1),
        lambda latents: torch.nn.functional.interpolate(latents[:, :3], scale_factor=8).clamp(0, 1),
    )
    return AutoencoderCodec(tiny, color_map(FAMILIES[0][0]), 8, start)


@pytest.mark.parametrize(
    ("codec", "exact"),
    [(lambda start: LatentCodec(color_map(FAMILIES[0][0]), 8, start), 0), (through_a_tiny_autoencoder, 3)],
    ids=["colours", "autoencoder"],
)
def test_a_step_waits_for_its_noise_level_alone(codec, exact, quick_dino, generator):
    """The first call makes things ready, and an exact pull looks whether it worked: once each, not once a step."""
    source, model, shape = torch.rand(1, 3, 24, 32, generator=generator), FAMILIES[0][0], (1, 4, 6, 8)
    operators = tile_operators((24, 32), (48, 64), slice(0, 48), slice(0, 64))
    meter = DriftMeter(quick_dino, source)
    acts = TileCorrections(source, operators, 1.0, 0.0, 1.0, meter.extract, meter.target)
    owner = types.SimpleNamespace(init_latent=torch.randn(shape, generator=generator))
    hooks = Hooks(model, None)
    x = torch.randn(shape, generator=generator)
    with hooks.armed(Batch(owner, shape, BatchCorrector([acts]), codec, lambda: None)), torch.no_grad():
        assert forward(hooks, owner, x, x, 3.0) is not x
        with Waits() as waits:
            for sigma in (2.5, 2.0, 1.5, 1.2):
                assert forward(hooks, owner, x, x, sigma) is not x
        assert waits.found == ["aten::_local_scalar_dense"] * 4
        with Waits() as waits:
            for sigma in (0.9, 0.7, 0.5, 0.3, 0.1):
                forward(hooks, owner, x, x, sigma)
        assert len(waits.found) <= 5 + exact

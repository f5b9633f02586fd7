"""A ComfyUI small enough for a unit test: latents are colours of 8 x 8 blocks, and sampling is Euler's method."""

import types
from typing import ClassVar

import torch
import torch.nn.functional as F

TABLE = torch.tensor(
    [[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350], [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177]]
)


class Interrupted(Exception):  # noqa: N818
    """As ComfyUI's own."""


class SD15:
    latent_channels = 4
    latent_dimensions = 2
    latent_rgb_factors = TABLE.tolist()
    latent_rgb_factors_bias = None
    taesd_decoder_name = "taesd_decoder"
    scale = 0.5


class Video(SD15):
    latent_dimensions = 3


class CONST:
    """A flow model's sampling."""


class Vae:
    """Encodes the mean of each block, decodes it as a block."""

    def __init__(self, frames=False):
        self.frames = frames

    def spacial_compression_encode(self):
        return 8

    def encode(self, images):
        colour = 2 * F.avg_pool2d(images.movedim(-1, 1), 8) - 1
        latents = torch.einsum("brhw,rc->bchw", colour, torch.linalg.pinv(TABLE)) / SD15.scale
        return latents.unsqueeze(2) if self.frames else latents

    def decode(self, latents):
        flat = latents.squeeze(2) if latents.ndim == 5 else latents
        colour = torch.einsum("bchw,cr->brhw", flat * SD15.scale, TABLE)
        images = F.interpolate((colour + 1) / 2, scale_factor=8).movedim(1, -1)
        return images[:, None] if latents.ndim == 5 else images


class Model:
    """A model patcher. `paint` is added to every predicted clean latent: the model's own wish."""

    load_device = torch.device("cpu")

    def __init__(self, described=SD15, *, flow=False, paint=0.3, options=None):
        self.described, self.flow, self.paint = described, flow, paint
        self.model_options = options or {}
        self.model = types.SimpleNamespace(
            model_config=described(), latent_format=described(), process_latent_in=lambda x: x * SD15.scale
        )
        self.calls = []

    def clone(self):
        copy = Model(self.described, flow=self.flow, paint=self.paint, options={**self.model_options})
        copy.calls = self.calls
        return copy

    def get_model_object(self, name):
        return self.described() if name == "latent_format" else (CONST() if self.flow else object())

    def set_model_sampler_post_cfg_function(self, function, disable_cfg1_optimization=False):
        held = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*held, function]


def sample(
    model, noise, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, *, denoise=1.0, callback=None,
    disable_pbar=False, seed=None,
):  # fmt: skip
    start = latent_image * SD15.scale
    assert noise.shape == start.shape and noise.dtype == start.dtype
    top = 0.9 * denoise if model.flow else 4 * denoise
    sigmas = torch.linspace(top, 0, steps + 1)
    x = (1 - top) * start + top * noise if model.flow else start + top * noise
    for i in range(steps):
        clean = start + model.paint * torch.tanh(x)
        for function in model.model_options.get("sampler_post_cfg_function", []):
            clean = function({"denoised": clean, "sigma": sigmas[i : i + 1], "input": x, "model": model})
        model.calls.append((tuple(x.shape), float(sigmas[i]), sampler_name, scheduler, cfg, seed))
        ratio = sigmas[i + 1] / sigmas[i]
        x = ratio * x + (1 - ratio) * clean
        callback(i, clean, x, steps)
    return x / SD15.scale


class Bar:
    shown: ClassVar = []

    def __init__(self, total):
        self.total = total

    def update_absolute(self, value, total=None, preview=None):
        Bar.shown.append((value, total, preview))


class _Input:
    def __init__(self, id, **more):
        self.id, self.more = id, more


class _Kind:
    Input = Output = _Input


def make_modules():
    """The modules by name, as the extension imports them."""
    io = types.SimpleNamespace(
        ComfyNode=object, Schema=lambda **more: types.SimpleNamespace(**more), NodeOutput=lambda *values: values,
        **dict.fromkeys(("Image", "Model", "Vae", "Clip", "Conditioning"), _Kind),
        **dict.fromkeys(("Float", "Int", "Combo", "Boolean", "Mask"), _Kind),
        String=types.SimpleNamespace(Input=_Input, Output=_Input),
    )
    state = types.SimpleNamespace(interrupt_after=None, seen=0, files={})

    def check():
        state.seen += 1
        if state.interrupt_after is not None and state.seen > state.interrupt_after:
            raise Interrupted

    previewer = types.SimpleNamespace(decode_latent_to_preview_image=lambda kind, clean: (kind, tuple(clean.shape)))
    found = {
        "comfy": {},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": check},
        "comfy.model_sampling": {"CONST": CONST},
        "comfy.sample": {"sample": sample, "fix_empty_latent_channels": lambda model, latents: latents},
        "comfy.samplers": {"KSampler": types.SimpleNamespace(SAMPLERS=["euler", "heun"], SCHEDULERS=["normal"])},
        "comfy.utils": {"ProgressBar": Bar},
        "comfy.taesd": {}, "comfy.taesd.taesd": {"TAESD": Tiny},
        "comfy_api": {}, "comfy_api.latest": {"ComfyExtension": object, "io": io},
        "folder_paths": {
            "get_filename_list": lambda kind: list(state.files), "get_full_path": lambda kind, name: state.files[name],
        },
        "latent_preview": {"get_previewer": lambda device, described: previewer},
    }  # fmt: skip
    modules = {}
    for name, values in found.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        modules[name] = module
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, module)
    return state, modules


class Tiny(torch.nn.Module):
    """As exact as `Vae`, in the model's own scale."""

    def __init__(self, encoder, decoder, latent_channels):
        super().__init__()
        self.files = encoder, decoder

    def encode(self, image):
        return Vae().encode(((image + 1) / 2).movedim(1, -1)) * SD15.scale

    def decode(self, latents):
        return 2 * Vae().decode(latents / SD15.scale).movedim(-1, 1) - 1

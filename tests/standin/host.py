"""The host's `modules`, as far as the extension calls them.

Two kinds: "a1111" samples under `no_grad`, hands callbacks the rows of both conditions and has samplers that count in
timesteps and predict noise; "forge" samples in `inference_mode` and hands them one row a picture. Traps that both keep:

- a runner's order of hooks is cached by the number of scripts, and a shallow copy shares the cache;
- what a hook or callback raises is noted and swallowed, unless it is no `Exception`;
- finished pictures are truncated to bytes; `DecodedSamples` may have any size;
- a call that starts while Interrupt is set returns no picture; Skip is forgotten by the next iteration;
- with `rounded` set, sides of pictures are rounded to its multiples; with `frames` set, latents are (B, C, 1, h, w) and
  only a batch's first picture is encoded, as in Forge Neo;
- with `dtype` set, latents, noise and what the model answers are in half precision;
- `p.rng` is made after `init`, one generator a picture; the autoencoder draws from torch's global generator.
"""

import copy
import dataclasses
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lib_dino.webui.model.latent_rgb import _RGB

TABLE = torch.tensor(_RGB["sd1"])[:4]
INVERSE = torch.linalg.pinv(TABLE.T.double()).float()


class InterruptedException(BaseException):
    pass


class NanError(Exception):
    pass


@dataclass
class State:
    interrupted: bool = False
    skipped: bool = False
    stopping_generation: bool = False
    job_count: int = -1
    job_no: int = 0
    sampling_step: int = 0
    textinfo: str | None = None
    current_latent: Any = None
    previews: list = field(default_factory=list)

    def nextjob(self):
        self.job_no += 1

    def assign_current_image(self, image):
        self.previews.append(image)


class Options(types.SimpleNamespace):
    @property
    def data(self):
        return self.__dict__

    data_labels = data


class Script:
    filename = None
    args_from = None
    args_to = None
    alwayson = False

    def title(self):
        raise NotImplementedError

    def show(self, is_img2img):
        return True

    def before_process(self, p, *args): ...
    def process(self, p, *args): ...
    def process_batch(self, p, *args, **kwargs): ...
    def process_before_every_sampling(self, p, *args, **kwargs): ...
    def postprocess_batch(self, p, *args, **kwargs): ...
    def postprocess_image(self, p, pp, *args): ...
    def postprocess(self, p, processed, *args): ...


class Runner:
    def __init__(self):
        self.scripts, self.alwayson_scripts, self.callback_map = [], [], {}
        self.swallowed = []

    def hook(self, name, p, *args, **kwargs):
        count, scripts = self.callback_map.get(name, (-1, None))
        if count != len(self.alwayson_scripts):
            scripts = [s for s in self.alwayson_scripts if getattr(type(s), name) is not getattr(Script, name)]
            self.callback_map[name] = len(self.alwayson_scripts), scripts
        for script in scripts:
            own = p.script_args[script.args_from : script.args_to]
            try:
                if name.startswith("postprocess") and not kwargs:
                    getattr(script, name)(p, *args, *own)
                else:
                    getattr(script, name)(p, *own, **kwargs)
            except Exception as error:
                self.swallowed.append(error)


class Callbacks(types.ModuleType):
    def __init__(self):
        super().__init__("modules.script_callbacks")
        self.before, self.after, self.swallowed = [], [], []

    def on_cfg_denoiser(self, callback):
        self.before.append(callback)

    def on_cfg_after_cfg(self, callback):
        self.after.append(callback)

    def remove_callbacks_for_function(self, callback):
        for held in (self.before, self.after):
            held[:] = [c for c in held if c != callback]

    def fire(self, held, params):
        for callback in list(held):
            try:
                callback(params)
            except Exception as error:
                self.swallowed.append(error)


class DecodedSamples(list):
    already_decoded = True


@dataclass
class Processed:
    p: Any
    images: list
    index_of_first_image: int = 0
    infotexts: list = field(default_factory=list)


@dataclass(repr=False)
class Processing:
    prompt: Any = ""
    negative_prompt: Any = ""
    styles: list | None = None
    seed: Any = 1
    subseed: Any = -1
    subseed_strength: float = 0
    sampler_name: str = "Euler"
    scheduler: str = "Automatic"
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 4
    cfg_scale: float = 7
    width: int = 64
    height: int = 64
    extra_generation_params: dict | None = None
    override_settings: dict | None = None
    refiner_checkpoint: str | None = None
    do_not_save_samples: bool = False
    scripts_value: Any = field(default=None, init=False)
    script_args_value: Any = field(default=None, init=False)
    is_api: bool = field(default=False, init=False)
    host: Any = field(default=None, repr=False)
    cached_c = cached_uc = None

    def __post_init__(self):
        self.extra_generation_params = self.extra_generation_params or {}
        self.override_settings = self.override_settings or {}
        self.comments, self.styles = {}, self.styles or []
        self.sampler, self.iteration, self.color_corrections = None, 0, None
        # One memory for encoded prompts, shared by all processing objects.
        self.cached_c, self.cached_uc = self.host.cached_c, self.host.cached_uc

    @property
    def scripts(self):
        return self.scripts_value

    @property
    def script_args(self):
        return self.script_args_value

    @property
    def sd_model(self):
        return self.host.shared.sd_model

    def comment(self, text):
        self.comments[text] = 1

    def close(self):
        self.sampler = None

    def setup_conds(self):
        asked = (tuple(self.prompts), self.width, self.height, self.steps)
        if self.cached_c[0] != asked:
            self.cached_c[0] = asked
            self.host.encoded.append(asked[:3])


@dataclass(repr=False)
class Txt2Img(Processing):
    def init(self, prompts, seeds, subseeds):
        self.sampler = Sampler(self.host, self.sampler_name)

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        return self.sampler.run(self, torch.zeros_like(self.rng.next()), self.rng.next(), 1.0)


@dataclass(repr=False)
class Img2Img(Processing):
    init_images: list | None = None
    resize_mode: int = 0
    denoising_strength: float = 0.75
    mask: Any = None
    mask_blur_x: int = 4
    mask_blur_y: int = 4
    mask_round: bool = True
    inpainting_mask_invert: int = 0
    inpaint_full_res: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.image_mask, self.mask, self.nmask, self.init_latent = self.mask, None, None, None

    def init(self, prompts, seeds, subseeds):
        assert len(self.init_images) in (1, self.batch_size)
        self.sampler = Sampler(self.host, self.sampler_name)
        tiles = [np.array(i.convert("RGB").resize((self.width, self.height))) for i in self.init_images]
        image = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 255
        self.init_latent = self.host.encode(image.expand(self.batch_size, -1, -1, -1))
        if self.host.frames:
            self.init_latent = self.init_latent[:1].unsqueeze(2)
        self.extra_generation_params["Denoising strength"] = self.denoising_strength

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        noise = self.rng.next()
        self.scripts.hook("process_before_every_sampling", self, x=self.init_latent)
        return self.sampler.run(self, self.init_latent, noise, self.denoising_strength)


class Rng:
    def __init__(self, shape, seeds):
        self.shape = shape
        self.generators = [torch.Generator().manual_seed(s) for s in seeds]

    def next(self):
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])


class CFGDenoiser:
    def __init__(self, host, p):
        self.host, self.p, self.step = host, p, 0

    def model(self, x, ratio):
        """The clean latents it sees: blurred, and a little off."""
        if x.ndim == 5:
            return self.model(x.squeeze(2), ratio).unsqueeze(2)
        return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1) / (1 + ratio**2) ** 0.5 + 0.1

    def predict(self, x, level):
        return self.model(x, float(level))

    def ratio(self, level):
        return level

    def __call__(self, x, level):
        host, state = self.host, self.host.shared.state
        if state.interrupted or state.skipped:
            raise InterruptedException
        if host.on_call:
            host.on_call()
        rows = torch.cat([x, x]) if host.kind == "a1111" else x
        sigma = torch.full((len(rows),), float(level))
        host.callbacks.fire(host.callbacks.before, types.SimpleNamespace(x=rows, sigma=sigma, denoiser=self))
        out = self.predict(x, level)
        if host.nan_at(len(host.seen)):
            if host.kind == "a1111":
                raise NanError
            out = torch.full_like(out, torch.nan)
        assert out.dtype == host.dtype, out.dtype
        state.current_latent = out
        params = types.SimpleNamespace(x=out)
        host.callbacks.fire(host.callbacks.after, params)
        self.step += 1
        host.seen.append((self.p, float(level), params.x))
        return params.x


class CFGDenoiserTimesteps(CFGDenoiser):
    """Predicts noise from latents that keep their variance; `level` is a timestep."""

    def predict(self, x, level):
        a = self.host.shared.sd_model.alphas_cumprod[int(level)]
        clean = self.model(x / a.sqrt(), float((1 / a - 1).sqrt()))
        return (x - a.sqrt() * clean) / (1 - a).sqrt()


class Sampler:
    def __init__(self, host, name):
        self.host, self.name, self.last_latent = host, name, None

    def create_noise_sampler(self, x, sigmas, p):
        return lambda sigma, sigma_next: torch.randn(x.shape)

    def run(self, p, x, noise, denoise):
        calls = int(min(denoise, 0.999) * p.steps) + 1
        self.last_latent, noise = x, noise.to(x.dtype)
        try:
            run = self._timesteps if self.name == "DDIM" and self.host.kind == "a1111" else self._sigmas
            return run(p, x, noise, [2 * denoise * (1 - i / calls) for i in range(calls)])
        except InterruptedException:
            return self.last_latent

    def _sigmas(self, p, x, noise, sigmas):
        denoiser = CFGDenoiser(self.host, p)
        draw = self.create_noise_sampler(x, sigmas, p) if self.name == "DPM++ SDE" else None
        x = x + noise * sigmas[0]
        for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            clean = denoiser(x, sigma)
            x = clean + after / sigma * (x - clean)
            if after and self.name == "Euler a":
                x = x + 0.1 * p.rng.next()
            if after and draw:
                x = x + 0.1 * draw(torch.tensor(sigma), torch.tensor(after))
        return x

    def _timesteps(self, p, x, noise, sigmas):
        denoiser, alphas = CFGDenoiserTimesteps(self.host, p), self.host.shared.sd_model.alphas_cumprod
        steps = [int((alphas - 1 / (1 + s * s)).abs().argmin()) for s in sigmas]
        x = x * alphas[steps[0]].sqrt() + noise * (1 - alphas[steps[0]]).sqrt()
        for t, after in zip(steps, [*steps[1:], None], strict=True):
            noise = denoiser(x, t)
            clean = (x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()
            x = clean if after is None else alphas[after].sqrt() * clean + (1 - alphas[after]).sqrt() * noise
        return x


class Host:
    """What the modules share."""

    def __init__(self, kind, folder):
        self.kind, self.callbacks = kind, Callbacks()
        self.on_call = None
        self.nan_at = lambda call: False
        self.frames, self.rounded, self.dtype = False, 1, torch.float32
        self.cached_c, self.cached_uc = [None, None], [None, None]
        self.encoded, self.seen, self.calls = [], [], []
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        model = types.SimpleNamespace(alphas_cumprod=torch.cumprod(1 - betas, 0).float(), is_sdxl=False)
        options = Options(
            live_previews_enable=True, img2img_background_color="#ffffff", img2img_fix_steps=False, save_init_img=False
        )
        self.tqdm = []
        self.shared = types.SimpleNamespace(
            state=State(), opts=options, device=torch.device("cpu"), sd_model=model,
            total_tqdm=types.SimpleNamespace(updateTotal=self.tqdm.append),
            sd_upscalers=[types.SimpleNamespace(name=n, data_path=None, scaler=Scaler()) for n in ("None", "Nearest")],
        )  # fmt: skip
        self.folder = folder

    def encode(self, image):
        colour = 2 * F.avg_pool2d(image, 8) - 1
        # Sums of a few terms: a matrix routine's last bit depends on where in memory its operands lie.
        small = (colour[:, None] * INVERSE.view(1, 4, 3, 1, 1)).sum(2)
        return (small + 0.01 * torch.randn(small.shape)).to(self.dtype)

    def decode(self, latent):
        latent = latent.squeeze(2) if latent.ndim == 5 else latent
        colour = (latent[:, :, None] * TABLE.view(1, 4, 3, 1, 1)).sum(1).to(self.dtype)
        return F.interpolate(colour, scale_factor=8)

    def samples_to_images_tensor(self, sample, approximation=None, model=None):
        assert approximation == 0 and model is self.shared.sd_model
        with torch.inference_mode(self.kind == "forge"), torch.no_grad():
            return self.vae_answer(self.decode(sample))

    def images_tensor_to_samples(self, image, approximation=None, model=None):
        assert approximation == 0 and model is self.shared.sd_model and len(image) == 1
        with torch.inference_mode(self.kind == "forge"), torch.no_grad():
            return self.vae_answer(self.encode(image))

    def vae_answer(self, x):
        """What the autoencoder says in the middle of sampling; tests put troubles here."""
        return x

    def process_images(self, p):
        p.scripts.hook("before_process", p)
        kept = {k: getattr(self.shared.opts, k) for k in p.override_settings}
        vars(self.shared.opts).update(p.override_settings)
        try:
            return self._inner(p)
        finally:
            vars(self.shared.opts).update(kept)

    def _inner(self, p):
        self.calls.append(p)
        near = self.rounded
        p.width, p.height = (max(near, round(side / near) * near) for side in (p.width, p.height))
        state, images = self.shared.state, []
        p.all_prompts = p.prompt if isinstance(p.prompt, list) else [p.prompt] * (p.batch_size * p.n_iter)
        p.all_negative_prompts = [p.negative_prompt] * len(p.all_prompts)
        p.all_seeds = p.seed if isinstance(p.seed, list) else [p.seed + i for i in range(len(p.all_prompts))]
        p.scripts.hook("process", p)
        with torch.inference_mode() if self.kind == "forge" else torch.no_grad():
            p.init(p.all_prompts, p.all_seeds, [])
            if state.job_count == -1:
                state.job_count = p.n_iter
            for n in range(p.n_iter):
                p.iteration = n
                state.skipped = False
                if state.interrupted or state.stopping_generation:
                    break
                span = slice(n * p.batch_size, (n + 1) * p.batch_size)
                p.prompts, p.seeds = p.all_prompts[span], p.all_seeds[span]
                p.rng = Rng((4, p.height // 8, p.width // 8), p.seeds)
                p.scripts.hook("process_batch", p, batch_number=n)
                p.setup_conds()
                (self.folder / "params.txt").write_text(f"{p.prompts[0]}, Size: {p.width}x{p.height}")
                samples = p.sample(
                    conditioning=None, unconditional_conditioning=None, seeds=p.seeds, subseeds=[],
                    subseed_strength=0, prompts=p.prompts,
                )  # fmt: skip
                if not getattr(samples, "already_decoded", False):
                    samples = list(self.decode(samples))
                decoded = ((torch.stack(list(samples)).float() + 1) / 2).clamp(0, 1)
                state.nextjob()
                p.scripts.hook("postprocess_batch", p, images=decoded, batch_number=n)
                for sample in decoded:
                    values = (255.0 * sample.nan_to_num().permute(1, 2, 0).numpy()).astype(np.uint8)
                    pp = types.SimpleNamespace(image=Image.fromarray(values))
                    p.scripts.hook("postprocess_image", p, pp)
                    pp.image.info["parameters"] = dict(p.extra_generation_params)
                    pp.image.info["size"] = p.width, p.height
                    if not p.do_not_save_samples:
                        pp.image.already_saved_as = str(self.folder / f"{len(images):05}-{p.seeds[0]}.png")
                        pp.image.save(pp.image.already_saved_as)
                    images.append(pp.image)
        result = Processed(p, images, infotexts=[f"text {n}" for n in range(len(images))])
        p.scripts.hook("postprocess", p, result)
        return result


class Scaler:
    def upscale(self, image, scale, path):
        size = [int(side * scale) // 8 * 8 for side in image.size]
        return image.resize(size, Image.Resampling.NEAREST)


class _NoAutocast:
    def __enter__(self):
        return self

    def __exit__(self, *args):
        return False


def make_modules(kind, folder):
    """The host, and its modules by name."""
    host = Host(kind, folder)
    scheduler = types.SimpleNamespace(label="Automatic", name="automatic")
    samplers = [
        types.SimpleNamespace(name=n, options={"second_order": n == "Heun"})
        for n in ("Euler", "Euler a", "Heun", "DDIM", "DPM++ SDE")
    ]
    content = {
        "scripts": {"Script": Script, "ScriptRunner": Runner, "AlwaysVisible": object(), "scripts_data": []},
        "processing": {
            "process_images": host.process_images, "DecodedSamples": DecodedSamples, "Processed": Processed,
            "StableDiffusionProcessingImg2Img": Img2Img,
            "decode_latent_batch": lambda model, x, target_device=None, check_for_nans=False: list(host.decode(x)),
        },
        "shared": vars(host.shared),
        "devices": {
            "without_autocast": _NoAutocast, "cpu": torch.device("cpu"), "NansException": NanError,
            "torch_gc": lambda: None,
        },
        "images": {"flatten": lambda image, colour: image.convert("RGB")},
        "sd_samplers": {"all_samplers": samplers, "all_samplers_map": {s.name: s for s in samplers}},
        "sd_samplers_common": {
            "InterruptedException": InterruptedException,
            "samples_to_images_tensor": host.samples_to_images_tensor,
            "images_tensor_to_samples": host.images_tensor_to_samples,
        },
        "sd_schedulers": {"schedulers": [scheduler]},
        "paths": {"data_path": str(folder), "models_path": str(folder / "models")},
        "modelloader": {},
        "sd_vae_taesd": {},
    }  # fmt: skip
    modules = {"modules": types.ModuleType("modules"), "modules.script_callbacks": host.callbacks}
    for name, values in content.items():
        modules[f"modules.{name}"] = types.ModuleType(f"modules.{name}")
        vars(modules[f"modules.{name}"]).update(values)
    for name, module in modules.items():
        if name != "modules":
            setattr(modules["modules"], name.partition(".")[2], module)
    return host, modules


def generation(host, *, scripts=(), args=(), kind=Img2Img, **values):
    """A generation as the host makes one, with these always-on scripts."""
    p = kind(host=host, **values)
    runner = Runner()
    runner.scripts = runner.alwayson_scripts = list(scripts)
    p.scripts_value, p.script_args_value = runner, [0, *args]
    return p


def fields(p):
    """What may not change about a generation: every attribute but the host's own memory, pictures by their pixels."""
    held = {k: v for k, v in vars(p).items() if k not in ("host", "cached_c", "cached_uc")}
    return {k: copy.copy(v) if isinstance(v, dict | list) else v for k, v in held.items()}


__all__ = ["Host", "Img2Img", "Processing", "Script", "Txt2Img", "dataclasses", "fields", "generation", "make_modules"]

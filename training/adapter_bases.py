"""The frozen models an adapter can be trained for, each with the loss of an adapter on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lib_dino.adapter.diffusers_unet import cross_attention, injected
from lib_dino.adapter.format import CROSS_DIM
from lib_dino.adapter.injection import Injection
from lib_dino.measure.features import centre, cosine_distance, normalised
from lib_dino.networks.denoiser import load_denoiser, predict_clean
from lib_dino.networks.dinov2 import Dinov2
from lib_dino.sampling.pixel_model import NOISE_SCALE
from lib_dino.sampling.sampler import noise_to_signal
from lib_dino.tiling.resample import resize

from .adapter_data import Batch

Inject = Callable[..., Injection]
"""Makes the injection of a batch; takes `rows`, which sample each input belongs to, and `origin`, where it begins."""


class Base(Protocol):
    """A frozen diffusion model.

    Attributes:
        name: as adapters' metadata says it.
        unet: takes the adapter.
        width: of a token.
        cell_px: pixels to a side of a cell of the UNet's input.
    """

    name: str
    unet: Any
    width: int
    cell_px: int

    def loss(self, batch: Batch, inject: Inject, generator: torch.Generator) -> Tensor:
        """What is to be made small, one value for the batch."""


def layer_shapes(unet: nn.Module) -> tuple[list[tuple[int, int]], list[int]]:
    """(channels, width of the text's tokens) and heads of each cross-attention layer."""
    modules = cross_attention(unet)
    return [(m.to_q.out_features, m.to_k.in_features) for m in modules], [m.heads for m in modules]


@dataclass
class EmbeddedBase:
    """The embedded denoiser, trained through the last steps of short img2img runs.

    Attributes:
        dino: judges what comes out, besides its pixels.
        windows: cut from each sample; tokens come from all of it.
        window_px: their side.
        strangers: share of samples whose tokens are another's, and which are to come out as without any.
    """

    dino: Dinov2
    device: torch.device
    windows: int = 2
    window_px: int = 112
    strangers: float = 0.0
    name: str = "embedded"
    width: int = 192
    cell_px: int = 2

    def __post_init__(self) -> None:
        self.unet = load_denoiser(device=str(self.device)).unet

    def loss(self, batch: Batch, inject: Inject, generator: torch.Generator) -> Tensor:
        """Distance of what one step predicts, made consistent, to the original: in pixels and to DINOv2."""
        count = len(batch.sharp)
        rows, origin, (sharp, soft) = self._windows(batch, generator)
        run = _ShortRun(self.unet, soft, batch.scale, generator)
        strange = int(count * self.strangers + torch.rand((), generator=generator) * (self.strangers > 0))
        own = torch.arange(count)
        own[:strange] = (own[:strange] + 1) % count  # the first ones get the tokens of the next
        injection = inject(rows=own[rows], origin=origin / self.cell_px)
        with injected(self.unet, injection):
            x, sigma = run.to_a_step()
            made = run.step(x, sigma)
        true = rows >= strange
        loss = self._distance(made[true], sharp[true])
        if strange:
            with torch.no_grad():
                plain = run.step(x[~true], sigma, rows=~true)
            loss = loss + strange / count * PIXELS * (made[~true] - plain).square().mean()
        return loss

    def _windows(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, list[Tensor]]:
        count, side, px = len(batch.sharp), batch.sharp.shape[-1], self.window_px
        rows = torch.arange(count).repeat_interleave(self.windows)
        origin = 8 * torch.randint(0, (side - px) // 8 + 1, (len(rows), 2), generator=generator)
        cut = [
            torch.stack([2 * whole[r, :, y : y + px, x : x + px] - 1 for r, (y, x) in zip(rows, origin, strict=True)])
            for whole in (batch.sharp, batch.soft)
        ]
        return rows, origin, [part.to(self.device) for part in cut]

    def _distance(self, made: Tensor, sharp: Tensor) -> Tensor:
        px = self.window_px // self.dino.patch_px
        layers = [self.dino.depth // 4, self.dino.depth // 2, self.dino.depth]
        with torch.no_grad():
            wanted = self.dino.layer_tokens(normalised(self.dino, (sharp + 1) / 2, (px, px)), layers)
        found = self.dino.layer_tokens(normalised(self.dino, (made + 1) / 2, (px, px)), layers)
        apart = [cosine_distance(centre(a), centre(b)).mean() for a, b in zip(found, wanted, strict=True)]
        return PIXELS * (made - sharp).square().mean() + torch.stack(apart).mean()


PIXELS = 50.0
"""Weight of the mean squared pixel error, in [-1, 1], beside the cosine distance of features."""


class _ShortRun:
    """A run of two to four calls from a soft picture, as `embedded.EmbeddedRender` makes it."""

    def __init__(self, unet: Any, soft: Tensor, scale: float, generator: torch.Generator) -> None:
        self.unet, self.soft, self.generator = unet, soft, generator
        calls = int(torch.randint(2, 5, (), generator=generator))
        denoise = 0.05 + 0.45 * float(torch.rand((), generator=generator))
        ratios = [noise_to_signal(999 * denoise * (1 - i / calls)) for i in range(calls)]
        self.sigmas = [NOISE_SCALE * ratio for ratio in ratios]
        self.before = int(torch.randint(0, calls, (2,), generator=generator).max())  # later ones are likelier
        side = max(1, round(soft.shape[-1] / scale))
        self.small = (side, side)
        seen = resize(soft, self.small)
        # Making the enlarged source small does not give it back; one step of the inverse nearly does.
        self.source = 2 * seen - resize(resize(seen, _size(soft)), self.small)
        self.consistent = float(torch.rand((), generator=generator)) < 0.85

    @torch.no_grad()
    def to_a_step(self) -> tuple[Tensor, float]:
        """The state before one of the run's calls, and its noise level."""
        noise = torch.randn(self.soft.shape, generator=self.generator).to(self.soft)
        x = self.soft + self.sigmas[0] * noise
        for i in range(self.before):
            r = self.sigmas[i + 1] / self.sigmas[i]
            x = r * x + (1 - r) * self.step(x, self.sigmas[i])
        return x, self.sigmas[self.before]

    def step(self, x: Tensor, sigma: float, *, rows: Tensor | None = None) -> Tensor:
        """The clean picture predicted from `x`, made consistent with the source."""
        clean = predict_clean(self.unet, x, torch.full((len(x),), sigma, device=x.device))
        if not self.consistent:
            return clean
        source = self.source if rows is None else self.source[rows]
        return clean + resize(source - resize(clean, self.small), _size(clean))


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


@dataclass
class LatentBase:
    """Stable Diffusion 1.5 or SDXL, whole and frozen.

    Attributes:
        name: "sd15" or "sdxl".
        pipeline: diffusers' own, for its parts and its way with prompts.
        denoise: least and most that is trained for, as in img2img.
        drop: share of samples without a caption.
        repaint: share of samples that start from the soft picture, as img2img does, and not from the sharp one.
    """

    name: str
    pipeline: Any
    device: torch.device
    dtype: torch.dtype
    denoise: tuple[float, float]
    drop: float
    repaint: float = 0.5
    cell_px: int = 8

    def __post_init__(self) -> None:
        from diffusers import DDPMScheduler

        pipeline, device = self.pipeline, self.device
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.width = int(self.unet.config.cross_attention_dim)
        self.schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.alphas = self.schedule.alphas_cumprod.to(device)
        for part in (pipeline.unet, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
            if part is not None:
                part.to(device, self.dtype).eval().requires_grad_(False)
        # SDXL's autoencoder overflows in float16.
        self.vae.to(device, torch.float32 if self.dtype == torch.float16 else self.dtype).eval().requires_grad_(False)
        self._texts: dict[str, tuple[Tensor, Tensor | None]] = {}

    def loss(self, batch: Batch, inject: Inject, generator: torch.Generator) -> Tensor:
        """Squared error of what the UNet predicts, weighted as min-SNR-5 does (Hang et al. 2023)."""
        count = len(batch.sharp)
        clean, soft = (self._latents(part, generator) for part in (batch.sharp, batch.soft))
        low, high = (int(999 * value) for value in self.denoise)
        t = torch.randint(low, max(high, low + 1), (count,), generator=generator).to(self.device)
        start = torch.rand(count, generator=generator) < self.repaint
        share = torch.where(start, torch.rand(count, generator=generator), torch.zeros(count))
        state = clean + share.to(clean).view(-1, 1, 1, 1) * (soft - clean)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        a = self.alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * state + (1 - a).sqrt() * noise
        wanted = self.target(noisy, clean, a)
        weight = ((a / (1 - a)).clamp(max=5) / (a / (1 - a))).flatten()
        if self.schedule.config.prediction_type == "v_prediction":
            weight = (a / (1 - a)).clamp(max=5).flatten() / (a / (1 - a) + 1).flatten()
        dropped = self._dropped(count, generator)
        captions = ["" if skip else text for text, skip in zip(batch.captions, dropped, strict=True)]
        found = self.predict(noisy, t, captions, inject(), batch.sharp.shape[-1])
        return (weight * (found.float() - wanted).square().mean((1, 2, 3))).mean()

    def target(self, noisy: Tensor, clean: Tensor, a: Tensor) -> Tensor:
        """What the UNet should say of `noisy`, so that `clean` is what it predicts."""
        noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        if self.schedule.config.prediction_type == "v_prediction":
            return a.sqrt() * noise - (1 - a).sqrt() * clean
        return noise

    def predict(self, noisy: Tensor, t: Tensor, captions: list[str], injection: Injection, side_px: int) -> Tensor:
        """The UNet's answer, the adapter at work inside it."""
        texts = [self._text(caption) for caption in captions]
        context = torch.cat([text for text, _ in texts])
        more: dict[str, Any] = {}
        if self.name == "sdxl":
            sizes = torch.tensor([[side_px, side_px, 0, 0, side_px, side_px]] * len(noisy), device=self.device)
            pooled = torch.cat([pool for _, pool in texts if pool is not None])
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes.to(self.dtype)}
        with injected(self.unet, injection):
            out: Tensor = self.unet(noisy.to(self.dtype), t, context, **more).sample
        return out

    def _dropped(self, count: int, generator: torch.Generator) -> list[bool]:
        return (torch.rand(count, generator=generator) < self.drop).tolist()

    @torch.no_grad()
    def _latents(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        given = (2 * pictures - 1).to(self.device, self.vae.dtype)
        with torch.autocast(self.device.type, enabled=False):
            found = self.vae.encode(given).latent_dist
        drawn = found.mean + found.std * torch.randn(found.mean.shape, generator=generator).to(found.mean)
        return (drawn * self.vae.config.scaling_factor).float()

    @torch.no_grad()
    def _text(self, caption: str) -> tuple[Tensor, Tensor | None]:
        """(1, T, width) of a caption, and SDXL's pooled one; as the pipeline encodes prompts."""
        if caption not in self._texts:
            if len(self._texts) > 4096:
                self._texts.clear()
            encoded = self.pipeline.encode_prompt(
                caption, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            self._texts[caption] = (encoded[0], encoded[2] if self.name == "sdxl" else None)
        return self._texts[caption]


def load_base(name: str, dino: Dinov2, accelerator: Any, options: Any) -> Base:
    """The embedded denoiser, or the SD 1.5 or SDXL in a diffusers folder or a single file, frozen.

    Raises:
        SystemExit: it is none of these.
    """
    if name == "embedded":
        return EmbeddedBase(dino, accelerator.device)
    pipeline = load_pipeline(Path(name))
    kind = "sdxl" if getattr(pipeline, "text_encoder_2", None) is not None else "sd15"
    if getattr(pipeline, "unet", None) is None or pipeline.unet.config.in_channels != 4:
        raise SystemExit(f"{name} must be a text-to-image SD 1.5 or SDXL, no inpainting model and no transformer.")
    width = pipeline.unet.config.cross_attention_dim
    if width != CROSS_DIM[kind]:
        raise SystemExit(f"{name} looks like {kind}, whose text tokens are {CROSS_DIM[kind]} wide; its are {width}.")
    if options.checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[options.precision]
    return LatentBase(kind, pipeline, accelerator.device, dtype, tuple(options.denoise), options.drop)


def load_pipeline(path: Path) -> Any:
    """diffusers' pipeline in a folder or a single file; nothing is fetched for a folder.

    Raises:
        SystemExit: there is neither.
    """
    import diffusers

    if (path / "model_index.json").is_file():
        return diffusers.DiffusionPipeline.from_pretrained(path, local_files_only=True)
    if path.is_file() and path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            large = any(key.startswith("conditioner.embedders.1.") for key in file.keys())  # noqa: SIM118 - no dict
        kind = diffusers.StableDiffusionXLPipeline if large else diffusers.StableDiffusionPipeline
        return kind.from_single_file(path)
    raise SystemExit(f"{path} is neither a diffusers folder (with model_index.json) nor a .safetensors file.")

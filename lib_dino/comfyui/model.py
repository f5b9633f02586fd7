"""ComfyUI's model as a `TileModel`: a tile is one run of its sampler, with our corrections after the guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import torch
from torch import Tensor

from ..errors import SettingsError
from ..sampling.correction import Codec, Corrector
from ..sampling.latent_codec import AutoencoderCodec, LatentCodec, arbitrary_map, described_map, noise_to_signal
from ..sampling.tile_model import TileBatch
from .autoencoder import tiny_autoencoder

Conditioning = Sequence[Any]

_REFUSED: Final = {
    "control": "ControlNet is given a picture of the whole, and the tiles would each get all of it",
    "reference_latents": "reference latents show the model a picture of its own",
    "area": "areas of a prompt are those of the whole picture",
    "mask": "masks of a prompt are those of the whole picture",
    "gligen": "GLIGEN's boxes are those of the whole picture",
    "concat_latent_image": "inpainting models look at a picture of the whole",
}
"""What a conditioning may carry that tiles would get wrong."""


@dataclass(frozen=True)
class Sampling:
    """How tiles are sampled: as for ComfyUI's KSampler."""

    sampler_name: str
    scheduler: str
    cfg: float
    positive: Conditioning
    negative: Conditioning


def check(conditioning: Conditioning, name: str) -> None:
    """Refuse what would be wrong in tiles.

    Raises:
        SettingsError: there is something of the kind.
    """
    for _, extras in conditioning:
        found = next((key for key in _REFUSED if extras.get(key) is not None), None)
        if found is not None:
            raise SettingsError(
                f"{name} carries {found!r}, which DINO Upscale cannot use: {_REFUSED[found]}. Connect a plain prompt.",
                field=name, value=found, limit="a plain prompt",
            )  # fmt: skip


class ComfyTileModel:
    """The model and autoencoder of a workflow.

    Args:
        model: ComfyUI's model patcher; it is never changed, only copies of it are.
        latents: what its latents mean.
        sampling: how tiles are sampled.
        seed: for samplers that draw noise of their own.
        on_preview: told of the predicted clean latents of every step.

    Raises:
        SettingsError: a prompt carries what tiles cannot use.
    """

    def __init__(
        self, model: Any, latents: Latents, sampling: Sampling, *, seed: int,
        on_preview: Callable[[Tensor], None] | None = None,
    ) -> None:  # fmt: skip
        self._model, self._latents, self._sampling, self._seed = model, latents, sampling, seed
        self._on_preview = on_preview
        check(sampling.positive, "positive")
        check(sampling.negative, "negative")
        self.name = type(model.model.model_config).__name__
        self.channels, self.factor = latents.channels, latents.factor
        # Transformers look at two by two cells.
        self.multiple_px = self.factor * (2 if self.channels >= 16 else 1)
        self.tile_px = 512 if type(latents.described).__name__ == "SD15" else 1024
        self.fits_any_tile = False

    def calls(self, denoise: float, steps: int) -> int:
        """Steps of a tile: ComfyUI makes all of them whatever the denoise."""
        return steps if denoise else 0

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor:
        """Repaint tiles, see `TileModel.render`."""
        with torch.inference_mode():
            latents = self._latents.encode(batch.images)
            same = torch.equal(batch.plain, batch.images)
            source = latents if same else self._latents.encode(batch.plain)
            codec = self._latents.codec(source)
            model = corrected(self._model, corrector, codec, self._latents)

            def stepped(step: int, clean: Tensor, noisy: Tensor, steps: int) -> None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                if self._on_preview is not None:
                    self._on_preview(clean)
                on_step()

            how = self._sampling
            made = comfy.sample.sample(
                model, batch.noise.reshape(latents.shape).to(latents.dtype), batch.steps, how.cfg, how.sampler_name,
                how.scheduler, how.positive, how.negative, latents, denoise=batch.denoise, callback=stepped,
                disable_pbar=True, seed=self._seed,
            )  # fmt: skip
            images = self._latents.decode(made)
        with torch.inference_mode(False):
            return images.clone()


def corrected(model: Any, corrector: Corrector, codec: Codec, latents: Latents) -> Any:
    """A copy of `model` whose predicted clean latents go through `corrector`."""
    copy = model.clone()

    def act(args: dict[str, Any]) -> Tensor:
        clean, ratio = args["denoised"], latents.noise_to_signal(args["sigma"])
        # ComfyUI samples in inference mode, and of its tensors nobody can take gradients.
        with torch.inference_mode(False), torch.no_grad():
            flat = (clean.squeeze(2) if clean.ndim == 5 else clean).clone()
            changed = corrector(flat, ratio, codec)
        return clean if changed is flat else changed.reshape(clean.shape)

    copy.set_model_sampler_post_cfg_function(act)
    return copy


class Latents:
    """What the latents of a model mean.

    Args:
        model: ComfyUI's model patcher.
        vae: ComfyUI's autoencoder.

    Raises:
        SettingsError: they are not of pictures.
    """

    def __init__(self, model: Any, vae: Any) -> None:
        self._model, self._vae = model, vae
        self.described = model.get_model_object("latent_format")
        self.channels = int(self.described.latent_channels)
        if getattr(self.described, "latent_dimensions", 2) not in (2, 3):
            raise SettingsError(
                f"{type(self.described).__name__} has no latents of pictures. Connect an image model.",
                field="model", value=type(self.described).__name__, limit="an image model",
            )  # fmt: skip
        self.factor = int(vae.spacial_compression_encode())
        self._colors = described_map(self.described) or arbitrary_map(self.channels)
        self._tiny = tiny_autoencoder(self.described)

    @property
    def flow(self) -> bool:
        """Noisy latents are sigma * noise + (1 - sigma) * clean."""
        return isinstance(self._model.get_model_object("model_sampling"), comfy.model_sampling.CONST)

    def noise_to_signal(self, sigma: Tensor) -> float:
        """Noise-to-signal ratio of a call."""
        return noise_to_signal(float(sigma.flatten()[0]), flow=self.flow)

    def codec(self, latents: Tensor | None) -> Codec:
        """For a batch whose source has these latents, as the autoencoder gives them; None where nobody knows them."""
        source = None
        if latents is not None:
            held = self._model.model.process_latent_in(latents)
            with torch.inference_mode(False):  # gradients are taken with it
                source = (held.squeeze(2) if held.ndim == 5 else held).clone()
        if self._tiny is not None:
            return AutoencoderCodec(self._tiny, self._colors, self.factor, source)
        return LatentCodec(self._colors, self.factor, source)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to latents as ComfyUI hands them on."""
        latents: Tensor = self._vae.encode(images.movedim(1, -1))
        return comfy.sample.fix_empty_latent_channels(self._model, latents)  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse, (B, 3, H, W) in [0, 1]."""
        images: Tensor = self._vae.decode(latents)
        return images.reshape(-1, *images.shape[-3:]).movedim(-1, 1).cpu().float().clamp(0, 1)

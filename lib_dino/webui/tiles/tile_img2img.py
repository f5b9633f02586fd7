"""A batch of tiles as one img2img of the host: `TileModel` on top of `processing.process_images`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import Tensor

from ...sampling.correction import Codec, Corrector
from ...sampling.tile_model import TileBatch
from ..interrupt import stop_asked
from ..model.adapter_patch import Conditioner
from ..model.cfg_callbacks import Batch, Hooks
from ..model.family import Model
from ..model.noise import TileNoise, repeatable
from ..model.samplers import model_calls
from . import precision
from .tile_job import INFOTEXT_KEY, TileJobs

log = logging.getLogger("dino_upscale")

_TILES_OWN: Final = (INFOTEXT_KEY, "Denoising strength", "Schedule type", "Noise multiplier", "Script")
"""What a tile's processing object writes down about itself alone."""


class WebuiTileModel:
    """img2img of tiles with the model that the host has loaded.

    Args:
        p: the generation they belong to; only read.
        facts: about the loaded model.
        hooks: installed already.
        codec: makes the codec from the tiles' latents; None where corrections can change nothing.
        seed, prompt, negative_prompt, scripts: see `TileJobs`.
        on_batch: called before every batch.
        on_done: handed what scripts wrote down in a batch's processing object: parameters and comments.
    """

    def __init__(
        self,
        p: Any,
        facts: Model,
        hooks: Hooks,
        codec: Callable[[Tensor | None], Codec] | None,
        *,
        seed: int,
        prompt: str,
        negative_prompt: str,
        scripts: Sequence[Any] = (),
        on_batch: Callable[[], None] = lambda: None,
        on_done: Callable[[dict[str, Any], dict[str, Any]], None] = lambda parameters, comments: None,
    ) -> None:
        self.name = str(getattr(p, "sd_model_name", None) or facts.family)
        self._hooks, self._codec, self._on_batch, self._on_done = hooks, codec, on_batch, on_done
        self._own = _tile_script()
        self._jobs = TileJobs(
            p, seed=seed, prompt=prompt, negative_prompt=negative_prompt, scripts=scripts, own=self._own
        )
        self.tile_px, self.multiple_px, self.channels = facts.tile_px, facts.multiple_px, facts.channels
        self.factor, self.fits_any_tile = facts.factor, facts.fits_any_tile
        self._facts, self._sd_model = facts, p.sd_model

    @property
    def one_by_one(self) -> bool:
        """Tiles must not share a call."""
        return self._jobs.one_by_one or self._facts.frames or self._facts.reference

    def calls(self, denoise: float, steps: int) -> int:
        """Model calls for one tile, as the host's samplers count them.

        Raises:
            SettingsError: the sampler would not run at all and return noise.
        """
        return model_calls(self._jobs.sampler_name, denoise=denoise, steps=steps)

    def computes_in_half(self) -> bool:
        """Tell whether the loaded model would compute otherwise in float32."""
        return precision.computes_in_half(self._sd_model)

    def in_float32(self) -> AbstractContextManager[bool]:
        """Have the loaded model compute in float32, see `HalfPrecisionModel`."""
        return precision.in_float32(self._sd_model)

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor | None:
        """Repaint tiles, see `TileModel.render`."""
        from modules import shared

        self._on_batch()
        if stop_asked():
            return None
        q = self._jobs.make(batch)
        self._own.noise, self._own.images = TileNoise(batch.noise, shared.device, frames=self._facts.frames), None
        failed = False
        try:
            self._process(q, batch, corrector, on_step)
        except _no_numbers() as error:
            log.warning("A tile gave no valid numbers: %s", error)
            failed = True
        finally:
            images, self._own.images, self._own.noise = self._own.images, None, None
            q.close()
        if failed:
            return torch.full_like(batch.images, torch.nan)
        parameters = {key: value for key, value in q.extra_generation_params.items() if key not in _TILES_OWN}
        self._on_done(parameters, q.comments)
        if images is None or stop_asked():
            return None
        return torch.stack([image.detach().cpu().float().clone() for image in images])

    def _process(self, q: Any, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> None:
        from modules import devices, processing

        count, _, height, width = batch.images.shape
        shape = (count, self.channels, height // self.factor, width // self.factor)
        conditioner: Conditioner = self._own.conditioner
        hooked = Batch(q, shape, None if self._codec is None else corrector, self._codec, on_step, conditioner)
        with conditioner.conditioned(batch.tokens):
            with (
                self._hooks.armed(hooked), conditioner.installed(q), devices.without_autocast(),
                repeatable(self._jobs.seed),
            ):  # fmt: skip
                processing.process_images(q)
            if self._own.images is not None and not stop_asked():
                conditioner.check_looked()
                self._hooks.check_heard(hooked)


def _no_numbers() -> tuple[type[Exception], ...]:
    """What a host raises when its model gives nothing but NaN; the Forge family hands the NaN on."""
    from modules import devices

    found = getattr(devices, "NansException", None)
    return () if found is None else (found,)


def _tile_script() -> Any:
    script = _tile_script_class()()
    script.args_from = script.args_to = 0
    script.filename = __file__
    script.alwayson = True
    script.conditioner = Conditioner()
    return script


@functools.cache
def _tile_script_class() -> type:
    from modules import scripts

    class TileScript(scripts.Script):  # type: ignore[misc]
        """Gives the tiles their noise and takes the finished pictures before they are rounded."""

        noise: TileNoise | None = None
        images: Tensor | None = None
        conditioner: Conditioner | None = None

        def title(self) -> str:
            return "DINO Upscale tiles"

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            noise = self.noise
            if noise is None:
                return
            p.rng = noise
            if getattr(p, "sampler", None) is not None and hasattr(p.sampler, "create_noise_sampler"):
                p.sampler.create_noise_sampler = lambda x, sigmas, p: noise.between

        def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
            if self.conditioner is not None:
                self.conditioner.patch(p)

        def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            self.images = kwargs["images"]

    return TileScript

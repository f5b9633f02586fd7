"""Guidance inside the host's denoising: two callbacks, armed for one batch of our own tiles at a time.

The host calls the first before the model and the second after classifier-free guidance, in the same thread. Other
jobs, ADetailer's passes, hires passes and anything of another size pass through untouched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import DinoError
from ...sampling.correction import Codec, Corrector
from ...sampling.latent_codec import noise_to_signal
from .adapter_patch import Conditioner
from .family import Model

log = logging.getLogger("dino_upscale")

class GuidanceError(DinoError):
    """Guidance failed in the middle of a run; the tiles would not be what was asked for."""


@dataclass
class Batch:
    """What the callbacks need to know about the batch of tiles that is being denoised.

    Attributes:
        owner: the host's processing object of these tiles; calls for another one are not ours.
        shape: (B, C, h, w) of its latents, which come from the host as (B, C, 1, h, w) where they could be a video's.
        corrector: what is to be done to predicted clean tiles; None leaves every value as it is.
        codec: makes the codec from the source's tiles as latents; None with no corrector.
        on_step: called after every model call.
        conditioner: told before every model call, for it has to know what rows the UNet will see.
    """

    owner: Any
    shape: tuple[int, ...]
    corrector: Corrector | None
    codec: Callable[[Tensor | None], Codec] | None
    on_step: Callable[[], None]
    conditioner: Conditioner | None = None


@dataclass(frozen=True)
class _Call:
    """One model call: the noisy latents and how noisy they are."""

    x: Tensor
    sigma: float
    predicts_noise: bool


@dataclass
class _Heard:
    """What the host's sampler said of a batch, and what was made of it.

    Attributes:
        before, ours: calls announced, and calls that fit.
        shape: the last that came.
        call: what went into the model; None between calls.
        codec: of the batch, made at its first call.
    """

    before: int = 0
    ours: int = 0
    shape: tuple[int, ...] | None = None
    call: _Call | None = None
    codec: Codec | None = None


class Hooks:
    """The callbacks; installed for a job, armed for a batch.

    Args:
        model: what is loaded.
        alphas_cumprod: of the model, for samplers that count in timesteps; None for flow models.
        stop: called before every model call; raises to give up at once.
        after: called after every model call of ours, before anything else: a preview could come in between.

    Attributes:
        error: what stopped the corrections of the batch; None while they go on.
        left_out: why a whole batch went by without them; empty while none did.
    """

    def __init__(
        self,
        model: Model,
        alphas_cumprod: Tensor | None,
        *,
        stop: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._alphas, self._stop, self._after = model, alphas_cumprod, stop, after
        self._batch: Batch | None = None
        self._heard = _Heard()
        self.error: Exception | None = None
        self.left_out = ""

    @contextmanager
    def installed(self) -> Iterator[Hooks]:
        """Registered with the host inside the block, and gone afterwards whatever happened."""
        from modules import script_callbacks

        try:
            script_callbacks.on_cfg_denoiser(self.before_model)
            script_callbacks.on_cfg_after_cfg(self.after_guidance)
            yield self
        finally:
            self._batch = None
            for hook in (self.before_model, self.after_guidance):
                script_callbacks.remove_callbacks_for_function(hook)

    @contextmanager
    def armed(self, batch: Batch) -> Iterator[None]:
        """Acting on `batch` inside the block; an error of the callbacks is raised at its end."""
        self._batch, self.error, self._heard = batch, None, _Heard()
        try:
            yield
        finally:
            self._batch = self._heard.call = self._heard.codec = None
        if self.error is not None:
            raise GuidanceError(
                f"DINO guidance stopped: {type(self.error).__name__}: {self.error}. Set DINO strength to 0 to upscale "
                f"without it."
            ) from self.error

    def before_model(self, params: Any) -> None:
        """Remember what goes into the model."""
        self._heard.call = None
        batch = self._batch
        if batch is None or getattr(params.denoiser, "p", None) is not batch.owner:
            return
        self._heard.before += 1
        self._stop()
        try:
            self._heard.call = self._seen(params, batch)
            if batch.conditioner is not None:
                batch.conditioner.before_model(params)
        except Exception as error:
            self._fail(error)

    def after_guidance(self, params: Any) -> None:
        """Correct what came out of it."""
        batch, heard = self._batch, self._heard
        call, heard.call = heard.call, None
        if batch is None or call is None:
            return
        heard.shape = tuple(params.x.shape)
        if tuple(_still(params.x).shape) != batch.shape:
            return
        heard.ours += 1
        try:
            self._after()
            if batch.corrector is not None and self.error is None:
                params.x = self._corrected(params.x, call, batch)
            batch.on_step()
        except Exception as error:
            self._fail(error)

    def check_heard(self, batch: Batch) -> None:
        """Say once, in `left_out` and in the log, that the host finished `batch` without a call to correct."""
        if batch.corrector is None or self._heard.ours or self.left_out:
            return
        heard = self._heard
        if not heard.before:
            why = "the host's sampler never said what goes into the model"
        elif heard.shape is None:
            why = "the host's sampler never said what comes out of the model"
        else:
            why = f"the host's latents have the shape {heard.shape}, and those of the tiles should have {batch.shape}"
        self.left_out = f"DINO guidance and source consistency inside the loop did nothing: {why}."
        log.warning("%s", self.left_out)

    def _seen(self, params: Any, batch: Batch) -> _Call:
        count = batch.shape[0]
        # A1111 passes the rows of all conditions; the last ones are the current latents in every host.
        x, sigma = params.x[-count:], float(params.sigma.reshape(-1)[-1])
        denoiser = params.denoiser
        by_timestep = "Timesteps" in type(denoiser).__name__
        predicts_noise = by_timestep and not getattr(denoiser, "classic_ddim_eps_estimation", False)
        return _Call(x, sigma, predicts_noise)

    def _corrected(self, out: Tensor, call: _Call, batch: Batch) -> Tensor:
        # Forge samples in inference mode, whose tensors can carry no gradients: work on ordinary copies.
        with torch.inference_mode(False), torch.no_grad(), _full_precision(out.device.type):
            given = _still(out).clone().float()
            clean, ratio = given, noise_to_signal(call.sigma, flow=self._model.flow)
            if call.predicts_noise:
                a = self._alpha(call.sigma)
                ratio = (1 / a - 1) ** 0.5
                clean = clean_from_noise(given, _still(call.x).clone().float(), a)
            assert batch.corrector is not None and batch.codec is not None
            if self._heard.codec is None:
                start = getattr(batch.owner, "init_latent", None)
                self._heard.codec = batch.codec(None if start is None else _still(start).clone().float())
            corrected = batch.corrector(clean, ratio, self._heard.codec)
            if corrected is clean:
                return out
            if call.predicts_noise:
                corrected = noise_from_clean(corrected, _still(call.x).clone().float(), a)
            return corrected.reshape(out.shape).to(out)

    def _alpha(self, timestep: float) -> float:
        if self._alphas is None:
            raise RuntimeError("the sampler counts in timesteps, but the model has no table of them")
        return float(self._alphas[int(timestep)])

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            log.error("DINO guidance stopped: %s: %s", type(error).__name__, error, exc_info=error)
            self.error = error


def clean_from_noise(noise: Tensor, x: Tensor, a: float) -> Tensor:
    """The clean latents that a predicted noise stands for: x = sqrt(a) clean + sqrt(1 - a) noise."""
    clean: Tensor = (x - (1 - a) ** 0.5 * noise) / a**0.5
    return clean


def noise_from_clean(clean: Tensor, x: Tensor, a: float) -> Tensor:
    """The noise that predicted clean latents stand for; the inverse of `clean_from_noise`."""
    noise: Tensor = (x - a**0.5 * clean) / (1 - a) ** 0.5
    return noise


def _still(latents: Tensor) -> Tensor:
    """(B, C, h, w) of latents that have one frame, or none."""
    return latents.squeeze(2) if latents.ndim == 5 else latents


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Without the host's autocast, on devices that have one."""
    if device not in ("cpu", "cuda", "xpu"):
        yield
        return
    with torch.autocast(device, enabled=False):
        yield



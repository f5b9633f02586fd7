"""The denoiser that ships with the project, as a `TileModel`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapter.diffusers_unet import injected
from ..networks.denoiser import BLOCK_PX, load_denoiser
from .correction import Corrector, PixelCodec
from .sampler import sample, schedule
from .tile_model import TileBatch

NOISE_SCALE = 0.25
"""This model's sigma for one unit of SD 1.5's noise-to-signal ratio: noise on pixels drowns fine detail that SD's
autoencoder carries past it (docs/constants.md)."""


class PixelTileModel:
    """img2img of tiles with the small pixel-space denoiser.

    Args:
        folder: the denoiser's `config.json` and weights; None takes the one that ships.
        device: where it runs.
    """

    name = "embedded denoiser"
    tile_px = 640
    multiple_px = 1
    channels = 3
    factor = 1
    fits_any_tile = True

    def __init__(self, folder: Path | None = None, *, device: str = "cpu") -> None:
        self._denoiser = load_denoiser(folder, device=device)
        self._codec = PixelCodec()

    @property
    def unet(self) -> Any:
        """The diffusers network inside, for adapters."""
        return self._denoiser.unet

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digits that stand for its weights and where it runs, so that another model never takes tiles of this one."""
        made = hashlib.sha256(f"{self.name} {self._denoiser.unet.device}".encode())
        for name, weight in sorted(self._denoiser.unet.state_dict().items()):
            made.update(f"{name} {tuple(weight.shape)}".encode())
            made.update(weight.detach().cpu().contiguous().numpy().tobytes())
        return made.hexdigest()

    def calls(self, denoise: float, steps: int) -> int:
        """Model calls for one tile."""
        return len(schedule(denoise, steps)) - 1

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor:
        """Repaint tiles, see `TileModel.render`."""
        sigmas = [ratio * NOISE_SCALE for ratio in schedule(batch.denoise, batch.steps)]

        def predict(x: Tensor, sigma: float) -> Tensor:
            clean = self._denoiser(x, sigma)
            on_step()
            return clean

        start = 2 * batch.images - 1 + sigmas[0] * batch.noise
        with self._conditioned(batch):
            clean = sample(start, sigmas, predict, lambda x, ratio: corrector(x, ratio, self._codec))
        return self._codec.decode(clean).clamp(0, 1)

    def _conditioned(self, batch: TileBatch) -> AbstractContextManager[None]:
        if batch.tokens is None:
            return nullcontext()
        # The network's input is padded: the tokens' places are those of the tile alone.
        height, width = batch.images.shape[-2:]
        return injected(self.unet, dataclasses.replace(batch.tokens, span=(height / BLOCK_PX, width / BLOCK_PX)))

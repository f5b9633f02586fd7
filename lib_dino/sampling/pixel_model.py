"""The denoiser that ships with the project, as the core calls any diffusion model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..networks.denoiser import BLOCK_PX, load_denoiser
from .correction import PixelCodec
from .sampler import sample, schedule
from .tile_model import TileCorrect

NOISE_SCALE = 0.25
"""This model's sigma for one unit of SD 1.5's noise-to-signal ratio.

Pictures in [-1, 1] have half the spread of SD's latents, which would make it 0.5. But noise on pixels drowns fine
detail that SD's autoencoder carries past the noise: at 0.25 held-out photographs come out with higher PSNR and
smaller feature distances for a tenth less detail (`training/README.md`).
"""


class EmbeddedRender:
    """img2img of tiles with the small pixel-space denoiser.

    Args:
        folder: the denoiser's `config.json` and weights; None takes the one that ships.
        device: where it runs.
    """

    name = "embedded denoiser"
    cell_px = BLOCK_PX
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

    def calls(self, denoise: float, steps: int) -> int:
        """Model calls for one tile."""
        return len(schedule(denoise, steps)) - 1

    def __call__(
        self,
        tiles: Tensor,
        noise: Tensor,
        *,
        denoise: float,
        steps: int,
        correct: TileCorrect,
        called: Callable[[], None],
    ) -> Tensor:
        """Repaint tiles, as `run.Render` says."""
        sigmas = [ratio * NOISE_SCALE for ratio in schedule(denoise, steps)]

        def predict(x: Tensor, sigma: float) -> Tensor:
            clean = self._denoiser(x, sigma)
            called()
            return clean

        start = 2 * tiles - 1 + sigmas[0] * noise
        clean = sample(start, sigmas, predict, lambda x, ratio: correct(x, ratio, self._codec))
        return self._codec.decode(clean).clamp(0, 1)

"""img2img with a denoiser that works on pixels: noise schedule and sampler.

Noise levels are given as SD 1.5 knows them, so that `denoise` and `steps` mean what they mean in a WebUI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""A noisy picture and its sigma to the predicted clean picture, both in the model's scale."""

Correct = Callable[[Tensor, float], Tensor]
"""A predicted clean picture and its noise-to-signal ratio to the corrected clean picture."""

SIGMA_DATA = 0.5
"""Standard deviation of pictures in [-1, 1]; SD's latents have 1, hence the factor between the sigmas."""


@cache
def _log_sigmas() -> tuple[float, ...]:
    """log sigma of SD 1.5's thousand timesteps ("scaled linear" betas, 0.00085 to 0.012)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas_cumprod = torch.cumprod(1 - betas, 0)
    return tuple((((1 - alphas_cumprod) / alphas_cumprod).log() / 2).tolist())


def noise_to_signal(t: float) -> float:
    """SD 1.5's sigma at timestep `t`, 0 to 999, log-linear between whole timesteps as in k-diffusion."""
    table = _log_sigmas()
    low = min(int(t), 998)
    return math.exp(table[low] + (t - low) * (table[low + 1] - table[low]))


def schedule(denoise: float, steps: int) -> list[float]:
    """Noise-to-signal ratios of an img2img run, falling, with 0 at the end.

    Like the hosts' default schedule it is uniform in timesteps and makes `int(denoise * steps) + 1` model
    calls; unlike theirs it starts at exactly `denoise`, so the strength does not jump with the steps.

    Args:
        denoise: 0 to 1; 0 gives no model call at all.
        steps: steps of a full denoising, at least 1.
    """
    if denoise == 0:
        return [0.0]
    calls = int(min(denoise, 0.999) * steps) + 1
    start = 999 * denoise
    return [noise_to_signal(start * (1 - i / calls)) for i in range(calls)] + [0.0]


def sample(x: Tensor, sigmas: list[float], denoise: Denoise, correct: Correct) -> Tensor:
    """Follow DPM-Solver++(2M) from `x` at `sigmas[0]` to a clean picture.

    Args:
        x: (B, C, h, w), clean picture plus `sigmas[0]` times unit noise.
        sigmas: falling noise levels in the model's scale, ending in 0.
        denoise: called once per level above 0.
        correct: applied to every predicted clean picture before it is used.

    Source: Lu et al., "DPM-Solver++" (2022), algorithm 2, in k-diffusion's data-prediction form.
    """
    previous: Tensor | None = None
    for i in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        clean = correct(denoise(x, sigma), sigma / SIGMA_DATA)
        if sigma_next == 0:
            return clean
        step = math.log(sigma / sigma_next)
        direction = clean
        if previous is not None:
            ratio = math.log(sigmas[i - 1] / sigma) / step
            direction = clean + (clean - previous) / (2 * ratio)
        x = (sigma_next / sigma) * x + (1 - sigma_next / sigma) * direction
        previous = clean
    return x

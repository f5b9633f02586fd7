"""The embedded denoiser: a small picture-space diffusion network that ships with the repository.

A diffusers `UNet2DConditionModel` on 2x2 pixel blocks (3 colours x 4 pixels = 12 channels, lossless), preconditioned
as in Karras et al. 2022 (EDM, table 1) and trained by `training/train_denoiser.py`. It knows no text: its
cross-attention layers see one zero token, which leaves them free for what is injected there later.

Pictures here are `(B, 3, H, W)` in [-1, 1] (2 * image - 1) plus noise of standard deviation `sigma` in the same
unit. On the way from a soft picture y to a sharp one x0 the states it was trained on are
x0 + sigma / sigma_start * (y - x0) + sigma * noise, with sigma falling from sigma_start to 0.
"""

from __future__ import annotations


from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ModelError

SIGMA_DATA = 0.5  # standard deviation of pictures in [-1, 1]
SIGMA_MIN = 0.002  # below this the network's answer no longer changes
BLOCK_PX = 2  # side of the pixel block that is folded into channels
EMBEDDED = Path(__file__).parent / "embedded" / "denoiser"
FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def predict_clean(unet: Any, x: Tensor, sigma: Tensor) -> Tensor:
    """The network's estimate of the clean picture, gradients and all.

    Args:
        unet: diffusers UNet with 3 * `BLOCK_PX`**2 channels in and out.
        x: noisy picture, (B, 3, H, W), sides a multiple of `multiple_px(unet)`.
        sigma: noise level of each picture, (B,).

    Returns:
        (B, 3, H, W), float32.
    """
    level = sigma.float().clamp(min=SIGMA_MIN).view(-1, 1, 1, 1)
    total = (level**2 + SIGMA_DATA**2).sqrt()
    folded = F.pixel_unshuffle(x.float() / total, BLOCK_PX).contiguous(memory_format=torch.channels_last)
    context = folded.new_zeros(len(x), 1, unet.config.cross_attention_dim)
    # EDM's c_noise = log(sigma) / 4, times 100 to suit the sinusoidal embedding's frequencies
    answer = unet(folded, 25 * level.flatten().log(), context).sample
    c_skip, c_out = SIGMA_DATA**2 / total**2, level * SIGMA_DATA / total
    return c_skip * x.float() + c_out * F.pixel_shuffle(answer.float(), BLOCK_PX)


def multiple_px(unet: Any) -> int:
    """Side, in pixels, of which the network's input must be a whole multiple."""
    return BLOCK_PX * 2 ** (len(unet.config.block_out_channels) - 1)

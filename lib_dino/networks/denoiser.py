"""The embedded denoiser: a small picture-space diffusion network that ships with the repository.

A diffusers `UNet2DConditionModel` on 2x2 pixel blocks (3 colours x 4 pixels = 12 channels, lossless), preconditioned
as in Karras et al. 2022 (EDM, table 1) and trained by `training/train_denoiser.py`. It knows no text: its
cross-attention layers see one zero token, which leaves them free for what is injected there later.

Pictures here are `(B, 3, H, W)` in [-1, 1] (2 * image - 1) plus noise of standard deviation `sigma` in the same
unit. On the way from a soft picture y to a sharp one x0 the states it was trained on are
x0 + sigma / sigma_start * (y - x0) + sigma * noise, with sigma falling from sigma_start to 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ModelError
from ..tiling.padding import pad_symmetric
from .weights_file import check_sizes, read_tensors

SIGMA_DATA = 0.5  # standard deviation of pictures in [-1, 1]
SIGMA_MIN = 0.002  # lower levels are answered as this one
BLOCK_PX = 2  # side of the pixel block that is folded into channels
EMBEDDED = Path(__file__).parent.parent / "embedded" / "denoiser"
FILES = ("config.json", "diffusion_pytorch_model.safetensors")


class Denoiser:
    """A noisy picture and its noise level to the clean picture it most likely came from.

    Attributes:
        unet: the diffusers network, float32, in evaluation mode.
    """

    def __init__(self, unet: Any, *, device: str | torch.device = "cpu") -> None:
        self.unet = unet.float().to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.unet.set_attn_processor(OneToken())

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The clean picture, in `x`'s shape, dtype and on its device; any size from 1 x 1.

        Args:
            x: (B, 3, H, W), picture in [-1, 1] plus noise.
            sigma: standard deviation of the noise, one for all or (B,); below `SIGMA_MIN` taken as that.
        """
        height, width = x.shape[-2:]
        multiple = multiple_px(self.unet)
        levels = torch.as_tensor(sigma, dtype=torch.float32).to(self.unet.device).expand(len(x))
        padded = pad_symmetric(x.to(self.unet.device), -height % multiple, -width % multiple)
        return predict_clean(self.unet, padded, levels)[..., :height, :width].to(x)


def load_denoiser(folder: Path | None = None, *, device: str | torch.device = "cpu") -> Denoiser:
    """The denoiser in `folder`, or the embedded one.

    Args:
        folder: holds `FILES`, as diffusers' `save_pretrained` writes them.
        device: where it is to run.

    Raises:
        ModelError: a file is missing, damaged, or not a denoiser of this kind.
    """
    folder = EMBEDDED if folder is None else Path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise ModelError(f"The denoiser needs {' and '.join(FILES)} in {folder}; {name} is not there.")
    try:
        config = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        kind, channels = config["_class_name"], config["in_channels"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder / FILES[0]} does not describe a diffusers network: {repr(error)[:300]}.") from error
    if (kind, channels) != ("UNet2DConditionModel", 3 * BLOCK_PX**2):
        raise ModelError(
            f"The denoiser in {folder} must be a UNet2DConditionModel with {3 * BLOCK_PX**2} input channels; "
            f"it is a {kind} with {channels}. Latent-space models cannot be used here."
        )
    from diffusers import UNet2DConditionModel

    try:
        _, tensors = read_tensors(folder / FILES[1])
        check_sizes(config, tensors)
        with torch.device("meta"):  # no memory before every shape is known to fit
            unet = UNet2DConditionModel.from_config(config)
        unet.load_state_dict(tensors, assign=True)
    except ModelError:
        raise
    except Exception as error:  # whatever safetensors, torch or diffusers make of a damaged file
        raise ModelError(
            f"{folder / FILES[1]} does not hold the weights its config.json describes: {str(error)[:300]}"
        ) from error
    return Denoiser(unet, device=device)


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


class OneToken:
    """Attention processor for a context of one token: whoever looks sees that token's value."""

    def __call__(
        self, attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object, **__: object
    ) -> Tensor:
        """(B, N, C) to (B, N, C), exactly what softmax over one token gives."""
        value: Tensor = attention.to_out[0](attention.to_v(encoder_hidden_states))
        return value.expand(-1, hidden_states.shape[1], -1)


def multiple_px(unet: Any) -> int:
    """Side, in pixels, of which the network's input must be a whole multiple."""
    return BLOCK_PX * int(2 ** (len(unet.config.block_out_channels) - 1))

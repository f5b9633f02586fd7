"""Between PIL images and tensors: 8 bits a channel on one side, float32 in [0, 1] on the other."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_image(pixels: Tensor) -> Image.Image:
    """The 8-bit image of (C, H, W) pixels in [0, 1], rounded to the nearest level; mode L, LA, RGB or RGBA by C."""
    levels = pixels.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    values = levels.permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def to_pixels(image: Image.Image, mode: str = "RGB") -> Tensor:
    """(1, C, H, W) float32 in [0, 1] of an image of 8 bits a channel, converted to `mode` first."""
    values = torch.from_numpy(np.array(image if image.mode == mode else image.convert(mode)))
    return values.reshape(*values.shape[:2], -1).permute(2, 0, 1)[None].float().div_(255)

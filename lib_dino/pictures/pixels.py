"""Between PIL images and tensors: 8 bits a channel on one side, float32 in [0, 1] on the other."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import arrays


def to_image(pixels: Tensor) -> Image.Image:
    """The 8-bit image of (C, H, W) pixels in [0, 1], rounded to the nearest level; mode L, LA, RGB or RGBA by C."""
    pixels = pixels.detach()
    levels = arrays.zeros((*pixels.shape[1:], pixels.shape[0]), torch.uint8)
    for rows in arrays.bands(pixels):
        levels[rows] = to_levels(pixels[:, rows])
    values = levels.numpy()
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def to_levels(pixels: Tensor) -> Tensor:
    """(C, H, W) in [0, 1] as (H, W, C) of whole numbers up to 255, on the CPU."""
    return pixels.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu()


def to_pixels(image: Image.Image, mode: str = "RGB") -> Tensor:
    """(1, C, H, W) float32 in [0, 1] of an image of 8 bits a channel, converted to `mode` first."""
    image = image if image.mode == mode else image.convert(mode)
    width, height = image.size
    pixels = arrays.zeros((1, len(image.getbands()), height, width))
    for rows in arrays.bands(pixels):
        part = torch.from_numpy(np.array(image.crop((0, rows.start, width, rows.stop))))
        pixels[0, :, rows] = part.reshape(*part.shape[:2], -1).permute(2, 0, 1).float().div_(255)
    return pixels

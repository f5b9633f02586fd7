"""Pictures between ComfyUI's form, (B, H, W, C), and the core's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..pictures.picture import Picture


def pictures(images: Tensor) -> list[Picture]:
    """The pictures of a batch, (B, H, W, C) in [0, 1]; a fourth channel is alpha."""
    # Copied outside of inference mode, in which ComfyUI makes them.
    with torch.inference_mode(False):
        planes = images.detach().cpu().float().clone().movedim(-1, 1)
    found = []
    for one in torch.split(planes, 1):
        alpha = one[:, 3:4] if one.shape[1] == 4 else None
        found.append(Picture(one[:, :3].clamp(0, 1).contiguous(), alpha))
    return found


def batch(made: list[Picture]) -> Tensor:
    """Pictures of one size as a batch, (B, H, W, 3) in [0, 1], in steps of 1/255.

    ComfyUI cuts what it saves down to whole steps; a tenth of one more makes it the nearest.
    """
    nearest = (255 * torch.cat([picture.pixels for picture in made])).round()
    return ((nearest + 0.1) / 255).clamp(max=1).movedim(1, -1).contiguous()


def mask_of(mask: Tensor | None, number: int) -> Tensor | None:
    """Picture `number`'s part of a mask, (B, H, W) or (H, W), as (1, 1, H, W); the last one serves the rest."""
    if mask is None:
        return None
    with torch.inference_mode(False):
        every = mask.detach().cpu().float().clone().reshape(-1, 1, *mask.shape[-2:])
    return every[min(number, len(every) - 1)][None]


def as_batch(drawn: Sequence[Image.Image]) -> Tensor:
    """PIL pictures as one batch, (B, H, W, 3) in [0, 1]; smaller ones are black to the right and below."""
    size = max(image.width for image in drawn), max(image.height for image in drawn)
    canvases = [Image.new("RGB", size) for _ in drawn]
    for canvas, image in zip(canvases, drawn, strict=True):
        canvas.paste(image, (0, 0))
    return torch.stack([torch.from_numpy(np.array(canvas)).float() / 255 for canvas in canvases])

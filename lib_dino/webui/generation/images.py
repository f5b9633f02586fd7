"""Pictures between the host's form and the core's: PIL and DecodedSamples on one side, tensors on the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from ...errors import ImageError, SettingsError
from ...pictures.files import open_bytes
from ...pictures.picture import picture_from_pil
from ...pictures.pixels import to_image, to_pixels
from ...tiling.resample import resize
from ...webui_settings import NO_UPSCALER


def _grey(mask: Image.Image) -> Image.Image:
    """A mask as the host means it: by its transparency where it has any, else by its brightness."""
    if mask.mode == "RGBA" and mask.getextrema()[-1] != (255, 255):
        return mask.split()[-1]
    return mask.convert("L")


def for_truncation(picture: Tensor) -> Tensor:
    """A picture, (1, 3, H, W) in [0, 1], as the (3, H, W) in [-1, 1] that the host truncates to the nearest bytes."""
    nearest = (picture[0].cpu().float().clamp(0, 1) * 255).round()
    return ((nearest + 0.5) / 255).clamp(max=1) * 2 - 1


def source_of(p: Any, index: int) -> Tensor:
    """The picture that an img2img generation starts from, (1, 3, H, W) in [0, 1], without transparency."""
    from modules import images, shared

    held = p.init_images
    return to_pixels(images.flatten(held[index % len(held)], shared.opts.img2img_background_color))


def finished(p: Any, samples: Any) -> Tensor:
    """What a generation sampled, (B, 3, H, W) in [0, 1]."""
    from modules import devices, processing

    if not getattr(samples, "already_decoded", False):
        samples = processing.decode_latent_batch(p.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
    stacked = torch.stack([x.detach().cpu().float().clone() for x in samples])
    return ((stacked + 1) / 2).clamp(0, 1)


def enlarged(source: Tensor, size: tuple[int, int], upscaler: str) -> Tensor | None:
    """The source made large by one of the host's upscalers; None leaves it to the core."""
    from modules import shared

    if upscaler == NO_UPSCALER:
        return None
    found = next(u for u in shared.sd_upscalers if u.name == upscaler)
    scale = max(size[0] / source.shape[-2], size[1] / source.shape[-1])
    large = found.scaler.upscale(to_image(source[0]), scale, found.data_path)
    return resize(to_pixels(large), size).clamp(0, 1)


def references_of(files: Sequence[bytes]) -> list[Tensor]:
    """The pixels of reference pictures, (1, 3, H, W) in [0, 1] each.

    Raises:
        SettingsError: one cannot be read.
    """
    found = []
    for number, data in enumerate(files, start=1):
        try:
            with open_bytes(data, f"reference {number}") as image:
                found.append(picture_from_pil(image).pixels)
        except ImageError as error:
            raise SettingsError(str(error), field="references", value=number, limit="pictures") from error
    return found


def mask_of(p: Any, size: tuple[int, int]) -> Tensor | None:
    """Where an img2img generation may change the picture, (1, 1, *size) in [0, 1]; None is everywhere."""
    if getattr(p, "image_mask", None) is None:
        return None
    mask = _grey(p.image_mask)
    if p.inpainting_mask_invert:
        mask = ImageOps.invert(mask)
    if getattr(p, "mask_round", True):
        mask = mask.point(lambda v: 255 if v > 127 else 0)
    blur = max(getattr(p, "mask_blur_x", 0) or 0, getattr(p, "mask_blur_y", 0) or 0)
    large = mask.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    if blur:
        large = large.filter(ImageFilter.GaussianBlur(blur * size[1] / mask.width))
    return to_pixels(large, "L")

"""Pictures in and out: files and PIL images on one side, `Picture` on the other.

Reading turns whatever Pillow knows into RGB floats and remembers what has to come back: grey, alpha,
colour profile, EXIF.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from .. import arrays
from ..errors import ImageError
from .files import (
    DAMAGED,
    FORMATS,
    check_writable,
    exif_bytes,
    new_file,
    open_picture,
    read_settings_text,
)
from .pixels import to_image, to_pixels
from .streamed import LARGE_PX, can_stream, write_streamed

__all__ = ["Picture", "check_writable", "picture_from_pil", "read_picture", "read_settings_text", "write_picture"]

_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {},  # uncompressed: Pillow cannot write EXIF into a compressed one
}


_ORIENTATION: Final = 0x0112


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as the core works on it, with what its file said about it.

    Attributes:
        pixels: (1, 3, H, W) float32, RGB, [0, 1], upright. Where alpha is 0 the colour is its neighbours'.
        alpha: (1, 1, H, W) float32, [0, 1], 0 is transparent; None when there is none.
        grey: the three channels are one; written as one.
        icc_profile: the colour profile the pixels are in; None means sRGB.
        exif: EXIF data without an orientation.
        notes: what was done to the picture that its owner should know, one sentence each.
    """

    pixels: torch.Tensor
    alpha: torch.Tensor | None = None
    grey: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if len(shape) != 4 or shape[:2] != (1, 3):
            raise ValueError(f"a picture's pixels are (1, 3, H, W); got {shape}")
        if self.alpha is not None and tuple(self.alpha.shape) != (1, 1, *shape[2:]):
            raise ValueError(f"a picture's alpha is (1, 1, H, W); got {tuple(self.alpha.shape)} for {shape}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self.pixels.shape[2], self.pixels.shape[3]

    @property
    def transparent(self) -> bool:
        """True when a pixel, once written with 8 bits, lets the background through."""
        return self.alpha is not None and bool((self.alpha < 1 - 0.5 / 255).any())

    def planes(self) -> torch.Tensor:
        """(1, C, H, W) in [0, 1] as it is written: grey as one channel, alpha as the last."""
        colour = self.pixels
        if self.grey:
            colour = arrays.by_bands(lambda image: image.mean(1, keepdim=True), colour)
        if self.alpha is None:
            return colour
        return arrays.by_bands(lambda image, alpha: torch.cat([image, alpha.to(image)], 1), colour, self.alpha)

    def to_pil(self) -> Image.Image:
        """An 8-bit PIL image of mode L, LA, RGB or RGBA, with colour profile and EXIF in its `info`."""
        image = to_image(self.planes()[0])
        kept = {"icc_profile": self.icc_profile, "exif": self.exif}
        image.info.update({name: data for name, data in kept.items() if data})
        return image


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """The picture in a file, upright.

    Raises:
        ImageError: there is no such file, it is no picture, is damaged or has more than `files.MAX_PIXELS`.
    """
    with open_picture(path) as image:
        return picture_from_pil(image)


def picture_from_pil(image: Image.Image) -> Picture:
    """A PIL image of any mode as a `Picture`; the image is left as it was.

    Raises:
        ImageError: its numbers have no agreed black and white.
    """
    notes = [*_frame_notes(image), *_depth_notes(image)]  # before loading, which forgets both
    image.load()
    image, exif = _upright(image, notes)
    icc_profile = image.info.get("icc_profile") or None
    if image.mode in ("CMYK", "LAB"):
        image, icc_profile = _to_srgb(image, notes), None
    planes = _deep_grey(image, notes) if image.mode[0] in "IF" else _eight_bit(image)
    grey, has_alpha = planes.shape[1] < 3, planes.shape[1] in (2, 4)
    colour, alpha = (planes[:, :-1], arrays.copied(planes[:, -1:])) if has_alpha else (planes, None)
    pixels = colour if colour.shape[1] == 3 and not has_alpha else arrays.copied(colour.expand(1, 3, *colour.shape[2:]))
    return Picture(
        pixels if alpha is None else _bled(pixels, alpha), alpha, grey, icc_profile, exif, tuple(notes)
    )


def write_picture(picture: Picture, path: str | os.PathLike[str], *, text: str, force: bool = False) -> Path:
    """Write a picture whole or not at all, 8 bits a channel, with `text` where A1111 keeps its settings.

    Returns:
        The path.

    Raises:
        ImageError: as for `check_writable`, or the disk failed.
    """
    path = Path(path)
    check_writable(path, force, size=picture.size, transparent=picture.transparent)
    kind = FORMATS[path.suffix.lower()]
    if kind == "JPEG" and picture.alpha is not None:  # nothing of it is transparent
        picture = dataclasses.replace(picture, alpha=None)
    options = {**_OPTIONS[kind], **_metadata(picture, kind, text)}
    height, width = picture.size
    with new_file(path, force) as temporary:
        try:
            if height * width > LARGE_PX and can_stream(kind):
                write_streamed(picture.planes()[0], temporary, kind, options, text)
            else:
                picture.to_pil().save(temporary, format=kind, **options)
        except (ValueError, struct.error, MemoryError) as error:
            raise ImageError(f"{path} cannot be written as {kind}: {error}. Try another format.") from error
    return path


def _frame_notes(image: Image.Image) -> Iterator[str]:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format == "TIFF":
        yield f"TIFF of several pages: the first of {frames} pages is used."
    elif frames > 1 and image.format != "MPO":  # a camera's MPO holds its preview as a second picture
        yield f"Animated {image.format or 'picture'}: the first of {frames} frames is used."


def _depth_notes(image: Image.Image) -> Iterator[str]:
    raw_modes = " ".join(str(part[-1]) for part in getattr(image, "tile", ()))
    if image.mode.startswith("I;16"):
        yield "16-bit picture: worked on in full precision, written with 8 bits a channel."
    elif ";16" in raw_modes:
        yield "16-bit colour picture: only the upper 8 bits of each channel are read."


def _upright(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """The image turned as its EXIF asks, and the EXIF without that request."""
    try:
        if image.getexif().get(_ORIENTATION, 1) != 1:  # else it would be copied
            image = ImageOps.exif_transpose(image)
        exif = image.info.get("exif") or None
        Image.Exif().load(exif or b"")
        return image, exif
    except DAMAGED:
        notes.append("The EXIF data is damaged and is left out.")
        return image, None


def _to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            if converted is not None:
                notes.append("CMYK converted to sRGB through its ICC profile.")
                return converted
    missing = ", without a usable ICC profile: colours may be off" if image.mode == "CMYK" else ""
    notes.append(f"{image.mode} converted to sRGB{missing}.")
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> torch.Tensor:
    """(1, C, H, W) float32 in [0, 1]; C is 1 grey, 2 grey with alpha, 3 RGB, 4 RGBA."""
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    mode = ("L" if image.mode in ("1", "L", "LA", "La") else "RGB") + ("A" if alpha else "")
    return to_pixels(image, mode)


def _deep_grey(image: Image.Image, notes: list[str]) -> torch.Tensor:
    """(1, 1, H, W) float32 in [0, 1] from whole numbers up to 65535 or from floats around [0, 1]."""
    white = 1.0 if image.mode == "F" else 65535.0
    values = torch.from_numpy(np.asarray(image).astype(np.float32)).div_(white)
    low, high = float(values.min()), float(values.max())
    # Resampling overshoots a little; anything beyond that is another scale. NaN fails both comparisons.
    if not (low >= -0.5 and high <= 1.5):
        raise ImageError(
            f"a grey picture of mode {image.mode} must run from 0 (black) to {white:g} (white), but this one "
            f"runs from {low * white:g} to {high * white:g}. Save it with 8 or 16 bits."
        )
    if low < 0 or high > 1:
        notes.append(f"Values below 0 or above {white:g} are cut off.")
    return values.clamp_(0, 1)[None, None]


def _bled(pixels: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Colour under fully transparent pixels replaced by that of the nearest visible ones.

    What lies there is arbitrary, often black, and any resampling would pull it in as a fringe. Averages
    over ever larger blocks fill the holes, the finest that knows a colour first.
    """
    if bool((alpha > 0).all()) or not bool((alpha > 0).any()):
        return pixels
    weight = F.avg_pool2d(alpha, 2, ceil_mode=True)
    colour = F.avg_pool2d(pixels * alpha, 2, ceil_mode=True) / weight.clamp_min(1e-30)
    filled = F.interpolate(_bled(colour, weight), scale_factor=2.0)[..., : pixels.shape[2], : pixels.shape[3]]
    return torch.where(alpha > 0, pixels, filled)


def _metadata(picture: Picture, kind: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("parameters", text)
    comment = "" if kind == "PNG" else text
    options["exif"] = exif_bytes(picture.exif, size=picture.size, text=comment, kind=kind)
    options["icc_profile"] = picture.icc_profile
    return {name: value for name, value in options.items() if value}

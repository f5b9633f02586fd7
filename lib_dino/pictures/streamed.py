"""Large pictures written strip by strip, so that no second copy of them lies in memory.

By libvips, which streams PNG, JPEG and TIFF, and TIFF beyond 4 GiB. What the file says beside its pixels comes from
Pillow, as for small pictures: libvips keeps no text that the WebUIs could read.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from .. import arrays
from .pixels import to_levels

LARGE_PX: Final = 2**24
"""Pictures of more pixels are written in strips."""

_SAVERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "PNG": (".png", {"compression": 6}),
    "JPEG": (".jpg", {"Q": 95, "subsample_mode": "off"}),
    "TIFF": (".tif", {}),
}
_HEAD: Final = {"PNG": 33, "JPEG": 2}
"""Bytes before what a file says beside its pixels: signature and IHDR, or SOI."""

_CLASSIC_TIFF_BYTES: Final = 2**32 - 2**24


def can_stream(kind: str) -> bool:
    """Whether pictures of a format can be written in strips here."""
    return kind in _SAVERS and importlib.util.find_spec("pyvips") is not None


def write_streamed(planes: Tensor, path: Path, kind: str, options: Mapping[str, Any], text: str) -> None:
    """Write a picture.

    Args:
        planes: (C, H, W) in [0, 1]; C is 1 grey, 2 grey with alpha, 3 RGB, 4 RGBA.
        options: Pillow's, for what the file says beside its pixels.
        text: the settings; a TIFF has them as its description.

    Raises:
        OSError: the disk failed.
    """
    import pyvips

    channels, height, width = planes.shape
    levels = arrays.zeros((height, width, channels), torch.uint8)
    for rows in arrays.bands(planes):
        levels[rows] = to_levels(planes[:, rows])
    image = pyvips.Image.new_from_memory(levels.numpy().data, width, height, channels, "uchar")
    image = image.copy(interpretation="b-w" if channels < 3 else "srgb")
    if kind == "TIFF":
        _describe(image, options, text)
        try:
            image.tiffsave(str(path), bigtiff=levels.numel() > _CLASSIC_TIFF_BYTES)
        except pyvips.Error as error:
            raise OSError(str(error)) from error
        return
    with open(path, "wb") as file:
        spliced = _Spliced(file, _HEAD[kind], _beside(kind, channels, options))
        target = pyvips.TargetCustom()
        target.on_write(spliced.write)
        suffix, how = _SAVERS[kind]
        try:
            image.write_to_target(target, suffix, keep="none", **how)
        except pyvips.Error as error:
            raise spliced.error or OSError(str(error)) from error


class _Spliced:
    """A file that gets `beside` after its first `head` bytes."""

    def __init__(self, file: io.BufferedWriter, head: int, beside: bytes) -> None:
        self._file, self._head, self._beside = file, head, beside
        self._seen = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write the next bytes; a short count tells libvips of an error."""
        try:
            left = max(0, self._head - self._seen)
            self._file.write(data[:left])
            if 0 < left <= len(data):
                self._file.write(self._beside)
            self._file.write(data[left:])
        except OSError as error:
            self.error = error
            return 0
        arrays.release()
        self._seen += len(data)
        return len(data)


def _beside(kind: str, channels: int, options: Mapping[str, Any]) -> bytes:
    """What a file of `kind` says beside its pixels, as Pillow writes it for one pixel."""
    buffer = io.BytesIO()
    Image.new(("L", "LA", "RGB", "RGBA")[channels - 1], (1, 1)).save(buffer, kind, **options)
    data = buffer.getvalue()
    return b"".join(_png_chunks(data) if kind == "PNG" else _jpeg_segments(data))


def _png_chunks(data: bytes) -> Iterator[bytes]:
    at = _HEAD["PNG"]
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in (b"IDAT", b"IEND"):
            yield data[at:end]
        at = end


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """Application segments but for JFIF's, which libvips writes."""
    at = _HEAD["JPEG"]
    while data[at] == 0xFF and 0xE0 <= data[at + 1] <= 0xEF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] != 0xE0:
            yield data[at:end]
        at = end


def _describe(image: Any, options: Mapping[str, Any], text: str) -> None:
    import pyvips

    image.set_type(pyvips.GValue.gstr_type, "image-description", text)
    if profile := options.get("icc_profile"):
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)

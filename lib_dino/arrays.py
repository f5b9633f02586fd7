"""Arrays of whole pictures: in memory while they are small, else in files that vanish with them.

A result of 900 megapixels is 10.8 GB as floats, and a run needs several of that size. Large ones are mapped from files
without a name in `folder()`, so that the system keeps in memory what is worked on, and no more. Whatever touches a
whole picture goes through it band by band, by `by_bands` or `bands`, and lets go of the pages that it has seen.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from .errors import ImageError

LARGE_BYTES = 2**26
"""Arrays of more than this lie in files."""

BAND_BYTES = 2**25
"""About how much of an array is worked on at once."""

MEMORY_SHARE = 0.25
"""Of the free memory a large array may take that finds no room on the disk."""

_MAPPED: Final[weakref.WeakSet[mmap.mmap]] = weakref.WeakSet()


def folder() -> Path:
    """Where large arrays lie: TMPDIR if it is set, else /var/tmp where there is one (/tmp may be memory itself)."""
    var = Path("/var/tmp")
    if "TMPDIR" not in os.environ and sys.platform != "win32" and os.access(var, os.W_OK):
        return var
    return Path(tempfile.gettempdir())


def is_large(*shape: int, itemsize: int = 4) -> bool:
    """Whether an array of `shape` lies in a file."""
    return _count(shape) * itemsize > LARGE_BYTES


def zeros(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An array of zeros on the CPU; a large one in a file, or in memory where the disk has no room for it.

    Raises:
        ImageError: neither has room. Linux would end the process without a word once such memory was used.
    """
    if not is_large(*shape, itemsize=dtype.itemsize):
        return torch.zeros(*shape, dtype=dtype)
    size = _count(shape) * dtype.itemsize
    try:
        return torch.frombuffer(_mapped(size), dtype=dtype).view(*shape)
    except OSError as error:
        if size > MEMORY_SHARE * _spare_bytes():
            raise ImageError(
                f"A picture of this size needs {size / 1e9:.1f} GB more for a moment, and {folder()} has no room for "
                f"that ({error.strerror or error}). Free some, or name a folder on a larger disk in TMPDIR."
            ) from error
        return torch.zeros(*shape, dtype=dtype)


def copied(image: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of `image`, (..., H, W)."""
    dtype = dtype or image.dtype
    if not is_large(*image.shape, itemsize=dtype.itemsize):
        return image.to(dtype, copy=True)
    out = zeros(image.shape, dtype)
    for rows in bands(out):
        out[..., rows, :] = image[..., rows, :]
    return out


def by_bands(function: Callable[..., Tensor], *images: Tensor, into: Tensor | None = None) -> Tensor:
    """Apply to `images`, (..., H, W) of one size, a `function` that at each pixel needs those of the same place alone.

    Small pictures are handed over whole.

    Args:
        into: array of the result's shape and dtype that large pictures are written to, and that nobody needs any more;
            it may be one of `images`. None makes one.
    """
    if not any(is_large(*image.shape, itemsize=image.element_size()) for image in images):
        return function(*images)
    out = into
    for rows in bands(max(images, key=lambda image: image.numel() * image.element_size())):
        part = function(*(image[..., rows, :] for image in images))
        if out is None:
            out = zeros((*part.shape[:-2], *images[0].shape[-2:]), part.dtype)
        out[..., rows, :] = part
    assert out is not None, "a picture has at least one row"
    return out


def bands(image: Tensor) -> Iterator[slice]:
    """Spans of rows, about `BAND_BYTES` each, that cover `image`, (..., H, W); all of a small one is one span."""
    height = image.shape[-2]
    if not is_large(*image.shape, itemsize=image.element_size()):
        yield slice(0, height)
        return
    step = max(1, BAND_BYTES * height // (image.numel() * image.element_size()))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))
        release()


def release() -> None:
    """Let go of the pages of all large arrays: what they hold stays, in files that the system keeps as it sees fit."""
    if hasattr(mmap, "MADV_DONTNEED") and sys.platform == "linux":
        for mapped in list(_MAPPED):
            mapped.madvise(mmap.MADV_DONTNEED)


def _mapped(size: int) -> mmap.mmap:
    """Zeros in a file without a name.

    Raises:
        OSError: the disk has no room for it.
    """
    with tempfile.TemporaryFile(prefix="dino-upscale-", dir=folder()) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a disk that fills up later would kill the process
        else:
            file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    _MAPPED.add(mapped)
    return mapped


def _spare_bytes() -> float:
    """Memory that is free, where the system tells; there may be more, held by its caches."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _count(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count

"""Faults: tiles for which a model hands back what is no picture.

Half precision is the usual cause: a value too large for it becomes infinite, then every pixel is undefined, and a black
tile is what most hosts make of that.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from .. import arrays

TRIES: Final = 1
"""How often a faulty tile is sampled again, with other noise; before that once in float32, where that is possible."""

_BLACK: Final = 2 / 255
_SEEN: Final = 8 / 255
_BURNT_OUT: Final = 0.9
"""From this share of values at an end of the range on a tile is none that a sampler makes of a picture with fewer."""


def is_valid(image: Tensor, start: Tensor) -> bool:
    """Whether a tile is a picture: every number finite, not all black, and not burnt out.

    Black and burnt out (nearly every value 0 or 1, as of numbers that exploded) are allowed where it was so before.

    Args:
        image: what the model made, (1, 3, h, w).
        start: what it was made from, (1, 3, h, w) in [0, 1].
    """
    if not bool(torch.isfinite(image).all()):
        return False
    return not _is_black(float(image.max()), float(start.mean())) and not _is_burnt_out(image, start)


def mended(image: Tensor, start: Tensor) -> tuple[Tensor, int]:
    """A finished picture without pixels that are no numbers, and how many there were; all of them where it is black.

    Args:
        image: (1, 3, H, W); not changed.
        start: shown in their place, (1, 3, H, W) in [0, 1].
    """
    count, brightest, before = 0, 0.0, 0.0
    for rows in arrays.bands(image):
        part = image[..., rows, :]
        count += int(_faulty(part).sum())
        brightest, before = max(brightest, float(part.max())), before + float(start[..., rows, :].double().sum())
    if count:
        return arrays.by_bands(lambda made, other: torch.where(_faulty(made), other, made), image, start), count
    if _is_black(brightest, before / start.numel()):
        return arrays.copied(start), image[0, 0].numel()
    return image, 0


def _faulty(image: Tensor) -> Tensor:
    return (~image.isfinite()).any(1, keepdim=True)


def _is_burnt_out(image: Tensor, start: Tensor) -> bool:
    white, white_before = (float((each >= 1).float().mean()) for each in (image, start))
    black, black_before = (float((each <= 0).float().mean()) for each in (image, start))
    if white < 1 - _BURNT_OUT:  # a tile may be black, see `_is_black`
        return False
    return white + black > _BURNT_OUT and white_before + black_before < 1 - _BURNT_OUT


def _is_black(brightest: float, before: float) -> bool:
    """Whether a picture is black whose brightest value is this, made from one with this mean."""
    return brightest <= _BLACK and before > _SEEN

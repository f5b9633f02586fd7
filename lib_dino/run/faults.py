"""Faults: tiles for which a model hands back what is no picture.

Half precision is the usual cause: a value too large for it becomes infinite, then every pixel is undefined, and a black
tile is what most hosts make of that.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

TRIES: Final = 1
"""How often a faulty tile is sampled again, with other noise."""

_BLACK: Final = 2 / 255
_SEEN: Final = 8 / 255


def is_valid(image: Tensor, start: Tensor) -> bool:
    """Whether a tile is a picture: every number finite, and not all black unless it was all but black before.

    Args:
        image: what the model made, (1, 3, h, w).
        start: what it was made from, (1, 3, h, w) in [0, 1].
    """
    if not bool(torch.isfinite(image).all()):
        return False
    return float(image.max()) > _BLACK or float(start.mean()) <= _SEEN

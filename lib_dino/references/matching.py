"""Matches between a source and a reference by the features of their patches.

Nobody says how large a reference shows the thing, so it is compared in several sizes. In each the patches that are
each other's nearest by centred features are matches; the size wins whose matches fit few motions best.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..measure.features import centre
from ..networks.dinov2_weights import PATCH_PX
from ..tiling.resample import resize
from .motion import Motion, motions

FRAME_PX: Final = 504
"""Longer side that the larger of the two pictures is looked at with."""

SIZES: Final = tuple(2 ** (power / 2) for power in range(-3, 4))
"""Sizes of the whole reference against the whole source, with the thing in both equally large."""

MARGIN: Final = 0.02
"""Cosine by which a match must be better than every patch elsewhere."""

NEIGHBOURS: Final = 1.5
"""Patches up to which another place is the same one."""

Features = Callable[[Tensor, tuple[int, int]], Tensor]
"""A picture (1, 3, H, W) in [0, 1] and (rows, columns) of patches, to a grid of features, (1, D, rows, columns)."""


class Matcher:
    """Matches references to one source.

    Args:
        source: (1, 3, H, W) in [0, 1].
        features: what places are compared by.
    """

    def __init__(self, source: Tensor, features: Features) -> None:
        self._source, self._features = source, features
        self._source_grid = cache(lambda side: self._grid(source, side))

    def motions(self, reference: Tensor) -> list[Motion]:
        """Where the source's places are in `reference`, (1, 3, H, W) in [0, 1], the best motion first.

        None where the pictures do not match.
        """
        found = (self._of_size(reference, size) for size in SIZES)
        return max(found, key=lambda several: sum(motion.matches for motion in several))

    def _of_size(self, reference: Tensor, size: float) -> list[Motion]:
        """The motions that are found with the reference in one size."""
        # Features tell sharp from blurred: the reference is made as small as the source, and then both are enlarged.
        shrink = size * max(self._source.shape[-2:]) / max(reference.shape[-2:])
        sides = [max(1, round(side * shrink)) for side in reference.shape[-2:]]
        seen = resize(reference, (sides[0], sides[1])) if shrink < 1 else reference
        grid = self._source_grid(FRAME_PX * min(1, 1 / size))
        other = self._grid(seen, FRAME_PX * min(1, size))
        to_source, to_reference = _patch_px(self._source, grid), _patch_px(reference, other)
        return [motion.between(to_source, to_reference) for motion in motions(*matches(grid, other))]

    def _grid(self, image: Tensor, longer_side: float) -> Tensor:
        scale = longer_side / max(image.shape[-2:]) / PATCH_PX
        rows, columns = (max(1, round(side * scale)) for side in image.shape[-2:])
        return self._features(image, (rows, columns))


def matches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Places of two grids, (1, D, h, w), that are each other's nearest by a margin.

    Returns:
        Two (n, 2) of middles of patches, (x, y), in patches from the upper left corner.
    """
    first, second = (F.normalize(centre(grid)[0].flatten(1), dim=0) for grid in (a, b))
    likeness = first.T @ second
    best, nearest = likeness.max(1)
    mutual = likeness.argmax(0)[nearest] == torch.arange(len(nearest), device=nearest.device)
    at_a, at_b = _middles(a), _middles(b)
    near = (at_b[nearest][:, None] - at_b).abs().amax(-1) < NEIGHBOURS
    elsewhere = likeness.masked_fill(near, -1).amax(1)
    kept = mutual & (best - elsewhere > MARGIN)
    return at_a[kept], at_b[nearest[kept]]


def _middles(grid: Tensor) -> Tensor:
    y, x = torch.meshgrid(*(torch.arange(side) for side in grid.shape[-2:]), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2).to(grid) + 0.5


def _patch_px(image: Tensor, grid: Tensor) -> Tensor:
    """Pixels of a picture to one patch of its grid, across and down."""
    sides = [image.shape[axis] / grid.shape[axis] for axis in (-1, -2)]
    return torch.tensor(sides).to(grid)

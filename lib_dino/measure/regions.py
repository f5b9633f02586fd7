"""Regions of a picture: its subject, as DINOv2 features tell it from the borders, and what is flat."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tiling.plan import Tile
from .quality import high_frequencies

LEAST_SHARE: Final = 0.05
"""A tile with less of the subject than this does not show it."""

_UNDECIDED: Final = 0.25
"""Least distance from one half at which a part's share of the border decides."""

_FINE: Final = 512

_CERTAIN: Final = 0.15
"""Least share of the features' variance along their first direction for a picture to have a subject at all."""

FLAT: Final = 4 / 255
"""Largest root mean square of a block's high frequencies that counts as flat; measured in docs/constants.md."""

BLOCK_PX: Final = 8
"""A block of the source: a single small thing in a wide sky must show."""

ALIKE: Final = 0.5
"""Largest part of the features' energy in which the patches of a flat tile differ; measured in docs/constants.md."""


def subject_map(grid: Tensor, source: Tensor) -> Tensor:
    """(gh, gw) of 0 and 1: which patches of `source`, (1, 3, H, W), show its subject.

    The first principal component of its features `grid`, (1, D, gh, gw), parts the picture in two (Oquab et al. 2023,
    figure 1). The subject is the part that touches the borders clearly less; where neither does, as with a tower
    before the sky, it is the one with more detail. Where no direction stands out, everything counts as subject.
    """
    rows, cols = grid.shape[-2:]
    flat = grid[0].flatten(1).T.float()
    centred = flat - flat.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    energy = values.square()
    if min(rows, cols) < 3 or float(energy[0]) < _CERTAIN * float(energy.sum()):
        return torch.ones(rows, cols)
    part = (centred @ directions[0]).reshape(rows, cols) > 0
    border = torch.ones(rows, cols, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    touching = float(part[border].float().mean())
    if abs(touching - 0.5) < _UNDECIDED:
        energy = F.adaptive_avg_pool2d(high_frequencies(source).square(), (rows, cols))[0, 0]
        touching = float(energy[~part].mean()) / max(float(energy[part].mean() + energy[~part].mean()), 1e-12)
    subject: Tensor = part if touching < 0.5 else ~part
    return subject.to(torch.float32)


class Subject:
    """Place of one picture's subject.

    Args:
        grid: features of the whole source, (1, D, gh, gw).
        source: (1, 3, H, W) in [0, 1].
        size: (height, width) of the result, pixels.
    """

    def __init__(self, grid: Tensor, source: Tensor, size: tuple[int, int]) -> None:
        self._map, self._size = subject_map(grid, source), size

    def share(self, tile: Tile) -> float:
        """Share of a tile that shows the subject, 0 to 1; what lies beyond the picture does not count."""
        fine = F.interpolate(self._map[None, None], size=(_FINE, _FINE), mode="nearest")[0, 0]
        (top, bottom), (left, right) = (
            (min(_FINE - 1, _FINE * a // side), max(_FINE * a // side + 1, _FINE * min(b, side) // side))
            for a, b, side in ((tile.y0, tile.y1, self._size[0]), (tile.x0, tile.x1, self._size[1]))
        )
        return float(fine[top:bottom, left:right].mean())

    def shown(self, tile: Tile) -> bool:
        """True when a tile shows the subject."""
        return self.share(tile) >= LEAST_SHARE


def busiest(region: Tensor) -> float:
    """The largest root mean square of high frequencies in any block of a region of the source, (1, 3, h, w)."""
    energy = high_frequencies(region).square()
    block = min(BLOCK_PX, *energy.shape[-2:])
    return float(F.avg_pool2d(energy, block, stride=max(1, block // 2)).max().sqrt())


def is_flat(region: Tensor, features: Tensor) -> bool:
    """Decide if a region of the source is flat, in detail and in features.

    Noise is detail: a noisy sky is not flat.

    Args:
        region: (1, 3, h, w) in [0, 1].
        features: (1, D, gh, gw) of it.
    """
    if busiest(region) > FLAT:
        return False
    own = features - features.mean((-2, -1), keepdim=True)
    return float(own.square().mean()) <= ALIKE * float(features.square().mean())

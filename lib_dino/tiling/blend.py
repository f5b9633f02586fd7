"""Put tiles together so that no border shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .. import arrays
from .plan import Tile, TilePlan


def axis_windows(starts: Sequence[int], tile_px: int, *, feather_px: int) -> Tensor:
    """Weights of the tiles along one axis: at every pixel they sum to one.

    Between two neighbours the weight passes from one to the other by a raised cosine of `feather_px`
    in the middle of their overlap; a tile counts for nothing outside its ramps, so that two textures
    mix over no more pixels than asked.

    Args:
        starts: first pixel of each tile, ascending, neighbours overlapping or touching.
        tile_px: length of every tile, pixels.
        feather_px: length of a ramp, pixels; shortened where the overlap is shorter.

    Returns:
        (len(starts), tile_px), float64, on the CPU, in [0, 1].
    """
    if len(starts) == 1:
        return torch.ones(1, tile_px, dtype=torch.float64)
    ramp = min(feather_px, *(a + tile_px - b for a, b in pairwise(starts)))
    # Weight i is "past the cut before tile i" less "past the cut after it": they telescope to one, also
    # where three tiles overlap, and stay positive as all ramps are alike.
    cuts = [(b + a + tile_px - ramp) // 2 for a, b in pairwise(starts)]
    pixel = torch.arange(tile_px, dtype=torch.float64)
    windows = torch.ones(len(starts), tile_px, dtype=torch.float64)
    for i, start in enumerate(starts):
        if i > 0:
            windows[i] = _past(pixel + start - cuts[i - 1], ramp)
        if i < len(cuts):
            windows[i] -= _past(pixel + start - cuts[i], ramp)
    return windows


class Canvas:
    """A picture that tiles are added to; where none has landed yet, `base` shows.

    Because the weights of all tiles sum to one at every pixel, adding `weight * (tile - base)` for each
    tile gives the blended picture, at any moment of the run and without a canvas of weights.

    Args:
        base: (1, C, H, W), the enlarged source.
        plan: tiles of a canvas of (H, W).
        feather_px: length of the ramp between neighbours, pixels.
    """

    def __init__(self, base: Tensor, plan: TilePlan, *, feather_px: int) -> None:
        if tuple(base.shape[-2:]) != plan.size:
            raise ValueError(f"the base must be {plan.size} px like the plan; got {tuple(base.shape[-2:])}")
        self._base = base
        self._sum = arrays.copied(base, torch.float32)
        self._rows = _by_start(plan.tops, plan.tile[0], feather_px)
        self._cols = _by_start(plan.lefts, plan.tile[1], feather_px)

    def add(self, tile: Tile, image: Tensor) -> None:
        """Blend `image`, (1, C, h, w), in at `tile`; each tile of the plan once."""
        weight = self.weight(tile)
        difference = image.to(self._sum) - self._base[..., tile.rows, tile.cols].to(self._sum)
        self._sum[..., tile.rows, tile.cols] += weight.to(self._sum) * difference

    def weight(self, tile: Tile) -> Tensor:
        """Weight of `tile` at each of its pixels, (h, w), float64 in [0, 1]."""
        return self._rows[tile.y0][:, None] * self._cols[tile.x0][None, :]

    def result(self) -> Tensor:
        """The picture as it stands, (1, C, H, W), in the base's dtype."""
        return self._sum.to(self._base.dtype)


def _past(distance: Tensor, ramp: int) -> Tensor:
    """0 before a cut, 1 after its raised-cosine ramp; `distance` in pixels from the ramp's first."""
    t = ((distance + 0.5) / max(ramp, 1)).clamp(0, 1) if ramp else (distance >= 0).double()
    return 0.5 - 0.5 * torch.cos(torch.pi * t)


def _by_start(starts: Sequence[int], tile_px: int, feather_px: int) -> dict[int, Tensor]:
    return dict(zip(starts, axis_windows(starts, tile_px, feather_px=feather_px), strict=True))

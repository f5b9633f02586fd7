"""Faults: tiles for which a model hands back what is no picture, and tiles that do not fit into memory.

Half precision is the usual cause: a value too large for it becomes infinite, then every pixel is undefined, and a black
tile is what most hosts make of that.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from .. import arrays
from ..tiling.plan import Tile, TilePlan, plan_tiles

LEAST_PART_PX: Final = 64
"""Where a tile does not fit into memory it is sampled in parts no smaller than this."""

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
    white = float((image >= 1).float().mean())  # without any it is black, which `_is_black` is for
    return white >= 1 - _BURNT_OUT and _at_ends(image) > _BURNT_OUT and _at_ends(start) < 1 - _BURNT_OUT


def _at_ends(image: Tensor) -> float:
    """The share of values at an end of the range."""
    return float(((image <= 0) | (image >= 1)).float().mean())


def _is_black(brightest: float, before: float) -> bool:
    """Whether a picture is black whose brightest value is this, made from one with this mean."""
    return brightest <= _BLACK and before > _SEEN


class Parts:
    """Parts of tiles that do not fit into memory.

    Args:
        multiple_px: sides and positions are whole multiples of it.
        overlap_px: least overlap of parts; less where they are small.

    Attributes:
        short: what was said when a tile did not fit; empty while all did.
    """

    def __init__(self, multiple_px: int, overlap_px: int) -> None:
        self.short = ""
        self._multiple_px, self._overlap_px = multiple_px, overlap_px
        self._too_large = 0
        self._whole: dict[Tile, Tile] = {}

    def did_not_fit(self, tile: Tile, error: BaseException) -> None:
        """Take down that a tile, or a part of one, did not fit."""
        self._too_large, self.short = max(tile.size), str(error) or type(error).__name__

    def may_fit(self, part: Tile) -> bool:
        """Whether a part is worth trying: none of its size has failed since its tile did."""
        return max(part.size) < self._too_large

    def plan(self, tile: Tile) -> TilePlan | None:
        """Overlapping parts, two along a long side, as boxes in the tile; None where they would be too small."""
        longest = max(tile.size)
        overlap = min(self._overlap_px, longest // 4)
        side = math.ceil((longest + overlap) / 2 / self._multiple_px) * self._multiple_px
        if side < LEAST_PART_PX or side >= longest:
            return None
        return plan_tiles(tile.size, tile_px=side, overlap_px=overlap, multiple_px=self._multiple_px)

    def part(self, tile: Tile, box: Tile) -> Tile:
        """A box in a tile, or in a part of one, as a box on the canvas."""
        part = Tile(tile.y0 + box.y0, tile.x0 + box.x0, tile.y0 + box.y1, tile.x0 + box.x1)
        self._whole[part] = self.whole(tile)
        return part

    def whole(self, tile: Tile) -> Tile:
        """The tile that `tile` is a part of, or itself."""
        return self._whole.get(tile, tile)

"""Places of tiles: integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from ..errors import SettingsError


@dataclass(frozen=True)
class Tile:
    """A half-open box of pixels, rows `y0:y1` and columns `x0:x1`."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.y0, self.y1)

    @property
    def cols(self) -> slice:
        """Its columns."""
        return slice(self.x0, self.x1)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self.y1 - self.y0, self.x1 - self.x0


@dataclass(frozen=True)
class TilePlan(Sequence[Tile]):
    """Equal tiles in rendering order: top row first, left to right.

    Held as two lists of starts, so that a canvas of a hundred thousand pixels a side costs nothing to plan.

    Attributes:
        size: (height, width) of the canvas, pixels.
        tile: (height, width) of every tile, pixels.
        tops, lefts: first row and first column of each tile row and tile column.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tile]: ...
    def __getitem__(self, index: int | slice) -> Tile | Sequence[Tile]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, col = divmod(range(len(self))[index], len(self.lefts))
        y0, x0 = self.tops[row], self.lefts[col]
        return Tile(y0, x0, y0 + self.tile[0], x0 + self.tile[1])


def plan_tiles(
    size: tuple[int, int], *, tile_px: int, overlap_px: int, multiple_px: int = 1, shrink: bool = False
) -> TilePlan:
    """Cover a canvas with equal, evenly spaced, overlapping tiles, as few as possible.

    Every pixel lies in at least one tile and no tile leaves the canvas. Neighbours share at least
    `overlap_px`; they share more where that avoids a sliver at the far edge. A canvas smaller than a
    tile gets one tile of its own size along that side.

    Args:
        size: (height, width) of the canvas, pixels; multiples of `multiple_px`.
        tile_px: side of a tile, pixels; rounded down to a multiple of `multiple_px`.
        overlap_px: least overlap, pixels; 0 <= overlap_px < tile_px.
        multiple_px: sizes and positions of tiles are whole multiples of it (8 for a latent model).
        shrink: make the tiles as small as their number and the overlap allow, instead of
            letting them overlap more; for models that do not mind the size.

    Raises:
        SettingsError: a side of the canvas, `tile_px` or `overlap_px` is outside its limit.

    >>> plan = plan_tiles((1024, 1536), tile_px=768, overlap_px=128)
    >>> len(plan), plan[0].y0, plan[-1].x1
    (6, 0, 1536)
    """
    if not 0 <= overlap_px < tile_px or tile_px < multiple_px:
        raise SettingsError(
            f"Overlap must be smaller than the tile, and the tile at least {multiple_px} px: overlap is "
            f"{overlap_px} px, tile size is {tile_px} px. Lower the overlap or raise the tile size.",
            field="overlap", value=overlap_px, limit=f"0 to {tile_px - 1} px",
        )
    for side in size:
        if side < 1 or side % multiple_px:
            raise ValueError(f"a canvas side must be a positive multiple of {multiple_px} px; got {size}")
    (tile_h, tops), (tile_w, lefts) = (
        _plan_axis(side // multiple_px, tile_px // multiple_px, -(-overlap_px // multiple_px), shrink)
        for side in size
    )
    m = multiple_px
    return TilePlan(size, (tile_h * m, tile_w * m), tuple(t * m for t in tops), tuple(x * m for x in lefts))


def _plan_axis(length: int, tile: int, overlap: int, shrink: bool) -> tuple[int, list[int]]:
    """Tile length and starts along one axis, all in units of the multiple."""
    overlap = min(overlap, tile - 1)
    if length <= tile:
        return length, [0]
    count = -(-(length - overlap) // (tile - overlap))
    if shrink:
        tile = -(-(length + (count - 1) * overlap) // count)
    # floor(i * travel / gaps) never steps further than ceil(travel / gaps) <= tile - overlap.
    travel, gaps = length - tile, count - 1
    return tile, [i * travel // gaps for i in range(count)]


def padded_size(size: tuple[int, int], multiple_px: int) -> tuple[int, int]:
    """The smallest (height, width) not below `size` whose sides are multiples of `multiple_px`."""
    height, width = (-(-side // multiple_px) * multiple_px for side in size)
    return height, width

"""Self-repair: a tile whose drift is over the bound is redone, and the best painting is kept.

Blur always looks faithful, so drift alone must not decide: a painting with much less detail than the first is no
candidate, however faithful it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from .drift import TileDrift
from .painter import Painted, Painting
from .quality import detail_energy
from .tiles import Tile

LEAST_DETAIL: Final = 0.8
"""A redone tile keeps at least this share of the first painting's high-frequency energy."""


@dataclass(frozen=True)
class Judged:
    """A painting with what it was judged by.

    Attributes:
        drift: of the tile as the finished picture will show it; None where it determines no pixel of the source.
        detail: its high-frequency energy, see `quality.detail_energy`.
    """

    painted: Painted
    drift: TileDrift | None
    detail: float

    @property
    def worst(self) -> float:
        """The largest patch drift above the floor, which the bound is about; 0 where nothing can be measured."""
        return 0.0 if self.drift is None else float(self.drift.patches.max())


@dataclass
class Trial:
    """All paintings of one tile, the first one first."""

    tile: Tile
    paintings: list[Judged] = field(default_factory=list)

    @property
    def best(self) -> Judged:
        """The least drift among paintings that have kept the detail of the first."""
        enough = LEAST_DETAIL * self.paintings[0].detail
        return min((p for p in self.paintings if p.detail >= enough), key=lambda p: p.worst)

    @property
    def tries(self) -> int:
        """How often the tile was redone."""
        return len(self.paintings) - 1


def judged(painted: Painted, drift: TileDrift | None) -> Judged:
    """`painted` with its drift and detail."""
    return Judged(painted, drift, detail_energy(painted.image))


def repair(
    trials: Sequence[Trial],
    *,
    tries: int,
    bound: float,
    again: Callable[[Painting], Painting],
    paint: Callable[[list[Tile], Painting], list[Judged] | None],
) -> bool:
    """Redo the tiles of one batch that are over the bound, only those, at most `tries` times each.

    Args:
        trials: each with its first painting; the others are added.
        tries: 0 redoes nothing.
        bound: largest patch drift above the floor that is let stand.
        again: the next way to paint.
        paint: paints and judges tiles in one go; None when the user asked to stop.

    Returns:
        Whether the user asked to stop.
    """
    for _ in range(tries):
        failed = [trial for trial in trials if trial.best.worst > bound]
        if not failed:
            return False
        found = paint([trial.tile for trial in failed], again(failed[0].paintings[-1].painted.painting))
        if found is None:
            return True
        for trial, painting in zip(failed, found, strict=True):
            trial.paintings.append(painting)
    return False

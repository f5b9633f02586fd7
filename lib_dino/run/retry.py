"""Self-repair: a tile that drifts too far is redone, and the best painting is kept.

A tile fails when the finished picture would be over the bound there, or when the model painted something else, even
though the final consistency will hide that from any measure at the source's scale: what is pulled back to the source
by force keeps the outlines of what was painted (a cup pasted into a sleeve stays visible as a ghost of a cup, with a
drift of 0.003). Where the feature network has an expected-detail head, a tile also fails by suspicion, for what a
downscaling cannot see at all.

Blur always looks faithful, so drift alone must not decide: a painting with much less detail than the first is no
candidate, however faithful it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..measure.drift import TileDrift
from ..measure.quality import detail_energy
from ..tiling.plan import Tile
from .painter import Painted, Painting

LEAST_DETAIL: Final = 0.8
"""A redone tile keeps at least this share of the first painting's high-frequency energy."""

_LEAST: Final = 1e-7
"""Least chance of honesty that float32 tells from none."""


class Measure(Protocol):
    """Drift of a painting, with `detail` its suspicion too; None where it determines no pixel of the source."""

    def __call__(self, painted: Painted, *, detail: bool) -> TileDrift | None:
        """Measure one painting."""


@dataclass(frozen=True)
class Judged:
    """A painting with what it was judged by.

    Attributes:
        drift: of the tile as the finished picture will show it; None where it determines no pixel of the source.
        detail: its high-frequency energy, see `quality.detail_energy`.
        failing: how bad it is, 1 being what is just let stand.
    """

    painted: Painted
    drift: TileDrift | None
    detail: float
    failing: float


@dataclass
class Trial:
    """All paintings of one tile, the first one first."""

    tile: Tile
    paintings: list[Judged] = field(default_factory=list)

    @property
    def best(self) -> Judged:
        """The least failing among paintings that have kept the detail of the first."""
        enough = LEAST_DETAIL * self.paintings[0].detail
        return min((p for p in self.paintings if p.detail >= enough), key=lambda p: p.failing)

    @property
    def tries(self) -> int:
        """How often the tile was redone."""
        return len(self.paintings) - 1


def judged(painted: Painted, pulled: Painted, bound: float, measure: Measure, *, detail: bool = True) -> Judged:
    """`pulled` with its drift and detail, and how badly it fails.

    Args:
        painted: as the model left it.
        pulled: as the finished picture will show it.
        bound: largest patch drift above the floor that is let stand in the finished picture.
        measure: looks at a painting.
        detail: have it fail by suspicion too.
    """
    drift = measure(pulled, detail=detail)
    found = drift if pulled is painted else measure(painted, detail=False)
    failing = 0.0
    if drift is not None and found is not None:
        failing = max(
            float(drift.patches.max()) / bound,
            float(found.patches.max()) / found.thresholds.invented,
            suspected(drift),
        )
    return Judged(pulled, drift, detail_energy(pulled.image), failing)


def suspected(drift: TileDrift) -> float:
    """How far a tile's suspicion is towards the alarm, 1 being just at it; 0 without a head.

    Compared is minus the logarithm of the chance that nothing was invented: suspicion itself crowds below 1.
    """
    suspicion, alarm = drift.suspicion_score, drift.thresholds.alarm
    if suspicion is None or alarm is None or not 0 < alarm < 1:
        return 0.0
    return math.log1p(-min(suspicion, 1 - _LEAST)) / math.log1p(-alarm)


def repair(
    trials: Sequence[Trial],
    *,
    tries: int,
    again: Callable[[Painting], Painting],
    paint: Callable[[list[Tile], Painting], list[Judged] | None],
) -> bool:
    """Redo the failing tiles of one batch, only those, at most `tries` times each.

    Args:
        trials: each with its first painting; the others are added.
        tries: 0 redoes nothing.
        again: the next way to paint.
        paint: paints and judges tiles in one go; None when the user asked to stop.

    Returns:
        Whether the user asked to stop.
    """
    for _ in range(tries):
        failed = [trial for trial in trials if trial.best.failing > 1]
        if not failed:
            return False
        found = paint([trial.tile for trial in failed], again(failed[0].paintings[-1].painted.painting))
        if found is None:
            return True
        for trial, painting in zip(failed, found, strict=True):
            trial.paintings.append(painting)
    return False

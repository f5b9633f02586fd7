"""Retry: a tile that drifts too far is sampled again, and the best attempt is kept.

A tile fails when the finished picture would be over the bound there, or when the model made something else, even though
the final consistency will hide that from any measure at the source's scale: what is pulled back by force keeps the
outlines of what was there. Where the feature network has an edit detector, a tile also fails by its probability, for
what downscaling cannot see at all.

Blur always looks faithful, so drift alone must not decide: an attempt with much less detail than the first is no
candidate, however faithful it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from ..measure.drift import TileDrift
from ..measure.quality import detail_energy
from ..settings import MAX_SEED
from ..tiling.plan import Tile

DENOISE_FACTOR: Final = 0.8
"""From one retry to the next. Chosen, not fitted."""

LEAST_DETAIL: Final = 0.8
"""A retried tile keeps at least this share of the first attempt's high-frequency energy. Chosen, not fitted."""

_LEAST: Final = 1e-7
"""Least chance of honesty that float32 tells from none."""


@dataclass(frozen=True)
class AttemptSettings:
    """How a batch of tiles is sampled.

    Attributes:
        number: 0 for the first attempt at a tile, 1 for its first retry, ...
        seed: of the noise; the first attempt's is the picture's.
        denoise, strength, consistency: as in `Settings`.
        precise: computed in float32, whatever the model computes in otherwise.
    """

    number: int
    seed: int
    denoise: float
    strength: float
    consistency: float
    precise: bool = False

    def next(self) -> AttemptSettings:
        """Settings of the next retry: other noise and full consistency, then ever less denoise."""
        denoise = self.denoise * (DENOISE_FACTOR if self.number else 1.0)
        return dataclasses.replace(self.reseeded(), denoise=denoise, consistency=1.0)

    def in_float32(self) -> AttemptSettings:
        """The same noise, computed in float32."""
        return dataclasses.replace(self, number=self.number + 1, precise=True)

    def in_half(self) -> AttemptSettings:
        """Computed in what the model computes in."""
        return dataclasses.replace(self, precise=False)

    def reseeded(self) -> AttemptSettings:
        """The same with other noise."""
        return dataclasses.replace(self, number=self.number + 1, seed=(self.seed + 1) % (MAX_SEED + 1))


@dataclass(frozen=True)
class Attempt:
    """A finished attempt at one tile.

    Attributes:
        image: (1, 3, h, w) in [0, 1].
        seconds: wall time, its batch's shared evenly.
        guidance: see `report.TileReport`.
        drift: as the finished picture will show it; None where it was not judged, or the tile determines no pixel of
            the source.
        detail: its high-frequency energy, see `quality.detail_energy`.
        failing: how bad it is, 1 being what is just let stand.
        valid: the model made a picture; else `image` is what the tile started from, see `faults`.
        dropped: model calls at which a correction was no number and was not applied.
    """

    tile: Tile
    settings: AttemptSettings
    image: Tensor
    seconds: float
    guidance: float
    drift: TileDrift | None = None
    detail: float = 0.0
    failing: float = 0.0
    valid: bool = True
    dropped: int = 0


@dataclass(frozen=True)
class Candidates:
    """All attempts at one tile, the first one first."""

    attempts: tuple[Attempt, ...]

    @property
    def tile(self) -> Tile:
        """The tile."""
        return self.attempts[0].tile

    @property
    def valid(self) -> tuple[Attempt, ...]:
        """Those that are pictures."""
        return tuple(attempt for attempt in self.attempts if attempt.valid)

    @property
    def best(self) -> Attempt:
        """The least failing among valid attempts that have kept the detail of the first; where none is valid, any."""
        valid = self.valid or self.attempts[:1]
        enough = LEAST_DETAIL * valid[0].detail
        return min((a for a in valid if a.detail >= enough), key=lambda a: a.failing)

    @property
    def retries(self) -> int:
        """How often the tile was retried."""
        return len(self.attempts) - 1

    @property
    def seconds(self) -> float:
        """Wall time of all attempts."""
        return sum(attempt.seconds for attempt in self.attempts)

    def without_pictures(self) -> Candidates:
        """These without their pixels, which nobody asks for once the tile is blended."""
        return Candidates(tuple(dataclasses.replace(a, image=a.image[..., :0, :0].clone()) for a in self.attempts))

    def plus(self, attempt: Attempt) -> Candidates:
        """These and one more."""
        return Candidates((*self.attempts, attempt))


def judge(attempt: Attempt, consistent: Tensor, bound: float, measure: Callable[..., TileDrift | None]) -> Attempt:
    """Add drift, detail and how badly it fails to an attempt.

    A first attempt keeps its picture as the model left it, so that looking at it changes nothing; a retry takes
    `consistent`.

    Args:
        consistent: the attempt's picture as the finished one will show it.
        bound: largest patch drift above the floor that is let stand in the finished picture.
        measure: drift of a picture of the tile, with `detail=True` its edit probability too; None where nothing can be
            measured.
    """
    if not attempt.valid:
        return attempt
    drift = measure(consistent, detail=True)
    raw = drift if consistent is attempt.image else measure(attempt.image, detail=False)
    failing = 0.0
    if drift is not None and raw is not None:
        failing = max(
            float(drift.patches.max()) / bound,
            float(raw.patches.max()) / raw.thresholds.invented,
            towards_alarm(drift),
        )
    image = consistent if attempt.settings.number else attempt.image
    return dataclasses.replace(attempt, image=image, drift=drift, detail=detail_energy(consistent), failing=failing)


def towards_alarm(drift: TileDrift) -> float:
    """How far a tile's edit probability is towards the alarm, 1 being just at it; 0 without a detector.

    Compared is minus the logarithm of the chance that nothing was invented: probabilities crowd below 1.
    """
    probability, alarm = drift.edit_probability, drift.thresholds.alarm
    if probability is None or alarm is None or not 0 < alarm < 1:
        return 0.0
    return math.log1p(-min(probability, 1 - _LEAST)) / math.log1p(-alarm)


def retry(
    candidates: Sequence[Candidates],
    *,
    tries: int,
    next_attempt: Callable[[AttemptSettings], AttemptSettings],
    sample: Callable[[list[Tile], AttemptSettings], list[Attempt] | None],
) -> tuple[list[Candidates], bool]:
    """Retry the failing tiles of one batch, only those, at most `tries` times each.

    Args:
        candidates: each with its first attempt, judged.
        tries: 0 retries nothing.
        next_attempt: settings of the next retry.
        sample: samples and judges tiles in one go; None when the user asked to stop.

    Returns:
        The candidates, and whether the user asked to stop.
    """
    by_tile = {each.tile: each for each in candidates}
    for _ in range(tries):
        failed = [each for each in by_tile.values() if each.best.failing > 1]
        if not failed:
            break
        attempts = sample([each.tile for each in failed], next_attempt(failed[0].attempts[-1].settings))
        if attempts is None:
            return list(by_tile.values()), True
        by_tile.update({attempt.tile: by_tile[attempt.tile].plus(attempt) for attempt in attempts})
    return list(by_tile.values()), False

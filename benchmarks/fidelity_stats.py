"""Statistics of the fidelity benchmark: comparison at equal detail, intervals over pictures, rank correlation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
LOWER_IS_BETTER = ("NS", "T2", "drift")


@dataclass(frozen=True)
class Change:
    """A paired change over pictures.

    Attributes:
        mean: relative where less is better, else in the figure's own unit.
        low, high: 95 % bootstrap interval of the mean.
        better: share of pictures that improve, 0 to 1.
        pictures: how many there are.
    """

    mean: float
    low: float
    high: float
    better: float
    pictures: int


def interval(values: Sequence[float], *, draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `values`, one for each picture."""
    given = np.asarray(values, float)
    picks = np.random.default_rng(seed).integers(0, len(given), (draws, len(given)))
    low, high = np.percentile(given[picks].mean(1), [2.5, 97.5])
    return float(low), float(high)


def at_detail(curve: Iterable[Row], figure: str, detail: float) -> float:
    """`figure` of the unguided curve where its HF is `detail`; beyond its ends, of the end."""
    points = sorted((row["HF"], row[figure]) for row in curve)
    return float(np.interp(detail, [p[0] for p in points], [p[1] for p in points]))


def averaged(rows: Iterable[Row], by: Sequence[str]) -> dict[tuple[Any, ...], Row]:
    """Rows with the same values of `by` as one, figures averaged: over seeds, mostly."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return {
        key: {name: float(np.mean([row[name] for row in group]))
              for name, value in group[0].items() if isinstance(value, float) and name not in by}
        for key, group in groups.items()
    }  # fmt: skip


def change(pairs: Sequence[tuple[float, float]], figure: str) -> Change:
    """Of (arm, rival) for each picture."""
    lower = figure in LOWER_IS_BETTER
    values = [arm / rival - 1 if lower else arm - rival for arm, rival in pairs]
    better = float(np.mean([(value < 0) == lower and value != 0 for value in values]))
    return Change(float(np.mean(values)), *interval(values), better, len(values))


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation, -1 to 1, of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])

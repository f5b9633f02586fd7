"""Motions: where the places of one picture are in another, fitted to matches of which many are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

TRIES: Final = 2000
"""Motions that are drawn from two matches each."""

LEAST_MATCHES: Final = 18
"""Matches that one motion must explain: between other pictures it was 13 at most (docs/constants.md)."""

TOLERANCE: Final = 1.0
"""Patches that a match may be off."""

OTHER_PLANE: Final = 3.0
"""Patches that a match must be off to be explained by another motion."""

MOTIONS: Final = 4
"""Most motions of one reference: what stands nearer moves otherwise."""

LARGEST_TURN: Final = 4.0
"""Largest scale of a motion between two grids, and one over the smallest."""


@dataclass(frozen=True)
class Motion:
    """Where the places of a source are in a reference: matrix @ (x, y) + shift.

    Places are counted in pixels from the upper left corner of each picture, so the first pixel's middle is (0.5, 0.5).

    Attributes:
        matrix: (2, 2).
        shift: (2,).
        matches: how many it explains.
    """

    matrix: Tensor
    shift: Tensor
    matches: int

    @property
    def scale(self) -> float:
        """Pixels of the reference to one of the source."""
        return math.sqrt(abs(float(torch.linalg.det(self.matrix))))

    def __call__(self, places: Tensor) -> Tensor:
        """(..., 2) in the source to (..., 2) in the reference."""
        return places @ self.matrix.T + self.shift

    def between(self, source: Tensor, reference: Tensor) -> Motion:
        """The same motion in other units: `source` and `reference` are (2,), new units to one old one, across, down."""
        return Motion(reference[:, None] * self.matrix / source[None], reference * self.shift, self.matches)


def motions(a: Tensor, b: Tensor) -> Iterator[Motion]:
    """Motions from places `a` to `b`, (n, 2) in patches, each of which explains matches that those before did not.

    Sequential RANSAC (Fischler and Bolles 1981) of similarities. The draw is the same every time.
    """
    draw = torch.Generator().manual_seed(0)
    for _ in range(MOTIONS):
        if len(a) < LEAST_MATCHES:
            return
        inside = _best_draw(a, b, draw)
        for _ in range(3):
            if int(inside.sum()) < LEAST_MATCHES:
                return
            motion = _fitted(a[inside], b[inside])
            inside = (motion(a) - b).norm(dim=1) < TOLERANCE
        yield Motion(motion.matrix, motion.shift, int(inside.sum()))
        # What is nearly explained is the same plane, roughly matched.
        other = (motion(a) - b).norm(dim=1) >= OTHER_PLANE
        a, b = a[other], b[other]


def _best_draw(a: Tensor, b: Tensor, draw: torch.Generator) -> Tensor:
    """The matches, (n,) of booleans, that the best of many similarities explains."""
    p, q = _complex(a), _complex(b)
    i, j = torch.randint(len(a), (2, TRIES), generator=draw).to(a.device)
    turn = (q[i] - q[j]) / torch.where(i == j, 1e9, p[i] - p[j])
    possible = (turn.abs() > 1 / LARGEST_TURN) & (turn.abs() < LARGEST_TURN)
    off = (turn[:, None] * (p - p[i][:, None]) + q[i][:, None] - q).abs()
    inside = (off < TOLERANCE) & possible[:, None]
    return inside[int(inside.sum(1).argmax())]


def _fitted(a: Tensor, b: Tensor) -> Motion:
    """The similarity of least squared error."""
    p, q = _complex(a), _complex(b)
    middle_p, middle_q = p.mean(), q.mean()
    away = p - middle_p
    turn = (away.conj() * (q - middle_q)).sum() / away.abs().square().sum().clamp(min=1e-9)
    matrix = torch.stack([torch.stack([turn.real, -turn.imag]), torch.stack([turn.imag, turn.real])])
    return Motion(matrix.to(a), torch.view_as_real(middle_q - turn * middle_p).to(a), len(a))


def _complex(places: Tensor) -> Tensor:
    """(n, 2) as (n,) of x + iy: a similarity is one product and one sum."""
    return torch.view_as_complex(places.double().contiguous())

"""The fidelity dial: the user says how much drift is allowed, and a few tiles say how much repainting that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..tiling.plan import Tile
from .painter import Painting

DENOISES: Final = (1.0, 0.75, 0.5, 0.25)
"""Parts of the denoise that was asked for, which is the most that is taken."""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        painting: how the tiles will be painted.
        reached: the largest patch drift above the floor of the probes.
        within: whether that is allowed; else it is the most careful way that there was.
    """

    painting: Painting
    reached: float
    within: bool

    def figures(self, allowed: float, achieved: float | None) -> dict[str, Any]:
        """Asked against achieved for a report; `achieved` as for `note`."""
        return {
            "asked": allowed, "denoise": self.painting.denoise, "strength": self.painting.strength,
            "probes": self.reached, "achieved": achieved,
            "within": None if achieved is None else achieved <= allowed,
        }  # fmt: skip

    def note(self, allowed: float, achieved: float | None) -> str:
        """One sentence on asked against achieved; `achieved` is the finished picture's, None when not measured."""
        kept = "" if self.within else "; no probe could be kept within it"
        after = "" if achieved is None else f", the finished picture {achieved:.3g}"
        return (
            f"Allowed drift {allowed:.3g}: denoise {self.painting.denoise:.3g} and DINO strength "
            f"{self.painting.strength:.3g} were chosen; the probes reached {self.reached:.3g}{after}{kept}."
        )


def probes(tiles: Sequence[Tile], detail: Callable[[Tile], float]) -> list[Tile]:
    """The flattest, a typical and the busiest of `tiles`; fewer where there are fewer."""
    ordered = sorted(tiles, key=detail)
    found = (ordered[-1], ordered[len(ordered) // 2], ordered[0]) if ordered else ()
    return list(dict.fromkeys(found))


def ways(first: Painting, *, guides: bool) -> list[Painting]:
    """From the painting that was asked for to ever more careful ones."""
    most = dataclasses.replace(first, strength=1.0) if guides else first
    careful = [dataclasses.replace(most, denoise=first.denoise * part) for part in DENOISES]
    return [first, *(painting for painting in careful if painting != first)]


def choose(
    found: Iterable[Painting], worst: Callable[[Painting], float | None], *, allowed: float
) -> Choice | None:
    """The first painting whose probes stay within `allowed`, else the last; None when the user asked to stop.

    Args:
        found: in order of preference.
        worst: the largest patch drift above the floor of the probes so painted; None when the user asked to stop.
    """
    choice = None
    for painting in found:
        reached = worst(painting)
        if reached is None:
            return None
        choice = Choice(painting, reached, reached <= allowed)
        if choice.within:
            break
    return choice

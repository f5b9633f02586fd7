"""Progress of a run: the one thing that travels up while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """How far a run is: tiles finished and model calls made, each out of how many.

    Attributes:
        redone: tiles that were sampled again so far, because they drifted too far.
        canvas: the picture as it stands, (1, 3, H, W) in [0, 1], before the first tile and each time a batch
            of tiles has landed; None after a model call.
    """

    tile: int
    tiles: int
    call: int
    calls: int
    redone: int = 0
    canvas: Tensor | None = None


OnProgress = Callable[[Progress], None]


class ProgressCounter:
    """Counts what a run does and tells of it.

    Args:
        tiles: how many will be sampled.
        calls: model calls for those that are still to be made; retries, and what an earlier run has made, add theirs
            when their turn comes.
        on_progress: None tells nobody.
    """

    def __init__(self, tiles: int, calls: int, on_progress: OnProgress | None) -> None:
        self._tiles, self._planned, self._on_progress = tiles, calls, on_progress
        self.calls = self.finished = self.redone = self.splits = 0

    @property
    def spent(self) -> tuple[int, int, int]:
        """Model calls, splits and tiles redone so far."""
        return self.calls, self.splits, self.redone

    def replay(self, tiles: int, calls: int, *, splits: int, redone: int) -> None:
        """Count a batch that an earlier run has made."""
        self._planned += calls
        self.calls += calls
        self.finished += tiles
        self.splits += splits
        self.redone += redone

    def plan_more(self, calls: int) -> None:
        """Expect further model calls."""
        self._planned += calls

    def step(self, *, finishing: int = 0) -> None:
        """Count a model call; `finishing` tiles end with it, and count once `land` was called for them."""
        self.calls += 1
        self._tell(self.finished + finishing)

    def land(self, tiles: int) -> None:
        """Count tiles as finished."""
        self.finished += tiles

    def show(self, canvas: Tensor) -> None:
        """Tell how the picture stands."""
        self._tell(self.finished, canvas)

    def _tell(self, finished: int, canvas: Tensor | None = None) -> None:
        if self._on_progress is not None:
            calls = max(self._planned, self.calls)
            self._on_progress(Progress(finished, self._tiles, self.calls, calls, self.redone, canvas))

"""The tiles of one picture: painted batch by batch, redone where they drift."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor

from ..measure.drift import TileDrift, Yardstick
from ..report.records import TileReport
from ..sampling.tile_model import Progress, Render
from ..settings import Settings
from ..tiling.blend import Canvas
from ..tiling.plan import Tile
from .painter import Painted, Painter, Painting
from .retry import Judged, Trial, judged, repair


@dataclass
class TileLoop:
    """What becomes of the tiles.

    Attributes:
        model, settings: as for `run.Run`.
        target_size: (height, width) of the result, pixels.
        wanted: the tiles that are to be painted, in order.
        yardstick: measures them; needed for repair.
        condition: shows the model what tiles hold; in force inside its `with` block.
        progress, preview, starting: as for `run.Run`.
        records: what was done to each tile so far.
        stopped: set when the model gave up on the user's wish.
        made: model calls so far.
        redone: tiles that were painted again.
    """

    model: Render
    settings: Settings
    target_size: tuple[int, int]
    wanted: Sequence[Tile]
    yardstick: Yardstick | None
    condition: Callable[[Sequence[Tile]], AbstractContextManager[None]]
    progress: Callable[[Progress], None] | None = None
    preview: Callable[[Tensor], None] | None = None
    starting: Callable[[Sequence[Tile]], None] | None = None
    records: dict[Tile, TileReport] = field(default_factory=dict)
    stopped: bool = False
    made: int = 0
    redone: int = 0
    _extra: int = 0
    _finished: int = 0

    def __post_init__(self) -> None:
        self.a_tile = self.model.calls(self.settings.denoise, self.settings.steps)

    @property
    def calls(self) -> int:
        """Model calls of all, as far as is known: redone tiles add theirs when their turn comes."""
        return self._extra + self.a_tile * -(-len(self.wanted) // self.settings.tile_batch_size)

    def paint(self, painter: Painter, canvas: Canvas, *, bound: float) -> None:
        """All tiles onto the canvas, or those before the user asked to stop.

        Args:
            bound: the largest patch drift above the floor that a tile may have without being redone.
        """
        settings, (height, width) = self.settings, self.target_size
        first = Painting(0, settings.seed, settings.denoise, settings.dino_strength, settings.consistency)
        for start in range(0, len(self.wanted), settings.tile_batch_size):
            tiles = list(self.wanted[start : start + settings.tile_batch_size])
            painted = self._painted(painter, tiles, first)
            if painted is None:
                self.stopped = True
                return
            self._finished += len(tiles)
            kept = self._repaired(painter, painted, bound) if settings.repair_tries else painted
            for each in kept:
                canvas.add(each.tile, each.image)
            if self.preview:
                self.preview(canvas.result()[..., :height, :width])
            if self.stopped:
                return

    def _painted(
        self, painter: Painter, tiles: Sequence[Tile], painting: Painting, *, counts: bool = True
    ) -> list[Painted] | None:
        """`tiles` painted and written down; they count as finished unless they are redone."""
        if self.starting:
            self.starting(tiles)
        left = self.model.calls(painting.denoise, self.settings.steps)

        def called() -> None:
            nonlocal left
            left -= 1
            self._called(len(tiles) if left <= 0 and counts else 0)

        with self.condition(tiles):
            painted = painter.paint(tiles, painting, called)
        for each in painted or ():
            self.records[each.tile] = TileReport(
                box_of(each.tile, self.target_size), each.seconds + self._seconds(each.tile),
                seed=painting.seed, denoise=painting.denoise, guidance=each.guidance,
            )  # fmt: skip
        return painted

    def _repaired(self, painter: Painter, painted: Sequence[Painted], bound: float) -> list[Painted]:
        """The best painting of each tile, those over the bound redone."""
        trials = {each.tile: Trial(each.tile, [self._judged(painter, each, bound)]) for each in painted}

        def paint(tiles: list[Tile], painting: Painting) -> list[Judged] | None:
            self._extra += self.model.calls(painting.denoise, self.settings.steps)
            self.redone += sum(trials[tile].tries == 0 for tile in tiles)
            redone = self._painted(painter, tiles, painting, counts=False)
            return None if redone is None else [self._judged(painter, each, bound) for each in redone]

        self.stopped = repair(
            list(trials.values()), tries=self.settings.repair_tries, again=painter.again, paint=paint
        )
        for trial in trials.values():
            best = trial.best.painted
            self.records[trial.tile] = dataclasses.replace(
                self.records[trial.tile], seed=best.painting.seed, denoise=best.painting.denoise,
                guidance=best.guidance, tries=trial.tries, kept=best.painting.number,
                drift_first=None if (drift := trial.paintings[0].drift) is None else drift.mean,
            )  # fmt: skip
        # A first painting goes on as it came, so that looking at it changes nothing.
        return [first if (best := trials[first.tile].best.painted).painting.number == 0 else best for first in painted]

    def _judged(self, painter: Painter, painted: Painted, bound: float, *, detail: bool = True) -> Judged:
        operators, yardstick = painter.operators(painted.tile), self.yardstick
        assert yardstick is not None, "repair needs features"

        def measure(painted: Painted, *, detail: bool) -> TileDrift | None:
            return yardstick.tile(painted.image, operators, detail=detail) if operators.knows_something else None

        return judged(painted, painter.pulled(painted), bound, measure, detail=detail)

    def _called(self, finished: int) -> None:
        self.made += 1
        tiles, done = len(self.wanted), self._finished + finished
        if self.progress:
            self.progress(Progress(done, tiles, self.made, max(self.calls, self.made), self.redone))

    def _seconds(self, tile: Tile) -> float:
        return self.records[tile].seconds if tile in self.records else 0.0


def box_of(tile: Tile, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(y0, x0, y1, x1) of the part of a tile that lies in a picture of (height, width) `size`."""
    return tile.y0, tile.x0, min(tile.y1, size[0]), min(tile.x1, size[1])

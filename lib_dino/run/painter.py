"""Tiles painted by the diffusion model under the source's corrections, once or again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingsError
from ..measure.drift import Yardstick
from ..sampling.consistency import FINAL_ITERATIONS, tile_pull
from ..sampling.correction import Codec, TileCorrection
from ..sampling.tile_model import Render
from ..settings import MAX_SEED, Settings
from ..tiling.blend import Canvas
from ..tiling.plan import Tile
from ..tiling.resample import TileOperators, tile_operators

REDO_DENOISE = 0.8
REDO_STRENGTH = 0.25
"""How a redone tile differs from the try before: denoise times the one, guidance plus the other."""


@dataclass(frozen=True)
class Painting:
    """How a batch of tiles is painted.

    Attributes:
        number: 0 for the first painting of a tile, 1 for the first redone one, ...
        seed: of the noise; the first painting's is the picture's.
        denoise, strength, consistency: as in `Settings`.
    """

    number: int
    seed: int
    denoise: float
    strength: float
    consistency: float

    def again(self, *, guides: bool) -> Painting:
        """The next try: other noise and full consistency, then ever less denoise and, where it acts, more guidance."""
        return Painting(
            self.number + 1,
            (self.seed + 1) % (MAX_SEED + 1),
            self.denoise * (REDO_DENOISE if self.number else 1.0),
            min(1.0, self.strength + REDO_STRENGTH) if guides else self.strength,
            1.0,
        )


@dataclass(frozen=True)
class Painted:
    """A finished painting of one tile.

    Attributes:
        image: (1, 3, h, w) in [0, 1].
        seconds: wall time, its batch's shared evenly.
        guidance: see `report.TileReport`.
    """

    tile: Tile
    painting: Painting
    image: Tensor
    seconds: float
    guidance: float


class Painter:
    """Paints the tiles of one picture.

    Args:
        source: (1, 3, H, W) in [0, 1].
        base: the enlarged source, (1, 3, *canvas size).
        canvas: where the tiles will go.
        target_size: (height, width) of the result, pixels, at most the canvas's.
        settings: with a seed.
        yardstick: knows the features; None where nothing guides.
        dead_zone: see `consistency.soft`.
    """

    def __init__(
        self,
        source: Tensor,
        base: Tensor,
        canvas: Canvas,
        target_size: tuple[int, int],
        settings: Settings,
        model: Render,
        *,
        yardstick: Yardstick | None,
        dead_zone: float,
    ) -> None:
        self._source, self._base, self._canvas, self._target_size = source, base, canvas, target_size
        self._settings, self._model, self._yardstick, self._dead_zone = settings, model, yardstick, dead_zone
        # One field for the whole canvas: where tiles overlap they start from the same noise.
        shape = (1, model.channels, *(side // model.factor for side in base.shape[-2:]))
        self._noise = torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))

    def paint(self, tiles: Sequence[Tile], painting: Painting, called: Callable[[], None]) -> list[Painted] | None:
        """`tiles` in one go; None when the user asked to stop."""
        started = time.perf_counter()
        corrections = [self._correction(tile, painting) for tile in tiles]

        def correct(clean: Tensor, ratio: float, codec: Codec) -> Tensor:
            parts = zip(corrections, torch.split(clean, 1), codec.references(len(tiles)), strict=True)
            return torch.cat([each(part, ratio, codec, reference) for each, part, reference in parts])

        out = self._model(
            torch.cat([self._base[..., t.rows, t.cols] for t in tiles]),
            torch.cat([self._start(tile, painting) for tile in tiles]),
            denoise=painting.denoise,
            steps=self._settings.steps,
            correct=correct,
            called=called,
        )
        if out is None:
            return None
        seconds = (time.perf_counter() - started) / len(tiles)
        made = zip(tiles, torch.split(out, 1), corrections, strict=True)
        return [Painted(tile, painting, image, seconds, each.mean_applied) for tile, image, each in made]

    def pulled(self, painted: Painted) -> Painted:
        """`painted` made consistent with the source, as the finished picture will be, in this tile alone."""
        operators, image = self.operators(painted.tile), painted.image
        if not (painted.painting.consistency and operators.knows_something):
            return painted
        for _ in range(FINAL_ITERATIONS):
            pull = tile_pull(image, self._source, operators, dead_zone=self._dead_zone)
            image = (image + painted.painting.consistency * pull).clamp(0, 1)
        return dataclasses.replace(painted, image=image)

    def again(self, painting: Painting) -> Painting:
        """The next try after `painting`, with a denoise that the model can work with."""
        found = painting.again(guides=self._settings.guides)
        return found if self.can(found) else dataclasses.replace(found, denoise=painting.denoise)

    def can(self, painting: Painting) -> bool:
        """Whether the model can work with so little denoise."""
        try:
            return self._model.calls(painting.denoise, self._settings.steps) > 0
        except SettingsError:
            return False

    def operators(self, tile: Tile) -> TileOperators:
        """D and U of a tile."""
        size = (self._source.shape[-2], self._source.shape[-1])
        return tile_operators(size, self._target_size, tile.rows, tile.cols)

    def region(self, tile: Tile) -> Tensor:
        """What a tile determines of the source, (1, 3, m, n)."""
        return self.operators(tile).crop(self._source)

    def _start(self, tile: Tile, painting: Painting) -> Tensor:
        """(1, C, h, w), unit normal: the canvas's noise, and in the middle of a redone tile its own."""
        f = self._model.factor
        rows, cols = slice(tile.y0 // f, tile.y1 // f), slice(tile.x0 // f, tile.x1 // f)
        old = self._noise[..., rows, cols]
        if painting.number == 0:
            return old
        generator = torch.Generator().manual_seed(painting.seed)
        # Where a neighbour shows as well it keeps to the neighbour's noise; squares of shares that sum to one
        # keep the variance.
        share = self._canvas.weight(tile)[f // 2 :: f, f // 2 :: f].to(old)
        whole = torch.randn(old.shape, generator=generator)
        return (1 - share**2).clamp(min=0).sqrt() * old + share * whole

    def _correction(self, tile: Tile, painting: Painting) -> TileCorrection:
        operators = self.operators(tile)
        yardstick = self._yardstick if self._settings.guides and operators.knows_something else None
        return TileCorrection(
            self._source,
            operators,
            consistency=painting.consistency,
            dead_zone=self._dead_zone,
            strength=painting.strength if yardstick else 0.0,
            extract=yardstick.extract if yardstick else None,
            target=yardstick.target if yardstick else None,
        )

"""What is done to a tile's predicted clean picture at every model call: DINO guidance, then consistency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .consistency import tile_pull
from .guidance import Extract, Target, guide
from .resample import TileOperators


class Codec(Protocol):
    """Between a model's clean data and pictures.

    Attributes:
        spread: standard deviation of clean data in the model's scale.
    """

    spread: float

    def decode(self, clean: Tensor) -> Tensor:
        """(B, C, h, w) in the model's scale to pictures (B, 3, H, W) in [0, 1]; differentiable."""

    def shift(self, clean: Tensor, change: Tensor) -> Tensor:
        """`clean` after its picture has changed by `change`, (B, 3, H, W)."""


class PixelCodec:
    """For a model that works on pictures in [-1, 1]."""

    spread = 0.5

    def decode(self, clean: Tensor) -> Tensor:
        return (clean + 1) / 2

    def shift(self, clean: Tensor, change: Tensor) -> Tensor:
        return clean + 2 * change.to(clean)


@dataclass(frozen=True)
class TileCorrection:
    """Corrections for one tile.

    Attributes:
        source: the whole source, (1, 3, H, W) in [0, 1].
        operators: D and U of this tile.
        consistency: 0 to 1.
        dead_zone: see `consistency.soft`.
        strength: of the guidance, 0 to 1.
        target, extract: what the tile should be, and to which features; None when guidance is off.
    """

    source: Tensor
    operators: TileOperators
    consistency: float
    dead_zone: float
    strength: float = 0.0
    target: Target | None = None
    extract: Extract | None = None

    def __call__(self, clean: Tensor, ratio: float, codec: Codec) -> Tensor:
        """`clean`, (1, C, h, w) at noise-to-signal `ratio`, corrected; itself when nothing acts."""
        if self.strength and self.target is not None and self.extract is not None:
            clean = guide(
                clean, ratio, target=self.target, extract=self.extract, strength=self.strength, spread=codec.spread,
                view=lambda x: self.operators.down(codec.decode(x)),
            )
        # Consistency comes second: it has the last word on everything the source can tell.
        if self.consistency:
            pull = tile_pull(codec.decode(clean), self.source, self.operators, dead_zone=self.dead_zone)
            clean = codec.shift(clean, self.consistency * pull)
        return clean

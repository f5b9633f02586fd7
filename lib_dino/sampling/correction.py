"""What is done to a tile's predicted clean picture at every model call: DINO guidance, then consistency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..measure.drift import Extract, Target
from ..tiling.resample import TileOperators
from .consistency import tile_pull
from .guidance import guide


class Codec(Protocol):
    """Between a model's clean data and pictures.

    Attributes:
        spread: standard deviation of clean data in the model's scale.
        exact: `picture` is good enough to be held against the source pixel by pixel.
        sparing: where that costs too much for every call, the noise-to-signal ratios at which it is done, once each,
            when a tile's falls so low. Empty is at every call.
    """

    spread: float
    sparing: tuple[float, ...]

    @property
    def exact(self) -> bool:
        """See above; asked only when it is due."""

    def decode(self, clean: Tensor) -> Tensor:
        """(B, C, h, w) in the model's scale to pictures (B, 3, H, W) in [0, 1]; differentiable."""

    def picture(self, clean: Tensor) -> Tensor:
        """The same as exactly as can be; only asked for where `exact`."""

    def shift(self, clean: Tensor, change: Tensor) -> Tensor:
        """`clean` after its picture has changed by `change`, (B, 3, H, W)."""

    def anchored(self, clean: Tensor, reference: Tensor, strength: float) -> Tensor:
        """`clean` held to the source's tile in the model's scale as far as can be without being exact."""

    def references(self, count: int) -> Sequence[Tensor | None]:
        """For each of `count` tiles the source tile in the model's scale, (1, C, h, w).

        What `decode` shows of it is what the estimate is compared with, so that a rough decoder's faults
        cancel. None compares with the source itself, for a decoder that is exact.
        """


class PixelCodec:
    """For a model that works on pictures in [-1, 1]."""

    spread = 0.5
    exact = True
    sparing: tuple[float, ...] = ()

    def decode(self, clean: Tensor) -> Tensor:
        """[-1, 1] to [0, 1]."""
        return (clean + 1) / 2

    def picture(self, clean: Tensor) -> Tensor:
        """The same."""
        return self.decode(clean)

    def shift(self, clean: Tensor, change: Tensor) -> Tensor:
        """A change of the picture, in the model's twice as wide scale."""
        return clean + 2 * change.to(clean)

    def anchored(self, clean: Tensor, reference: Tensor, strength: float) -> Tensor:
        """Never asked for: pixels are exact."""
        raise NotImplementedError("pixels are exact")

    def references(self, count: int) -> Sequence[Tensor | None]:
        """None: pixels are exact."""
        return [None] * count


@dataclass
class TileCorrection:
    """Corrections for one tile, through all its model calls.

    Attributes:
        source: the whole source, (1, 3, H, W) in [0, 1].
        operators: D and U of this tile.
        consistency: 0 to 1; pixel by pixel where the codec is exact, on coarse colours elsewhere.
        dead_zone: see `consistency.soft`.
        strength: of the guidance, 0 to 1.
        extract: a picture to its feature grid; None when guidance is off.
        target: what a region of the source is to DINO; None when guidance is off.
        applied: root mean square of every call's correction so far, in units of the data's spread.
    """

    source: Tensor
    operators: TileOperators
    consistency: float
    dead_zone: float
    strength: float = 0.0
    extract: Extract | None = None
    target: Callable[[Tensor], Target] | None = None
    applied: list[Tensor] = field(default_factory=list, init=False)
    _target: Target | None = field(default=None, init=False)
    _passed: int | None = field(default=None, init=False)
    _last: tuple[Tensor, float] | None = field(default=None, init=False)

    @property
    def mean_applied(self) -> float:
        """Mean of `applied`; 0 before the first call."""
        return float(sum(self.applied) / len(self.applied)) if self.applied else 0.0

    def __call__(self, clean: Tensor, ratio: float, codec: Codec, reference: Tensor | None = None) -> Tensor:
        """`clean`, (1, C, h, w) at noise-to-signal `ratio`, corrected; itself when nothing acts."""
        corrected = self._corrected(clean, ratio, codec, reference)
        if corrected is not clean:
            # Stays a tensor: reading a number would make a GPU wait.
            self.applied.append((corrected - clean).float().square().mean().sqrt() / codec.spread)
        return corrected

    def _corrected(self, clean: Tensor, ratio: float, codec: Codec, reference: Tensor | None) -> Tensor:
        if self.strength and self.extract and self.target:

            def view(x: Tensor) -> Tensor:
                return self.operators.down(codec.decode(x))

            if self._target is None:
                self._target = self.target(
                    self.operators.crop(self.source) if reference is None else view(reference)
                )
            clean = guide(
                clean,
                ratio,
                target=self._target,
                view=view,
                extract=self.extract,
                strength=self.strength,
                spread=codec.spread,
            )
        # Consistency comes second: it has the last word on everything the source can tell.
        return self._held(clean, ratio, codec, reference) if self.consistency else clean

    def _held(self, clean: Tensor, ratio: float, codec: Codec, reference: Tensor | None) -> Tensor:
        """`clean` held to the source: exactly where that is due, else by the last exact shift and coarse colours."""
        if self._due(ratio, codec.sparing) and codec.exact:
            pull = tile_pull(codec.picture(clean), self.source, self.operators, dead_zone=self.dead_zone)
            moved = codec.shift(clean, self.consistency * pull)
            if not codec.sparing:
                return moved
            if moved is not clean:
                self._last = moved - clean, ratio
                return moved
        if self._last is not None:
            # What was shifted at `then` makes up 1 - ratio / then of the noisy data by now: the rest is still missing.
            shift, then = self._last
            clean = clean + min(1.0, ratio / then) * shift
        return clean if reference is None else codec.anchored(clean, reference, self.consistency)

    def _due(self, ratio: float, levels: tuple[float, ...]) -> bool:
        """Whether the exact pull is to be done at this call.

        By noise, not by number: ten steps and forty get the same pulls. A tile that begins with less noise than some
        levels has its first pull at the next of them, at once where there is none.
        """
        passed, before = sum(ratio <= level for level in levels), self._passed
        self._passed = max(passed, before or 0)
        return passed == len(levels) if before is None else passed > before or not levels

"""Corrections of a batch's predicted clean tiles at every model call: DINO guidance, then source consistency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..measure.drift import Extract, Target
from ..tiling.resample import TileOperators
from .consistency import Consistency, Pull, pixel_consistency, tile_pull
from .guidance import guide


class Codec(Protocol):
    """What the clean data of one batch of tiles mean.

    Attributes:
        sigma_data: standard deviation of clean data in the model's scale.
    """

    sigma_data: float

    def decode(self, clean: Tensor) -> Tensor:
        """(B, C, h, w) in the model's scale to pictures (B, 3, H, W) in [0, 1]; differentiable, may be rough."""

    def source_latents(self, number: int) -> Tensor | None:
        """Tile `number` of the source in the model's scale, (1, C, h, w).

        Guidance compares with what `decode` shows of it, so that a rough decoder's faults cancel. None compares with
        the source itself, for a decoder that is exact.
        """

    def consistency(self, number: int, pull: Pull, strength: float) -> Consistency:
        """How tile `number` is held to its source, at every model call of this batch."""


Corrector = Callable[[Tensor, float, Codec], Tensor]
"""Predicted clean tiles (B, C, h, w), their noise-to-signal ratio and the batch's codec, to corrected tiles."""


class PixelCodec:
    """For a model that works on pictures in [-1, 1]."""

    sigma_data = 0.5

    def decode(self, clean: Tensor) -> Tensor:
        """[-1, 1] to [0, 1]."""
        return (clean + 1) / 2

    def source_latents(self, number: int) -> None:
        """None: pixels are exact."""

    def consistency(self, number: int, pull: Pull, strength: float) -> Consistency:
        """Exact, at every call."""
        return pixel_consistency(pull, strength)


@dataclass(frozen=True)
class TileCorrections:
    """What acts on one tile.

    Attributes:
        source: the whole source, (1, 3, H, W) in [0, 1].
        operators: D and U of this tile.
        consistency: 0 to 1; 0 switches it off.
        threshold: differences from the source up to this are let stand, see `consistency.soft_threshold`.
        strength: of the guidance, 0 to 1.
        extract: a picture to its feature grid; None when guidance is off.
        target: what a region of the source is to DINO; None when guidance is off.
    """

    source: Tensor
    operators: TileOperators
    consistency: float
    threshold: float
    strength: float = 0.0
    extract: Extract | None = None
    target: Callable[[Tensor], Target] | None = None

    def pull(self, picture: Tensor) -> Tensor:
        """What to add to the tile's picture, (1, 3, h, w) in [0, 1], to make it consistent with the source."""
        return tile_pull(picture, self.source, self.operators, threshold=self.threshold)


@dataclass
class _TileCorrector:
    """One tile's corrections through its model calls: target and consistency are made at the first.

    A correction that gives NaN or infinite values is not applied.
    """

    acts: TileCorrections
    number: int
    rms: list[Tensor] = field(default_factory=list)
    dropped: Tensor | int = 0
    _target: Target | None = None
    _consistency: Consistency | None = None

    def __call__(self, clean: Tensor, noise_to_signal: float, codec: Codec) -> Tensor:
        corrected = clean
        if self.acts.strength:
            corrected = self._guided(corrected, noise_to_signal, codec)
        # Consistency comes second: it has the last word on everything the source can tell.
        if self.acts.consistency:
            if self._consistency is None:
                self._consistency = codec.consistency(self.number, self.acts.pull, self.acts.consistency)
            corrected = self._consistency(corrected, noise_to_signal)
        if corrected is not clean:
            # Stay tensors: reading a number would make a GPU wait.
            valid = corrected.isfinite().all()
            corrected = torch.where(valid, corrected, clean)
            self.rms.append((corrected - clean).float().square().mean().sqrt() / codec.sigma_data)
            # Where the model's own picture is no picture, the tile as a whole is looked after.
            self.dropped = self.dropped + (~valid & clean.isfinite().all())
        return corrected

    def _guided(self, clean: Tensor, noise_to_signal: float, codec: Codec) -> Tensor:
        acts = self.acts
        if acts.extract is None or acts.target is None:
            return clean

        def view(x: Tensor) -> Tensor:
            return acts.operators.down(codec.decode(x))

        if self._target is None:
            latents = codec.source_latents(self.number)
            self._target = acts.target(acts.operators.crop(acts.source) if latents is None else view(latents))
        return guide(
            clean, noise_to_signal, target=self._target, view=view, extract=acts.extract, strength=acts.strength,
            sigma_data=codec.sigma_data,
        )  # fmt: skip


class BatchCorrector:
    """The `Corrector` of one batch of tiles; it lives as long as their denoising."""

    def __init__(self, tiles: Sequence[TileCorrections]) -> None:
        self._tiles = [_TileCorrector(tile, number) for number, tile in enumerate(tiles)]

    def __call__(self, clean: Tensor, noise_to_signal: float, codec: Codec) -> Tensor:
        """Correct predicted clean tiles, (B, C, h, w); where nothing acts they are given back as they are."""
        parts = torch.split(clean, 1)
        corrected = [tile(part, noise_to_signal, codec) for tile, part in zip(self._tiles, parts, strict=True)]
        return clean if all(new is old for new, old in zip(corrected, parts, strict=True)) else torch.cat(corrected)

    def mean_rms(self) -> list[float]:
        """Of each tile the mean over its model calls of the corrections' root mean square, in units of `sigma_data`."""
        return [float(sum(tile.rms) / len(tile.rms)) if tile.rms else 0.0 for tile in self._tiles]

    def dropped(self) -> list[int]:
        """Of each tile at how many model calls its corrections were not applied, because they were no numbers."""
        return [int(tile.dropped) for tile in self._tiles]

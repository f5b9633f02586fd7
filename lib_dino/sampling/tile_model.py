"""What the core asks of a diffusion model, and what it tells while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .correction import Codec

TileCorrect = Callable[[Tensor, float, Codec], Tensor]
"""Predicted clean tiles (B, C, h, w), their noise-to-signal ratio and the model's codec to corrected tiles."""


class Render(Protocol):
    """A diffusion model that repaints tiles.

    Attributes:
        name: for the report.
        tile_px: side of a tile that suits the model, pixels.
        multiple_px: sides and positions of tiles are whole multiples of it.
        channels, factor: channels of the noise, and pixels to a side of one of its cells.
        fits_any_tile: smaller tiles are as good, so none need overlap more than asked.
    """

    name: str
    tile_px: int
    multiple_px: int
    channels: int
    factor: int
    fits_any_tile: bool

    def calls(self, denoise: float, steps: int) -> int:
        """Model calls for one tile; 0 when the model is not needed.

        Raises:
            SettingsError: the model cannot work with so few steps.
        """

    def __call__(
        self,
        tiles: Tensor,
        noise: Tensor,
        *,
        denoise: float,
        steps: int,
        correct: TileCorrect,
        called: Callable[[], None],
    ) -> Tensor | None:
        """Repaint tiles by img2img.

        Args:
            tiles: (B, 3, h, w) in [0, 1].
            noise: (B, channels, h / factor, w / factor), unit normal, to start from.
            denoise, steps: as in `Settings`.
            correct: to be applied to the predicted clean tiles at every model call.
            called: to be told after every model call.

        Returns:
            (B, 3, h, w) in [0, 1]; None when the user asked to stop.
        """


@dataclass(frozen=True)
class Progress:
    """How far a run is: tiles finished and model calls made, each out of how many.

    Attributes:
        redone: tiles that were redone so far, because their drift was over the bound.
    """

    tile: int
    tiles: int
    call: int
    calls: int
    redone: int = 0

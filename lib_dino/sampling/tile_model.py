"""The diffusion model as the core calls it: one batch of tiles in, repainted tiles out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from ..adapter.injection import Injection
from ..tiling.plan import Tile
from .correction import Corrector


@dataclass(frozen=True)
class TileBatch:
    """Tiles to repaint in one call, with everything that a model needs for it.

    Attributes:
        boxes: where the tiles lie on the canvas.
        canvas_size: (height, width) of the canvas, pixels.
        images: tiles to start from, (B, 3, h, w) in [0, 1].
        noise: unit normal noise to start from, (B, channels, h / factor, w / factor).
        plain: the source's region of each tile, plainly enlarged, (B, 3, h, w) in [0, 1].
        denoise, steps: as in `Settings`.
        tokens: image tokens of an adapter; None without one.
        prompts: prompt of each tile; None gives all the picture's own.
    """

    boxes: tuple[Tile, ...]
    canvas_size: tuple[int, int]
    images: Tensor
    noise: Tensor
    plain: Tensor
    denoise: float
    steps: int
    tokens: Injection | None = None
    prompts: tuple[str, ...] | None = None


class TileModel(Protocol):
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

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor | None:
        """Repaint tiles by img2img.

        Args:
            corrector: to be applied to the predicted clean tiles at every model call.
            on_step: to be called after every model call.

        Returns:
            (B, 3, h, w) in [0, 1]; None when the user asked to stop.
        """


@runtime_checkable
class HalfPrecisionModel(Protocol):
    """A `TileModel` that can compute in float32 where it has fewer bits: for tiles that came out as no numbers."""

    def computes_in_half(self) -> bool:
        """Tell whether float32 would be anything else."""

    def in_float32(self) -> AbstractContextManager[bool]:
        """Compute in float32 inside the block, with everything put back after it; False where memory is too short."""

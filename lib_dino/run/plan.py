"""Plan of a job: size of the result and its tiles, with everything refused that could not be done.

Pure and without torch: the same call feeds the panel's line, every size check and the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from ..errors import SettingsError
from ..pictures.files import MAX_PIXELS
from ..settings import Settings
from ..tiling.plan import TilePlan, padded_size, plan_tiles

MAX_TILES: Final = 4096


class TileFacts(Protocol):
    """What a plan has to know of a model; `TileModel` says more."""

    @property
    def tile_px(self) -> int:
        """Side of a tile that suits the model, pixels."""

    @property
    def multiple_px(self) -> int:
        """Sides and positions of tiles are whole multiples of it."""

    @property
    def factor(self) -> int:
        """Pixels to a side of one of its cells."""

    @property
    def fits_any_tile(self) -> bool:
        """Smaller tiles are as good, so none need overlap more than asked."""


@dataclass(frozen=True)
class JobPlan:
    """Sizes of one job.

    Attributes:
        source_size, target_size: (height, width), pixels.
        tiles: on a canvas that is the target, padded to the model's multiple.
    """

    source_size: tuple[int, int]
    target_size: tuple[int, int]
    tiles: TilePlan


def plan_job(settings: Settings, source_size: tuple[int, int], model: TileFacts) -> JobPlan:
    """Lay out the tiles for a source of (height, width) `source_size`.

    Raises:
        SettingsError: the result does not fit the source, or has too few pixels, too many, or too many tiles.
    """
    target = settings.target_size(source_size)
    _check_pixels(settings, target, model)
    tiles = plan_tiles(
        padded_size(target, model.multiple_px),
        tile_px=tile_side(settings, model),
        overlap_px=settings.overlap,
        multiple_px=model.multiple_px,
        shrink=model.fits_any_tile and not settings.tile_size,
    )
    if len(tiles) > MAX_TILES:
        raise SettingsError(
            f"A job may have at most {MAX_TILES} tiles: this one has {len(tiles)} of {tiles.tile[0]} px. Raise the "
            f"tile size or lower the overlap.",
            field="tile_size", value=settings.tile_size, limit=f"{MAX_TILES} tiles",
        )  # fmt: skip
    return JobPlan(source_size, target, tiles)


def tile_side(settings: Settings, model: TileFacts) -> int:
    """Side of a tile that a job asks for, pixels; small pictures may have smaller ones."""
    return settings.tile_size or max(model.tile_px, 2 * settings.overlap)


def _check_pixels(settings: Settings, target: tuple[int, int], model: TileFacts) -> None:
    height, width = target
    if model.factor > 1 and max(target) <= model.factor:
        raise SettingsError(
            f"The result must be more than {model.factor} px on one side: it would be {width} x {height} px, which is "
            f"one pixel to the model. Raise the scale or take a larger picture.",
            field="scale_factor", value=settings.scale_factor, limit=f"more than {model.factor} px along one side",
        )  # fmt: skip
    if height * width > MAX_PIXELS:
        raise SettingsError(
            f"The result may have at most {MAX_PIXELS // 10**6} megapixels: it would be {width} x {height} px. "
            f"Lower the scale.",
            field="scale_factor", value=settings.scale_factor, limit=f"{MAX_PIXELS // 10**6} megapixels",
        )  # fmt: skip

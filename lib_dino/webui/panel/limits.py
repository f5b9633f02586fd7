"""Largest and smallest jobs; needs no torch, so that the panel can tell beforehand."""

from __future__ import annotations

from typing import Final

from ...errors import SettingsError
from ...pictures.files import MAX_PIXELS
from ...settings import Settings
from ...tiling.plan import TilePlan, padded_size, plan_tiles

MAX_TILES: Final = 4096


def check_size(settings: Settings, size: tuple[int, int], *, tile_px: int = 512) -> tuple[int, int]:
    """The result's (height, width) for a source of `size`, with everything that would take forever refused.

    Args:
        settings: of the job.
        size: (height, width) of the source, pixels.
        tile_px: side of a tile where the settings leave it open, pixels.

    Raises:
        SettingsError: the result has too many pixels or tiles, or too few pixels, or does not fit the source.
    """
    height, width = settings.target_size(size)
    if max(height, width) <= 8:
        raise SettingsError(
            f"The result must be more than 8 px on one side: it would be {width} x {height} px, which is one pixel to "
            f"a model. Raise the scale or take a larger picture.",
            field="scale_factor", value=settings.scale_factor, limit="more than 8 px along one side",
        )  # fmt: skip
    if height * width > MAX_PIXELS:
        raise SettingsError(
            f"The result may have at most {MAX_PIXELS // 10**6} megapixels: it would be {width} x {height} px. "
            f"Lower the scale.",
            field="scale_factor", value=settings.scale_factor, limit=f"{MAX_PIXELS // 10**6} megapixels",
        )  # fmt: skip
    plan = planned(settings, (height, width), tile_px=tile_px, multiple_px=8)
    if len(plan) > MAX_TILES:
        raise SettingsError(
            f"A job may have at most {MAX_TILES} tiles: this one has {len(plan)} of {plan.tile[0]} px. Raise the tile "
            f"size or lower the overlap.",
            field="tile_size", value=settings.tile_size, limit=f"{MAX_TILES} tiles",
        )  # fmt: skip
    return height, width


def planned(settings: Settings, target: tuple[int, int], *, tile_px: int, multiple_px: int) -> TilePlan:
    """Where the tiles of a result of (height, width) `target` lie, as `run.Run` plans them for a model."""
    return plan_tiles(
        padded_size(target, multiple_px),
        tile_px=settings.tile_size or max(tile_px, 2 * settings.overlap),
        overlap_px=settings.overlap,
        multiple_px=multiple_px,
    )

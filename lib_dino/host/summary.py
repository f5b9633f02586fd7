"""One line that says what a job will do, from the controls alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import DinoError
from ..settings import Settings
from ..tiles import padded_size, plan_tiles
from .args import Request, parse

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


def summary(source: str, values: Mapping[str, Any], *, tile_px: int = 512, steps: int = 20) -> str:
    """Output size, tiles and model calls; without a source's size what one megapixel would need.

    Args:
        source: "WIDTHxHEIGHT" in pixels, or empty.
        values: settings by name, as from the panel.
        tile_px: side of a tile where the settings leave it open.
        steps: likewise.
    """
    found = _SIZE.fullmatch(source)
    size = (int(found[2]), int(found[1])) if found else None
    known = {name: value for name, value in values.items() if name not in ("sampler_name", "scheduler")}
    try:
        job = parse([known], request=Request(steps=steps), choices={}, enabled=True)
        if size is None:
            return "Put in a picture to see the size of the result, the tiles and the model calls."
        return _line(job.settings, size, tile_px)
    except DinoError as error:
        return str(error)


def _line(settings: Settings, size: tuple[int, int], tile_px: int) -> str:
    height, width = settings.target_size(size)
    side = settings.tile_size or max(tile_px, 2 * settings.overlap)
    plan = plan_tiles(padded_size((height, width), 8), tile_px=side, overlap_px=settings.overlap, multiple_px=8)
    batches = -(-len(plan) // settings.tile_batch_size)
    calls = batches * (int(min(settings.denoise, 0.999) * settings.steps) + 1) if settings.denoise else 0
    tiles = "1 tile" if len(plan) == 1 else f"{len(plan)} tiles"
    about = "" if settings.tile_size else f" (tiles of {tile_px} px, for SD 1.5; larger models take larger ones)"
    return (
        f"{size[1]} x {size[0]} becomes {width} x {height} px: {tiles} of {plan.tile[1]} x {plan.tile[0]} px, "
        f"about {calls} model calls{about}."
    )

"""From measured drift to the plain figures of a report, and to the maps that are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..measure.calibration import Thresholds
from ..measure.drift import TileDrift, drift_map
from ..networks.dinov2_weights import PATCH_PX
from .records import WORST_APART, WORST_SHOWN, WorstPatch

HEAT_PX: Final = 4096
"""Longest side of a map of edit probability; those of larger pictures are coarser."""


@dataclass(frozen=True)
class Heat:
    """A map of a whole picture.

    Attributes:
        kind: "drift", above plain enlargement, or "edits", how likely each place was invented.
        values: (1, 1, h, w), at any scale.
        limit: from where on a place counts: the bound, or the alarm.
        top: where a colour scale ends.
    """

    kind: str
    values: Tensor
    limit: float
    top: float


def heats(
    tiles: Sequence[TileDrift], source_size: tuple[int, int], result_size: tuple[int, int], *, bound: float
) -> tuple[Heat, ...]:
    """The maps of a picture, the more telling first: edits where there is a detector, then drift; none for no tiles.

    Args:
        tiles: drift of every tile.
        source_size, result_size: (height, width), pixels.
        bound: drift above the floor from which on a patch is over it.
    """
    if not tiles:
        return ()
    limits = tiles[0].thresholds
    drift = Heat("drift", drift_map(tiles, source_size), bound, max(limits.invented, 2 * bound))
    if limits.alarm is None or any(tile.edit_map is None for tile in tiles):
        return (drift,)
    return Heat("edits", _edit_map(tiles, source_size, result_size), limits.alarm, 1.0), drift


def _edit_map(tiles: Sequence[TileDrift], source_size: tuple[int, int], result_size: tuple[int, int]) -> Tensor:
    """Put together like `drift.drift_map`, but at the result's scale."""
    shrink = min(1.0, HEAT_PX / max(result_size))
    out = torch.zeros(1, 1, *(max(1, round(side * shrink)) for side in result_size))
    for tile in tiles:
        assert tile.edit_map is not None, "a map of edit probability needs it in every tile"
        whole = F.interpolate(tile.edit_map[None, None].float(), scale_factor=PATCH_PX, mode="bilinear")
        spans = []
        for i, region in enumerate((tile.rows, tile.cols)):
            first = region.start * result_size[i] / source_size[i] * shrink
            spans.append(slice(round(first), max(round(first) + 1, round(first + tile.size[i] * shrink))))
        part = out[..., spans[0], spans[1]]
        size = (part.shape[-2], part.shape[-1])
        given = F.interpolate(whole[..., : tile.size[0], : tile.size[1]], size=size, mode="bilinear")
        part.copy_(torch.maximum(part, given))
    return out


def bound_kind(thresholds: Thresholds, asked: float) -> str:
    """Origin of a bound, as in `Report.bound_kind`; `asked` is the user's own, 0 for none."""
    return "asked" if asked else "fitted" if thresholds.measured else "default"


def tile_figures(
    drift: TileDrift, source_size: tuple[int, int], result_size: tuple[int, int], *, bound: float
) -> dict[str, Any]:
    """The fields of a `TileReport` that follow from a tile's drift.

    Args:
        source_size, result_size: (height, width), pixels.
        bound: drift above the floor from which on a patch is over it.
    """
    return {
        "drift": drift.mean,
        "drift_worst": drift.worst,
        "drift_enlarged": drift.baseline,
        "drift_above": float(drift.patches.mean()),
        "score": drift.worst_tenth_mean,
        "over_bound": drift.share_over(bound),
        "drift_peak": float(drift.patches.max()),
        "edit_probability": drift.edit_probability,
        "alarm": drift.alarm,
        "worst_patches": worst_patches(drift, source_size, result_size),
    }


def worst_patches(
    tile: TileDrift, source_size: tuple[int, int], result_size: tuple[int, int]
) -> tuple[WorstPatch, ...]:
    """The tile's worst places, worst first, at most `WORST_SHOWN`, none near another, none without drift."""
    scale = result_size[0] / source_size[0], result_size[1] / source_size[1]
    if tile.edit_map is None:
        cells = [(tile.rows.stop - tile.rows.start), (tile.cols.stop - tile.cols.start)]
        sides = [cells[i] / tile.patches.shape[i] * scale[i] for i in (0, 1)]
        return tuple(
            WorstPatch(_box(tile, place, sides, scale, result_size), value) for value, place in _peaks(tile.patches)
        )
    drift = F.interpolate(tile.patches[None, None].float(), size=tuple(tile.edit_map.shape), mode="bilinear")[0, 0]
    return tuple(
        WorstPatch(_box(tile, place, [PATCH_PX, PATCH_PX], scale, result_size), float(drift[place]), value)
        for value, place in _peaks(tile.edit_map)
    )


def _peaks(grid: Tensor) -> list[tuple[float, tuple[int, int]]]:
    """Value and place of the largest cells that none within `WORST_APART` of them exceeds."""
    values = grid.float()
    around = F.max_pool2d(values[None, None], 2 * WORST_APART + 1, stride=1, padding=WORST_APART)[0, 0]
    peaks = torch.where(values == around, values, 0.0).flatten()
    largest = peaks.topk(min(WORST_SHOWN, len(peaks)))
    places = (divmod(place, grid.shape[1]) for place in largest.indices.tolist())
    return [(value, place) for value, place in zip(largest.values.tolist(), places, strict=True) if value > 0]


def _box(
    tile: TileDrift, place: tuple[int, int], sides: Sequence[float], scale: tuple[float, float], limit: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Box in the result of cell `place`, `sides` pixels of the result large, of a tile's grid."""
    spans = []
    for i, region in enumerate((tile.rows, tile.cols)):
        start = region.start * scale[i] + place[i] * sides[i]
        first = min(int(start), limit[i] - 1)
        spans.append((first, min(max(first + 1, round(start + sides[i])), limit[i])))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]

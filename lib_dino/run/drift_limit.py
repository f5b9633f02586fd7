"""Drift limit: what drifts too far is blended back to the enlarged source until, measured again, nothing does.

The promise is about the finished picture as it is saved, rounded to 8 bits, and about the measure: every patch of
every tile lies within the limit as the measure sees it. It says nothing of what the measure cannot see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import arrays
from ..measure.drift import TileDrift
from ..tiling.plan import Tile

PATCH_ROUNDS: Final = 6
"""Rounds in which patches are blended back by degrees; what is over the limit after them goes back tile by tile."""

_AIM: Final = 0.9
"""Part of the limit that a round aims at, so that few more are needed."""

_NEARLY: Final = 0.98
"""Shares above it become 1: closer steps are not worth a round."""

_FADE_PX: Final = 32
"""How far around a wholly blended tile the enlarged source fades out."""


@dataclass(frozen=True)
class Limited:
    """A picture within the drift limit.

    Attributes:
        image: (1, 3, H, W), in steps of 1/255.
        share: (1, 1, H, W), 0 to 1: how much of each pixel is the enlarged source.
        before: each tile's drift before anything was blended.
        over: tiles that stay over the limit, because even the enlarged source does once it is rounded, or because
            they lie where the picture may not change.
    """

    image: Tensor
    share: Tensor
    before: Mapping[Tile, TileDrift] = field(default_factory=dict)
    over: tuple[Tile, ...] = ()


def eight_bit(image: Tensor) -> Tensor:
    """`image` in [0, 1] as an 8-bit file gives it back."""
    return (image.clamp(0, 1) * 255).round() / 255


def enforce_limit(
    image: Tensor,
    enlarged: Tensor,
    tiles: Sequence[Tile],
    *,
    limit: float,
    scale: tuple[float, float],
    measure: Callable[[Tile, Tensor], TileDrift | None],
    saved: Callable[[Tensor], Tensor] = eight_bit,
    mask: Tensor | None = None,
    last: Tensor | None = None,
) -> Limited:
    """Blend `image` back to `enlarged` wherever its drift is over the limit, and no further than it takes.

    It ends, as shares only grow and a tile that is wholly the enlarged source is asked no more; and a tile that was
    not measured again after its last change is none of the result's.

    Args:
        image, enlarged: (1, 3, H, W) in [0, 1].
        tiles: those that are measured.
        limit: largest patch drift above the floor, above 0.
        scale: pixels of the result to one of the source, down and across.
        measure: drift of a tile in a picture; None where nothing can be measured.
        saved: what is left of a picture once it is written.
        mask: (1, 1, H, W); where it is 0 nothing is blended.
        last: the picture that the floor was measured on, for tiles in which even `enlarged` is over the limit.
    """
    share, fallen = arrays.zeros((1, 1, *image.shape[-2:]), image.dtype), set[Tile]()
    current, before, over = arrays.by_bands(saved, image), dict[Tile, TileDrift](), list[Tile]()
    waiting, rounds, enlarged = list(tiles), 0, arrays.copied(enlarged)
    while waiting:
        drifts = {tile: drift for tile in waiting if (drift := measure(tile, current)) is not None}
        before = before or drifts
        over = [tile for tile in over if tile not in drifts]
        grown, touched = arrays.copied(share), arrays.zeros(share.shape, torch.bool)
        for tile, drift in drifts.items():
            if float(drift.patches.max()) <= limit:
                continue
            if rounds < PATCH_ROUNDS:
                _blend_patches(grown, drift, scale, limit)
            if not _grew(share, grown, mask, tile):
                _blend_tile(grown, tile)
            if not _grew(share, grown, mask, tile):
                if last is None or tile in fallen:
                    over.append(tile)
                    continue
                fallen.add(tile)
                enlarged[..., tile.rows, tile.cols] = last[..., tile.rows, tile.cols]
                touched[..., tile.rows, tile.cols] = True
        if mask is not None:
            grown = arrays.by_bands(_allowed, grown, mask)
        touched = arrays.by_bands(lambda seen, more, less: seen | (more > less), touched, grown, share)
        waiting = [tile for tile in tiles if bool(touched[..., tile.rows, tile.cols].any())]
        share, rounds = grown, rounds + 1
        current = arrays.by_bands(lambda a, b, weight: saved(torch.lerp(a, b, weight)), image, enlarged, share)
    return Limited(current, share, before, tuple(over))


def limit_note(limited: Limited, limit: float) -> str:
    """Say in one sentence what keeping the limit took."""
    blended = sum(float(limited.share[..., rows, :].sum()) for rows in arrays.bands(limited.share))
    share = blended / limited.share.numel()
    over = sum(float(d.patches.max()) > limit for d in limited.before.values())
    if limited.over:
        return (
            f"{len(limited.over)} of {len(limited.before)} tiles stay over the drift limit of {limit:.3g}: even the "
            f"enlarged source is over it there, or the mask forbids a change."
        )
    if share == 0:
        return f"Every tile is within the drift limit of {limit:.3g}; nothing was blended back."
    return (
        f"Every tile is within the drift limit of {limit:.3g}: {over} of {len(limited.before)} were over it, and "
        f"{100 * share:.1f} % of the picture was blended back to the enlarged source for it."
    )


def _allowed(share: Tensor, mask: Tensor) -> Tensor:
    return share * (mask > 0).to(share)


def _grew(share: Tensor, grown: Tensor, mask: Tensor | None, tile: Tile) -> bool:
    here = (..., tile.rows, tile.cols)
    more = grown[here] if mask is None else _allowed(grown[here], mask[here])
    return bool((more > share[here]).any())


def _blend_patches(share: Tensor, drift: TileDrift, scale: tuple[float, float], limit: float) -> None:
    """Raise `share` in place where patches are over the bound, fading out over the next patch around them."""
    over = drift.patches[None, None].to(share)
    # Drift goes about with the square of what differs; the rest is left to the next round.
    more = 1 - (_AIM * limit / over.clamp(min=1e-9)).sqrt()
    more = F.pad(torch.where(over > limit, more, torch.zeros_like(over)), (2, 2, 2, 2))
    more = F.max_pool2d(more, 3, stride=1, padding=1)
    rows, cols = (
        _patch_box(span, times, patches)
        for span, times, patches in zip((drift.rows, drift.cols), scale, over.shape[-2:], strict=True)
    )
    size = (rows.stop - rows.start, cols.stop - cols.start)
    spread = F.interpolate(more, size=size, mode="bilinear", align_corners=False)
    inside = tuple(slice(max(box.start, 0), box.stop) for box in (rows, cols))
    spread = spread[..., inside[0].start - rows.start :, inside[1].start - cols.start :]
    part = share[..., inside[0], inside[1]]
    spread = spread[..., : part.shape[-2], : part.shape[-1]]
    grown = torch.where(spread > 0, 1 - (1 - part) * (1 - spread), part)
    part.copy_(torch.where(grown > _NEARLY, torch.ones_like(grown), grown))


def _patch_box(span: slice, scale: float, patches: int) -> slice:
    """The pixels of the result that a map covers along one axis, two patches more on either side."""
    start, stop = span.start * scale, span.stop * scale
    margin = 2 * (stop - start) / patches
    return slice(round(start - margin), round(stop + margin))


def _blend_tile(share: Tensor, tile: Tile) -> None:
    """Make `share` 1 in a whole tile, in place, fading out around it."""
    spans, fades = [], []
    for start, stop, side in ((tile.y0, tile.y1, share.shape[-2]), (tile.x0, tile.x1, share.shape[-1])):
        span = slice(max(0, start - _FADE_PX), min(side, stop + _FADE_PX))
        pixel = torch.arange(span.start, span.stop)
        away = torch.relu(torch.maximum(start - pixel, pixel - (stop - 1)))
        fades.append(((_FADE_PX - away) / _FADE_PX).clamp(0, 1))
        spans.append(span)
    part = share[..., spans[0], spans[1]]
    part.copy_(torch.maximum(part, (fades[0][:, None] * fades[1][None, :]).to(share)))

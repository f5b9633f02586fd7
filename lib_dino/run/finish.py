"""Finish a picture: texture matched, made consistent with its source, masked, held within the drift limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from .. import arrays
from ..measure.drift import TileDrift
from ..networks.texture_net import (
    EPS,
    LEAST_FACTOR,
    SPREAD_PX,
    WINDOW_PX,
    Texture,
    blurred,
    embedded_texture,
    energies,
    expected,
    split,
    unseen,
)
from ..sampling.consistency import back_project, soft_threshold
from ..tiling.chunks import windows
from ..tiling.padding import picked, reflected
from ..tiling.plan import Tile
from ..tiling.resample import magnified
from .drift_limit import Limited, enforce_limit
from .prepare import Prepared, extend
from .tiles import SampledTiles

UNTOUCHED: Final = 1e-5
"""Pixels that differ by less from what tiles start from were not sampled."""

WEAKEST: Final = 0.05
"""Least that detail is multiplied by. The most is 1: more lands in the wrong places (docs/constants.md)."""
TRUST: Final = 2.5
"""Expected errors that detail may be off: with less, faithful sharp pictures lose (docs/constants.md)."""


@dataclass(frozen=True)
class Finished:
    """The finished picture.

    Attributes:
        image: (1, 3, *target size) in [0, 1].
        sampled: the tiles it was made of.
        limited: what the drift limit took; None where none was asked for.
        mended: pixels that were no valid numbers and show what tiles start from.
    """

    image: Tensor
    sampled: SampledTiles
    limited: Limited | None = None
    mended: int = 0


def finish(job: Prepared, image: Tensor, sampled: SampledTiles, saved: Callable[[Tensor], Tensor]) -> Finished:
    """Finish the blended picture.

    Args:
        image: as its tiles were blended, (1, 3, *target size) in [0, 1].
        saved: what is left of a picture once it is written; the drift limit holds for that.
    """
    if job.settings.texture and sampled.calls:
        image = _textured(job, image)
    if job.loans is not None:
        image = job.loans.lend(image, job.settings.dino_strength)
    image = _consistent(job, image)
    if job.mask is not None:
        image = arrays.by_bands(torch.lerp, job.mask.protected, image, job.mask.share)
    if not job.settings.max_drift:
        return Finished(image, sampled)
    limited = enforce_limit(
        image, _consistent(job, job.plain), job.open_tiles(), limit=job.settings.max_drift, scale=job.scale,
        measure=lambda tile, shown: tile_drift(job, tile, shown), saved=saved,
        mask=None if job.mask is None else job.mask.share, last=job.plain,
    )  # fmt: skip
    return Finished(limited.image, sampled, limited)


def tile_drift(job: Prepared, tile: Tile, image: Tensor, *, detail: bool = False) -> TileDrift | None:
    """Drift of `tile` in `image`, of the target size; None where the tile determines no source pixel.

    Args:
        detail: measure the probability of edits too, where the feature network has a detector.

    Raises:
        ValueError: the job has no feature network.
    """
    if job.meter is None:
        raise ValueError("drift needs a feature network, but the job was prepared without one.")
    operators = job.operators(tile)
    if not operators.covers_source:
        return None
    return job.meter.tile(extend(image[..., tile.rows, tile.cols], tile.size), operators, detail=detail)


def _consistent(job: Prepared, image: Tensor) -> Tensor:
    """`image` made consistent with what the result is held to."""
    reference = job.reference
    return back_project(image, reference.image, strength=job.settings.consistency, threshold=reference.threshold)


def _textured(job: Prepared, image: Tensor) -> Tensor:
    """`image` with the detail that was sampled scaled to what the source lets expect."""
    scale = math.sqrt(image[0, 0].numel() / job.source[0, 0].numel())
    texture = expected(embedded_texture(), job.reference.image, scale)
    scaled = match_texture(image, texture, job.plan.source_size, scale, strength=job.settings.texture)
    # Where no tile was sampled, by wish or for an early stop, the enlarged source stays.
    return arrays.by_bands(_where_sampled, image, job.start, scaled)


def _where_sampled(image: Tensor, start: Tensor, scaled: Tensor) -> Tensor:
    untouched = ((image - start).abs() < UNTOUCHED).all(1, keepdim=True)
    return torch.where(untouched, image, scaled)


@torch.no_grad()
def match_texture(
    image: Tensor, texture: Texture, source_size: tuple[int, int], factor: float, *, strength: float
) -> Tensor:
    """Take from the unseen detail of `image`, (1, 3, H, W) in [0, 1], what is more than is expected.

    Args:
        texture: as `expected` gives it.
        source_size: (height, width) of the source, pixels.
        factor: the enlargement.
        strength: 0 leaves everything, 1 scales fully; in between by powers, so that halves add up.
    """
    if strength == 0 or factor < LEAST_FACTOR:
        return image
    size = (image.shape[-2], image.shape[-1])
    margin = math.ceil(16 * factor)
    fine = unseen(image.float(), source_size)
    out = arrays.zeros(image.shape, image.dtype)
    for window in windows(size, side=WINDOW_PX, margin=0):
        rows, cols = (
            reflected(slice(span.start - margin, span.stop + margin), side)
            for span, side in zip((window.rows, window.cols), size, strict=True)
        )
        log, slack = (magnified(grid, size, rows, cols) for grid in (texture.log, texture.spread))
        scaled = _scaled(picked(fine, rows, cols), log, TRUST * slack, factor, strength)
        place = (..., window.rows, window.cols)
        coarse = image[place].float() - fine[place]
        out[place] = (coarse + scaled[..., margin:-margin, margin:-margin]).clamp(0, 1)
        if arrays.is_large(*out.shape):
            arrays.release()
    return out


def _scaled(fine: Tensor, log: Tensor, slack: Tensor, factor: float, strength: float) -> Tensor:
    """(1, 3, h, w) after each of its bands was brought down to within `slack` of its expected log energy."""
    parts, sigma = split(fine, factor), SPREAD_PX * factor
    surplus = (energies(parts, sigma) + EPS).log() - log
    gain = (-0.5 * soft_threshold(surplus, slack)).exp().clamp(WEAKEST, 1) ** strength
    return (blurred(gain, sigma / 2) * parts).sum(0, keepdim=True)

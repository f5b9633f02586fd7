"""Edits: the edit detector's input from a tile, its plain enlargement and its drift, and its logits for each patch."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.dinov2 import Dinov2
from ..networks.dinov2_weights import PATCH_PX
from ..networks.edit_detector import EditDetector
from ..tiling.padding import pad_symmetric
from ..tiling.resample import TileOperators
from .features import normalised

WINDOW: Final = 20
"""Patches a side that DINOv2 sees at once at the result's scale; larger results are looked at piece by piece."""


def detail_logits(
    dino: Dinov2, detector: EditDetector, made: Tensor, plain: Tensor, source: Tensor, operators: TileOperators,
    over: Tensor, weight: Tensor,
) -> tuple[Tensor, tuple[int, int]]:
    """Logits of the edit detector for the part of a tile that its source pixels cover.

    Differentiable with respect to `made`.

    Args:
        dino, detector: the feature network and its detector.
        made: (1, 3, h, w) in [0, 1], the tile.
        plain, source: the plainly enlarged and the whole source.
        operators: the tile's.
        over, weight: (1, gh, gw), weighted drift above the floor, and confidence.

    Returns:
        (1, rh, rw), one for each 14 px of the result, and the (height, width) in pixels that they judge.
    """
    rows, cols = operators.rows.covered, operators.cols.covered
    residual = operators.up(operators.crop(source).to(made) - operators.down(made))[..., rows, cols]
    y, x = operators.rows.start, operators.cols.start
    reference = plain[..., y + rows.start : y + rows.stop, x + cols.start : x + cols.stop].to(made)
    size = (residual.shape[-2], residual.shape[-1])
    below, right = -size[0] % PATCH_PX, -size[1] % PATCH_PX
    given = pad_symmetric(made[..., rows, cols], below, right)
    reference, residual = (pad_symmetric(image, below, right) for image in (reference, residual))
    grid = (given.shape[-2] // PATCH_PX, given.shape[-1] // PATCH_PX)
    drift, trust = (F.interpolate(v[:, None], size=grid, mode="bilinear")[:, 0] for v in (over, weight))
    tokens = tokens_at(dino, torch.cat([given, reference]), detector.shape.layers) if detector.shape.tokens else None
    one, two = (None, None) if tokens is None else tokens.split(1)
    coarse = seen_channels(drift, trust, residual)
    return detector(pixel_channels(given, reference, residual), one, two, coarse), size


def pixel_channels(made: Tensor, plain: Tensor, residual: Tensor) -> Tensor:
    """The detector's input from the pixels, (B, PIXELS, H, W): luma, and what was added in luma and in colour.

    Args:
        made, plain: result and plain enlargement, (B, 3, H, W) in [0, 1].
        residual: what consistency would still add to the result, (B, 3, H, W).
    """
    luma = made.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    added = made - plain
    grey, more, wrong = ((x * luma).sum(1, keepdim=True) for x in (made, added, residual))
    colour = (added - more).abs().mean(1, keepdim=True)
    return torch.cat([2 * grey - 1, 8 * more, 8 * wrong, 8 * colour], 1)


def seen_channels(drift: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """The detector's input from the source's scale, on the result's patch grid: (B, SEEN, gh, gw).

    Args:
        drift: weighted patch drift above the floor, (B, gh, gw).
        weight: confidence of each patch, (B, gh, gw).
        residual: as for `pixel_channels`, (B, 3, 14 gh, 14 gw).
    """
    error = residual.abs().mean(1, keepdim=True)
    mean, most = F.avg_pool2d(error, PATCH_PX), F.max_pool2d(F.avg_pool2d(error, 3, 1, 1), PATCH_PX)
    return torch.cat([(drift[:, None] + 1e-4).log() / 4, weight[:, None], (mean + 1e-4).log(), (most + 1e-4).log()], 1)


def tokens_at(dino: Dinov2, image: Tensor, layers: tuple[int, ...], *, window: int = WINDOW) -> Tensor:
    """Tokens of `image`, (B, 3, 14 gh, 14 gw) in [0, 1], at its own scale: (B, layers * D, gh, gw), float32.

    Larger pictures than `window` patches a side are seen in equal windows that overlap where they must.
    """
    rows, cols = image.shape[-2] // PATCH_PX, image.shape[-1] // PATCH_PX
    out: Tensor | None = None
    for top, height in _windows(rows, window):
        for left, width in _windows(cols, window):
            part = image[..., top * PATCH_PX : (top + height) * PATCH_PX, left * PATCH_PX : (left + width) * PATCH_PX]
            given = normalised(dino, part.to(dino.positions.device), (height, width))
            tokens = torch.cat(dino.layer_tokens(given, layers), 1).float().to(image.device)
            if (height, width) == (rows, cols):
                return tokens
            if out is None:
                out = tokens.new_zeros(*tokens.shape[:2], rows, cols)
            out = _set(out, tokens, top, left)
    assert out is not None, "a picture has at least one window"
    return out


def _set(whole: Tensor, part: Tensor, top: int, left: int) -> Tensor:
    """`whole` with `part` in place; differentiable with respect to both."""
    height, width = part.shape[-2:]
    below, right = whole.shape[-2] - top - height, whole.shape[-1] - left - width
    frame = (left, right, top, below)
    inside = F.pad(torch.ones_like(part[:, :1]), frame)
    return whole * (1 - inside) + F.pad(part, frame)


def _windows(count: int, window: int) -> list[tuple[int, int]]:
    """Starts and lengths of equal windows that cover `count` patches."""
    if count <= window:
        return [(0, count)]
    pieces = -(-count // window)
    return [(round(i * (count - window) / (pieces - 1)), window) for i in range(pieces)]

"""Pictures continued past their edges by mirroring, named as in numpy's `pad`."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_symmetric(image: Tensor, below: int, right: int) -> Tensor:
    """Mirror (B, C, H, W) at its bottom and right edge, the edge pixel repeated, as often as it takes."""
    if below == right == 0:
        return image
    rows, cols = (_symmetric(side, more, image) for side, more in zip(image.shape[-2:], (below, right), strict=True))
    return image[..., rows, :][..., cols]


def pad_reflect(image: Tensor, margin: int) -> Tensor:
    """Mirror (B, C, H, W) on all four sides by `margin`, the edge pixel not repeated, as often as it takes."""
    rows, cols = (reflected(slice(-margin, side + margin), side).to(image.device) for side in image.shape[-2:])
    return image[..., rows, :][..., cols]


def reflected(span: slice, side: int) -> Tensor:
    """Places in a picture of `side` pixels that are seen at `span`, mirrored where it reaches beyond the edges."""
    place = torch.arange(span.start, span.stop) % max(1, 2 * side - 2)
    return torch.where(place < side, place, 2 * side - 2 - place)


def picked(image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Those rows and columns of (B, C, H, W), in that order; what lies beside them is not touched."""
    top, left = int(rows.min()), int(cols.min())
    near = image[..., top : int(rows.max()) + 1, left : int(cols.max()) + 1]
    return near[..., rows - top, :][..., cols - left]


def _symmetric(side: int, more: int, like: Tensor) -> Tensor:
    place = torch.arange(side + more, device=like.device) % (2 * side)
    return torch.minimum(place, 2 * side - 1 - place)

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
    rows, cols = (_reflect(side, margin, image) for side in image.shape[-2:])
    return image[..., rows, :][..., cols]


def _symmetric(side: int, more: int, like: Tensor) -> Tensor:
    place = torch.arange(side + more, device=like.device) % (2 * side)
    return torch.minimum(place, 2 * side - 1 - place)


def _reflect(side: int, margin: int, like: Tensor) -> Tensor:
    place = torch.arange(-margin, side + margin, device=like.device) % max(1, 2 * side - 2)
    return torch.where(place < side, place, 2 * side - 2 - place)

"""Pictures continued past their edges."""

from __future__ import annotations

import torch
from torch import Tensor


def mirrored(x: Tensor, below: int, right: int) -> Tensor:
    """`x` continued by its own mirror image, as often as it takes for small pictures."""
    rows, cols = (_mirror(side, side + more, x.device) for side, more in zip(x.shape[-2:], (below, right), strict=True))
    return x if below == right == 0 else x[..., rows, :][..., cols]


def _mirror(side: int, padded: int, device: torch.device) -> Tensor:
    index = torch.arange(padded, device=device) % (2 * side)
    return torch.minimum(index, 2 * side - 1 - index)


def surrounded(image: Tensor, margin: int) -> Tensor:
    """`image` continued on all four sides by its own mirror image."""
    rows, cols = (_mirror_around(side, margin).to(image.device) for side in image.shape[-2:])
    return image[..., rows, :][..., cols]


def _mirror_around(side: int, margin: int) -> Tensor:
    place = torch.arange(-margin, side + margin) % max(1, 2 * side - 2)
    return torch.where(place < side, place, 2 * side - 2 - place)

"""Alignment: a motion refined place by place, to a fraction of a pixel.

Gradient steps after Lucas and Kanade (1981) on pictures whose local mean and contrast are taken out, so that another
exposure does not matter; coarse to fine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tiling.resample import magnified, resize
from .motion import Motion

LEVELS: Final = (4, 2, 1)
"""Source pixels to one of each level."""

STEPS: Final = 8
LEAST_LEVEL_PX: Final = 16
MOST_LEVEL_PX: Final = 2**22
"""Pixels of a level: smaller ones hold too little, larger ones cost more than they give."""

WINDOW_PX: Final = 3.0
"""Standard deviation of the window that shares one step."""

EVEN_PX: Final = 5.0
"""Standard deviation of what local mean and contrast are taken over."""

CONTRAST: Final = 0.02
"""Contrast, in [0, 1], that is too low to be evened out fully."""

STIFFNESS: Final = 0.02
"""Gradient energy below which a place stays where the motion puts it."""


@dataclass(frozen=True)
class Alignment:
    """Where the places of a source are in a reference.

    Attributes:
        motion: roughly.
        offset: (1, 2, h, w), x and y in pixels of the reference to add at the source's pixels; they may be coarser.
        source_size: (height, width) of the source, pixels.
    """

    motion: Motion
    offset: Tensor
    source_size: tuple[int, int]

    def places(self, size: tuple[int, int], rows: slice, cols: slice) -> Tensor:
        """Places in the reference, (1, h, w, 2), of the pixels `rows` x `cols` of the source enlarged to `size`."""
        y, x = (torch.arange(span.start, span.stop) for span in (rows, cols))
        scale_y, scale_x = (small / large for small, large in zip(self.source_size, size, strict=True))
        at_y, at_x = torch.meshgrid((y + 0.5) * scale_y, (x + 0.5) * scale_x, indexing="ij")
        offset = magnified(self.offset, size, y, x)
        places: Tensor = self.motion(torch.stack([at_x, at_y], -1)[None].to(offset)) + offset.movedim(1, -1)
        return places


def align(source: Tensor, reference: Tensor, motion: Motion) -> Alignment:
    """Refine where `source` is in `reference`, both (1, 3, H, W) in [0, 1]."""
    size = (source.shape[-2], source.shape[-1])
    offset = torch.zeros(1, 2, 1, 1)
    for level in LEVELS:
        small = (round(size[0] / level), round(size[1] / level))
        fits = math.prod(small) <= MOST_LEVEL_PX and min(small) >= LEAST_LEVEL_PX
        if fits or (level == LEVELS[-1] and offset.numel() == 2):
            offset = _level(source, reference, Alignment(motion, offset, size), small)
    return Alignment(motion, offset, size)


def _level(source: Tensor, reference: Tensor, before: Alignment, size: tuple[int, int]) -> Tensor:
    """The offset at one level."""
    motion = before.motion
    shown = _even(resize(source.mean(1, keepdim=True), size))
    cell = torch.tensor([before.source_size[1] / size[1], before.source_size[0] / size[0]])
    # As many pixels to the thing as at this level, or sampling it would alias.
    shrink = min(1.0, 1 / (motion.scale * float(cell.mean())))
    small = resize(reference.mean(1, keepdim=True), scaled(reference, shrink))
    whole = (slice(0, size[0]), slice(0, size[1]))
    start = before.places(size, *whole)
    step_to = motion.matrix * cell
    moved = torch.zeros_like(shown).expand(-1, 2, -1, -1)
    for _ in range(STEPS):
        places = start + (moved.movedim(1, -1) @ step_to.T)
        found = _even(sampled(small, places, _size(reference)))
        moved = moved + _step(shown, found)
        moved = blurred(moved, WINDOW_PX / 2)
    known = magnified(before.offset, size, torch.arange(size[0]), torch.arange(size[1]))
    return known + (moved.movedim(1, -1) @ step_to.T).movedim(-1, 1)


def _step(wanted: Tensor, found: Tensor) -> Tensor:
    """(1, 2, h, w): how far on to look, in pixels, for `found` to become `wanted`; at most one."""
    padded = F.pad(found, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    missing = wanted - found
    products = torch.cat([across * across, across * down, down * down, across * missing, down * missing], 1)
    xx, xy, yy, bx, by = blurred(products, WINDOW_PX).split(1, 1)
    xx, yy = xx + STIFFNESS, yy + STIFFNESS
    determinant = (xx * yy - xy * xy).clamp(min=1e-9)
    step: Tensor = (torch.cat([yy * bx - xy * by, xx * by - xy * bx], 1) / determinant).clamp(-1, 1)
    return step


def _even(image: Tensor) -> Tensor:
    """`image`, (1, 1, h, w), without its local mean and contrast."""
    away = image - blurred(image, EVEN_PX)
    return away / (blurred(away.square(), EVEN_PX).sqrt() + CONTRAST)


def blurred(image: Tensor, sigma: float) -> Tensor:
    """`image`, (B, C, h, w), after a Gaussian; what lies beyond the edge does not count."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2).to(image)
    flat = image.flatten(0, 1)[:, None]
    ones = torch.ones_like(flat[:1])
    for shape, padding in (((1, 1, 1, -1), (0, reach)), ((1, 1, -1, 1), (reach, 0))):
        flat, ones = (F.conv2d(x, kernel.view(shape), padding=padding) for x in (flat, ones))
    return (flat / ones).view_as(image)


def sampled(image: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """`image`, (1, C, H, W), at `places`, (1, h, w, 2), that are meant for a picture of (height, width) `size`."""
    span = torch.tensor([size[1], size[0]]).to(places)
    out: Tensor = F.grid_sample(
        image, 2 * places / span - 1, mode="bicubic", padding_mode="border", align_corners=False
    )
    return out


def scaled(image: Tensor, factor: float) -> tuple[int, int]:
    """(height, width) of `image` times `factor`, at least a pixel."""
    return max(1, round(image.shape[-2] * factor)), max(1, round(image.shape[-1] * factor))


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]

"""Several pictures beside each other, each under its label, at 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import ImageError
from ..pictures.picture import Picture, picture_from_pil
from .labels import lines_mask, wrapped

MAX_WIDTH_PX: Final = 2112
_MAX_CELL_PX: Final = 1044  # two such cells fill the width
_LEAST_CELL_PX: Final = 200  # what a label needs
_GAP_PX: Final = 8
_BACKGROUND: Final = (255, 255, 255)
_CHECKS: Final = (204, 238)  # greys behind transparent pixels


def side_by_side(pictures: Sequence[tuple[str, Picture]]) -> Picture:
    """One picture that shows each of `pictures`, equally large, under its label.

    Nothing is enlarged or made smaller. All stand in one row if that is at most `MAX_WIDTH_PX` wide, else in
    two columns; where they are too large even for that, the part with the most detail in the last picture is
    cut out of each, the same part everywhere.

    Raises:
        ValueError: there are no pictures.
        ImageError: their sizes differ.
    """
    if not pictures:
        raise ValueError("side_by_side needs at least one picture; got none")
    sizes = [picture.size for _, picture in pictures]
    if len(set(sizes)) > 1:
        came = ", ".join(f"{width}x{height}" for height, width in sizes)
        raise ImageError(f"Pictures to compare must be of one size in pixels: got {came}.")
    columns, rows, cols = _layout(pictures)
    shown = [(label, seen(picture, rows, cols)) for label, picture in pictures]
    first = pictures[0][1]
    sheet = picture_from_pil(_sheet(shown, columns, grey=all(picture.grey for _, picture in pictures)))
    return Picture(sheet.pixels, grey=sheet.grey, icc_profile=first.icc_profile)


def most_detailed(picture: Picture, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the part of `size` (height, width) in which neighbouring pixels differ most.

    Found on a coarse grid, so that a picture of any size takes no noticeable time.
    """
    height, width = (min(part, whole) for part, whole in zip(size, picture.size, strict=True))
    grey = picture.pixels.mean(1, keepdim=True)
    change = F.pad(grey.diff(dim=2).abs(), (0, 0, 0, 1)) + F.pad(grey.diff(dim=3).abs(), (0, 1))
    cell = max(1, min(height, width) // 32)
    coarse = F.avg_pool2d(change, cell, ceil_mode=True)
    window = min(height // cell, coarse.shape[2]), min(width // cell, coarse.shape[3])
    energy = F.avg_pool2d(coarse, window, stride=1)[0, 0]
    row, col = divmod(int(energy.argmax()), energy.shape[1])
    top, left = min(row * cell, picture.size[0] - height), min(col * cell, picture.size[1] - width)
    return slice(top, top + height), slice(left, left + width)


def _layout(pictures: Sequence[tuple[str, Picture]]) -> tuple[int, slice, slice]:
    """Number of columns, and the rows and columns of each picture that are shown."""
    count, last = len(pictures), pictures[-1][1]
    height, width = last.size
    cell = max(width, _LEAST_CELL_PX)
    in_a_row = count * cell + (count + 1) * _GAP_PX <= MAX_WIDTH_PX
    rows, cols = most_detailed(last, (min(height, _MAX_CELL_PX), min(width, _MAX_CELL_PX)))
    return (count if in_a_row else min(2, count)), rows, cols


def seen_whole(picture: Picture, *, most_px: int) -> Image.Image:
    """The whole of a picture as `seen`, RGB, its longer side at most `most_px` pixels."""
    height, width = picture.size
    image = seen(picture, slice(0, height), slice(0, width)).convert("RGB")
    if max(image.size) > most_px:
        image.thumbnail((most_px, most_px), Image.Resampling.BOX)
    return image


def seen(picture: Picture, rows: slice, cols: slice) -> Image.Image:
    """A part of a picture as PIL shows it, with a chequerboard behind what is transparent."""
    pixels = picture.pixels[..., rows, cols]
    if picture.alpha is not None:
        alpha = picture.alpha[..., rows, cols]
        pixels = pixels * alpha + _checks(alpha.shape[2], alpha.shape[3]).to(pixels) * (1 - alpha)
    return Picture(pixels).to_pil()


def _checks(height: int, width: int) -> torch.Tensor:
    odd = (torch.arange(height).div(8).long()[:, None] + torch.arange(width).div(8).long()) % 2
    return torch.tensor(_CHECKS)[odd] / 255


def _sheet(shown: Sequence[tuple[str, Image.Image]], columns: int, *, grey: bool) -> Image.Image:
    width, height = shown[0][1].size
    cell_width = max(width, _LEAST_CELL_PX)
    px = max(16, min(28, cell_width // 24))
    labels = [lines_mask(wrapped(label, px, cell_width) or [""], px) for label, _ in shown]
    label_height = max(mask.height for mask in labels)
    step_x, step_y = cell_width + _GAP_PX, height + label_height + 2 * _GAP_PX
    lines = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * step_x + _GAP_PX, lines * step_y + _GAP_PX), _BACKGROUND)
    for index, (mask, (_, image)) in enumerate(zip(labels, shown, strict=True)):
        x, y = _GAP_PX + index % columns * step_x, _GAP_PX + index // columns * step_y
        sheet.paste((0, 0, 0), (x, y), mask)
        sheet.paste(image, (x, y + label_height + _GAP_PX))
    return sheet.convert("L") if grey else sheet

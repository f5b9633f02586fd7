"""One pair of resize operators, for whole pictures and for a tile alone.

D makes a picture small, U makes it large again: bicubic (a = -0.5) with antialiasing, as in Pillow and in
`torch.nn.functional.interpolate(antialias=True)`. Consistency with the source only means something when the
operators are the very ones that made the enlarged source, so all of the product takes them from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import arrays

COLUMNS_PX = 1024
"""Columns that are resized at once: in a file a page holds so many pixels of a row."""


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image`, (B, C, H, W), at (height, width) `size` by antialiased bicubic; may overshoot its range."""
    if tuple(image.shape[-2:]) == size:
        return image
    if _in_pieces(image, size):
        return _resized_in_pieces(image, size)
    height, width = size
    # torch mixes up the rows of pictures one pixel wide, before or after: keep it from seeing any.
    if width == 1 and image.shape[-1] > 1:
        to_one, _ = _weights(image.shape[-1], 1, slice(0, 1), slice(0, image.shape[-1]))
        image = image @ to_one.to(image).T
    if image.shape[-1] == 1:
        image = image.repeat(1, 1, 1, 2)
    size = (height, max(width, 2))
    return _interpolated(image.float(), size)[..., :width].to(image.dtype)


def _in_pieces(image: Tensor, size: tuple[int, int]) -> bool:
    alone = image.shape[0] == 1 and image.device.type == "cpu" and not image.requires_grad
    large = arrays.is_large(*image.shape) or arrays.is_large(*image.shape[:2], *size)
    return alone and large and min(*image.shape[-2:], *size) > 1


def _resized_in_pieces(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize` of a picture of any size in little memory, with the same bits.

    torch, too, resizes across first and then down. So rows can go one band after the other, then columns.
    """
    (height, width), (_, channels, h, _) = size, image.shape
    wide = image
    if image.shape[-1] != width:
        wide = arrays.zeros((1, channels, h, width))
        for rows in arrays.bands(wide if wide.numel() > image.numel() else image):
            wide[..., rows, :] = _interpolated(image[..., rows, :].float(), (rows.stop - rows.start, width))
    out = arrays.zeros((1, channels, height, width), image.dtype)
    for channel in range(channels):
        for cols in _columns(width):
            # Copied in and out band by band: a column lies in every page of a file.
            part = torch.empty(1, 1, h, cols.stop - cols.start)
            for rows in arrays.bands(wide):
                part[..., rows, :] = wide[:, channel : channel + 1, rows, cols]
            part = _interpolated(part, (height, cols.stop - cols.start))
            for rows in arrays.bands(out):
                out[:, channel : channel + 1, rows, cols] = part[..., rows, :]
    return out


def _columns(width: int) -> list[slice]:
    """Spans of columns, none of one pixel unless `width` is one; see `resize`."""
    count = max(1, width // COLUMNS_PX)
    return [slice(i * width // count, (i + 1) * width // count) for i in range(count)]


def _interpolated(image: Tensor, size: tuple[int, int]) -> Tensor:
    out: Tensor = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    return out


def magnified(image: Tensor, size: tuple[int, int], rows: Tensor, cols: Tensor) -> Tensor:
    """Some rows and columns of `image`, (B, C, h, w), enlarged to (height, width) `size` by bilinear interpolation."""
    for dim, places, large in ((-2, rows, size[0]), (-1, cols, size[1])):
        side = image.shape[dim]
        at = ((places.double() + 0.5) * side / large - 0.5).clamp(min=0)
        low = at.long()
        high, share = (low + 1).clamp(max=side - 1), (at - low).to(image)
        first = int(low.min())
        near = image.narrow(dim, first, int(high.max()) + 1 - first)
        share = share.view(-1, 1) if dim == -2 else share
        image = torch.lerp(near.index_select(dim, low - first), near.index_select(dim, high - first), share)
    return image


@dataclass(frozen=True)
class AxisOperators:
    """D and U along one axis, cut down to what a tile can know.

    Attributes:
        first: index of the first source pixel that the tile determines.
        down: (m, n), n tile pixels to the m source pixels whose whole support lies in the tile.
        up: (n, m), back; near an inner border it fades out, as source pixels beyond it are unknown.
        start: index of the tile's first pixel in the result.
        covered: the tile's pixels that show the source pixels it determines.
    """

    first: int
    down: Tensor
    up: Tensor
    start: int
    covered: slice

    @property
    def span(self) -> slice:
        """The source pixels that the tile determines."""
        return slice(self.first, self.first + self.down.shape[0])


@dataclass(frozen=True)
class TileOperators:
    """D and U for one tile: exactly the whole picture's operators, restricted to the tile.

    Attributes:
        rows, cols: the operators along height and width.
    """

    rows: AxisOperators
    cols: AxisOperators

    @property
    def covers_source(self) -> bool:
        """True when the tile determines any pixel of the source."""
        return self.rows.down.shape[0] > 0 and self.cols.down.shape[0] > 0

    def down(self, tile: Tensor) -> Tensor:
        """(B, C, h, w) in the result's pixels to (B, C, m, n) in the source's; differentiable."""
        return self.rows.down.to(tile) @ tile @ self.cols.down.to(tile).T

    def up(self, source: Tensor) -> Tensor:
        """(B, C, m, n) in the source's pixels to (B, C, h, w) in the result's."""
        return self.rows.up.to(source) @ source @ self.cols.up.to(source).T

    def crop(self, source: Tensor) -> Tensor:
        """The part of the whole source, (B, C, H, W), that `down` of the tile is to be compared with."""
        return source[..., self.rows.span, self.cols.span]


def tile_operators(
    source_size: tuple[int, int], target_size: tuple[int, int], rows: slice, cols: slice
) -> TileOperators:
    """Operators between a source and the box `rows` x `cols` of its enlargement.

    Args:
        source_size, target_size: (height, width), pixels.
        rows, cols: half-open box in the result; what lies beyond `target_size` (padding) is ignored.
    """
    return TileOperators(
        _axis_operators(source_size[0], target_size[0], rows), _axis_operators(source_size[1], target_size[1], cols)
    )


def _axis_operators(source: int, target: int, box: slice) -> AxisOperators:
    start, stop = box.start, min(box.stop, target)
    low = max(0, start * source // target - 3)
    high = min(source, -(-stop * source // target) + 3)
    down, seen = _weights(target, source, slice(low, high), slice(start, stop))
    # A row that loses weight outside the tile would compare the source with something it is not.
    whole = torch.nonzero(seen > 1 - 1e-9).flatten()
    if len(whole) == 0:
        empty = torch.zeros(0, box.stop - start)
        return AxisOperators(low, empty, empty.T, start, slice(0, 0))
    first = low + int(whole[0])
    down = down[whole]
    up, _ = _weights(source, target, slice(start, stop), slice(first, first + len(whole)))
    padding = box.stop - stop
    covered = slice(
        max(0, -(-first * target // source) - start),
        min(stop, (first + len(whole)) * target // source) - start,
    )
    return AxisOperators(
        first, F.pad(down, (0, padding)).float(), F.pad(up, (0, 0, 0, padding)).float(), start, covered
    )


def _weights(n_in: int, n_out: int, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
    """Rows `rows` of the n_in -> n_out resize, columns `cols`; and how much of each row's weight they hold.

    The formula is Pillow's `precompute_coeffs`, which torch follows: each row sums to one.
    """
    if n_in == n_out:
        offset = torch.arange(rows.start, rows.stop)[:, None] - torch.arange(cols.start, cols.stop)[None, :]
        block = (offset == 0).double()
        return block, block.sum(1)
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    centre = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * scale
    support = 2.0 * stretch
    low = max(0, int(centre[0] - support) - 1)
    high = min(n_in, int(centre[-1] + support) + 2)
    pixel = torch.arange(low, high, dtype=torch.float64)
    first = (centre - support + 0.5).trunc().clamp(min=0)[:, None]
    last = (centre + support + 0.5).trunc().clamp(max=n_in)[:, None]
    weight = _cubic((pixel[None, :] - centre[:, None] + 0.5) / stretch)
    weight = torch.where((pixel >= first) & (pixel < last), weight, 0.0)
    weight = weight / weight.sum(1, keepdim=True)
    block = torch.zeros(len(centre), cols.stop - cols.start, dtype=torch.float64)
    a, b = max(low, cols.start), min(high, cols.stop)
    if a < b:
        block[:, a - cols.start : b - cols.start] = weight[:, a - low : b - low]
    # Absolute weights: a missing tap of either sign makes the row incomplete.
    return block, block.abs().sum(1) / weight.abs().sum(1)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel (1981)."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))

"""Windows: a large picture looked at piece by piece, each with what surrounds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """One piece.

    Attributes:
        rows, cols: what it is responsible for; all pieces together are the picture.
        seen_rows, seen_cols: the same with a margin, as far as the picture goes.
        inner_rows, inner_cols: where the first lie in the second.
    """

    rows: slice
    cols: slice
    seen_rows: slice
    seen_cols: slice
    inner_rows: slice
    inner_cols: slice


def windows(size: tuple[int, int], *, side: int, margin: int) -> Iterator[Window]:
    """Windows of at most `side` pixels, in reading order, over a picture of (height, width) `size`."""
    for rows, seen_rows, inner_rows in _spans(size[0], side, margin):
        for cols, seen_cols, inner_cols in _spans(size[1], side, margin):
            yield Window(rows, cols, seen_rows, seen_cols, inner_rows, inner_cols)


def _spans(length: int, side: int, margin: int) -> list[tuple[slice, slice, slice]]:
    spans = []
    for start in range(0, length, side):
        stop = min(start + side, length)
        first = max(0, start - margin)
        spans.append((slice(start, stop), slice(first, min(stop + margin, length)), slice(start - first, stop - first)))
    return spans

"""Lending: the detail of matched references, where made small they are the source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import arrays
from ..tiling.chunks import windows
from ..tiling.resample import magnified, resize, tile_operators
from .alignment import Alignment, align, blurred, sampled, scaled
from .matching import Features, Matcher
from .motion import Motion

LEAST_SHARPER: Final = 1.25
"""Pixels of a reference to one of the source from which on it can know more."""

NOISE: Final = 4 / 255
"""Differences that are never held against a reference."""

AGREES, DIFFERS = 0.06, 0.2
"""Share of the source's local variance that a reference, made small, misses: up to the first it lends all its detail,
from the second on none (docs/constants.md)."""

LEAST_AGREEING: Final = 0.1
"""Share of what both pictures show that must agree: less is chance, and the motion wrong."""

MISS_PX, SPREAD_PX = 1.0, 2.5
"""Standard deviations, in source pixels, of what is missed and of local variance."""

BORDER_PX: Final = 2.0
"""Width of what is blended where two references meet, source pixels."""

WINDOW_PX: Final = 1024
MARGIN_PX: Final = 6
"""Source pixels around a box that its detail depends on."""


@dataclass(frozen=True)
class Loan:
    """One aligned reference.

    Attributes:
        number: of the reference, from 0.
        image: (1, 3, H, W) in [0, 1], no larger than the result needs it, its colours made the source's.
        size: (height, width) of the reference as given, in whose pixels `alignment` counts.
        alignment: where the source is in it.
        share: (1, 1, *source size) in [0, 1], how much of its detail it lends.
    """

    number: int
    image: Tensor
    size: tuple[int, int]
    alignment: Alignment
    share: Tensor

    @property
    def motion(self) -> Motion:
        """Roughly, where the source is in it."""
        return self.alignment.motion


class Loans:
    """What references lend to one picture.

    Args:
        loans: where they overlap, the one with the larger share lends.
        count: references, those included that lend nothing.
    """

    def __init__(
        self, loans: Sequence[Loan], count: int, source_size: tuple[int, int], target_size: tuple[int, int]
    ) -> None:
        self._loans, self._count = _settled(loans), count
        self._source_size, self._target_size = source_size, target_size
        self._margin = margin_px(source_size, target_size)

    def by_reference(self) -> list[list[Loan]]:
        """The loans of each reference, in their order."""
        return [[loan for loan in self._loans if loan.number == number] for number in range(self._count)]

    def in_box(self, rows: slice, cols: slice) -> tuple[float, ...]:
        """Share of a box of the result that each reference lends detail to, 0 to 1, in their order."""
        scales = [small / large for small, large in zip(self._source_size, self._target_size, strict=True)]
        spans = [
            slice(math.floor(span.start * scale), max(math.floor(span.start * scale) + 1, math.ceil(span.stop * scale)))
            for span, scale in zip((rows, cols), scales, strict=True)
        ]
        return tuple(
            sum(float(loan.share[..., spans[0], spans[1]].mean()) for loan in loans) for loans in self.by_reference()
        )

    def lend(self, image: Tensor, strength: float) -> Tensor:
        """`image`, (1, 3, *target size) in [0, 1], with its unseen detail drawn to what is lent, by `strength`."""
        if not self._loans:
            return image
        out = arrays.copied(image)
        for window in windows(self._target_size, side=WINDOW_PX, margin=self._margin):
            detail, weight = self.detail(window.rows, window.cols)
            seen = image[..., window.seen_rows, window.seen_cols].float()
            own = self._unseen(seen, window.seen_rows, window.seen_cols)[..., window.inner_rows, window.inner_cols]
            place = (..., window.rows, window.cols)
            out[place] = (image[place] + strength * (detail - weight * own)).clamp(0, 1)
            arrays.release()
        return out

    def _unseen(self, image: Tensor, rows: slice, cols: slice) -> Tensor:
        operators = tile_operators(self._source_size, self._target_size, rows, cols)
        return image - operators.up(operators.down(image))

    def detail(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        """The detail that downscaling cannot see in a box of the result, and how much it counts, 0 to 1.

        Returns:
            (1, 3, h, w) and (1, 1, h, w); the first is already weighted where references overlap.
        """
        wide = [
            slice(max(0, span.start - self._margin), min(side, span.stop + self._margin))
            for span, side in zip((rows, cols), self._target_size, strict=True)
        ]
        inner = (
            ...,
            slice(rows.start - wide[0].start, rows.stop - wide[0].start),
            slice(cols.start - wide[1].start, cols.stop - wide[1].start),
        )
        total = torch.zeros(1, 3, rows.stop - rows.start, cols.stop - cols.start)
        count = total[:, :1].clone()
        at = torch.arange(rows.start, rows.stop), torch.arange(cols.start, cols.stop)
        for loan in self._loans:
            weight = magnified(loan.share, self._target_size, *at)
            if not weight.any():
                continue
            shown = warped(loan, self._target_size, wide[0], wide[1])
            total += weight * self._unseen(shown, wide[0], wide[1])[inner]
            count += weight
        return total, count.clamp(max=1)


def borrow(
    source: Tensor, references: Sequence[Tensor], target_size: tuple[int, int], features: Features
) -> Loans:
    """Find out what `references`, (1, 3, H, W) in [0, 1] each, can lend to `source` enlarged to `target_size`."""
    source_size = (source.shape[-2], source.shape[-1])
    matcher, loans = Matcher(source, features), []
    factor = math.sqrt(math.prod(target_size) / math.prod(source_size))
    for number, reference in enumerate(references):
        for motion in matcher.motions(reference):
            if motion.scale < LEAST_SHARPER:
                continue
            alignment = align(source, reference, motion)
            small = resize(reference, scaled(reference, min(1.0, factor / motion.scale)))
            loan = Loan(number, small, (reference.shape[-2], reference.shape[-1]), alignment, torch.zeros(1))
            loan = _agreed(loan, source, target_size)
            if loan.share.any():
                loans.append(loan)
    return Loans(loans, len(references), source_size, target_size)


def warped(loan: Loan, size: tuple[int, int], rows: slice, cols: slice) -> Tensor:
    """The reference as it looks at `rows` x `cols` of the result, (1, 3, h, w)."""
    return sampled(loan.image, loan.alignment.places(size, rows, cols), loan.size)


def _agreed(loan: Loan, source: Tensor, target_size: tuple[int, int]) -> Loan:
    """The loan with colours of the source, and its share."""
    source_size = (source.shape[-2], source.shape[-1])
    shown = arrays.zeros(source.shape)
    for window in windows(target_size, side=WINDOW_PX, margin=margin_px(source_size, target_size)):
        operators = tile_operators(source_size, target_size, window.seen_rows, window.seen_cols)
        if not operators.covers_source:
            continue
        part = operators.down(warped(loan, target_size, window.seen_rows, window.seen_cols))
        shown[..., operators.rows.span, operators.cols.span] = part
    places = loan.alignment.places(source_size, slice(0, source_size[0]), slice(0, source_size[1]))
    span = torch.tensor([loan.size[1], loan.size[0]]).to(places)
    inside = ((places > 1) & (places < span - 1)).all(-1)[None].float()
    colour = torch.tensor([[1.0, 0.0]] * 3)
    share = inside
    for _ in range(3):
        colour = _colours(shown, source, share)
        share = inside * _agreement(_coloured(shown, colour), source)
    if share.sum() < LEAST_AGREEING * inside.sum():
        share = torch.zeros_like(share)
    return replace(loan, image=_coloured(loan.image, colour), share=share)


def margin_px(source_size: tuple[int, int], target_size: tuple[int, int]) -> int:
    """Pixels of the result around a box that the box's detail depends on."""
    return math.ceil(MARGIN_PX * max(t / s for t, s in zip(target_size, source_size, strict=True)))


def _colours(shown: Tensor, source: Tensor, weight: Tensor) -> Tensor:
    """(3, 2): factor and constant of each channel that make `shown` the source by least squares."""
    total = weight.sum().clamp(min=1e-6)
    mean_a, mean_b = ((weight * x).sum((0, 2, 3)) / total for x in (shown, source))
    a, b = shown - mean_a.view(1, 3, 1, 1), source - mean_b.view(1, 3, 1, 1)
    variance = (weight * a * a).sum((0, 2, 3)) / total + 1e-6
    factor = ((weight * a * b).sum((0, 2, 3)) / total / variance).clamp(0.25, 4)
    return torch.stack([factor, mean_b - factor * mean_a], 1)


def _coloured(image: Tensor, colour: Tensor) -> Tensor:
    factor, constant = (colour[:, i].view(1, 3, 1, 1).to(image) for i in (0, 1))
    return arrays.by_bands(lambda part: factor * part + constant, image)


def _agreement(shown: Tensor, source: Tensor) -> Tensor:
    """(1, 1, h, w) in [0, 1]: how far `shown` is the source, place by place."""
    missed = blurred((shown - source).square().mean(1, keepdim=True), MISS_PX)
    away = source - blurred(source, SPREAD_PX)
    variance = blurred(away.square().mean(1, keepdim=True), SPREAD_PX)
    ratio = missed / (variance + NOISE**2)
    share = ((DIFFERS - ratio) / (DIFFERS - AGREES)).clamp(0, 1)
    # Not beside a place that differs: detail reaches a pixel further than what was compared.
    return blurred(-F.max_pool2d(-share, 3, 1, 1), 1.0)


def _settled(loans: Sequence[Loan]) -> list[Loan]:
    """`loans` with shares that leave each place to one of them, blended where they meet."""
    if len(loans) < 2:
        return list(loans)
    shares = torch.cat([loan.share for loan in loans], 1)
    best = F.one_hot(blurred(shares, BORDER_PX).argmax(1), len(loans)).movedim(-1, 1).float()
    settled = shares * blurred(best, BORDER_PX / 2)
    return [replace(loan, share=share) for loan, share in zip(loans, settled.split(1, 1), strict=True)]

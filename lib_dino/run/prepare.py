"""Prepare a picture: what its result is held to, what its tiles start from, what measures them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import arrays
from ..measure.calibration import load_calibration
from ..measure.drift import DriftMeter
from ..measure.regions import is_flat
from ..networks.cleaner import Cleaner, clean_windowed, embedded_cleaner
from ..networks.dinov2 import Dinov2
from ..references.lending import Loans, borrow
from ..settings import Settings
from ..tiling.plan import Tile
from ..tiling.resample import TileOperators, resize, tile_operators
from .plan import JobPlan

LOGIT_LOW, LOGIT_HIGH = 3.0, 6.0
"""Log odds of damage between which a source goes from left alone to fully cleaned; measured in docs/constants.md."""

NOISE_TO_THRESHOLD: Final = 1.25
"""Threshold of consistency for an uncleaned source, in units of its noise; measured in docs/constants.md."""

PALETTE_COLOURS, PALETTE_GREYS, PALETTE_PIXELS = 256, 16, 16
"""Most colours, or shades of grey, of a picture with a palette, and fewest pixels to a colour; chosen, and checked in
docs/constants.md."""

SEEN_RMS: Final = 1 / 255
"""Removed damage from which on it is spoken of: one step of an 8-bit picture."""

STRIP_PX: Final = 512
"""Rows that the noise is estimated in at once."""

QUIET_SHARE: Final = 0.85
"""Where the quietest twentieth of pure noise's own blocks lies, relative to its mean."""

TEXTURE_RATIO, RATIO_SPAN = 1.8, 0.4
"""Ratio of straight to diagonal detail from which on it is texture, and how far below it is all noise: noise is
alike in all directions."""


def needs_features(
    settings: Settings, *, measures: bool, adapts: bool, finds_subject: bool = False, matches: bool = False
) -> bool:
    """Tell whether a run asks for the feature network.

    Args:
        measures: drift is to be reported.
        adapts: an adapter acts.
        finds_subject: tiles beside the subject get a prompt of their own.
        matches: there are reference pictures.
    """
    checks = settings.repair_tries > 0 or settings.max_drift > 0 or settings.skip_flat
    borrows = matches and settings.borrows
    return settings.guides or checks or measures or adapts or finds_subject or borrows


@dataclass(frozen=True)
class Reference:
    """What a result is held to.

    Attributes:
        image: (1, 3, H, W) in [0, 1]; the source itself where it was clean.
        threshold: differences from it that are let stand, see `consistency.soft_threshold`; 0 for a cleaned source.
        noise: estimated noise of the source as given, in units of the picture's range.
        removed_rms: root mean square of the damage that was removed, in the same units.
    """

    image: Tensor
    threshold: float
    noise: float
    removed_rms: float


@dataclass(frozen=True)
class Mask:
    """Where a picture may change.

    Attributes:
        share: (1, 1, *target size) in [0, 1]; 0 is protected.
        protected: the enlarged source, uncleaned, that stays there, (1, 3, *target size).
    """

    share: Tensor
    protected: Tensor

    def opens(self, tile: Tile) -> bool:
        """Tell whether anything in a tile may change."""
        return bool(self.share[..., tile.rows, tile.cols].any())


@dataclass(frozen=True)
class Prepared:
    """One picture, ready for its tiles.

    Attributes:
        settings: with a seed that is drawn already.
        plan: sizes and tiles.
        source: as given, (1, 3, H, W) in [0, 1].
        reference: what the result is held to.
        plain: the reference plainly enlarged, (1, 3, *target size).
        start: what tiles start from, and what shows where none is sampled, likewise.
        meter: measures drift; None without a feature network.
        mask: where the picture may change; None is everywhere.
        loans: detail that reference pictures lend; None without any.
    """

    settings: Settings
    plan: JobPlan
    source: Tensor
    reference: Reference
    plain: Tensor
    start: Tensor
    meter: DriftMeter | None
    mask: Mask | None = None
    loans: Loans | None = None

    @property
    def target_size(self) -> tuple[int, int]:
        """(height, width) of the result, pixels."""
        return self.plan.target_size

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the result to one of the source, down and across."""
        (height, width), (h, w) = self.target_size, self.plan.source_size
        return height / h, width / w

    @property
    def drift_bound(self) -> float:
        """Largest patch drift above the floor that a tile may have without being redone or blended."""
        if self.settings.max_drift or self.meter is None:
            return self.settings.max_drift
        return self.meter.thresholds.bound

    def operators(self, tile: Tile) -> TileOperators:
        """D and U of a tile."""
        return tile_operators(self.plan.source_size, self.target_size, tile.rows, tile.cols)

    def padded(self, image: Tensor) -> Tensor:
        """`image`, of the target size, extended to the canvas at its bottom and right edge."""
        return extend(image, self.plan.tiles.size)

    def open_tiles(self) -> list[Tile]:
        """Tiles in which the mask lets anything change."""
        return [tile for tile in self.plan.tiles if self.mask is None or self.mask.opens(tile)]


def prepare(
    source: Tensor,
    plan: JobPlan,
    settings: Settings,
    *,
    dino: Dinov2 | None = None,
    enlarged: Tensor | None = None,
    mask: Tensor | None = None,
    references: Sequence[Tensor] = (),
) -> Prepared:
    """Clean a source, (1, 3, H, W) in [0, 1], enlarge it, and measure what plain enlargement costs.

    Args:
        settings: with a seed.
        dino: the feature network, where `needs_features`.
        enlarged: the source enlarged by other means, (1, 3, *target size); None enlarges it plainly.
        mask: where the picture may change, (1, 1, *target size) in [0, 1]; None is everywhere.
        references: sharp pictures of the same thing, (1, 3, H, W) in [0, 1] each.
    """
    reference = make_reference(source, strength=settings.clean_source)
    plain = arrays.by_bands(lambda image: image.clamp(0, 1), resize(reference.image, plan.target_size))
    start = plain if enlarged is None else _cleaned_start(enlarged, source, reference)
    meter = None
    if dino is not None:
        meter = DriftMeter(dino, reference.image, plain=plain, calibration=load_calibration(dino))
    loans = None
    if references and settings.borrows:
        assert meter is not None, "references are matched by features"
        loans = borrow(reference.image, references, plan.target_size, meter.grid)
        start = loans.lend(start, settings.dino_strength)
    return Prepared(settings, plan, source, reference, plain, start, meter, _mask(mask, source, enlarged), loans)


def _mask(share: Tensor | None, source: Tensor, enlarged: Tensor | None) -> Mask | None:
    if share is None:
        return None
    size = (share.shape[-2], share.shape[-1])
    if enlarged is None:
        enlarged = arrays.by_bands(lambda image: image.clamp(0, 1), resize(source, size))
    return Mask(share, enlarged)


def _cleaned_start(enlarged: Tensor, source: Tensor, reference: Reference) -> Tensor:
    """`enlarged`, made from the source as given, without what was removed from that."""
    if reference.image is source:
        return enlarged
    removed = resize(arrays.by_bands(torch.sub, reference.image, source), (enlarged.shape[-2], enlarged.shape[-1]))
    return arrays.by_bands(lambda image, change: (image + change).clamp(0, 1), enlarged, removed)


@torch.no_grad()
def make_reference(source: Tensor, *, strength: float, cleaner: Cleaner | None = None) -> Reference:
    """Clean what a result of `source`, (1, 3, H, W) in [0, 1], is to be held to.

    Consistency makes a result show its source again, damage included. So noise and JPEG damage go first. A source that
    is clean already is left bitwise alone, and so is one with a palette: to a network trained on photographs pixel art
    and dithering are noise.

    Args:
        strength: share of the damage that is removed, 0 to 1; 0 holds to the source itself, noise let stand.
        cleaner: None takes the embedded one.
    """
    noise = estimate_noise(source)
    if strength == 0:
        return Reference(source, NOISE_TO_THRESHOLD * noise, noise, 0.0)
    if has_palette(source):
        return Reference(source, 0.0, noise, 0.0)
    image, log_odds = clean_windowed(cleaner or embedded_cleaner(), source.float())
    # Part of the way where it is not sure, so that sources which hardly differ are treated alike.
    share = strength * min(1.0, max(0.0, (log_odds - LOGIT_LOW) / (LOGIT_HIGH - LOGIT_LOW)))
    if share == 0:
        return Reference(source, 0.0, noise, 0.0)
    removed_rms = share * rms_between(image, source)
    cleaned = arrays.by_bands(lambda given, clean: torch.lerp(given, clean.to(given), share), source, image)
    return Reference(cleaned, 0.0, noise, removed_rms)


def has_palette(source: Tensor) -> bool:
    """Tell whether `source`, (1, 3, H, W) in [0, 1], is made of few colours, each of them many times.

    Noise and JPEG damage make thousands of colours. Grey pictures have 256 at most, so there fewer count as few.
    """
    area = source.shape[-2] * source.shape[-1]
    if area < PALETTE_PIXELS:
        return False
    grey = all(bool((source[:, :1, rows] == source[:, 1:, rows]).all()) for rows in arrays.bands(source))
    most = min(PALETTE_GREYS if grey else PALETTE_COLOURS, area // PALETTE_PIXELS)
    found = torch.empty(0, dtype=torch.long)
    for rows in arrays.bands(source):
        red, green, blue = (source[0, :, rows].float().clamp(0, 1) * 255).round().long().flatten(1)
        colours = (red * 256 + green) * 256 + blue
        # A part settles most pictures.
        for part in (colours[:: max(1, colours.numel() // 2**16)], colours):
            found = torch.cat([found, part]).unique()
            if len(found) > most:
                return False
    return True


def estimate_noise(source: Tensor) -> float:
    """Standard deviation of the noise in `source`, (1, 3, H, W) in [0, 1]; 0 for pictures under 8 px.

    Mean absolute value of the diagonal Haar details (Donoho and Johnstone, 1994), which edges and smooth
    areas hardly touch, taken over the quietest of 16-px blocks so that texture is not counted as noise.
    """
    height, width = (side // 2 * 2 for side in source.shape[-2:])
    if min(height, width) < 8:
        return 0.0
    block = min(8, height // 2, width // 2)
    diagonal, straight = [], []
    # A window is a whole number of blocks.
    for rows in _strips(height, 2 * block):
        found = _haar(source[..., rows, :width].float().mean(1, keepdim=True), block)
        diagonal.append(found[0].flatten())
        straight.append(found[1].flatten())
        if arrays.is_large(*source.shape):
            arrays.release()
    energy, along = torch.cat(diagonal), torch.cat(straight)
    quiet = energy <= torch.quantile(energy[: 2**24], 0.05)
    level = float(energy[quiet].mean()) / QUIET_SHARE
    ratio = float(along[quiet].mean()) / max(level, 1e-9)
    whiteness = min(1.0, max(0.0, (TEXTURE_RATIO - ratio) / RATIO_SPAN))
    # The mean of |n| for normal noise is sqrt(2 / pi) sigma; averaging the three channels is undone by sqrt 3.
    return whiteness * level * float((torch.pi / 2) ** 0.5 * 3**0.5)


def _haar(grey: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Mean absolute diagonal and straight Haar details of (1, 1, H, W) in each block of 2 * `block` px."""
    a, b = grey[..., ::2, ::2], grey[..., ::2, 1::2]
    c, d = grey[..., 1::2, ::2], grey[..., 1::2, 1::2]
    diagonal = (a - b - c + d).abs() / 2
    straight = ((a - b + c - d).abs() + (a + b - c - d).abs()) / 4
    return F.avg_pool2d(diagonal, block), F.avg_pool2d(straight, block)


def _strips(height: int, block: int) -> Iterator[slice]:
    """Spans of rows that hold every whole block of `height` rows."""
    step = block * max(1, STRIP_PX // block)
    for start in range(0, height // block * block, step):
        yield slice(start, min(start + step, height // block * block))


def rms_between(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference of two pictures."""
    if not arrays.is_large(*a.shape):
        return float((a - b).square().mean().sqrt())
    total = sum(float((a[..., rows, :] - b[..., rows, :]).double().square().sum()) for rows in arrays.bands(a))
    return math.sqrt(total / a.numel())


def source_is_flat(job: Prepared, tile: Tile) -> bool:
    """Tell whether a tile's source is flat in detail and in features; never without a feature network."""
    operators = job.operators(tile)
    if not operators.covers_source or job.meter is None:
        return False
    region = operators.crop(job.reference.image)
    return is_flat(region, job.meter.extract(region))


def extend(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image`, (B, C, H, W), with its last row and column repeated up to (height, width) `size`."""
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    if not arrays.is_large(*image.shape):
        return F.pad(image, (0, size[1] - width, 0, size[0] - height), mode="replicate")
    out = arrays.zeros((*image.shape[:2], *size), image.dtype)
    for rows in arrays.bands(image):
        out[..., rows, :] = F.pad(image[..., rows, :], (0, size[1] - width, 0, 0), mode="replicate")
    out[..., height:, :] = out[..., height - 1 : height, :]
    return out

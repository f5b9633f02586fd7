"""Prepare a picture: what its result is held to, what its tiles start from, what measures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..measure.calibration import load_calibration
from ..measure.drift import DriftMeter
from ..measure.regions import is_flat
from ..networks.cleaner import Cleaner, clean_windowed, embedded_cleaner
from ..networks.dinov2 import Dinov2
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

QUIET_SHARE: Final = 0.85
"""Where the quietest twentieth of pure noise's own blocks lies, relative to its mean."""

TEXTURE_RATIO, RATIO_SPAN = 1.8, 0.4
"""Ratio of straight to diagonal detail from which on it is texture, and how far below it is all noise: noise is
alike in all directions."""


def needs_features(settings: Settings, *, measures: bool, adapts: bool, finds_subject: bool = False) -> bool:
    """Tell whether a run asks for the feature network.

    Args:
        measures: drift is to be reported.
        adapts: an adapter acts.
        finds_subject: tiles beside the subject get a prompt of their own.
    """
    checks = settings.repair_tries > 0 or settings.max_drift > 0 or settings.skip_flat
    return settings.guides or checks or measures or adapts or finds_subject


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
    """

    settings: Settings
    plan: JobPlan
    source: Tensor
    reference: Reference
    plain: Tensor
    start: Tensor
    meter: DriftMeter | None
    mask: Mask | None = None

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
) -> Prepared:
    """Clean a source, (1, 3, H, W) in [0, 1], enlarge it, and measure what plain enlargement costs.

    Args:
        settings: with a seed.
        dino: the feature network, where `needs_features`.
        enlarged: the source enlarged by other means, (1, 3, *target size); None enlarges it plainly.
        mask: where the picture may change, (1, 1, *target size) in [0, 1]; None is everywhere.
    """
    reference = make_reference(source, strength=settings.clean_source)
    plain = resize(reference.image, plan.target_size).clamp(0, 1)
    start = plain if enlarged is None else _cleaned_start(enlarged, source, reference)
    meter = None
    if dino is not None:
        meter = DriftMeter(dino, reference.image, plain=plain, calibration=load_calibration(dino))
    return Prepared(settings, plan, source, reference, plain, start, meter, _mask(mask, source, enlarged))


def _mask(share: Tensor | None, source: Tensor, enlarged: Tensor | None) -> Mask | None:
    if share is None:
        return None
    size = (share.shape[-2], share.shape[-1])
    return Mask(share, resize(source, size).clamp(0, 1) if enlarged is None else enlarged)


def _cleaned_start(enlarged: Tensor, source: Tensor, reference: Reference) -> Tensor:
    """`enlarged`, made from the source as given, without what was removed from that."""
    if reference.image is source:
        return enlarged
    removed = resize(reference.image - source, (enlarged.shape[-2], enlarged.shape[-1]))
    return (enlarged + removed).clamp(0, 1)


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
    removed_rms = share * float((image - source).square().mean().sqrt())
    return Reference(torch.lerp(source, image.to(source), share), 0.0, noise, removed_rms)


def has_palette(source: Tensor) -> bool:
    """Tell whether `source`, (1, 3, H, W) in [0, 1], is made of few colours, each of them many times.

    Noise and JPEG damage make thousands of colours. Grey pictures have 256 at most, so there fewer count as few.
    """
    red, green, blue = (source[0].float().clamp(0, 1) * 255).round().long().flatten(1)
    grey = bool((red == green).all() and (green == blue).all())
    most = min(PALETTE_GREYS if grey else PALETTE_COLOURS, red.numel() // PALETTE_PIXELS)
    colours = (red * 256 + green) * 256 + blue
    few = colours[:: max(1, colours.numel() // 2**16)]  # a part settles most pictures
    return bool(len(few.unique()) <= most and len(colours.unique()) <= most)


def estimate_noise(source: Tensor) -> float:
    """Standard deviation of the noise in `source`, (1, 3, H, W) in [0, 1]; 0 for pictures under 8 px.

    Mean absolute value of the diagonal Haar details (Donoho and Johnstone, 1994), which edges and smooth
    areas hardly touch, taken over the quietest of 16-px blocks so that texture is not counted as noise.
    """
    grey = source.float().mean(1, keepdim=True)
    height, width = (side // 2 * 2 for side in grey.shape[-2:])
    if min(height, width) < 8:
        return 0.0
    a, b = grey[..., :height:2, :width:2], grey[..., :height:2, 1:width:2]
    c, d = grey[..., 1:height:2, :width:2], grey[..., 1:height:2, 1:width:2]
    diagonal = (a - b - c + d).abs() / 2
    straight = ((a - b + c - d).abs() + (a + b - c - d).abs()) / 4
    block = min(8, *diagonal.shape[-2:])
    energy = F.avg_pool2d(diagonal, block).flatten()
    quiet = energy <= torch.quantile(energy[: 2**24], 0.05)
    level = float(energy[quiet].mean()) / QUIET_SHARE
    ratio = float(F.avg_pool2d(straight, block).flatten()[quiet].mean()) / max(level, 1e-9)
    whiteness = min(1.0, max(0.0, (TEXTURE_RATIO - ratio) / RATIO_SPAN))
    # The mean of |n| for normal noise is sqrt(2 / pi) sigma; averaging the three channels is undone by sqrt 3.
    return whiteness * level * float((torch.pi / 2) ** 0.5 * 3**0.5)


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
    return F.pad(image, (0, size[1] - width, 0, size[0] - height), mode="replicate")

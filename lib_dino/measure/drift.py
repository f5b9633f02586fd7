"""Drift: how far a result has left its source, as DINOv2 features see it, patch by patch.

The result is compared at the source's own scale, made small by the very operators it was enlarged by, so detail that
the source cannot have is no error: only what would be seen in the source is. It is compared with the features of the
same region alone, not with those cut from the whole source: what surrounds a patch colours its features more
than drift does (docs/constants.md). Only the mean that features are centred by is the whole source's.

What plain enlargement of the source costs by the same measure is the floor: drift up to it is no one's fault.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..memory import free_memory, is_out_of_memory
from ..networks.dinov2 import Dinov2
from ..networks.edit_detector import EditDetector
from ..tiling.resample import TileOperators, resize
from .calibration import Calibration, Thresholds
from .edits import detail_logits
from .features import centre, confidence, cosine_distance, feature_grid, grid_size, normalised, outliers

log = logging.getLogger("dino_upscale")

Work = TypeVar("Work")
Extract = Callable[[Tensor], Tensor]
"""A picture (B, 3, H, W) in [0, 1] to its feature grid (B, D, gh, gw); differentiable."""

WORST_SHARE: Final = 0.1
"""Share of a tile's patches whose mean is the tile's score: a small invented thing must not drown in a large tile."""

KEPT: Final = 8
"""Tiles whose target and floor a meter remembers; a few MB each with a large network."""


EDIT_PATCHES: Final = 4
"""Patches whose mean is a tile's edit probability: about what a small thing covers at the result's scale."""


@dataclass(frozen=True)
class Target:
    """Features of a region of the source, to compare results with.

    Attributes:
        features: (1, D, gh, gw) of the region, centred by `mean`.
        mean: (1, D, 1, 1), the mean feature of the whole source.
        weight: (1, gh, gw), 0 to 1: how much each patch says; a featureless patch has no direction.
    """

    features: Tensor
    mean: Tensor
    weight: Tensor


@dataclass(frozen=True)
class TileDrift:
    """Drift of one tile.

    Attributes:
        patches: (gh, gw), weighted patch drift above the floor, 0 to 2; 0 is faithful.
        weight: (gh, gw), 0 to 1: how much each patch of the source says.
        mean: mean over patches, by weight, of drift as it is, floor included.
        worst: the largest weighted patch drift, floor included.
        baseline: the same mean for the plainly enlarged source: the floor.
        thresholds: what `share_over` compares with unless told otherwise.
        rows, cols: the source pixels that the maps cover.
        edit_map: (rh, rw), 0 to 1, how likely each patch of 14 px of the result was invented, by everything there
            is to see at the source's and at the result's scale; the last row and column may reach beyond the tile.
            None where the feature network has no edit detector.
        size: (height, width) of what `edit_map` covers, pixels of the result, 0 without one.
    """

    patches: Tensor
    weight: Tensor
    mean: float
    worst: float
    baseline: float
    thresholds: Thresholds
    rows: slice
    cols: slice
    edit_map: Tensor | None = None
    size: tuple[int, int] = (0, 0)

    @property
    def worst_tenth_mean(self) -> float:
        """Mean of the worst tenth of `patches`: the figure a tile is judged by."""
        flat = self.patches.flatten()
        return float(flat.topk(max(1, math.ceil(WORST_SHARE * len(flat)))).values.mean())

    @property
    def edit_probability(self) -> float | None:
        """Mean of the four patches most likely invented, 0 to 1; None without a detector."""
        if self.edit_map is None:
            return None
        flat = self.edit_map.flatten()
        return float(flat.topk(min(EDIT_PATCHES, len(flat))).values.mean())

    @property
    def alarm(self) -> bool:
        """True when an invention is likely: by edit probability where there is a detector, else by drift."""
        probability = self.edit_probability
        if probability is None or self.thresholds.alarm is None:
            return self.worst_tenth_mean > self.thresholds.bound
        return probability > self.thresholds.alarm

    def share_over(self, bound: float | None = None) -> float:
        """Share of patches above `bound`, or above the network's own, 0 to 1."""
        limit = self.thresholds.bound if bound is None else bound
        return float((self.patches > limit).float().mean())


class DriftMeter:
    """Measures results against one source.

    Args:
        dino: the feature network.
        source: (1, 3, H, W) in [0, 1].
        plain: the plainly enlarged source, (1, 3, *target size); None measures without a floor.
        calibration: of this network; None measures by the stated defaults, without a detector.
    """

    def __init__(
        self, dino: Dinov2, source: Tensor, *, plain: Tensor | None = None, calibration: Calibration | None = None
    ) -> None:
        self.dino, self.source = dino, source
        self.calibration = calibration or Calibration()
        whole = self.extract(source)
        self.mean, self.spread = mean_feature(whole), spread(whole)
        self._plain = plain
        # D of a crop is the crop of D, so the floor of every tile comes out of this one small picture.
        self._kept: deque[tuple[tuple[slice, slice], tuple[Target, Tensor]]] = deque(maxlen=KEPT)
        self._shown = None if plain is None else resize(plain, (source.shape[-2], source.shape[-1]))

    @property
    def thresholds(self) -> Thresholds:
        """The network's own thresholds."""
        return self.calibration.thresholds

    def grid(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        """Feature grid of a picture, (1, 3, H, W), with so many patches down and across, where the picture lies."""
        given = image.to(self.dino.positions.device)
        return self._in_memory(lambda: feature_grid(self.dino, given, grid=grid)).to(image.device)

    def extract(self, image: Tensor) -> Tensor:
        """Feature grid of a picture (B, 3, H, W), on the picture's device, wherever the network lives."""
        return self._in_memory(lambda: feature_grid(self.dino, image.to(self.dino.positions.device)).to(image.device))

    def target(self, region: Tensor) -> Target:
        """The target for `region`, (1, 3, h, w) at the source's scale; tokens that keep notes weigh nothing."""
        grid, told = self._told(region)
        target = make_target(grid, self.mean.to(region.device), spread=self.spread)
        return replace(target, weight=target.weight * told)

    def _told(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a picture, and 1 where a token describes its place, else 0: (B, gh, gw)."""
        if self.dino.registers:
            grid = self.extract(image)
            return grid, torch.ones_like(grid[:, 0])

        def looked() -> tuple[Tensor, Tensor]:
            given = image.to(self.dino.positions.device)
            return self.dino.tokens_and_norms(normalised(self.dino, given, grid_size(*given.shape[-2:])))

        grid, norms = self._in_memory(looked)
        return grid.to(image.device), (~outliers(norms)).to(image)

    def _in_memory(self, work: Callable[[], Work]) -> Work:
        """What `work` gives; where memory is short once more, with caches freed and the network on the CPU for good."""
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("Features did not fit into memory (%s); the network goes on on the CPU.", error)
        free_memory()
        with torch.inference_mode(False):
            self.dino.to("cpu")
        return work()

    def tile(self, made: Tensor, operators: TileOperators, *, detail: bool = False) -> TileDrift:
        """Drift of one tile.

        Args:
            made: (1, 3, h, w) in [0, 1], the tile as it came out, padding included.
            operators: the tile's, which must know something (`covers_source`).
            detail: also judge the detail that downscaling cannot see, where the network has a detector; it takes
                about as long as looking at the tile and at its plain enlargement at full size.
        """
        target, floor = self._expected(operators, made)
        grid, told = self._told(operators.down(made))
        distance = patch_drift(grid, target)
        over = target.weight * told * (distance - floor).clamp(min=0)
        detector = self.calibration.detector if detail else None
        edit_map, size = self._edit_map(detector, made, operators, over, target.weight)
        return TileDrift(
            patches=over[0].cpu(),
            weight=target.weight[0].cpu(),
            mean=float(weighted_mean(distance, target.weight)),
            worst=float((target.weight * distance).max()),
            baseline=float(weighted_mean(floor, target.weight)),
            thresholds=self.thresholds,
            rows=operators.rows.span,
            cols=operators.cols.span,
            edit_map=edit_map,
            size=size,
        )

    def _expected(self, operators: TileOperators, like: Tensor) -> tuple[Target, Tensor]:
        """A tile's target and floor; kept for the last few tiles, which are often measured again and again."""
        key = (operators.rows.span, operators.cols.span)
        expected = next((value for known, value in self._kept if known == key), None)
        if expected is None:
            target = self.target(operators.crop(self.source).to(like))
            plain = None if self._shown is None else operators.crop(self._shown).to(like)
            floor = torch.zeros_like(target.weight) if plain is None else patch_drift(self.extract(plain), target)
            expected = target, floor
            self._kept.append((key, expected))
        return expected

    def _edit_map(
        self, detector: EditDetector | None, made: Tensor, operators: TileOperators, over: Tensor, weight: Tensor
    ) -> tuple[Tensor | None, tuple[int, int]]:
        if detector is None or self._plain is None:
            return None, (0, 0)
        plain = self._plain
        logits, size = self._in_memory(
            lambda: detail_logits(self.dino, detector, made, plain, self.source, operators, over, weight)
        )
        return logits[0].sigmoid().cpu(), size


def drift_map(tiles: Iterable[TileDrift], source_size: tuple[int, int]) -> Tensor:
    """The patch maps of a picture's tiles put together, (1, 1, H, W) at the source's scale.

    Where tiles overlap the larger value stands, so that nothing found is averaged away; what no tile knows is 0.
    """
    out = torch.zeros(1, 1, *source_size)
    for tile in tiles:
        part = out[..., tile.rows, tile.cols]
        size = (part.shape[-2], part.shape[-1])
        part.copy_(torch.maximum(part, F.interpolate(tile.patches[None, None].float(), size=size, mode="bilinear")))
    return out


def mean_feature(grid: Tensor) -> Tensor:
    """(1, D, gh, gw) to its mean over patches, (1, D, 1, 1)."""
    return grid.mean((-2, -1), keepdim=True)


def spread(grid: Tensor) -> float:
    """Mean squared norm of the centred features of `grid`, (1, D, gh, gw)."""
    return float(centre(grid).square().sum(1).mean())


def make_target(grid: Tensor, mean: Tensor, *, spread: float) -> Target:
    """The target for a region with feature grid `grid`.

    Args:
        grid: (1, D, gh, gw), features of the region as the source shows it.
        mean: (1, D, 1, 1), mean feature of the whole source.
        spread: mean squared norm of the whole source's centred features.
    """
    centred = centre(grid, mean)
    return Target(centred, mean, confidence(centred, spread))


def patch_drift(grid: Tensor, target: Target) -> Tensor:
    """Distance of each patch from the target: 1 - cosine of centred features, (B, gh, gw), 0 to 2."""
    return cosine_distance(centre(grid, target.mean), target.features)


def drift(grid: Tensor, target: Target) -> Tensor:
    """Weighted mean of `patch_drift` for each picture, (B,)."""
    return weighted_mean(patch_drift(grid, target), target.weight)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of (B, gh, gw) by weights (1 or B, gh, gw), (B,); 0 where nothing weighs."""
    weight = weight.expand(values.shape[0], -1, -1)
    return (weight * values).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1e-12)

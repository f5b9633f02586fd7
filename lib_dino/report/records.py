"""Records of a run: its tiles, its settings and how faithful it was, as plain values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA: Final = 3
"""Version of the JSON written by `Report.to_dict`, see docs/report.md; raised when a key changes meaning or goes."""

WORST_SHOWN: Final = 3
"""Number of a picture's worst patches that are shown."""

WORST_APART: Final = 3
"""Least number of patches between two of them: one invented thing is one place."""


@dataclass(frozen=True)
class WorstPatch:
    """One place that stands out.

    Attributes:
        box: (y0, x0, y1, x1), half-open, pixels of the result.
        drift: its weighted drift above that of plain enlargement, 0 to 2.
        edit_probability: how likely it was invented, 0 to 1; None where the feature network has no edit detector.
    """

    box: tuple[int, int, int, int]
    drift: float
    edit_probability: float | None = None

    @property
    def weight(self) -> float:
        """Sort key of patches: edit probability where there is one, else drift."""
        return self.drift if self.edit_probability is None else self.edit_probability


@dataclass(frozen=True)
class ReferenceReport:
    """One reference picture.

    Attributes:
        covered: share of the result that it lends detail to, 0 to 1; 0 where it does not match.
        matches: patches that the motions found for it explain.
        scale: its pixels to one of the source where most of them match; None without a match.
    """

    covered: float
    matches: int = 0
    scale: float | None = None


@dataclass(frozen=True)
class TileReport:
    """One tile.

    Attributes:
        box: (y0, x0, y1, x1), half-open, pixels of the result.
        seconds: wall time of the tile's denoising (of its batch, shared evenly).
        drift: mean over patches of 1 - cosine between the DINOv2 features of the result made small again
            and of the source, both less the source's mean; 0 is faithful. None when not measured.
        drift_worst: the largest weighted patch drift of the tile.
        drift_enlarged: the same mean for the plainly enlarged source: the floor.
        seed: of the noise that the kept painting started from; None when the model was not asked.
        denoise: of the kept painting.
        guidance: mean root mean square of the corrections, guidance and consistency together, over the kept
            painting's model calls, in units of the data's spread; 0 when nothing acted.
        tries: how often the tile was retried, for drift over the bound or an edit probability over the alarm.
        kept: which painting was kept: 0 the first, 1 the first redone, ...
        drift_first: drift of the first painting, before any repair or blending; None when not measured.
        blended: mean share of the enlarged source that was blended in to keep the bound, 0 to 1.
        skipped: left as the enlarged source, because nothing in it wants repainting.
        valid: False where the model made no picture, twice: the tile keeps the enlarged source.
        drift_above: mean over patches of what their drift is above that of plain enlargement; None when not measured.
        score: mean of the worst tenth of those: what the tile is judged by.
        over_bound: share of patches that are over the report's `bound`, 0 to 1.
        drift_peak: the largest patch drift above that of plain enlargement.
        edit_probability: how likely something in it was invented, 0 to 1; None without a detector.
        alarm: it is reported as holding something invented: by edit probability where there is a detector, else by
            score.
        worst_patches: the worst places, worst first, none near another; by edit probability where there is a detector.
        lent: share of it that each reference lends detail to, 0 to 1, in their order.
    """

    box: tuple[int, int, int, int]
    seconds: float
    drift: float | None = None
    drift_worst: float | None = None
    drift_enlarged: float | None = None
    seed: int | None = None
    denoise: float | None = None
    guidance: float = 0.0
    tries: int = 0
    kept: int = 0
    drift_first: float | None = None
    blended: float = 0.0
    skipped: bool = False
    valid: bool = True
    drift_above: float | None = None
    score: float | None = None
    over_bound: float | None = None
    drift_peak: float | None = None
    edit_probability: float | None = None
    alarm: bool = False
    worst_patches: tuple[WorstPatch, ...] = ()
    lent: tuple[float, ...] = ()


@dataclass(frozen=True)
class Report:
    """One picture.

    Attributes:
        source_size, result_size: (height, width), pixels.
        settings: the settings that were used, seed included.
        model, features: names of the networks; `features` is None when none was loaded.
        model_calls: calls of the diffusion model, all tiles together.
        seconds: wall time from the opened picture to the finished one, loading of networks left out.
        source_psnr: PSNR in dB between the result made small again and the source; inf when equal.
        detail: high-frequency energy of the result relative to the plainly enlarged source.
        source_noise: estimated noise of the source, in units of the picture's range.
        bound: drift above plain enlargement that a patch may have before it counts as over; None when not measured.
        bound_kind: "asked" by the user, "fitted" to the feature network on pictures, or the stated "default".
        alarm_at: edit probability from which on a tile is reported; None without an edit detector.
        source_cleaned: root mean square of the damage that was taken off the source first, in the units of
            `source_noise`; 0 where it was clean, or not cleaned.
        references: reference pictures that were asked, in their order.
    """

    source_size: tuple[int, int]
    result_size: tuple[int, int]
    settings: dict[str, Any]
    model: str
    features: str | None
    model_calls: int
    seconds: float
    source_psnr: float
    detail: float
    source_noise: float
    tiles: tuple[TileReport, ...] = ()
    notes: tuple[str, ...] = field(default=())
    bound: float | None = None
    bound_kind: str | None = None
    alarm_at: float | None = None
    source_cleaned: float = 0.0
    references: tuple[ReferenceReport, ...] = ()

    @property
    def drift(self) -> float | None:
        """Mean drift over the tiles that were measured."""
        return _mean([t.drift for t in self.tiles if t.drift is not None])

    @property
    def drift_worst(self) -> float | None:
        """The worst tile's drift."""
        return max((t.drift for t in self.tiles if t.drift is not None), default=None)

    @property
    def drift_enlarged(self) -> float | None:
        """Mean drift of the plainly enlarged source: what enlarging alone costs."""
        return _mean([t.drift_enlarged for t in self.tiles if t.drift_enlarged is not None])

    @property
    def drift_above(self) -> float | None:
        """Mean over the measured tiles of drift above that of plain enlargement."""
        return _mean([t.drift_above for t in self.tiles if t.drift_above is not None])

    @property
    def over_bound(self) -> float | None:
        """Share of the measured tiles' patches that are over the bound, 0 to 1."""
        return _mean([t.over_bound for t in self.tiles if t.over_bound is not None])

    @property
    def worst_patches(self) -> tuple[WorstPatch, ...]:
        """The picture's worst places, worst first, at most `WORST_SHOWN`; overlapping tiles give each but once."""
        worst: list[WorstPatch] = []
        for patch in sorted((p for t in self.tiles for p in t.worst_patches), key=lambda p: -p.weight):
            if len(worst) < WORST_SHOWN and not any(_beside(patch, other) for other in worst):
                worst.append(patch)
        return tuple(worst)

    @property
    def drift_worst_patch(self) -> float | None:
        """The largest patch drift above that of plain enlargement."""
        return max((t.drift_peak for t in self.tiles if t.drift_peak is not None), default=None)

    @property
    def alarms(self) -> int | None:
        """Number of reported tiles; None when none was measured."""
        measured = [tile.alarm for tile in self.tiles if tile.score is not None]
        return sum(measured) if measured else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; what is infinite or no number becomes None, which JSON has no word for."""
        values = dataclasses.asdict(self)
        drift = {
            "mean": self.drift, "worst_tile": self.drift_worst, "enlarged": self.drift_enlarged,
            "above": self.drift_above, "worst_patch": self.drift_worst_patch, "over_bound": self.over_bound,
            "alarms": self.alarms,
        }  # fmt: skip
        worst = [dataclasses.asdict(patch) for patch in self.worst_patches]
        found: dict[str, Any] = _finite({"schema": SCHEMA, **values, "drift": drift, "worst_patches": worst})
        return found

    def summary(self) -> list[str]:
        """Five lines for a person."""
        (h, w), (height, width) = self.source_size, self.result_size
        if self.drift is None or self.drift_enlarged is None:
            drift = "not measured"
        else:
            drift = f"{self.drift:.2g} (worst tile {self.drift_worst:.2g}; plain enlargement {self.drift_enlarged:.2g})"
        strength = self.settings["dino_strength"] if self.settings["dino_enabled"] else 0
        return [
            f"Size: {w}x{h} -> {width}x{height} px, {len(self.tiles)} tiles, {self.model_calls} model calls",
            f"Settings: denoise {self.settings['denoise']}, consistency {self.settings['consistency']}, "
            f"DINO strength {strength}, seed {self.settings['seed']}",
            f"Detail: {self.detail:.2f} times that of plain enlargement",
            f"Faithful: made small again it differs from the source by {_decibel(self.source_psnr)}; drift {drift}",
            f"Time: {self.seconds:.1f} s with {self.model}, features {self.features or 'off'}",
        ]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _beside(a: WorstPatch, b: WorstPatch) -> bool:
    """True when less than `WORST_APART` of their sides lie between two patches, so that one crop shows both."""
    (a0, a1, a2, a3), (b0, b1, b2, b3) = a.box, b.box
    y, x = WORST_APART * (a2 - a0), WORST_APART * (a3 - a1)
    return a0 - y <= b2 and b0 <= a2 + y and a1 - x <= b3 and b1 <= a3 + x


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _decibel(psnr: float) -> str:
    return "nothing" if psnr == float("inf") else f"{psnr:.1f} dB PSNR"


DRIFT_KEYS: Final = ("DINO drift", "DINO drift worst", "DINO drift over bound")
"""Saved keys of a measured picture: drift above plain enlargement, its mean over the picture, its worst patch,
and the share of patches over the bound. They are results, not settings: readers pass over them."""


REFERENCE_KEYS: Final = ("DINO references", "DINO references lend")
"""Saved keys of a picture with references: how many there were, and to which share of it they lend detail."""


def reference_figures(references: Sequence[ReferenceReport]) -> dict[str, str]:
    """The two figures of `REFERENCE_KEYS`; nothing without references."""
    if not references:
        return {}
    lent = sum(reference.covered for reference in references)
    return dict(zip(REFERENCE_KEYS, (str(len(references)), f"{lent:.3f}"), strict=True))


def drift_figures(report: Report) -> dict[str, str]:
    """The three figures of `DRIFT_KEYS`, saved keys and values; nothing when drift was not measured."""
    values = report.drift_above, report.drift_worst_patch, report.over_bound
    if None in values:
        return {}
    return {key: f"{value:.4f}" for key, value in zip(DRIFT_KEYS, values, strict=True)}

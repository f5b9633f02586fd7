"""What a run did and how faithful it was, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final

SCHEMA: Final = 1
"""Version of the JSON written by `Report.to_dict`; raised when a key changes its meaning or goes."""


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
        tries: how often the tile was redone, because its drift was over the bound.
        kept: which painting was kept: 0 the first, 1 the first redone, ...
        drift_first: drift of the first painting, before any repair or blending; None when not measured.
        blended: mean share of the enlarged source that was blended in to keep the bound, 0 to 1.
        skipped: left as the enlarged source, because nothing in it wants repainting.
        subject: share of the tile that shows the picture's subject, 0 to 1; None when not asked for.
        suspicion: how likely the tile's most suspicious patches were invented, detail that downscaling cannot see
            included, 0 to 1; None where the feature network has no expected-detail head.
        alarm: whether that, or without a head the drift, is more than honest tiles show.
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
    subject: float | None = None
    suspicion: float | None = None
    alarm: bool = False


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

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values; infinite decibels become None."""
        values = dataclasses.asdict(self)
        values["source_psnr"] = None if self.source_psnr == float("inf") else self.source_psnr
        drift = {"mean": self.drift, "worst_tile": self.drift_worst, "enlarged": self.drift_enlarged}
        return {"schema": SCHEMA, **values, "drift": drift}

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


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _decibel(psnr: float) -> str:
    return "nothing" if psnr == float("inf") else f"{psnr:.1f} dB PSNR"

"""Settings: every knob of the product, declared once.

A new setting is one field below, and its use. What the fields declare is explained in `declarations`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .declarations import Knob, declare, declared, short, to_saved
from .errors import SettingsError

MAX_SCALE: Final = 8.0
MAX_SEED: Final = 2**32 - 1
MAX_REFERENCES: Final = 8
INFOTEXT_VERSION_KEY: Final = "DINO Upscale version"
INFOTEXT_PICTURE_KEY: Final = "DINO picture"
"""In the saved text of a picture beside a result, such as its drift map: its kind. A result has none."""
INFOTEXT_STOPPED_KEY: Final = "DINO stopped"
INFOTEXT_FAULTY_KEY: Final = "DINO tiles without numbers"
"""In the saved text of a result that was stopped before its last tile: how far it got. Readers pass over it."""


@dataclass(frozen=True)
class Settings:
    """One upscaling job, checked: a `Settings` that exists is valid.

    Raises:
        SettingsError: a value has the wrong type, is not finite or is outside its limit; two ways of
            giving the target size are mixed; the overlap is not smaller than the tile.

    >>> Settings(denoise=0.3).denoise
    0.3
    """

    scale_factor: float = declare(
        2.0, "Scale", "DINO upscale", "Enlarges each side this many times.",
        group="Size", argument=1, flag="--scale", low=1.0, high=MAX_SCALE, step=0.05, unit="x",
    )
    width: int = declare(
        0, "Width", "DINO width", "Sets the width of the result; 0 = by scale, or by the height.",
        group="Size", argument=2, low=1, high=100_000, unit="px", none_value=0, widget="number",
    )
    height: int = declare(
        0, "Height", "DINO height", "Sets the height of the result; 0 = by scale, or by the width.",
        group="Size", argument=3, low=1, high=100_000, unit="px", none_value=0, widget="number",
    )
    megapixels: float = declare(
        0.0, "Megapixels", "DINO megapixels", "Sets the size of the result in million pixels; 0 = by scale.",
        group="Size", argument=18, low=0.001, high=10_000.0, unit="MP", none_value=0, widget="number",
    )
    denoise: float = declare(
        0.2, "Denoise", "DINO denoise", "Sets how much the diffusion model may repaint; 0 = nothing.",
        group="Strength", argument=5, low=0.0, high=1.0, step=0.01,
        img2img_note='Replaces the "Denoising strength" of this tab.',
    )
    steps: int = declare(
        20, "Steps", "DINO steps", "Sets the steps of a full denoising; a tile takes about steps x denoise of them.",
        group="Sampling", argument=6, low=1, high=150, step=1, panel_none=0,
    )
    seed: int = declare(
        -1, "Seed", "DINO seed", "Sets the noise: the same seed gives the same picture; -1 = draw one and record it.",
        group="Sampling", argument=17, low=0, high=MAX_SEED, none_value=-1, widget="hidden",
    )
    tile_size: int = declare(
        0, "Tile size", "DINO tile", "Sets the side of a tile; 0 = the size that suits the model.",
        group="Tiles", argument=9, low=64, high=4096, step=8, unit="px", none_value=0,
    )
    overlap: int = declare(
        64, "Overlap", "DINO overlap", "Sets the least overlap of neighbouring tiles; smaller than the tile.",
        group="Tiles", argument=10, low=0, high=2048, step=8, unit="px",
    )
    tile_batch_size: int = declare(
        1, "Tile batch size", "DINO tile batch", "Denoises this many tiles in one model call; more needs more memory.",
        group="Tiles", argument=11, low=1, high=64, step=1,
    )
    consistency: float = declare(
        1.0, "Source consistency", "DINO consistency",
        "Makes the result, scaled down again, match the source; 0 = off, 1 = exactly.",
        group="Strength", argument=15, low=0.0, high=1.0, step=0.05,
    )
    dino_enabled: bool = declare(
        True, "DINO guidance", "DINO enabled",
        "Matches reference pictures by DINOv2 features, which also guide where source consistency is below 1.",
        group="Fidelity", argument=12, flag="--no-dino",
    )
    dino_strength: float = declare(
        0.5, "DINO strength", "DINO strength",
        "Sets how much detail matched references lend, and how strongly features guide below consistency 1; 0 = off.",
        group="Strength", argument=13, low=0.0, high=1.0, step=0.05,
    )
    dino_model: str = declare(
        "", "Feature model", "DINO model",
        "Names the DINOv2 weights: a folder, a safetensors file or a hub id; empty = the small network that ships.",
        group="Fidelity", argument=14, none_value="", panel_none="Default", widget="dropdown",
    )
    repair_tries: int = declare(
        0, "Repair tries", "DINO repair tries",
        "Redoes a tile that drifts too far, up to this many times, each closer to the source; 0 = off.",
        group="Repair and limits", argument=19, low=1, high=8, step=1, none_value=0,
    )
    max_drift: float = declare(
        0.0, "Drift limit", "DINO max drift",
        "Blends what drifts further than this above plain enlargement back to the source; 0 = off.",
        group="Repair and limits", argument=20, low=0.01, high=1.0, step=0.01, none_value=0,
    )
    adapter: str = declare(
        "", "Adapter", "DINO adapter",
        "Names a DINO adapter for the model, a safetensors file; empty = the embedded model's own.",
        group="Adapter", argument=21, none_value="", panel_none="None", widget="dropdown",
    )
    adapter_strength: float = declare(
        0.0, "Adapter strength", "DINO adapter strength",
        "Sets how strongly the adapter shows the source to the model; 0 = off.",
        group="Adapter", argument=22, low=0.0, high=1.0, step=0.05,
    )
    skip_flat: bool = declare(
        False, "Skip flat tiles", "DINO skip flat",
        "Leaves flat tiles, such as clear sky, alone: faster, and nothing is invented there.",
        group="Tiles", argument=25,
    )
    clean_source: float = declare(
        1.0, "Clean source", "DINO clean source",
        "Removes this share of the source's noise and JPEG damage first; a clean source stays as it is. 0 = off.",
        group="Fidelity", argument=28, low=0.0, high=1.0, step=0.05,
    )
    texture: float = declare(
        1.0, "Texture matching", "DINO texture",
        "Takes off added fine detail beyond what is typical for this source; 0 = off.",
        group="Fidelity", argument=29, low=0.0, high=1.0, step=0.05,
    )

    def __post_init__(self) -> None:
        for name, knob in knobs().items():
            object.__setattr__(self, name, knob.checked(getattr(self, name)))
        sides, area = bool(self.width or self.height), bool(self.megapixels)
        if sides and area:
            raise SettingsError(
                f"Give the size once: width x height is {self.width} x {self.height} px and megapixels is "
                f"{self.megapixels}. Leave one of them at 0.",
                field="megapixels", value=self.megapixels, limit="0 when width or height is given",
            )
        if self.tile_size and self.overlap >= self.tile_size:
            raise SettingsError(
                f"Overlap must be smaller than the tile: overlap is {self.overlap} px, tile size is "
                f"{self.tile_size} px. Lower the overlap or raise the tile size.",
                field="overlap", value=self.overlap, limit=f"0 to {self.tile_size - 1} px",
            )

    @property
    def guides(self) -> bool:
        """True where DINO features guide the tiles.

        Never at full consistency: what guidance by features could add to it is below 3 % even with the features of the
        original, and below what random weights add (docs/dino-strength.md).
        """
        return self.dino_enabled and self.dino_strength > 0 and self.consistency < 1

    @property
    def borrows(self) -> bool:
        """True where reference pictures lend detail, if there are any."""
        return self.dino_enabled and self.dino_strength > 0

    @property
    def conditions(self) -> bool:
        """True where an adapter acts, if there is one for the model."""
        return self.adapter_strength > 0

    def target_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Exact (height, width) of the result for a source of `size` (height, width), in pixels.

        Width and height together are taken as they are; one alone keeps the aspect; then megapixels,
        then the scale.

        Raises:
            SettingsError: the result would be smaller than the source or more than 8 times larger.
        """
        height, width = size
        if self.width and self.height:
            target = (self.height, self.width)
        elif self.width:
            target = (max(1, round(height * self.width / width)), self.width)
        elif self.height:
            target = (self.height, max(1, round(width * self.height / height)))
        else:
            by_area = math.sqrt(self.megapixels * 1e6 / (height * width))
            scale = by_area if self.megapixels else self.scale_factor
            target = (max(1, round(height * scale)), max(1, round(width * scale)))
        self._check_target(size, target)
        return target

    def _check_target(self, size: tuple[int, int], target: tuple[int, int]) -> None:
        field = next((f for f in ("width", "height", "megapixels") if getattr(self, f)), "scale_factor")
        ratios = [new / old for new, old in zip(target, size, strict=True)]
        # A side of the source may round up by half a pixel, hence the slack on tiny pictures.
        slack = 0.5 / min(size)
        if min(ratios) < 1 or max(ratios) > MAX_SCALE + slack:
            raise SettingsError(
                f"The result must be 1 to {short(MAX_SCALE)} times the source on each side: the source is "
                f"{size[1]}x{size[0]} px, the result would be {target[1]}x{target[0]} px. "
                f"Change {knobs()[field].label.lower()}.",
                field=field, value=getattr(self, field), limit=f"1 to {short(MAX_SCALE)} times the source",
            )

    def replace(self, **changes: Any) -> Settings:
        """A copy with `changes`, checked again; unknown names are refused."""
        return Settings.from_mapping({**dataclasses.asdict(self), **changes})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from names and values, in any order; missing names take their default.

        Raises:
            SettingsError: a name is unknown, or as for the constructor.
        """
        for name in values:
            if name not in knobs():
                raise SettingsError(
                    f"There is no setting {str(name)[:200]!r}. The settings are: {', '.join(knobs())}.",
                    field=str(name), value=values[name], limit="a known name",
                )
        return cls(**values)

    def to_infotext(self) -> dict[str, str]:
        """Saved keys and values, in field order; sizes that are not given are left out."""
        return to_saved(self, knobs())

    @classmethod
    def from_infotext(cls, params: Mapping[str, str]) -> Settings:
        """Settings from saved keys; keys of other programs are passed over.

        Raises:
            SettingsError: a value cannot be read as its setting's type, or as for the constructor.
        """
        return cls(**{name: knob.parsed(params[knob.key]) for name, knob in knobs().items() if knob.key in params})


def knobs() -> Mapping[str, Knob]:
    """The declaration of each of the core's settings by name, in field order."""
    return declared(Settings)


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "conservative": {"denoise": 0.15, "dino_strength": 0.8, "steps": 20},
    "balanced": {"denoise": 0.25, "dino_strength": 0.5, "steps": 20},
    "creative": {"denoise": 0.5, "dino_strength": 0.4, "steps": 28},
    "few-step": {"denoise": 0.25, "dino_strength": 0.5, "steps": 4},
}


def preset(name: str) -> dict[str, Any]:
    """The values a preset stands for.

    Raises:
        SettingsError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise SettingsError(
            f"There is no preset {name!r}. The presets are: {', '.join(PRESETS)}.",
            field="preset", value=name, limit=" | ".join(PRESETS),
        )
    return dict(PRESETS[name])

"""Settings: every knob of the product, declared once.

The command line, the WebUI's widgets, the HTTP API, the saved text of a picture and the README's table are
all read off the fields below; `tests/test_settings.py` holds them together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

from .errors import SettingsError

MAX_SCALE: Final = 8.0
MAX_SEED: Final = 2**32 - 1
INFOTEXT_VERSION_KEY: Final = "DINO Upscale version"
INFOTEXT_PICTURE_KEY: Final = "DINO picture"
"""In the saved text of a picture beside a result, such as its drift map: what it shows. A result has none."""


@dataclass(frozen=True)
class Knob:
    """What one setting is, beyond its name, type and default.

    Attributes:
        label: the words a user sees beside the control.
        key: the name in a picture's saved text; never changes once released.
        help: one sentence for tooltips, `--help` and the README.
        low, high: inclusive limits of a number, in `unit`.
        step: what a slider moves by.
        unit: "px", "x", "MP" or empty for a plain number or a fraction.
        unset: a value that means "not given", spelt out in `help`; a number's lies outside its limits.
    """

    label: str
    key: str
    help: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    unit: str = ""
    unset: float | str | None = None

    def limit(self) -> str:
        """The allowed values in words, for messages and the README."""
        if self.low is None or self.high is None:
            return "any text"
        span = f"{_short(self.low)} to {_short(self.high)}{' ' + self.unit if self.unit else ''}"
        return f"{span}, or {_short(self.unset)}" if isinstance(self.unset, int | float) else span


def _short(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def _knob(default: Any, label: str, key: str, help: str, **limits: Any) -> Any:
    return dataclasses.field(default=default, metadata={"knob": Knob(label, key, help, **limits)})


@dataclass(frozen=True)
class Settings:
    """One upscaling job, checked: a `Settings` that exists is valid.

    Raises:
        SettingsError: a value has the wrong type, is not finite or is outside its limit; two ways of
            giving the target size are mixed; the overlap is not smaller than the tile.

    >>> Settings(denoise=0.3).denoise
    0.3
    """

    scale_factor: float = _knob(
        2.0, "Scale", "DINO upscale", "How many times larger the result is on each side.",
        low=1.0, high=MAX_SCALE, step=0.05, unit="x",
    )
    width: int = _knob(
        0, "Width", "DINO width", "Width of the result; 0 follows the scale, or the height's aspect.",
        low=1, high=100_000, step=1, unit="px", unset=0,
    )
    height: int = _knob(
        0, "Height", "DINO height", "Height of the result; 0 follows the scale, or the width's aspect.",
        low=1, high=100_000, step=1, unit="px", unset=0,
    )
    megapixels: float = _knob(
        0.0, "Megapixels", "DINO megapixels", "Size of the result in millions of pixels; 0 follows the scale.",
        low=0.001, high=10_000.0, step=0.1, unit="MP", unset=0,
    )
    denoise: float = _knob(
        0.2, "Denoise", "DINO denoise", "How much the diffusion model may repaint; 0 leaves it out.",
        low=0.0, high=1.0, step=0.01,
    )
    steps: int = _knob(
        20, "Steps", "DINO steps", "Steps of a full denoising; a tile takes about steps x denoise of them.",
        low=1, high=150, step=1,
    )
    seed: int = _knob(
        -1, "Seed", "DINO seed", "Same seed, same picture; -1 draws one and records it.",
        low=0, high=MAX_SEED, step=1, unset=-1,
    )
    tile_size: int = _knob(
        0, "Tile size", "DINO tile", "Side of a tile; 0 takes what suits the model.",
        low=64, high=4096, step=8, unit="px", unset=0,
    )
    overlap: int = _knob(
        64, "Overlap", "DINO overlap", "Least overlap of neighbouring tiles; smaller than the tile.",
        low=0, high=2048, step=8, unit="px",
    )
    tile_batch_size: int = _knob(
        1, "Tile batch size", "DINO tile batch", "Tiles denoised in one model call; more needs more memory.",
        low=1, high=64, step=1,
    )
    consistency: float = _knob(
        1.0, "Source consistency", "DINO consistency",
        "How closely the result, made small again, must equal the source; 0 switches it off.",
        low=0.0, high=1.0, step=0.05,
    )
    dino_enabled: bool = _knob(
        True, "DINO guidance", "DINO enabled", "Let DINOv2 features of the source guide each tile.",
    )
    dino_strength: float = _knob(
        0.5, "DINO strength", "DINO strength", "How strongly the features guide; 0 is bitwise off.",
        low=0.0, high=1.0, step=0.05,
    )
    dino_model: str = _knob(
        "", "Feature model", "DINO model",
        "DINOv2 weights: a folder, a safetensors file or a hub id; empty takes the small one that ships.",
        unset="",
    )
    repair_tries: int = _knob(
        0, "Repair tries", "DINO repair tries",
        "How often a tile that drifts too far is redone, closer to the source; 0 switches it off.",
        low=1, high=8, step=1, unset=0,
    )
    max_drift: float = _knob(
        0.0, "Largest drift", "DINO max drift",
        "No patch may drift further than this above plain enlargement, as measured; 0 sets no bound.",
        low=0.01, high=1.0, step=0.01, unset=0,
    )
    adapter: str = _knob(
        "", "Adapter", "DINO adapter",
        "DINO adapter made for the model, a safetensors file; empty takes the embedded model's own.",
        unset="",
    )
    adapter_strength: float = _knob(
        0.0, "Adapter strength", "DINO adapter strength",
        "How strongly the adapter's image tokens condition the model; 0 is bitwise off.",
        low=0.0, high=1.0, step=0.05,
    )
    skip_flat: bool = _knob(
        False, "Skip flat tiles", "DINO skip flat",
        "Leave tiles alone in which the source is flat, such as a clear sky: faster, and nothing is made up there.",
    )
    clean_source: float = _knob(
        1.0, "Clean source", "DINO clean source",
        "How much of the source's noise and JPEG damage is taken off first, so that it is not put back; a clean source "
        "is left as it is.",
        low=0.0, high=1.0, step=0.05,
    )
    texture: float = _knob(
        1.0, "Texture matching", "DINO texture",
        "How far the detail that the source cannot show is scaled to the strength that the source lets expect; "
        "0 is bitwise off.",
        low=0.0, high=1.0, step=0.05,
    )

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for name, knob in knobs().items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), types[name], knob))
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
        """Whether DINO features act at all."""
        return self.dino_enabled and self.dino_strength > 0

    @property
    def conditions(self) -> bool:
        """Whether an adapter acts, where there is one for the model."""
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
                f"The result must be 1 to {_short(MAX_SCALE)} times the source on each side: the source is "
                f"{size[1]}x{size[0]} px, the result would be {target[1]}x{target[0]} px. "
                f"Change {knobs()[field].label.lower()}.",
                field=field, value=getattr(self, field), limit=f"1 to {_short(MAX_SCALE)} times the source",
            )

    @property
    def needs_features(self) -> bool:
        """Whether a run with these settings asks for the feature network."""
        asks = self.repair_tries > 0 or self.max_drift > 0 or self.skip_flat
        return self.guides or asks

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
                    f"There is no setting {name!r}. The settings are: {', '.join(knobs())}.",
                    field=str(name), value=values[name], limit="a known name",
                )
        return cls(**values)

    def to_infotext(self) -> dict[str, str]:
        """Saved keys and values, in field order; sizes that are not given are left out."""
        shown = {n: k for n, k in knobs().items() if k.unset is None or getattr(self, n) != k.unset}
        return {knob.key: str(getattr(self, name)) for name, knob in shown.items()}

    @classmethod
    def from_infotext(cls, params: Mapping[str, str]) -> Settings:
        """Settings from saved keys; keys of other programs are passed over.

        Raises:
            SettingsError: a value cannot be read as its setting's type, or as for the constructor.
        """
        types = get_type_hints(cls)
        found = {n: _parsed(n, params[k.key], types[n], k) for n, k in knobs().items() if k.key in params}
        return cls(**found)


RETIRED: Final[dict[str, Knob]] = {
    "allowed_drift": Knob(
        "Allowed drift", "DINO allowed drift",
        "Retired in 0.2: three probe tiles bound nothing. It is read and ignored; use the drift limit.", unset=0.0,
    ),
}
"""Settings of earlier versions: their saved keys and places among the arguments are still read, and ignored."""


def knobs() -> dict[str, Knob]:
    """Each setting's `Knob` by name, in field order."""
    return {f.name: f.metadata["knob"] for f in dataclasses.fields(Settings)}


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "conservative": {"denoise": 0.15, "dino_strength": 0.8, "steps": 20},
    "balanced": {"denoise": 0.25, "dino_strength": 0.5, "steps": 20},
    "creative": {"denoise": 0.5, "dino_strength": 0.4, "steps": 28},
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


def _checked(name: str, value: Any, kind: type, knob: Knob) -> Any:
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits:
        raise SettingsError(
            f"{knob.label} ({name}) must be {wanted}: got {value!r}.", field=name, value=value, limit=wanted
        )
    if kind not in (int, float):
        return value
    allowed = knob.low is not None and knob.high is not None and knob.low <= value <= knob.high
    if not (allowed or value == knob.unset):
        raise SettingsError(
            f"{knob.label} ({name}) must be {knob.limit()}: got {value!r}.",
            field=name, value=value, limit=knob.limit(),
        )
    return kind(value)


def _parsed(name: str, text: str, kind: type, knob: Knob) -> Any:
    try:
        return {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise SettingsError(
            f"The saved text gives {knob.key} as {text!r}, which is not {knob.limit()}.",
            field=name, value=text, limit=knob.limit(),
        ) from None

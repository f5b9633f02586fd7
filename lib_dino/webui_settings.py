"""What only a WebUI has of settings, and the order of the arguments that its panel and its API send.

Declared like the core's: a new setting is one field below, and its use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .declarations import Knob, declare, declared, named
from .settings import knobs

TITLE: Final = "DINO Upscale"
"""The extension's name in a WebUI and its API."""

NO_UPSCALER: Final = "None"

OPTION_KEPT: Final = "dino_upscale_kept_tiles_gib"
"""The settings page's bound of all tiles that are kept on disk; 0 keeps none."""

KEPT_GB: Final = 16


@dataclass(frozen=True)
class WebuiSettings:
    """What only a WebUI has: its own samplers and upscalers, and where reports go."""

    enabled: bool = declare(
        False, "Enable DINO Upscale", "", "Switches the upscaling on.", group="", argument=0, widget="hidden",
    )
    upscaler: str = declare(
        NO_UPSCALER, "Upscaler", "DINO upscaler", "Enlarges the source before the tiles are repainted; None = bicubic.",
        group="Size", argument=4, widget="dropdown",
    )
    sampler_name: str | None = declare(
        None, "Sampler for tiles", "DINO sampler", "Sets the sampling method of the tiles.",
        group="Sampling", argument=7, panel_none="Use same sampler", widget="dropdown",
    )
    scheduler: str | None = declare(
        None, "Schedule type for tiles", "DINO scheduler", "Sets the noise schedule of the tiles.",
        group="Sampling", argument=8, panel_none="Use same scheduler", widget="dropdown",
    )
    preset: str = declare(
        "Custom", "Preset", "DINO preset", "Fills in denoise, DINO strength and steps.",
        group="Preset", argument=16, none_value="Custom", panel_none="Custom", widget="dropdown",
    )
    subject_prompt: str = declare(
        "", "Prompt away from the subject", "DINO subject prompt",
        "Replaces the prompt in tiles without the subject, such as 'sharp photo'; empty = the picture's prompt.",
        group="Repair and limits", argument=27, none_value="",
    )
    drift_map: bool = declare(
        False, "Drift map", "DINO drift map",
        "Measures drift, and adds a map of it and the worst places to the gallery.",
        group="Report", argument=23, none_value=False,
    )
    save_report: bool = declare(
        False, "Save drift report", "DINO drift report",
        "Measures drift, and saves its figures and a page beside the picture.",
        group="Report", argument=24, none_value=False,
    )
    resume: bool = declare(
        True, "Resume", "",
        "Goes on where the same upscale, with the same picture and settings, was cut short; off = starts it again.",
        group="Tiles", argument=30,
    )
    references: tuple[bytes, ...] = declare(
        (), "Reference pictures", "",
        "Takes up to 8 sharp pictures of the same thing, which lend their detail where they match.",
        group="References", argument=31, widget="pictures",
    )


RETIRED: Final[dict[str, Knob]] = {
    "allowed_drift": named("allowed_drift", Knob(
        "Allowed drift", "DINO allowed drift",
        "Allowed drift (allowed_drift) was retired in version 0.2 and is ignored. Use Drift limit (max_drift).",
        argument=26, default=0.0, none_value=0.0, widget="hidden",
    ), webui_only=True),
}  # fmt: skip
"""Settings of earlier versions: their saved keys and places among the arguments are still read, and ignored."""


def webui_knobs() -> Mapping[str, Knob]:
    """The declaration of each setting that only a WebUI has, in field order."""
    return declared(WebuiSettings, webui_only=True)


def all_knobs() -> Mapping[str, Knob]:
    """Every declaration by name, retired ones too, in the order of a WebUI's arguments."""
    return _ALL


_ALL: Final = dict(sorted({**knobs(), **webui_knobs(), **RETIRED}.items(), key=lambda item: item[1].argument))

FIELDS: Final[tuple[str, ...]] = tuple(_ALL)
"""Order of a WebUI's arguments; grows at its end only."""


def retired_notes(values: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for each retired setting that `values` give, by name or by saved key."""
    given = ((knob, values.get(name, values.get(knob.key))) for name, knob in RETIRED.items())
    return tuple(knob.help for knob, value in given if value not in (None, knob.none_value, str(knob.none_value), "0"))


def in_group(group: str) -> list[Knob]:
    """The declarations of a group, the core's first, in field order."""
    return [knob for knob in (*knobs().values(), *webui_knobs().values()) if knob.group == group]

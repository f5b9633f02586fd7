"""From what the panel or the API sends to a checked `Job`; knows no host.

The same list serves the script dropdown and `alwayson_scripts`: either values in the order of `FIELDS`, or one
dictionary of names. What is missing or None follows the preset, then the request itself, then the default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, get_type_hints

from ...errors import SettingsError
from ...settings import INFOTEXT_VERSION_KEY, PRESETS, RETIRED, Knob, Settings, knobs, preset
from ...version import __version__
from ..model.model_files import DEFAULT_MODEL, NO_ADAPTER

TITLE: Final = "DINO Upscale"
SAME_SAMPLER: Final = "Use same sampler"
SAME_SCHEDULER: Final = "Use same scheduler"
NO_PRESET: Final = "Custom"
NO_UPSCALER: Final = "None"

HOST_KNOBS: Final[dict[str, Knob]] = {
    "enabled": Knob("Enable DINO Upscale", "", "Off leaves the generation alone."),
    "upscaler": Knob(
        "Upscaler", "DINO upscaler", "Enlarges the source before the tiles are repainted; None is plain bicubic."
    ),
    "sampler_name": Knob("Sampler for tiles", "DINO sampler", "Sampling method of the tiles."),
    "scheduler": Knob("Schedule type for tiles", "DINO scheduler", "Noise schedule of the tiles."),
    "preset": Knob("Preset", "DINO preset", "Fills in what is not given: denoise, DINO strength and steps."),
    "drift_map": Knob(
        "Drift map", "DINO drift map",
        "Measures how far the result has left its source, and adds a map and the worst places to the gallery.",
    ),
    "save_report": Knob(
        "Save drift report", "DINO drift report",
        "Measures drift, and writes its figures and a page to look at beside the saved picture.",
    ),
    "subject_prompt": Knob(
        "Prompt away from the subject", "DINO subject prompt",
        "For tiles that do not show the picture's subject, such as 'sharp photo, fine detail'; empty gives every tile "
        "the picture's prompt.", unset="",
    ),
}
"""Settings that only a WebUI has, declared like the core's."""

FIELDS: Final[tuple[str, ...]] = (
    "enabled", "scale_factor", "width", "height", "upscaler", "denoise", "steps", "sampler_name", "scheduler",
    "tile_size", "overlap", "tile_batch_size", "dino_enabled", "dino_strength", "dino_model", "consistency",
    "preset", "seed", "megapixels", "repair_tries", "max_drift",
    "adapter", "adapter_strength", "drift_map", "save_report", "skip_flat", "allowed_drift", "subject_prompt",
    "clean_source", "texture",
)  # fmt: skip
"""The order of the arguments; grows at its end only."""

_TEXT_DEFAULTS: Final = {
    "upscaler": NO_UPSCALER, "sampler_name": SAME_SAMPLER, "scheduler": SAME_SCHEDULER, "preset": NO_PRESET,
    "dino_model": DEFAULT_MODEL, "adapter": NO_ADAPTER,
    "subject_prompt": "",
}  # fmt: skip

_LONGEST: Final = 10_000

_FLAGS: Final = ("enabled", "drift_map", "save_report")


@dataclass(frozen=True)
class Request:
    """What the generation itself asks for; None where it does not say."""

    denoise: float | None = None
    steps: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Job:
    """One upscaling, checked.

    Attributes:
        enabled: whether anything is to be done.
        settings: the core's settings; a seed of -1 is the host's to draw.
        upscaler: name of the host's upscaler.
        sampler_name, scheduler: names as the host has them; None keeps the request's own.
        subject_prompt: for tiles without the picture's subject; empty gives all the picture's prompt.
        drift_map, save_report: measure drift, to show it in the gallery and to save it beside the picture.
    """

    enabled: bool = False
    settings: Settings = field(default_factory=Settings)
    upscaler: str = NO_UPSCALER
    sampler_name: str | None = None
    scheduler: str | None = None
    drift_map: bool = False
    save_report: bool = False
    subject_prompt: str = ""

    @property
    def preset(self) -> str:
        """The preset whose values these are, or `NO_PRESET`."""
        named = (name for name in PRESETS if all(getattr(self.settings, k) == v for k, v in preset(name).items()))
        return next(named, NO_PRESET)

    def to_infotext(self) -> dict[str, str]:
        """Saved keys and values; the seed is left out, for the host saves it picture by picture."""
        values = dataclasses.replace(self.settings, seed=-1).to_infotext()
        for name in ("upscaler", "sampler_name", "scheduler", "preset", "subject_prompt"):
            if (value := getattr(self, name)) not in (None, NO_PRESET, ""):
                values[HOST_KNOBS[name].key] = value
        for name in ("drift_map", "save_report"):
            if getattr(self, name):
                values[HOST_KNOBS[name].key] = str(True)
        return {**values, INFOTEXT_VERSION_KEY: __version__}


def all_knobs() -> dict[str, Knob]:
    """Every argument's `Knob` by name, in the order of `FIELDS`."""
    found = {**knobs(), **HOST_KNOBS, **RETIRED}
    return {name: found[name] for name in FIELDS}


def default(name: str) -> Any:
    """What the panel shows at first; `enabled` is off."""
    if name in _FLAGS:
        return False
    if name == "steps" or name in RETIRED:
        return 0
    return _TEXT_DEFAULTS[name] if name in _TEXT_DEFAULTS else getattr(Settings(), name)


def parse(
    args: Sequence[Any],
    *,
    request: Request,
    choices: Mapping[str, Sequence[str]],
    enabled: bool,
    overrides: Mapping[str, Any] | None = None,
) -> Job:
    """The job that `args` describe.

    Args:
        args: values in the order of `FIELDS`, fewer leave the rest open; or one dictionary of names.
        request: what stands in for denoise, steps and seed.
        choices: names the host knows for "upscaler", "sampler_name" and "scheduler"; no entry, no such control.
        enabled: what "enabled" is when a list leaves it open; a dictionary is always meant to act.
        overrides: set on top of everything, by an X/Y/Z plot.

    Raises:
        SettingsError: a name is unknown, or a value of the wrong type or outside its limit; `field` names it.
    """
    given = _named(args)
    values = {name: value for name, value in given.items() if value is not None}
    values.setdefault("enabled", True if _is_dictionary(args) else enabled)
    values.update(overrides or {})
    chosen = _text(values, "preset", [NO_PRESET, *PRESETS])
    filled = preset(chosen) if chosen != NO_PRESET else {}
    # A preset that a plot varies goes before the panel's sliders, not before what else the plot varies.
    forced = {**filled, **(overrides or {})} if overrides and "preset" in overrides else {}
    values = {**filled, **values, **forced}
    if values.get("steps") == 0 and not isinstance(values["steps"], bool):
        values["steps"] = filled.get("steps", request.steps)
    for name in ("denoise", "steps", "seed"):
        if values.get(name) is None and (own := getattr(request, name)) is not None:
            values[name] = own
    return Job(
        enabled=_flag(values, "enabled"),
        settings=Settings.from_mapping(_core_values(values)),
        upscaler=_text(values, "upscaler", choices.get("upscaler", [NO_UPSCALER])),
        sampler_name=_other(_text(values, "sampler_name", [SAME_SAMPLER, *choices.get("sampler_name", ())])),
        scheduler=_other(_text(values, "scheduler", [SAME_SCHEDULER, *choices.get("scheduler", ())])),
        drift_map=_flag(values, "drift_map"),
        save_report=_flag(values, "save_report"),
        subject_prompt=_free_text(values, "subject_prompt"),
    )


def _is_dictionary(args: Sequence[Any]) -> bool:
    return bool(args) and isinstance(args[0], Mapping)


def _named(args: Sequence[Any]) -> dict[str, Any]:
    if _is_dictionary(args):
        for name in args[0]:
            if name not in FIELDS:
                raise SettingsError(
                    f"There is no setting {_short(name)}. The settings are: {', '.join(FIELDS)}.",
                    field=str(name)[:80], value=args[0][name], limit="a known name",
                )  # fmt: skip
        return dict(args[0])
    if len(args) > len(FIELDS):
        raise SettingsError(
            f"There are {len(FIELDS)} arguments, in this order: {', '.join(FIELDS)}; got {len(args)}.",
            field="script_args", value=len(args), limit=f"at most {len(FIELDS)} values, or one dictionary",
        )  # fmt: skip
    return dict(zip(FIELDS, args, strict=False))


def _core_values(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = get_type_hints(Settings)
    found = {name: values[name] for name in knobs() if values.get(name) is not None}
    for name, value in found.items():
        # Sliders and JSON send whole numbers as 20.0 now and then.
        if kinds[name] is int and isinstance(value, float) and value.is_integer():
            found[name] = int(value)
        if isinstance(value, int | str) and len(_short(value)) >= _SHOWN:
            _refuse_giants(name, value)
    if found.get("dino_model") == DEFAULT_MODEL:
        found["dino_model"] = ""
    if found.get("adapter") == NO_ADAPTER:
        found["adapter"] = ""
    return found


_SHOWN: Final = 120


def _refuse_giants(name: str, value: int | str) -> None:
    """Numbers of a thousand digits are refused before anything prints them in full."""
    if isinstance(value, str) and name in ("dino_model", "adapter") and len(value) <= 4096:
        return
    raise SettingsError(
        f"{all_knobs()[name].label} ({name}) must be {all_knobs()[name].limit()}: got {_short(value)}.",
        field=name, value=value, limit=all_knobs()[name].limit(),
    )  # fmt: skip


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**60:
        return f"a number of about {value.bit_length() * 3 // 10} digits".ljust(_SHOWN, ".")
    text = repr(value)
    return text if len(text) < _SHOWN else text[: _SHOWN - 3] + "..."


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name, False)
    if not isinstance(value, bool):
        raise SettingsError(
            f"{HOST_KNOBS[name].label} ({name}) must be true or false: got {_short(value)}.",
            field=name, value=value, limit="true or false",
        )  # fmt: skip
    return value


def _text(values: Mapping[str, Any], name: str, allowed: Sequence[str]) -> str:
    value = values.get(name)
    if value is None or value == "":
        return str(_TEXT_DEFAULTS[name])
    found = [text for text in allowed if isinstance(value, str) and text.lower() == value.lower()]
    if not found:
        raise SettingsError(
            f"{HOST_KNOBS[name].label} ({name}) must be one of {', '.join(allowed)}: got {_short(value)}.",
            field=name, value=value, limit=" | ".join(allowed),
        )  # fmt: skip
    return found[0]


def _free_text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name) or ""
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise SettingsError(
            f"{HOST_KNOBS[name].label} ({name}) must be text of at most {_LONGEST} characters: got {_short(value)}.",
            field=name, value=value, limit=f"text of at most {_LONGEST} characters",
        )  # fmt: skip
    return value.strip()


def _other(name: str) -> str | None:
    return None if name in (SAME_SAMPLER, SAME_SCHEDULER) else name


def pasted(name: str, params: Mapping[str, Any]) -> Any:
    """What a control shows after a picture's saved text was pasted; None leaves it as it is."""
    knob = all_knobs()[name]
    if knobs()["scale_factor"].key not in params or name in ("enabled", "seed", *RETIRED):
        return None
    text = params.get(knob.key)
    if text is None:
        return default(name)
    kind = str if name in _TEXT_DEFAULTS else bool if name in _FLAGS else get_type_hints(Settings)[name]
    try:
        return {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        return None

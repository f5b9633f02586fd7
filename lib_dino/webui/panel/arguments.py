"""From what the panel or the API sends to a checked `Job`; knows no host.

The same list serves the script dropdown and `alwayson_scripts`: either values in the order of `FIELDS`, or one
dictionary of names. What is missing or None follows the preset, then the request itself, then the default.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...declarations import Knob, to_saved
from ...errors import SettingsError
from ...settings import INFOTEXT_VERSION_KEY, MAX_REFERENCES, PRESETS, Settings, knobs, preset
from ...version import __version__
from ...webui_settings import FIELDS, WebuiSettings, all_knobs, retired_notes, webui_knobs

_MAX_TEXT: Final = 10_000
_MAX_PATH: Final = 4096
_SHOWN: Final = 120
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True)
class Request:
    """What the generation itself asks for; None where it does not say."""

    denoise: float | None = None
    steps: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Job(WebuiSettings):
    """One upscaling, checked: the settings that only a WebUI has, and the core's.

    Attributes:
        settings: the core's settings; a seed of -1 is the host's to draw.
        notes: sentences for the user about what was given and ignored.
    """

    settings: Settings = field(default_factory=Settings)
    notes: tuple[str, ...] = ()

    def to_infotext(self) -> dict[str, str]:
        """Saved keys and values; the seed is left out, for the host saves it picture by picture."""
        core = dataclasses.replace(self.settings, seed=-1).to_infotext()
        return {**core, **to_saved(self, webui_knobs()), INFOTEXT_VERSION_KEY: __version__}


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
        request: stands in for denoise, steps and seed.
        choices: names the host knows for each setting that takes one; no entry, no such control.
        enabled: value of "enabled" where a list leaves it open; a dictionary is always meant to act.
        overrides: set on top of everything, by an X/Y/Z plot.

    Raises:
        SettingsError: a name is unknown, or a value of the wrong type or outside its limit; `field` names it.
    """
    forced = _given(overrides or {})
    given = {name: value for name, value in _given(_named(args)).items() if name not in (overrides or {})}
    values = {"enabled": _is_dictionary(args) or enabled, **given, **forced}
    chosen = _choice(webui_knobs()["preset"], values.get("preset"), list(PRESETS))
    filled = preset(chosen) if chosen in PRESETS else {}
    if "preset" in forced:
        # A preset that a plot varies goes before the panel's sliders, not before what else the plot varies.
        values = {**values, **filled, **forced}
    own = {name: value for name, value in dataclasses.asdict(request).items() if value is not None}
    values = {**own, **filled, **values}
    names = {name: _webui_value(knob, values.get(name), choices) for name, knob in webui_knobs().items()}
    core = {name: _core_value(knob, values[name]) for name, knob in knobs().items() if name in values}
    settings = Settings.from_mapping(core)
    return Job(**{**names, "preset": _preset_of(settings)}, settings=settings, notes=retired_notes(values))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not all_knobs()[name].is_open(value)}


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


def _preset_of(settings: Settings) -> str:
    """The preset whose values these are."""
    own = (name for name in PRESETS if all(getattr(settings, k) == v for k, v in preset(name).items()))
    return str(next(own, webui_knobs()["preset"].default))


def _core_value(knob: Knob, value: Any) -> Any:
    # Sliders and JSON send whole numbers as 20.0 now and then.
    if knob.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    is_path = isinstance(value, str) and knob.kind is str and len(value) <= _MAX_PATH
    # Numbers of a thousand digits are refused before anything prints them in full.
    if len(_short(value)) >= _SHOWN and not is_path:
        raise knob.error(value, knob.limit(), _short(value))
    return value


def _webui_value(knob: Knob, value: Any, choices: Mapping[str, Sequence[str]]) -> Any:
    """The value of a setting that only a WebUI has."""
    if value is None:
        return knob.default
    if knob.widget == "pictures":
        return _pictures(knob, value)
    if knob.widget == "dropdown":
        known = PRESETS if knob.name == "preset" else choices.get(knob.name, ())
        return _choice(knob, value, list(known))
    if knob.kind is str:
        return _text(knob, value)
    return knob.checked(_core_value(knob, value))


def _choice(knob: Knob, value: Any, known: Sequence[str]) -> Any:
    """`value` as the host spells it."""
    if value in (None, ""):
        return knob.default
    allowed = dict.fromkeys([str(knob.panel_default), *known])
    found = [text for text in allowed if isinstance(value, str) and text.lower() == value.lower()]
    if not found:
        limit = "one of " + ", ".join(allowed)
        raise knob.error(value, limit, _short(value))
    return found[0]


def _text(knob: Knob, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise knob.error(value, f"text of at most {_MAX_TEXT} characters", _short(value))
    return value.strip()


def _pictures(knob: Knob, value: Any) -> tuple[bytes, ...]:
    """Files of pictures: bytes from the panel, base64 from the API, never a name of a file."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    given = [one for one in given if one not in ("", None)]
    if len(given) > MAX_REFERENCES:
        raise knob.error(value, f"at most {MAX_REFERENCES} pictures", f"{len(given)} pictures")
    return tuple(one if isinstance(one, bytes) else _decoded(knob, one) for one in given)


def _decoded(knob: Knob, text: Any) -> bytes:
    """The bytes of base64 text, which may begin as a data URL does."""
    try:
        return base64.b64decode(re.sub(r"^data:[^,]*,", "", text), validate=True)
    except (TypeError, ValueError):
        raise knob.error(text, "a list of pictures in base64", _short(text)) from None


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**60:
        return f"a number of about {value.bit_length() * 3 // 10} digits".ljust(_SHOWN, ".")
    text = repr(value)
    return text if len(text) < _SHOWN else text[: _SHOWN - 3] + "..."


def pasted(name: str, params: Mapping[str, Any]) -> Any:
    """What a control shows after a picture's saved text was pasted; None leaves it as it is."""
    knob = all_knobs()[name]
    if knobs()["scale_factor"].key not in params or knob.widget in ("hidden", "pictures"):
        return None
    text = params.get(knob.key)
    if text is None:
        return knob.panel_default
    try:
        return knob.parsed(text)
    except SettingsError:
        return None

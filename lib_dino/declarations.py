"""One declaration per setting: its words and limits, and where it stands in each place that shows it.

The fields of the classes in `settings` carry these. The panel, the API, the command line, the saved text, the X/Y/Z
axes and `docs/settings.md` loop over them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from .errors import SettingsError

Widget: TypeAlias = Literal["slider", "number", "checkbox", "dropdown", "text", "pictures", "hidden"]

OPEN_GROUPS: Final = ("Preset", "Size", "Strength")
"""Groups of settings that the panel shows at first, in its order."""

FOLDED_GROUPS: Final = ("Sampling", "Tiles", "Fidelity", "References", "Repair and limits", "Adapter", "Report")
"""Groups that the panel folds away, in its order."""

_SHOWN: Final = 200
"""Characters of a wrong value that a message repeats."""

GROUPS: Final = (*OPEN_GROUPS, *FOLDED_GROUPS)


@dataclass(frozen=True)
class Knob:
    """What one setting is.

    Attributes:
        label: the words a user sees beside the control.
        key: the name in a picture's saved text; never changes once released. Empty: not saved.
        help: one sentence for tooltips, `--help` and `docs/settings.md`.
        group: one of `GROUPS`; empty for what lies in no group.
        argument: place among the WebUI's arguments, from 0; never changes once released.
        default: the value when nothing is given; its type is the setting's.
        low, high: inclusive limits of a number, in `unit`.
        step: what a slider moves by.
        unit: "px", "x", "MP" or empty for a plain number or a fraction.
        none_value: a value that means "not given" and is not saved; a number's lies outside its limits.
        panel_none: what the panel and the API show for "not given", where that is not the default.
        widget: the panel's control; a hidden one only keeps the argument's place.
        img2img_note: words under the control in img2img.
        flag: the command line's name; empty takes it from the setting's name.
        name: of the field that carries this.
        webui_only: whether the command line lacks it.
    """

    label: str
    key: str
    help: str
    group: str = ""
    argument: int = -1
    default: Any = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    unit: str = ""
    none_value: float | str | None = None
    panel_none: float | str | None = None
    widget: Widget = "text"
    img2img_note: str = ""
    flag: str = ""
    name: str = ""
    webui_only: bool = False

    @property
    def kind(self) -> type:
        """Type of a value."""
        return str if self.default is None else type(self.default)

    @property
    def panel_default(self) -> Any:
        """What the panel shows at first."""
        return self.default if self.panel_none is None else self.panel_none

    @property
    def panel_low(self) -> float | None:
        """Lowest number that the panel takes: the one that leaves the setting open, where there is one."""
        lowest = (self.panel_none, self.none_value, self.low)
        return next((n for n in lowest if isinstance(n, int | float)), None) if self.low is not None else None

    @property
    def panel_help(self) -> str:
        """`help`, and what a number means that leaves the setting open in the panel alone."""
        own = isinstance(self.panel_none, int | float)
        return f"{self.help} {short(self.panel_none)} = the tab's own." if own else self.help

    def limit(self) -> str:
        """The allowed values in words."""
        if self.kind is bool:
            return "true or false"
        if self.widget == "pictures":
            return "pictures"
        if self.low is None or self.high is None:
            return "any text"
        span = f"{short(self.low)} to {short(self.high)}{' ' + self.unit if self.unit else ''}"
        return f"{span}, or {short(self.none_value)}" if isinstance(self.none_value, int | float) else span

    def is_none(self, value: object) -> bool:
        """Tell whether `value` stands for "not given" in a picture's saved text."""
        return value is None or (self.none_value is not None and value == self.none_value)

    def is_open(self, value: object) -> bool:
        """Tell whether the panel or the API leaves the setting open with `value`."""
        if isinstance(value, str) and isinstance(self.panel_none, str):
            return value.casefold() == self.panel_none.casefold()
        is_flag = isinstance(value, bool)
        return value is None or (self.panel_none is not None and not is_flag and value == self.panel_none)

    def checked(self, value: Any) -> Any:
        """`value` in the setting's own type.

        Raises:
            SettingsError: it is of another type or outside the limits.
        """
        kind = self.kind
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
        fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not fits:
            raise self.error(value, words)
        if kind not in (int, float):
            return value
        allowed = self.low is not None and self.high is not None and self.low <= value <= self.high
        if not (allowed or value == self.none_value):
            raise self.error(value, self.limit())
        return kind(value)

    def error(self, value: object, limit: str, text: str = "") -> SettingsError:
        """What to raise for a wrong `value`, shown as `text` where its own would be too long."""
        message = f"{self.label} ({self.name}) must be {limit}: got {text or repr(value)[:_SHOWN]}."
        return SettingsError(message, field=self.name, value=value, limit=limit)

    def parsed(self, text: str) -> Any:
        """A value out of a picture's saved text.

        Raises:
            SettingsError: it cannot be read.
        """
        try:
            return {"True": True, "False": False}[text] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            raise SettingsError(
                f"The saved text gives {self.key} as {text[:_SHOWN]!r}; it must be {self.limit()}.",
                field=self.name, value=text, limit=self.limit(),
            ) from None  # fmt: skip


def short(number: Any) -> str:
    """A number without needless decimals."""
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def declare(default: Any, label: str, key: str, help: str, *, group: str, argument: int, **more: Any) -> Any:
    """A dataclass field that declares a setting; see `Knob` for what may be said of it."""
    by_kind = {bool: "checkbox", int: "slider", float: "slider"}
    more.setdefault("widget", by_kind.get(type(default), "text"))
    knob = Knob(label, key, help, group, argument, default, **more)
    return dataclasses.field(default=default, metadata={"knob": knob})


@functools.cache
def declared(kind: type, *, webui_only: bool = False) -> Mapping[str, Knob]:
    """The declarations on a class's fields by name, in field order."""
    found = {f.name: f.metadata["knob"] for f in dataclasses.fields(kind) if "knob" in f.metadata}
    return MappingProxyType({name: named(name, knob, webui_only=webui_only) for name, knob in found.items()})


def named(name: str, knob: Knob, *, webui_only: bool) -> Knob:
    """`knob` with what follows from the name of its field."""
    flag = knob.flag or "--" + name.replace("_", "-")
    return dataclasses.replace(knob, name=name, flag=flag, webui_only=webui_only)


def to_saved(values: object, knobs: Mapping[str, Knob]) -> dict[str, str]:
    """Saved keys and values of an object's settings, in field order; what is not given is left out."""
    found = ((knob, getattr(values, name)) for name, knob in knobs.items() if knob.key)
    return {knob.key: str(value) for knob, value in found if not knob.is_none(value)}

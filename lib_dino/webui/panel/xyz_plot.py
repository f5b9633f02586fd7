"""Axes for the host's X/Y/Z plot, one for each setting with a control; they act on the always-on panel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from ...declarations import Knob
from ...webui_settings import TITLE, all_knobs
from .host_choices import panel_choices

OVERRIDES: Final = "dino_upscale_overrides"
"""Name of the attribute of a generation that holds settings which a plot varies."""

_SWITCH: Final = {"True": True, "False": False}


def apply(name: str) -> Callable[[Any, Any, Any], None]:
    """A function that sets one setting on a generation, as the plot calls it."""

    def act(p: Any, value: Any, values: Any) -> None:
        given = _SWITCH.get(value, value) if all_knobs()[name].kind is bool else value
        # A new dictionary: the plot's cells are shallow copies of one generation.
        setattr(p, OVERRIDES, {**getattr(p, OVERRIDES, {}), name: given, "enabled": True})

    return act


def add_axes() -> None:
    """Offer the axes; again and again makes no second set."""
    plot = next((m for m in _plot_modules() if hasattr(m, "axis_options")), None)
    if plot is None or any(option.label.startswith(_label("")) for option in plot.axis_options):
        return
    for knob in all_knobs().values():
        if knob.widget not in ("hidden", "text", "pictures"):
            plot.axis_options.append(_axis(plot, knob))


def _axis(plot: Any, knob: Knob) -> Any:
    kind = knob.kind if knob.kind in (int, float) else str
    return plot.AxisOption(_label(knob.label), kind, apply(knob.name), **_offered(knob))


def _offered(knob: Knob) -> dict[str, Any]:
    if knob.widget == "checkbox":
        return {"choices": lambda: list(_SWITCH)}
    return {"choices": lambda: panel_choices().get(knob.name, [])} if knob.widget == "dropdown" else {}


def _label(words: str) -> str:
    return f"[{TITLE}] {words}"


def _plot_modules() -> list[Any]:
    """The plot's module: hosts do not list script files in `sys.modules`."""
    from modules import scripts

    held = [data.module for data in scripts.scripts_data if getattr(data, "module", None) is not None]
    named = [m for m in held if str(getattr(m, "__name__", "")).endswith(("xyz_grid.py", "xyz_grid"))]
    return named or [m for name, m in sys.modules.items() if name.endswith("xyz_grid.py")]

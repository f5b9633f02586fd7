"""Axes for the host's X/Y/Z plot; they act on the always-on panel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from ...settings import PRESETS

OVERRIDES: Final = "dino_upscale_overrides"
"""Name of the attribute of a generation that holds settings which a plot varies."""

_AXES: Final[dict[str, tuple[str, type]]] = {
    "dino_strength": ("[DINO Upscale] DINO strength", float),
    "denoise": ("[DINO Upscale] Denoise", float),
    "tile_size": ("[DINO Upscale] Tile size", int),
    "preset": ("[DINO Upscale] Preset", str),
}


def apply(name: str) -> Callable[[Any, Any, Any], None]:
    """A function that sets one setting on a generation, as the plot calls it."""

    def act(p: Any, value: Any, values: Any) -> None:
        # A new dictionary: the plot's cells are shallow copies of one generation.
        setattr(p, OVERRIDES, {**getattr(p, OVERRIDES, {}), name: value, "enabled": True})

    return act


def add_axes() -> None:
    """Offer the axes; again and again makes no second set."""
    plot = next((m for m in _plot_modules() if hasattr(m, "axis_options")), None)
    if plot is None or any(option.label.startswith("[DINO Upscale]") for option in plot.axis_options):
        return
    for name, (label, kind) in _AXES.items():
        extra = {"choices": lambda: list(PRESETS)} if name == "preset" else {}
        plot.axis_options.append(plot.AxisOption(label, kind, apply(name), **extra))


def _plot_modules() -> list[Any]:
    """The plot's module: hosts do not list script files in `sys.modules`."""
    from modules import scripts

    held = [data.module for data in scripts.scripts_data if getattr(data, "module", None) is not None]
    named = [m for m in held if str(getattr(m, "__name__", "")).endswith(("xyz_grid.py", "xyz_grid"))]
    return named or [m for name, m in sys.modules.items() if name.endswith("xyz_grid.py")]

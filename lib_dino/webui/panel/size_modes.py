"""Three ways to give the size of the result, one of which the panel shows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

SIZE_MODES: Final[dict[str, tuple[str, ...]]] = {
    "by scale": ("scale_factor",),
    "to width and height": ("width", "height"),
    "to megapixels": ("megapixels",),
}
"""Settings that each way shows. The first way's always has a value; of the others 0 means "not given"."""

BY_SCALE: Final = next(iter(SIZE_MODES))

CLEARABLE: Final = tuple(name for mode, names in SIZE_MODES.items() if mode != BY_SCALE for name in names)
"""Settings that win over the scale, and so must be 0 while they are hidden."""


def mode_of(values: Mapping[str, Any]) -> str:
    """The way in which `values`, by setting, give the size."""
    given = (mode for mode, names in SIZE_MODES.items() if mode != BY_SCALE and any(values.get(n) for n in names))
    return next(given, BY_SCALE)


def mode_after(mode: str, values: Mapping[str, Any]) -> str:
    """The way to show instead of `mode`, so that no number that acts is hidden."""
    acting = mode_of(values)
    return mode if acting == BY_SCALE and mode in SIZE_MODES else acting

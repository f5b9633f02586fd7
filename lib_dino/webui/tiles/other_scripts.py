"""Which of the user's other always-on scripts act on the whole picture, on each tile, or not at all.

A script that shapes sampling belongs to the tiles; one that works on finished pictures, prompts or saving belongs
to the picture. None runs twice. Those that lay out the whole canvas themselves are left out, and say so.
"""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ...tiling.plan import Tile
from ...webui_settings import TITLE

CONTROLNET: Final = "controlnet"
PER_TILE: Final = (CONTROLNET, "hypertile")
LEFT_OUT: Final = {
    "soft inpainting": "the mask is blended at full size here",
    "tiled diffusion": "the tiles are laid out here",
    "multidiffusion integrated": "the tiles are laid out here",
    "kohya hrfix integrated": "tiles have the model's own size",
    "regional prompter": "its regions are those of the whole picture, not of a tile",
    "latent couple": "its regions are those of the whole picture, not of a tile",
    "forge couple": "its regions are those of the whole picture, not of a tile",
}
"""Titles in lower case, and why."""


def title(script: Any) -> str:
    """A script's title in lower case."""
    try:
        return str(script.title()).lower()
    except Exception:  # other people's code
        return ""


def with_scripts(runner: Any, alwayson: Sequence[Any]) -> Any:
    """A runner like `runner`, with these always-on scripts; `runner` itself stays as it is."""
    from modules import scripts

    changed = scripts.ScriptRunner() if runner is None else copy.copy(runner)
    changed.alwayson_scripts = list(alwayson)
    if hasattr(changed, "callback_map"):
        # Shared with the original and checked by length alone: a filtered list would run the wrong scripts.
        changed.callback_map = {}
    return changed


def without(runner: Any, own: Sequence[type]) -> Any:
    """A runner like `runner` without scripts of these classes."""
    return with_scripts(runner, [s for s in _alwayson(runner) if not isinstance(s, tuple(own))])


def for_picture(runner: Any, *, without: Sequence[type]) -> list[Any]:
    """The scripts that act on the whole picture."""
    return [s for s in _alwayson(runner) if not isinstance(s, tuple(without)) and not _per_tile(s) and not left_out(s)]


def for_tiles(runner: Any, *, without: Sequence[type]) -> list[Any]:
    """The scripts that act on each tile."""
    return [s for s in _alwayson(runner) if not isinstance(s, tuple(without)) and _per_tile(s) and not left_out(s)]


def notices(runner: Any, script_args: Sequence[Any]) -> Iterator[str]:
    """A line for every script that is switched on and left out."""
    for script in _alwayson(runner):
        if (why := left_out(script)) and _first_argument(script, script_args) is True:
            yield f"{TITLE}: {script.title()} is left out, {why}."


def upscaling_script(p: Any) -> str:
    """Title of the chosen script where it enlarges the picture by itself, tile by tile; empty where none does.

    Such a script, "SD upscale" or "Ultimate SD upscale", generates each of its tiles as a picture of the tab, and every
    always-on script acts on each of them. It is known by its title: nothing else tells it from a script that makes
    whole pictures, such as an X/Y/Z plot.
    """
    number = next(iter(p.script_args or ()), 0)
    chosen = getattr(p.scripts, "selectable_scripts", None) or []
    if not isinstance(number, int) or not 0 < number <= len(chosen):
        return ""
    script = chosen[number - 1]
    return str(script.title()) if "upscale" in title(script) and title(script) != TITLE.lower() else ""


def left_out(script: Any) -> str | None:
    """Why a script is left out, or None."""
    return next((why for name, why in LEFT_OUT.items() if title(script).startswith(name)), None)


def _alwayson(runner: Any) -> list[Any]:
    return list(getattr(runner, "alwayson_scripts", None) or [])


def _per_tile(script: Any) -> bool:
    if title(script) in PER_TILE:
        return True
    return _overrides(script, "process_before_every_sampling") and not _overrides(script, "postprocess_image")


def _overrides(script: Any, hook: str) -> bool:
    from modules import scripts

    return getattr(type(script), hook, None) is not getattr(scripts.Script, hook, None)


def _first_argument(script: Any, script_args: Sequence[Any]) -> Any:
    start, stop = script.args_from, script.args_to
    return script_args[start] if start is not None and stop and start < min(stop, len(script_args)) else None


class ControlNet:
    """The ControlNet units of a generation.

    Args:
        scripts: those that act on each tile.
        script_args: all arguments of the generation.
    """

    def __init__(self, scripts: Sequence[Any], script_args: Sequence[Any]) -> None:
        found = [s for s in scripts if title(s) == CONTROLNET]
        self._args = list(script_args)
        self._span = range(found[0].args_from, found[0].args_to) if found else range(0)

    @property
    def active(self) -> bool:
        """Whether a unit is switched on: its hint belongs to one tile, so tiles go one at a time."""
        return any(_unit_enabled(self._args[i]) for i in self._span)

    def cropped(self, tile: Tile, size: tuple[int, int]) -> list[Any]:
        """All arguments, with the hints that units bring along cut down to a tile of a canvas of `size`."""
        args = list(self._args)
        for i in self._span:
            if _unit_enabled(args[i]):
                args[i] = _cropped_unit(args[i], tile, size)
        return args


_IMAGES: Final = ("image", "input_image", "mask", "mask_image", "image_fg", "mask_image_fg", "effective_region_mask")


def _unit_enabled(unit: Any) -> bool:
    if isinstance(unit, Mapping):
        return bool(unit.get("enabled", True))
    return bool(getattr(unit, "enabled", False))


def _cropped_unit(unit: Any, tile: Tile, size: tuple[int, int]) -> Any:
    changed = copy.copy(unit)
    for name in _IMAGES:
        held = unit.get(name) if isinstance(unit, Mapping) else getattr(unit, name, None)
        if held is None or isinstance(held, bool):
            continue
        part = _cropped_image(held, tile, size)
        if isinstance(unit, Mapping):
            changed[name] = part
        else:
            setattr(changed, name, part)
    return changed


def _cropped_image(held: Any, tile: Tile, size: tuple[int, int]) -> Any:
    """The part of an array, a PIL image, base64 text or a dictionary of them that lies in `tile`."""
    from PIL import Image

    if isinstance(held, Mapping):
        return {key: None if part is None else _cropped_image(part, tile, size) for key, part in held.items()}
    if isinstance(held, Image.Image):
        return held.crop(_box(tile, size, (held.height, held.width)))
    if isinstance(held, str):
        return _cropped_text(held, tile, size) if held else held
    if getattr(held, "ndim", 0) < 2:
        return held
    x0, y0, x1, y1 = _box(tile, size, held.shape[:2])
    return held[y0:y1, x0:x1]


def _cropped_text(text: str, tile: Tile, size: tuple[int, int]) -> str:
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(text.split(",")[-1])))
    stream = io.BytesIO()
    image.crop(_box(tile, size, (image.height, image.width))).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _box(tile: Tile, size: tuple[int, int], hint: Sequence[int]) -> tuple[int, int, int, int]:
    """The tile in the hint's own pixels, (x0, y0, x1, y1)."""
    rows, cols = hint[0] / size[0], hint[1] / size[1]
    x0, y0 = round(tile.x0 * cols), round(tile.y0 * rows)
    return x0, y0, max(x0 + 1, round(tile.x1 * cols)), max(y0 + 1, round(tile.y1 * rows))

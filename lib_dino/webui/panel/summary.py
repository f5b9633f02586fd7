"""Forecast of a job from the controls alone: one line for the user, and the tiles for the page to draw."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import DinoError
from ...run.plan import JobPlan, plan_job, tile_side
from ...settings import Settings, knobs
from ...tiling.plan import TilePlan
from ...webui_settings import webui_knobs
from ..model.family import ASSUMED, Model
from ..model.samplers import TILE_STEPS, model_calls, tile_steps
from .arguments import Request, parse


@dataclass(frozen=True)
class Tab:
    """Facts that the page gives about its tab.

    Attributes:
        size: (height, width) of the picture to upscale, pixels; None where there is none.
        batch: pictures come from files or a folder, one after the other.
        checkpoint: name of the one that is chosen; empty where the page does not say.
        steps, sampler_name: the tab's own.
        text: as it came, for the page to tell an old answer from a new one.
    """

    size: tuple[int, int] | None = None
    steps: int = 20
    sampler_name: str | None = None
    batch: bool = False
    checkpoint: str = ""
    text: str = ""

    @classmethod
    def read(cls, text: str) -> Tab:
        """From the page's JSON object of "width", "height" and the like; what is unfit is passed over."""
        try:
            found = json.loads(text)
        except (TypeError, ValueError):
            found = None
        found = found if isinstance(found, dict) else {}
        height, width, steps = (_whole(found.get(name)) for name in ("height", "width", "steps"))
        sampler, checkpoint = found.get("sampler"), found.get("checkpoint")
        return cls(
            (height, width) if height and width else None,
            steps or 20,
            sampler if isinstance(sampler, str) and sampler else None,
            found.get("batch") is True,
            checkpoint if isinstance(checkpoint, str) else "",
            str(text),
        )


def _whole(value: object) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1_000_000
    return value if fits and isinstance(value, int) else None


@dataclass(frozen=True)
class Outlook:
    """Forecast of a job.

    Attributes:
        line: in words; or the error.
        tab: facts it rests on.
        target: (height, width) of the result, pixels; None where that is not known.
        plan: its tiles; likewise.
    """

    line: str
    tab: Tab
    target: tuple[int, int] | None = None
    plan: TilePlan | None = None

    def to_html(self) -> str:
        """The line as a block that carries the tiles for `javascript/dino_upscale.js`."""
        data = {"tab": self.tab.text}
        if self.tab.size and self.target and self.plan:
            data |= {
                "target": "{1},{0}".format(*self.target),
                "tile": "{1},{0}".format(*self.plan.tile),
                "tops": ",".join(map(str, self.plan.tops)),
                "lefts": ",".join(map(str, self.plan.lefts)),
            }
        attributes = "".join(f' data-{name}="{html.escape(value)}"' for name, value in data.items())
        # The page's script shows the switch, for without the script it would do nothing.
        return (
            f'<div class="dino-upscale-summary"{attributes}><span>{html.escape(self.line)}</span>'
            '<label class="dino-upscale-switch" hidden><input type="checkbox"> Show the tiles on the picture</label>'
            "</div>"
        )


def outlook(
    tab: Tab,
    values: Mapping[str, Any],
    *,
    model: Model | None = None,
    calls: Callable[..., int] = model_calls,
    full_steps: Callable[[float, int], int] = tile_steps,
) -> Outlook:
    """Output size, tiles and model calls.

    Args:
        tab: of the page.
        values: settings by name, as from the panel.
        model: the one that will be used; None where it cannot be told.
        calls: calls of the model for one tile, as `samplers.model_calls` counts them.
        full_steps: steps that the host is asked for, as `samplers.tile_steps` counts them.
    """
    known = {name: values[name] for name in knobs() if name in values}
    chosen = values.get("sampler_name")
    is_tabs_own = chosen == "" or webui_knobs()["sampler_name"].is_open(chosen)
    sampler = tab.sampler_name if is_tabs_own else str(chosen)
    assumed = model or ASSUMED
    try:
        settings = parse([known], request=Request(steps=tab.steps), choices={}, enabled=True).settings
        if tab.size is None and not tab.batch:
            return Outlook("Add a picture to see the size of the result, the tiles and the model calls.", tab)
        job = None if tab.size is None else plan_job(settings, tab.size, assumed)
        each = calls(sampler, denoise=settings.denoise, steps=settings.steps)
        few = full_steps(settings.denoise, settings.steps) > settings.steps
    except DinoError as error:
        return Outlook(str(error), tab)
    line = _line_of_batch(settings, assumed, each) if job is None else _line(settings, job, each)
    line += _about(settings, model)
    if few:
        line += f" Few-step model: each tile gets {min(settings.steps, TILE_STEPS)} steps whatever the denoise."
    return Outlook(line, tab) if job is None else Outlook(line, tab, job.target_size, job.tiles)


def _line(settings: Settings, job: JobPlan, each: int) -> str:
    size, target, plan = job.source_size, job.target_size, job.tiles
    total = each * -(-len(plan) // settings.tile_batch_size)
    tiles = "1 tile" if len(plan) == 1 else f"{len(plan)} tiles"
    return (
        f"{size[1]} x {size[0]} becomes {target[1]} x {target[0]} px: "
        f"{tiles} of {plan.tile[1]} x {plan.tile[0]} px, {_calls(total)}."
    )


def _line_of_batch(settings: Settings, model: Model, each: int) -> str:
    """What happens to each picture of a batch, whose sizes are not known here."""
    if settings.width and settings.height:
        goal = f"to {settings.width} x {settings.height} px"
    elif settings.width or settings.height:
        goal = f"to a width of {settings.width} px" if settings.width else f"to a height of {settings.height} px"
    else:
        goal = f"to {settings.megapixels:g} megapixels" if settings.megapixels else f"{settings.scale_factor:g} times"
    side = tile_side(settings, model) // model.multiple_px * model.multiple_px
    at_once = "a tile" if settings.tile_batch_size == 1 else f"for {settings.tile_batch_size} tiles"
    return f"Batch: each picture is enlarged {goal}, in tiles of up to {side} x {side} px, {_calls(each)} {at_once}."


def _calls(count: int) -> str:
    return "1 model call" if count == 1 else f"{count} model calls"


def _about(settings: Settings, model: Model | None) -> str:
    if settings.tile_size:
        return ""
    if model is None:
        return f" Tiles as for SD 1.5 ({ASSUMED.tile_px} px); the model is not known yet."
    return f" Tile size for {model.label}."

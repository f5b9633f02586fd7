"""Names that the host knows, whatever other extensions have added to them."""

from __future__ import annotations

import contextlib

from ...settings import PRESETS
from ...webui_settings import NO_UPSCALER
from ..model import model_files


def choices() -> dict[str, list[str]]:
    """The host's upscalers, samplers and schedules, each under the setting that takes one."""
    from modules import sd_samplers, shared

    found = {"upscaler": [NO_UPSCALER, *(u.name for u in shared.sd_upscalers if u.name != NO_UPSCALER)]}
    found["sampler_name"] = [s.name for s in sd_samplers.all_samplers]
    with contextlib.suppress(ImportError):  # Forge Classic keeps the schedule in the sampler's name
        from modules import sd_schedulers

        found["scheduler"] = [s.label for s in sd_schedulers.schedulers]
    return found


def panel_choices() -> dict[str, list[str]]:
    """The names that each of the panel's lists offers; no entry, no such list."""
    found = choices()
    return {
        **found,
        "sampler_name": _visible(found["sampler_name"]),
        "preset": list(PRESETS),
        "dino_model": model_files.names(),
        "adapter": model_files.adapter_names(),
    }


def _visible(names: list[str]) -> list[str]:
    from modules import sd_samplers

    return [name for name in names if name in set(sd_samplers.visible_sampler_names())] or names

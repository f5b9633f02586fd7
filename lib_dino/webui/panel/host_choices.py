"""Names that the host knows, whatever other extensions have added to them."""

from __future__ import annotations

import contextlib

from .arguments import NO_UPSCALER


def choices() -> dict[str, list[str]]:
    """The host's upscalers, samplers and schedules, each under the setting that takes one."""
    from modules import sd_samplers, shared

    found = {"upscaler": [NO_UPSCALER, *(u.name for u in shared.sd_upscalers if u.name != NO_UPSCALER)]}
    found["sampler_name"] = [s.name for s in sd_samplers.all_samplers]
    with contextlib.suppress(ImportError):  # Forge Classic keeps the schedule in the sampler's name
        from modules import sd_schedulers

        found["scheduler"] = [s.label for s in sd_schedulers.schedulers]
    return found

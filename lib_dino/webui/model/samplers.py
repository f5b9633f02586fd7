"""The host's samplers as tiles use them: steps to ask for, calls of the model, a noise schedule that works.

Needs no torch.
"""

from __future__ import annotations

from typing import Any, Final

from ...errors import SettingsError
from .family import Model

FEW_STEPS: Final = 10
"""Fewer steps of a full denoising mean a few-step model: distilled, turbo, lightning. Chosen, not fitted."""

TILE_STEPS: Final = 4
"""What a tile of a few-step model gets at least, or all the steps where there are fewer; as many as the default of 20
steps gives at the default denoise."""

_NEED_TWO: Final = ("DDIM", "DDIM CFG++", "PLMS")
_UNIPC: Final = "UniPC"
_UNIPC_ORDER: Final = 3
"""The host's option `uni_pc_order` where it has not been touched."""

_TIMESTEPS: Final = 1000
"""No schedule has more steps."""

_MOST: Final = 0.999
"""The hosts take a denoise of 1 for this."""

_AUTOMATIC: Final = "Automatic"
_FLOW_SCHEDULE: Final = "Simple"
_NEO_SCHEDULE: Final = "Flux2"


def tile_steps(denoise: float, steps: int) -> int:
    """Steps of a full denoising to ask the host for, so that a tile gets its own.

    Hosts make int(denoise x steps) steps of a tile. Of a few-step model that would be none at a low denoise.

    Args:
        denoise, steps: as in `Settings`.
    """
    least = min(steps, TILE_STEPS)
    if not denoise or steps >= FEW_STEPS or _fixed() or _steps_of(denoise, steps) >= least:
        return steps
    return next((n for n in range(steps, _TIMESTEPS) if _steps_of(denoise, n) >= least), steps)


def model_calls(sampler_name: str | None, *, denoise: float, steps: int) -> int:
    """Calls of the model for one tile, as the host's samplers count them.

    Raises:
        SettingsError: the sampler would not run at all, or return noise.
    """
    from modules import sd_samplers, shared

    if denoise == 0:
        return 0
    steps_in, least = _steps_in(denoise, steps), 2 if sampler_name in _NEED_TWO else 0
    if sampler_name == _UNIPC:
        least = max(1, int(getattr(shared.opts, "uni_pc_order", _UNIPC_ORDER)))
    if steps_in < least:
        enough = next((n for n in range(steps + 1, _TIMESTEPS) if _steps_in(denoise, n) >= least), None)
        advice = "Raise the denoise" if enough is None else f"Raise the steps to {enough}"
        raise SettingsError(
            f"{sampler_name} needs {least} steps of a tile: denoise {denoise} of {steps} steps leaves {steps_in}. "
            f"{advice}, or take another sampler.",
            field="steps", value=steps, limit=f"at least {enough or f'{least} of a tile'}",
        )  # fmt: skip
    config = sd_samplers.all_samplers_map.get(sampler_name)
    twice = bool(config is not None and config.options.get("second_order", False))
    return 2 * steps_in + 1 if twice else steps_in + 1


def working_schedule(sd_model: Any, model: Model, sampler_name: str | None, schedule: str | None) -> str | None:
    """The schedule to use in place of `schedule`; None where that one works.

    For flow models Forge's own noise levels, which "Automatic" stands for with most samplers, begin in the thousands
    where they should begin at 1, and the picture is black. Forge Neo takes "Automatic" for a schedule that works.
    """
    if not (model.flow and hasattr(sd_model, "forge_objects")) or schedule not in (None, "", _AUTOMATIC):
        return None
    try:
        from modules import sd_samplers, sd_schedulers
    except ImportError:
        return None
    config = sd_samplers.all_samplers_map.get(sampler_name)
    own = None if config is None else config.options.get("scheduler")
    known = [schedule.label for schedule in sd_schedulers.schedulers]
    if _NEO_SCHEDULE in known:
        return None
    return _FLOW_SCHEDULE if own in (None, "automatic") and _FLOW_SCHEDULE in known else None


def _steps_in(denoise: float, steps: int) -> int:
    """Steps that the host makes of a tile."""
    asked = tile_steps(denoise, steps)
    return asked - 1 if _fixed() else _steps_of(denoise, asked)


def _fixed() -> bool:
    """Whether the host gives tiles all the steps, whatever their denoise."""
    from modules import shared

    return bool(shared.opts.img2img_fix_steps)


def _steps_of(denoise: float, steps: int) -> int:
    return int(min(denoise, _MOST) * steps)

"""Interrupt and Skip, as the host knows them."""

from __future__ import annotations


def stop_asked() -> bool:
    """Whether the user wants no more of this picture: Interrupt, its softer first click, or Skip."""
    from modules import shared

    state = shared.state
    return bool(state.interrupted or state.skipped or getattr(state, "stopping_generation", False))


def stop_softly_asked() -> None:
    """End the model call at once where the host itself would wait for the end of its job.

    The first click on Interrupt means "after the current picture", and the host takes each tile for one.
    """
    from modules import sd_samplers_common, shared

    if getattr(shared.state, "stopping_generation", False):
        raise sd_samplers_common.InterruptedException


def forget_skip() -> None:
    """Skip is for one picture: let the next one run."""
    from modules import shared

    shared.state.skipped = False

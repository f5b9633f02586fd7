"""The ways in: the script list, the always-on panel, and the API through either."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...errors import SettingsError
from ...webui_settings import TITLE
from ..panel.arguments import Job, Request, parse
from ..panel.host_choices import choices
from ..panel.xyz_plot import OVERRIDES
from ..tiles import other_scripts as others
from . import progress
from .request import check_request
from .upscale_generation import MARK, UpscaleGeneration, as_http_422


def run_as_script(p: Any, script: Any, args: Sequence[Any], *, own: Sequence[type]) -> Any:
    """Upscale as the chosen script of a tab; `p` stays as it was.

    Args:
        p: an img2img generation.
        script: the one that was chosen.
        args: see `arguments.parse`.
        own: this extension's script classes, which must not act on the copy.

    Returns:
        What the host's `process_images` returns.
    """
    from modules import processing

    with as_http_422(p):
        job = job_of(p, _own_arguments(p, script, args), enabled=True)
        q = working_copy(p)
        if not job.enabled:
            q.scripts_value = others.without(q.scripts_value, own)
            return processing.process_images(q)
        # The key brings the script back when the picture's text is pasted.
        upscaling = UpscaleGeneration(q, job)
        upscaling.begin(own=own, keys={"Script": TITLE})
        _begin(q)
        try:
            processed = processing.process_images(q)
        finally:
            upscaling.restore()
        upscaling.finish(processed)
        return processed


def begin(p: Any, args: Sequence[Any], *, own: Sequence[type]) -> None:
    """Make the generation `p` an upscaling if `args` say so: for `before_process` of an always-on script.

    Hosts swallow what hooks raise; an error is therefore raised again where the generation starts.
    """
    restore(p)
    if _nested(p):
        return
    try:
        with as_http_422(p):
            job = job_of(p, args, enabled=False)
            if job.enabled and (tiling := others.upscaling_script(p)):
                progress.comment(p, f"{TITLE} is left out: {tiling} enlarges the picture itself.")
                p.extra_generation_params[_LEFT_OUT] = tiling
            elif job.enabled:
                UpscaleGeneration(p, job).begin(own=own, keys={})
                _begin(p)
    except Exception as error:
        _fail_later(p, error)


_LEFT_OUT: Final = "DINO left out for"
"""Saved with the pictures of another upscaling script."""

_under_way: list[tuple[Any, Any]] = []
"""The generation that is being upscaled and the host's job it belongs to, or nothing."""


def _begin(p: Any) -> None:
    from modules import shared

    _under_way[:] = [(weakref.ref(p), getattr(shared.state, "time_start", None))]


def _nested(p: Any) -> bool:
    """Whether `p` is generated in the middle of an upscaling, as ADetailer does with faces."""
    from modules import shared

    for outer, job in _under_way:
        # An upscaling that broke off leaves its entry behind, but the next job of the host has its own start.
        if job == getattr(shared.state, "time_start", None) and (held := outer()) is not None:
            return held is not p and MARK in held.__dict__
    return False


def restore(p: Any, processed: Any = None) -> None:
    """Put back what `begin` changed, and add what it measured: for `postprocess` of the same script."""
    upscaling = p.__dict__.get(MARK)
    if upscaling is not None:
        upscaling.restore()
        if processed is not None:
            upscaling.finish(processed)


def job_of(p: Any, args: Sequence[Any], *, enabled: bool) -> Job:
    """The job that `args` describe for the generation `p`.

    Raises:
        SettingsError: as for `arguments.parse`; or the request itself is unfit.
    """
    img2img = hasattr(p, "init_images")
    steps = p.steps if isinstance(p.steps, int) else None
    job = parse(
        args,
        request=Request(denoise=p.denoising_strength if img2img else None, steps=steps),
        choices=choices(),
        enabled=enabled,
        overrides=getattr(p, OVERRIDES, None),
    )
    if job.enabled:
        check_request(p)
    return job


def working_copy(p: Any) -> Any:
    """A copy that shares nothing with `p` that a generation changes."""
    q = copy.copy(p)
    q.extra_generation_params = dict(p.extra_generation_params)
    q.override_settings, q.comments = dict(p.override_settings), dict(p.comments or {})
    q.init_images = list(p.init_images)
    for name in ("latents_after_sampling", "pixels_after_sampling", "extra_result_images"):
        if hasattr(q, name):
            setattr(q, name, [])
    return q


def _own_arguments(p: Any, script: Any, args: Sequence[Any]) -> Sequence[Any]:
    """Those of `args` that were given for `script`.

    The API splices `script_args` into the list of all arguments as they are: with fewer than there are controls,
    the values of the next script slide in.
    """
    held = list(p.script_args or ())
    if not getattr(p, "is_api", False) or not held:
        return args
    usual = max((s.args_to or 0 for s in p.scripts.scripts), default=len(held))
    if len(held) < script.args_from:
        # Its API answers a moment before it knows its scripts' arguments, and drops those of the request.
        raise SettingsError(
            "The WebUI is still starting and lost script_args. Send the request again.",
            field="script_args", value=None, limit="a WebUI that is ready",
        )  # fmt: skip
    given = script.args_to - script.args_from + len(held) - max(usual, 1)
    own = held[script.args_from : script.args_from + max(given, 0)]
    if len(own) > 1 and isinstance(own[0], Mapping):
        raise SettingsError(
            f"script_args takes one dictionary of settings and nothing after it: got {len(own)} values.",
            field="script_args", value=len(own), limit="one dictionary, or values in order",
        )  # fmt: skip
    return own


_HARMLESS: Final = {
    "prompt": "", "negative_prompt": "", "batch_size": 1, "n_iter": 1, "seed": 1, "subseed": 1,
    "override_settings": {},
}  # fmt: skip
"""In place of what a request asked for, so that the host itself does not stumble over it first."""


def _fail_later(p: Any, error: Exception) -> None:
    held = p.__dict__
    asked = {name: held[name] for name in _HARMLESS if name in held}

    def init(*args: Any, **kwargs: Any) -> None:
        held.pop("init", None)
        held.update(asked)
        raise error

    held["init"] = init
    held.update({name: _HARMLESS[name] for name in asked})
    # No other script may start what only its last hook would undo.
    held["scripts_value"] = others.with_scripts(p.scripts, [])

"""Finished tiles of a generation, kept on disk so that the same one can go on after it was cut short.

What decides a tile's pixels in a WebUI is spread over the generation, its scripts, the host's options and the files of
its model. All of it goes into a job's fingerprint; where something in it cannot be told, no tiles are kept.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...networks.dinov2 import Dinov2
from ...resume.fingerprint import (
    UnknownContentError,
    digest,
    features_fingerprint,
    network_digest,
    package_digest,
)
from ...resume.job_tiles import JobTiles, forget, job_tiles, kept_seed
from ...resume.place import Keeping
from ...webui_settings import KEPT_GB, OPTION_KEPT, TITLE
from ..panel.arguments import Job
from ..tiles.other_scripts import title

log = logging.getLogger("dino_upscale")

_NOT_PIXELS: Final = re.compile(
    r"outpath|_path$|seed|^(iteration|user|width|height|steps|denoising_strength|is_api|do_not_.*|save_.*|"
    r"sampler_index|disable_extra_networks_.*|token_merging_ratio.*|init_img_hash|script_args_.*|.*_done|prompt|"
    r"negative_prompt|main_.*|current_.*|started|refiner_.*|eta_noise_seed_delta_.*)$"
)
"""Attributes of a generation that do not reach its tiles, or reach them as settings of the job."""

_NOT_TILES: Final = re.compile(
    r"port|listen|share|server|auth|gradio|browser|theme|autolaunch|log|nowebui|api|cors|tls|subpath|ngrok|timeout|"
    r"_dir$|config|settings_file|title|skip_|dump_|freeze|hide_|update|reinstall|loglevel|add_stop_route|no_hashing"
)
"""Arguments of the host's command line that do not reach tiles."""


def folder() -> Path:
    """Where the host's tiles are kept."""
    from modules import paths

    return Path(paths.data_path) / "cache" / "dino-upscale-tiles"


class Kept:
    """The tiles that one generation keeps.

    Args:
        p: the generation, before the host has drawn its seed.
        job: what to do.

    Attributes:
        scripts: the user's always-on scripts.
    """

    def __init__(self, p: Any, job: Job) -> None:
        from modules import shared

        most = float(shared.opts.data.get(OPTION_KEPT, KEPT_GB) or 0)
        # What txt2img enlarges was made with its seed: another one is another job already.
        self._drawn = job.settings.seed < 0 and hasattr(p, "init_images") and _is_drawn(getattr(p, "seed", -1))
        self._keeping = Keeping(folder(), job.resume, int(most * 2**30)) if most > 0 else None
        self._finished: list[str] = []
        # Later the generation has none but those that act on the picture.
        self.scripts: list[Any] = list(getattr(p.scripts, "alwayson_scripts", None) or [])

    @contextmanager
    def tiles(self, name: str | None, seed: int) -> Iterator[JobTiles | None]:
        """The store of one picture, by its job's name from `fingerprint`; None where nothing is kept."""
        with job_tiles(self._keeping if name else None, name or "", seed, drawn=self._drawn) as store:
            yield store

    def seed(self, name: str | None, seed: int) -> int:
        """The seed that an earlier run of the same job drew, or `seed`."""
        found = kept_seed(self._keeping, name) if name and self._drawn else None
        return seed if found is None else found

    def done(self, name: str | None) -> None:
        """Count a picture as finished: its tiles go once it is saved."""
        if name:
            self._finished.append(name)

    def finish(self) -> None:
        """Remove the tiles of what is finished and saved."""
        for name in self._finished:
            forget(self._keeping, name)
        self._finished.clear()

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._keeping is not None


def fingerprint(
    p: Any, like: Any, job: Job, number: int, images: Sequence[Tensor | None], *, model: Sequence[Any],
    dino: Dinov2 | None, adapter: torch.nn.Module | None, scripts: Sequence[Any],
) -> str | None:  # fmt: skip
    """Digits that stand for all that decides the tiles of a picture but its seed; None where that cannot be told.

    Args:
        p: the generation.
        like: the generation that its tiles take after.
        number: of the picture in the generation.
        images: what the picture is made from.
        model: what is known of the loaded model.
        scripts: the user's always-on scripts.
    """
    try:
        return digest(
            package_digest(), list(images), number, list(model),
            _of_job(job), p.all_prompts[number], p.all_negative_prompts[number], _simple(vars(like), _NOT_PIXELS),
            _of_host(), _of_files(p, number), _of_scripts(p, scripts),
            None if dino is None else features_fingerprint(dino), None if adapter is None else network_digest(adapter),
        )  # fmt: skip
    except UnknownContentError as problem:
        log.info("Finished tiles are not kept: %s decides about them.", problem)
        return None


def _is_drawn(seed: Any) -> bool:
    return seed in (None, "", -1, "-1")


def _of_job(job: Job) -> list[Any]:
    reports: dict[str, Any] = {"resume": True, "drift_map": False, "save_report": False, "notes": (), "preset": ""}
    same = dataclasses.replace(job, settings=job.settings.replace(seed=-1), **reports)
    return [(field.name, getattr(same, field.name)) for field in dataclasses.fields(same)]


def _simple(values: Any, left_out: re.Pattern[str]) -> dict[str, Any]:
    """The plain values among named ones."""
    plain = (bool, int, float, str, type(None))
    return {k: v for k, v in dict(values).items() if isinstance(v, plain) and not left_out.search(k)}


def _of_host() -> list[Any]:
    from modules import devices, shared

    options = {name: value for name, value in shared.opts.data.items() if _is_plain(value)}
    flags = _simple(vars(getattr(shared, "cmd_opts", None) or object.__new__(_Nothing)), _NOT_TILES)
    precision = [str(getattr(devices, name, "")) for name in ("dtype", "dtype_unet", "dtype_vae")]
    device = torch.device(shared.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return [options, flags, precision, str(device), card]


class _Nothing:
    """Has no attributes."""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, bool | int | float | str | None)


def _of_files(p: Any, number: int) -> list[Any]:
    """Names, sizes and times of the files of the loaded model and of the networks that the prompts name."""
    from modules import shared

    held = getattr(shared, "sd_model", None)
    info = getattr(held, "sd_checkpoint_info", None)
    paths = [getattr(info, "filename", None), getattr(sys.modules.get("modules.sd_vae"), "loaded_vae_file", None)]
    paths += list(shared.opts.data.get("forge_additional_modules", None) or [])
    text = f"{p.all_prompts[number]} {p.all_negative_prompts[number]}"
    known = getattr(sys.modules.get("networks"), "available_networks", None) or {}
    aliases = getattr(sys.modules.get("networks"), "available_network_aliases", None) or {}
    for name in re.findall(r"<\w+:([^:>]+)", text):
        paths.append(getattr(known.get(name) or aliases.get(name), "filename", None))
    embeddings = getattr(getattr(sys.modules.get("modules.sd_hijack"), "model_hijack", None), "embedding_db", None)
    for name, held in (getattr(embeddings, "word_embeddings", None) or {}).items():
        if str(name) in text:
            paths.append(getattr(held, "filename", None))
    return [str(getattr(held, "sd_model_hash", "")), [_file(path) for path in paths]]


def _file(path: Any) -> tuple[str, int, int]:
    try:
        state = Path(path).stat()
        return str(path), state.st_size, state.st_mtime_ns
    except (OSError, TypeError, ValueError):
        return str(path), 0, 0


def _of_scripts(p: Any, scripts: Sequence[Any]) -> list[Any]:
    """What every other script was told; our own panel says the same as the job."""
    args = list(p.script_args or ())
    told = []
    for script in scripts:
        if title(script) != TITLE.lower() and script.args_from is not None and script.args_to is not None:
            told.append((title(script), args[script.args_from : script.args_to]))
    return told


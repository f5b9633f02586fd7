"""One picture of a generation through the core, with the host's model, screen and settings."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from ...adapter.injection import ImageTokens
from ...errors import AdapterError
from ...measure.regions import Subject
from ...networks.dinov2 import Dinov2
from ...pictures.picture import Picture
from ...pipeline import Result
from ...report.records import REFERENCE_KEYS, reference_figures
from ...run.outcome import events, marks, reference_reports, report_on, run_picture
from ...run.plan import plan_job
from ...run.prepare import Prepared, prepare
from ...run.progress import Progress
from ...run.tiles import Conditions
from ...settings import INFOTEXT_FAULTY_KEY, INFOTEXT_STOPPED_KEY, MAX_SEED, knobs
from ...tiling.plan import Tile
from ...webui_settings import NO_UPSCALER, TITLE, webui_knobs
from .. import interrupt, memory
from ..model.cfg_callbacks import Hooks
from ..model.family import Model
from ..model.samplers import working_schedule
from ..panel.arguments import Job
from ..tiles.loaded_model import loaded_model
from ..tiles.tile_img2img import WebuiTileModel
from . import images, progress
from .kept import Kept, fingerprint
from .reports import Reports, save_with

log = logging.getLogger("dino_upscale")

_IN_LOOP: Final = "DINO consistency in loop"
_LEFT_OUT: Final = "DINO corrections"
"""Saved with the picture."""

_SCHEDULE: Final = webui_knobs()["scheduler"].key
_TILE: Final = knobs()["tile_size"].key

_EXTRA_NETWORKS: Final = re.compile(r"<\w+:[^>]+>")
"""As the hosts find them in prompts."""


def prompt_for(subject: Subject, prompt: str, neutral: str, tile: Tile) -> str:
    """The prompt of one tile; a neutral one keeps the extra networks of the picture's."""
    if subject.shown(tile):
        return prompt
    return " ".join([neutral, *_EXTRA_NETWORKS.findall(prompt)])


def _with_schedule(p: Any, like: Any, facts: Model) -> Any:
    """`like` with a noise schedule that works with the model; where that is another one, it is said."""
    schedule = working_schedule(p.sd_model, facts, like.sampler_name, getattr(like, "scheduler", None))
    if schedule is None:
        return like
    q = copy.copy(like)
    q.scheduler = p.extra_generation_params[_SCHEDULE] = schedule
    progress.comment(p, f"{TITLE}: used the schedule {schedule}; with Automatic this model gives black pictures here.")
    return q


@dataclass(frozen=True)
class Told:
    """Who is told how a generation's pictures come along.

    Attributes:
        screen: progress and preview.
        reports: what was measured, where that is wanted.
        kept: finished tiles on disk.
    """

    screen: progress.Screen
    reports: Reports
    kept: Kept


class PictureJob:
    """What the pictures of one iteration share.

    Args:
        p: the generation, taken over.
        like: the generation that tiles take after.
        job: what to do.
        told: who is told how it comes along.
        dino: the feature network, when guidance or an adapter is on.
        scripts: those of the user's scripts that act on each tile.
    """

    def __init__(
        self, p: Any, like: Any, job: Job, told: Told, dino: Dinov2 | None, scripts: Sequence[Any]
    ) -> None:
        self._p, self._job, self._told, self._dino, self._scripts = p, job, told, dino, scripts
        self._loaded = loaded_model(p.sd_model, job.settings, dino)
        alphas = getattr(p.sd_model, "alphas_cumprod", None)
        self._like = _with_schedule(p, like, self._loaded.facts)
        self._hooks = Hooks(self._loaded.facts, alphas, stop=interrupt.stop_softly_asked, after=told.screen.keep)
        for note in self._loaded.notes:
            if f"{TITLE}: {note}" not in (getattr(p, "comments", None) or ()):  # once, not for every iteration
                log.warning("%s", note)
            progress.comment(p, f"{TITLE}: {note}")
        if self._loaded.tiny:
            p.extra_generation_params[_IN_LOOP] = True
        if tile := job.settings.tile_size:
            p.extra_generation_params[_TILE] = str(tile - tile % self._loaded.facts.multiple_px)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Have the hooks installed inside the block, and the adapter where the host samples.

        Raises:
            AdapterError: the adapter does not fit into memory.
        """
        with memory.on_device(self._loaded.adapter, memory.host_device(), "the adapter") as left_behind:
            if left_behind:
                raise AdapterError(
                    f"There is too little memory on {memory.host_device()} for the adapter. Set adapter strength to 0, "
                    f"or free memory."
                )
            with self._hooks.installed():
                yield

    def upscale(self, source: Tensor, i: int, seed: int) -> Tensor:
        """The result, (1, 3, *target size) in [0, 1].

        Args:
            source: (1, 3, H, W) in [0, 1].
            i: which picture of the iteration.
            seed: the host's for it.
        """
        p, job = self._p, self._job
        if i:
            interrupt.forget_skip()
        number = p.iteration * p.batch_size + i
        if job.settings.seed >= 0 and not hasattr(p, "init_images"):
            seed = job.settings.seed + number
        started = time.perf_counter()
        plan = plan_job(job.settings, (source.shape[-2], source.shape[-1]), self._loaded.facts)
        enlarged, mask = self._start(source, plan.target_size), images.mask_of(p, plan.target_size)
        name = self._job_name(number, (source, enlarged, mask))
        seed = self._resumed_seed(name, i, number, seed % (MAX_SEED + 1))
        settings = job.settings.replace(seed=seed)
        model = self._tile_model(number, seed)
        if model.one_by_one:
            settings = settings.replace(tile_batch_size=1)
        prepared = prepare(
            source, plan, settings, dino=self._dino, enlarged=enlarged, mask=mask,
            references=images.references_of(job.references) if settings.borrows else (),
        )  # fmt: skip
        per_batch = model.calls(settings.denoise, settings.steps)
        with self._told.kept.tiles(name, seed) as store:
            finished = run_picture(
                prepared, model, conditions=self._conditions(prepared, number),
                on_progress=functools.partial(self._on_progress, per_batch), store=store,
            )  # fmt: skip
        self._told.screen.show(finished.image, always=True)
        marked = marks(prepared, finished)
        saved = {**marked, **reference_figures(reference_reports(prepared))}
        for key in (INFOTEXT_STOPPED_KEY, INFOTEXT_FAULTY_KEY, *REFERENCE_KEYS):
            save_with(p, i, key, saved.get(key))
        if self._told.reports.wanted:
            self._told.screen.text(f"{TITLE}: measuring drift")
            outcome = report_on(prepared, model, finished, measures=True, seconds=time.perf_counter() - started)
            picture = Picture(finished.image)
            made = Result(picture, outcome.report, settings, outcome.maps, Picture(source), marked)
            self._told.reports.add(p, i, made)
        self._say(events(prepared, finished))
        sampled = finished.sampled
        if not sampled.stopped:
            self._told.kept.done(name)
        elif store is not None and sampled.candidates:
            progress.comment(p, f"{TITLE}: the same upscale started again goes on from here; untick Resume to redo it.")
        return finished.image

    def _start(self, source: Tensor, size: tuple[int, int]) -> Tensor | None:
        if self._job.upscaler != NO_UPSCALER:
            self._told.screen.text(f"{TITLE}: enlarging with {self._job.upscaler}")
        return images.enlarged(source, size, self._job.upscaler)

    def _job_name(self, number: int, pixels: Sequence[Tensor | None]) -> str | None:
        if not self._told.kept.on:
            return None
        loaded = self._loaded
        facts = dataclasses.replace(loaded.facts, latent_format=None)
        return fingerprint(
            self._p, self._like, self._job, number, pixels, dino=self._dino, adapter=loaded.adapter,
            model=(facts, loaded.tiny, loaded.vae is not None), scripts=self._told.kept.scripts,
        )  # fmt: skip

    def _resumed_seed(self, name: str | None, i: int, number: int, seed: int) -> int:
        """The seed of the picture: where nobody asked for one and an earlier run drew one, that, for the host too."""
        found = self._told.kept.seed(name, seed)
        if found != seed:
            self._p.all_seeds[number] = self._p.seeds[i] = found
        return found

    def _conditions(self, prepared: Prepared, number: int) -> Conditions:
        """Adapter tokens and prompts of the tiles."""
        job, tokens, prompts = self._job, None, None
        adapter = self._loaded.adapter
        if adapter is not None and self._dino is not None:
            tokens = ImageTokens(adapter, self._dino, job.settings.adapter_strength)
        if job.subject_prompt and prepared.meter is not None:
            grid = prepared.meter.extract(prepared.source)
            subject = Subject(grid, prepared.source, prepared.target_size)
            own = self._p.all_prompts[number]
            prompts = {tile: prompt_for(subject, own, job.subject_prompt, tile) for tile in prepared.plan.tiles}
        return Conditions(tokens, prompts)

    def _tile_model(self, n: int, seed: int) -> WebuiTileModel:
        p = self._p
        return WebuiTileModel(
            self._like, self._loaded.facts, self._hooks, self._loaded.codec, seed=seed,
            prompt=p.all_prompts[n], negative_prompt=p.all_negative_prompts[n], scripts=self._scripts,
            on_batch=self._told.screen.begin_batch, on_done=self._keep_notes,
        )  # fmt: skip

    def _on_progress(self, per_batch: int, event: Progress) -> None:
        if event.canvas is not None:
            if not event.call:
                self._told.screen.plan(event.calls // max(1, per_batch), per_batch)
            self._told.screen.show(event.canvas, always=not event.call)
            return
        redone = f", {event.redone} redone" if event.redone else ""
        self._told.screen.text(f"{TITLE}: tile {min(event.tile + 1, event.tiles)}/{event.tiles}{redone}")

    def _keep_notes(self, parameters: dict[str, Any], comments: dict[str, Any]) -> None:
        """Hand what the tiles' scripts wrote down to the picture."""
        for key, value in parameters.items():
            self._p.extra_generation_params.setdefault(key, value)
        if isinstance(getattr(self._p, "comments", None), dict):
            self._p.comments.update(comments)

    def _say(self, sentences: Iterable[str]) -> None:
        """Put a line for each thing that happened below the picture."""
        vae = self._loaded.vae
        if vae is not None and vae.used:
            self._p.extra_generation_params[_IN_LOOP] = "VAE"
        if vae is not None and vae.left_out:
            progress.comment(self._p, f"{TITLE}: {vae.left_out}")
        if self._hooks.left_out:
            self._p.extra_generation_params[_LEFT_OUT] = "left out"
            progress.comment(self._p, f"{TITLE}: {self._hooks.left_out}")
        for text in sentences:
            progress.comment(self._p, f"{TITLE}: {text[0].lower()}{text[1:]}")

"""One picture of a generation through the core: `run.Run` with the host's model, screen and settings."""

from __future__ import annotations

import copy
import functools
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from torch import Tensor

from ...adapter.injection import Adapter, Conditioning
from ...measure.regions import Subject
from ...networks.dinov2 import Dinov2
from ...pictures.picture import Picture
from ...pipeline import Result
from ...run.run import Progress, Run
from ...sampling.correction import Codec
from ...settings import MAX_SEED
from ...tiling.plan import Tile
from .. import interrupt
from ..model import adapter_patch as adapters
from ..model import model_files as weights
from ..model.cfg_callbacks import Hooks
from ..model.family import model_facts
from ..model.vae import AutoencoderCodec, HostVae, tiny_autoencoder
from ..panel.arguments import NO_UPSCALER, TITLE, Job
from . import images as pictures
from . import progress as screen
from .reports import Reports
from .tile_img2img import HostRender

_IN_LOOP: Final = "DINO consistency in loop"
"""Saved with the picture."""

_EXTRA_NETWORKS: Final = re.compile(r"<\w+:[^>]+>")
"""As the hosts find them in prompts."""


def prompt_for(subject: Subject, prompt: str, neutral: str, tile: Tile) -> str:
    """The prompt of one tile; a neutral one keeps the extra networks of the picture's."""
    if subject.shown(tile):
        return prompt
    return " ".join([neutral, *_EXTRA_NETWORKS.findall(prompt)])


class PictureJob:
    """What the pictures of one iteration share.

    Args:
        p: the generation, taken over.
        job: what to do.
        shown: progress and preview.
        dino: the feature network, when guidance or an adapter is on.
        scripts: those of the user's scripts that act on each tile.
        reports: told what was measured, where that is wanted.

    Attributes:
        hooks: to be installed while pictures are made.
    """

    def __init__(
        self, p: Any, job: Job, shown: screen.Screen, dino: Dinov2 | None, scripts: Sequence[Any], reports: Reports
    ) -> None:
        self._reports = reports
        self._p, self._job, self._screen, self._dino, self._scripts = p, job, shown, dino, scripts
        self._model = model_facts(p.sd_model)
        self._vae: HostVae | None = None
        self._codec = self._autoencoder()
        alphas = getattr(p.sd_model, "alphas_cumprod", None)
        self._adapter = self._load_adapter()
        self.hooks = Hooks(self._model, alphas, stop=interrupt.stop_softly_asked, after=shown.keep)

    def _load_adapter(self) -> Adapter | None:
        from modules import shared

        settings = self._job.settings
        if self._dino is None or not (settings.adapter and settings.conditions):
            return None
        path = weights.adapter_file(settings.adapter)
        adapter = adapters.load(path, path.stat().st_mtime, self._dino, str(shared.device))
        adapters.check(adapter, self._p.sd_model, self._model)
        return adapter

    def upscale(self, source: Tensor, size: tuple[int, int], i: int, seed: int) -> Tensor:
        """The result, (1, 3, *size) in [0, 1].

        Args:
            source: (1, 3, H, W) in [0, 1].
            i: which picture of the iteration.
            seed: the host's for it.
        """
        p, job = self._p, self._job
        if i:
            interrupt.forget_skip()
        if job.settings.seed >= 0 and not hasattr(p, "init_images"):
            seed = job.settings.seed + p.iteration * p.batch_size + i
        settings = job.settings.replace(seed=seed % (MAX_SEED + 1))
        number = p.iteration * p.batch_size + i
        render = self._render(number, settings.seed)
        if render.one_by_one:
            settings = settings.replace(tile_batch_size=1)
        if job.upscaler != NO_UPSCALER:
            self._screen.text(f"{TITLE}: enlarging with {job.upscaler}")
        run = Run(
            source, size, settings, render, self._dino, enlarged=pictures.enlarged(source, size, job.upscaler),
            progress=self._told, preview=self._screen.show, mask=pictures.mask_of(p, size),
            starting=lambda tiles: self._starting(render, tiles, run), condition=self._condition(render),
            measure=self._reports.wanted,
        )  # fmt: skip
        started = time.perf_counter()
        self._planned, self._per_tile = 0, render.calls(settings.denoise, settings.steps)
        if run.calls:
            self._planned = run.calls // self._per_tile
            self._screen.plan(self._planned, self._per_tile)
        if job.subject_prompt and run.yardstick is not None:
            shown = Subject(run.yardstick.extract(source), source, size)
            render.prompt_of = functools.partial(prompt_for, shown, p.all_prompts[number], job.subject_prompt)
        self._screen.show(run.base, always=True)
        result = run.render()
        self._screen.show(result, always=True)
        if self._reports.wanted:
            self._screen.text(f"{TITLE}: measuring drift")
            report = run.report(result, time.perf_counter() - started)
            self._reports.add(p, i, Result(Picture(result), report, settings, run.heats(), Picture(source)))
        self._pass_on(render, run)
        return result

    def _starting(self, render: HostRender, tiles: Sequence[Tile], run: Run) -> None:
        """Tiles come next: those that are tried or redone were not in the plan of the bar."""
        render.starting(tiles, run.plan.size)
        self._planned -= 1
        if self._planned < 0:
            self._screen.more(self._per_tile)

    def _render(self, n: int, seed: int) -> HostRender:
        p = self._p
        return HostRender(
            self._like_tiles(), self._model, self.hooks, seed=seed, prompt=p.all_prompts[n],
            negative_prompt=p.all_negative_prompts[n], scripts=self._scripts,
            acts=self._job.settings.guides or self._job.settings.consistency > 0, codec=self._codec,
        )  # fmt: skip

    def _condition(self, render: HostRender) -> Conditioning | None:
        """What shows the UNet the adapter's tokens; None without an adapter.

        Raises:
            ModelError: it is damaged, or does not fit the checkpoint or the feature network.
        """
        if self._adapter is None or self._dino is None:
            return None
        strength = self._job.settings.adapter_strength
        return Conditioning(self._adapter, self._dino, strength, None, render.conditioner.conditioned)

    def _like_tiles(self) -> Any:
        """What the tiles take after: in txt2img with the upscaling's own sampler."""
        if hasattr(self._p, "init_images"):
            return self._p
        q = copy.copy(self._p)
        q.sampler_name = self._job.sampler_name or q.sampler_name
        if self._job.scheduler and hasattr(q, "scheduler"):
            q.scheduler = self._job.scheduler
        return q

    def _autoencoder(self) -> Callable[[Tensor | None], Codec] | None:
        """Makes codecs that are exact enough for consistency inside the loop; None where there is no such thing."""
        from modules import shared

        if not self._job.settings.consistency:
            return None
        networks = tiny_autoencoder(self._model) if shared.opts.data.get(weights.OPTION_TINY, True) else None
        if networks is not None:
            self._p.extra_generation_params[_IN_LOOP] = True
            return lambda tiles: AutoencoderCodec(*networks, self._model.family, tiles)
        if shared.opts.data.get(weights.OPTION_VAE, False):
            self._vae = vae = HostVae(self._p.sd_model)
            return lambda tiles: AutoencoderCodec(vae.encode, vae.decode, self._model.family, tiles, fits=vae.fits)
        return None

    def _told(self, progress: Progress) -> None:
        redone = f", {progress.redone} redone" if progress.redone else ""
        self._screen.text(f"{TITLE}: tile {min(progress.tile + 1, progress.tiles)}/{progress.tiles}{redone}")

    def _pass_on(self, render: HostRender, run: Run) -> None:
        """What the tiles' scripts wrote down belongs to the picture."""
        p = self._p
        for key, value in render.extra.items():
            p.extra_generation_params.setdefault(key, value)
        if isinstance(getattr(p, "comments", None), dict):
            p.comments.update(render.comments)
        if self._vae is not None and self._vae.used:
            p.extra_generation_params[_IN_LOOP] = "VAE"
        if self._vae is not None and self._vae.left_out:
            screen.comment(p, f"{TITLE}: {self._vae.left_out}")
        for text in run.events():
            screen.comment(p, f"{TITLE}: {text[0].lower()}{text[1:]}")

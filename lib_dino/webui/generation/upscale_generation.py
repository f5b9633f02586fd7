"""One generation of the host becomes one upscaling.

The host's own `process_images` runs around it, so that saving, batch count, prompt lists, styles, wildcards,
ADetailer, face restoration, grids and infotext work as for any picture. Only `init` and `sample` of that one
processing object are replaced, and put back afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ...errors import ImageError, ModelError, SettingsError
from ...networks.dinov2 import Dinov2
from ...run.plan import plan_job
from ...run.prepare import needs_features
from ...webui_settings import TITLE
from .. import memory
from ..model import model_files
from ..model.family import ASSUMED, expected_model
from ..model.model_files import BUILT_IN_MODEL
from ..model.vae import references_kept
from ..panel.arguments import Job
from ..tiles import other_scripts
from . import images, progress, reports
from .kept import Kept
from .overrides import Overrides
from .picture import PictureJob, Told

MARK: Final = "_dino_upscale_generation"


@dataclass
class _Begun:
    """What is settled before the host starts.

    Attributes:
        dino: the feature network; None where nothing needs it.
        tile_scripts: those of the user's scripts that act on each tile.
        target: (height, width) of the results; None in txt2img.
    """

    dino: Dinov2 | None = None
    tile_scripts: Sequence[Any] = ()
    target: tuple[int, int] | None = None


class UpscaleGeneration:
    """A generation of the host that upscales.

    Args:
        p: img2img, which upscales its source; or txt2img, which upscales what it made.
        job: what to do.
    """

    def __init__(self, p: Any, job: Job) -> None:
        self._p, self._job = p, job
        self._overrides = Overrides(p)
        self._reports = reports.Reports(gallery=job.drift_map, files=job.save_report)
        self._sample: Callable[..., Any] = p.sample
        self._kept = Kept(p, job)
        self._begun = _Begun()
        self._shared: tuple[Any, progress.Screen] | None = None

    @property
    def _is_img2img(self) -> bool:
        return hasattr(self._p, "init_images")

    def begin(self, *, own: Sequence[type], keys: Mapping[str, str]) -> None:
        """Change `p`, so that the host's next `process_images` upscales.

        Args:
            own: this extension's script classes, which must not act on the picture.
            keys: more saved keys.

        Raises:
            SettingsError, ModelError: the feature network is not to be had, or the pictures differ in size.
        """
        p, job = self._p, self._job
        settings = job.settings
        for note in job.notes:
            progress.comment(p, f"{TITLE}: {note}")
        model_name = model_files.chosen(settings.dino_model)
        adapts = bool(settings.adapter) and settings.conditions
        images.references_of(job.references)  # what cannot be read is said before any work
        if job.references and not settings.borrows:
            progress.comment(p, f"{TITLE}: references lend nothing with DINO guidance off or DINO strength 0.")
        if needs_features(
            settings, measures=self._reports.wanted, adapts=adapts, finds_subject=bool(job.subject_prompt),
            matches=bool(job.references),
        ):  # fmt: skip
            self._begun.dino = model_files.load(model_name)
        else:
            model_files.check(model_name)
        saved = {**job.to_infotext(), **keys}
        if model_name != BUILT_IN_MODEL or settings.dino_model:
            saved["DINO model"] = model_name
        if self._is_img2img:
            self._begun.tile_scripts = other_scripts.for_tiles(p.scripts, without=own)
            self._begin_img2img()
            # The chosen script must not run again; beside another one the panel's own hooks go on.
            kept = other_scripts.for_picture(p.scripts, without=own if "Script" in keys else ())
            self._overrides.set("scripts_value", other_scripts.with_scripts(p.scripts, kept))
            saved["Denoising strength"] = str(settings.denoise)
        self._overrides.set("extra_generation_params", {**p.extra_generation_params, **saved})
        self._overrides.set("sample", self._sample_guarded)
        self._overrides.set(MARK, self)

    def _begin_img2img(self) -> None:
        p, job = self._p, self._job
        height, width = plan_job(job.settings, self._source_size(), expected_model() or ASSUMED).target_size
        self._begun.target = height, width
        for text in other_scripts.notices(p.scripts, p.script_args or ()):
            progress.comment(p, text)
        if getattr(p, "refiner_checkpoint", None) not in (None, "", "None", "none"):
            progress.comment(p, "DINO Upscale: the refiner is left out, it would change models for every tile.")
        values: dict[str, Any] = {
            "height": height, "width": width, "denoising_strength": job.settings.denoise, "steps": job.settings.steps,
            "refiner_checkpoint": None,
            # Prompts are encoded for the tiles alone: the host's cache has room for one size.
            "setup_conds": lambda: None,
            "init": self._init,
        }  # fmt: skip
        if job.settings.seed >= 0:
            values["seed"] = job.settings.seed
        if job.sampler_name:
            values["sampler_name"] = job.sampler_name
        if job.scheduler and hasattr(p, "scheduler"):
            values["scheduler"] = job.scheduler
        for name, value in values.items():
            self._overrides.set(name, value)

    def _source_size(self) -> tuple[int, int]:
        """(height, width) of all pictures of the call."""
        sizes = {image.size for image in self._p.init_images or ()}
        if len(sizes) != 1:
            raise ImageError(
                f"init_images: all pictures of one call must have the same size; got {sorted(sizes)}. Send them "
                f"one by one, or use the Batch tab."
                if sizes
                else "init_images: there is no picture to upscale."
            )
        width, height = sizes.pop()
        return height, width

    def finish(self, processed: Any) -> None:
        """Add the reports that the job asked for to what the host hands back; what it has saved needs no tiles."""
        self._reports.finish(processed)
        self._kept.finish()

    def restore(self) -> None:
        """Put everything back."""
        self._overrides.restore()

    def _init(self, all_prompts: Any, all_seeds: Any, all_subseeds: Any) -> None:
        """Instead of the host's `init`, which would encode the whole picture."""
        p = self._p
        count = len(p.init_images)
        if count > 1:
            if count > p.batch_size:
                raise ImageError(f"init_images: {count} pictures need a batch size of {count}; it is {p.batch_size}.")
            p.batch_size = count

    def _sample_guarded(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with as_http_422(self._p):
                return self._upscaled(*args, **kwargs)
        except BaseException:
            # Whoever catches it gets the generation back as it was.
            self.restore()
            raise

    def _upscaled(self, *args: Any, **kwargs: Any) -> Any:
        from modules import devices, processing

        p = self._p
        if self._begun.target is not None:
            # Forge Neo's forks have rounded them to multiples of 64 since; the saved text is to say the result's own.
            p.height, p.width = self._begun.target
        made = None if self._is_img2img else images.finished(p, self._sample(*args, **kwargs))
        count = len(kwargs["prompts"])
        if self._shared is None:  # by all iterations: what tiles take after, and progress
            like = p if self._is_img2img else _upscaling_of(p, self._job)
            self._shared = like, progress.Screen(count * p.n_iter)
        like, screen = self._shared
        results = processing.DecodedSamples()
        # Ordinary tensors: what is made in inference mode can never carry gradients.
        with (
            torch.inference_mode(False), torch.no_grad(), devices.without_autocast(), _prompt_history_kept(),
            references_kept(p.sd_model),
            memory.on_device(self._begun.dino, memory.feature_device(), "the feature network") as slower,
        ):  # fmt: skip
            if slower:
                progress.comment(p, f"{TITLE}: {slower}")
            told = Told(screen, self._reports, self._kept)
            job = PictureJob(p, like, self._job, told, self._begun.dino, self._begun.tile_scripts)
            with job.ready():
                for i in range(count):
                    source = images.source_of(p, i) if made is None else made[i : i + 1]
                    results.append(images.for_truncation(job.upscale(source, i, int(kwargs["seeds"][i]))))
        progress.done()
        return results


def _upscaling_of(p: Any, job: Job) -> Any:
    """What the tiles of a txt2img take after: the generation with the upscaling's own sampler."""
    q = copy.copy(p)
    q.sampler_name = job.sampler_name or q.sampler_name
    if job.scheduler and hasattr(q, "scheduler"):
        q.scheduler = job.scheduler
    # The host's memory for encoded prompts has room for one size, which is the picture's own.
    q.cached_c, q.cached_uc = ([None] * len(held) for held in (p.cached_c, p.cached_uc))
    return q


@contextlib.contextmanager
def _prompt_history_kept() -> Iterator[None]:
    """Every nested call rewrites the file of the last prompt; the picture's own text stays in it."""
    from modules import paths

    path = Path(getattr(paths, "data_path", os.getcwd())) / "params.txt"
    held = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        if held is not None:
            path.write_bytes(held)


@contextlib.contextmanager
def as_http_422(p: Any) -> Iterator[None]:
    """What a user can put right reaches the API as 422 with the field's name."""
    try:
        yield
    except (SettingsError, ImageError, ModelError) as error:
        if not getattr(p, "is_api", False):
            raise
        from fastapi import HTTPException

        field = getattr(error, "field", "dino_model" if isinstance(error, ModelError) else "")
        text = str(error)[:1000]
        raise HTTPException(status_code=422, detail=f"{field}: {text}" if field else text) from error



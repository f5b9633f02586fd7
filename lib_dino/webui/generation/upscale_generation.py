"""One generation of the host becomes one upscaling.

The host's own `process_images` runs around it, so that saving, batch count, prompt lists, styles, wildcards,
ADetailer, face restoration, grids and infotext work as for any picture. Only `init` and `sample` of that one
processing object are replaced, and put back afterwards.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from ...errors import ImageError, ModelError, SettingsError
from ...run.plan import plan_job
from ...run.prepare import needs_features
from ..model import model_files as weights
from ..model.family import ASSUMED, expected_model
from ..model.model_files import BUILT_IN_MODEL
from ..panel.arguments import Job
from . import images as pictures
from . import other_scripts as others
from . import progress as screen
from . import reports
from .picture import PictureJob

MARK: Final = "_dino_upscale_generation"


class UpscaleGeneration:
    """A generation of the host that upscales.

    Args:
        p: img2img, which upscales its source; or txt2img, which upscales what it made.
        job: what to do.
        own: this extension's script classes.
        keys: more saved keys.
    """

    def __init__(self, p: Any, job: Job, *, own: Sequence[type], keys: Mapping[str, str]) -> None:
        self._p, self._job, self._own, self._keys = p, job, own, keys
        self._changed: dict[str, tuple[bool, Any]] = {}
        self._img2img = hasattr(p, "init_images")
        self._screen: screen.Screen | None = None
        self._dino: Any = None
        self._size = (0, 0)
        self._sample: Callable[..., Any] = p.sample
        self._reports = reports.Reports(gallery=job.drift_map, files=job.save_report)

    def begin(self) -> None:
        """Change `p`, so that the host's next `process_images` upscales.

        Raises:
            SettingsError, ModelError: the feature network is not to be had, or the pictures differ in size.
        """
        p, job = self._p, self._job
        settings = job.settings
        model_name = weights.chosen(settings.dino_model)
        adapts = bool(settings.adapter) and settings.conditions
        if needs_features(
            settings, measures=self._reports.wanted, adapts=adapts, finds_subject=bool(job.subject_prompt)
        ):
            self._dino = weights.load(model_name)
        saved = {**job.to_infotext(), **self._keys}
        if model_name != BUILT_IN_MODEL or settings.dino_model:
            saved["DINO model"] = model_name
        self._scripts = others.for_tiles(p.scripts, without=self._own) if self._img2img else []
        if self._img2img:
            self._begin_img2img()
            saved["Denoising strength"] = str(settings.denoise)
        self._set("extra_generation_params", {**p.extra_generation_params, **saved})
        self._set("sample", self._sample_guarded)
        self._set(MARK, self)

    def _begin_img2img(self) -> None:
        p, job = self._p, self._job
        sizes = {image.size for image in p.init_images or ()}
        if len(sizes) != 1:
            raise ImageError(
                f"init_images: all pictures of one call must have the same size; got {sorted(sizes)}. Send them "
                f"one by one, or use the Batch tab."
                if sizes
                else "init_images: there is no picture to upscale."
            )
        width, height = sizes.pop()
        self._size = plan_job(job.settings, (height, width), expected_model() or ASSUMED).target_size
        for text in others.notices(p.scripts, p.script_args or ()):
            screen.comment(p, text)
        if getattr(p, "refiner_checkpoint", None) not in (None, "", "None", "none"):
            screen.comment(p, "DINO Upscale: the refiner is left out, it would change models for every tile.")
        self._set("height", self._size[0])
        self._set("width", self._size[1])
        self._set("denoising_strength", job.settings.denoise)
        self._set("steps", job.settings.steps)
        if job.settings.seed >= 0:
            self._set("seed", job.settings.seed)
        self._set_sampler()
        self._set("refiner_checkpoint", None)
        kept = others.for_picture(p.scripts, without=self._own if "Script" in self._keys else ())
        self._set("scripts_value", others.with_scripts(p.scripts, kept))
        # Prompts are encoded for the tiles alone: the host's cache has room for one size.
        self._set("setup_conds", lambda: None)
        self._set("init", self._init)

    def _set_sampler(self) -> None:
        p, job = self._p, self._job
        if job.sampler_name:
            self._set("sampler_name", job.sampler_name)
        if job.scheduler and hasattr(p, "scheduler"):
            self._set("scheduler", job.scheduler)

    def _set(self, name: str, value: Any) -> None:
        held = self._p.__dict__
        self._changed.setdefault(name, (name in held, held.get(name)))
        held[name] = value

    def finish(self, processed: Any) -> None:
        """Add the reports that the job asked for to what the host hands back."""
        self._reports.finish(processed)

    def restore(self) -> None:
        """Put everything back."""
        held = self._p.__dict__
        for name, (was_there, value) in self._changed.items():
            if was_there:
                held[name] = value
            else:
                held.pop(name, None)
        self._changed.clear()

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
        made = None if self._img2img else pictures.finished(p, self._sample(*args, **kwargs))
        count = len(kwargs["prompts"])
        if self._screen is None:
            self._screen = screen.Screen(count * p.n_iter)
        results = processing.DecodedSamples()
        # Ordinary tensors: what is made in inference mode can never carry gradients.
        with torch.inference_mode(False), torch.no_grad(), devices.without_autocast(), _prompt_history_kept():
            job = PictureJob(p, self._job, self._screen, self._dino, self._scripts, self._reports)
            with job.hooks.installed():
                for i in range(count):
                    source = pictures.source_of(p, i) if made is None else made[i : i + 1]
                    results.append(pictures.for_truncation(job.upscale(source, i, int(kwargs["seeds"][i]))))
        screen.done()
        return results


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



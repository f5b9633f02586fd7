"""upscale(): from a picture or its path to a larger one."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import PIL.Image
import torch
from torch import Tensor

from . import arrays
from .adapter.diffusers_unet import check_fits, shapes
from .adapter.injection import Adapter, ImageTokens
from .adapter.load import load_adapter
from .errors import AdapterError, Interrupted, SettingsError
from .measure.calibration import load_calibration
from .measure.drift import DriftMeter
from .networks.dinov2 import Dinov2, load_dinov2
from .networks.dinov2_weights import check_source
from .pictures.infotext import infotext
from .pictures.picture import Picture, picture_from_pil, read_picture, write_picture
from .report.maps import Heat
from .report.records import Report, drift_figures, reference_figures
from .resume.fingerprint import digest, features_fingerprint, network_digest, package_digest
from .resume.job_tiles import job_tiles, kept_batches, kept_seed
from .resume.place import Keeping
from .run.drift_limit import eight_bit
from .run.finish import Finished
from .run.outcome import Outcome, marks, report_on, run_picture
from .run.plan import plan_job
from .run.prepare import needs_features, prepare
from .run.progress import OnProgress, Progress
from .run.tiles import Conditions, SampledTiles
from .sampling.pixel_model import PixelTileModel
from .sampling.tile_model import TileModel
from .settings import MAX_REFERENCES, MAX_SEED, Settings
from .tiling.resample import resize

Source = Picture | PIL.Image.Image | str | os.PathLike[str]
"""A picture, or the path of one."""


_UNGUIDED: Final[dict[str, Any]] = {
    "dino_enabled": False, "repair_tries": 0, "max_drift": 0.0, "adapter_strength": 0.0,
}  # fmt: skip
"""Features play no part."""

_AS_IT_COMES: Final[dict[str, Any]] = {**_UNGUIDED, "consistency": 0.0, "clean_source": 0.0, "texture": 0.0}
"""Nothing of ours plays a part."""


@dataclass(frozen=True)
class Result:
    """A finished picture.

    Attributes:
        picture: the result, of the source's kind: grey stays grey, alpha and colour profile are kept.
        report: what was done and measured.
        settings: as used, seed included.
        heats: maps of what was measured, the more telling first; none when drift was not.
        source: what it was made from.
        marks: saved keys and values of a picture that is not all that was asked for, see `run.outcome.marks`.
        stopped: it was stopped before its last tile.
        sampled_tiles: tiles that are done.
        job: fingerprint of what decides its pixels, the seed left out; tiles are kept under it.
    """

    picture: Picture
    report: Report
    settings: Settings
    heats: tuple[Heat, ...] = ()
    source: Picture | None = None
    marks: Mapping[str, str] = field(default_factory=dict)
    stopped: bool = False
    sampled_tiles: int = 0
    job: str = ""

    def figures(self) -> dict[str, str]:
        """Keys and values that are saved beside the settings: what was measured, and the marks."""
        return {**drift_figures(self.report), **reference_figures(self.report.references), **self.marks}

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the picture with its settings as text; an existing file only with `force`.

        Raises:
            ImageError: the file exists, or cannot be written.
        """
        text = infotext(self.settings, self.report.result_size, self.figures())
        return write_picture(self.picture, Path(path), text=text, force=force)


def upscale(
    source: Source,
    settings: Settings | None = None,
    *,
    references: Sequence[Source] = (),
    model: TileModel | str | os.PathLike[str] | None = None,
    dino: Dinov2 | None = None,
    measure: bool = False,
    progress: Callable[[Progress], None] | None = None,
    keeping: Keeping | None = None,
    stop: Callable[[], bool] | None = None,
    mask: Tensor | None = None,
) -> Result:
    """Enlarge a picture by tiled img2img, kept to its source by consistency and DINO guidance.

    Args:
        source: a picture, or the path of one.
        settings: None takes the defaults.
        references: sharp pictures of the same thing, or their paths, at most `MAX_REFERENCES`. Where they match the
            source they lend their detail, by `settings.dino_strength`.
        model: a diffusion model, or a folder to load the embedded kind from; None takes the one that ships.
        dino: a loaded feature network; None loads `settings.dino_model` when it is needed.
        measure: also measure drift, which needs the feature network even where guidance is off.
        progress: told after every model call.
        keeping: keeps finished tiles on disk, and says whether those of the same job are taken; None keeps none. They
            stay until `forget` is called, once the result is saved.
        stop: asked between model calls; once it says True the rest of the picture stays the enlarged source.
        mask: where the picture may change, (1, 1, H, W) in [0, 1] over the source or the result; None is everywhere.

    Raises:
        SettingsError: the target size does not fit the source, the job is too large, or the references too many.
        ImageError, ModelError: a picture or a network cannot be read.
    """
    settings = settings or Settings()
    return _upscale(
        _open(source), _seeded(settings), _model(model), dino, references=open_references(references), measure=measure,
        progress=progress, keeping=keeping, stop=stop, drawn=settings.seed < 0, mask=mask,
    )  # fmt: skip


def _upscale(
    picture: Picture, settings: Settings, model: TileModel, dino: Dinov2 | None, *, references: Sequence[Tensor],
    measure: bool, progress: Callable[[Progress], None] | None, keeping: Keeping | None,
    stop: Callable[[], bool] | None, drawn: bool, mask: Tensor | None = None,
) -> Result:  # fmt: skip
    plan = plan_job(settings, picture.size, model)
    if dino is None and needs_features(
        settings, measures=measure, adapts=settings.conditions, matches=bool(references)
    ):
        dino = _features(settings.dino_model or None)
    elif dino is None:
        check_source(settings.dino_model or None)  # a misspelt name is an error whether it is needed or not
    tokens = _image_tokens(settings, model, dino) if settings.conditions else None
    started = time.perf_counter()
    job_name = "" if keeping is None else job_fingerprint(picture, settings, model, dino, tokens, references, mask)
    keeping = keeping if job_name else None
    if keeping is not None and (found := kept_batches(keeping, job_name, -1 if drawn else settings.seed)):
        keeping.on_found(found)
    if drawn and (seed := kept_seed(keeping, job_name)) is not None:
        settings = settings.replace(seed=seed)
    with torch.no_grad(), job_tiles(keeping, job_name, settings.seed, drawn=drawn) as store:
        share = None if mask is None else resize(mask, plan.target_size).clamp(0, 1)
        job = prepare(picture.pixels, plan, settings, dino=dino, mask=share, references=references)
        finished = run_picture(
            job, model, conditions=Conditions(tokens), saved=_grey_eight_bit if picture.grey else eight_bit,
            on_progress=_steps_alone(progress), store=store, stop=stop,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        outcome = report_on(job, model, finished, measures=measure, seconds=seconds)
    result = _result(picture, finished.image, outcome, settings, marks(job, finished))
    sampled = finished.sampled
    return dataclasses.replace(
        result, stopped=sampled.stopped, sampled_tiles=len(sampled.candidates), job=job_name
    )


def job_fingerprint(
    picture: Picture, settings: Settings, model: TileModel, dino: Dinov2 | None, tokens: ImageTokens | None,
    references: Sequence[Tensor] = (), mask: Tensor | None = None,
) -> str:  # fmt: skip
    """Digits that stand for all that decides a job's tiles but its seed; empty for a model that has no fingerprint."""
    own = getattr(model, "fingerprint", None)
    if own is None:
        return ""
    features = None if dino is None else features_fingerprint(dino)
    adapter = None if tokens is None else network_digest(tokens.adapter)
    lent = list(references) if settings.borrows else []
    return digest(package_digest(), picture.pixels, settings.replace(seed=-1), own, features, adapter, lent, mask)


def compare(
    source: Source,
    settings: Settings | None = None,
    *,
    references: Sequence[Source] = (),
    model: TileModel | str | os.PathLike[str] | None = None,
    dino: Dinov2 | None = None,
    progress: Callable[[Progress], None] | None = None,
    keeping: Keeping | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Result]:
    """The same picture with ever more of the product switched on, same seed; arguments as for `upscale`.

    Returns:
        Results by label: Lanczos, plain img2img, the settings as given; before these, where features play a part in
        them, the same without.

    Raises:
        Interrupted: `stop` said so before the last of them, so that there is nothing to compare.
    """
    picture, model, lent = _open(source), _model(model), open_references(references)
    drawn = settings is None or settings.seed < 0
    settings = _seeded(settings or Settings())
    dino = dino or _features(settings.dino_model or None)
    arms = {"Plain img2img": settings.replace(**_AS_IT_COMES)}
    acts = settings.guides or settings.conditions or settings.repair_tries or settings.max_drift
    if acts or (lent and settings.borrows):
        arms["Without DINO"] = settings.replace(**_UNGUIDED)
    arms["Your settings"] = settings
    if drawn and keeping is not None:
        names = [_arm_fingerprint(picture, arm, model, dino, lent) for arm in arms.values()]
        found = [seed for name in names if (seed := kept_seed(keeping, name)) is not None]
        arms = {label: arm.replace(seed=found[0]) for label, arm in arms.items()} if found else arms
    results = {"Lanczos": _lanczos(picture, settings, model, dino)}
    for label, arm in arms.items():
        if any(result.stopped for result in results.values()):
            raise Interrupted("The comparison was stopped before its last picture.")
        results[label] = _upscale(
            picture, arm, model, dino, references=lent, measure=True, progress=progress, keeping=keeping, stop=stop,
            drawn=drawn,
        )  # fmt: skip
    return results


@dataclass(frozen=True)
class _NoModel:
    """Facts for a plan of which no tile is sampled."""

    name: str = "none"
    tile_px: int = 512
    multiple_px: int = 1
    factor: int = 1
    fits_any_tile: bool = True


@torch.no_grad()
def measure(source: Source, result: Source, *, dino: Dinov2 | None = None) -> Result:
    """Measure how far a picture that was made from `source`, by whatever means, has left it.

    Raises:
        SettingsError: the result is smaller than the source, or more than 8 times larger.
        ImageError, ModelError: a picture or the feature network cannot be read.
    """
    given, made = _open(source), _open(result)
    height, width = made.size
    settings = Settings(height=height, width=width, denoise=0.0, seed=0, **_AS_IT_COMES)
    model = _NoModel()
    job = prepare(given.pixels, plan_job(settings, given.size, model), settings, dino=dino or _features(None))
    outcome = report_on(job, model, Finished(made.pixels, SampledTiles()), measures=True, seconds=0.0)
    return _result(given, made.pixels, outcome, settings)


def drift_meter(source: Tensor, *, dino: Dinov2 | None = None) -> DriftMeter:
    """What measures results against a source, (1, 3, H, W) in [0, 1]; None loads the network that ships."""
    dino = dino or _features(None)
    return DriftMeter(dino, source, calibration=load_calibration(dino))


def _arm_fingerprint(
    picture: Picture, settings: Settings, model: TileModel, dino: Dinov2, references: Sequence[Tensor]
) -> str:
    tokens = _image_tokens(settings, model, dino) if settings.conditions else None
    return job_fingerprint(picture, settings, model, dino, tokens, references)


def _lanczos(picture: Picture, settings: Settings, model: TileModel, dino: Dinov2) -> Result:
    """The plain enlargement that everything is compared with, measured like the others."""
    off = settings.replace(denoise=0.0, **_AS_IT_COMES)
    job = prepare(picture.pixels, plan_job(off, picture.size, model), off, dino=dino)
    height, width = job.target_size
    enlarged = picture_from_pil(picture.to_pil().resize((width, height), PIL.Image.Resampling.LANCZOS)).pixels
    finished = Finished(enlarged, SampledTiles())
    return _result(picture, enlarged, report_on(job, model, finished, measures=True, seconds=0.0), off)


def _result(
    picture: Picture, image: Tensor, outcome: Outcome, settings: Settings, marks: Mapping[str, str] | None = None
) -> Result:
    return Result(_like(picture, image), outcome.report, settings, outcome.maps, picture, marks or {})


def _steps_alone(progress: Callable[[Progress], None] | None) -> OnProgress | None:
    """Events without a canvas alone: one after every model call."""
    if progress is None:
        return None
    return lambda event: progress(event) if event.canvas is None else None


def _grey_eight_bit(image: Tensor) -> Tensor:
    """`image` as an 8-bit file of one channel gives it back."""
    return eight_bit(image.mean(1, keepdim=True)).expand_as(image)


def _seeded(settings: Settings) -> Settings:
    """`settings` with a seed drawn where none was given."""
    return settings if settings.seed >= 0 else settings.replace(seed=random.SystemRandom().randint(0, MAX_SEED))


def _model(model: TileModel | str | os.PathLike[str] | None) -> TileModel:
    if model is None or isinstance(model, str | os.PathLike):
        return _denoiser(None if model is None else os.fspath(model))
    return model


@functools.lru_cache(maxsize=1)
def _denoiser(folder: str | None) -> PixelTileModel:
    """Loaded once for all pictures of a batch."""
    return PixelTileModel(None if folder is None else Path(folder))


@functools.lru_cache(maxsize=1)
def _features(source: str | None) -> Dinov2:
    """Loaded once for all pictures of a batch."""
    return load_dinov2(source)


def _image_tokens(settings: Settings, model: TileModel, dino: Dinov2 | None) -> ImageTokens:
    assert dino is not None, "an adapter needs the feature network it was trained with"
    if not isinstance(model, PixelTileModel):
        raise AdapterError(f"Adapters act on the embedded denoiser alone, not on {model.name}. Set its strength to 0.")
    adapter = _adapter(settings.adapter or None, dino)
    check_fits(adapter, shapes(model.unet), base="embedded", model=model.name)
    return ImageTokens(adapter, dino, settings.adapter_strength)


@functools.lru_cache(maxsize=1)
def _adapter(file: str | None, dino: Dinov2) -> Adapter:
    """Loaded once for all pictures of a batch."""
    return load_adapter(file, dino)


def _open(source: Source) -> Picture:
    if isinstance(source, Picture):
        return source
    return picture_from_pil(source) if isinstance(source, PIL.Image.Image) else read_picture(source)


def open_references(references: Sequence[Source]) -> list[Tensor]:
    """The pixels of reference pictures, (1, 3, H, W) in [0, 1] each.

    Raises:
        SettingsError: there are more than `MAX_REFERENCES`.
        ImageError: one cannot be read.
    """
    if len(references) > MAX_REFERENCES:
        raise SettingsError(
            f"There may be at most {MAX_REFERENCES} reference pictures: got {len(references)}. Leave some out.",
            field="reference", value=len(references), limit=f"at most {MAX_REFERENCES}",
        )  # fmt: skip
    return [_open(reference).pixels for reference in references]


def _like(picture: Picture, image: Tensor) -> Picture:
    """`picture` with the pixels of `image`, and its alpha enlarged alongside."""
    alpha = picture.alpha
    if alpha is not None:
        alpha = arrays.by_bands(lambda a: a.clamp(0, 1), resize(alpha, (image.shape[-2], image.shape[-1])))
    return dataclasses.replace(picture, pixels=image, alpha=alpha)

"""upscale(): the one loop, from a picture to a larger one."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import PIL.Image
import torch
from torch import Tensor

from .blend import Canvas
from .consistency import back_project, dead_zone, source_noise
from .correction import Codec, TileCorrection
from .dinov2 import Dinov2, load_dinov2
from .embedded import EmbeddedRender
from .features import feature_grid
from .guidance import Extract, Target, drift, make_target, mean_feature, patch_drift, spread
from .images import Picture, as_picture, write_picture
from .infotext import infotext
from .quality import detail_ratio, psnr
from .report import Report, TileReport
from .resample import TileOperators, resize, tile_operators
from .settings import MAX_SEED, Settings
from .tiles import Tile, TilePlan, padded_size, plan_tiles


class Render(Protocol):
    """What the core asks of a diffusion model.

    Attributes:
        name: for the report.
        tile_px: side of a tile that suits the model, pixels.
        multiple_px: sides and positions of tiles are whole multiples of it.
        channels, factor: channels of the noise, and pixels to one of its cells.
        fits_any_tile: smaller tiles are as good, so none need overlap more than asked.
    """

    name: str
    tile_px: int
    multiple_px: int
    channels: int
    factor: int
    fits_any_tile: bool

    def calls(self, denoise: float, steps: int) -> int:
        """Model calls for one tile."""

    def __call__(
        self,
        tiles: Tensor,
        noise: Tensor,
        *,
        denoise: float,
        steps: int,
        correct: Callable[[Tensor, float, Codec], Tensor],
        called: Callable[[], None],
    ) -> Tensor:
        """Repaint tiles, (B, 3, h, w) in [0, 1]; see `embedded.EmbeddedRender`."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: tiles finished and model calls made, each out of how many."""

    tile: int
    tiles: int
    call: int
    calls: int


@dataclass(frozen=True)
class Result:
    """A finished picture.

    Attributes:
        picture: the result, of the source's kind: grey stays grey, alpha and colour profile are kept.
        report: what was done and measured.
        settings: as used, seed included.
    """

    picture: Picture
    report: Report
    settings: Settings

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the picture with its settings as text; an existing file only with `force`.

        Raises:
            ImageError: the file exists, or cannot be written.
        """
        text = infotext(self.settings, self.report.result_size)
        return write_picture(self.picture, Path(path), text=text, force=force)


def upscale(
    source: Picture | PIL.Image.Image | str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    model: Render | str | os.PathLike[str] | None = None,
    dino: Dinov2 | None = None,
    measure: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Enlarge a picture by tiled img2img, kept to its source by consistency and DINO guidance.

    Args:
        source: a picture, or the path of one.
        settings: None takes the defaults.
        model: a diffusion model, or a folder to load the embedded kind from; None takes the one that ships.
        dino: a loaded feature network; None loads `settings.dino_model` when it is needed.
        measure: also measure drift, which needs the feature network even where guidance is off.
        progress: told after every model call.

    Raises:
        SettingsError: the target size does not fit the source.
        ImageError, ModelError: the picture or a network cannot be read.
    """
    picture = as_picture(source)
    settings = settings or Settings()
    if settings.seed < 0:
        settings = settings.replace(seed=random.SystemRandom().randint(0, MAX_SEED))
    target_size = settings.target_size(_size(picture.pixels))
    if model is None or isinstance(model, str | os.PathLike):
        model = EmbeddedRender(None if model is None else Path(model))
    if dino is None and (settings.guides or measure):
        dino = load_dinov2(settings.dino_model or None)
    run = _Run(picture.pixels, target_size, settings, model, dino, measure, progress)
    started = time.perf_counter()
    with torch.no_grad():
        image = run.render()
        report = run.report(image, time.perf_counter() - started)
    return Result(picture.enlarged(image), report, settings)


def compare(
    source: Picture | PIL.Image.Image | str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    model: Render | str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Result]:
    """The same picture with ever more of the product switched on, same seed.

    Returns:
        Results by label: Lanczos, plain img2img, consistency alone, and the settings as given.
    """
    picture = as_picture(source)
    settings = settings or Settings()
    if settings.seed < 0:
        settings = settings.replace(seed=random.SystemRandom().randint(0, MAX_SEED))
    if model is None or isinstance(model, str | os.PathLike):
        model = EmbeddedRender(None if model is None else Path(model))
    dino = load_dinov2(settings.dino_model or None)
    arms = {
        "img2img": settings.replace(consistency=0.0, dino_enabled=False),
        "img2img + consistency": settings.replace(dino_enabled=False),
        "img2img + consistency + DINO": settings,
    }
    results = {"Lanczos": _lanczos(picture, settings, dino)}
    for label, arm in arms.items():
        results[label] = upscale(picture, arm, model=model, dino=dino, measure=True, progress=progress)
    return results


def _lanczos(picture: Picture, settings: Settings, dino: Dinov2) -> Result:
    """The plain enlargement that everything is compared with, measured like the others."""
    off = settings.replace(denoise=0.0, consistency=0.0, dino_enabled=False)
    height, width = settings.target_size(_size(picture.pixels))
    planes = [
        PIL.Image.fromarray(plane.numpy()).resize((width, height), PIL.Image.Resampling.LANCZOS)
        for plane in picture.pixels[0]
    ]
    image = torch.stack([torch.tensor(list(p.getdata())).view(height, width) for p in planes])[None].clamp(0, 1)
    run = _Run(picture.pixels, (height, width), off, EmbeddedRender(), dino, True, None)
    return Result(picture.enlarged(image), run.report(image, 0.0), off)


@dataclass
class _Run:
    """One picture under way: what the tiles share, and how many calls have been made."""

    source: Tensor
    target_size: tuple[int, int]
    settings: Settings
    model: Render
    dino: Dinov2 | None
    measure: bool
    progress: Callable[[Progress], None] | None
    seconds: dict[Tile, float] = field(default_factory=dict)
    call: int = 0

    def __post_init__(self) -> None:
        settings, model = self.settings, self.model
        self.noise_level = source_noise(self.source)
        self.enlarged = resize(self.source, self.target_size).clamp(0, 1)
        self.plan: TilePlan = plan_tiles(
            padded_size(self.target_size, model.multiple_px),
            tile_px=settings.tile_size or max(model.tile_px, 2 * settings.overlap),
            overlap_px=settings.overlap,
            multiple_px=model.multiple_px,
            shrink=model.fits_any_tile and not settings.tile_size,
        )
        self.calls = model.calls(settings.denoise, settings.steps)
        self.extract: Extract | None = None
        if self.dino is not None:
            dino = self.dino
            self.extract = lambda image: feature_grid(dino, image)
            whole = self.extract(self.source)
            self.mean, self.spread = mean_feature(whole), spread(whole)

    def render(self) -> Tensor:
        """The finished picture, (1, 3, H, W) in [0, 1]."""
        height, width = self.target_size
        base = _pad(self.enlarged, self.plan.size)
        canvas = Canvas(base, self.plan, feather_px=self.settings.overlap)
        if self.calls:
            noise = self._noise()
            for tiles in _batches(self.plan, self.settings.tile_batch_size):
                for tile, image in zip(tiles, self._repaint(tiles, base, noise), strict=True):
                    canvas.add(tile, image[None])
        return back_project(
            canvas.result()[..., :height, :width],
            self.source,
            strength=self.settings.consistency,
            dead_zone=self._dead_zone(),
        )

    def report(self, image: Tensor, seconds: float) -> Report:
        """What was done, with drift where a feature network is at hand."""
        return Report(
            source_size=_size(self.source),
            result_size=self.target_size,
            settings=asdict(self.settings),
            model=self.model.name,
            features=self.dino.name if self.dino else None,
            model_calls=self.calls * -(-len(self.plan) // self.settings.tile_batch_size),
            seconds=seconds,
            source_psnr=psnr(resize(image, _size(self.source)).clamp(0, 1), self.source),
            detail=detail_ratio(image, self.enlarged),
            source_noise=self.noise_level,
            tiles=tuple(self._tile_report(tile, image) for tile in self.plan),
        )

    def _noise(self) -> Tensor:
        """One field for the whole canvas: where tiles overlap they start from the same noise."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        height, width = (side // self.model.factor for side in self.plan.size)
        return torch.randn(1, self.model.channels, height, width, generator=generator)

    def _repaint(self, tiles: list[Tile], base: Tensor, noise: Tensor) -> Tensor:
        started = time.perf_counter()
        corrections = [self._correction(tile) for tile in tiles]

        def correct(clean: Tensor, ratio: float, codec: Codec) -> Tensor:
            parts = zip(corrections, clean.split(1), strict=True)
            return torch.cat([correction(part, ratio, codec) for correction, part in parts])

        f = self.model.factor
        out = self.model(
            torch.cat([base[..., t.rows, t.cols] for t in tiles]),
            torch.cat([noise[..., t.y0 // f : t.y1 // f, t.x0 // f : t.x1 // f] for t in tiles]),
            denoise=self.settings.denoise,
            steps=self.settings.steps,
            correct=correct,
            called=self._called,
        )
        self.seconds.update(dict.fromkeys(tiles, (time.perf_counter() - started) / len(tiles)))
        return out

    def _called(self) -> None:
        self.call += 1
        batches = -(-len(self.plan) // self.settings.tile_batch_size)
        done = min(self.call // self.calls * self.settings.tile_batch_size, len(self.plan))
        if self.progress:
            self.progress(Progress(done, len(self.plan), self.call, self.calls * batches))

    def _dead_zone(self) -> float:
        return dead_zone(self.noise_level)

    def _operators(self, tile: Tile) -> TileOperators:
        return tile_operators(_size(self.source), self.target_size, tile.rows, tile.cols)

    def _correction(self, tile: Tile) -> TileCorrection:
        operators = self._operators(tile)
        guided = self.settings.guides and operators.knows_something
        return TileCorrection(
            self.source,
            operators,
            consistency=self.settings.consistency,
            dead_zone=self._dead_zone(),
            strength=self.settings.dino_strength if guided else 0.0,
            target=self._target(operators) if guided else None,
            extract=self.extract,
        )

    def _target(self, operators: TileOperators) -> Target:
        assert self.extract is not None, "a target needs a feature network"
        return make_target(self.extract(operators.crop(self.source)), self.mean, spread=self.spread)

    def _tile_report(self, tile: Tile, image: Tensor) -> TileReport:
        box = (tile.y0, tile.x0, min(tile.y1, self.target_size[0]), min(tile.x1, self.target_size[1]))
        seconds = self.seconds.get(tile, 0.0)
        operators = self._operators(tile)
        if not self.measure or self.extract is None or not operators.knows_something:
            return TileReport(box, seconds)
        target = self._target(operators)

        def grid(picture: Tensor) -> Tensor:
            assert self.extract is not None
            return self.extract(operators.down(_pad(picture[..., tile.rows, tile.cols], tile.size)))

        made = grid(image)
        worst = float((target.weight * patch_drift(made, target)).max())
        return TileReport(box, seconds, float(drift(made, target)), worst, float(drift(grid(self.enlarged), target)))


def _batches(plan: TilePlan, size: int) -> Iterator[list[Tile]]:
    for start in range(0, len(plan), size):
        yield list(plan[start : start + size])


def _pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image` extended at its bottom and right edge to (height, width) `size`."""
    height, width = _size(image)
    if (height, width) == size:
        return image
    return torch.nn.functional.pad(image, (0, size[1] - width, 0, size[0] - height), mode="replicate")


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]

"""Run: one picture through a diffusion model, tile by tile."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .blend import Canvas
from .calibration import load_calibration
from .consistency import back_project, dead_zone, source_noise
from .correction import Codec, TileCorrection
from .dinov2 import Dinov2
from .drift import TileDrift, Yardstick
from .quality import detail_ratio, psnr
from .report import Report, TileReport
from .resample import resize, tile_operators
from .settings import Settings
from .tiles import Tile, TilePlan, padded_size, plan_tiles

TileCorrect = Callable[[Tensor, float, Codec], Tensor]
"""Predicted clean tiles (B, C, h, w), their noise-to-signal ratio and the model's codec to corrected tiles."""


class Render(Protocol):
    """What the core asks of a diffusion model.

    Attributes:
        name: for the report.
        tile_px: side of a tile that suits the model, pixels.
        multiple_px: sides and positions of tiles are whole multiples of it.
        channels, factor: channels of the noise, and pixels to a side of one of its cells.
        fits_any_tile: smaller tiles are as good, so none need overlap more than asked.
    """

    name: str
    tile_px: int
    multiple_px: int
    channels: int
    factor: int
    fits_any_tile: bool

    def calls(self, denoise: float, steps: int) -> int:
        """Model calls for one tile; 0 when the model is not needed."""

    def __call__(
        self,
        tiles: Tensor,
        noise: Tensor,
        *,
        denoise: float,
        steps: int,
        correct: TileCorrect,
        called: Callable[[], None],
    ) -> Tensor | None:
        """Repaint tiles by img2img.

        Args:
            tiles: (B, 3, h, w) in [0, 1].
            noise: (B, channels, h / factor, w / factor), unit normal, to start from.
            denoise, steps: as in `Settings`.
            correct: to be applied to the predicted clean tiles at every model call.
            called: to be told after every model call.

        Returns:
            (B, 3, h, w) in [0, 1]; None when the user asked to stop.
        """


@dataclass(frozen=True)
class Progress:
    """How far a run is: tiles finished and model calls made, each out of how many."""

    tile: int
    tiles: int
    call: int
    calls: int


@dataclass
class Run:
    """One picture under way: what its tiles share.

    Attributes:
        source: (1, 3, H, W) in [0, 1].
        target_size: (height, width) of the result, pixels.
        settings: with a seed that is drawn already.
        model: repaints tiles.
        dino: the feature network; needed when the settings guide or `measure` is set.
        enlarged: the enlarged source to start from, (1, 3, *target_size); None makes it with `resize`.
        measure: have the report measure drift.
        progress: told after every model call.
        preview: shown the whole canvas after every batch of tiles.
        mask: where the picture may change, (1, 1, *target_size) in [0, 1]; None is everywhere. Elsewhere the
            enlarged source stays, and tiles that lie there alone are left out.
        starting: told which tiles come next, before every batch of tiles.
        stopped: set when the model gave up on the user's wish; what was done by then is kept.
    """

    source: Tensor
    target_size: tuple[int, int]
    settings: Settings
    model: Render
    dino: Dinov2 | None = None
    enlarged: Tensor | None = None
    measure: bool = False
    progress: Callable[[Progress], None] | None = None
    preview: Callable[[Tensor], None] | None = None
    mask: Tensor | None = None
    starting: Callable[[Sequence[Tile]], None] | None = None
    stopped: bool = False
    _seconds: dict[Tile, float] = field(default_factory=dict)
    _guidance: dict[Tile, float] = field(default_factory=dict)
    _call: int = 0

    def __post_init__(self) -> None:
        settings, model = self.settings, self.model
        self._noise_level = source_noise(self.source)
        self._dead_zone = dead_zone(self._noise_level)
        self._plain = resize(self.source, self.target_size).clamp(0, 1)
        self.base = self._plain if self.enlarged is None else self.enlarged
        self.plan: TilePlan = plan_tiles(
            padded_size(self.target_size, model.multiple_px),
            tile_px=settings.tile_size or max(model.tile_px, 2 * settings.overlap),
            overlap_px=settings.overlap,
            multiple_px=model.multiple_px,
            shrink=model.fits_any_tile and not settings.tile_size,
        )
        mask = self.mask
        self._wanted: Sequence[Tile] = (
            self.plan if mask is None else [t for t in self.plan if bool(mask[..., t.rows, t.cols].any())]
        )
        self._calls = model.calls(settings.denoise, settings.steps)
        assert self.dino is not None or not (settings.guides or self.measure), "features are asked for, but no network"
        self.yardstick = None if self.dino is None else Yardstick(
            self.dino, self.source, plain=self._plain, calibration=load_calibration(self.dino)
        )

    @property
    def calls(self) -> int:
        """Model calls of the whole run."""
        return self._calls * -(-len(self._wanted) // self.settings.tile_batch_size)

    def render(self) -> Tensor:
        """The finished picture, (1, 3, H, W) in [0, 1]; unfinished tiles show the enlarged source."""
        height, width = self.target_size
        base = _pad(self.base, self.plan.size)
        canvas = Canvas(base, self.plan, feather_px=self.settings.overlap)
        noise = self._noise() if self._calls else base
        for tiles in self._batches() if self._calls else ():
            if self.starting:
                self.starting(tiles)
            images = self._repaint(tiles, base, noise)
            if images is None:
                self.stopped = True
                break
            for tile, image in zip(tiles, images, strict=True):
                canvas.add(tile, image[None])
            if self.preview:
                self.preview(canvas.result()[..., :height, :width])
        done = canvas.result()[..., :height, :width]
        done = back_project(done, self.source, strength=self.settings.consistency, dead_zone=self._dead_zone)
        return done if self.mask is None else torch.lerp(self.base, done, self.mask)

    def report(self, image: Tensor, seconds: float) -> Report:
        """What was done, with drift when `measure` is set; `image` is the finished picture."""
        return Report(
            source_size=_size(self.source),
            result_size=self.target_size,
            settings=dataclasses.asdict(self.settings),
            model=self.model.name,
            features=self.dino.name if self.dino else None,
            model_calls=self._call,
            seconds=seconds,
            source_psnr=psnr(resize(image, _size(self.source)).clamp(0, 1), self.source),
            detail=detail_ratio(image, self._plain),
            source_noise=self._noise_level,
            tiles=tuple(self._tile_report(tile, image) for tile in self.plan),
            notes=("Stopped before the last tile; the rest is the enlarged source.",) if self.stopped else (),
        )

    def _batches(self) -> Iterator[list[Tile]]:
        wanted, size = self._wanted, self.settings.tile_batch_size
        for start in range(0, len(wanted), size):
            yield list(wanted[start : start + size])

    def _noise(self) -> Tensor:
        """One field for the whole canvas: where tiles overlap they start from the same noise."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        height, width = (side // self.model.factor for side in self.plan.size)
        return torch.randn(1, self.model.channels, height, width, generator=generator)

    def _repaint(self, tiles: list[Tile], base: Tensor, noise: Tensor) -> Tensor | None:
        started = time.perf_counter()
        corrections = [self._correction(tile) for tile in tiles]

        def correct(clean: Tensor, ratio: float, codec: Codec) -> Tensor:
            parts = zip(corrections, torch.split(clean, 1), codec.references(len(tiles)), strict=True)
            return torch.cat([each(part, ratio, codec, reference) for each, part, reference in parts])

        f = self.model.factor
        out = self.model(
            torch.cat([base[..., t.rows, t.cols] for t in tiles]),
            torch.cat([noise[..., t.y0 // f : t.y1 // f, t.x0 // f : t.x1 // f] for t in tiles]),
            denoise=self.settings.denoise,
            steps=self.settings.steps,
            correct=correct,
            called=self._called,
        )
        self._seconds.update(dict.fromkeys(tiles, (time.perf_counter() - started) / len(tiles)))
        self._guidance.update((t, each.mean_applied) for t, each in zip(tiles, corrections, strict=True))
        return out

    def _called(self) -> None:
        self._call += 1
        tiles, calls = len(self._wanted), self.calls
        done = min(self._call // self._calls * self.settings.tile_batch_size, tiles)
        if self.progress:
            self.progress(Progress(done, tiles, self._call, max(calls, self._call)))

    def _correction(self, tile: Tile) -> TileCorrection:
        operators = tile_operators(_size(self.source), self.target_size, tile.rows, tile.cols)
        guides = self.settings.guides and operators.knows_something
        return TileCorrection(
            self.source,
            operators,
            consistency=self.settings.consistency,
            dead_zone=self._dead_zone,
            strength=self.settings.dino_strength if guides else 0.0,
            extract=self.yardstick.extract if guides and self.yardstick else None,
            target=self.yardstick.target if guides and self.yardstick else None,
        )

    def drift(self, tile: Tile, image: Tensor) -> TileDrift | None:
        """Drift of `tile` in `image`, a picture of the target size; None where the tile determines no source pixel.

        Raises:
            ValueError: the run has no feature network.
        """
        if self.yardstick is None:
            raise ValueError("drift needs a feature network, but the run was given none.")
        operators = tile_operators(_size(self.source), self.target_size, tile.rows, tile.cols)
        if not operators.knows_something:
            return None
        return self.yardstick.tile(_pad(image[..., tile.rows, tile.cols], tile.size), operators)

    def _tile_report(self, tile: Tile, image: Tensor) -> TileReport:
        box = (tile.y0, tile.x0, min(tile.y1, self.target_size[0]), min(tile.x1, self.target_size[1]))
        done = TileReport(box, self._seconds.get(tile, 0.0), guidance=self._guidance.get(tile, 0.0))
        if tile in self._seconds:
            done = dataclasses.replace(done, seed=self.settings.seed, denoise=self.settings.denoise)
        found = self.drift(tile, image) if self.measure else None
        if found is None:
            return done
        return dataclasses.replace(
            done, drift=found.mean, drift_worst=found.worst, drift_enlarged=found.enlarged, drift_first=found.mean
        )


def _pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image` extended at its bottom and right edge to (height, width) `size`."""
    height, width = _size(image)
    if (height, width) == size:
        return image
    return torch.nn.functional.pad(image, (0, size[1] - width, 0, size[0] - height), mode="replicate")


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]

"""Run: one picture through a diffusion model, tile by tile."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..measure.calibration import load_calibration
from ..measure.drift import TileDrift, Yardstick
from ..measure.flat import is_flat
from ..measure.quality import detail_ratio, psnr
from ..networks.cleaner import held_to
from ..networks.dinov2 import Dinov2
from ..networks.texture_net import embedded_texture, expected, with_texture
from ..report.maps import Heat, bound_kind, heats, tile_figures
from ..report.records import Report, TileReport
from ..sampling.consistency import back_project
from ..sampling.tile_model import Progress, Render, TileCorrect
from ..settings import Settings
from ..tiling.blend import Canvas
from ..tiling.plan import Tile, TilePlan, padded_size, plan_tiles
from ..tiling.resample import resize, tile_operators
from .drift_limit import Held, bound_note, eight_bit, hold
from .painter import Painter
from .tiles import TileLoop, box_of

__all__ = ["Progress", "Render", "Run", "TileCorrect"]


UNTOUCHED = 1e-5
"""Pixels that differ by less from the enlarged source were not painted."""


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
        saved: what is left of a picture once it is written; the bound holds for that.
        condition: shows the model what tiles hold of the source, (B, 3, h, w) as plainly enlarged, and by how much
            they were; in force inside its `with` block.
        found: drift of each tile, as `report` measured it.
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
    saved: Callable[[Tensor], Tensor] = eight_bit
    condition: Callable[[Tensor, float], AbstractContextManager[None]] | None = None
    found: dict[Tile, TileDrift] = field(default_factory=dict)
    _held: Held | None = None

    def __post_init__(self) -> None:
        settings, model = self.settings, self.model
        self.reference = held_to(self.source, strength=settings.clean_source)
        self._plain = resize(self.reference.image, self.target_size).clamp(0, 1)
        self.base = self._plain if self.enlarged is None else self._cleaned(self.enlarged)
        self.plan: TilePlan = plan_tiles(
            padded_size(self.target_size, model.multiple_px),
            tile_px=settings.tile_size or max(model.tile_px, 2 * settings.overlap),
            overlap_px=settings.overlap,
            multiple_px=model.multiple_px,
            shrink=model.fits_any_tile and not settings.tile_size,
        )
        mask = self.mask
        self._inside: Sequence[Tile] = (
            self.plan if mask is None else [t for t in self.plan if bool(mask[..., t.rows, t.cols].any())]
        )
        needed = settings.needs_features or self.measure
        assert self.dino is not None or not needed, "features are asked for, but no network"
        self.yardstick = None if self.dino is None else Yardstick(
            self.dino, self.reference.image, plain=self._plain, calibration=load_calibration(self.dino)
        )
        skips = settings.skip_flat and model.calls(settings.denoise, settings.steps) > 0
        self._loop = TileLoop(
            model, settings, self.target_size, [tile for tile in self._inside if not (skips and self._flat(tile))],
            self.yardstick, self._conditioned,
        )  # fmt: skip

    @property
    def calls(self) -> int:
        """Model calls of the whole run, as far as is known: redone tiles add theirs when their turn comes."""
        return self._loop.calls

    @property
    def stopped(self) -> bool:
        """Whether the model gave up on the user's wish; what was done by then is kept."""
        return self._loop.stopped

    @property
    def bound(self) -> float:
        """The largest patch drift above the floor that a tile may have without being redone or blended."""
        if self.settings.max_drift or self.yardstick is None:
            return self.settings.max_drift
        return self.yardstick.thresholds.bound

    def render(self) -> Tensor:
        """The finished picture, (1, 3, H, W) in [0, 1]; unfinished tiles show the enlarged source."""
        settings, (height, width) = self.settings, self.target_size
        base = _pad(self.base, self.plan.size)
        canvas = Canvas(base, self.plan, feather_px=settings.overlap)
        painted = self._loop.a_tile > 0
        if painted:
            painter = Painter(
                self.reference.image, base, canvas, self.target_size, settings, self.model,
                yardstick=self.yardstick, dead_zone=self.reference.dead_zone,
            )  # fmt: skip
            loop = self._loop
            loop.progress, loop.preview, loop.starting = self.progress, self.preview, self.starting
            loop.paint(painter, canvas, bound=self.bound)
        done = canvas.result()[..., :height, :width]
        if settings.texture and painted:
            done = self._textured(done)
        done = self._pulled(done)
        if self.mask is not None:
            # What the mask protects is not cleaned either.
            kept = resize(self.source, self.target_size).clamp(0, 1) if self.enlarged is None else self.enlarged
            done = torch.lerp(kept, done, self.mask)
        return self._within_bound(done) if settings.max_drift else done

    def report(self, image: Tensor, seconds: float) -> Report:
        """What was done, with drift when `measure` is set; `image` is the finished picture."""
        measured = self.yardstick if self.measure else None
        return Report(
            source_size=_size(self.source),
            result_size=self.target_size,
            settings=dataclasses.asdict(self.settings),
            model=self.model.name,
            features=self.dino.name if self.dino else None,
            model_calls=self._loop.made,
            seconds=seconds,
            source_psnr=psnr(resize(image, _size(self.source)).clamp(0, 1), self.source),
            detail=detail_ratio(image, self._plain),
            source_noise=self.reference.noise,
            source_cleaned=self.reference.taken,
            tiles=tuple(self._tile_report(tile, image) for tile in self.plan),
            notes=tuple(self._notes()),
            bound=self.bound if measured else None,
            alarm_at=measured.thresholds.alarm if measured else None,
            bound_kind=bound_kind(measured.thresholds, self.settings.max_drift) if measured else None,
        )

    def heats(self) -> tuple[Heat, ...]:
        """Maps of what `report` measured, see `figures.heats`; none when it measured nothing."""
        return heats(tuple(self.found.values()), _size(self.source), self.target_size, bound=self.bound)

    def events(self) -> Iterator[str]:
        """What the run did about drift, and whether it was stopped, one sentence each."""
        if self.stopped:
            yield "Stopped before the last tile; the rest is the enlarged source."
        if self._loop.redone:
            looked = self.yardstick is not None and self.yardstick.thresholds.alarm is not None
            why = "drifted too far or looked invented" if looked else "drifted too far"
            yield f"Redone because they {why}: {_tiles(self._loop.redone)}."
        if self.reference.taken:
            yield f"Taken off the source first: noise or JPEG damage of {255 * self.reference.taken:.1f}/255."
        if skipped := len(self._inside) - len(self._loop.wanted):
            yield f"Left alone because nothing in them wants repainting: {_tiles(skipped)}."
        if self._held is not None:
            yield bound_note(self._held, self.settings.max_drift)

    def _notes(self) -> Iterator[str]:
        yield from self.events()
        if self.measure and self.yardstick is not None and not self.yardstick.thresholds.measured:
            yield self.yardstick.thresholds.note

    def _conditioned(self, tiles: Sequence[Tile]) -> AbstractContextManager[None]:
        if self.condition is None:
            return nullcontext()
        plain = _pad(self._plain, self.plan.size)
        scale = self.target_size[1] / self.source.shape[-1]
        return self.condition(torch.cat([plain[..., t.rows, t.cols] for t in tiles]), scale)

    def _flat(self, tile: Tile) -> bool:
        operators = tile_operators(_size(self.source), self.target_size, tile.rows, tile.cols)
        if not operators.knows_something or self.yardstick is None:
            return False
        region = operators.crop(self.reference.image)
        return is_flat(region, self.yardstick.extract(region))

    def _within_bound(self, done: Tensor) -> Tensor:
        scale = (self.target_size[0] / self.source.shape[-2], self.target_size[1] / self.source.shape[-1])
        self._held = hold(
            done, self._pulled(self._plain), list(self._inside), bound=self.settings.max_drift, scale=scale,
            measure=self.drift, saved=self.saved, mask=self.mask, last=self._plain,
        )  # fmt: skip
        return self._held.image

    def _pulled(self, image: Tensor) -> Tensor:
        """`image` made consistent with what the result is held to."""
        return back_project(
            image, self.reference.image, strength=self.settings.consistency, dead_zone=self.reference.dead_zone
        )

    def _textured(self, image: Tensor) -> Tensor:
        """`image` with the detail that was painted scaled to what the source lets expect."""
        scale = math.sqrt(image[0, 0].numel() / self.source[0, 0].numel())
        wanted = expected(embedded_texture(), self.reference.image, scale)
        scaled = with_texture(image, wanted, _size(self.source), scale, strength=self.settings.texture)
        # Where no tile was painted, by wish or for an early stop, the enlarged source stays.
        untouched = ((image - self.base).abs() < UNTOUCHED).all(1, keepdim=True)
        return torch.where(untouched, image, scaled)

    def _cleaned(self, enlarged: Tensor) -> Tensor:
        """`enlarged`, made from the source as given, without what was taken off that."""
        if self.reference.image is self.source:
            return enlarged
        return (enlarged + resize(self.reference.image - self.source, self.target_size)).clamp(0, 1)

    def drift(self, tile: Tile, image: Tensor, *, detail: bool = False) -> TileDrift | None:
        """Drift of `tile` in `image`, a picture of the target size; None where the tile determines no source pixel.

        With `detail` also how suspicious its detail is, where the feature network has a head for that.

        Raises:
            ValueError: the run has no feature network.
        """
        if self.yardstick is None:
            raise ValueError("drift needs a feature network, but the run was given none.")
        operators = tile_operators(_size(self.source), self.target_size, tile.rows, tile.cols)
        if not operators.knows_something:
            return None
        return self.yardstick.tile(_pad(image[..., tile.rows, tile.cols], tile.size), operators, detail=detail)

    def _tile_report(self, tile: Tile, image: Tensor) -> TileReport:
        skipped = tile in self._inside and tile not in self._loop.wanted
        done = self._loop.records.get(tile) or TileReport(box_of(tile, self.target_size), 0.0, skipped=skipped)
        if self._held is not None:
            before = self._held.before.get(tile)
            first = done.drift_first if before is None or done.drift_first is not None else before.mean
            blended = float(self._held.share[..., tile.rows, tile.cols].mean())
            done = dataclasses.replace(done, blended=blended, drift_first=first)
        found = self.drift(tile, image, detail=True) if self.measure else None
        if found is None:
            return done
        self.found[tile] = found
        first = found.mean if done.drift_first is None else done.drift_first
        figures = tile_figures(found, _size(self.source), self.target_size, bound=self.bound)
        return dataclasses.replace(done, drift_first=first, **figures)


def _pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image` extended at its bottom and right edge to (height, width) `size`."""
    height, width = _size(image)
    if (height, width) == size:
        return image
    return torch.nn.functional.pad(image, (0, size[1] - width, 0, size[0] - height), mode="replicate")


def _tiles(count: int) -> str:
    return "1 tile" if count == 1 else f"{count} tiles"


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]

"""Tiles of one picture: sampled batch by batch, retried where they drift, blended on a canvas."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from .. import arrays
from ..adapter.injection import ImageTokens
from ..errors import SettingsError
from ..measure.drift import TileDrift
from ..memory import free_memory, is_out_of_memory
from ..sampling.consistency import FINAL_ITERATIONS, tile_pull
from ..sampling.correction import BatchCorrector, TileCorrections
from ..sampling.tile_model import HalfPrecisionModel, TileBatch, TileModel
from ..tiling.blend import Canvas
from ..tiling.plan import Tile
from . import faults
from .prepare import Prepared, extend
from .progress import OnProgress, ProgressCounter
from .retry import Attempt, AttemptSettings, Candidates, judge, retry

log = logging.getLogger("dino_upscale")

PATIENCE: Final = 4
"""Tiles after which a run ends that had too little memory for every one of them."""

NOISE_PIECE: Final = 2**22
"""Numbers of noise that are drawn at once."""


@dataclass(frozen=True)
class Conditions:
    """What the model is shown beside each tile.

    Attributes:
        tokens: makes image tokens of an adapter; None without one.
        prompts: prompt of each tile; None gives all the picture's own.
    """

    tokens: ImageTokens | None = None
    prompts: Mapping[Tile, str] | None = None


@dataclass(frozen=True)
class SampledBatch:
    """A batch of tiles that is done, with what it took.

    Attributes:
        candidates: the attempts at each of its tiles.
        calls: model calls, retries included.
        splits: how often it did not fit into memory and was halved.
        redone: tiles that were sampled again.
    """

    candidates: tuple[Candidates, ...]
    calls: int
    splits: int
    redone: int


class TileStore(Protocol):
    """Keeps finished batches for a run that goes on after this one was cut short; `resume` has the one on disk."""

    def take(self, tiles: Sequence[Tile]) -> SampledBatch | None:
        """The batch of these tiles, bitwise as an earlier run of the same job made it; None where it made none."""

    def holds(self, tiles: Sequence[Tile]) -> bool:
        """Tell whether there is such a batch, without reading it; one that turns out damaged is made again."""

    def keep(self, tiles: Sequence[Tile], batch: SampledBatch) -> None:
        """Keep a finished batch; what goes wrong with that must not end the run."""


@dataclass(frozen=True)
class SampledTiles:
    """What is known of a picture's tiles once they are blended.

    Attributes:
        candidates: the attempts at each tile that was sampled, in order, without their pictures.
        calls: model calls.
        stopped: the user asked to stop before the last tile.
        skipped: open tiles that were left alone, because nothing in them wants repainting.
        splits: how often a batch did not fit into memory and was halved.
        resumed: tiles that an earlier run of the same job had made.
    """

    candidates: tuple[Candidates, ...] = ()
    calls: int = 0
    stopped: bool = False
    skipped: tuple[Tile, ...] = ()
    splits: int = 0
    resumed: int = 0

    @property
    def redone(self) -> int:
        """How many tiles were sampled again for what they showed."""
        return sum(len(each.valid) > 1 for each in self.candidates)

    @property
    def uncorrected(self) -> int:
        """How many tiles were not corrected at some model call, because a correction was no number."""
        return sum(each.best.dropped > 0 for each in self.candidates)

    @property
    def precise(self) -> int:
        """How many tiles gave valid numbers in float32 alone."""
        return sum(each.best.settings.precise and each.best.valid for each in self.candidates)

    @property
    def faulty(self) -> int:
        """How many tiles keep what they started from, because the model made no picture of them."""
        return sum(not each.valid for each in self.candidates)


def sample_tiles(
    job: Prepared,
    model: TileModel,
    tiles: Sequence[Tile],
    *,
    skipped: Sequence[Tile] = (),
    conditions: Conditions | None = None,
    on_progress: OnProgress | None = None,
    store: TileStore | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[Tensor, SampledTiles]:
    """Sample `tiles` in order and blend them, or those before the user asked to stop.

    Args:
        store: keeps finished batches; those it has already are not sampled.
        stop: asked before every batch and after every model call; True ends the run there.

    Returns:
        The blended picture, (1, 3, *target size) in [0, 1], what tiles start from where none was sampled; and what is
        known of the tiles.
    """
    settings, (height, width) = job.settings, job.target_size
    start = job.padded(job.start)
    canvas = Canvas(start, job.plan.tiles, feather_px=settings.overlap)
    batches = batches_of(tiles, settings.tile_batch_size) if model.calls(settings.denoise, settings.steps) else []
    ahead = sum(store is None or not store.holds(batch) for batch in batches)
    counter = ProgressCounter(len(tiles), ahead * model.calls(settings.denoise, settings.steps), on_progress)
    done: list[Candidates] = []
    stopped = False
    resumed = 0
    counter.show(start[..., :height, :width])
    sampler = TileSampler(job, model, canvas, start, conditions or Conditions(), stop) if batches else None
    for wanted in batches:
        assert sampler is not None
        if store is not None and (kept := store.take(wanted)) is not None:
            batch = list(kept.candidates)
            counter.replay(len(wanted), kept.calls, splits=kept.splits, redone=kept.redone)
            resumed += len(wanted)
        elif stop is not None and stop():
            batch, stopped = [], True
        else:
            before = counter.spent
            batch, stopped = _sample_batch(sampler, wanted, counter)
            # What is no picture is not kept: the next run may have more memory, or better luck.
            if store is not None and not stopped and all(each.valid for each in batch):
                took = (now - then for now, then in zip(counter.spent, before, strict=True))
                store.keep(wanted, SampledBatch(tuple(batch), *took))
        for candidates in batch:
            canvas.add(candidates.tile, candidates.best.image)
        done += [candidates.without_pictures() for candidates in batch]
        if not stopped and len(done) >= min(PATIENCE, len(tiles)):
            _check_memory(sampler.short, done)
        arrays.release()
        if batch:
            counter.show(canvas.result()[..., :height, :width])
        if stopped:
            break
    image = canvas.result()[..., :height, :width]
    return image, SampledTiles(tuple(done), counter.calls, stopped, tuple(skipped), counter.splits, resumed)


def _check_memory(short: str, done: Sequence[Candidates]) -> None:
    """Raise `MemoryError` where it was `short`, and not one of the tiles could be made."""
    if short and not any(each.valid for each in done):
        raise MemoryError(
            f"out of memory: not one tile fitted ({short}). Lower the tile size, or free memory, and start again."
        )


def batches_of(tiles: Sequence[Tile], size: int) -> list[list[Tile]]:
    """`tiles` in the batches that they are sampled in, each of `size`, the last one of what is left."""
    return [list(tiles[first : first + size]) for first in range(0, len(tiles), size)]


def _sample_batch(
    sampler: TileSampler, tiles: list[Tile], counter: ProgressCounter
) -> tuple[list[Candidates], bool]:
    """Candidates of one batch, and whether the user asked to stop; none when that was before its first attempt."""
    settings = sampler.job.settings
    first = AttemptSettings(0, settings.seed, settings.denoise, settings.dino_strength, settings.consistency)
    attempts = sampler.sample(tiles, first, counter, finishing=len(tiles))
    if attempts is None:
        return [], True
    counter.land(len(tiles))
    retried: set[Tile] = set()

    def again(failed: list[Tile], how: AttemptSettings) -> list[Attempt] | None:
        counter.plan_more(sampler.model.calls(how.denoise, settings.steps))
        counter.redone += len(set(failed) - retried)
        retried.update(failed)
        return sampler.sample(failed, how, counter)

    def again_judged(failed: list[Tile], how: AttemptSettings) -> list[Attempt] | None:
        attempts = again(failed, how)
        return None if attempts is None else [sampler.judged(attempt) for attempt in attempts]

    halves = sampler.computes_in_half()

    def after_fault(how: AttemptSettings) -> AttemptSettings:
        # Where float32 did not help either, precision is not to blame, or memory is too short for it.
        return how.in_float32() if halves and not how.precise else how.reseeded().in_half()

    batch, stopped = retry(
        [Candidates((attempt,)) for attempt in attempts],
        tries=faults.TRIES + halves, next_attempt=after_fault, sample=again,
    )  # fmt: skip
    if stopped or not settings.repair_tries:
        return batch, stopped
    judged = [Candidates(tuple(sampler.judged(attempt) for attempt in each.attempts)) for each in batch]
    return retry(judged, tries=settings.repair_tries, next_attempt=sampler.next_attempt, sample=again_judged)


def noise_canvas(shape: tuple[int, ...], seed: int) -> Tensor:
    """Unit normal noise of `shape`: the numbers that `torch.randn` gives in one go, drawn piece by piece."""
    generator = torch.Generator().manual_seed(seed)
    if not arrays.is_large(*shape):
        return torch.randn(shape, generator=generator)
    noise = arrays.zeros(shape)
    flat, start = noise.view(-1), 0
    while start < len(flat):
        # torch draws in groups of 16, the last of them anew where it is not whole: no piece may be short.
        stop = len(flat) if len(flat) - start < 2 * NOISE_PIECE else start + NOISE_PIECE
        torch.randn(stop - start, generator=generator, out=flat[start:stop])
        arrays.release()
        start = stop
    return noise


class _Stopped(BaseException):
    """The user asked to stop between two model calls; no `Exception`, for what stands between is not to catch it."""


class TileSampler:
    """Samples tiles of one picture: img2img under the source's corrections.

    Args:
        canvas: where the tiles will go; it knows how much each counts where.
        start: what tiles start from, (1, 3, *canvas size) in [0, 1].
        stop: asked after every model call; True ends it.
    """

    def __init__(
        self, job: Prepared, model: TileModel, canvas: Canvas, start: Tensor, conditions: Conditions,
        stop: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        self.job, self.model, self._stop = job, model, stop
        self._canvas, self._start, self._conditions = canvas, start, conditions
        # One field for the whole canvas: where tiles overlap they start from the same noise.
        shape = (1, model.channels, *(side // model.factor for side in start.shape[-2:]))
        self._noise = noise_canvas(shape, job.settings.seed)
        self._parts = faults.Parts(model.multiple_px, job.settings.overlap)

    def sample(
        self, tiles: Sequence[Tile], how: AttemptSettings, counter: ProgressCounter, *, finishing: int = 0
    ) -> list[Attempt] | None:
        """Sample `tiles` in one go, or in halves where memory is short; None when the user asked to stop.

        Args:
            finishing: tiles of the batch that end with these, themselves included; 0 for a retry.
        """
        try:
            return self._at_once(tiles, how, counter, finishing)
        except Exception as error:
            short = is_out_of_memory(error)
            # Float32 takes more memory and ways that are rarely gone, and is only a try.
            if not how.precise and not short:
                raise
            if not how.precise and len(tiles) == 1:
                self._parts.did_not_fit(tiles[0], error)
            log.warning("A tile could not be sampled%s: %s", " in float32" if how.precise else "", error)
        # Outside of the handler: the error holds on to everything that was being worked on.
        free_memory()
        if how.precise and (len(tiles) == 1 or not short):
            return [self._failed(tile, how) for tile in tiles]
        counter.splits += 1
        if len(tiles) == 1:
            return self._in_parts(tiles[0], how, counter, finishing)
        counter.plan_more(self.model.calls(how.denoise, self.job.settings.steps))
        done: list[Attempt] = []
        for half in (tiles[: len(tiles) // 2], tiles[len(tiles) // 2 :]):
            ended = finishing - len(tiles) + len(done) + len(half)
            attempts = self.sample(half, how, counter, finishing=ended if finishing else 0)
            if attempts is None:
                return None
            done += attempts
        return done

    def _in_parts(
        self, tile: Tile, how: AttemptSettings, counter: ProgressCounter, finishing: int
    ) -> list[Attempt] | None:
        """Sample a tile that does not fit into memory in smaller ones; None when the user asked to stop."""
        plan = self._parts.plan(tile)
        if plan is None:
            return [self._failed(tile, how)]
        counter.plan_more((len(plan) - 1) * self.model.calls(how.denoise, self.job.settings.steps))
        canvas = Canvas(self._start[..., tile.rows, tile.cols], plan, feather_px=self.job.settings.overlap)
        done: list[Attempt] = []
        for box in plan:
            part, ending = self._parts.part(tile, box), finishing if box == plan[-1] else 0
            if self._parts.may_fit(part):
                attempts = self.sample([part], how, counter, finishing=ending)
            else:
                attempts = self._in_parts(part, how, counter, ending)
            if attempts is None:
                return None
            canvas.add(box, attempts[0].image)
            done += attempts
        valid = any(each.valid for each in done)
        return [
            Attempt(
                tile, how, canvas.result(), sum(each.seconds for each in done),
                sum(each.guidance for each in done) / len(done), failing=0.0 if valid else math.inf, valid=valid,
                dropped=sum(each.dropped for each in done),
            )
        ]  # fmt: skip

    def _at_once(
        self, tiles: Sequence[Tile], how: AttemptSettings, counter: ProgressCounter, finishing: int
    ) -> list[Attempt] | None:
        started = time.perf_counter()
        batch = self._batch(tiles, how)
        corrector = BatchCorrector([self._corrections(tile, how) for tile in tiles])
        try:
            with self._precision(how) as ready:
                if not ready:
                    return [self._failed(tile, how) for tile in tiles]
                out = self.model.render(batch, corrector, self._on_step(how, counter, finishing))
        except _Stopped:
            out = None
        if out is None:
            return None
        seconds = (time.perf_counter() - started) / len(tiles)
        parts = zip(
            tiles, torch.split(out, 1), torch.split(batch.images, 1), corrector.mean_rms(), corrector.dropped(),
            strict=True,
        )  # fmt: skip
        return [
            Attempt(tile, how, image, seconds, guidance, dropped=dropped)
            if faults.is_valid(image, start)
            else Attempt(tile, how, start, seconds, 0.0, failing=math.inf, valid=False, dropped=dropped)
            for tile, image, start, guidance, dropped in parts
        ]

    @property
    def short(self) -> str:
        """What was said when a tile did not fit into memory; empty while all did."""
        return self._parts.short

    def computes_in_half(self) -> bool:
        """Tell whether a tile can be sampled in float32, and would not be so anyway."""
        return isinstance(self.model, HalfPrecisionModel) and self.model.computes_in_half()

    def _precision(self, how: AttemptSettings) -> AbstractContextManager[bool]:
        if how.precise and isinstance(self.model, HalfPrecisionModel):
            return self.model.in_float32()
        return nullcontext(True)

    def _failed(self, tile: Tile, how: AttemptSettings) -> Attempt:
        start = self._start[..., tile.rows, tile.cols].clone()
        return Attempt(tile, how, start, 0.0, 0.0, failing=math.inf, valid=False)

    def judged(self, attempt: Attempt) -> Attempt:
        """Add drift, detail and how badly it fails to an attempt."""
        operators, meter = self.job.operators(attempt.tile), self.job.meter
        assert meter is not None, "retrying needs features"

        def measure(image: Tensor, *, detail: bool) -> TileDrift | None:
            return meter.tile(image, operators, detail=detail) if operators.covers_source else None

        return judge(attempt, self._consistent(attempt), self.job.drift_bound, measure)

    def next_attempt(self, how: AttemptSettings) -> AttemptSettings:
        """Settings of the next retry, with a denoise that the model can work with."""
        following = how.next()
        return following if self._is_possible(following) else dataclasses.replace(following, denoise=how.denoise)

    def _is_possible(self, how: AttemptSettings) -> bool:
        try:
            return self.model.calls(how.denoise, self.job.settings.steps) > 0
        except SettingsError:
            return False

    def _on_step(self, how: AttemptSettings, counter: ProgressCounter, finishing: int) -> Callable[[], None]:
        left = self.model.calls(how.denoise, self.job.settings.steps)

        def on_step() -> None:
            nonlocal left
            left -= 1
            counter.step(finishing=finishing if left <= 0 else 0)
            # Not after the last one: the tiles are as good as done.
            if left > 0 and self._stop is not None and self._stop():
                raise _Stopped

        return on_step

    def _batch(self, tiles: Sequence[Tile], how: AttemptSettings) -> TileBatch:
        plain = torch.cat([extend(self.job.plain[..., t.rows, t.cols], t.size) for t in tiles])
        scale = self.job.target_size[1] / self.job.source.shape[-1]
        tokens, prompts = self._conditions.tokens, self._conditions.prompts
        return TileBatch(
            tuple(tiles), self.job.plan.tiles.size,
            torch.cat([self._start[..., t.rows, t.cols] for t in tiles]),
            torch.cat([self._start_noise(tile, how) for tile in tiles]),
            plain, how.denoise, self.job.settings.steps,
            None if tokens is None else tokens.of_tiles(plain, scale),
            None if prompts is None else tuple(prompts[self._parts.whole(tile)] for tile in tiles),
        )  # fmt: skip

    def _start_noise(self, tile: Tile, how: AttemptSettings) -> Tensor:
        """(1, C, h, w), unit normal: the canvas's noise, and in the middle of a retried tile its own."""
        f = self.model.factor
        if (whole := self._parts.whole(tile)) != tile:
            y, x = (tile.y0 - whole.y0) // f, (tile.x0 - whole.x0) // f
            noise = self._start_noise(whole, how)
            return noise[..., y : y + tile.size[0] // f, x : x + tile.size[1] // f]
        rows, cols = slice(tile.y0 // f, tile.y1 // f), slice(tile.x0 // f, tile.x1 // f)
        shared = self._noise[..., rows, cols]
        if how.seed == self.job.settings.seed:
            return shared
        # Where a neighbour shows as well it keeps to the neighbour's noise; squares of shares that sum to one
        # keep the variance.
        share = self._canvas.weight(tile)[f // 2 :: f, f // 2 :: f].to(shared)
        own = torch.randn(shared.shape, generator=torch.Generator().manual_seed(how.seed))
        return (1 - share**2).clamp(min=0).sqrt() * shared + share * own

    def _corrections(self, tile: Tile, how: AttemptSettings) -> TileCorrections:
        operators, reference = self.job.operators(tile), self.job.reference
        guides = self.job.settings.guides and how.consistency < 1
        meter = self.job.meter if guides and operators.covers_source else None
        corrections = TileCorrections(reference.image, operators, how.consistency, reference.threshold)
        if meter is None:
            return corrections
        return dataclasses.replace(corrections, strength=how.strength, extract=meter.extract, target=meter.target)

    def _consistent(self, attempt: Attempt) -> Tensor:
        """The attempt's picture made consistent with the source in this tile alone, as the finished picture will be."""
        operators, strength = self.job.operators(attempt.tile), attempt.settings.consistency
        image, reference = attempt.image, self.job.reference
        if not (strength and operators.covers_source):
            return image
        for _ in range(FINAL_ITERATIONS):
            pull = tile_pull(image, reference.image, operators, threshold=reference.threshold)
            image = (image + strength * pull).clamp(0, 1)
        return image

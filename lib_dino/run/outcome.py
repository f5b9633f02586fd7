"""Outcome of a run: the picture, its measured drift, and the report on both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .. import arrays
from ..measure.drift import TileDrift
from ..measure.quality import detail_ratio, psnr
from ..report.maps import Heat, bound_kind, heats, tile_figures
from ..report.records import ReferenceReport, Report, TileReport
from ..sampling.tile_model import TileModel
from ..settings import INFOTEXT_FAULTY_KEY, INFOTEXT_STOPPED_KEY
from ..tiling.plan import Tile
from ..tiling.resample import resize
from . import faults
from .drift_limit import Limited, eight_bit, limit_note
from .finish import Finished, finish, tile_drift
from .prepare import SEEN_RMS, Prepared, source_is_flat
from .progress import OnProgress
from .retry import Candidates
from .tiles import Conditions, TileStore, sample_tiles


@dataclass(frozen=True)
class Outcome:
    """What is known of a finished picture.

    Attributes:
        report: what was done and measured.
        maps: of what was measured, the more telling first; none where drift was not.
    """

    report: Report
    maps: tuple[Heat, ...] = ()


def run_picture(
    job: Prepared,
    model: TileModel,
    *,
    conditions: Conditions | None = None,
    saved: Callable[[Tensor], Tensor] = eight_bit,
    on_progress: OnProgress | None = None,
    store: TileStore | None = None,
    stop: Callable[[], bool] | None = None,
) -> Finished:
    """Take a prepared picture through its tiles to the finished one.

    Args:
        saved: what is left of a picture once it is written; the drift limit holds for that.
        store, stop: see `sample_tiles`.
    """
    tiles, skipped = wanted_tiles(job, model)
    blended = sample_tiles(
        job, model, tiles, skipped=skipped, conditions=conditions, on_progress=on_progress, store=store, stop=stop
    )
    finished = finish(job, *blended, saved)
    image, mended = faults.mended(finished.image, job.start)
    return dataclasses.replace(finished, image=image, mended=mended) if mended else finished


def wanted_tiles(job: Prepared, model: TileModel) -> tuple[list[Tile], list[Tile]]:
    """Tiles to sample, and open tiles to skip because nothing in them wants repainting."""
    skips = job.settings.skip_flat and model.calls(job.settings.denoise, job.settings.steps) > 0
    wanted: list[Tile] = []
    skipped: list[Tile] = []
    for tile in job.open_tiles():
        (skipped if skips and source_is_flat(job, tile) else wanted).append(tile)
    return wanted, skipped


class Named(Protocol):
    """What a report says of a model."""

    @property
    def name(self) -> str:
        """For the report."""


def report_on(job: Prepared, model: Named, finished: Finished, *, measures: bool, seconds: float) -> Outcome:
    """Report on a finished picture.

    Args:
        measures: measure drift, which needs the feature network.
        seconds: wall time from the opened picture to the finished one.
    """
    image, meter = finished.image, job.meter if measures else None
    drifts = measure_tiles(job, image) if measures else {}
    report = Report(
        source_size=job.plan.source_size,
        result_size=job.target_size,
        settings=dataclasses.asdict(job.settings),
        model=model.name,
        features=None if job.meter is None else job.meter.dino.name,
        model_calls=finished.sampled.calls,
        seconds=seconds,
        source_psnr=psnr(arrays.by_bands(_shown, resize(image, job.plan.source_size)), job.source),
        detail=detail_ratio(image, job.plain),
        source_noise=job.reference.noise,
        source_cleaned=job.reference.removed_rms,
        tiles=tuple(_tile_reports(job, finished, drifts)),
        notes=(*events(job, finished), *_meter_notes(job, measures)),
        bound=job.drift_bound if meter else None,
        alarm_at=meter.thresholds.alarm if meter else None,
        bound_kind=bound_kind(meter.thresholds, job.settings.max_drift) if meter else None,
        references=reference_reports(job),
    )
    maps = heats(tuple(drifts.values()), job.plan.source_size, job.target_size, bound=job.drift_bound)
    return Outcome(report, maps)


def _shown(image: Tensor) -> Tensor:
    return image.clamp(0, 1)


def measure_tiles(job: Prepared, image: Tensor) -> dict[Tile, TileDrift]:
    """Drift of each tile in `image`, (1, 3, *target size); tiles that determine no source pixel are left out."""
    drifts = {tile: tile_drift(job, tile, image, detail=True) for tile in job.plan.tiles}
    return {tile: drift for tile, drift in drifts.items() if drift is not None}


def reference_reports(job: Prepared) -> tuple[ReferenceReport, ...]:
    """What each reference picture lends, in their order; none where there were none."""
    if job.loans is None:
        return ()
    return tuple(
        ReferenceReport(sum(float(loan.share.mean()) for loan in loans), sum(loan.motion.matches for loan in loans),
                        loans[0].motion.scale if loans else None)
        for loans in job.loans.by_reference()
    )  # fmt: skip


def events(job: Prepared, finished: Finished) -> Iterator[str]:
    """Say what the run did about drift, and whether it was stopped, one sentence each."""
    sampled = finished.sampled
    if sampled.stopped:
        yield "Stopped before the last tile; the rest is the enlarged source."
    if sampled.resumed:
        yield f"Went on after {_tiles(sampled.resumed)} from a run of the same job that was cut short."
    yield from _fault_events(finished)
    if sampled.splits:
        yield "Memory ran short: tiles went in smaller batches or parts. A lower tile batch or tile size saves time."
    if sampled.redone:
        detects = job.meter is not None and job.meter.thresholds.alarm is not None
        why = "too much drift, or something that looks invented" if detects else "too much drift"
        yield f"Sampled {_tiles(sampled.redone)} again: {why}."
    if (removed := job.reference.removed_rms) >= SEEN_RMS:
        yield (
            f"Removed what looked like noise or JPEG damage from the source first, {255 * removed:.1f} of 255 on "
            f"average. To keep it, set Clean source to 0."
        )
    yield from _reference_events(job)
    if sampled.skipped:
        yield f"Left {_tiles(len(sampled.skipped))} alone: the source is flat there."
    if finished.limited is not None:
        yield limit_note(finished.limited, job.settings.max_drift)


def _reference_events(job: Prepared) -> Iterator[str]:
    for number, reference in enumerate(reference_reports(job), start=1):
        if reference.covered:
            yield f"Reference {number} lends detail to {100 * reference.covered:.0f} % of the picture."
        else:
            yield f"Reference {number} lends nothing: it does not match the picture, or is no sharper."


def _fault_events(finished: Finished) -> Iterator[str]:
    sampled = finished.sampled
    if sampled.faulty:
        keep = "keeps" if sampled.faulty == 1 else "keep"
        yield f"{_tiles(sampled.faulty)} {keep} the enlarged source: no valid picture came, or no memory was left."
    if sampled.precise:
        were = "was" if sampled.precise == 1 else "were"
        yield f"{_tiles(sampled.precise)} gave no valid numbers in half precision and {were} redone in float32."
    if finished.mended:
        yield f"{finished.mended} pixels of the finished picture were no valid numbers and show the enlarged source."
    if sampled.uncorrected:
        yield f"In {_tiles(sampled.uncorrected)} a correction gave no valid numbers and was left out for that step."


def marks(job: Prepared, finished: Finished) -> dict[str, str]:
    """Saved keys and values of a picture that is not all that was asked for; none where it is."""
    sampled, found = finished.sampled, {}
    if sampled.stopped:
        wanted = len(job.open_tiles()) - len(sampled.skipped)
        found[INFOTEXT_STOPPED_KEY] = f"after {len(sampled.candidates)} of {_tiles(wanted)}"
    if sampled.faulty:
        found[INFOTEXT_FAULTY_KEY] = str(sampled.faulty)
    return found


def _meter_notes(job: Prepared, measures: bool) -> tuple[str, ...]:
    unmeasured = measures and job.meter is not None and not job.meter.thresholds.measured
    return (job.meter.thresholds.note,) if unmeasured and job.meter is not None else ()


def _tile_reports(job: Prepared, finished: Finished, drifts: Mapping[Tile, TileDrift]) -> Iterator[TileReport]:
    attempts = {candidates.tile: candidates for candidates in finished.sampled.candidates}
    skipped = set(finished.sampled.skipped)
    for tile in job.plan.tiles:
        report = _of_attempts(attempts.get(tile), box_of(tile, job.target_size), skipped=tile in skipped)
        if finished.limited is not None:
            report = _of_limit(report, finished.limited, tile)
        if tile in drifts:
            report = _of_drift(report, drifts[tile], job)
        if job.loans is not None:
            report = dataclasses.replace(report, lent=job.loans.in_box(tile.rows, tile.cols))
        yield report


def _of_attempts(
    candidates: Candidates | None, box: tuple[int, int, int, int], *, skipped: bool
) -> TileReport:
    if candidates is None:
        return TileReport(box, 0.0, skipped=skipped)
    best, first = candidates.best, candidates.attempts[0].drift
    return TileReport(
        box, candidates.seconds, seed=best.settings.seed, denoise=best.settings.denoise, guidance=best.guidance,
        tries=candidates.retries, kept=best.settings.number, drift_first=None if first is None else first.mean,
        valid=bool(candidates.valid),
    )  # fmt: skip


def _of_limit(report: TileReport, limited: Limited, tile: Tile) -> TileReport:
    before = limited.before.get(tile)
    first = report.drift_first if before is None or report.drift_first is not None else before.mean
    blended = float(limited.share[..., tile.rows, tile.cols].mean())
    return dataclasses.replace(report, blended=blended, drift_first=first)


def _of_drift(report: TileReport, drift: TileDrift, job: Prepared) -> TileReport:
    first = drift.mean if report.drift_first is None else report.drift_first
    figures = tile_figures(drift, job.plan.source_size, job.target_size, bound=job.drift_bound)
    return dataclasses.replace(report, drift_first=first, **figures)


def box_of(tile: Tile, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(y0, x0, y1, x1) of the part of a tile that lies in a picture of (height, width) `size`."""
    return tile.y0, tile.x0, min(tile.y1, size[0]), min(tile.x1, size[1])


def _tiles(count: int) -> str:
    return "1 tile" if count == 1 else f"{count} tiles"

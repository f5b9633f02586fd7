"""The command line's work on pictures, one after the other.

Loads without torch: the core is imported when the first picture is touched.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tqdm import tqdm

from ..errors import DinoError, ImageError, Interrupted, ModelError, SettingsError
from ..pictures.files import check_writable
from ..settings import Settings
from ..webui_settings import all_knobs
from .jobs import Job, is_finished, prepare

if TYPE_CHECKING:
    from ..pipeline import Result
    from ..run.progress import Progress

DONE, SOME_FAILED, USAGE, NOTHING_DONE, INTERRUPTED = 0, 1, 2, 3, 130
_BAR: Final = "{desc}: {percentage:3.0f}%|{bar}|{postfix}, {elapsed} gone, {remaining} left"


@dataclass(frozen=True)
class Options:
    """Options of all jobs.

    Attributes:
        settings: the same for every picture.
        model: folder of another diffusion model; None takes the one that ships.
        force: existing files may be replaced.
        quiet: no progress bar and no notes.
    """

    settings: Settings
    model: str | None = None
    force: bool = False
    quiet: bool = False


def say(line: str, *, error: bool = False) -> None:
    """Print a line at once; names that the terminal cannot show are escaped."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def run(jobs: Sequence[Job], options: Options) -> int:
    """Do the jobs; what fails is reported and the others go on. What is finished already is left alone.

    Returns:
        The exit code.

    Raises:
        ModelError: a network cannot be loaded, so that no job can be done.
    """
    codes = []
    skips = not options.force and options.model is None
    for job, error in [(job, _unwritable(job, options.force)) for job in jobs]:
        try:
            if skips and is_finished(job, options.settings):
                say(f"{job.source}: {job.out} is there already, made with these settings. --force makes it again.")
                codes.append(DONE)
                continue
            if error:
                raise error
            say(_run_one(job, options))
            codes.append(DONE)
        except (ModelError, Interrupted):
            raise
        except DinoError as problem:
            say(f"error: {describe(problem)}", error=True)
            codes.append(USAGE if isinstance(problem, SettingsError) else NOTHING_DONE)
    if DONE in codes:
        done = codes.count(DONE)
        if done < len(codes):
            say(f"{done} of {len(codes)} pictures done, {len(codes) - done} failed.", error=True)
        return DONE if done == len(codes) else SOME_FAILED
    return max(codes)


def flag_of(field: str) -> str:
    """The command line's name for a setting."""
    knob = all_knobs().get(field)
    return knob.flag if knob else "--" + field.replace("_", "-")


def describe(error: DinoError) -> str:
    """The message, with the flag it is about in front."""
    return f"{flag_of(error.field)}: {error}" if isinstance(error, SettingsError) else str(error)


def save_arms(arms: dict[str, Result], job: Job, *, force: bool) -> None:
    """Write the last arm's result, its report, and all arms side by side, as far as the job asks for them."""
    from ..pictures.infotext import infotext
    from ..pictures.picture import write_picture
    from ..report.side_by_side import side_by_side
    from ..report.write import write_report

    result = list(arms.values())[-1]
    result.save(job.out, force=force)
    if job.sheet:
        sheet = side_by_side([(label, arm.picture) for label, arm in arms.items()])
        text = infotext(result.settings, result.picture.size, result.figures())
        write_picture(sheet, job.sheet, text=text, force=force)
    write_report(
        result.report, result.heats, result.source or result.picture, result.picture, name=job.out.name,
        figures=job.report, page=job.page, drift_map=job.map, worst=job.worst, force=force,
    )  # fmt: skip


@contextlib.contextmanager
def progress_bar(name: str, *, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal that a run's progress moves; elsewhere it shows nothing."""
    hidden = quiet or not sys.stderr.isatty()
    with tqdm(desc=name, total=1, bar_format=_BAR, leave=False, disable=hidden) as bar:

        def show(progress: Progress) -> None:
            if progress.call <= bar.n:  # the next arm of a comparison
                bar.reset()
            bar.n, bar.total = progress.call, progress.calls
            redone = f", {progress.redone} redone" if progress.redone else ""
            bar.set_postfix_str(f"tile {progress.tile}/{progress.tiles}{redone}")

        yield show


def _unwritable(job: Job, force: bool) -> ImageError | None:
    try:
        prepare(job, force=force)
    except ImageError as error:
        return error
    return None


def _run_one(job: Job, options: Options) -> str:
    from .. import pipeline
    from ..pictures import picture as images

    settings = options.settings
    picture = images.read_picture(job.source)
    for note in () if options.quiet else picture.notes:
        say(f"{job.source}: {note}", error=True)
    size = settings.target_size(picture.size)
    check_writable(job.out, options.force, size=size, transparent=picture.transparent)
    with _enough_memory(size), progress_bar(job.source.name, quiet=options.quiet) as progress:
        if job.sheet:
            arms = pipeline.compare(picture, settings, model=options.model, progress=progress)
        else:
            measure = job.measures
            result = pipeline.upscale(
                picture, settings, model=options.model, measure=measure, progress=progress
            )
            arms = {"result": result}
    save_arms(arms, job, force=options.force)
    seconds = list(arms.values())[-1].report.seconds
    return f"{job.source} -> {job.out} ({size[1]}x{size[0]} px, {seconds:.1f} s)"


@contextlib.contextmanager
def _enough_memory(size: tuple[int, int]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for it on a CPU
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise ImageError(
            f"There is not enough memory for a result of {size[1]}x{size[0]} px. Ask for a smaller one."
        ) from error

"""The command line's work on pictures, one after the other.

Loads without torch: the core is imported when the first picture is touched.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tqdm import tqdm

from ..errors import DinoError, ImageError, Interrupted, ModelError, SettingsError
from ..pictures.files import MAX_PIXELS, check_writable, open_picture
from ..settings import INFOTEXT_STOPPED_KEY, Settings
from ..webui_settings import all_knobs
from .jobs import Job, is_cut_short, is_finished, prepare
from .signals import Stop

if TYPE_CHECKING:
    from ..pipeline import Result
    from ..resume.place import Keeping
    from ..run.progress import Progress

DONE, SOME_FAILED, USAGE, NOTHING_DONE, INTERRUPTED = 0, 1, 2, 3, 130
_BAR: Final = "{desc}: {percentage:3.0f}%|{bar}|{postfix}, {elapsed} gone, {remaining} left"


@dataclass(frozen=True)
class Options:
    """Options of all jobs.

    Attributes:
        settings: the same for every picture.
        references: files of sharp pictures of the same thing.
        model: folder of another diffusion model; None takes the one that ships.
        force: existing files may be replaced.
        quiet: no progress bar and no notes.
        keeps: finished tiles are kept on disk until their picture is written.
        resumes: tiles that are kept of a job that was cut short are taken, and its unfinished result is replaced.
        max_pixels: sources of more are refused.
        stop: whether the user asked to stop, see `signals`.
    """

    settings: Settings
    references: Sequence[str] = ()
    model: str | None = None
    force: bool = False
    quiet: bool = False
    keeps: bool = True
    resumes: bool = False
    max_pixels: int = MAX_PIXELS
    stop: Stop = field(default_factory=Stop)

    def forces(self, job: Job) -> bool:
        """Whether files of `job` that exist may be replaced."""
        return self.force or (self.resumes and is_cut_short(job, self.settings))


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
    # Saved settings do not tell which model or which references were used.
    skips = not options.force and options.model is None and not options.references
    for job, error in [(job, _unwritable(job, options.forces(job))) for job in jobs]:
        if options.stop():
            break
        try:
            if skips and is_finished(job, options.settings, resumes=options.resumes):
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
    if options.stop():
        say(f"Stopped: {codes.count(DONE)} of {len(jobs)} pictures were begun or done, the others are as they were.")
        return options.stop.exit_code
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
    from ..resume.job_tiles import forget

    settings = options.settings
    with open_picture(job.source, max_pixels=options.max_pixels):
        pass  # its size alone
    picture = images.read_picture(job.source)
    for note in () if options.quiet else picture.notes:
        say(f"{job.source}: {note}", error=True)
    size = settings.target_size(picture.size)
    force, keeping = options.forces(job), _keeping(job, options)
    check_writable(job.out, force, size=size, transparent=picture.transparent)
    with _enough_memory(size), progress_bar(job.source.name, quiet=options.quiet) as progress:
        if job.sheet:
            arms = pipeline.compare(
                picture, settings, references=options.references, model=options.model, progress=progress,
                keeping=keeping, stop=options.stop,
            )  # fmt: skip
        else:
            measure = job.measures
            result = pipeline.upscale(
                picture, settings, references=options.references, model=options.model, measure=measure,
                progress=progress, keeping=keeping, stop=options.stop,
            )  # fmt: skip
            arms = {"result": result}
    result = list(arms.values())[-1]
    again = " The same command with --resume goes on from there." if keeping else ""
    if result.stopped and result.sampled_tiles == 0:
        return f"{job.source}: stopped before its first tile was done; nothing is written."
    save_arms(arms, job, force=force)
    if result.stopped:
        how_far = result.marks[INFOTEXT_STOPPED_KEY]
        return f"{job.source} -> {job.out}: stopped {how_far}; the rest is the enlarged source.{again}"
    for arm in arms.values():
        forget(keeping, arm.job)
    lent = [f"{reference.covered:.0%}" for reference in result.report.references]
    lends = f", references lend to {' + '.join(lent)}" if lent else ""
    return f"{job.source} -> {job.out} ({size[1]}x{size[0]} px, {result.report.seconds:.1f} s{lends})"


def _keeping(job: Job, options: Options) -> Keeping | None:
    from ..resume.place import Keeping, user_folder

    def found(batches: int) -> None:
        many = "a batch of tiles is" if batches == 1 else f"{batches} batches of tiles are"
        if options.quiet:
            return
        if options.resumes:
            say(f"{job.source}: goes on, {many} done.", error=True)
        else:
            say(f"{job.source}: {many} kept of a run that was cut short. Add --resume to go on from there.", error=True)

    return Keeping(user_folder(), options.resumes, on_found=found) if options.keeps else None


@contextlib.contextmanager
def _enough_memory(size: tuple[int, int]) -> Iterator[None]:
    from ..memory import is_out_of_memory

    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ImageError(
            f"There is not enough memory for a result of {size[1]}x{size[0]} px. Ask for a smaller one."
        ) from error

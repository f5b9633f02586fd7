"""Which pictures the command line takes, and under which names it writes: settled before any work."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DinoError, ImageError
from ..pictures.files import FORMATS, READABLE, check_new_file, check_writable, open_picture, read_settings_text
from ..pictures.infotext import parse_infotext
from ..report.write import page_beside
from ..settings import INFOTEXT_FAULTY_KEY, INFOTEXT_STOPPED_KEY, INFOTEXT_VERSION_KEY, Settings


class UsageError(DinoError):
    """The command line cannot be carried out as written."""


@dataclass(frozen=True)
class Job:
    """One picture to upscale, and every file to write for it.

    Attributes:
        named: the caller named the result's file, and did not leave its name to us.
    """

    source: Path
    out: Path
    named: bool = False
    report: Path | None = None
    page: Path | None = None
    sheet: Path | None = None
    map: Path | None = None
    worst: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All that is written."""
        paths = (self.out, self.report, self.page, self.sheet, self.map, self.worst)
        return [path for path in paths if path is not None]

    @property
    def measures(self) -> bool:
        """True when drift is asked for."""
        return self.report is not None or self.map is not None


def find_pictures(inputs: Sequence[str]) -> list[Path]:
    """The files that `inputs` name: files as they are, the pictures of folders, the matches of patterns.

    A name that does not exist is passed on, to be reported when its turn comes. Each file comes once.

    Raises:
        UsageError: a folder or a pattern gives nothing, or a folder cannot be read.
    """
    pictures: dict[str, Path] = {}
    for text in inputs:
        if os.path.isdir(text):
            paths = _pictures_in(Path(text))
        elif glob.has_magic(text) and not os.path.exists(text):
            paths = [Path(p) for p in sorted(glob.glob(text)) if os.path.isfile(p)]
        else:
            paths = [Path(text)]
        if not paths:
            raise UsageError(f"There is no picture in {text}. Name files, folders or patterns.")
        for path in paths:
            pictures.setdefault(os.path.realpath(path), path)
    return list(pictures.values())


def _pictures_in(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in READABLE and p.is_file())
    except OSError as error:
        raise UsageError(f"The folder {folder} cannot be read: {error.strerror or error}.") from error


def size_suffix(settings: Settings) -> str:
    """Suffix of a result's name, by the size that was asked for.

    >>> size_suffix(Settings(scale_factor=1.5)), size_suffix(Settings(width=800))
    ('_x1.5', '_w800')
    """
    if settings.width and settings.height:
        return f"_{settings.width}x{settings.height}"
    if settings.width or settings.height:
        return f"_w{settings.width}" if settings.width else f"_h{settings.height}"
    return f"_{settings.megapixels:g}mp" if settings.megapixels else f"_x{settings.scale_factor:g}"


def plan_jobs(
    sources: Sequence[Path], out: str, suffix: str, *, report: str | None, sheet: bool, maps: bool = False
) -> list[Job]:
    """A job for each source, its names settled before any work.

    Args:
        sources: as `find_pictures` gives them.
        out: a file for one source, else a folder, which need not exist.
        suffix: for the results' names in a folder.
        report: None for no report, "" for one beside each result, else a file for one source; a page goes with it.
        sheet: a side-by-side picture beside each result.
        maps: pictures of where it drifted and of the worst places beside each result.

    Raises:
        UsageError: `out` or `report` does not suit the number of sources, or two files would collide.
    """
    if report and len(sources) > 1:
        raise UsageError(
            f"--report FILE is for one picture, but there are {len(sources)}. "
            "Leave FILE away to get a report beside each result."
        )
    folder = _is_folder(out, len(sources))
    names = _names(sources)
    jobs = []
    for source in sources:
        target = Path(out) / f"{names[source]}{suffix}.png" if folder else Path(out)
        beside = target.with_suffix(".json") if report == "" else None
        figures = Path(report) if report else beside
        jobs.append(Job(
            source, target, not folder, figures,
            page=figures and page_beside(figures),
            sheet=target.with_name(f"{target.stem}_compare.png") if sheet else None,
            map=target.with_name(f"{target.stem}_map.png") if maps else None,
            worst=target.with_name(f"{target.stem}_worst.png") if maps else None,
        ))  # fmt: skip
    _check_collisions(jobs)
    return jobs


def _names(sources: Sequence[Path]) -> dict[Path, str]:
    """A name for the result of each source: its own, where others have it too with its ending, then with a number.

    >>> list(_names([Path("a.png"), Path("b.png"), Path("b.jpg"), Path("old/b.jpg")]).values())
    ['a', 'b_png', 'b_jpg', 'b_jpg_2']
    """
    stems = Counter(source.stem.lower() for source in sources)
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for source in sources:
        alone = stems[source.stem.lower()] == 1
        wanted = name = source.stem if alone else f"{source.stem}_{source.suffix[1:].lower()}"
        number = 1
        while name.lower() in taken:  # in a folder that tells no capitals apart they are one
            number += 1
            name = f"{wanted}_{number}"
        taken.add(name.lower())
        names[source] = name
    return names


def is_finished(job: Job, settings: Settings, *, resumes: bool = False) -> bool:
    """Whether all of a job's files are there, and its result was made whole, of this source, with these settings.

    Of this source is what bears its name in a folder of results, is no older and has the size that it should have. A
    seed that is to be drawn agrees with any.

    Args:
        resumes: the command is a repeated one, so that a result of a given name is that of this source too.
    """
    if (job.named and not resumes) or not all(path.is_file() for path in job.files):
        return False
    try:
        found = parse_infotext(read_settings_text(job.out))
        held = Settings.from_infotext(found)
        with open_picture(job.source) as source, open_picture(job.out) as result:
            sizes = source.size[::-1], result.size[::-1]
        newer = job.out.stat().st_mtime >= job.source.stat().st_mtime
    except (DinoError, OSError):
        return False
    whole = INFOTEXT_VERSION_KEY in found and not found.keys() & {INFOTEXT_STOPPED_KEY, INFOTEXT_FAULTY_KEY}
    same = held == (settings.replace(seed=held.seed) if settings.seed < 0 else settings)
    return whole and same and newer and settings.target_size(sizes[0]) == sizes[1]


def is_cut_short(job: Job, settings: Settings) -> bool:
    """Whether a job's result is there, and was stopped before its last tile; a seed to be drawn agrees with any."""
    try:
        found = parse_infotext(read_settings_text(job.out))
        held = Settings.from_infotext(found)
    except DinoError:
        return False
    same = held == (settings.replace(seed=held.seed) if settings.seed < 0 else settings)
    return same and INFOTEXT_VERSION_KEY in found and INFOTEXT_STOPPED_KEY in found


def check_sources_stay(jobs: Sequence[Job]) -> None:
    """Refuse to write a result over its own source.

    Raises:
        UsageError: one would be.
    """
    for job in jobs:
        if os.path.realpath(job.out) == os.path.realpath(job.source):
            raise UsageError(
                f"{job.out} is the picture to upscale itself, and --force alone does not replace it. Choose another "
                f"name with -o, or add --replace-source."
            )


def prepare(job: Job, *, force: bool) -> None:
    """Make the job's folder and find out whether all its files can be written.

    Raises:
        ImageError: one cannot.
    """
    try:
        job.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(
            f"The folder {job.out.parent} cannot be made: {error.strerror}. Choose another with -o."
        ) from error
    check_writable(job.out, force)
    for path in job.files:
        check_new_file(path, force)


def _is_folder(out: str, sources: int) -> bool:
    suffix = Path(out).suffix.lower()
    if os.path.isdir(out) or out.endswith(("/", os.sep)):
        return True
    if sources > 1 and suffix in FORMATS:
        raise UsageError(f"-o must be a folder for {sources} pictures, but is {out}. Give a folder's name.")
    if sources == 1 and suffix and suffix not in FORMATS:
        raise UsageError(
            f"-o {out} should end in {', '.join(FORMATS)}, but ends in {suffix}. "
            "Change the ending, or end a folder's name with a slash."
        )
    return suffix not in FORMATS


def _check_collisions(jobs: Sequence[Job]) -> None:
    inputs = {os.path.realpath(job.source): job.source for job in jobs}
    writers: dict[str, Path] = {}
    for job in jobs:
        for path in job.files:
            real = os.path.realpath(path)
            other = writers.setdefault(real, job.source)
            if other != job.source:
                raise UsageError(f"{other} and {job.source} would both write {path}. Do them separately.")
            if inputs.get(real, job.source) != job.source:
                raise UsageError(
                    f"{path} is one of the pictures to upscale, but the result of {job.source} would "
                    "replace it. Choose another folder with -o."
                )

"""Where finished tiles are kept, how much of it there may be, and how long."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

FOLDER_VARIABLE: Final = "DINO_UPSCALE_TILES"
LOCK: Final = "lock"
KEPT_DAYS: Final = 14
KEPT_BYTES: Final = 16 * 2**30
LEFT_FREE: Final = 2**30
"""Bytes of the disk that are left to others."""


@dataclass(frozen=True)
class Keeping:
    """How a run keeps its finished tiles.

    Attributes:
        folder: of the tiles of all jobs.
        resumes: tiles of the same job that are there already are taken; else they are made again.
        most: bytes that all jobs together may take. The oldest go first; a job alone that needs more keeps what fits.
        on_found: told how many batches of a job are there when it starts.
    """

    folder: Path
    resumes: bool = False
    most: int = KEPT_BYTES
    on_found: Callable[[int], None] = lambda batches: None


def user_folder() -> Path:
    """The command line's folder: `DINO_UPSCALE_TILES`, else `dino-upscale/tiles` in the user's cache."""
    if chosen := os.environ.get(FOLDER_VARIABLE, ""):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA", "") or str(Path.home() / "AppData" / "Local")
    else:
        cache = os.environ.get("XDG_CACHE_HOME", "") or str(Path.home() / ".cache")
    return Path(cache) / "dino-upscale" / "tiles"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a job's folder, made if need be, inside the block; False where another run holds it.

    The lock ends with its process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(folder / LOCK, "ab") as file:
        taken = _lock(file)
        try:
            yield taken
        finally:
            if taken:
                _unlock(file)


def make_room(root: Path, needed: int, most: int, *, besides: Path) -> bool:
    """Remove the oldest other jobs until `needed` more bytes fit; False where they do not.

    Args:
        besides: the job that asks; it is not removed.
    """
    if needed > shutil.disk_usage(root).free - LEFT_FREE:
        return False
    sizes = {job: size_of(job) for job in jobs_in(root)}
    for job in [job for job in sizes if job != besides]:
        if sum(sizes.values()) + needed <= most:
            break
        if remove(job):
            del sizes[job]
    return sum(sizes.values()) + needed <= most


def sweep(root: Path) -> None:
    """Remove the jobs that nobody has gone on with for two weeks."""
    for job in jobs_in(root):
        with contextlib.suppress(OSError):
            if time.time() - job.stat().st_mtime > KEPT_DAYS * 86400:
                remove(job)


def jobs_in(root: Path) -> list[Path]:
    """The folders of jobs, the oldest first."""
    with contextlib.suppress(OSError):
        found = [path for path in root.iterdir() if (path / LOCK).is_file()]
        return sorted(found, key=lambda job: job.stat().st_mtime)
    return []


def size_of(job: Path) -> int:
    """Bytes of a job's files."""
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in job.iterdir())
    return 0


def remove(job: Path) -> bool:
    """Remove a job's folder; False where another run holds it."""
    with contextlib.suppress(OSError):
        with locked(job) as free:
            if not free:
                return False
            for path in job.iterdir():
                if path.name != LOCK:
                    path.unlink()
        shutil.rmtree(job, ignore_errors=True)
    return not job.exists()


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        file.seek(0)
        with contextlib.suppress(OSError):
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            return True
        return False

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        with contextlib.suppress(OSError):
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def _unlock(file: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)

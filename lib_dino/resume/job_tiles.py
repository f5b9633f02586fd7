"""The tiles of one job on disk, batch by batch as they land.

A job is known by a fingerprint of everything that decides its pixels but the seed; its folder bears both. Where the
seed was drawn the folder is found without it, so that a job that goes on draws no other. Batches are kept whole:
sampled together they may differ from the same tiles sampled apart in the last bit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..run.tiles import SampledBatch
from ..tiling.plan import Tile
from .batch_file import from_bytes, to_bytes
from .place import Keeping, jobs_in, locked, make_room, remove, sweep

log = logging.getLogger("dino_upscale")

_SUFFIX: Final = ".tiles"
_TEMPORARY: Final = ".tmp"
_SEED: Final = re.compile(r"-d(\d{1,10})$")


@dataclass
class JobTiles:
    """The tiles of one job on disk; a `run.tiles.TileStore`.

    Args:
        keeping: how tiles are kept.
        folder: of this job, held by this run.
        taking: tiles that are there already are taken.
    """

    keeping: Keeping
    folder: Path
    taking: bool
    _full: bool = False

    def take(self, tiles: Sequence[Tile]) -> SampledBatch | None:
        """The batch of these tiles, if it was kept whole and sound."""
        if not self.taking:
            return None
        try:
            batch = from_bytes(self._path(tiles).read_bytes())
        except OSError:
            return None
        return batch if batch is not None and [each.tile for each in batch.candidates] == list(tiles) else None

    def holds(self, tiles: Sequence[Tile]) -> bool:
        """Tell whether there is a batch to take, without looking into it."""
        return self.taking and self._path(tiles).is_file()

    def keep(self, tiles: Sequence[Tile], batch: SampledBatch) -> None:
        """Keep a finished batch, whole or not at all; a disk that will not is said once and changes nothing else."""
        if self._full:
            return
        data, path = to_bytes(batch), self._path(tiles)
        temporary = path.with_suffix(_TEMPORARY)
        try:
            if not make_room(self.keeping.folder, len(data), self.keeping.most, besides=self.folder):
                self._stop("there is no more room for them")
                return
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            self._stop(error.strerror or str(error))

    def _stop(self, why: str) -> None:
        self._full = True
        log.warning("Finished tiles are not kept on disk any more: %s. The picture is made all the same.", why)

    def _path(self, tiles: Sequence[Tile]) -> Path:
        return self.folder / f"{tiles[0].y0}-{tiles[0].x0}-{len(tiles)}{_SUFFIX}"


@contextlib.contextmanager
def job_tiles(keeping: Keeping | None, job: str, seed: int, *, drawn: bool) -> Iterator[JobTiles | None]:
    """Hold the tiles of a job inside the block; None where none are kept, or another run holds them.

    Args:
        job: its fingerprint, the seed left out.
        seed: the one that is used.
        drawn: nobody has asked for it.
    """
    if keeping is None:
        yield None
        return
    folder = keeping.folder / f"{job}-{'d' if drawn else 's'}{seed}"
    with contextlib.ExitStack() as stack:
        held = False
        try:
            sweep(keeping.folder)
            held = stack.enter_context(locked(folder))
            if held:
                os.utime(folder)
                for path in folder.glob(f"*{_TEMPORARY}"):  # of a process that was killed while it wrote
                    path.unlink()
        except OSError as error:
            held = False
            log.warning("Finished tiles are not kept on disk: %s.", error.strerror or error)
        try:
            yield JobTiles(keeping, folder, keeping.resumes) if held else None
        finally:
            stack.close()
            if held and not _count(folder):
                remove(folder)


def kept_seed(keeping: Keeping | None, job: str) -> int | None:
    """The seed that was drawn for this job when it was cut short; of several the one that got furthest."""
    found = _drawn(keeping, job) if keeping is not None and keeping.resumes else []
    return max(found)[1] if found else None


def kept_batches(keeping: Keeping, job: str, seed: int) -> int:
    """How many batches of this job are kept from a run that was cut short.

    Args:
        seed: -1 takes the run with a drawn seed that got furthest.
    """
    if seed >= 0:
        return _count(keeping.folder / f"{job}-s{seed}")
    return max(_drawn(keeping, job), default=(0, 0))[0]


def forget(keeping: Keeping | None, job: str) -> None:
    """Remove the tiles of a job whose picture is finished and saved."""
    if keeping is not None:
        for folder in _folders(keeping, job):
            remove(folder)


def _drawn(keeping: Keeping, job: str) -> list[tuple[int, int]]:
    """Batches and seed of each run of this job that drew its seed and was cut short."""
    seeds = ((folder, _SEED.search(folder.name)) for folder in _folders(keeping, job))
    found = [(_count(folder), int(seed[1])) for folder, seed in seeds if seed]
    return [(count, seed) for count, seed in found if count]


def _folders(keeping: Keeping, job: str) -> list[Path]:
    return [folder for folder in jobs_in(keeping.folder) if folder.name.startswith(f"{job}-")]


def _count(folder: Path) -> int:
    return len(list(folder.glob(f"*{_SUFFIX}")))

"""Faults of every kind in every place, and what is left of the picture: `make chaos`.

First a diffusion model misbehaves in the first, a middle or the last tile, once or always: a run survives when it ends,
says what happened, has no invalid and no black tile, and differs from an undisturbed run in that tile alone. Then the
command line is stopped or killed at several moments and gone on with: it survives when the picture then has every byte
of an undisturbed one. The exit code is 1 when one does not survive.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.runs import Run, Wrapped, run
from lib_dino.pictures.picture import picture_from_pil
from lib_dino.run.outcome import events
from lib_dino.sampling.correction import Codec, Corrector
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileBatch, TileModel
from lib_dino.settings import Settings
from lib_dino.tiling.plan import Tile

PHOTO: Final = Path(__file__).resolve().parents[1] / "examples" / "astronaut.png"
SPREAD_PX: Final = 12
"""So far the final consistency passes on what changed."""

ALIKE: Final = 2 / 255
LONGEST_S: Final = 120.0


@dataclass(frozen=True)
class Row:
    """What one fault did.

    Attributes:
        fault, place, times: which, where and how often.
        survived: see the module.
        lost: bytes of the finished picture that are not as they should be.
        said: what the run says of it.
    """

    fault: str
    place: str
    times: str
    survived: bool
    lost: int
    said: str


def one_pixel(value: float) -> Callable[[Tensor], None]:
    """Puts `value` in one pixel of a predicted clean tile."""

    def spoil(clean: Tensor) -> None:
        clean[:, 7, 9] = value

    return spoil


def explode(clean: Tensor) -> None:
    """Multiply a predicted clean tile by a million."""
    clean.mul_(1e6)


CLEAN: Final = {"NaN": one_pixel(math.nan), "infinity": one_pixel(math.inf), "exploding values": explode}
FAULTS: Final = (*CLEAN, "black tile", "out of memory")


class Failing(Wrapped):
    """A model with a fault in one tile, the first `times` times that it comes up.

    Args:
        fault: one of `FAULTS`.
    """

    def __init__(self, inner: TileModel, fault: str, tile: Tile, times: float) -> None:
        super().__init__(inner)
        self.fault, self.tile, self.left = fault, tile, times

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor | None:
        """Repaint tiles, see `TileModel.render`."""
        hit = [number for number, box in enumerate(batch.boxes) if within(box, self.tile)]
        if not hit or self.left <= 0:
            return self.inner.render(batch, corrector, on_step)
        self.left -= 1
        if self.fault == "out of memory":
            raise torch.OutOfMemoryError("out of memory, for a benchmark")

        def correct(clean: Tensor, noise_to_signal: float, codec: Codec) -> Tensor:
            if self.fault in CLEAN:
                clean = clean.clone()
                for number in hit:
                    CLEAN[self.fault](clean[number])
            return corrector(clean, noise_to_signal, codec)

        images = self.inner.render(batch, correct, on_step)
        if images is not None and self.fault == "black tile":
            images[hit] = 0
        return images


def within(box: Tile, tile: Tile) -> bool:
    """Whether `box` is `tile` or a part of it."""
    return box.y0 >= tile.y0 and box.x0 >= tile.x0 and box.y1 <= tile.y1 and box.x1 <= tile.x1


def lost_bytes(image: Tensor, expected: Tensor, tile: Tile) -> int:
    """8-bit values that are invalid anywhere, or that differ outside of `tile`."""
    wrong = ~image.isfinite()
    apart = (image - expected).abs() > ALIKE
    apart[..., max(tile.y0 - SPREAD_PX, 0) : tile.y1 + SPREAD_PX, max(tile.x0 - SPREAD_PX, 0) : tile.x1 + SPREAD_PX] = 0
    return int((wrong | apart).sum())


def model_row(fault: str, place: str, times: str, *, source: Tensor, settings: Settings, sound: Run) -> Row:
    """Run with a fault in one tile."""
    tile = sound.tiles[{"first": 0, "middle": len(sound.tiles) // 2, "last": -1}[place]]
    model = Failing(PixelTileModel(), fault, tile, 1 if times == "once" else math.inf)
    spoilt = run(source, settings, model)
    lost, inside = lost_bytes(spoilt.image, sound.image, tile), spoilt.image[..., tile.rows, tile.cols]
    said = [text for text in events(spoilt.job, spoilt.finished) if "enlarged source" in text or "Memory" in text]
    faulty = spoilt.finished.sampled.faulty
    whole = bool(0.5 < inside.mean() / sound.image[..., tile.rows, tile.cols].mean() < 2)
    told = bool(said) == (times == "always" or fault == "out of memory")
    return Row(fault, place, times, not lost and whole and told and faulty <= (times == "always"), lost, " ".join(said))


def started(source: Path, out: Path, kept: Path, *flags: str) -> subprocess.Popen[str]:
    """The command line, at work."""
    command = [sys.executable, "-m", "lib_dino", "upscale", str(source), "-o", str(out), "--seed", "7", "--no-dino",
               "--tile-size", "64", "--overlap", "16", "--steps", "10", *flags]  # fmt: skip
    environment = {**os.environ, "DINO_UPSCALE_TILES": str(kept)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process: subprocess.Popen[str]) -> str:
    """What it said, once it is over."""
    said, _ = process.communicate(timeout=LONGEST_S)
    return said


def differing(one: Path, other: Path) -> int:
    """Bytes in which two pictures of one size differ."""
    with Image.open(one) as a, Image.open(other) as b:
        return int((np.asarray(a) != np.asarray(b)).sum())


def process_row(number: signal.Signals, share: float, *, source: Path, sound: Path, tiles: int, folder: Path) -> Row:
    """Send a signal once that share of the tiles is kept, then go on."""
    folder.mkdir()
    out, kept, wanted = folder / "out.png", folder / "tiles", max(1, round(share * tiles))
    process = started(source, out, kept)
    until = time.monotonic() + LONGEST_S
    while process.poll() is None and time.monotonic() < until and len(list(kept.rglob("*.tiles"))) < wanted:
        time.sleep(0.002)
    process.send_signal(number)
    said = ended(process)
    again = started(source, out, kept, "--resume")
    said += ended(again)
    lost = differing(out, sound) if out.exists() else -1
    survived = again.returncode == 0 and lost == 0 and "Traceback" not in said and not list(kept.rglob("*.tiles"))
    told = next((line.strip() for line in said.splitlines() if "goes on" in line), "was over already")
    return Row(number.name, f"after {wanted} of {tiles} tiles", "once", survived, lost, told)


def no_room_row(source: Path, sound: Path, folder: Path) -> Row:
    """Run where tiles cannot be kept: their folder would lie in a file."""
    folder.mkdir()
    (folder / "file").write_text("no folder")
    process = started(source, folder / "out.png", folder / "file" / "tiles")
    said = ended(process)
    lost = differing(folder / "out.png", sound)
    told = next((line.strip() for line in said.splitlines() if "kept" in line.lower()), "")
    return Row("tiles cannot be kept", "all", "always", process.returncode == 0 and not lost, lost, told)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| fault | place | times | survived | bytes lost | said |", "| --- | --- | --- | --- | ---: | --- |"]
    for row in rows:
        survived = "yes" if row.survived else "**no**"
        lines.append(f"| {row.fault} | {row.place} | {row.times} | {survived} | {row.lost} | {row.said} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Inject every fault and print a table."""
    parser = argparse.ArgumentParser(description="Faults of every kind in every place.")
    parser.add_argument("--side", type=int, default=96, help="of the source, pixels (96)")
    parser.add_argument("--steps", type=int, default=10, help="of the sampler (10)")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, help="of the model (all)")
    parser.add_argument("--places", nargs="+", default=["first", "middle", "last"], help="of its faults (all)")
    shares = "of the tiles done at a signal; none leaves the command line out"
    parser.add_argument("--shares", nargs="*", type=float, default=[0.0, 0.5, 1.0], help=shares)
    parsed = parser.parse_args(given)
    begun = time.perf_counter()
    rows = model_rows(parsed.side, parsed.steps, parsed.faults, parsed.places)
    if parsed.shares:
        with tempfile.TemporaryDirectory() as folder:
            rows += process_rows(parsed.side, parsed.shares, Path(folder))
    print(table(rows))
    failed = sum(not row.survived for row in rows)
    print(f"\n{len(rows)} faults, {failed} not survived, {time.perf_counter() - begun:.0f} s.")
    return 1 if failed else 0


def cropped(side: int) -> Image.Image:
    """A face, so that there is no even tile."""
    with Image.open(PHOTO) as image:
        return image.convert("RGB").crop((170, 40, 170 + side, 40 + side))


def model_rows(side: int, steps: int, faults: Sequence[str], places: Sequence[str]) -> list[Row]:
    """Every fault of a model in every place, once and always."""
    source = picture_from_pil(cropped(side)).pixels
    settings = Settings(seed=1, steps=steps, tile_size=64, overlap=16, dino_enabled=False, tile_batch_size=2)
    sound = run(source, settings, PixelTileModel())
    kinds = itertools.product(faults, places, ("once", "always"))
    return [model_row(*kind, source=source, settings=settings, sound=sound) for kind in kinds]


def process_rows(side: int, shares: Sequence[float], folder: Path) -> list[Row]:
    """Every signal at every moment."""
    source, sound = folder / "source.png", folder / "sound.png"
    cropped(side).save(source)
    said = ended(started(source, sound, folder / "none", "--report"))
    if not sound.exists():
        raise RuntimeError(f"the undisturbed run failed: {said}")
    tiles = len(json.loads(sound.with_suffix(".json").read_text(encoding="utf-8"))["tiles"])
    rows = [
        process_row(number, share, source=source, sound=sound, tiles=tiles, folder=folder / f"{number.name}{share}")
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        for share in shares
    ]
    return [*rows, no_room_row(source, sound, folder / "no-room")]


if __name__ == "__main__":
    sys.exit(main())

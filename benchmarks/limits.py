"""Memory and time against the size of the result: `python -m benchmarks.limits --megapixels 1 4 16 64`.

Every size is a process of its own that enlarges a synthetic source by `--scale` on the command line and writes a PNG
(or, by `--ending .tif`, a TIFF). Figures: the largest resident memory that the system counted for it, wall seconds of
the whole process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

BAND_ROWS = 256


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        megapixels: of the result.
        mib: largest resident memory.
        seconds: of the whole process.
        said: what the command line says that it took.
    """

    megapixels: float
    mib: float
    seconds: float
    said: float


def source(side: int, path: Path) -> None:
    """Write a square picture with soft shapes, edges and texture."""
    levels = np.empty((side, side, 3), np.uint8)
    x = np.arange(side, dtype=np.float32)[None]
    for top in range(0, side, BAND_ROWS):
        y = np.arange(top, min(top + BAND_ROWS, side), dtype=np.float32)[:, None]
        waves = 0.5 + 0.2 * np.sin(x / 37) * np.cos(y / 53) + 0.15 * (np.sin((x + y) / 5) > 0)
        image = np.stack([waves, 0.8 * waves + 0.1 * np.sin(y / 11), 1 - waves], -1)
        levels[top : top + BAND_ROWS] = (image.clip(0, 1) * 255).round()
    Image.fromarray(levels).save(path, compress_level=1)


def measured(megapixels: float, scale: float, ending: str, folder: Path, flags: Sequence[str]) -> Row:
    """Enlarge a picture to so many megapixels in a process of its own.

    Raises:
        RuntimeError: the process failed.
    """
    side = round(math.sqrt(megapixels * 1e6) / scale)
    given, out = folder / "source.png", folder / f"result{ending}"
    # In a process of its own: what this one ever held would count as the command line's.
    maker = multiprocessing.get_context("spawn").Process(target=source, args=(side, given))
    maker.start()
    maker.join()
    command = [sys.executable, "-m", "lib_dino", "upscale", str(given), "-o", str(out), "--scale", f"{scale:g}",
               "--seed", "1", "--quiet", "--force", *flags]  # fmt: skip
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    words = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise RuntimeError(f"{megapixels:g} megapixels ended with status {process.returncode}")
    said = float(words.split()[-2])
    height, width = (round(side * scale) for _ in range(2))
    return Row(height * width / 1e6, usage.ru_maxrss / 1024, seconds, said)


def table(rows: Sequence[Row]) -> str:
    """The figures as Markdown."""
    lines = ["| result, MP | memory, MiB | s | said | s a MP |", "| ---: | ---: | ---: | ---: | ---: |"]
    for r in rows:
        each = r.seconds / r.megapixels
        lines.append(f"| {r.megapixels:.0f} | {r.mib:.0f} | {r.seconds:.0f} | {r.said:.0f} | {each:.2f} |")
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        slope = (last.mib - first.mib) / (last.megapixels - first.megapixels)
        lines.append(f"\n{slope:.2f} MiB a megapixel between {first.megapixels:.0f} and {last.megapixels:.0f} MP.")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Memory and seconds a megapixel against the result's size, each on a logarithmic axis of megapixels."""
    panels = {"memory, MiB": [r.mib for r in rows], "seconds a megapixel": [r.seconds / r.megapixels for r in rows]}
    width, height, left, top = 460, 300, 60, 40
    image = Image.new("RGB", (width * len(panels), height), "white")
    draw = ImageDraw.Draw(image)
    first, last = (math.log(pick(r.megapixels for r in rows)) for pick in (min, max))
    for number, (label, values) in enumerate(panels.items()):
        x0, y0, w, h = number * width + left, top, width - left - 30, height - top - 40
        most = 1.1 * max(values)
        draw.rectangle((x0, y0, x0 + w, y0 + h), outline="black")
        draw.text((x0, y0 - 18), f"{label}, against megapixels of the result", fill="black")
        for share in (0, 0.5, 1):
            tick = f"{share * most:.{0 if most > 100 else 1}f}"
            draw.text((x0 - 8, y0 + h * (1 - share)), tick, fill="black", anchor="rm")
        spots = []
        for row, value in zip(rows, values, strict=True):
            x = x0 + w * (math.log(row.megapixels) - first) / max(last - first, 1e-9)
            spots.append((x, y0 + h * (1 - value / most)))
            draw.text((x, y0 + h + 8), f"{row.megapixels:.0f}", fill="black", anchor="ma")
        draw.line(spots, fill="#1f77b4", width=2)
        for x, y in spots:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill="#1f77b4")
    image.save(path)


def kept(path: Path | None) -> list[Row]:
    """Rows of earlier runs."""
    if path is None or not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--scale", type=float, default=2)
    parser.add_argument("--ending", default=".png", choices=[".png", ".tif", ".jpg"])
    parser.add_argument("--rows", type=Path, help="file that rows are added to; those in it count as measured")
    parser.add_argument("--plot", type=Path, help="picture to draw, PNG")
    parser.add_argument("flags", nargs="*", help="further flags of the command line, after --")
    options = parser.parse_args(argv)
    rows = kept(options.rows)
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in options.megapixels:
            rows.append(measured(megapixels, options.scale, options.ending, Path(folder), options.flags))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            if options.rows:
                with options.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(rows[-1])) + "\n")
    rows.sort(key=lambda row: row.megapixels)
    print(table(rows))
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What DINO Upscale costs on your card, and whether it is right there: one line, beside a WebUI started with `--api`.

    python -m benchmarks.gpu_host --host http://127.0.0.1:7860 > my-card.md

A square of `--side` px is enlarged twice with the loaded checkpoint. All arms take turns within each round. A table
in Markdown gives medians over the rounds: seconds, milliseconds a tile, and the memory that torch held at most by the
end of the arm's first run. (Arms run from the cheapest to the dearest, because a WebUI cannot set its peak back.)

Then come checks that half precision can fail: strength 0 is bitwise off, the same call gives the same pixels, nothing
is black, a plain picture is the same before and after, and the card holds no more than before.

For FLUX and SD 3 in Forge add `--scheduler Simple`, which plain pictures need there. Without a card everything is
printed but the memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lib_dino.tiling.plan import plan_tiles
from lib_dino.version import __version__
from tests.hosts.client import Answer, Host, picture

ARMS: dict[str, dict[str, Any]] = {
    "off": {"dino_enabled": False, "consistency": 0},
    "off, 2 tiles a call": {"dino_enabled": False, "consistency": 0, "tile_batch_size": 2},
    "off, 4 tiles a call": {"dino_enabled": False, "consistency": 0, "tile_batch_size": 4},
    "default": {},
    "guided": {"consistency": 0.5},
    "guided, 4 tiles a call": {"consistency": 0.5, "tile_batch_size": 4},
}
BLACK = 2  # of 255: a picture whose brightest pixel is no brighter is black
GIB = 2**30
OVERLAP_PX = 64


@dataclass(frozen=True)
class Run:
    """One call.

    Attributes:
        pixels: of the result.
        brightest: its brightest value, 0 to 255.
        seconds: of wall time.
    """

    pixels: bytes
    brightest: int
    seconds: float


def memory(host: Host) -> tuple[float | None, float | None]:
    """GiB that torch holds on the card now, and has held at most since the WebUI's start; None without a card."""
    cuda = (host.call("/sdapi/v1/memory").body or {}).get("cuda", {})
    if "allocated" not in cuda:
        return None, None
    return cuda["allocated"]["current"] / GIB, cuda["reserved"]["peak"] / GIB


def timed(send: Any) -> Run:
    """Do a call and time it."""
    started = time.perf_counter()
    answer: Answer = send()
    seconds = time.perf_counter() - started
    image: Image.Image = answer.image.convert("RGB")
    return Run(image.tobytes(), max(top for _, top in image.getextrema()), seconds)


def upscaled(host: Host, side: int, request: dict[str, Any], **settings: Any) -> Run:
    """Enlarge a square of `side` px twice."""
    named = {"scale_factor": 2.0, "denoise": request["denoising_strength"], "steps": request["steps"], **settings}
    return timed(lambda: host.dropdown(named, source=picture(side, side), **request))


def plain(host: Host, side: int, request: dict[str, Any]) -> Run:
    """The host's own img2img at the source's size."""
    return timed(lambda: host.img2img(picture(side, side), **{**request, "width": side, "height": side}))


def checks(host: Host, side: int, request: dict[str, Any], before: Run, held: float | None) -> list[tuple[str, bool]]:
    """Sentences, and whether each is true here."""
    off, nought, first, again = (
        upscaled(host, side, request, consistency=0.5, **guided)
        for guided in ({"dino_enabled": False}, {"dino_strength": 0}, {"dino_strength": 1}, {"dino_strength": 1})
    )
    after = plain(host, side, request)
    now, _ = memory(host)
    found = [
        ("strength 0 is bitwise off", off.pixels == nought.pixels),
        ("strength 1 differs from it", first.pixels != off.pixels),
        ("the same call gives the same pixels", first.pixels == again.pixels),
        ("no picture is black", min(run.brightest for run in (off, nought, first, again, after)) > BLACK),
        ("a plain picture is the same before and after", before.pixels == after.pixels),
    ]
    if held is not None and now is not None:
        found.append((f"the card holds no more than before ({held:.2f} GiB, now {now:.2f})", now <= held + 0.05))
    return found


def table(runs: dict[str, list[Run]], peaks: dict[str, float | None], tiles: int) -> list[str]:
    """Medians, a row an arm."""
    lines = ["| arm | seconds | ms a tile | of off | most memory, GiB |", "| --- | --- | --- | --- | --- |"]
    base = statistics.median(run.seconds for run in runs["off"])
    for arm, made in runs.items():
        seconds, peak = statistics.median(run.seconds for run in made), peaks[arm]
        held = "-" if peak is None else f"{peak:.2f}"
        lines.append(f"| {arm} | {seconds:.2f} | {1000 * seconds / tiles:.0f} | {seconds / base:.2f} | {held} |")
    return lines


def measure(host: Host, side: int, tile: int, request: dict[str, Any], rounds: int) -> list[str]:
    """The page, line by line."""
    before = plain(host, side, request)
    held, _ = memory(host)
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    peaks: dict[str, float | None] = {}
    for arm, settings in ARMS.items():
        upscaled(host, side, request, tile_size=tile, overlap=OVERLAP_PX, **settings)  # warms up
        peaks[arm] = memory(host)[1]
    for _ in range(rounds):
        for arm, settings in ARMS.items():
            runs[arm].append(upscaled(host, side, request, tile_size=tile, overlap=OVERLAP_PX, **settings))
    tiles = len(plan_tiles((2 * side, 2 * side), tile_px=tile, overlap_px=OVERLAP_PX))
    lines = [f"{side} px to {2 * side} px, {tiles} tiles of up to {tile} px, {rounds} rounds", ""]
    lines += [*table(runs, peaks, tiles), "", f"A plain img2img of {side} px takes {before.seconds:.2f} s."]
    said = checks(host, side, request, before, held)
    return [*lines, "", *(f"- {'yes' if good else '**NO**'}: {sentence}" for sentence, good in said)]


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True, help="address of a running WebUI with its API switched on")
    parser.add_argument("--side", type=int, default=768, help="of the source, px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--denoise", type=float, default=0.35)
    parser.add_argument("--sampler", default="Euler a")
    parser.add_argument("--scheduler", default="", help="noise schedule, such as Simple; empty = the WebUI's")
    parser.add_argument("--tile", type=int, default=768, help="largest side of a tile, px; a multiple of 64")
    arguments = parser.parse_args()
    host = Host(arguments.host.rstrip("/"))
    request = {
        "steps": arguments.steps, "denoising_strength": arguments.denoise, "sampler_name": arguments.sampler,
        **({"scheduler": arguments.scheduler} if arguments.scheduler else {}),
    }  # fmt: skip
    options = host.options()
    print(f"# DINO Upscale {__version__} with {options.get('sd_model_checkpoint')}, {arguments.sampler}, "
          f"{arguments.steps} steps at denoise {arguments.denoise}\n")  # fmt: skip
    print("\n".join(measure(host, arguments.side, arguments.tile, request, arguments.rounds)))


if __name__ == "__main__":
    main()

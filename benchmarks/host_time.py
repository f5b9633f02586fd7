"""Where the time goes in a running WebUI, and beside Ultimate SD Upscale on the same grid of tiles.

    python -m benchmarks.host_time --host http://127.0.0.1:7860 --tiles 4 16 64 --rounds 3

The WebUI needs the test extension `tests/hosts/probe`, which clocks the models inside it, and for the comparison
Ultimate SD Upscale. All arms take turns within each round, so that a busy machine slows all of them alike; medians
over the rounds are printed, in wall time and in the work of the generating thread alone, which other processes
hardly touch.

Tiles are 256 px, 64 px of them shared, so that four tiles a side make 768 px; Ultimate SD Upscale works on 192 px and
a padding of 32 px all round, which gives the model squares of the same size. Both enlarge with Lanczos and repaint
with `--denoise` of `--steps` steps.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from tests.hosts.client import Host, picture

STRIDE_PX, TILE_PX = 192, 256
PEER = "ultimate sd upscale"
PARTS = ("unet", "vae", "dino", "text")


def ours(host: Host, side: int, request: dict[str, Any], **settings: Any) -> None:
    """Upscale to `side` px with DINO Upscale."""
    named = {
        "scale_factor": 2.0, "tile_size": TILE_PX, "overlap": TILE_PX - STRIDE_PX, "upscaler": "Lanczos",
        "dino_enabled": False, "consistency": 0, **settings,
    }  # fmt: skip
    answer = host.dropdown(named, source=picture(side // 2, side // 2), **request)
    assert answer.status == 200, answer.text[:500]
    assert answer.image.size == (side, side)


def peer(host: Host, side: int, request: dict[str, Any]) -> None:
    """Upscale to `side` px with Ultimate SD Upscale, without its second pass over the seams."""
    upscalers = [u["name"] for u in host.call("/sdapi/v1/upscalers").body]
    args = [
        "", STRIDE_PX, STRIDE_PX, 8, 32, 64, 0.35, 32, upscalers.index("Lanczos"), False, 0, False, 8, 0, 2, 2048,
        2048, 2,
    ]  # fmt: skip
    answer = host.img2img(picture(side // 2, side // 2), script_name=PEER, script_args=args, **request)
    assert answer.status == 200, answer.text[:500]


ARMS = {
    "off": {},
    "off, batch 4": {"tile_batch_size": 4},
    "consistency": {"consistency": 1.0},
    "guided": {"dino_enabled": True, "consistency": 0.5},
}


def measured(host: Host, arm: str, side: int, request: dict[str, Any]) -> dict[str, list[float]]:
    """(calls, wall seconds, seconds of work) by part for one upscaling."""
    assert host.call("/host-probe/clock", {}).status == 200, "the WebUI lacks the test extension tests/hosts/probe"
    if arm == PEER:
        peer(host, side, request)
    else:
        ours(host, side, request, **ARMS[arm])
    read: dict[str, list[float]] = host.call("/host-probe/clock").body
    return read


def row(arm: str, tiles: int, runs: list[dict[str, list[float]]]) -> str:
    """One line of the table."""

    def median(name: str, which: int) -> float:
        return statistics.median(run.get(name, [0, 0, 0])[which] for run in runs)

    text = f"{arm:20} {tiles:5}"
    for which in (1, 2):
        total = median("total", which)
        rest = statistics.median(
            run["total"][which] - sum(run.get(part, [0, 0, 0])[which] for part in PARTS[:3]) for run in runs
        )
        text += f" | {1000 * total / tiles:7.1f} {1000 * rest / tiles:7.1f} {100 * rest / total:5.1f} %"
    parts = " ".join(f"{1000 * median(part, 2) / tiles:6.1f}" for part in PARTS)
    return f"{text} | {parts} | {median('unet', 0):.0f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", required=True, help="address of a running WebUI with its API switched on")
    parser.add_argument("--tiles", type=int, nargs="+", default=[4, 16, 64], help="squares of whole numbers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--denoise", type=float, default=0.35)
    parser.add_argument("--arms", nargs="+", default=[*ARMS, PEER], choices=[*ARMS, PEER])
    arguments = parser.parse_args()
    host = Host(arguments.host.rstrip("/"))
    request = {"steps": arguments.steps, "denoising_strength": arguments.denoise, "sampler_name": "Euler a"}
    known = [s["name"] for s in host.call("/sdapi/v1/script-info").body]
    arms = [arm for arm in arguments.arms if arm != PEER or PEER in known]
    request_to_warm = {**request, "steps": 2}
    for arm in arms:
        measured(host, arm, 2 * STRIDE_PX, request_to_warm)
    print("ms for each tile: total, outside of UNet, VAE and DINO, its share; first wall, then the thread's own work")
    print(f"{'arm':20} {'tiles':>5} | {'wall':^25} | {'work':^25} | {'  '.join(PARTS)} (work) | UNet calls")
    for tiles in arguments.tiles:
        side = round(tiles**0.5) * STRIDE_PX
        runs: dict[str, list[dict[str, list[float]]]] = {arm: [] for arm in arms}
        for _ in range(arguments.rounds):
            for arm in arms:
                runs[arm].append(measured(host, arm, side, request))
        for arm in arms:
            print(row(arm, tiles, runs[arm]), flush=True)


if __name__ == "__main__":
    main()

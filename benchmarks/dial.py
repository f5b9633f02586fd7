"""What the fidelity dial asks and achieves: `python benchmarks/dial.py PHOTO ...`.

The middle of every photograph is halved and enlarged again by the embedded denoiser with several allowed drifts, with
consistency off and on. Columns: the denoise and the DINO strength that were chosen, mean over the pictures; the largest
patch drift above the floor of the probes and of the finished picture, mean and largest; pictures whose probes, and
which themselves, are within what was allowed; model calls relative to the same run without the dial.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "training")]

from lib_dino.networks.dinov2 import Dinov2, load_dinov2  # noqa: E402
from lib_dino.pictures.picture import read_picture  # noqa: E402
from lib_dino.run.run import Run  # noqa: E402
from lib_dino.sampling.pixel_model import EmbeddedRender  # noqa: E402
from lib_dino.settings import Settings  # noqa: E402
from lib_dino.tiling.resample import resize  # noqa: E402

HEAD = (
    "| consistency | allowed | denoise | strength | probes: mean (largest) | picture: mean (largest) | "
    "probes within | pictures within | calls |"
)


def middle(photo: str, side: int) -> Tensor:
    """The middle of a photograph, (1, 3, side, side) or smaller, of even sides."""
    pixels = read_picture(photo).pixels
    side = min(side, *pixels.shape[-2:]) // 2 * 2
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    return pixels[..., top : top + side, left : left + side]


def dialled(truth: Tensor, settings: Settings, model: EmbeddedRender, dino: Dinov2) -> tuple[dict[str, Any], int]:
    """The report's figures of one picture, and its model calls; without an allowed drift what was asked is 0."""
    source = resize(truth, (truth.shape[-2] // 2, truth.shape[-1] // 2)).clamp(0, 1)
    run = Run(source, (truth.shape[-2], truth.shape[-1]), settings, model, dino, measure=True)
    with torch.autocast("cpu", torch.bfloat16):
        image = run.render().float()
    report = run.report(image, 0.0)
    plain = {"denoise": settings.denoise, "strength": settings.dino_strength, "probes": float("nan")}
    achieved = report.drift_worst_patch or 0.0
    figures = report.dial or {**plain, "achieved": achieved, "within": False}
    return figures, report.model_calls


def row(consistency: float, allowed: float, found: list[dict[str, Any]], calls: float) -> str:
    """One line of the table."""
    n = len(found)
    mean = {key: sum(each[key] for each in found) / n for key in ("denoise", "strength", "probes", "achieved")}
    most = {key: max(each[key] for each in found) for key in ("probes", "achieved")}
    start = f"| {consistency:g} | {allowed or 'not asked'} | {mean['denoise']:.2f} | {mean['strength']:.2f} |"
    achieved = f"{mean['achieved']:.3f} ({most['achieved']:.3f})"
    if not allowed:
        return f"{start} | {achieved} | | | 1 |"
    probes = sum(each["probes"] <= allowed for each in found)
    return (
        f"{start} {mean['probes']:.3f} ({most['probes']:.3f}) | {achieved} | {probes} of {n} | "
        f"{sum(each['within'] for each in found)} of {n} | {calls:.2f} |"
    )


@torch.no_grad()
def main() -> int:
    """Print a row for each consistency and allowed drift, Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--allowed", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--consistency", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--denoise", type=float, default=0.5)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=336)
    parser.add_argument("--tile-size", type=int, default=192)
    args = parser.parse_args()
    model, dino = EmbeddedRender(), load_dinov2()
    pictures = [middle(photo, args.side) for photo in args.photos]
    sys.stdout.write(f"{HEAD}\n{'|---' * (HEAD.count('|') - 1)}|\n")
    for consistency in args.consistency:
        free = 0
        for allowed in (0.0, *args.allowed):
            settings = Settings(
                denoise=args.denoise, consistency=consistency, allowed_drift=allowed, seed=1, steps=args.steps,
                tile_size=args.tile_size, overlap=48, dino_strength=args.strength, texture=0.0, clean_source=0.0,
            )  # fmt: skip
            rows = [dialled(truth, settings, model, dino) for truth in pictures]
            calls = sum(count for _, count in rows)
            free = free or calls
            sys.stdout.write(row(consistency, allowed, [figures for figures, _ in rows], calls / free) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

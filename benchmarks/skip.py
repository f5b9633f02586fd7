"""What leaving flat tiles alone saves and costs: `python -m benchmarks.skip PHOTO ... --judges FOLDER`.

From every photograph the calmest window (least high-frequency energy) is halved and enlarged again with the embedded
denoiser, with every tile painted and with flat tiles skipped; with `--traps FILE` (`benchmarks/traps.csv`) the windows
around its skies, walls, waters and blurred backgrounds come after them, then three synthetic gradients. Columns: tiles
skipped; time relative to painting all (processor seconds); `seam`, the mean step across the lines where a skipped tile
meets a painted one relative to its neighbourhood, painted, skipped, and at the same lines of the enlarged source.

At the end, on the skipped tiles of photographs alone, PSNR to the original and distances to it in two networks that
have no part in anything here (see `training/judges.py`): painted; skipped; and skipped with white noise
added until it has the painted tile's high-frequency energy, which tells grain from structure.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_dino.measure.quality import detail_energy, high_frequencies, psnr, seam_ratios
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.pictures.picture import read_picture
from lib_dino.sampling.consistency import back_project
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileModel
from lib_dino.settings import Settings
from lib_dino.tiling.plan import Tile
from lib_dino.tiling.resample import resize
from training.judges import load_distances

from .runs import HalfPrecision, Run, halved, run
from .seams import border_lines

CALM = ("sky", "wall", "water", "bokeh")
"""Kinds of traps in which tiles might be left alone."""


@dataclass(frozen=True)
class Both:
    """One picture with every tile painted, and with flat tiles left alone.

    Attributes:
        painted, left, plain: the two, and the consistent enlarged source, (1, 3, H, W).
        seconds: processor time of the two.
        skipped: tiles that were left alone.
        run: of the second.
    """

    painted: Tensor
    left: Tensor
    plain: Tensor
    seconds: tuple[float, float]
    skipped: tuple[Tile, ...]
    run: Run


def calmest(pixels: Tensor, side: int) -> Tensor:
    """The window of `side` pixels, or of the picture's height, with the least high-frequency energy."""
    side = min(side, *pixels.shape[-2:]) // 2 * 2
    energy = F.avg_pool2d(high_frequencies(pixels).square(), side, stride=32)
    row, col = divmod(int(energy.argmin()), energy.shape[-1])
    return pixels[..., 32 * row : 32 * row + side, 32 * col : 32 * col + side]


def gradients(side: int) -> dict[str, Tensor]:
    """A vertical, a diagonal and a radial gradient of colours."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    a, b = torch.tensor([0.35, 0.55, 0.85]).view(3, 1, 1), torch.tensor([0.9, 0.75, 0.6]).view(3, 1, 1)
    shapes = {"vertical": y, "diagonal": (x + y) / 2, "radial": ((x - 0.5) ** 2 + (y - 0.3) ** 2).sqrt()}
    return {name: torch.lerp(a, b, t.clamp(0, 1)[None])[None] for name, t in shapes.items()}


def trapped(path: Path, folder: Path, side: int) -> dict[str, Tensor]:
    """Windows of `side` pixels around the calm traps of a list, by photograph and kind."""
    found = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["kind"] in CALM:
                pixels = read_picture(folder / f"{row['photograph']}.png").pixels
                whole = min(side, *pixels.shape[-2:]) // 2 * 2
                middle = (int(row["top"]) + int(row["side"]) // 2, int(row["left"]) + int(row["side"]) // 2)
                top, left = (
                    max(0, min(at - whole // 2, length - whole))
                    for at, length in zip(middle, pixels.shape[-2:], strict=True)
                )
                found[f"{row['photograph']}, {row['kind']}"] = pixels[..., top : top + whole, left : left + whole]
    return found


def skip_seams(image: Tensor, skipped: Sequence[Tile], run: Run) -> list[float]:
    """Steps across the lines where a skipped tile meets a painted one, relative to those beside them."""
    ratios, height, width = [], *image.shape[-2:]
    plan, overlap = run.tiles, run.job.settings.overlap
    for tile in skipped:
        for other in plan:
            if other in skipped:
                continue
            rows, cols = ((max(tile.y0, other.y0), min(tile.y1, other.y1, height)),
                          (max(tile.x0, other.x0), min(tile.x1, other.x1, width)))  # fmt: skip
            for picture, (a, b), (start, stop) in (
                (image, (tile.y0, other.y0), cols), (image.transpose(-1, -2), (tile.x0, other.x0), rows)
            ):  # fmt: skip
                beside = (tile.x0 == other.x0) if picture is image else (tile.y0 == other.y0)
                if beside and abs(a - b) < plan.tile[0] and a != b:
                    lines = border_lines(tuple(sorted((a, b))), plan.tile[0], overlap)
                    ratios += seam_ratios(picture[..., start:stop], lines)
    return ratios


def grainy(left: Tensor, painted: Tensor, draw: torch.Generator) -> Tensor:
    """`left` with white noise, the same in all colours, up to the high-frequency energy of `painted`."""
    noise = torch.randn(1, 1, *left.shape[-2:], generator=draw).expand(1, 3, -1, -1)
    lacking = max(0.0, detail_energy(painted) - detail_energy(left))
    return (left + (lacking / detail_energy(noise)) ** 0.5 * noise).clamp(0, 1)


def both_ways(truth: Tensor, args: argparse.Namespace, model: TileModel, dino: Dinov2) -> Both:
    """One picture with every tile painted, and with flat tiles skipped."""
    source = halved(truth)
    settings = Settings(
        denoise=args.denoise, seed=1, tile_size=args.tile_size, overlap=args.tile_size // 4, steps=args.steps,
        dino_strength=args.strength, texture=0.0, clean_source=0.0,
    )  # fmt: skip
    painted = run(source, settings, model, dino)
    left = run(source, settings.replace(skip_flat=True), model, dino)
    plain = back_project(resize(source, left.job.target_size).clamp(0, 1), source, strength=1.0)
    return Both(painted.image, left.image, plain, (painted.seconds, left.seconds), left.finished.sampled.skipped, left)


def compared(both: Both, truth: Tensor, judges: dict[str, Callable[[Tensor, Tensor], float]]) -> list[list[float]]:
    """A row for each skipped tile: PSNR and distances of it painted, skipped, and skipped with grain."""
    rows, draw = [], torch.Generator().manual_seed(0)
    for tile in both.skipped:
        painted, left, true = (x[..., tile.rows, tile.cols] for x in (both.painted, both.left, truth))
        kinds = (painted, left, grainy(left, painted, draw))
        rows.append([judge(kind, true) for judge in (psnr, *judges.values()) for kind in kinds])
    return rows


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each picture and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--judges", type=Path)
    parser.add_argument("--traps", type=Path, help="list of traps; their photographs lie beside the first photo")
    parser.add_argument("--denoise", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--bfloat16", action="store_true", help="the denoiser in half precision, for speed")
    parser.add_argument("--side", type=int, default=416)
    parser.add_argument("--tile-size", type=int, default=192)
    args = parser.parse_args(argv)
    model: TileModel = HalfPrecision(PixelTileModel()) if args.bfloat16 else PixelTileModel()
    dino, judges = load_dinov2(), load_distances(args.judges)
    cases = {Path(photo).stem: calmest(read_picture(photo).pixels, args.side) for photo in args.photos}
    cases |= trapped(args.traps, Path(args.photos[0]).parent, args.side) if args.traps else {}
    seconds, rows, seams = [0.0, 0.0], [], []
    for name, truth in {**cases, **gradients(args.side)}.items():
        both = both_ways(truth, args, model, dino)
        seconds = [a + b for a, b in zip(seconds, both.seconds, strict=True)]
        steps = [skip_seams(x, both.skipped, both.run) for x in (both.painted, both.left, both.plain)]
        seams += zip(*steps, strict=True)
        rows += compared(both, truth, judges) if name in cases else []
        at = " / ".join(f"{sum(x) / len(x):.3f}" for x in steps if x) or "no border"
        sys.stdout.write(f"{name}: {len(both.skipped)} of {len(both.run.tiles)} tiles, "
                         f"time x{both.seconds[1] / both.seconds[0]:.2f}, seam {at}\n")  # fmt: skip
        sys.stdout.flush()
    at = " / ".join(f"{sum(column) / len(seams):.3f}" for column in zip(*seams, strict=True)) or "no border"
    sys.stdout.write(f"all: time x{seconds[1] / seconds[0]:.2f}, seam {at}, {len(seams)} lines\n")
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    for index, label in enumerate(("PSNR", *judges) if rows else ()):
        painted, left, grain = means[3 * index : 3 * index + 3]
        sys.stdout.write(f"{label} of {len(rows)} skipped tiles of photographs: painted {painted:.4f}, "
                         f"skipped {left:.4f}, with grain {grain:.4f}\n")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

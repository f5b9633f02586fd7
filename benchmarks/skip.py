"""What leaving flat tiles alone saves and costs: `python benchmarks/skip.py PHOTO ... --judges FOLDER`.

From every photograph the calmest window (least high-frequency energy) is halved and enlarged again with the embedded
denoiser, with every tile painted and with flat tiles skipped; three synthetic gradients come after them. Columns:
tiles skipped; time relative to painting all (processor seconds); on the skipped tiles alone PSNR to the original and
distances to it in two networks that have no part in anything here (see `training/evaluate_denoiser.py`), painted and
skipped; `seam`, the mean step across tile borders relative to its neighbourhood, painted, skipped, and at the same
lines of the enlarged source.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from repair import load_judges
from seams import worst_seam
from torch import Tensor

from lib_dino.consistency import back_project
from lib_dino.dinov2 import load_dinov2
from lib_dino.embedded import EmbeddedRender
from lib_dino.images import read_picture
from lib_dino.quality import high_frequencies, psnr
from lib_dino.resample import resize
from lib_dino.run import Run
from lib_dino.settings import Settings


def calmest(pixels: Tensor, side: int) -> Tensor:
    """The window of `side` pixels with the least high-frequency energy."""
    energy = F.avg_pool2d(high_frequencies(pixels).square(), side, stride=32)
    row, col = divmod(int(energy.argmin()), energy.shape[-1])
    return pixels[..., 32 * row : 32 * row + side, 32 * col : 32 * col + side]


def gradients(side: int) -> dict[str, Tensor]:
    """A vertical, a diagonal and a radial gradient of colours."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    a, b = torch.tensor([0.35, 0.55, 0.85]).view(3, 1, 1), torch.tensor([0.9, 0.75, 0.6]).view(3, 1, 1)
    shapes = {"vertical": y, "diagonal": (x + y) / 2, "radial": ((x - 0.5) ** 2 + (y - 0.3) ** 2).sqrt()}
    return {name: torch.lerp(a, b, t.clamp(0, 1)[None])[None] for name, t in shapes.items()}


@torch.no_grad()
def main() -> int:
    """Print a row for each picture and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--judges")
    parser.add_argument("--denoise", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--bfloat16", action="store_true", help="the networks in half precision, for speed")
    parser.add_argument("--side", type=int, default=416)
    parser.add_argument("--pictures", type=Path, help="write every result here")
    args = parser.parse_args()
    model, dino, judges = EmbeddedRender(), load_dinov2(), load_judges(args.judges)
    cases = {Path(photo).stem: calmest(read_picture(photo).pixels, args.side) for photo in args.photos}
    seconds, sums = [0.0, 0.0], []
    for name, truth in {**cases, **gradients(args.side)}.items():
        source, size = resize(truth, (args.side // 2, args.side // 2)).clamp(0, 1), (args.side, args.side)
        images, runs, spent = [], [], []
        for skip in (False, True):
            settings = Settings(denoise=args.denoise, seed=1, tile_size=192, overlap=48, skip_flat=skip)
            settings = settings.replace(steps=args.steps, dino_strength=args.strength)
            started = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
                run = Run(source, size, settings, model, dino)
                images.append(run.render().float())
            spent.append(time.process_time() - started)
            runs.append(run)
        seconds = [a + b for a, b in zip(seconds, spent, strict=True)]
        told = runs[1].report(images[1], 0.0).tiles
        skipped = [tile for tile, each in zip(runs[1].plan, told, strict=True) if each.skipped]
        plain = back_project(resize(source, size).clamp(0, 1), source, strength=1.0)
        seams = [worst_seam(image, runs[1]) for image in (*images, plain)]
        text = f"{name}: {len(skipped)} of {len(told)} tiles, time x{spent[1] / spent[0]:.2f}, "
        text += f"seam {seams[0]:.3f} / {seams[1]:.3f} (enlarged source {seams[2]:.3f})"
        for tile in skipped if name in cases else ():
            painted, left, true = (x[..., tile.rows, tile.cols] for x in (*images, truth))
            row = [psnr(painted, true), psnr(left, true)]
            for distance in judges.values():
                row += [distance(painted, true), distance(left, true)]
            sums.append(row)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    sys.stdout.write(f"all: time x{seconds[1] / seconds[0]:.2f}\n")
    means = torch.tensor(sums, dtype=torch.float64).mean(0).tolist()
    for label, (painted, left) in zip(("PSNR", *judges), zip(means[::2], means[1::2], strict=True), strict=True):
        of = f"{label} of {len(sums)} skipped tiles of photographs"
        sys.stdout.write(f"{of}: painted {painted:.4f}, skipped {left:.4f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

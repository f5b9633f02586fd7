"""Whether the bound holds: `python -m benchmarks.bound PHOTO ...`; exits with 1 at the first violation.

The middle of every photograph is halved and enlarged again by the embedded denoiser at a denoise that invents (no
consistency, no guidance), with another photograph pasted over a part of it, and as another photograph altogether.
Each is given to a run with the bound as its enlarged source, as a web UI's upscaler would be; the result is written as
PNG, read back, and measured from scratch. Columns: pictures, tiles measured, tiles over the bound at first, tiles over
it in the written file, mean share blended back.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.pictures.picture import Picture, read_picture, write_picture
from lib_dino.run.run import Run
from lib_dino.sampling.pixel_model import EmbeddedRender
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize


def drifted(truth: Tensor, source: Tensor, other: Tensor, model: EmbeddedRender, dino: Dinov2) -> dict[str, Tensor]:
    """Pictures that have left their source, by name."""
    size = (truth.shape[-2], truth.shape[-1])
    settings = Settings(denoise=0.5, steps=10, consistency=0.0, dino_enabled=False, seed=1, tile_size=256)
    with torch.autocast("cpu", torch.bfloat16):
        painted = Run(source, size, settings, model).render().float()
    pasted = painted.clone()
    pasted[..., size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2] = other[
        ..., size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2
    ]
    return {"painted": painted, "pasted": pasted, "another": other}


def check(
    image: Tensor, source: Tensor, bound: float, model: EmbeddedRender, dino: Dinov2
) -> tuple[int, int, int, float]:
    """Tiles measured, over at first, over in the written file; share blended."""
    size = (image.shape[-2], image.shape[-1])
    settings = Settings(
        denoise=0.0, max_drift=bound, consistency=0.0, dino_enabled=False, seed=1, tile_size=192, overlap=48
    )
    run = Run(source, size, settings, model, dino, enlarged=image)
    before = sum(float(run.drift(tile, image).patches.max()) > bound for tile in run.plan)
    result = run.render()
    share = run.report(result, 0.0).tiles
    with tempfile.TemporaryDirectory() as folder:
        path = write_picture(Picture(result), Path(folder) / "result.png", text="", force=True)
        again = Run(source, size, settings, model, dino)
        written = read_picture(path).pixels
    over = sum(float(again.drift(tile, written).patches.max()) > bound for tile in again.plan)
    return len(run.plan), before, over, sum(tile.blended for tile in share) / len(share)


@torch.no_grad()
def main() -> int:
    """Print a row for each kind of picture and bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.3])
    parser.add_argument("--side", type=int, default=384)
    args = parser.parse_args()
    model, dino = EmbeddedRender(), load_dinov2()
    middles = []
    for photo in args.photos:
        pixels = read_picture(photo).pixels
        side = min(args.side, *pixels.shape[-2:]) // 2 * 2
        top, left = ((length - side) // 2 for length in pixels.shape[-2:])
        middles.append(pixels[..., top : top + side, left : left + side])
    rows: dict[tuple[str, float], list[tuple[int, int, int, float]]] = {}
    for truth, other in zip(middles, [*middles[1:], middles[0]], strict=True):
        source = resize(truth, (truth.shape[-2] // 2, truth.shape[-1] // 2)).clamp(0, 1)
        other = resize(other, (truth.shape[-2], truth.shape[-1])).clamp(0, 1)
        for name, image in drifted(truth, source, other, model, dino).items():
            for bound in args.bounds:
                found = check(image, source, bound, model, dino)
                rows.setdefault((name, bound), []).append(found)
                sys.stderr.write(f"{name}, bound {bound}: {found}\n")
    violations = 0
    for (name, bound), found in rows.items():
        tiles, before, after = (sum(row[i] for row in found) for i in range(3))
        share = sum(row[3] for row in found) / len(found)
        violations += after
        sys.stdout.write(
            f"{name}, bound {bound}: {len(found)} pictures, {tiles} tiles, {before} over it at first, {after} in the "
            f"written file; {100 * share:.1f} % blended back\n"
        )
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

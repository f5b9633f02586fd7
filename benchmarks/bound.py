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
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.pictures.picture import Picture, read_picture, write_picture
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileModel
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize

from .runs import HalfPrecision, halved, middle, run

KINDS = ("painted", "pasted", "another")


def drifted(source: Tensor, other: Tensor, model: TileModel, steps: int) -> dict[str, Tensor]:
    """Pictures that have left their source, by name."""
    settings = Settings(denoise=0.5, steps=steps, consistency=0.0, dino_enabled=False, seed=1, tile_size=256)
    painted = run(source, settings, model).image
    rows, cols = (slice(side // 3, side // 2) for side in painted.shape[-2:])
    pasted = painted.clone()
    pasted[..., rows, cols] = other[..., rows, cols]
    return dict(zip(KINDS, (painted, pasted, other), strict=True))


def check(
    image: Tensor, source: Tensor, bound: float, model: TileModel, dino: Dinov2, tile_size: int
) -> tuple[int, int, int, float]:
    """Tiles measured, over at first, over in the written file; share blended."""
    settings = Settings(
        denoise=0.0, max_drift=bound, consistency=0.0, dino_enabled=False, seed=1, tile_size=tile_size,
        overlap=tile_size // 4,
    )  # fmt: skip
    limited = run(source, settings, model, dino, enlarged=image)
    before = sum(limited.worst_drift(tile, image) > bound for tile in limited.tiles)
    with tempfile.TemporaryDirectory() as folder:
        path = write_picture(Picture(limited.image), Path(folder) / "result.png", text="", force=True)
        written = read_picture(path).pixels
    again = run(source, settings.replace(max_drift=0.0), model, dino)
    over = sum(again.worst_drift(tile, written) > bound for tile in again.tiles)
    share = 0.0 if limited.finished.limited is None else float(limited.finished.limited.share.mean())
    return len(limited.tiles), before, over, share


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each kind of picture and bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.3])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--tile-size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=10, help="of the paintings that left their source")
    parser.add_argument("--bfloat16", action="store_true", help="the denoiser in half precision, for speed")
    args = parser.parse_args(argv)
    dino = load_dinov2()
    model: TileModel = HalfPrecision(PixelTileModel()) if args.bfloat16 else PixelTileModel()
    middles = [middle(photo, args.side) for photo in args.photos]
    rows: dict[tuple[str, float], list[tuple[int, int, int, float]]] = {}
    for truth, other in zip(middles, [*middles[1:], middles[0]], strict=True):
        source = halved(truth)
        other = resize(other, (truth.shape[-2], truth.shape[-1])).clamp(0, 1)
        for name, image in drifted(source, other, model, args.steps).items():
            for bound in args.bounds if name in args.kinds else ():
                found = check(image, source, bound, model, dino, args.tile_size)
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

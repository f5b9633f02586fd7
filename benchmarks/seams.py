"""How visible the tile borders are: `python -m benchmarks.seams PHOTO ... [--denoise 0.2 0.5]`.

For every line where a tile begins or ends, or where the ramp between two tiles begins, has its middle or ends, the
step across the line is compared with the steps across the lines beside it. A ratio of 1 is no seam; the same lines
in the plainly enlarged source show what the picture itself has there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from lib_dino.measure.quality import seam_ratios
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.settings import Settings
from lib_dino.tiling.plan import TilePlan
from lib_dino.tiling.resample import resize

from .runs import halved, middle, run


def border_lines(starts: tuple[int, ...], tile_px: int, feather_px: int) -> list[int]:
    """First pixels after a line where the weights of tiles change along one axis."""
    lines = set()
    for a, b in pairwise(starts):
        middle = (b + a + tile_px) // 2
        lines |= {b, a + tile_px, middle - feather_px // 2, middle, middle + feather_px // 2}
    return sorted(lines)


def mean_seam(image: Tensor, plan: TilePlan, feather_px: int) -> float:
    """The mean ratio over all borders of the picture, rows and columns; 1 where there is none."""
    ratios = [
        *seam_ratios(image, border_lines(plan.tops, plan.tile[0], feather_px)),
        *seam_ratios(image.transpose(-1, -2), border_lines(plan.lefts, plan.tile[1], feather_px)),
    ]
    return sum(ratios) / len(ratios) if ratios else 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, one row a picture and denoise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--denoise", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--tile-size", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--side", type=int, default=384, help="the middle of each photo, this many pixels a side")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)
    model, dino = PixelTileModel(), load_dinov2()
    totals: dict[tuple[float, str], list[float]] = {}
    for photo in args.photos:
        source = halved(middle(photo, args.side))
        for denoise in args.denoise:
            arms = {
                "img2img": Settings(denoise=denoise, consistency=0.0, dino_enabled=False),
                "default": Settings(denoise=denoise),
            }
            for name, settings in arms.items():
                settings = settings.replace(seed=1, tile_size=args.tile_size, steps=args.steps, overlap=args.overlap)
                done = run(source, settings, model, dino)
                enlarged = resize(source, done.job.target_size)
                figure, plain = (mean_seam(image, done.tiles, settings.overlap) for image in (done.image, enlarged))
                totals.setdefault((denoise, name), []).append(figure / plain)
                sys.stdout.write(f"{photo}  denoise {denoise}  {name}: {figure:.3f} (enlarged source {plain:.3f})\n")
    for (denoise, name), ratios in totals.items():
        sys.stdout.write(
            f"denoise {denoise} {name}: mean {sum(ratios) / len(ratios):.3f}, worst {max(ratios):.3f} "
            f"of {len(ratios)} pictures, relative to the enlarged source\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

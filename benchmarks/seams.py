"""How visible the tile borders are: `python -m benchmarks.seams PHOTO ... [--denoise 0.2 0.5]`.

For every line where a tile begins or ends, or where the ramp between two tiles begins, has its middle or ends, the
step across the line is compared with the steps across the lines beside it. A ratio of 1 is no seam; the same lines
in the plainly enlarged source show what the picture itself has there.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise

import torch
from torch import Tensor

from lib_dino.measure.quality import seam_ratios
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.pictures.picture import read_picture
from lib_dino.run.run import Run
from lib_dino.sampling.pixel_model import EmbeddedRender
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize


def border_lines(starts: tuple[int, ...], tile_px: int, feather_px: int) -> list[int]:
    """First pixels after a line where the weights of tiles change along one axis."""
    lines = set()
    for a, b in pairwise(starts):
        middle = (b + a + tile_px) // 2
        lines |= {b, a + tile_px, middle - feather_px // 2, middle, middle + feather_px // 2}
    return sorted(lines)


def worst_seam(image: Tensor, run: Run) -> float:
    """The largest mean ratio over kinds of lines: all borders of the picture together, rows and columns."""
    plan, feather = run.plan, run.settings.overlap
    ratios = [
        *seam_ratios(image, border_lines(plan.tops, plan.tile[0], feather)),
        *seam_ratios(image.transpose(-1, -2), border_lines(plan.lefts, plan.tile[1], feather)),
    ]
    return sum(ratios) / len(ratios)


def main() -> int:
    """Print a table, one row a picture and denoise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--denoise", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--tile-size", type=int, default=256)
    parser.add_argument("--side", type=int, default=384, help="the middle of each photo, this many pixels a side")
    args = parser.parse_args()
    model, dino = EmbeddedRender(), load_dinov2()
    totals: dict[tuple[float, str], list[float]] = {}
    for photo in args.photos:
        pixels = read_picture(photo).pixels
        top, left = ((side - min(side, args.side)) // 2 for side in pixels.shape[-2:])
        truth = pixels[..., top : top + args.side, left : left + args.side]
        source = resize(truth, (truth.shape[-2] // 2, truth.shape[-1] // 2)).clamp(0, 1)
        size = (2 * source.shape[-2], 2 * source.shape[-1])
        for denoise in args.denoise:
            arms = {
                "img2img": Settings(denoise=denoise, consistency=0.0, dino_enabled=False),
                "default": Settings(denoise=denoise),
            }
            for name, settings in arms.items():
                run = Run(source, size, settings.replace(seed=1, tile_size=args.tile_size), model, dino)
                with torch.no_grad():
                    image = run.render()
                figure, plain = worst_seam(image, run), worst_seam(resize(source, size), run)
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

"""How many calls a tile needs: `python -m benchmarks.few_steps PHOTO ... --judges FOLDER`.

Every photograph's middle is made small by 2 and enlarged with the embedded model at one denoise and 1, 2, 3 ... calls a
tile, with everything else at its default. Printed for each number of calls, as means: PSNR to the original, detail
(high-frequency energy over the original's) and, with `--judges`, the distance in an independent network's features.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib_dino.measure.quality import detail_energy, psnr
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.settings import Settings
from training.judges import load_distances

from .runs import HalfPrecision, halved, middle, run


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line for each number of calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 3, 4, 5, 8])
    parser.add_argument("--denoise", type=float, default=0.25)
    parser.add_argument("--judges", type=Path)
    args = parser.parse_args(argv)
    model, distances = HalfPrecision(PixelTileModel()), load_distances(args.judges)
    for calls in args.calls:
        settings = Settings(seed=1, denoise=args.denoise, steps=round((calls - 0.5) / args.denoise), dino_enabled=False)
        made_in = model.calls(settings.denoise, settings.steps)
        rows = []
        for path in args.photos:
            original = middle(path, args.side)
            image = run(halved(original), settings, model).image
            energy = float(detail_energy(image) / detail_energy(original))
            rows.append((psnr(image, original), energy, *(judge(image, original) for judge in distances.values())))
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        judged = "".join(f"   {name} {mean:.4f}" for name, mean in zip(distances, means[2:], strict=True))
        print(f"calls {made_in:2}   PSNR {means[0]:6.2f} dB   detail {means[1]:.3f}{judged}", flush=True)


if __name__ == "__main__":
    main()

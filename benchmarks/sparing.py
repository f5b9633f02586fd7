"""How much of consistency inside the loop stays with few exact pulls: the second table of docs/cost.md.

    python -m benchmarks.sparing PHOTO ... --scale 2 --denoise 0.2 --steps 20

The embedded model works on pixels, where a pull costs nothing, so that pulls at every call can be compared. Every
photograph's middle of 160 px is made small, enlarged and repainted without pulls, with those of `SPARING`, and with one
at every call; printed are the pulls of a tile and the mean PSNR to the original, finished and without the last pass.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lib_dino.measure.quality import psnr
from lib_dino.networks.denoiser import Denoiser, load_denoiser
from lib_dino.pictures.picture import picture_from_pil
from lib_dino.sampling.consistency import back_project
from lib_dino.sampling.correction import PixelCodec, TileCorrection
from lib_dino.sampling.pixel_model import NOISE_SCALE
from lib_dino.sampling.sampler import SIGMA_DATA, sample, schedule
from lib_dino.tiling.resample import resize, tile_operators
from lib_dino.webui.model.vae import SPARING

SIDE = 160


class Counted(PixelCodec):
    """Pixels with exact pulls at some noise levels alone, given as SD knows them."""

    def __init__(self, levels: tuple[float, ...]) -> None:
        self.sparing, self.pulls = tuple(level * NOISE_SCALE / SIGMA_DATA for level in levels), 0

    def shift(self, clean: Tensor, change: Tensor) -> Tensor:
        """Counts."""
        self.pulls += 1
        return super().shift(clean, change)

    def anchored(self, clean: Tensor, reference: Tensor, strength: float) -> Tensor:
        """Nothing, so that pulls are seen alone."""
        return clean


Levels = tuple[float, ...] | None


def repainted(source: Tensor, denoiser: Denoiser, levels: Levels, ratios: list[float]) -> tuple[Tensor, int]:
    """The enlarged source repainted, (1, 3, SIDE, SIDE), and its pulls; `levels` None does without."""
    base = resize(source, (SIDE, SIDE)).clamp(0, 1)
    sigmas = [ratio * NOISE_SCALE for ratio in ratios]
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
    whole, size = slice(0, SIDE), (source.shape[-2], source.shape[-1])
    correct, codec = TileCorrection(
        source, tile_operators(size, (SIDE, SIDE), whole, whole), consistency=1.0, dead_zone=0.0
    ), Counted(levels or ())

    def pulled(clean: Tensor, ratio: float) -> Tensor:
        return clean if levels is None else correct(clean, ratio, codec)

    done = sample(2 * base - 1 + sigmas[0] * noise, sigmas, denoiser, pulled)
    return ((done + 1) / 2).clamp(0, 1), codec.pulls


@torch.no_grad()
def main() -> None:
    """Print one line an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--denoise", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    denoiser, ratios = load_denoiser(), schedule(args.denoise, args.steps)
    for name, levels in {"none": None, "few": SPARING, "every call": ()}.items():
        rows = []
        for path in args.photos:
            image = Image.open(path).convert("RGB")
            left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
            original = picture_from_pil(image.crop((left, top, left + SIDE, top + SIDE))).pixels
            source = resize(original, (SIDE // args.scale, SIDE // args.scale)).clamp(0, 1)
            made, pulls = repainted(source, denoiser, levels, ratios)
            rows.append((pulls, psnr(back_project(made, source, strength=1.0), original), psnr(made, original)))
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        print(f"{name:10} pulls {means[0]:4.1f}   PSNR {means[1]:6.2f} dB, without the last pass {means[2]:6.2f} dB")


if __name__ == "__main__":
    main()

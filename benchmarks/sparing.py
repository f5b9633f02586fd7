"""How much of consistency inside the loop stays with few exact pulls: the second table of docs/cost.md.

    python -m benchmarks.sparing PHOTO ... --scale 2 --denoise 0.2 --steps 20

The embedded model works on pixels, where a pull costs nothing, so that pulls at every call can be compared. Every
photograph's middle of 160 px is made small, enlarged and repainted without pulls, with those at `EXACT_SIGMAS`, and
with one at every call; printed are the pulls of a tile and the mean PSNR to the original, finished and without the last
pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lib_dino.measure.quality import psnr
from lib_dino.networks.denoiser import Denoiser, load_denoiser
from lib_dino.sampling.consistency import (
    Autoencoder,
    AutoencoderConsistency,
    Consistency,
    Pull,
    back_project,
    pixel_consistency,
    tile_pull,
)
from lib_dino.sampling.latent_codec import EXACT_SIGMAS
from lib_dino.sampling.pixel_model import NOISE_SCALE
from lib_dino.sampling.sampler import SIGMA_DATA, sample, schedule
from lib_dino.tiling.resample import resize, tile_operators

from .runs import middle

SIDE = 160


PIXELS = Autoencoder(encode=lambda picture: 2 * picture - 1, decode=lambda clean: (clean + 1) / 2)
LEVELS = tuple(sigma * NOISE_SCALE / SIGMA_DATA for sigma in EXACT_SIGMAS)
"""Noise levels of few pulls, as this model's sampler knows them."""
ARMS: dict[str, Callable[[Pull], Consistency]] = {
    "none": lambda pull: lambda clean, ratio: clean,
    "few": lambda pull: AutoencoderConsistency(PIXELS, LEVELS, pull, 1.0, None),
    "every call": lambda pull: pixel_consistency(pull, 1.0),
}


def repainted(source: Tensor, denoiser: Denoiser, arm: str, ratios: list[float]) -> tuple[Tensor, int]:
    """The enlarged source repainted, (1, 3, SIDE, SIDE), and its pulls."""
    base = resize(source, (SIDE, SIDE)).clamp(0, 1)
    sigmas = [ratio * NOISE_SCALE for ratio in ratios]
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
    whole, pulls = slice(0, SIDE), 0
    operators = tile_operators((source.shape[-2], source.shape[-1]), (SIDE, SIDE), whole, whole)

    def pull(picture: Tensor) -> Tensor:
        nonlocal pulls
        pulls += 1
        return tile_pull(picture, source, operators, threshold=0.0)

    done = sample(2 * base - 1 + sigmas[0] * noise, sigmas, denoiser, ARMS[arm](pull))
    return ((done + 1) / 2).clamp(0, 1), pulls


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print one line an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--denoise", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)
    denoiser, ratios = load_denoiser(), schedule(args.denoise, args.steps)
    for name in ARMS:
        rows = []
        for path in args.photos:
            original = middle(path, SIDE)
            source = resize(original, (SIDE // args.scale, SIDE // args.scale)).clamp(0, 1)
            made, pulls = repainted(source, denoiser, name, ratios)
            rows.append((pulls, psnr(back_project(made, source, strength=1.0), original), psnr(made, original)))
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        print(f"{name:10} pulls {means[0]:4.1f}   PSNR {means[1]:6.2f} dB, without the last pass {means[2]:6.2f} dB")


if __name__ == "__main__":
    main()

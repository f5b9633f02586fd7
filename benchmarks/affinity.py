"""Expected texture shared between places that are alike: `python -m benchmarks.affinity PHOTO ... --judges DIR`.

Texture matching takes detail down to what a network expects at each place. Here its expectation is averaged over places
that DINO features find alike (the same wall, the same weave) before it is used. Controls: features of random weights,
patches of pixels, and DINO's places in a wrong order. The bound: the energies of the original itself. Middles of
photographs are made small by `--factor` and sampled once for each denoise; arms share the sampled picture. The table
gives the change of the judges' distances against the product at equal detail, as `oracle_guidance` does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_dino.measure.features import centre
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.networks.texture_net import EPS, SPREAD_PX, Texture, embedded_texture, energies, expected, split, unseen
from lib_dino.references.matching import Features
from lib_dino.run.finish import match_texture
from lib_dino.run.plan import plan_job
from lib_dino.run.prepare import prepare
from lib_dino.run.tiles import sample_tiles
from lib_dino.sampling.consistency import back_project
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize
from training.judges import load_judges

from .fidelity_stats import Row
from .oracle_guidance import figures, table
from .references import by_network, by_pixels, with_random_weights
from .runs import middle

CURVE = (0.2, 0.3, 0.4, 0.5)
TOKEN_PX = 4
"""Source pixels to a patch of features."""
SHARPNESS = 0.05
"""Cosine by which the weight of a place falls to 1 / e."""


def pooled(texture: Texture, source: Tensor, features: Features, *, shuffled: bool = False) -> Texture:
    """`texture` with each place's expectation averaged over the places of `source` that are alike."""
    rows, columns = (max(1, side // TOKEN_PX) for side in source.shape[-2:])
    grid = F.normalize(centre(features(source, (rows, columns))), dim=1)
    if shuffled:
        order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(0))
        grid = grid.flatten(2)[..., order].view_as(grid)
    flat = grid[0].flatten(1)
    weight = ((flat.T @ flat) / SHARPNESS).softmax(1)
    size = (texture.log.shape[-2], texture.log.shape[-1])
    coarse = F.adaptive_avg_pool2d(texture.log, (rows, columns))
    shared = (coarse.flatten(1) @ weight.T).view_as(coarse)
    # Only what is alike is shared: how a place differs from its patch stays.
    change = F.interpolate(shared - coarse, size=size, mode="bilinear")
    return replace(texture, log=texture.log + change)


def true_texture(truth: Tensor, like: Texture, source_size: tuple[int, int], factor: float, slack: float) -> Texture:
    """What the original's detail is, with `slack` times the usual doubt."""
    own = energies(split(unseen(truth, source_size), factor), SPREAD_PX * factor)
    log = F.adaptive_avg_pool2d((own + EPS).log(), like.log.shape[-2:])
    return Texture(log, slack * like.spread)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, after every photograph so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--judges", type=Path, default=None)
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--side", type=int, default=224, help="of the crops, px, a multiple of the factor")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(argv)
    judges, model, dino = load_judges(options.judges), PixelTileModel(), load_dinov2()
    trained, untrained = by_network(dino), by_network(with_random_weights(dino))
    curves: list[list[Row]] = []
    rows: dict[str, list[Row]] = {}
    for number, photo in enumerate(options.photos, start=1):
        truth = middle(photo, options.side)
        size = (truth.shape[-2] // options.factor, truth.shape[-1] // options.factor)
        source = resize(truth, size).clamp(0, 1)
        usual = expected(embedded_texture(), source, options.factor)
        arms = {
            "original's energies, no doubt": true_texture(truth, usual, size, options.factor, 0.05),
            "original's energies": true_texture(truth, usual, size, options.factor, 1.0),
            "DINO": pooled(usual, source, trained),
            "random weights": pooled(usual, source, untrained),
            "pixels": pooled(usual, source, by_pixels),
            "DINO, places in a wrong order": pooled(usual, source, trained, shuffled=True),
        }

        def finished(
            image: Tensor, texture: Texture, source: Tensor = source, truth: Tensor = truth,
            size: tuple[int, int] = size,
        ) -> Row:  # fmt: skip
            matched = match_texture(image, texture, size, options.factor, strength=1.0)
            return figures(back_project(matched, source, strength=1.0), truth, judges)

        sampled = [_sampled(source, denoise, options, model) for denoise in CURVE]
        curves.append([finished(image, usual) for image in sampled])
        for name, texture in arms.items():
            rows.setdefault(name, []).append(finished(sampled[-1], texture))
        print(f"\n{number} of {len(options.photos)} photographs, x{options.factor}", file=sys.stderr)
        print("\n".join(table(curves, rows, ["PSNR", *judges])), file=sys.stderr, flush=True)
    print("\n".join(table(curves, rows, ["PSNR", *judges])))
    return 0


def _sampled(source: Tensor, denoise: float, options: argparse.Namespace, model: PixelTileModel) -> Tensor:
    """The picture as its tiles were blended, before texture matching."""
    settings = Settings(
        scale_factor=options.factor, steps=options.steps, denoise=denoise, dino_enabled=False, clean_source=0.0, seed=0
    )
    job = prepare(source, plan_job(settings, (source.shape[-2], source.shape[-1]), model), settings)
    image, _ = sample_tiles(job, model, job.open_tiles())
    return image


if __name__ == "__main__":
    sys.exit(main())

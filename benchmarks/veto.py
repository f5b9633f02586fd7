"""A veto on inventions: `python -m benchmarks.veto PHOTO ... [--factor 2]`. Measured, not built in.

As in `benchmarks.fidelity`, something that downscaling cannot see is forced into the first predicted clean pictures of
a tile: the unseen detail of another photograph, as strong as the original's, within a soft disk. The finished picture's
added detail is then scaled back towards the plain enlargement where the edit detector finds it invented, by its
probability times the strength. Lines: how much of the plant is left, 0 to 1, and how much detail the same picture
without a plant keeps; `shuffled` takes the detector's patches in a wrong order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_dino.measure.calibration import load_calibration
from lib_dino.measure.drift import DriftMeter
from lib_dino.measure.quality import detail_ratio
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize, tile_operators

from .fidelity_arms import Plant, Planting, disk, unseen
from .runs import middle, run

STRENGTHS = (0.0, 0.5, 1.0)


def probability(dino: Dinov2, image: Tensor, small: Tensor, plain: Tensor) -> Tensor:
    """The detector's, a patch of 14 px each, (gh, gw)."""
    rows, cols = (slice(0, side) for side in image.shape[-2:])
    operators = tile_operators((small.shape[-2], small.shape[-1]), (image.shape[-2], image.shape[-1]), rows, cols)
    found = DriftMeter(dino, small, plain=plain, calibration=load_calibration(dino)).tile(image, operators, detail=True)
    assert found.edit_map is not None, "the embedded network has a detector"
    return found.edit_map.flatten(end_dim=-2)


def vetoed(image: Tensor, plain: Tensor, probability: Tensor, strength: float, factor: int) -> Tensor:
    """`image`, (1, 3, H, W), with its unseen detail scaled back where it was probably invented."""
    size = (image.shape[-2], image.shape[-1])
    gate = F.interpolate(probability[None, None], size=size, mode="bilinear")
    return image - unseen(strength * gate * (image - plain), factor)


def survival(planted: Tensor, alone: Tensor, plant: Plant) -> float:
    """How much of the plant is left, 0 to 1."""
    given = unseen((plant.image - unseen(alone, plant.factor)) * plant.mask, plant.factor)
    return float((unseen(planted - alone, plant.factor) * given).sum() / given.square().sum())


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Print the means over the photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--side", type=int, default=224, help="of the crops, px, a multiple of the factor")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--denoise", type=float, default=0.5)
    options = parser.parse_args(argv)
    factor, dino, model = options.factor, load_dinov2(), PixelTileModel()
    settings = Settings(scale_factor=factor, steps=options.steps, denoise=options.denoise, dino_enabled=False, seed=0)
    truths = [middle(photo, options.side) for photo in options.photos]
    found: dict[str, list[tuple[float, float]]] = {}
    for number, truth in enumerate(truths):
        size = (truth.shape[-2], truth.shape[-1])
        small = resize(truth, (size[0] // factor, size[1] // factor)).clamp(0, 1)
        plain = resize(small, size).clamp(0, 1)
        other = unseen(resize(truths[(number + 3) % len(truths)], size), factor)
        plant = Plant(other * (unseen(truth, factor).std() / other.std()), disk(size, number), factor, hidden=True)
        alone, planted = (run(small, settings, m).image for m in (model, Planting(model, plant)))
        maps = [probability(dino, image, small, plain) for image in (alone, planted)]
        order = torch.randperm(maps[0].numel(), generator=torch.Generator().manual_seed(0))
        wrong = [each.flatten()[order].view_as(each) for each in maps]
        arms = {f"strength {s:g}": (s, maps) for s in STRENGTHS} | {"strength 1, shuffled": (1.0, wrong)}
        for name, (strength, shown) in arms.items():
            kept, left = (
                vetoed(image, plain, each, strength, factor)
                for image, each in zip((alone, planted), shown, strict=True)
            )
            found.setdefault(name, []).append((survival(left, kept, plant), detail_ratio(kept, alone)))
    for name, pairs in found.items():
        left, detail = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        print(f"x{factor}, {name}: {left:.3f} of the plant is left, detail {detail:.3f} of 1")
    return 0


if __name__ == "__main__":
    sys.exit(main())

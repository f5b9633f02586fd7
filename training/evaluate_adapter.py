"""Measure an adapter of the embedded denoiser on the held-out photographs, beside the controls that it has to beat.

    python -m training.evaluate_adapter --judges FOLDER [--adapter FILE] [--denoise 0.2 0.5] [--side 256]

Each photograph's middle is halved and enlarged twofold by the product itself, consistency on, guidance off: without
adapter, with its true tokens, and with tokens that say nothing true of the picture: zeros, the true ones permuted
between patches, another picture's, those of a feature network with random weights. `FOLDER` is as for
evaluate_denoiser.py, whose columns these are. The lower table sets every arm against the run without adapter at the
same amount of detail (HF): that run's curve over denoise is interpolated for each picture; mean and standard error of
the relative change of NS and T2 and of the change of PSNR, and for how many pictures it is an improvement.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_dino.adapter.injection import Adapter, ImageTokens, Injection
from lib_dino.adapter.load import load_adapter
from lib_dino.adapter.projectors import PLACE_DIM
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.run.outcome import run_picture
from lib_dino.run.plan import plan_job
from lib_dino.run.prepare import prepare
from lib_dino.run.tiles import Conditions
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize

from .evaluate_denoiser import COLUMNS, figures, heldout_crops, tensor
from .judges import Judge, load_judges

CURVE = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
"""Denoise of the runs without adapter that equal detail is interpolated between."""

@dataclasses.dataclass(frozen=True)
class Arm(ImageTokens):
    """An adapter whose tokens are made by another function, from plainly enlarged tiles and by how much they were."""

    make: Callable[[Tensor, float], Tensor] | None = None

    def of_tiles(self, plain: Tensor, scale: float) -> Injection:
        """Tokens of tiles, see `ImageTokens.of_tiles`."""
        true = super().of_tiles(plain, scale)
        return true if self.make is None else dataclasses.replace(true, tokens=self.make(plain, scale))


def random_network(dino: Dinov2, seed: int = 0) -> Dinov2:
    """`dino`'s shape with random weights, each matrix as spread as the trained one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in dino.parameters():
        if parameter.ndim >= 2 and parameter.numel() > dino.dim:
            parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.std()
    dino.path = None  # the calibration beside it is another network's
    return dino


def arms(
    adapter: Adapter, dino: Dinov2, others: list[Tensor]
) -> dict[str, Callable[[Tensor, float], Tensor]]:
    """What each arm puts in the place of the adapter's tokens; `others` are other pictures, enlarged."""
    blank = random_network(load_dinov2())

    def permuted(tiles: Tensor, scale: float) -> Tensor:
        tokens = adapter.tokens(dino, tiles, scale).clone()
        order = torch.randperm(tokens.shape[1] - 1, generator=torch.Generator().manual_seed(1))
        tokens[:, :-1, :-PLACE_DIM] = tokens[:, order, :-PLACE_DIM]  # places stay
        return tokens

    def foreign(tiles: Tensor, scale: float) -> Tensor:
        other = resize(others[0], (tiles.shape[-2], tiles.shape[-1])).clamp(0, 1)
        return adapter.tokens(dino, other, scale)

    return {
        "true tokens": lambda tiles, scale: adapter.tokens(dino, tiles, scale),
        "zero tokens": lambda tiles, scale: torch.zeros_like(adapter.tokens(dino, tiles, scale)),
        "permuted patches": permuted,
        "another picture's": foreign,
        "random-weight network": lambda tiles, scale: adapter.tokens(blank, tiles, scale),
    }


def render(model: PixelTileModel, source: Tensor, denoise: float, seed: int, tokens: ImageTokens | None) -> Tensor:
    """The product's own run on a source, twofold."""
    settings = Settings(denoise=denoise, seed=seed, dino_enabled=False)
    job = prepare(source, plan_job(settings, (source.shape[-2], source.shape[-1]), model), settings)
    return run_picture(job, model, conditions=Conditions(tokens)).image


def at_equal_detail(row: dict[str, float], curve: list[dict[str, float]]) -> dict[str, float]:
    """Change of an arm's figures against the curve at the arm's own HF; NS and T2 relative, PSNR in dB."""
    points = sorted(curve, key=lambda point: point["HF"])
    detail = [point["HF"] for point in points]
    plain = {key: float(np.interp(row["HF"], detail, [point[key] for point in points])) for key in ("NS", "T2", "PSNR")}
    relative = {key: row[key] / plain[key] - 1 for key in ("NS", "T2")}
    return {**relative, "PSNR": row["PSNR"] - plain["PSNR"]}


@dataclasses.dataclass
class Picture:
    """One held-out photograph's figures: without adapter over denoise, and of each arm at each denoise."""

    curve: list[dict[str, float]]
    arms: dict[tuple[str, float], dict[str, float]]


def measure(name: str, crops: dict[str, Image.Image], options: argparse.Namespace, judges: dict[str, Judge],
            model: PixelTileModel, adapter: Adapter, dino: Dinov2) -> Picture:  # fmt: skip
    """All runs of one photograph."""
    crop = crops[name]
    small = crop.resize((crop.width // 2, crop.height // 2), Image.Resampling.BICUBIC)
    original, source = tensor(crop), tensor(small)
    lanczos = tensor(small.resize(crop.size, Image.Resampling.LANCZOS))
    names = list(crops)
    other = crops[names[(names.index(name) + 1) % len(names)]]
    others = [tensor(other.resize((other.width // 2, other.height // 2), Image.Resampling.BICUBIC))]

    def mean_figures(denoise: float, tokens: ImageTokens | None) -> dict[str, float]:
        rows = [
            figures(render(model, source, denoise, seed, tokens), original, lanczos, judges)
            for seed in range(options.seeds)
        ]
        return {key: float(np.mean([row[key] for row in rows])) for key in COLUMNS}

    found = Picture([mean_figures(denoise, None) for denoise in CURVE], {})
    for label, make in arms(adapter, dino, others).items():
        if options.arms and label.split()[0] not in options.arms:
            continue
        tokens = Arm(adapter, dino, options.strength, make)
        for denoise in options.denoise:
            found.arms[label, denoise] = mean_figures(denoise, tokens)
    return found


def tables(pictures: list[Picture], options: argparse.Namespace) -> None:
    """Both tables, as Markdown."""
    print("| run |", " | ".join(COLUMNS), "|\n|---|" + "---|" * len(COLUMNS))
    plain = {("no adapter", d): [p.curve[CURVE.index(d)] for p in pictures] for d in options.denoise}
    with_arms = {key: [p.arms[key] for p in pictures] for key in pictures[0].arms}
    for (label, denoise), rows in sorted({**plain, **with_arms}.items(), key=lambda item: item[0][1]):
        means = [float(np.mean([row[key] for row in rows])) for key in COLUMNS]
        print(f"| {label}, denoise {denoise} | " + " | ".join(f"{mean:.4g}" for mean in means) + " |")
    print("\n| at equal detail | NS | T2 | PSNR, dB |\n|---|---|---|---|")
    for label, denoise in with_arms:
        changes = [at_equal_detail(p.arms[label, denoise], p.curve) for p in pictures]
        cells = []
        for key, better, unit in (("NS", -1, "%"), ("T2", -1, "%"), ("PSNR", 1, "")):
            values = np.array([change[key] for change in changes]) * (100 if unit else 1)
            error = values.std(ddof=1) / len(values) ** 0.5
            wins = int((values * better > 0).sum())
            cells.append(f"{values.mean():+.2f}{unit} ± {error:.2f} ({wins}/{len(values)})")
        print(f"| {label}, denoise {denoise} | " + " | ".join(cells) + " |")


@torch.no_grad()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judges", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="adapter file (default: the one that ships)")
    parser.add_argument("--denoise", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--side", type=int, default=256, help="longest side of the crops, pixels (default %(default)s)")
    parser.add_argument("--arms", nargs="+", help="first words of the arms to run (default: all)")
    options = parser.parse_args()
    judges = load_judges(options.judges)
    dino, model = load_dinov2(), PixelTileModel()
    adapter = load_adapter(options.adapter, dino)
    crops = heldout_crops(options.side)
    pictures = [measure(name, crops, options, judges, model, adapter, dino) for name in crops]
    tables(pictures, options)


if __name__ == "__main__":
    main()

"""Would a denoise of its own for every tile pay? `python -m benchmarks.denoise_map PHOTO ... --judges FOLDER`.

The middle of every photograph is halved and enlarged again with full consistency at several single denoises and two
seeds, once and for all. Then each of its nine cells is given a denoise between `--low` and `--high` by a rule, in the
order of what the rule says about the cell in the source, and the picture that would come of it is put together from
the cells. Rules: how alike the cell's DINOv2 features are to one another (textures get more), and to the rest of the
picture; how far they are from the picture's mean; how much of the subject the cell shows (`lib_dino.measure.regions`;
the background gets more); the source's high-frequency energy (smooth cells get less), which needs no network; a
hundred random orders; and an oracle that knows the original.

Columns: distance to the original in two networks that have no part in any of it (`training/judges.py`) and
squared error, relative to the *single* denoise whose picture has as much detail, mean over the photographs with a
95 % interval (bootstrap over them). As much detail: as large a mean over the cells of high-frequency energy, of its
square root, or of its logarithm, in which a smooth cell counts as much as a busy one. Below 0 is better than any
single denoise. `--kept FILE` keeps the paintings' figures, and takes them from there when it exists.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_dino.measure.features import feature_grid
from lib_dino.measure.quality import high_frequencies
from lib_dino.measure.regions import subject_map
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileModel
from lib_dino.settings import Settings
from training.judges import load_judges

from .runs import HalfPrecision, halved, middle, run

Array = np.ndarray
DENOISES = (0.1, 0.2, 0.3, 0.4, 0.5)
CELLS = 3
"""Cells along a side."""
DETAIL: dict[str, Callable[[Array], Array]] = {
    "energy": lambda energy: energy, "root": np.sqrt, "logarithm": lambda energy: np.log(energy + 1e-7)
}  # fmt: skip


@dataclass(frozen=True)
class Painted:
    """What is known of one photograph.

    Attributes:
        rules: what each rule says of its cells, more for more denoise, (cells,).
        hf: high-frequency energy, (denoises, cells).
        errors: by judge, (denoises, cells).
    """

    rules: dict[str, Array]
    hf: Array
    errors: dict[str, Array]

    def at(self, values: Array, denoise: Array) -> Array:
        """`values` of every cell at its own denoise, between those painted."""
        return np.array([np.interp(d, DENOISES, values[:, cell]) for cell, d in enumerate(denoise)])


def cells(values: Tensor) -> Array:
    """Means of (1, 1, h, w) over cells."""
    found: Array = F.adaptive_avg_pool2d(values, (CELLS, CELLS)).flatten().numpy()
    return found


def say(source: Tensor, dino: Dinov2) -> dict[str, Array]:
    """What the rules say of a source's cells."""
    grid = feature_grid(dino, source)
    rows, cols = grid.shape[-2:]
    own = grid - grid.mean((-2, -1), keepdim=True)
    unit = F.normalize(own[0].flatten(1).T, dim=1)
    alike = unit @ unit.T
    y, x = torch.meshgrid(torch.arange(rows) * CELLS // rows, torch.arange(cols) * CELLS // cols, indexing="ij")
    cell = (y * CELLS + x).flatten()
    inside = [float(alike[cell == i][:, cell == i].mean()) for i in range(CELLS**2)]
    repeats = [float(alike[cell == i][:, cell != i].topk(10, dim=1).values.mean()) for i in range(CELLS**2)]
    return {
        "features alike within": np.array(inside),
        "features found elsewhere": np.array(repeats),
        "features unlike the mean": cells(own.square().sum(1, keepdim=True)),
        "background": -cells(subject_map(grid, source)[None, None]),
        "source's detail (no network)": cells(high_frequencies(source).square()),
    }


def paint(
    truth: Tensor, dino: Dinov2, model: TileModel, judges: dict[str, Callable[[Tensor], list[Tensor]]], steps: int = 10
) -> Painted:
    """One photograph at all denoises."""
    source = halved(truth)
    expected = {name: judge(truth) for name, judge in judges.items()}
    energy, errors = [], {name: [] for name in (*judges, "squared error")}
    for denoise in DENOISES:
        seeds = []
        for seed in (1, 2):
            settings = Settings(
                denoise=denoise, seed=seed, steps=steps, dino_enabled=False, tile_size=truth.shape[-2], overlap=32,
                texture=0.0, clean_source=0.0,
            )  # fmt: skip
            seeds.append(run(source, settings, model).image)
        energy.append(np.mean([cells(high_frequencies(image).square()) for image in seeds], 0))
        square = [cells((image - truth).square().mean(1, keepdim=True)) for image in seeds]
        errors["squared error"].append(np.mean(square, 0))
        for name, judge in judges.items():
            errors[name].append(np.mean([unlike(judge(image), expected[name]) for image in seeds], 0))
    return Painted(say(source, dino), np.stack(energy), {name: np.stack(rows) for name, rows in errors.items()})


def unlike(found: list[Tensor], expected: list[Tensor]) -> Array:
    """1 - cosine of features by cell, mean over layers."""
    pairs = zip(found, expected, strict=True)
    return np.mean([cells(1 - F.cosine_similarity(a, b, dim=1)[:, None]) for a, b in pairs], 0)


def ordered(values: Array, low: float, high: float) -> Array:
    """A denoise for every cell: in the order of `values`, evenly from `low` to `high`."""
    return low + (high - low) * np.argsort(np.argsort(values, kind="stable")) / (len(values) - 1)


def gains(painted: list[Painted], assign: Callable[[Painted], Array], detail: Callable[[Array], Array]) -> Array:
    """(judges, photographs): error relative to the single denoise of as much detail, less 1."""
    rows = []
    for each in painted:
        denoise = assign(each)
        reached, curve = detail(each.at(each.hf, denoise)).mean(), [detail(hf).mean() for hf in each.hf]
        rows.append([
            each.at(error, denoise).mean() / np.interp(reached, curve, error.mean(1)) - 1
            for error in each.errors.values()
        ])  # fmt: skip
    return np.array(rows).T


def oracle(each: Painted, low: float, high: float, detail: Callable[[Array], Array]) -> Array:
    """What the original says: more denoise where detail costs the least error, all judges together."""
    ends = [np.full(CELLS**2, end) for end in (low, high)]
    more = np.maximum(detail(each.at(each.hf, ends[1])) - detail(each.at(each.hf, ends[0])), 1e-9)
    costs = [(each.at(e, ends[1]) - each.at(e, ends[0])) / e.mean() for e in each.errors.values()]
    return -np.sum(costs, 0) / more


def cell_of(values: Array) -> str:
    """Mean and interval, in percent."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{100 * values.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def table(painted: list[Painted], low: float, high: float) -> list[str]:
    """Every rule under every meaning of equal detail, Markdown."""
    judges = list(painted[0].errors)
    lines = ["| equal mean of | rule | " + " | ".join(judges) + " |", "|---" * (len(judges) + 2) + "|"]
    rng = np.random.default_rng(0)
    for name, detail in DETAIL.items():
        rules = {rule: (lambda each, rule=rule: each.rules[rule]) for rule in painted[0].rules}
        rules["oracle"] = lambda each, detail=detail: oracle(each, low, high, detail)
        for rule, says in rules.items():
            rows = gains(painted, lambda each, says=says: ordered(says(each), low, high), detail)
            lines.append(f"| {name} | {rule} | " + " | ".join(cell_of(row) for row in rows) + " |")
        drawn = [
            gains(painted, lambda each: ordered(rng.random(CELLS**2), low, high), detail).mean(1) for _ in range(100)
        ]
        low_, high_ = np.percentile(drawn, [2.5, 97.5], axis=0)
        texts = (f"{100 * m:+.1f} ({100 * a:+.1f} to {100 * b:+.1f})"
                 for m, a, b in zip(np.mean(drawn, 0), low_, high_, strict=True))  # fmt: skip
        lines.append(f"| {name} | random order | " + " | ".join(texts) + " |")
    return lines


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Paint, or read what was painted, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--judges", type=Path, help="without, squared error alone")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--low", type=float, default=0.2)
    parser.add_argument("--high", type=float, default=0.5)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--bfloat16", action="store_true", help="the denoiser in half precision, for speed")
    args = parser.parse_args(argv)
    if args.kept and args.kept.exists():
        painted = torch.load(args.kept, weights_only=False)
    else:
        dino, judges = load_dinov2(), load_judges(args.judges)
        model: TileModel = HalfPrecision(PixelTileModel()) if args.bfloat16 else PixelTileModel()
        painted = [paint(middle(photo, args.side), dino, model, judges, args.steps) for photo in args.photos]
        if args.kept:
            torch.save(painted, args.kept)
    sys.stdout.write("\n".join(table(painted, args.low, args.high)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What feature guidance could do with a perfect target: `python -m benchmarks.oracle_guidance PHOTO ... --judges DIR`.

The middle of every photograph is made small by `--factor` and enlarged again by the embedded denoiser, with full source
consistency and nothing else. Then the same with DINO guidance between the steps, towards the features of the *original*
at full size, which no product can know. Every guiding step is projected on what downscaling cannot see, so that it
cannot work against consistency. What this oracle does not reach, no training-free guidance by these features does.

For each arm the table gives the change of the judges' distances (`training/judges.py`) against consistency alone at
equal detail: the curve of consistency alone at several denoise values, read where its high-frequency energy is the
arm's. Below 0 is better; 95 % bootstrap intervals over photographs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_dino.measure.drift import DriftMeter
from lib_dino.measure.quality import detail_ratio, psnr
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.sampling.correction import Codec, Corrector
from lib_dino.sampling.guidance import guide
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileBatch, TileModel
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize
from training.judges import feature_distance, load_judges

from .fidelity_arms import random_network, unseen
from .fidelity_stats import Row, at_detail, change
from .runs import HalfPrecision, Wrapped, middle, run

CURVE = (0.2, 0.35, 0.5, 0.7)
"""Denoise of consistency alone."""


@dataclass(frozen=True)
class Oracle:
    """A guide that knows the original.

    Attributes:
        dino: the network whose features are compared.
        steps: guiding steps at each model call.
    """

    dino: Dinov2
    steps: int = 1


class OracleGuided(Wrapped):
    """A pixel model of one tile, guided towards the features of `truth`, (1, 3, H, W) in [0, 1]."""

    def __init__(self, inner: TileModel, oracle: Oracle, truth: Tensor, factor: int) -> None:
        super().__init__(inner)
        self._steps, self._scale = oracle.steps, factor
        self._meter = DriftMeter(oracle.dino, truth)
        self._target = self._meter.target(truth)

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor | None:
        """Repaint tiles, see `TileModel.render`."""
        assert len(batch.boxes) == 1, "the original has the size of the picture, which must be one tile"

        def correct(clean: Tensor, noise_to_signal: float, codec: Codec) -> Tensor:
            for _ in range(self._steps):
                guided = guide(
                    clean, noise_to_signal, target=self._target, view=codec.decode, extract=self._meter.extract,
                    strength=1.0, sigma_data=codec.sigma_data,
                )  # fmt: skip
                clean = clean + unseen(guided - clean, self._scale)
            return corrector(clean, noise_to_signal, codec)

        return self.inner.render(batch, correct, on_step)


def figures(result: Tensor, truth: Tensor, judges: dict[str, Any]) -> Row:
    """Detail relative to the original's, PSNR in dB, and the judges' distances."""
    return {
        "HF": detail_ratio(result, truth), "PSNR": psnr(result, truth),
        **{name: feature_distance(judge, result, truth) for name, judge in judges.items()},
    }  # fmt: skip


def table(curves: Sequence[list[Row]], rows: dict[str, list[Row]], names: Sequence[str]) -> list[str]:
    """The page's table, an arm a row."""
    lines = ["| arm | HF | " + " | ".join(names) + " |", "| --- " * (2 + len(names)) + "|"]
    for arm, found in rows.items():
        cells = [arm, f"{sum(row['HF'] for row in found) / len(found):.2f}"]
        for name in names:
            pairs = [(row[name], at_detail(curve, name, row["HF"])) for row, curve in zip(found, curves, strict=False)]
            moved = change(pairs, name)
            unit = (100.0, " %") if name != "PSNR" else (1.0, " dB")
            mean, low, high = (unit[0] * value for value in (moved.mean, moved.low, moved.high))
            cells.append(f"{mean:+.1f}{unit[1]} ({low:+.1f} to {high:+.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, after every photograph so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--judges", type=Path, default=None)
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--side", type=int, default=224, help="of the crops, px, a multiple of the factor")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--denoise", type=float, default=0.5)
    parser.add_argument("--bfloat16", action="store_true")
    options = parser.parse_args(argv)
    judges, inner = load_judges(options.judges), PixelTileModel()
    model: TileModel = HalfPrecision(inner) if options.bfloat16 else inner
    dino = load_dinov2()
    oracles = {"oracle": Oracle(dino), "oracle, three steps a call": Oracle(dino, 3),
               "oracle, random weights": Oracle(random_network())}  # fmt: skip
    alone = Settings(
        scale_factor=options.factor, steps=options.steps, dino_enabled=False, clean_source=0.0, texture=0.0, seed=0
    )
    curves: list[list[Row]] = []
    rows: dict[str, list[Row]] = {name: [] for name in oracles}
    for photo in options.photos:
        truth = middle(photo, options.side)
        small = resize(truth, (truth.shape[-2] // options.factor, truth.shape[-1] // options.factor)).clamp(0, 1)

        def upscaled(denoise: float, model: TileModel, small: Tensor = small, truth: Tensor = truth) -> Row:
            made = run(small, alone.replace(denoise=denoise), model).image
            return figures(made, truth, judges)

        curves.append([upscaled(denoise, model) for denoise in CURVE])
        for name, oracle in oracles.items():
            guided = OracleGuided(model, oracle, truth, options.factor)
            rows[name].append(upscaled(options.denoise, guided))
        print(f"\n{len(curves)} of {len(options.photos)} photographs, x{options.factor}", file=sys.stderr)
        print("\n".join(table(curves, rows, ["PSNR", *judges])), file=sys.stderr, flush=True)
    print("\n".join(table(curves, rows, ["PSNR", *judges])))
    return 0


if __name__ == "__main__":
    sys.exit(main())

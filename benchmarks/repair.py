"""What self-repair does: `python -m benchmarks.repair PHOTO ... [--judges FOLDER]`.

The middle of every photograph is halved and enlarged again, tile by tile, by the embedded denoiser, without and with
self-repair. With full consistency between the steps nothing that a downscaling shows is ever over the bound, so it is
measured where repair matters:

- `free`: consistency off: what the denoiser does by itself;
- `planted`: a model without an exact decoder, as in a WebUI without a tiny autoencoder, so that consistency acts at the
  end alone; in a tenth of its attempts it insists at every step on a piece of another photograph;
- `loose`: the same with consistency lowered to 0.2;
- `hidden`: `planted` with an exact decoder: consistency between the steps takes away what a downscaling shows of the
  piece, and what stays is invisible to it;
- `honest`: that model without ever insisting, consistency on: whatever is redone is redone needlessly.

Columns: tiles that fail (`Attempt.failing` over 1) at first and in the end, and tiles over the bound in the finished
picture without and with repair; time of the whole run relative to that without repair (processor seconds), and model
calls; `planted`, tiles whose first attempt holds a piece, how many of them were redone and how many keep one, and how
many others were redone; detail of the repaired tiles relative to their first attempt; `seam`, the mean step across
tile borders relative to its neighbourhood, without and with; with `--judges` (see `training/judges.py`) the distance of
the repaired tiles to the original, before, after, and of the first attempt fully pulled to the source without being
sampled again, in two networks that have no part in any of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lib_dino.measure.calibration import load_calibration, save_thresholds
from lib_dino.measure.quality import detail_energy
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.run.retry import Candidates
from lib_dino.sampling.consistency import back_project
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileModel
from lib_dino.settings import Settings
from lib_dino.tiling.plan import Tile
from lib_dino.tiling.resample import resize
from training.judges import load_distances

from .runs import HalfPrecision, Insisting, Run, WithoutExactDecoder, halved, middle, run
from .seams import mean_seam


@dataclass(frozen=True)
class Arm:
    """What a model does, and how closely it is held."""

    consistency: float = 1.0
    exact: bool = True
    insists: bool = True


ARMS = {
    "free": Arm(consistency=0.0, insists=False),
    "planted": Arm(exact=False),
    "loose": Arm(consistency=0.2, exact=False),
    "hidden": Arm(),
    "honest": Arm(insists=False),
}


@dataclass
class Totals:
    """Sums over the photographs of one arm; of pairs the first is without repair, or before it."""

    tiles: int = 0
    failed: list[int] = field(default_factory=lambda: [0, 0])
    over: list[int] = field(default_factory=lambda: [0, 0])
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    calls: list[int] = field(default_factory=lambda: [0, 0])
    planted: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    detail: list[float] = field(default_factory=list)
    seams: list[tuple[float, float]] = field(default_factory=list)
    judged: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)

    def row(self) -> str:
        """One line of the table."""
        text = (
            f"failing {self.failed[0]} of {self.tiles} -> {self.failed[1]}, over {self.over[0]} -> {self.over[1]} | "
            f"planted {self.planted[0]}, redone {self.planted[1]}, kept {self.planted[2]}; others redone "
            f"{self.planted[3]} of {self.tiles - self.planted[0]} | "
            f"time x{self.seconds[1] / self.seconds[0]:.2f}, calls x{self.calls[1] / self.calls[0]:.2f} | "
            f"detail {_mean(self.detail):.2f} (least {min(self.detail, default=0):.2f}) of {len(self.detail)} | "
            f"seam {_mean([a for a, _ in self.seams]):.3f} -> {_mean([b for _, b in self.seams]):.3f}"
        )
        for name, values in self.judged.items():
            before, after, pulled = (_mean([v[i] for v in values]) for i in range(3))
            text += f" | {name} {before:.4f} -> {after:.4f} (pulled only {pulled:.4f})"
        return text


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


@dataclass
class Lab:
    """What the runs of one call share.

    Attributes:
        pieces: what models insist on, (N, 3, s, s) in [0, 1].
        share: of attempts in which they do.
        judges: distances by name.
        half: run the denoiser in half precision.
    """

    dino: Dinov2
    pieces: Tensor
    share: float
    judges: dict[str, Callable[[Tensor, Tensor], float]]
    half: bool = False
    inner: PixelTileModel = field(default_factory=PixelTileModel)

    def model(self, arm: Arm) -> tuple[TileModel, dict[Tile, list[bool]]]:
        """A fresh model of an arm, and where it will note of each tile's attempts whether it insisted."""
        model: TileModel = HalfPrecision(self.inner) if self.half else self.inner
        model = model if arm.exact else WithoutExactDecoder(model)
        insisting = Insisting(model, self.pieces, self.share if arm.insists else 0.0)
        return insisting, insisting.insisted

    def measure(self, truth: Tensor, settings: Settings, arm: Arm, totals: Totals) -> None:
        """Add one photograph to an arm."""
        source, plain = halved(truth), settings.replace(repair_tries=0)
        before = run(source, plain, self.model(arm)[0], self.dino)
        model, insisted = self.model(arm)
        after = run(source, settings, model, self.dino)
        for index, each in enumerate((before, after)):
            totals.seconds[index] += each.seconds
            totals.calls[index] += each.finished.sampled.calls
        totals.tiles += len(after.tiles)
        totals.seams.append((_seam(before), _seam(after)))
        for candidates in after.finished.sampled.candidates:
            _count(totals, candidates, insisted[candidates.tile], before, after)
        self._judge(totals, truth, source, before, after)

    def _judge(self, totals: Totals, truth: Tensor, source: Tensor, before: Run, after: Run) -> None:
        pulled = back_project(before.image, source, strength=1.0)
        for candidates in after.finished.sampled.candidates:
            if candidates.best.settings.number == 0:
                continue
            tile = candidates.tile
            first, last, near, true = (
                image[..., tile.rows, tile.cols] for image in (before.image, after.image, pulled, truth)
            )
            totals.detail.append(detail_energy(last) / detail_energy(first))
            for name, distance in self.judges.items():
                totals.judged.setdefault(name, []).append(tuple(distance(x, true) for x in (first, last, near)))


def _count(totals: Totals, candidates: Candidates, insisted: list[bool], before: Run, after: Run) -> None:
    """Add one tile."""
    redone, best = candidates.retries > 0, candidates.best
    totals.failed[0] += candidates.attempts[0].failing > 1
    totals.failed[1] += best.failing > 1
    for index, each in enumerate((before, after)):
        totals.over[index] += after.worst_drift(candidates.tile, each.image) > after.job.drift_bound
    totals.planted[0] += insisted[0]
    totals.planted[1] += insisted[0] and redone
    totals.planted[2] += insisted[best.settings.number]
    totals.planted[3] += not insisted[0] and redone


def _seam(each: Run) -> float:
    return mean_seam(each.image, each.tiles, each.job.settings.overlap)


def without_detector(folder: Path) -> Dinov2:
    """The embedded feature network with its drift thresholds alone, copied to `folder`."""
    dino = load_dinov2()
    assert dino.path is not None, "the embedded network is a file"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(dino.path.with_name(name), folder)
    thresholds = dataclasses.replace(load_calibration(dino).thresholds, alarm=None)
    save_thresholds(folder / "calibration.json", dino, thresholds, {})
    return load_dinov2(folder)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--judges", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--denoise", type=float, default=0.5)
    parser.add_argument("--tries", type=int, default=2)
    parser.add_argument("--insists", type=float, default=0.1, help="share of attempts in which the model invents")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--drift-alone", action="store_true", help="judge without the edit detector")
    parser.add_argument("--bfloat16", action="store_true", help="the denoiser in half precision, for speed")
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--tile-size", type=int, default=192)
    args = parser.parse_args(argv)
    pictures = [middle(photo, args.side) for photo in args.photos]
    side = min(64, args.tile_size // 3)
    pieces = torch.cat([resize(p, (side + 16, side + 16))[..., 8:-8, 8:-8].clamp(0, 1) for p in pictures])
    with tempfile.TemporaryDirectory() as folder:
        dino = without_detector(Path(folder)) if args.drift_alone else load_dinov2()
        lab = Lab(dino, pieces, args.insists, load_distances(args.judges), half=args.bfloat16)
        totals = {name: Totals() for name in args.arms}
        for number, truth in enumerate(pictures):
            for name, sums in totals.items():
                settings = Settings(
                    denoise=args.denoise, consistency=ARMS[name].consistency, repair_tries=args.tries, seed=1,
                    tile_size=args.tile_size, overlap=args.tile_size // 4, steps=args.steps,
                    dino_strength=args.strength, texture=0.0, clean_source=0.0,
                )  # fmt: skip
                lab.measure(truth, settings, ARMS[name], sums)
                sys.stderr.write(f"{number + 1} of {len(pictures)}, {name}: {sums.row()}\n")
        sys.stdout.write("".join(f"{name}: {sums.row()}\n" for name, sums in totals.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

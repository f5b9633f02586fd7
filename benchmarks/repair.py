"""What self-repair does: `python -m benchmarks.repair PHOTO ... [--judges FOLDER]`.

The middle of every photograph is halved and enlarged again, tile by tile, by the embedded denoiser, without and with
self-repair. With full consistency between the steps nothing that a downscaling shows is ever over the bound, so it is
measured where repair matters:

- `free`: consistency off: what the denoiser does by itself;
- `planted`: a model without an exact codec, as in a web UI without a tiny autoencoder, so that consistency acts at the
  end alone; in a tenth of its paintings it insists at every step on a piece of another photograph;
- `loose`: the same with consistency lowered to 0.2;
- `hidden`: `planted` with an exact codec: consistency between the steps takes away what a downscaling shows of the
  piece, and what stays is invisible to it;
- `honest`: that model without ever insisting, consistency on: whatever is redone is redone needlessly.

Columns: tiles that fail (`repair.Judged.failing` over 1) at first and in the end, and tiles over the bound in the
finished picture without and with repair; time of the whole run relative to that without repair (processor seconds),
and model calls; `planted`, tiles whose first painting holds a piece, how many of them were redone and how many keep
one, and how many others were redone; detail of the repaired tiles relative to their first painting; `seam`, the mean
step across tile borders relative to its neighbourhood, without and with; with `--judges` (see
`training/judges.py`) the distance of the repaired tiles to the original, before, after, and of the first
painting fully pulled to the source without being painted again, in two networks that have no part in any of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_dino.measure.quality import detail_energy
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.pictures.picture import read_picture
from lib_dino.run.painter import Painted, Painter
from lib_dino.run.retry import Judged
from lib_dino.run.run import Run
from lib_dino.sampling.consistency import back_project
from lib_dino.sampling.correction import PixelCodec
from lib_dino.sampling.pixel_model import NOISE_SCALE, EmbeddedRender
from lib_dino.sampling.sampler import sample, schedule
from lib_dino.sampling.tile_model import TileCorrect
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize
from training.judges import load_distances

from .seams import worst_seam


class RoughCodec(PixelCodec):
    """Good enough to look at, not to be held against the source."""

    exact = False


class HostLike(EmbeddedRender):
    """The embedded denoiser without an exact codec, which insists on one of `things` now and then."""

    def __init__(self, things: Tensor, insists: float, *, exact: bool = False) -> None:
        super().__init__()
        self._codec, self._things, self._insists = PixelCodec() if exact else RoughCodec(), things, insists
        self.insisted: list[bool] = []

    def __call__(
        self, tiles: Tensor, noise: Tensor, *, denoise: float, steps: int, correct: TileCorrect,
        called: Callable[[], None],
    ) -> Tensor:  # fmt: skip
        """Repaint tiles, as `render.Render` says."""
        sigmas = [ratio * NOISE_SCALE for ratio in schedule(denoise, steps)]
        masks = [self._thing(piece) for piece in noise]
        self.insisted = [mask is not None for mask in masks]

        def predict(x: Tensor, sigma: float) -> Tensor:
            clean = self._denoiser(x, sigma)
            called()
            return torch.stack([c if m is None else m(c) for c, m in zip(clean, masks, strict=True)])

        start = 2 * tiles - 1 + sigmas[0] * noise
        clean = sample(start, sigmas, predict, lambda x, ratio: correct(x, ratio, self._codec))
        return self._codec.decode(clean).clamp(0, 1)

    def _thing(self, noise: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What this noise makes the model see, if anything; other noise, other things."""
        draw = torch.Generator().manual_seed(int(noise.double().abs().sum() * 1e6) % 2**31)
        if float(torch.rand(1, generator=draw)) >= self._insists:
            return None
        thing = 2 * self._things[int(torch.randint(len(self._things), (1,), generator=draw))] - 1
        side = thing.shape[-1]
        y, x = (int(torch.randint(0, span - side, (1,), generator=draw)) for span in noise.shape[-2:])
        edge = (torch.hann_window(side + 2, periodic=False)[1:-1] * 4).clamp(max=1)
        mask = edge[:, None] * edge[None, :]

        def paste(clean: Tensor) -> Tensor:
            out = clean.clone()
            out[:, y : y + side, x : x + side] = torch.lerp(out[:, y : y + side, x : x + side], thing, 0.8 * mask)
            return out

        return paste


@dataclass
class Totals:
    """Sums over the photographs of one arm."""

    tiles: int = 0
    failed: list[int] = field(default_factory=lambda: [0, 0])
    over: list[int] = field(default_factory=lambda: [0, 0])
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    calls: list[int] = field(default_factory=lambda: [0, 0])
    planted: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    detail: list[float] = field(default_factory=list)
    seams: list[tuple[float, float]] = field(default_factory=list)
    judged: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)

    def row(self) -> str:
        """One line of the table."""
        text = (
            f"failing {self.failed[0]} of {self.tiles} -> {self.failed[1]}, over {self.over[0]} -> {self.over[1]} | "
            f"planted {self.planted[0]}, redone {self.planted[1]}, kept {self.planted[2]}; others redone "
            f"{self.planted[3]} | "
            f"time x{self.seconds[1] / self.seconds[0]:.2f}, calls x{self.calls[1] / self.calls[0]:.2f} | "
            f"detail {_mean(self.detail):.2f} (least {min(self.detail, default=0):.2f}) | "
            f"seam {_mean([a for a, _ in self.seams]):.3f} -> {_mean([b for _, b in self.seams]):.3f}"
        )
        for name, values in self.judged.items():
            before, after, pulled = (_mean([v[i] for v in values]) for i in range(3))
            text += f" | {name} {before:.3f} -> {after:.3f} (pulled only {pulled:.3f})"
        return text


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


class Bounded(Run):
    """A run that redoes what is over a bound of the benchmark's, and blends nothing."""

    limit = 0.0
    suspects = True

    @property
    def bound(self) -> float:
        """The benchmark's."""
        return self.limit

    def _painted(self, *args: Any, **named: Any) -> list[Painted] | None:
        painted = super()._painted(*args, **named)
        for each, insisted in zip(painted or (), getattr(self.model, "insisted", ()), strict=False):
            self.insisted.setdefault(each.tile, []).append(insisted)
        return painted

    def _judged(self, painter: Painter, painted: Painted, *, detail: bool = True) -> Judged:
        judged = super()._judged(painter, painted, detail=detail and self.suspects)
        self.judged.setdefault(painted.tile, []).append(judged.failing)
        return judged


def measure(
    truth: Tensor, bound: float, settings: Settings, model: EmbeddedRender, dino: Dinov2, totals: Totals,
    judges: dict[str, Callable[[Tensor, Tensor], float]],
) -> None:  # fmt: skip
    """Add one photograph to an arm."""
    source = resize(truth, (truth.shape[-2] // 2, truth.shape[-1] // 2)).clamp(0, 1)
    size = (truth.shape[-2], truth.shape[-1])
    images, runs = [], []
    for index, tries in enumerate((0, settings.repair_tries)):
        run = Bounded(source, size, settings.replace(repair_tries=tries), model, dino)
        run.limit, run.judged, run.insisted = bound or run.yardstick.thresholds.bound, {}, {}
        started = time.process_time()
        images.append(run.render())
        totals.seconds[index] += time.process_time() - started
        totals.calls[index] += run.report(images[-1], 0.0).model_calls
        runs.append(run)
    totals.tiles += len(runs[1].plan)
    totals.seams.append((worst_seam(images[0], runs[0]), worst_seam(images[1], runs[1])))
    pulled = back_project(images[0], source, strength=1.0)
    totals.failed[0] += sum(values[0] > 1 for values in runs[1].judged.values())
    totals.failed[1] += sum(min(values) > 1 for values in runs[1].judged.values())
    reports = runs[1].report(images[1], 0.0).tiles
    for tile, report in zip(runs[1].plan, reports, strict=True):
        drifts = [runs[1].drift(tile, image) for image in images]
        for index, drift in enumerate(drifts):
            totals.over[index] += float(drift.patches.max()) > runs[1].bound
        if held := runs[1].insisted.get(tile):
            totals.planted[0] += held[0]
            totals.planted[1] += held[0] and report.tries > 0
            totals.planted[2] += held[report.kept]
            totals.planted[3] += not held[0] and report.tries > 0
        if not report.kept:
            continue
        first, last, near, true = (x[..., tile.rows, tile.cols] for x in (*images, pulled, truth))
        totals.detail.append(detail_energy(last) / detail_energy(first))
        for name, distance in judges.items():
            totals.judged.setdefault(name, []).append(tuple(distance(x, true) for x in (first, last, near)))


@torch.no_grad()
def main() -> int:
    """Print a row for each arm and bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--judges", type=Path)
    parser.add_argument("--arms", nargs="+", default=["free", "planted", "loose", "hidden", "honest"])
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.0], help="0 is the network's own")
    parser.add_argument("--denoise", type=float, default=0.5)
    parser.add_argument("--tries", type=int, default=2)
    parser.add_argument("--insists", type=float, default=0.1, help="share of paintings in which the model invents")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--drift-alone", action="store_true", help="judge without the expected-detail head")
    parser.add_argument("--bfloat16", action="store_true", help="the denoiser in half precision, for speed")
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--tile-size", type=int, default=192)
    args = parser.parse_args()
    pictures = []
    for photo in args.photos:
        pixels = read_picture(photo).pixels
        side = min(args.side, *pixels.shape[-2:]) // 2 * 2
        top, left = ((length - side) // 2 for length in pixels.shape[-2:])
        pictures.append(pixels[..., top : top + side, left : left + side])
    things = torch.cat([resize(p, (80, 80))[..., 8:72, 8:72].clamp(0, 1) for p in pictures])
    Bounded.suspects = not args.drift_alone
    dino, judges = load_dinov2(), load_distances(args.judges)
    planted, hidden = HostLike(things, args.insists), HostLike(things, args.insists, exact=True)
    models = {
        "free": EmbeddedRender(), "planted": planted, "loose": planted, "hidden": hidden, "honest": EmbeddedRender()
    }  # fmt: skip
    consistency = {"free": 0.0, "planted": 1.0, "loose": 0.2, "hidden": 1.0, "honest": 1.0}
    for arm in args.arms:
        for bound in args.bounds:
            totals = Totals()
            settings = Settings(
                denoise=args.denoise, consistency=consistency[arm], repair_tries=args.tries, seed=1,
                tile_size=args.tile_size, overlap=48, steps=args.steps, dino_strength=args.strength,
                texture=0.0, clean_source=0.0,
            )  # fmt: skip
            for truth in pictures:
                with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
                    measure(truth, bound, settings, models[arm], dino, totals, judges)
            sys.stdout.write(f"{arm}, bound {bound}: {totals.row()}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Reference pictures: `python -m benchmarks.references PHOTO ... --judges DIR`.

Middles of photographs are made small by `--factor` and enlarged again by the embedded denoiser, alone and with a
second view of the same thing as reference: turned, of another size, of another exposure, compressed. A view is cut
from the whole photograph and covers the middle. Arms match it by DINO features, by those of the same network with
random weights, or by patches of pixels (normalised cross-correlation); what comes after matching is the same. Another
photograph as reference is the control. `--pair LEFT RIGHT` adds a real pair of photographs: the first is enlarged,
the second its reference. PSNR and the judges' distances are taken against the original, as differences
from the result without a reference, with 95 % intervals over photographs.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lib_dino.measure.features import feature_grid
from lib_dino.measure.quality import psnr
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.pictures.picture import read_picture
from lib_dino.pictures.pixels import to_image
from lib_dino.references.lending import borrow
from lib_dino.references.matching import Features
from lib_dino.run.outcome import run_picture
from lib_dino.run.plan import plan_job
from lib_dino.run.prepare import prepare
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileModel
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize
from training.judges import Judge, feature_distance, load_judges

from .fidelity_stats import interval
from .runs import middle

TOKEN_PX: Final = 6
"""Pixels to a side of a patch that pixels are compared by, without its surroundings of half as much."""


@dataclass(frozen=True)
class View:
    """How a second picture of the same thing differs.

    Attributes:
        degrees: it is turned by.
        scale: pixels of it to one of the original.
        gamma: of its exposure.
        quality: of the JPEG that it was saved as.
    """

    degrees: float
    scale: float
    gamma: float = 1.2
    quality: int = 85

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.degrees:g} degrees, {self.scale:g}x"


VIEWS: Final = (View(5, 1.0), View(20, 0.7), View(20, 1.4), View(35, 1.0), View(30, 0.5))


def second_view(photo: Tensor, side: int, view: View) -> Tensor:
    """The middle of `photo`, (1, 3, H, W), of `side` pixels and what surrounds it, seen another way."""
    height, width = photo.shape[-2:]
    out = round(1.5 * side * view.scale)
    turn = torch.tensor(
        [
            [math.cos(math.radians(view.degrees)), math.sin(math.radians(view.degrees))],
            [-math.sin(math.radians(view.degrees)), math.cos(math.radians(view.degrees))],
        ]
    )
    y, x = torch.meshgrid(torch.arange(out) + 0.5, torch.arange(out) + 0.5, indexing="ij")
    places = (torch.stack([x, y], -1) - out / 2) / view.scale @ turn.T + torch.tensor([width / 2 + 3, height / 2 - 5])
    grid = 2 * places / torch.tensor([width, height]) - 1
    # Sampled more finely than needed, then made small: no aliasing.
    image = F.grid_sample(photo, grid[None], mode="bicubic", padding_mode="reflection", align_corners=False)
    return compressed(image.clamp(0, 1) ** view.gamma, view.quality)


def compressed(image: Tensor, quality: int) -> Tensor:
    """`image`, (1, 3, H, W) in [0, 1], as a JPEG gives it back."""
    pixels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(file).convert("RGB")))
    return decoded.permute(2, 0, 1)[None].float() / 255


def by_network(dino: Dinov2) -> Features:
    """Compare places by a network's features."""
    return lambda image, grid: feature_grid(dino, image, grid=grid)


def with_random_weights(dino: Dinov2) -> Dinov2:
    """The same network before it learned anything."""
    other = copy.deepcopy(dino)
    torch.manual_seed(1)
    for module in other.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    return other


def by_pixels(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compare places by normalised cross-correlation of patches of grey pixels."""
    small = resize(image, (grid[0] * TOKEN_PX, grid[1] * TOKEN_PX)).mean(1, keepdim=True)
    edge = TOKEN_PX // 2
    patches = F.unfold(F.pad(small, (edge,) * 4, mode="replicate"), 2 * TOKEN_PX, stride=TOKEN_PX)
    patches = patches - patches.mean(1, keepdim=True)
    return (patches / (patches.norm(dim=1, keepdim=True) + 0.1)).reshape(1, -1, *grid)


@torch.no_grad()
def enlarged(
    source: Tensor, settings: Settings, model: TileModel, dino: Dinov2, reference: Tensor | None, features: Features
) -> tuple[Tensor, float]:
    """The result, and the share of it that the reference lends detail to."""
    plan = plan_job(settings, (source.shape[-2], source.shape[-1]), model)
    job = prepare(source, plan, settings, dino=dino)
    covered = 0.0
    if reference is not None:
        loans = borrow(job.reference.image, [reference], plan.target_size, features)
        job = dataclasses.replace(job, loans=loans, start=loans.lend(job.start, settings.dino_strength))
        covered = sum(loans.in_box(slice(0, plan.target_size[0]), slice(0, plan.target_size[1])))
    return run_picture(job, model).image, covered


@dataclass(frozen=True)
class Bench:
    """What every run of the benchmark shares."""

    settings: Settings
    model: TileModel
    dino: Dinov2
    judges: dict[str, Judge]

    def measured(
        self, source: Tensor, truth: Tensor, reference: Tensor | None, features: Features, strength: float = 1.0
    ) -> dict[str, float]:
        """Figures of one result."""
        settings = self.settings.replace(dino_strength=strength)
        image, covered = enlarged(source, settings, self.model, self.dino, reference, features)
        distances = {name: feature_distance(judge, image, truth) for name, judge in self.judges.items()}
        return {"covered": covered, "PSNR": psnr(image, truth), **distances}


def sheet_row(bench: Bench, truth: Tensor, photo: Tensor, features: Features) -> Tensor:
    """The source plainly enlarged, the result without and with a reference, the original; beside one another."""
    factor = round(bench.settings.scale_factor)
    source = resize(truth, (truth.shape[-2] // factor, truth.shape[-1] // factor)).clamp(0, 1)
    reference = second_view(photo, truth.shape[-1], View(20, 1.4))
    made = [enlarged(source, bench.settings, bench.model, bench.dino, r, features)[0] for r in (None, reference)]
    plain = resize(source, (truth.shape[-2], truth.shape[-1])).clamp(0, 1)
    return F.pad(torch.cat([F.pad(x, (0, 4), value=1.0) for x in (plain, *made, truth)], -1), (0, 0, 0, 4), value=1.0)


def table(rows: Sequence[dict[str, dict[str, float]]], names: Sequence[str]) -> list[str]:
    """Lines of the table: mean difference of each figure from no reference, and its interval."""
    lines = ["| | covered | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for arm in rows[0]:
        if arm == "alone":
            continue
        cells = [f"{100 * sum(row[arm]['covered'] for row in rows) / len(rows):.0f} %"]
        for name in names:
            if name == "PSNR":
                changes, form = [row[arm][name] - row["alone"][name] for row in rows], "{:+.2f} dB ({:+.2f} to {:+.2f})"
            else:
                changes = [100 * (row[arm][name] / row["alone"][name] - 1) for row in rows]
                form = "{:+.1f} % ({:+.1f} to {:+.1f})"
            cells.append(form.format(sum(changes) / len(changes), *interval(changes)))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, after every photograph so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*")
    parser.add_argument("--pair", nargs=2, metavar=("LEFT", "RIGHT"), help="real photographs of one thing")
    parser.add_argument("--judges", type=Path, default=None)
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--side", type=int, default=224, help="of the crops, px, a multiple of the factor")
    parser.add_argument("--denoise", type=float, default=0.2)
    parser.add_argument("--views", type=int, default=len(VIEWS), help="only the first so many")
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.5], help="beside 1, for the first view")
    parser.add_argument("--sheet", type=Path, help="picture to write instead: each photograph side by side")
    parser.add_argument("--rows", type=Path, help="file for the figures of each photograph, JSON")
    options = parser.parse_args(argv)
    dino = load_dinov2()
    settings = Settings(scale_factor=options.factor, denoise=options.denoise, dino_strength=1.0, seed=0)
    bench = Bench(settings, PixelTileModel(), dino, load_judges(options.judges))
    matchers = {
        "DINO": by_network(dino), "random weights": by_network(with_random_weights(dino)), "pixels": by_pixels,
    }  # fmt: skip
    figures = ["PSNR", *bench.judges]
    photos = [read_picture(photo).pixels for photo in options.photos]
    if options.sheet:
        rows_of = [sheet_row(bench, middle(name, options.side), photo, matchers["DINO"])
                   for name, photo in zip(options.photos, photos, strict=True)]
        to_image(torch.cat(rows_of, -2)[0]).save(options.sheet)
        return 0
    rows: list[dict[str, dict[str, float]]] = []
    for number, (name, photo) in enumerate(zip(options.photos, photos, strict=True)):
        truth = middle(name, options.side)
        side = truth.shape[-1]
        source = resize(truth, (truth.shape[-2] // options.factor, side // options.factor)).clamp(0, 1)
        measured = functools.partial(bench.measured, source, truth)
        row = {"alone": measured(None, by_pixels)}
        other = photos[(number + 1) % len(photos)]
        row["another photograph, DINO"] = measured(second_view(other, side, VIEWS[0]), matchers["DINO"])
        for view in VIEWS[: options.views]:
            reference = second_view(photo, side, view)
            for label, features in matchers.items():
                row[f"{view.name}, {label}"] = measured(reference, features)
            if view is VIEWS[0]:
                for strength in options.strengths:
                    row[f"{view.name}, DINO, strength {strength:g}"] = measured(reference, matchers["DINO"], strength)
        rows.append(row)
        if options.rows:
            options.rows.write_text(json.dumps(rows), encoding="utf-8")
        print(f"\n{len(rows)} of {len(photos)} photographs, x{options.factor}", file=sys.stderr)
        print("\n".join(table(rows, figures)), file=sys.stderr, flush=True)
    print("\n".join(table(rows, figures)) if rows else "")
    if options.pair:
        left, right = (read_picture(name).pixels for name in options.pair)
        height, width = (side // options.factor for side in left.shape[-2:])
        left = left[..., : height * options.factor, : width * options.factor]
        source = resize(left, (height, width)).clamp(0, 1)
        arms = {"alone": bench.measured(source, left, None, by_pixels)}
        arms |= {f"the pair, {label}": bench.measured(source, left, right, matchers[label]) for label in matchers}
        print("\n".join(table([arms], figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

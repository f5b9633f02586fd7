"""Fidelity of the product on held-out photographs: `make benchmark-fidelity`; writes docs/fidelity.md and its pictures.

Every run goes through `lib_dino.upscale` on the embedded models (the denoiser under bfloat16 autocast). The middles of
the held-out photographs are made small by area averaging (not the operator used inside), clean or degraded (blur of
0.6 px, noise of 4/255, JPEG quality 70), and enlarged again by every arm of `fidelity_arms`. Judges, which guidance
never sees, are those of `training/judges.py`. Results are kept, one JSON line each, under `--out`; a run
goes on where the last one stopped, and `--fresh ARM` measures an arm again. Jobs are ordered so that whatever is
finished within `--minutes` is a whole: first one seed of everything, then the next.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_dino.measure.drift import DriftMeter
from lib_dino.measure.quality import psnr
from lib_dino.tiling.resample import resize, tile_operators
from training.evaluate_denoiser import high, tensor
from training.judges import feature_distance, load_judges
from training.photographs import photographs

from .fidelity_arms import UNGUIDED, Arm, Lab, Plant, arms, disk, unseen

HERE = Path(__file__).resolve().parent

CONDITIONS = ((2, False), (2, True), (4, False), (4, True))
"""Factor, and whether the small picture is degraded."""
FRONTIER = (0.0, 0.1, 0.25, 0.5, 0.7)
CONSISTENT = (0.25, 0.35)
"""Further denoise of consistency alone, so that its own curve can be read at equal detail."""
PARTS = ("consistency, plain", "consistency, no texture", "consistency, source as given")
"""Consistency without what is done beside back-projection."""
MAIN_ARMS = (*PARTS, "consistency", "consistency, no model", "defaults")
CONTROLLED = ("DINO 1", "DINO 1, random weights", "DINO 1, shuffled", "adapter", "adapter, shuffled", "all")
PLANT_ARMS = ("unguided", "consistency", "DINO 1", "DINO 1, random weights", "adapter", "all")
COST_ARMS = ("unguided", "consistency, final", "consistency", "defaults", "adapter", "all")
TRAP_ARMS = ("unguided", "consistency", "consistency, no model", "defaults")


@dataclass(frozen=True)
class Job:
    """One run: what is measured, on what, how; `group` is frontier, arms, plant, trap or cost."""

    group: str
    picture: str
    arm: str
    denoise: float
    factor: int = 2
    degraded: bool = False
    seed: int = 0
    plant: str = ""

    def key(self, side: int, steps: int) -> str:
        """What a result is found by."""
        return "|".join(str(value) for value in (*asdict(self).values(), side, steps))


def jobs(pictures: list[str], traps: list[str], names: list[str], options: argparse.Namespace) -> Iterator[Job]:
    """All jobs, what most claims rest on first; a job comes once."""
    for seed in range(options.seeds):
        first, *rest = options.denoise
        main = [name for name in names if name in MAIN_ARMS]
        yield from _compared(pictures, main, first, seed, CONDITIONS[:1])
        yield from _compared(pictures, [name for name in names if name in CONTROLLED], first, seed, CONDITIONS[:1])
        for arm, denoise, picture in itertools.product(("consistency, plain", "consistency"), CONSISTENT, pictures):
            yield Job("arms", picture, arm, denoise, seed=seed)
        yield from _planted(pictures[:4], names, 2, options.plant_denoise, seed)
        for name, trap in itertools.product(TRAP_ARMS, traps):
            yield Job("trap", trap, name, options.plant_denoise, seed=seed)
        for name, picture in itertools.product(COST_ARMS, pictures[:2] if not seed else ()):
            if name in (*names, "unguided"):
                yield Job("cost", picture, name, 0.5)
        yield from _compared(pictures, main, first, seed, CONDITIONS[1:])
        for denoise, picture in itertools.product(CONSISTENT, pictures):
            for factor, degraded in CONDITIONS[1:]:
                yield Job("arms", picture, "consistency, plain", denoise, factor, degraded, seed)
        yield from _compared(pictures, names, first, seed, CONDITIONS[:1])
        controlled = [name for name in names if name in CONTROLLED]
        yield from _compared(pictures, controlled, first, seed, CONDITIONS[1:2])
        for factor in (2, 4):
            yield from _planted(pictures[:8], names, factor, options.plant_denoise, seed)
        for denoise in (first, *rest):
            yield from _compared(pictures, names, denoise, seed, CONDITIONS)


def _compared(
    pictures: list[str], names: list[str], level: float, seed: int, conditions: Sequence[tuple[int, bool]]
) -> Iterator[Job]:
    for factor, degraded in conditions:
        for denoise, picture in itertools.product(FRONTIER, pictures):
            yield Job("frontier", picture, "unguided", denoise, factor, degraded, seed)
        for name, picture in itertools.product(names, pictures):
            yield Job("arms", picture, name, level, factor, degraded, seed)


def _planted(pictures: list[str], names: list[str], factor: int, denoise: float, seed: int) -> Iterator[Job]:
    known = [name for name in PLANT_ARMS if name in (*names, "unguided")]
    for name, picture, plant in itertools.product(known, pictures, ("", "visible", "invisible")):
        yield Job("plant", picture, name, denoise, factor, False, seed, plant)


# ---------------------------------------------------------------- pictures


def middles(side: int) -> dict[str, Image.Image]:
    """The middle of every held-out photograph, `side` pixels square, a multiple of 4."""
    out = {}
    for row in photographs("heldout"):
        picture = Image.open(row.file).convert("RGB")
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        out[row.name] = picture.crop((left, top, left + side, top + side))
    return out


def trap_crops() -> dict[str, Image.Image]:
    """Flat and delicate places of the same photographs, from traps.csv, by kind and number."""
    out = {}
    files = {row.name: row.file for row in photographs("heldout")}
    with (HERE / "traps.csv").open(newline="", encoding="utf-8") as table:
        for number, row in enumerate(csv.DictReader(table)):
            left, top, side = (int(row[key]) for key in ("left", "top", "side"))
            crop = Image.open(files[row["photograph"]]).convert("RGB").crop((left, top, left + side, top + side))
            out[f"{row['kind']} {number}"] = crop
    return out


def made_small(crop: Image.Image, factor: int, degraded: bool) -> Image.Image:
    """`crop` area-averaged; degraded also blurred before, noisy and compressed after."""
    pixels = np.asarray(crop, np.float64)
    if degraded:
        from scipy.ndimage import gaussian_filter

        pixels = gaussian_filter(pixels, (0.6, 0.6, 0))
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    pixels = pixels.reshape(height, factor, width, factor, 3).mean((1, 3))
    if degraded:
        pixels = pixels + np.random.default_rng(0).normal(0, 4, pixels.shape)
    small = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    if not degraded:
        return small
    held = io.BytesIO()
    small.save(held, "JPEG", quality=70)
    return Image.open(held).convert("RGB")


# ---------------------------------------------------------------- measuring


class Bench:
    """Carries out jobs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.lab = options, Lab()
        self.judges = load_judges(options.judges)
        self.crops = middles(options.side)
        self.pictures = list(self.crops)[: options.pictures]
        self.traps = trap_crops()
        adapter = Path(sys.modules["lib_dino"].__file__ or "").parent / "embedded" / "adapter"
        self.arms: dict[str, Arm] = {"unguided": Arm(UNGUIDED), **arms(adapter=any(adapter.glob("*.safetensors")))}
        self._planted: dict[Any, Tensor] = {}

    def measure(self, job: Job) -> dict[str, float]:
        """Figures of one job."""
        crop = self.traps[job.picture] if job.group == "trap" else self.crops[job.picture]
        small = made_small(crop, job.factor, job.degraded)
        other = made_small(self._other(job), job.factor, job.degraded)
        plant = self._plant(job, tensor(crop)) if job.plant else None
        settings = {"scale_factor": float(job.factor), "denoise": job.denoise, "seed": job.seed,
                    "steps": self.options.steps}  # fmt: skip
        started = time.process_time()
        result = self.lab.run(small, self.arms[job.arm], settings, other=other, plant=plant).float()
        seconds = time.process_time() - started
        if self.options.pictures_out and job.seed == 0:
            self._keep(job, result)
        if job.group == "plant":
            return {**self._survival(job, result, plant), "seconds": seconds}
        return {**self._figures(result, tensor(crop), tensor(small)), "seconds": seconds}

    def _other(self, job: Job) -> Image.Image:
        names = list(self.crops)
        index = names.index(job.picture) if job.picture in names else 0
        return self.crops[names[(index + 3) % len(names)]]

    def _plant(self, job: Job, truth: Tensor) -> Plant:
        size = (truth.shape[-2], truth.shape[-1])
        image = tensor(self._other(job))
        hidden = job.plant == "invisible"
        if hidden:
            image = unseen(image, job.factor)
            image = image * (unseen(truth, job.factor).std() / image.std())
        return Plant(image, disk(size, list(self.crops).index(job.picture)), job.factor, hidden)

    def _survival(self, job: Job, result: Tensor, plant: Plant | None) -> dict[str, float]:
        """How much of the plant is left, 0 to 1, and detail elsewhere; the run without a plant comes first."""
        key = (job.picture, job.arm, job.factor, job.seed)
        if plant is None:
            self._planted[key] = result
            return {"clean": 1.0}
        if key not in self._planted:
            before = Job(**{**asdict(job), "plant": ""})
            self.measure(before)
        base = self._planted[key]
        given = plant.image - (unseen(base, job.factor) if plant.hidden else base)
        given, changed = given * plant.mask, result - base
        if plant.hidden:
            given, changed = unseen(given, job.factor), unseen(changed, job.factor)
        elsewhere = (plant.mask == 0)[0, 0].numpy()
        energy = [float((high(x[0].permute(1, 2, 0).double().numpy())[elsewhere] ** 2).mean()) for x in (result, base)]
        return {"survival": float((changed * given).sum() / given.square().sum()), "elsewhere": energy[0] / energy[1]}

    def _figures(self, result: Tensor, truth: Tensor, small: Tensor) -> dict[str, float]:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity

        a, b = (x[0].permute(1, 2, 0).double().numpy() for x in (result, truth))
        size = (small.shape[-2], small.shape[-1])
        plain = resize(small, (truth.shape[-2], truth.shape[-1])).clamp(0, 1)
        operators = tile_operators(size, (truth.shape[-2], truth.shape[-1]), slice(0, a.shape[0]), slice(0, a.shape[1]))
        return {
            "PSNR": float(peak_signal_noise_ratio(b, a, data_range=1.0)),
            "SSIM": float(structural_similarity(b, a, channel_axis=2, data_range=1.0)),
            "HF": float((high(a) ** 2).mean() / (high(b) ** 2).mean()),
            "LR": float(psnr(resize(result, size).clamp(0, 1), small)),
            "drift": DriftMeter(self.lab.nets[True], small, plain=plain).tile(result, operators).mean,
            **{name: feature_distance(judge, result, truth) for name, judge in self.judges.items()},
        }

    def _keep(self, job: Job, result: Tensor) -> None:
        self.options.pictures_out.mkdir(parents=True, exist_ok=True)
        array = (result[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
        name = f"{job.group} {job.picture} x{job.factor} {job.degraded} {job.denoise:g} {job.arm}{job.plant}.png"
        Image.fromarray(array).save(self.options.pictures_out / name)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Results so far by key; of a key measured twice the later one."""
    if not path.is_file():
        return {}
    return {row["key"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


@torch.no_grad()
def main() -> None:
    """Measure what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judges", type=Path, default=HERE / "out" / "judges", help="unpacked judges")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--side", type=int, default=224, help="of the crops, pixels, a multiple of 4")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--denoise", type=float, nargs="+", default=[0.5, 0.35, 0.2, 0.15])
    parser.add_argument("--plant-denoise", type=float, default=0.5)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop measuring after this long")
    parser.add_argument("--part", type=int, default=0, help="measure every n-th picture only, counted from this one")
    parser.add_argument("--parts", type=int, default=1, help="n of --part: for several processes at once")
    parser.add_argument("--fresh", nargs="+", default=[], metavar="ARM", help="measure these arms again")
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="measure these arms and no others")
    parser.add_argument("--quick", action="store_true", help="two pictures, one seed, denoise 0.5, few steps")
    parser.add_argument("--report-only", action="store_true", help="write the report of what there is")
    options = parser.parse_args()
    options.pictures_out = options.out / "fidelity-pictures"
    if options.quick:
        options.pictures, options.seeds, options.denoise, options.steps, options.side = 2, 1, [0.5], 6, 128
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "fidelity.jsonl"
    if not options.report_only:
        measure_all(path, options)
    from .fidelity_report import write_report

    write_report(list(read(path).values()), options)


def measure_all(path: Path, options: argparse.Namespace) -> None:
    """Every job that has no result yet, until time is up."""
    bench, done = Bench(options), read(path)
    fresh, ends = set(options.fresh), time.monotonic() + 60 * options.minutes
    names = [name for name in bench.arms if name != "unguided"]
    places, seen = [*bench.pictures, *bench.traps], set[str]()

    def mine(job: Job) -> bool:
        return places.index(job.picture) % options.parts == options.part

    with path.open("a", encoding="utf-8") as file:
        for job in jobs(bench.pictures, list(bench.traps), names, options):
            key = job.key(options.side, options.steps)
            wanted = mine(job) and (not options.only or job.arm in options.only)
            if key in seen or (key in done and job.arm not in fresh) or not wanted:
                continue
            seen.add(key)
            if time.monotonic() > ends:
                print("Time is up; run again to go on.")
                return
            row = {"key": key, **asdict(job), "side": options.side, "steps": options.steps, **bench.measure(job)}
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()

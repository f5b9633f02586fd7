"""Does the measure find what was invented? Planted edits on held-out photographs.

    python -m benchmarks.detection [--judges FOLDER] [--control FOLDER] [--pixels FOLDER] [--out docs/detection.md]

For each held-out photograph (`training/photographs.py fetch` gets them; none was trained on) tiles of the result are
made at 2x and 4x, on the true picture, recompressed, sharpened, and on the product's own honest enlargement. In each an
edit is planted: an object pasted, a texture swapped, a sign's letters changed, a face or region warped; a third of
them projected onto the source, so that downscaling cannot see them. Every measure gives a map over patches of 14 px
and judges tile by tile; a tile's score is the better, for that measure, of the map's mean and of its four highest
patches' mean, except for the shipped one, which has a single score. `--judges` is as for
`training/judges.py`; `--control` is a network with random weights, calibrated like the shipped one;
`--pixels` is the shipped network with a head that reads none of its tokens (`calibrate.py --no-tokens`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_dino.measure.calibration import load_calibration
from lib_dino.measure.drift import DriftMeter
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileModel
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize, tile_operators
from training.judges import load_judges
from training.photographs import DATA
from training.planted import (
    PATCH_PX,
    Carrier,
    Case,
    Rng,
    Scene,
    crop,
    gaussian,
    load_pictures,
    patch_change,
    plant,
    stage,
    tells,
    untouched,
)

from .runs import run

ROOT = Path(__file__).resolve().parent.parent

TILE_PX = 280
KINDS = ("object", "texture", "letters", "warp")
PLAN = (
    (2, "true", ("object", True), ("texture", False)),
    (2, "img2img", ("letters", True), ("warp", False)),
    (2, "recompressed", ("texture", True), ("letters", False)),
    (2, "img2img, sharpened", ("warp", True), ("object", True)),
    (2, "sharpened", ("letters", True), ("texture", False)),
    (4, "true", ("object", False), ("warp", True)),
    (4, "img2img", ("texture", True), ("letters", True)),
    (4, "recompressed", ("warp", False), ("object", True)),
    (4, "img2img, sharpened", ("letters", False), ("texture", True)),
)
"""The scenes on each photograph: enlargement, carrier, and the edits with whether downscaling can see them."""
FACES = {"astronaut": (0.22, 0.44), "chelsea": (0.5, 0.6), "friends_by_Aitzol_Berasategi": (0.31, 0.42)}
"""Middles of faces, as shares of height and width; what is warped there is a face."""
Measure = Callable[[Case], Tensor]
"""A case to its map (gh, gw); higher is more suspicious."""


# ---------------------------------------------------------------- cases


def honest_upscale(model: TileModel, steps: int = 10) -> Callable[[Tensor, tuple[int, int], float, int], Tensor]:
    """The product itself with consistency and without guidance, in few steps."""

    def made(source: Tensor, size: tuple[int, int], denoise: float, seed: int) -> Tensor:
        settings = Settings(
            height=size[0], width=size[1], denoise=denoise, steps=steps, seed=seed, dino_enabled=False
        )  # fmt: skip
        return run(source, settings, model).image

    return made


def cases(pictures: dict[str, Tensor], scenes: int, seed: int) -> Iterator[Case]:
    """Edited tiles and honest ones, picture by picture: the first so many scenes of `PLAN` on each."""
    upscale = honest_upscale(PixelTileModel())
    for number, name in enumerate(sorted(pictures)):
        rng = np.random.default_rng([seed, number])
        for index in range(scenes):
            yield from _scene_cases(name, pictures, index, upscale, rng)


def _scene_cases(
    name: str, pictures: dict[str, Tensor], index: int, upscale: Callable[..., Tensor], rng: Rng
) -> Iterator[Case]:
    scale, carrier_name, *edits = PLAN[index % len(PLAN)]
    carrier = Carrier(carrier_name, int(rng.integers(75, 96)), float(rng.uniform(0.6, 2.0)),
                      float(rng.uniform(0.5, 1.5)), float(rng.uniform(0.15, 0.35)), int(rng.integers(2**31)))
    kinds = [kind for kind, _ in edits]
    scene, at = _scene(name, pictures[name], scale, carrier, kinds, index, upscale, rng)
    yield untouched(scene, visible=True)
    if not all(visible for _, visible in edits):
        yield untouched(scene, visible=False)
    others = [other for other in sorted(pictures) if other != name] or [name]
    for kind, visible in edits:
        for _ in range(20):
            donor = crop(pictures[str(rng.choice(others))], _tile_size(pictures[name]), rng)
            case = plant(scene, donor, kind, visible=visible, upscale=upscale, rng=rng,
                         at=at if kind == "warp" else None)
            if tells(case):
                yield case
                break
            if kind == "letters":  # this sign is too small to lose anything: another one
                scene, at = _scene(name, pictures[name], scale, carrier, kinds, index, upscale, rng)


def _scene(
    name: str, picture: Tensor, scale: float, carrier: Carrier, kinds: list[str], index: int,
    upscale: Callable[..., Tensor], rng: Rng,
) -> tuple[Scene, tuple[float, float] | None]:
    size = _tile_size(picture)
    true, at = crop(picture, size, rng), None
    if "warp" in kinds and name in FACES:
        true, at = _around(picture, size, FACES[name])
    return stage(true, scale=scale, carrier=carrier, upscale=upscale, rng=rng, signed="letters" in kinds,
                 clean=index % 3 != 2, picture=name), at


def sharpened(pictures: dict[str, Tensor], seed: int) -> Iterator[Case]:
    """Honest tiles that were sharpened, eight a picture: they must not raise an alarm."""
    upscale = honest_upscale(PixelTileModel())
    for number, (name, picture) in enumerate(sorted(pictures.items())):
        rng = np.random.default_rng([seed, 1000 + number])
        for scale in (2, 4):
            for kind in ("sharpened", "plain, sharpened", "img2img, sharpened", "sharpened"):
                carrier = Carrier(kind, 90, float(rng.uniform(0.6, 2.5)), float(rng.uniform(0.4, 1.8)), 0.3, number)
                yield untouched(stage(crop(picture, _tile_size(picture), rng), scale=scale, carrier=carrier,
                                      upscale=upscale, rng=rng, clean=True, picture=name), visible=True)


def _tile_size(picture: Tensor) -> tuple[int, int]:
    height, width = (min(TILE_PX, side // 28 * 28) for side in picture.shape[-2:])
    return height, width


def _around(picture: Tensor, size: tuple[int, int], middle: tuple[float, float]) -> tuple[Tensor, tuple[float, float]]:
    """The tile of `picture` around a place, and the place in it."""
    (height, width), (rows, cols) = picture.shape[-2:], size
    y, x = middle[0] * height, middle[1] * width
    top, left = (int(min(max(0, v - side / 2), whole - side)) for v, side, whole in
                 ((y, rows, height), (x, cols, width)))
    return picture[..., top : top + rows, left : left + cols].float() / 255, (y - top, x - left)


# ---------------------------------------------------------------- measures


def plain_of(case: Case) -> Tensor:
    """The plainly enlarged source at the result's size."""
    return resize(case.source, (case.result.shape[-2], case.result.shape[-1])).clamp(0, 1)


def on_patches(image: Tensor, case: Case) -> Tensor:
    """A map (1, C, h, w) of any scale as means over the result's patches, (gh, gw)."""
    size = (case.result.shape[-2] // PATCH_PX, case.result.shape[-1] // PATCH_PX)
    return F.adaptive_avg_pool2d(image.mean(1, keepdim=True), size)[0, 0]


def pixel_difference(case: Case) -> Tensor:
    """Absolute difference to the plain enlargement."""
    return on_patches((case.result - plain_of(case)).abs(), case)


def lr_residual(case: Case) -> Tensor:
    """Absolute difference to the source after being made small again."""
    small = resize(case.result, (case.source.shape[-2], case.source.shape[-1]))
    return on_patches((small - case.source).abs(), case)


def sharpness(case: Case) -> Tensor:
    """Energy of what a Gaussian of 1.5 px takes away."""
    return on_patches((case.result - gaussian(case.result, 1.5)).square(), case)


def ssim(case: Case, *, matched: bool) -> Tensor:
    """1 - SSIM of luma (Gaussian window, 1.5 px) to the plain enlargement; `matched`: at the source's scale."""
    a, b = _pair(case, matched)
    a, b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    ma, mb = gaussian(a, 1.5), gaussian(b, 1.5)
    va, vb, cov = gaussian(a * a, 1.5) - ma**2, gaussian(b * b, 1.5) - mb**2, gaussian(a * b, 1.5) - ma * mb
    value = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    return on_patches(1 - value, case)


def _pair(case: Case, matched: bool) -> tuple[Tensor, Tensor]:
    if matched:
        return resize(case.result, (case.source.shape[-2], case.source.shape[-1])).clamp(0, 1), case.source
    return case.result, plain_of(case)


def perceptual(judge: Callable[[Tensor], list[Tensor]], *, matched: bool) -> Measure:
    """1 - cosine of a judging network's features, mean over its layers."""

    def run(case: Case) -> Tensor:
        pairs = zip(*(judge(x) for x in _pair(case, matched)), strict=True)
        return torch.stack([on_patches(1 - F.cosine_similarity(a, b, dim=1)[:, None], case) for a, b in pairs]).mean(0)

    return run


def dino_maps(folder: str | None) -> Callable[[Case], dict[str, Tensor]]:
    """Drift alone, and suspicion where the network has a head."""
    dino = load_dinov2(folder)
    known = load_calibration(dino)

    def run(case: Case) -> dict[str, Tensor]:
        size, small = ((x.shape[-2], x.shape[-1]) for x in (case.result, case.source))
        operators = tile_operators(small, size, slice(0, size[0]), slice(0, size[1]))
        found = DriftMeter(dino, case.source, plain=plain_of(case), calibration=known).tile(
            case.result, operators, detail=True
        )
        maps = {"drift": on_patches(found.patches[None, None], case)}
        if found.edit_map is not None:
            maps["suspicion"] = found.edit_map
        return maps

    return run


# ---------------------------------------------------------------- figures


@dataclass(frozen=True)
class Judged:
    """One case and what each measure says: its map."""

    picture: str
    kind: str
    carrier: str
    scale: float
    visible: bool | None
    target: np.ndarray
    maps: dict[str, np.ndarray]


def tile_scores(rows: list[Judged], name: str) -> dict[str, np.ndarray]:
    """Every pooling's score of every row."""
    maps = [row.maps[name] for row in rows]
    return {
        "mean": np.array([m.mean() for m in maps]),
        "worst four": np.array([np.sort(m.ravel())[-4:].mean() for m in maps]),
    }


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of pairs in the right order, ties half."""
    order = np.sort(negative)
    below, upto = np.searchsorted(order, positive, "left"), np.searchsorted(order, positive, "right")
    return float((below + upto).mean() / 2 / max(1, len(order)))


def pointed(row: Judged, name: str) -> bool:
    """Whether the map's highest patch, or one beside it, was changed."""
    y, x = np.unravel_index(int(row.maps[name].argmax()), row.target.shape)
    return bool(row.target[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max() > 1)


def detection(rows: list[Judged], scores: np.ndarray, keep: Callable[[Judged], bool]) -> float:
    """AUC of the edited tiles that `keep` names against all honest ones."""
    positive = np.array([r.kind != "honest" and keep(r) for r in rows])
    negative = np.array([r.kind == "honest" for r in rows])
    return auc(scores[positive], scores[negative]) if positive.any() and negative.any() else float("nan")


def interval(rows: list[Judged], figure: Callable[[np.ndarray], float], draws: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval over pictures of a figure of row indices."""
    rng = np.random.default_rng(0)
    pictures = sorted({r.picture for r in rows})
    where = {p: np.array([i for i, r in enumerate(rows) if r.picture == p]) for p in pictures}
    values = [figure(np.concatenate([where[p] for p in rng.choice(pictures, len(pictures))])) for _ in range(draws)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


# ---------------------------------------------------------------- runs


def judge_cases(found: Iterator[Case], measures: dict[str, Measure], dinos: dict[str, str | None]) -> list[Judged]:
    """Every case's maps; pictures themselves are not kept."""
    networks = {label: dino_maps(folder) for label, folder in dinos.items()}
    rows = []
    for case in found:
        maps = {name: measure(case).numpy() for name, measure in measures.items()}
        for label, network in networks.items():
            found_maps = network(case)
            if label == "pixels alone":  # its drift is the shipped network's
                found_maps.pop("drift")
            maps |= {f"{key}, {label}": value.numpy() for key, value in found_maps.items()}
        rows.append(Judged(case.picture, case.kind, case.carrier, case.scale, case.visible,
                           patch_change(case).numpy(), maps))
    return rows


def best_pooling(rows: list[Judged], name: str, shipped: str) -> tuple[str, np.ndarray]:
    """The pooling by which a measure detects most, and its scores; the shipped one's is fixed."""
    pools = tile_scores(rows, name)
    if name == shipped:
        return "worst four", pools["worst four"]
    return max(pools.items(), key=lambda item: detection(rows, item[1], lambda r: True))


COLUMNS: dict[str, Callable[[Judged], bool]] = {
    "all": lambda r: True,
    "visible": lambda r: r.visible is True,
    "invisible": lambda r: r.visible is False,
    **{kind: (lambda r, kind=kind: r.kind == kind) for kind in KINDS},
}


def table(rows: list[Judged], shipped: str) -> list[str]:
    """Detection of every measure, Markdown."""
    lines = ["| measure | pooling | " + " | ".join(COLUMNS) + " | pointing | visible | invisible |",
             "|---" * (len(COLUMNS) + 5) + "|"]
    edited = [r for r in rows if r.kind != "honest"]
    for name in rows[0].maps:
        pool, scores = best_pooling(rows, name, shipped)
        cells = [f"{detection(rows, scores, keep):.3f}" for keep in COLUMNS.values()]
        hits = np.array([pointed(r, name) for r in edited])
        seen = np.array([r.visible is True for r in edited])
        cells += [f"{hits.mean():.3f}", f"{hits[seen].mean():.3f}", f"{hits[~seen].mean():.3f}"]
        lines.append(f"| {name} | {pool} | " + " | ".join(cells) + " |")
    return lines


def versus(rows: list[Judged], shipped: str) -> list[str]:
    """The shipped measure's figures and its lead over each other one, with intervals over pictures."""
    best = {name: best_pooling(rows, name, shipped)[1] for name in rows[0].maps}

    def figure(scores: np.ndarray, keep: Callable[[Judged], bool]) -> Callable[[np.ndarray], float]:
        return lambda index: detection([rows[i] for i in index], scores[index], keep)

    lines = ["| | " + " | ".join(list(COLUMNS)[:3]) + " |", "|---|---|---|---|"]
    keeps = list(COLUMNS.values())[:3]
    own = [f"{detection(rows, best[shipped], k):.3f} ({{:.3f}} to {{:.3f}})".format(
        *interval(rows, figure(best[shipped], k), 400)) for k in keeps]
    lines.append(f"| **{shipped}** | " + " | ".join(own) + " |")
    for name, scores in best.items():
        if name == shipped:
            continue
        cells = []
        for keep in keeps:
            def lead(index: np.ndarray, keep: Callable[[Judged], bool] = keep, scores: np.ndarray = scores) -> float:
                return figure(best[shipped], keep)(index) - figure(scores, keep)(index)

            low, high = interval(rows, lead, 400)
            cells.append(f"{lead(np.arange(len(rows))):+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append(f"| lead over {name} | " + " | ".join(cells) + " |")
    return lines


def false_alarms(rows: list[Judged], limit: float, shipped: str) -> tuple[int, int]:
    """How many of the honest tiles the shipped measure reports, and of how many."""
    scores = tile_scores(rows, shipped)["worst four"]
    return int((scores > limit).sum()), len(rows)


def write(rows: list[Judged], calm: list[Judged], limit: float, shipped: str, seed: int) -> str:
    """The whole page."""
    edited = [r for r in rows if r.kind != "honest"]
    hidden = sum(r.visible is False for r in edited)
    raised, tiles = false_alarms(calm, limit, shipped)
    found = tile_scores(edited, shipped)["worst four"] > limit
    seen = np.array([r.visible is True for r in edited])
    hits = np.array([pointed(r, shipped) for r in edited])
    scores = best_pooling(rows, shipped, shipped)[1]
    overall = detection(rows, scores, lambda r: True)
    by_carrier = [f"| {name} | " + " | ".join(
        f"{detection(rows, scores, lambda r, n=name, k=keep: r.carrier == n and k(r)):.3f}"
        for keep in list(COLUMNS.values())[:3]) + " |" for name in sorted({r.carrier for r in rows})]
    by_scale = [f"| {scale}x | " + " | ".join(
        f"{detection(rows, scores, lambda r, s=scale, k=keep: r.scale == s and k(r)):.3f}"
        for keep in list(COLUMNS.values())[:3]) + " |" for scale in (2, 4)]
    return "\n".join([
        "# Does the measure find what was invented?",
        "",
        f"Written by `make benchmark-detection` (seed {seed}). {len(edited)} planted edits, {hidden} of them projected "
        f"onto the source so that downscaling cannot see them, and {len(rows) - len(edited)} honest tiles, on "
        f"{len({r.picture for r in rows})} held-out photographs; how they are made: `benchmarks/detection.py`, "
        "`training/planted.py`. An edit counts when it changed two patches of 14 px or more by 2/255 on average; "
        "others are drawn again.",
        "",
        "| figure | target | reached |",
        "|---|---|---|",
        f"| tile-level detection, AUC | 0.95 | {_verdict(overall, 0.95)} |",
        f"| map's highest patch lies in the edit or beside it | 0.90 | {_verdict(float(hits.mean()), 0.9)} |",
        "| false alarms on sharpened honest tiles at the shipped threshold | at most 5 % | "
        f"{100 * raised / tiles:.1f} % ({raised} of {tiles}) |",
        f"| edits found at that threshold: visible / invisible | | {100 * found[seen].mean():.0f} % / "
        f"{100 * found[~seen].mean():.0f} % |",
        f"| detection of edits that downscaling cannot see, AUC | 0.75 to keep the head | "
        f"{detection(rows, scores, lambda r: r.visible is False):.3f} |",
        "",
        "## Every measure on the same cases",
        "",
        "Tile-level AUC against all honest tiles, then how often the map points at the edit. *At the source's scale* "
        "means that the result was made small before it was compared.",
        "",
        *table(rows, shipped),
        "",
        "## The shipped measure's lead, with 95 % intervals (bootstrap over photographs)",
        "",
        *versus(rows, shipped),
        "",
        "## Where it works and where not",
        "",
        "| the result is | all | visible | invisible |",
        "|---|---|---|---|",
        *by_carrier,
        *by_scale,
        "",
        "## What this does not say",
        "",
        "Edits are planted by a script of the same family as those the head learned from (other photographs, though); "
        "the network, its head and the honest enlargements are the embedded ones. Results of large diffusion models "
        "look different, and no such model was at hand. Random weights and pixels alone: heads of the same make, the "
        "former's from fewer cases. More on how much of it is DINO, and on kinds of edits that a head never saw: "
        "[training/detail.md](training/detail.md).",
        "",
    ])


def _verdict(value: float, target: float) -> str:
    return f"{value:.3f}" if value >= target else f"{value:.3f} - not reached"


@torch.no_grad()
def main() -> None:
    """Judge all cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=DATA / "heldout", help="folder (default %(default)s)")
    parser.add_argument("--judges", type=Path, help="adds a perceptual distance; see training/judges.py")
    parser.add_argument("--control", help="a calibrated network with random weights")
    parser.add_argument("--pixels", help="the network with a head that reads no tokens")
    parser.add_argument("--scenes", type=int, default=len(PLAN), help="scenes a photograph (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "detection.md")
    args = parser.parse_args()
    measures: dict[str, Measure] = {
        "LR residual": lr_residual,
        "pixel difference": pixel_difference,
        "SSIM": lambda case: ssim(case, matched=False),
        "SSIM at the source's scale": lambda case: ssim(case, matched=True),
        "sharpness": sharpness,
    }
    if args.judges:
        judge = load_judges(args.judges)["T2"]
        measures["perceptual distance"] = perceptual(judge, matched=False)
        measures["perceptual distance at the source's scale"] = perceptual(judge, matched=True)
    rivals = {"random weights": args.control, "pixels alone": args.pixels}
    dinos: dict[str, str | None] = {"DINO": None, **{name: folder for name, folder in rivals.items() if folder}}
    pictures, started = load_pictures(args.photos), time.perf_counter()
    rows = judge_cases(cases(pictures, args.scenes, args.seed), measures, dinos)
    calm = judge_cases(sharpened(pictures, args.seed), {}, {"DINO": None})
    limits = load_calibration(load_dinov2()).thresholds
    shipped = "suspicion, DINO" if limits.alarm is not None else "drift, DINO"
    page = write(rows, calm, limits.bound if limits.alarm is None else limits.alarm, shipped, args.seed)
    args.out.write_text(page, encoding="utf-8")
    print(page, f"\n{time.perf_counter() - started:.0f} s", sep="")


if __name__ == "__main__":
    main()

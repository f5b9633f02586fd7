"""Fit what `lib_dino.calibration` keeps for one DINOv2 network: drift thresholds and the edit detector.

    make calibrate FEATURES=folder-or-file PHOTOS=folder
    python -m training.calibrate --features FOLDER --photos FOLDER [--scenes 500] [--minutes 10] [--out FOLDER]

Any folder of photographs will do; nothing in them is labelled. Tiles are made from them with planted edits
(`planted.py`) and without; the head learns to tell the two apart on four fifths of the pictures, and thresholds are
fitted on the last fifth, which the head has not seen. The head is kept where it finds edits that downscaling cannot
see with an AUC of 0.75 or more on that fifth; otherwise drift alone is calibrated. Two files are written beside the
weights, or into `--out`: `calibration.json` and `detail_head.safetensors`.

Tiles and features for the embedded network take about half a second a case on one idle CPU core, some 2.6 cases a
scene. Larger networks want a GPU (`--device`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib_dino.measure.calibration import Calibration, Thresholds, files_beside, save_thresholds
from lib_dino.measure.drift import DriftMeter, TileDrift, make_target, mean_feature, patch_drift, spread
from lib_dino.measure.edits import pixel_channels, seen_channels, tokens_at
from lib_dino.measure.features import feature_grid
from lib_dino.networks.denoiser import load_denoiser
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.networks.edit_detector import DetectorShape, EditDetector, save_detector
from lib_dino.sampling.consistency import back_project
from lib_dino.sampling.pixel_model import NOISE_SCALE
from lib_dino.sampling.sampler import sample, schedule
from lib_dino.tiling.resample import resize, tile_operators

from .planted import (
    KINDS,
    PATCH_PX,
    Carrier,
    Case,
    Rng,
    Scene,
    Upscale,
    crop,
    draw_carrier,
    jpeg,
    load_pictures,
    patch_change,
    plant,
    stage,
    tells,
    untouched,
)

TILE_PX = 224
CARRIERS = {"true": 0.28, "recompressed": 0.12, "grainy": 0.06, "sharpened": 0.14, "plain": 0.05,
            "plain, sharpened": 0.05, "img2img": 0.2, "img2img, sharpened": 0.1}
"""How often a scene goes through what."""
CHANGED, UNCHANGED = 1.5, 0.25
"""Patches that an edit changed by more, in 1/255, count as invented; by less, as honest; between, as neither."""
LEARNING_RATE = 2e-3
LEAST_AUC = 0.75
HONEST_SHARE = 0.97
"""Share of honest tiles that stay under the alarm."""


# ---------------------------------------------------------------- cases


def embedded_upscale(steps: int = 6) -> Upscale:
    """img2img by the embedded denoiser with consistency, in half precision."""
    denoiser = load_denoiser()

    def run(source: Tensor, size: tuple[int, int], denoise: float, seed: int) -> Tensor:
        soft = resize(source, size).clamp(0, 1)
        sigmas = [ratio * NOISE_SCALE for ratio in schedule(denoise, steps)]
        noise = torch.randn(soft.shape, generator=torch.Generator().manual_seed(seed))

        def predict(x: Tensor, sigma: float) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return denoiser(x, sigma)

        def correct(clean: Tensor, ratio: float) -> Tensor:
            return clean + resize(2 * source - 1 - resize(clean, (source.shape[-2], source.shape[-1])), size)

        out = (sample(2 * soft - 1 + sigmas[0] * noise, sigmas, predict, correct) + 1) / 2
        return back_project(out.clamp(0, 1), source, strength=1.0)

    return run


def cases(pictures: dict[str, Tensor], scenes: int, upscale: Upscale, rng: Rng) -> Iterator[Case]:
    """Two or three edited tiles and an honest one a scene, those left out that changed nothing one could see."""
    names = sorted(pictures)
    for _ in range(scenes):
        name, other = (str(n) for n in rng.choice(names, 2))
        names_of, chances = list(CARRIERS), np.array(list(CARRIERS.values()))
        carrier = draw_carrier([str(rng.choice(names_of, p=chances / chances.sum()))], rng)
        signed = bool(rng.random() < 0.3)
        scene = stage(_zoomed(pictures[name], rng), scale=float(rng.choice([2, 2.8, 4])), carrier=carrier,
                      upscale=upscale, rng=rng, signed=signed, picture=name)
        yield from _edits(scene, _zoomed(pictures[other], rng), signed, upscale, rng)
        yield untouched(scene, visible=bool(rng.random() < 0.4))


def _edits(scene: Scene, donor: Tensor, signed: bool, upscale: Upscale, rng: Rng) -> Iterator[Case]:
    kinds = [str(k) for k in rng.choice([k for k in KINDS if k != "letters"], 2, replace=False)]
    for kind in [*kinds, *(["letters"] if signed else [])]:
        visible = scene.carrier.name.startswith("plain") or bool(rng.random() < 0.35)
        case = plant(scene, donor, kind, visible=visible, upscale=upscale, rng=rng, places=int(rng.integers(1, 4)))
        if tells(case):
            yield case


def _zoomed(picture: Tensor, rng: Rng) -> Tensor:
    """A tile of the picture, at its own scale or from up to twice as large a part."""
    side = int(rng.choice([224, 224, 280, 336, 448]))
    part = resize(crop(picture, (side, side), rng), (TILE_PX, TILE_PX)).clamp(0, 1)
    return part.flip(3) if rng.random() < 0.5 else part


# ---------------------------------------------------------------- what the head is given


@dataclass
class Inputs:
    """What the head is given of many cases, float16, and what it should answer.

    Attributes:
        pixels, made, plain, seen: as `EditDetector.forward` takes them; tokens empty for a head without.
        change: (N, gh, gw), mean absolute change in 1/255.
        cases: kind, carrier, visibility, picture of each.
    """

    pixels: Tensor
    made: Tensor
    plain: Tensor
    seen: Tensor
    change: Tensor
    cases: list[tuple[str, str, bool | None, str]]


@torch.no_grad()
def inputs(dino: Dinov2, found: list[Case], layers: tuple[int, ...]) -> Inputs:
    """Inputs for tiles of `TILE_PX`."""
    rows = [_input(dino, case, layers) for case in found]
    pixels, made, plain, seen = (torch.cat([row[i] for row in rows]) for i in range(4))
    return Inputs(pixels, made, plain, seen, torch.stack([patch_change(case) for case in found]),
                  [(case.kind, case.carrier, case.visible, case.picture) for case in found])


def _input(dino: Dinov2, case: Case, layers: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size, small = ((x.shape[-2], x.shape[-1]) for x in (case.result, case.source))
    device = dino.positions.device
    plain = resize(case.source, size).clamp(0, 1)
    over, weight = drift_of(dino, case)
    residual = resize(case.source - resize(case.result, small), size)
    grid = (size[0] // PATCH_PX, size[1] // PATCH_PX)
    over, weight = (F.interpolate(x[:, None], size=grid, mode="bilinear")[:, 0] for x in (over, weight))
    made, ref = tokens_at(dino, torch.cat([case.result, plain]).to(device), layers).cpu().half().split(1)
    return (pixel_channels(case.result, plain, residual).half(), made, ref,
            seen_channels(over, weight, residual).half())


def drift_of(dino: Dinov2, case: Case) -> tuple[Tensor, Tensor]:
    """Weighted drift above the floor and confidence, (1, gh, gw) each, of a case that is a whole picture."""
    small = (case.source.shape[-2], case.source.shape[-1])
    floor = resize(resize(case.source, (case.result.shape[-2], case.result.shape[-1])).clamp(0, 1), small)
    three = torch.cat([case.source, resize(case.result, small), floor]).to(dino.positions.device)
    source, made, plain = feature_grid(dino, three).cpu().split(1)
    target = make_target(source, mean_feature(source), spread=spread(source))
    return target.weight * (patch_drift(made, target) - patch_drift(plain, target)).clamp(min=0), target.weight


# ---------------------------------------------------------------- the head


def fit_head(
    data: Inputs, shape: DetectorShape, *, minutes: float, seed: int = 0, leave_out: str | None = None
) -> EditDetector:
    """A head trained for `minutes` of processor time; `leave_out` keeps one kind of edit away from it."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = EditDetector(shape).to(memory_format=torch.channels_last)
    if shape.tokens:
        some = data.plain[:: max(1, len(data.plain) // 200)].float()
        head.token_mean.copy_(some.mean((0, 2, 3), keepdim=True))
        head.token_scale.copy_(some.std((0, 2, 3), keepdim=True) + 1e-3)
    keep = [i for i, case in enumerate(data.cases) if case[0] != leave_out]
    optimiser = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    started, step = time.process_time(), 0
    while (done := (time.process_time() - started) / 60 / minutes) < 1 or step < 2:
        rate = min(1.0, (step + 1) / 50) * min(1.0, max(0.0, 1 - done) / 0.7)
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * rate
        index = torch.from_numpy(rng.choice(keep, min(16, len(keep)), replace=False))
        loss = head_loss(head, data, index)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        step += 1
    print(f"Head: {step} steps, last loss {float(loss.detach()):.3f}", flush=True)
    return head.eval().requires_grad_(False)


def head_loss(head: EditDetector, data: Inputs, index: Tensor) -> Tensor:
    """Cross-entropy by patch; what was changed more weighs more, and changed patches as a whole four times."""
    logits = answer(head, data, index, harm=True)
    change = data.change[index]
    wanted = (change > CHANGED).float()
    weight = torch.where(change > CHANGED, 4 * (change / 4).clamp(0.4, 1.5), (change < UNCHANGED).float())
    return (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight).sum() / weight.sum()


def answer(head: EditDetector, data: Inputs, index: Tensor, *, harm: bool = False) -> Tensor:
    """Logits for some cases; `harm` adds noise to tokens and drops some channels, against learning by heart."""
    pixels, made, plain, seen = (
        x[index].float().contiguous(memory_format=torch.channels_last)
        for x in (data.pixels, data.made, data.plain, data.seen)
    )
    if harm and head.shape.tokens:
        kept = (torch.rand(len(index), made.shape[1], 1, 1) > 0.1).float()
        made, plain = ((x + 0.05 * torch.randn_like(x)) * kept for x in (made, plain))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = (made, plain) if head.shape.tokens else (None, None)
        return head(pixels, *tokens, seen).float()


def answers(head: EditDetector, data: Inputs) -> Tensor:
    """Logits for all cases, (N, gh, gw)."""
    with torch.no_grad():
        return torch.cat([answer(head, data, part) for part in torch.arange(len(data.cases)).split(16)])


# ---------------------------------------------------------------- thresholds


def auc(positive: Tensor, negative: Tensor) -> float:
    """Share of pairs in the right order, ties half; 0.5 where either is empty."""
    if not len(positive) or not len(negative):
        return 0.5
    order = negative.sort().values
    below = torch.searchsorted(order, positive.contiguous())
    upto = torch.searchsorted(order, positive.contiguous(), right=True)
    return float((below + upto).double().mean() / 2 / len(order))


def patch_auc(logits: Tensor, data: Inputs, *, visible: bool | None = None, kind: str | None = None) -> float:
    """AUC of changed patches of some edits against unchanged patches of all tiles."""
    chosen = torch.tensor([
        c[0] != "honest" and visible in (None, c[2]) and kind in (None, c[0]) for c in data.cases
    ])
    return auc(logits[chosen][data.change[chosen] > CHANGED], logits[data.change < UNCHANGED])


def null_cases(pictures: dict[str, Tensor], count: int, side: int, upscale: Upscale, rng: Rng) -> Iterator[Case]:
    """Honest results, sharpened and degraded ones among them: nothing in them was invented."""
    names = sorted(pictures)
    for number in range(count):
        name = names[number % len(names)]
        size = tuple(min(side, part // 28 * 28 or 28) for part in pictures[name].shape[-2:])
        kind = NULLS[number % len(NULLS)]
        carrier = Carrier(kind if kind in CARRIERS else "img2img", 90, float(rng.uniform(0.6, 2.5)),
                          float(rng.uniform(0.4, 1.8)), float(rng.choice([0.15, 0.25, 0.35])), number)
        scene = stage(crop(pictures[name], (size[0], size[1]), rng), scale=float(rng.choice([2, 4])), carrier=carrier,
                      upscale=upscale, rng=rng, clean=bool(rng.random() < 0.5), picture=name)
        case = untouched(scene, visible=bool(rng.random() < 0.6))
        result = _degraded(case.result, kind, number)
        yield Case(result, case.source, case.change, "honest", kind, None, case.scale, name)


NULLS = ("img2img", "sharpened", "JPEG 60", "img2img, sharpened", "true", "noise 5/255", "plain, sharpened",
         "img2img", "half resolution", "sharpened")


def _degraded(result: Tensor, kind: str, seed: int) -> Tensor:
    if kind == "JPEG 60":
        return jpeg(result, 60)
    if kind == "noise 5/255":
        return (result + 5 / 255 * torch.randn(result.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)
    if kind == "half resolution":
        size = (result.shape[-2], result.shape[-1])
        return resize(resize(result, (size[0] // 2, size[1] // 2)), size).clamp(0, 1)
    return result


def measured(dino: Dinov2, head: EditDetector | None, case: Case) -> TileDrift:
    """The product's own measure of a case that is a whole picture."""
    size, small = ((x.shape[-2], x.shape[-1]) for x in (case.result, case.source))
    plain = resize(case.source, size).clamp(0, 1)
    calibration = Calibration(Thresholds(), head)
    with torch.no_grad():
        meter = DriftMeter(dino, case.source, plain=plain, calibration=calibration)
        operators = tile_operators(small, size, slice(0, size[0]), slice(0, size[1]))
        return meter.tile(case.result, operators, detail=True)


def fit_thresholds(
    dino: Dinov2, head: EditDetector | None, nulls: Iterator[Case], edited: list[Case]
) -> tuple[Thresholds, dict[str, float]]:
    """Thresholds from honest tiles and from edited ones, and how well they part them."""
    honest = [measured(dino, head, case) for case in nulls]
    drifts = torch.cat([tile.patches.flatten() for tile in honest])
    bound = float(torch.quantile(drifts, 0.99))
    planted = [(case, *drift_of(dino, case)) for case in edited if case.visible]
    strong = [over[0][_at(case, over) > 10] for case, over, _ in planted]
    invented = float(torch.cat(strong).median()) if any(len(x) for x in strong) else bound
    alarm = None
    if head is not None:
        scores = torch.tensor([tile.edit_probability for tile in honest])
        alarm = min(1.0, float(torch.quantile(scores, HONEST_SHARE)))
    found = torch.cat(strong) if strong else drifts[:0]
    figures = {"honest_tiles": len(honest), "drift_patch_auc": auc(found, drifts),
               "strong_patches_over_bound": float((found > bound).float().mean()) if len(found) else 0.0}
    return Thresholds(bound, max(invented, 1.5 * bound), alarm, measured=True), figures


def _at(case: Case, over: Tensor) -> Tensor:
    """The change of a case on the drift's grid."""
    return F.interpolate(patch_change(case)[None, None], size=tuple(over.shape[-2:]), mode="bilinear")[0, 0]


# ---------------------------------------------------------------- runs


def split(pictures: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Four fifths to train on and every fifth picture to measure on; a single picture serves as both."""
    names = sorted(pictures)
    kept = names[2::5] or names[-1:]
    return {n: pictures[n] for n in names if n not in kept} or pictures, {n: pictures[n] for n in kept}


def calibrate(
    dino: Dinov2, pictures: dict[str, Tensor], folder: Path, *, scenes: int, minutes: float, seed: int = 0,
    with_head: bool = True, with_tokens: bool = True, null_px: int = 392, nulls: int = 100,
) -> Thresholds:
    """Fit both and write them into `folder`, under the names that belong to the network's file."""
    rng, upscale = np.random.default_rng(seed), embedded_upscale()
    train, rest = split(pictures)
    layers = tuple(sorted({max(1, round(dino.depth * part)) for part in (0.375, 0.625, 1)}))
    shape = DetectorShape(dino.dim, layers, tokens=with_tokens)
    found = list(cases(rest, max(2, scenes // 5), upscale, rng))
    held, head = inputs(dino, found, shape.layers), None
    figures: dict[str, object] = {"photographs": len(pictures), "scenes": scenes, "minutes": minutes, "seed": seed}
    if with_head:
        head = fit_head(inputs(dino, list(cases(train, scenes, upscale, rng)), shape.layers), shape, minutes=minutes)
        logits = answers(head, held)
        figures |= {f"auc_{name}": round(patch_auc(logits, held, visible=v), 3)
                    for name, v in (("all", None), ("visible", True), ("invisible", False))}
        print(figures, flush=True)
        head = head if patch_auc(logits, held, visible=False) >= LEAST_AUC else None
    thresholds, more = fit_thresholds(dino, head, null_cases(rest, nulls, null_px, upscale, rng), found)
    settings, weights = (folder / path.name for path in files_beside(dino.path or Path("model.safetensors")))
    if head is not None:
        save_detector(head, weights)
    else:
        weights.unlink(missing_ok=True)
    save_thresholds(settings, dino, thresholds, figures | {k: round(v, 4) for k, v in more.items()})
    return thresholds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", help="folder or .safetensors file of a DINOv2; the embedded one if left out")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs, PNG, JPEG or WebP")
    parser.add_argument("--out", type=Path, help="folder to write to instead of that of the weights")
    parser.add_argument("--scenes", type=int, default=700, help="scenes to train the head on (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=3, help="processor time for the head (default %(default)s)")
    parser.add_argument("--no-head", action="store_true", help="fit drift thresholds alone")
    parser.add_argument("--no-tokens", action="store_true", help="a head on pixels and drift alone, as a control")
    parser.add_argument("--device", default="cpu", help="where the feature network runs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    pictures = load_pictures(args.photos) if args.photos.is_dir() else {}
    if not pictures:
        parser.error(f"--photos must be a folder with PNG, JPEG or WebP pictures; there are none in {args.photos}.")
    dino = load_dinov2(args.features, device=args.device)
    assert dino.path is not None, "a loaded network has a file"
    folder = args.out or dino.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    print(calibrate(dino, pictures, folder, scenes=args.scenes, minutes=args.minutes, seed=args.seed,
                    with_head=not args.no_head, with_tokens=not args.no_tokens))


if __name__ == "__main__":
    main()

"""Does the edit detector find kinds of edits that it never saw?

    python -m training.leave_out --photos FOLDER [--features FOLDER] [--scenes 700] [--minutes 3]
        [--kinds object letters]

Once with all kinds and once without each, a head is trained on four fifths of the photographs and judged on the last
fifth, as `calibrate.py` does. Writes a Markdown table: for edits of that kind, AUC of edited tiles against honest ones,
of the head that knew the kind and of the one that did not, for edits that downscaling sees and for those it cannot see.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lib_dino.measure.drift import EDIT_PATCHES
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.networks.edit_detector import DetectorShape, EditDetector

from .calibrate import Inputs, answers, auc, cases, embedded_upscale, fit_head, inputs, split
from .planted import KINDS, load_pictures


def tile_aucs(head: EditDetector, data: Inputs, kind: str) -> tuple[float, float]:
    """AUC of edited tiles of one kind against honest ones: visible to downscaling, and invisible."""
    scores = answers(head, data).flatten(1).topk(EDIT_PATCHES).values.mean(1)
    honest = scores[torch.tensor([case[0] == "honest" for case in data.cases])]

    def of(visible: bool) -> float:
        return auc(scores[torch.tensor([case[0] == kind and case[2] is visible for case in data.cases])], honest)

    return of(True), of(False)


def table(
    train: Inputs, held: Inputs, shape: DetectorShape, *, minutes: float, kinds: Sequence[str] = KINDS
) -> list[str]:
    """Every kind known and unknown, Markdown."""
    whole = fit_head(train, shape, minutes=minutes)
    lines = ["| kind | visible: known | unknown | invisible: known | unknown |", "|---|---|---|---|---|"]
    for kind in kinds:
        known = tile_aucs(whole, held, kind)
        unknown = tile_aucs(fit_head(train, shape, minutes=minutes, leave_out=kind), held, kind)
        cells = " | ".join(f"{a:.3f} | {b:.3f}" for a, b in zip(known, unknown, strict=True))
        lines.append(f"| {kind} | {cells} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--features", help="folder or file of a DINOv2; the embedded one if left out")
    parser.add_argument("--scenes", type=int, default=700)
    parser.add_argument("--minutes", type=float, default=3, help="processor time for each head (default %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dino = load_dinov2(args.features)
    rng, upscale = np.random.default_rng(args.seed), embedded_upscale()
    train, rest = split(load_pictures(args.photos))
    layers = tuple(sorted({max(1, round(dino.depth * part)) for part in (0.375, 0.625, 1)}))
    held = inputs(dino, list(cases(rest, max(2, args.scenes // 5), upscale, rng)), layers)
    known = inputs(dino, list(cases(train, args.scenes, upscale, rng)), layers)
    lines = table(known, held, DetectorShape(dino.dim, layers), minutes=args.minutes, kinds=args.kinds)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

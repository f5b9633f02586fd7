"""Train the network that cleans spoiled sources (`lib_dino/embedded/clean`) on the pictures of `photographs.csv`.

    python -m training.train_clean train --minutes 45      # resumes training/runs/clean/state.pt if it is there
    python -m training.train_clean export                  # its averaged weights -> lib_dino/embedded/clean
    python -m training.train_clean evaluate                # the shipped ones on the held-out photographs

A sharp crop is made small by a random filter and factor, then spoiled: sensor noise, JPEG, both, or nothing in a
quarter of the crops. The target is the crop made small by the product's own operator, or, where nothing was done,
the small crop itself. The loss is Huber's, and cross-entropy for whether anything was done.
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_dino.measure.quality import psnr
from lib_dino.networks.cleaner import EMBEDDED, Cleaner, save_cleaner
from lib_dino.run.prepare import make_reference
from lib_dino.tiling.resample import resize

from .photographs import photographs
from .train_denoiser import Crops

HERE = Path(__file__).resolve().parent

SIDE_PX = 64
BATCH = 16
PEAK_LR = 1e-3
AVERAGE = 0.999
BEND = 0.04  # errors above it count linearly
LEAST = 0.8 / 255  # damage of less than that, root mean square, is none
FILTERS = [Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]


class Spoiled(Crops):
    """Random small pictures, spoiled and not."""

    def pair(self, side_px: int) -> tuple[Tensor, Tensor, Tensor]:
        """A spoiled picture, what it was, each (3, side_px, side_px) in [0, 1], and whether that can be told."""
        r = self.random
        factor = r.choice([1.0, 1.5, 2.0, 2.0, 3.0, 4.0])
        sharp = self.sharp(round(side_px * factor))
        small = sharp.resize((side_px, side_px), r.choice(FILTERS))
        if r.random() < 0.25:
            same = tensor(small)
            return same, same, torch.tensor(0.0)
        blur = r.uniform(0, 0.4)
        soft = tensor(small) if blur < 0.1 else blurred(tensor(small), blur)
        clean = resize(tensor(sharp)[None], (side_px, side_px))[0].clamp(0, 1)
        spoiled = self.damaged(soft)
        return spoiled, clean, torch.tensor(float((spoiled - soft).square().mean().sqrt() > LEAST))

    def damaged(self, image: Tensor) -> Tensor:
        """(3, H, W) with sensor noise, JPEG, or both."""
        r, kind = self.random, self.random.random()
        pixels = image.permute(1, 2, 0).numpy() * 255
        if kind < 0.7:
            grain = self.noise.normal(0, 1, pixels.shape)
            grey = r.choice([0.0, 0.0, 0.7])  # some noise is alike in all colours
            grain = (1 - grey) * grain + grey * grain[..., :1]
            pixels = pixels + r.uniform(0.5, 10) * grain
        small = Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))
        return tensor(jpeg(small, r.randint(45, 95), r.choice([0, 2])) if kind > 0.35 else small)

    def batches(self, count: int, side_px: int) -> tuple[Tensor, Tensor, Tensor]:
        """Spoiled and clean, each (count, 3, side_px, side_px) in [0, 1], and 1 where damage was done, (count,)."""
        spoiled, clean, damage = zip(*(self.pair(side_px) for _ in range(count)), strict=True)
        return torch.stack(spoiled), torch.stack(clean), torch.stack(damage)


def jpeg(image: Image.Image, quality: int, subsampling: int) -> Image.Image:
    """The picture after compression."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(stream).convert("RGB")


def tensor(image: Image.Image) -> Tensor:
    """(3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def blurred(image: Tensor, sigma: float) -> Tensor:
    """(3, H, W) after a small Gaussian."""
    taps = torch.exp(-torch.arange(-2, 3.0).square() / (2 * sigma**2))
    taps = taps / taps.sum()
    padded = torch.nn.functional.pad(image[:, None], (2, 2, 2, 2), mode="replicate")
    across = torch.nn.functional.conv2d(padded, taps.view(1, 1, 1, 5))
    return torch.nn.functional.conv2d(across, taps.view(1, 1, 5, 1))[:, 0]


def loss_of(cleaner: Cleaner, spoiled: Tensor, clean: Tensor, damage: Tensor) -> Tensor:
    """Mean squared error (Huber's) of the picture, and cross-entropy for whether there was damage.

    The absolute error will not do: untouched crops would outweigh all others, and nothing would ever be changed.
    """
    with torch.autocast("cpu", torch.bfloat16):
        image, odds = cleaner(spoiled)
    told = torch.nn.functional.binary_cross_entropy_with_logits(odds.float().mean((1, 2, 3)), damage)
    error = (image.float() - clean).abs()
    squared = torch.where(error < BEND, error.square() / BEND, 2 * error - BEND)
    return 100 * squared.mean() + 0.1 * told


def train(folder: Path, minutes: float) -> None:
    """Until the time is up, from where it stopped."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    cleaner, state = Cleaner(), folder / "state.pt"
    average = copy.deepcopy(cleaner)
    optimizer = torch.optim.AdamW(cleaner.parameters(), PEAK_LR, weight_decay=1e-3)
    step, spent = 0, 0.0
    if state.is_file():
        held = torch.load(state, weights_only=True)
        cleaner.load_state_dict(held["cleaner"])
        average.load_state_dict(held["average"])
        optimizer.load_state_dict(held["optimizer"])
        step, spent = held["step"], held["spent"]
    pictures, last, shown = Spoiled("train", step), time.monotonic(), 0.0
    while spent < 60 * minutes:
        done = spent / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * done))
        loss = loss_of(cleaner, *pictures.batches(BATCH, SIDE_PX))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(cleaner.parameters(), 1.0)
        optimizer.step()
        keep = min(AVERAGE, step / (step + 10))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), cleaner.parameters(), strict=True):
                kept.lerp_(new, 1 - keep)
        step, now = step + 1, time.monotonic()
        shown = float(loss.detach()) if step == 1 else 0.98 * shown + 0.02 * float(loss.detach())
        spent, last = spent + now - last, now
        if step % 100 == 0 or spent >= 60 * minutes:
            print(f"step {step}, {spent / 60:.1f} min, loss {shown:.4f}", flush=True)
            held = {"cleaner": cleaner.state_dict(), "average": average.state_dict(), "step": step, "spent": spent,
                    "optimizer": optimizer.state_dict()}  # fmt: skip
            torch.save(held, folder / "state.tmp")
            os.replace(folder / "state.tmp", state)


@torch.no_grad()
def evaluate() -> None:
    """PSNR of held-out photographs at half size before and after, by kind of damage."""
    kinds = {"clean": (0, 100), "noise 2": (2, 100), "noise 4": (4, 100), "noise 8": (8, 100), "JPEG 95": (0, 95),
             "JPEG 90": (0, 90), "JPEG 70": (0, 70), "JPEG 50": (0, 50), "noise 4, JPEG 70": (4, 70)}  # fmt: skip
    print("| source | PSNR before | after | taken off, /255 | left bitwise alone |")
    print("|---|---|---|---|---|")
    for kind, (noise, quality) in kinds.items():
        rows = []
        for row in photographs("heldout"):
            picture = Image.open(row.file).convert("RGB")
            picture = picture.crop((0, 0, min(picture.width, 768) // 4 * 4, min(picture.height, 768) // 4 * 4))
            small = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
            grain = np.random.default_rng(0).normal(0, noise, (small.height, small.width, 3)) if noise else 0
            spoiled = Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).round().astype(np.uint8))
            truth, given = tensor(small), tensor(spoiled if quality == 100 else jpeg(spoiled, quality, 2))
            reference = make_reference(given[None], strength=1.0)
            before, after = (min(99.0, psnr(image, truth)) for image in (given, reference.image[0]))
            rows.append((before, after, 255 * reference.removed_rms, reference.removed_rms == 0))
        before, after, removed, alone = np.mean(rows, 0)
        print(f"| {kind} | {before:.2f} | {after:.2f} | {removed:.2f} | {alone:.0%} |", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "export", "evaluate"])
    parser.add_argument("--folder", type=Path, default=HERE / "runs" / "clean")
    parser.add_argument("--minutes", type=float, default=45)
    options = parser.parse_args()
    if options.command == "train":
        train(options.folder, options.minutes)
    elif options.command == "evaluate":
        evaluate()
    else:
        cleaner = Cleaner()
        cleaner.load_state_dict(torch.load(options.folder / "state.pt", weights_only=True)["average"])
        save_cleaner(cleaner, EMBEDDED)


if __name__ == "__main__":
    main()

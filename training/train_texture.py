"""Train the network that expects textures (`lib_dino/embedded/texture`) on the pictures of `photographs.csv`.

    python -m training.train_texture data --count 3000     # crops and their energies, about 0.2 s each
    python -m training.train_texture train --steps 1800
    python -m training.train_texture export                # -> lib_dino/embedded/texture
    python -m training.train_texture evaluate              # the shipped one on the held-out photographs

A sharp crop is made small; what the small one cannot show of it is split into bands, and their local energies are what
the network learns to expect, with the spread of that expectation (Laplace, of the logarithm). Three tenths of the crops
are drawings: shapes, lines and letters with hard edges, which photographs hardly have.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lib_dino.networks.texture_net import (
    BANDS,
    CENTRE,
    DIRECTIONS,
    EMBEDDED,
    EPS,
    SCALE,
    SPREAD_PX,
    TextureNet,
    embedded_texture,
    energies,
    expected,
    save_texture,
    source_channels,
    split,
    unseen,
)
from lib_dino.run.finish import match_texture
from lib_dino.tiling.resample import resize

from .photographs import photographs
from .train_clean import Spoiled, jpeg, tensor

HERE = Path(__file__).resolve().parent

SIDES = {56: 0.25, 112: 0.45, 224: 0.3}
"""Sides of small crops, pixels, and how often."""
FACTORS = {2.0: 6.0, 4.0: 5.0, 1.5: 1.0, 3.0: 1.5, 6.0: 0.5}
BATCHES = {56: 32, 112: 16, 224: 4}
LARGEST_PX = 900
DRAWN = 0.3
LEARNING_RATE = 2e-3
MIRRORED = [0, 3, 2, 1]  # what directions become in a mirror

Item = dict[str, Any]


# ---------------------------------------------------------------- data


def drawing(side_px: int, rng: random.Random) -> Image.Image:
    """Shapes, lines and letters of random colours, drawn at twice the size and made small."""
    large = 2 * side_px
    image = Image.new("RGB", (large, large), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(3, 25)):
        x, y, size = rng.randrange(large), rng.randrange(large), round(large * rng.uniform(0.02, 0.4))
        outline, width = _colour(rng), rng.randint(1, 10)
        kind = rng.choice(["ellipse", "rectangle", "line", "letters", "hatching"])
        if kind in ("ellipse", "rectangle"):
            getattr(draw, kind)((x, y, x + size, y + size), fill=_colour(rng), outline=outline, width=width)
        elif kind == "line":
            draw.line((x, y, rng.randrange(large), rng.randrange(large)), fill=outline, width=width)
        elif kind == "letters":
            text = "".join(rng.choice("ABCDEFGHIKLMNOPRSTUVWabcdefghiklmnoprstuvwy 0123456789") for _ in range(12))
            draw.text((x - size, y), text, fill=outline, font=ImageFont.load_default(size=max(8, size // 2)))
        else:
            for step in range(0, size, max(2, width)):
                draw.line((x + step, y, x + step, y + size), fill=outline, width=1)
    turned = image.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC)
    return turned.resize((side_px, side_px), Image.Resampling.LANCZOS)


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def item(crops: Spoiled) -> Item:
    """One small crop, uint8, with the factor and the log energies, NaN where the factor has no such band."""
    r = crops.random
    while True:
        (side,), (factor,) = r.choices(list(SIDES), SIDES.values()), r.choices(list(FACTORS), FACTORS.values())
        if (large := int(side * factor)) <= LARGEST_PX:
            break
    drawn = r.random() < DRAWN
    whole = tensor(drawing(large, r) if drawn else crops.sharp(large))[None]
    small = resize(whole, (side, side)).clamp(0, 1)
    if r.random() < 0.5:
        kind = r.choice([Image.Resampling.BOX, Image.Resampling.LANCZOS])
        small = tensor(_image(whole).resize((side, side), kind))[None]
    if r.random() < 0.1:
        small = tensor(jpeg(_image(small), r.randint(80, 98), 0))[None]
    found = energies(split(unseen(whole, (side, side)), factor), SPREAD_PX * factor)
    found = resize(found.transpose(0, 1), (side // 2, side // 2))[0].clamp(min=0)
    log = torch.full((BANDS, side // 2, side // 2), torch.nan)
    log[: len(found)] = (found + EPS).log()
    return {"src": (small[0] * 255).round().byte(), "E": log.half(), "f": factor}


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture[0].permute(1, 2, 0) * 255).round().byte().numpy())


@torch.no_grad()
def make_data(folder: Path, role: str, count: int) -> None:
    """`count` items of one role into a file."""
    folder.mkdir(parents=True, exist_ok=True)
    crops, items = Spoiled(role, 1 if role == "train" else 2), []
    while len(items) < count:
        items.append(item(crops))
        if len(items) % 200 == 0 or len(items) == count:
            print(role, len(items), flush=True)
            torch.save(items, folder / "data.tmp")
            os.replace(folder / "data.tmp", folder / f"{role}.pt")


# ---------------------------------------------------------------- training


def load_data(path: Path) -> list[Item]:
    """Items with what the network reads of them."""
    items: list[Item] = torch.load(path, weights_only=True)
    for each in items:
        each["x"] = source_channels(each["src"][None].float() / 255)[0].half()
    return items


def mirrored(each: Item) -> tuple[Tensor, Tensor]:
    """Channels and energies of an item's mirror image."""
    x, log = each["x"].flip(-1), each["E"].flip(-1)
    size = x.shape[-2:]
    pixels = x[:12].view(3, 2, 2, *size).flip(2).reshape(12, *size)
    own = x[12:].view(-1, DIRECTIONS, *size)[:, MIRRORED].reshape(-1, *size)
    return torch.cat([pixels, own]), log.view(-1, DIRECTIONS, *size)[:, MIRRORED].reshape(BANDS, *size)


def loss_of(net: TextureNet, items: list[Item], *, train: bool) -> tuple[Tensor, float]:
    """Negative log-likelihood, and the mean absolute error of the log energy."""
    pairs = [mirrored(i) if train and random.random() < 0.5 else (i["x"], i["E"]) for i in items]
    shown, wanted = (torch.stack(list(part)).float() for part in zip(*pairs, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        found = net(shown, torch.tensor([i["f"] for i in items]))
    known = ~wanted.isnan()
    mean, log_spread = found.float().chunk(2, 1)
    error = F.smooth_l1_loss(mean, (torch.nan_to_num(wanted) - CENTRE) / SCALE, reduction="none", beta=0.1)
    log_spread = log_spread.clamp(-4, 2)
    likelihood = error * (-log_spread).exp() + log_spread
    return (likelihood * known).sum() / known.sum(), float((error.detach() * known).sum() / known.sum()) * SCALE


def train(folder: Path, steps: int) -> None:
    """From scratch; the data fit into memory."""
    torch.manual_seed(0)
    random.seed(0)
    training, held = load_data(folder / "train.pt"), load_data(folder / "heldout.pt")
    by_side = {side: [i for i in training if i["src"].shape[-1] == side] for side in SIDES}
    net = TextureNet()
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.03)
    for step in range(steps):
        (side,) = random.choices(list(SIDES), SIDES.values())
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 100) * (1 - step / steps)
        loss, _ = loss_of(net, random.sample(by_side[side], BATCHES[side]), train=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 300 == 0 or step + 1 == steps:
            with torch.no_grad():
                errors = [(i["f"], loss_of(net, [i], train=False)[1]) for i in held]
            shown = {f: round(float(np.mean([e for g, e in errors if g == f])), 3) for f in (2.0, 4.0)}
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}, held-out error {shown}", flush=True)
            torch.save(net.state_dict(), folder / "state.pt")


@torch.no_grad()
def evaluate() -> None:
    """How much of a faithful sharp picture is left, and how close the expectation is, on held-out middles of 448 px."""
    net = embedded_texture()
    print("| enlargement | error of the log energy | unseen detail kept (amplitude) | PSNR after |\n|---|---|---|---|")
    for factor in (2.0, 4.0):
        rows = []
        for row in photographs("heldout"):
            picture = Image.open(row.file).convert("RGB")
            side = min(448, *picture.size) // 8 * 8
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            truth = tensor(picture.crop((left, top, left + side, top + side)))[None]
            size = (round(side / factor), round(side / factor))
            small = (resize(truth, size).clamp(0, 1) * 255).round() / 255
            wanted = expected(net, small, factor)
            true = energies(split(unseen(truth, size), factor), SPREAD_PX * factor)
            shown = F.interpolate(wanted.log, size=(side, side), mode="bilinear")
            after = match_texture(truth, wanted, size, factor, strength=1.0)
            kept = float(unseen(after, size).square().mean() / unseen(truth, size).square().mean()) ** 0.5
            error = float((shown - (true + EPS).log()).abs().mean())
            rows.append((error, kept, -10 * np.log10(max(1e-10, float((after - truth).square().mean())))))
        print(f"| {factor:g}x | " + " | ".join(f"{v:.3f}" for v in np.mean(rows, 0)) + " |", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["data", "train", "export", "evaluate"])
    parser.add_argument("--folder", type=Path, default=HERE / "runs" / "texture")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=1800)
    options = parser.parse_args()
    if options.command == "data":
        make_data(options.folder, "train", options.count)
        make_data(options.folder, "heldout", options.count // 12)
    elif options.command == "train":
        train(options.folder, options.steps)
    elif options.command == "export":
        net = TextureNet()
        net.load_state_dict(torch.load(options.folder / "state.pt", weights_only=True))
        save_texture(net, EMBEDDED)
    else:
        evaluate()


if __name__ == "__main__":
    main()

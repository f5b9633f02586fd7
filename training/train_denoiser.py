"""Train the embedded denoiser (`lib_dino/embedded/denoiser`) on the pictures of `photographs.csv`.

    python -m training.train_denoiser train --minutes 110      # resumes training/runs/denoiser/state.pt if it is there
    python -m training.train_denoiser export                   # its averaged weights -> lib_dino/embedded/denoiser

The network is trained on the states an img2img run passes through. A sharp crop x0 and the same crop made soft, y
(reduced by a random filter and factor, now and then with JPEG or sensor noise, and enlarged again), are mixed with
noise: x = x0 + u * (y - x0) + u * sigma_start * noise, u in (0, 1]. The target is x0. One thread is enough; the
schedule follows the time budget, so a slower machine gets fewer steps, not a longer run.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_dino.networks.denoiser import EMBEDDED, FILES, SIGMA_DATA, OneToken, predict_clean

from .photographs import photographs

HERE = Path(__file__).resolve().parent

Resampling = Image.Resampling
CONFIG: dict[str, Any] = {
    "in_channels": 12,
    "out_channels": 12,
    "block_out_channels": (64, 96, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",  # a residual block; the CrossAttn one would attend between places
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "only_cross_attention": True,  # no attention between places: cost and answer do not depend on the tile's size
    "cross_attention_dim": 64,
    "attention_head_dim": (2, 3, 4),  # number of heads, 32 channels each
    # One group and a large epsilon: the divisor hardly depends on what else is in the tile.
    "norm_num_groups": 1,
    "norm_eps": 10.0,
}
KIND_WEIGHT = {"photo": 1.0, "gray": 0.3, "abstract": 0.2}
# (share of the run from which it holds, crops per step, crop side in pixels)
STAGES = ((0.0, 16, 64), (0.2, 16, 96), (0.8, 9, 128), (0.93, 4, 192))
MARGIN_PX = 8  # softened with the crop, then cut off, so that no crop border is in it
COARSE = 0.25  # weight of the coarse loss
PEAK_LR = {"muon": 2e-3, "adam": 1.5e-3}


# ---------------------------------------------------------------- pictures


class Crops:
    """Random sharp and softened crops of the training pictures, as float arrays in [-1, 1]."""

    def __init__(self, role: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.noise = np.random.default_rng(seed)
        self.pictures: list[Image.Image] = []
        self.weights: list[float] = []
        for row in photographs(role):
            whole = Image.open(row.file).convert("RGB")
            for factor, share in ((1.0, 0.55), (0.7, 0.3), (0.5, 0.15)):
                size = (round(whole.width * factor), round(whole.height * factor))
                if min(size) < 288 and factor < 1:
                    continue
                self.pictures.append(whole if factor == 1 else whole.resize(size, Resampling.LANCZOS))
                self.weights.append(share * KIND_WEIGHT[row.kind] * math.sqrt(whole.width * whole.height / 1e6))

    def sharp(self, side_px: int) -> Image.Image:
        """A crop, turned and mirrored at random; of two candidates the livelier one is likelier."""
        (picture,) = self.random.choices(self.pictures, self.weights)
        side = min(side_px, *picture.size)
        candidates = []
        for _ in range(2):
            left = self.random.randint(0, picture.width - side)
            top = self.random.randint(0, picture.height - side)
            candidates.append(picture.crop((left, top, left + side, top + side)))
        if side < side_px:  # a picture smaller than the crop
            candidates = [crop.resize((side_px, side_px), Resampling.LANCZOS) for crop in candidates]
        candidates.sort(key=liveliness)
        crop = candidates[-1] if self.random.random() < 0.75 else candidates[0]
        turn = self.random.choice([None, *Image.Transpose])
        return self.tinted(crop if turn is None else crop.transpose(turn))

    def tinted(self, crop: Image.Image) -> Image.Image:
        """Light change of brightness, contrast and colour balance in a third of the crops."""
        if self.random.random() > 1 / 3:
            return crop
        gain = self.random.uniform(0.75, 1.25) * self.noise.uniform(0.92, 1.08, 3)
        shift = self.random.uniform(-20, 20)
        table = [np.clip((np.arange(256) - 128) * g + 128 + shift, 0, 255) for g in gain]
        return crop.point([round(float(v)) for channel in table for v in channel])

    def soft(self, sharp: Image.Image) -> Image.Image:
        """The crop reduced and enlarged again, as a small source picture would come to us."""
        r = self.random
        (factor,) = r.choices([1.0, 1.5, 2.0, 3.0, 4.0], [0.08, 0.14, 0.5, 0.14, 0.14])
        if factor not in (1.0, 2.0):
            factor *= r.uniform(0.9, 1.1)
        size = tuple(round(side / factor) for side in sharp.size)
        filters = [Resampling.BOX, Resampling.BICUBIC, Resampling.LANCZOS, Resampling.BILINEAR]
        small = sharp.resize(size, r.choices(filters, [0.25, 0.35, 0.2, 0.2])[0])
        spoiled = r.random()
        if spoiled < 0.1:
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=r.randint(60, 95), subsampling=r.choice([0, 2]))
            small = Image.open(stream).convert("RGB")
        elif spoiled < 0.2:
            grain = self.noise.normal(0, r.uniform(0.5, 4), (*small.size[::-1], 3))
            small = Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).round().astype(np.uint8))
        return small.resize(sharp.size, r.choice([Resampling.BICUBIC, Resampling.LANCZOS]))

    def batch(self, count: int, side_px: int) -> tuple[Tensor, Tensor]:
        """Sharp and soft crops, each (count, 3, side_px, side_px) in [-1, 1]."""
        pairs = []
        inner = slice(MARGIN_PX, MARGIN_PX + side_px)
        for _ in range(count):
            sharp = self.sharp(side_px + 2 * MARGIN_PX)
            both = np.stack([np.asarray(sharp), np.asarray(self.soft(sharp))])
            pairs.append(both[:, inner, inner])
        tensor = torch.from_numpy(np.stack(pairs, 1)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        return tensor[0], tensor[1]


def liveliness(crop: Image.Image) -> float:
    """Mean step between neighbouring grey pixels."""
    grey = np.asarray(crop.convert("L"), dtype=np.float32)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def states(sharp: Tensor, soft: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What img2img runs of random strength show the network: noisy pictures and their noise levels, (B,)."""
    count = len(sharp)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    usual = uniform(0, 1) < 0.75
    start = torch.where(usual, uniform(math.log(0.15), 0.0), uniform(math.log(0.08), math.log(4.0))).exp()
    position = torch.where(uniform(0, 1) < 0.2, torch.ones(count), uniform(0.02, 1))
    mix = position.view(-1, 1, 1, 1)
    sigma = start * position
    noise = torch.randn(sharp.shape, generator=generator)
    return sharp + mix * (soft - sharp) + sigma.view(-1, 1, 1, 1) * noise, sigma


def losses(unet: Any, sharp: Tensor, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """EDM-weighted squared error of each sample, and that of its coarse parts, both (B,).

    The weight stops growing below sigma = 0.03. Coarse parts are means over 2, 4, 8 and 16 px, weighted by that
    side: a blotch is a small error per pixel but plain to see, and what is coarse can be told through the noise.
    """
    level = sigma.clamp(min=0.03)
    weight = (level**2 + SIGMA_DATA**2) / (level * SIGMA_DATA) ** 2
    with torch.autocast("cpu", torch.bfloat16):
        error = predict_clean(unet, noisy, sigma) - sharp
    coarse = sum(px * F.avg_pool2d(error, px).square().mean((1, 2, 3)) for px in (2, 4, 8, 16))
    return weight * error.square().mean((1, 2, 3)), weight * coarse


# ---------------------------------------------------------------- optimiser


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by five Newton-Schulz steps (Jordan 2024); kernels as (out, in * k * k) matrices.

    Updates are scaled to the root mean square AdamW's have (0.2), so that both take like learning rates.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every kernel."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:  # queries and keys: over one token they change nothing
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                update = orthogonal(direction) * 0.2 * math.sqrt(max(direction.shape))
                p.add_(update.view_as(p), alpha=-group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal matrix next to this one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).float()


def optimisers(unet: Any) -> dict[str, torch.optim.Optimizer]:
    """Muon for kernels and matrices inside the network, AdamW for its ends, gains and biases."""
    muon, adam = [], []
    for name, p in unet.named_parameters():
        inside = p.ndim >= 2 and min(p.shape[:2]) >= 32 and not name.startswith(("conv_in", "conv_out", "time_emb"))
        (muon if inside else adam).append(p)
    return {
        "muon": Muon(muon, PEAK_LR["muon"]),
        "adam": torch.optim.AdamW(adam, PEAK_LR["adam"], betas=(0.9, 0.99), weight_decay=0.0),
    }


def learning_rate_share(progress: float, step: int) -> float:
    """Warm-up over 100 steps, level for a third of the run, then straight down to zero."""
    return min(1.0, (step + 1) / 100, (1 - progress) / 0.67)


# ---------------------------------------------------------------- run


def new_unet() -> Any:
    """A UNet with random weights, its normalisation gains set so that a unit signal stays one."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**CONFIG)
    for module in unet.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.constant_(module.weight, math.sqrt(1 + module.eps))
    torch.nn.init.zeros_(unet.conv_out.weight)
    unet.set_attn_processor(OneToken())
    return unet.to(memory_format=torch.channels_last)


def heldout_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Fixed held-out samples: sharp, noisy, sigma; the ruler of the training log, never trained on."""
    sharp, soft = Crops("heldout", seed=1).batch(48, 128)
    noisy, sigma = states(sharp, soft, torch.Generator().manual_seed(1))
    return sharp, noisy, sigma


@torch.no_grad()
def heldout_loss(unet: Any, samples: tuple[Tensor, Tensor, Tensor]) -> float:
    """Mean loss on `heldout_batch()`."""
    parts = [losses(unet, *(t[i : i + 12] for t in samples))[0] for i in range(0, len(samples[0]), 12)]
    return float(torch.cat(parts).mean())


def train(minutes: float, folder: Path, seed: int, save_every_s: float = 300) -> None:
    """Train until `minutes` of work are done, over all resumed runs together."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    unet = new_unet()
    average = copy.deepcopy(unet).requires_grad_(False)
    opts = optimisers(unet)
    step, spent_s = 0, 0.0
    if (folder / "state.pt").exists():
        saved = torch.load(folder / "state.pt", weights_only=True)
        unet.load_state_dict(saved["unet"])
        average.load_state_dict(saved["average"])
        for name, opt in opts.items():
            opt.load_state_dict(saved[name])
        step, spent_s = saved["step"], saved["spent_s"]
    crops = Crops("train", seed + step)
    generator = torch.Generator().manual_seed(seed + step)
    ruler = heldout_batch()
    params = sum(p.numel() for p in unet.parameters())
    say(folder, f"{params / 1e6:.2f} M parameters, {len(crops.pictures)} pictures and reductions, step {step}")
    last = saved_at = time.monotonic()
    recent: list[tuple[float, float]] = []
    while spent_s < minutes * 60:
        progress = spent_s / (minutes * 60)
        _, count, side = max(stage for stage in STAGES if stage[0] <= progress)
        sharp, soft = crops.batch(count, side)
        noisy, sigma = states(sharp, soft, generator)
        fine, coarse = (part.mean() for part in losses(unet, sharp, noisy, sigma))
        (fine + COARSE * coarse).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for name, opt in opts.items():
            for group in opt.param_groups:
                group["lr"] = PEAK_LR[name] * learning_rate_share(progress, step)
            opt.step()
            opt.zero_grad()
        step += 1
        follow(average, unet, min(0.999, (step + 1) / (step + 10)))
        recent.append((float(fine.detach()), float(coarse.detach())))
        now = time.monotonic()
        spent_s, last = spent_s + now - last, now
        if step % 100 == 0:
            parts = "{:.4f}, coarse {:.4f}".format(*np.mean(recent, axis=0))
            say(folder, f"step {step} {spent_s / 60:.1f} min, crops {count} x {side} px, loss {parts}")
            recent.clear()
        if now - saved_at > save_every_s or spent_s >= minutes * 60:
            say(folder, f"step {step} {spent_s / 60:.1f} min, held-out loss {heldout_loss(average, ruler):.4f}")
            state = {"unet": unet.state_dict(), "average": average.state_dict(), "step": step, "spent_s": spent_s}
            state |= {name: opt.state_dict() for name, opt in opts.items()}
            torch.save(state, folder / "state.tmp")
            os.replace(folder / "state.tmp", folder / "state.pt")
            saved_at = time.monotonic()


@torch.no_grad()
def follow(average: Any, unet: Any, decay: float) -> None:
    """Move the averaged weights towards the current ones."""
    torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)


def say(folder: Path, line: str) -> None:
    """Print a line and keep it in the run's log."""
    print(line, flush=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def export(folder: Path, target: Path) -> None:
    """Write the run's averaged weights as float16, each file in one rename."""
    saved = torch.load(folder / "state.pt", weights_only=True)
    unet = new_unet()
    unet.load_state_dict(saved["average"])
    unet.half().save_pretrained(folder / "export")
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "export" / FILES[0]).read_text())
    config.pop("_name_or_path", None)
    (target / "config.tmp").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    os.replace(target / "config.tmp", target / FILES[0])
    weights = load_file(folder / "export" / FILES[1])
    save_file(weights, target / "weights.tmp", {"format": "pt"})
    (target / "weights.tmp").chmod(0o644)  # safetensors makes files private
    os.replace(target / "weights.tmp", target / FILES[1])
    size = (target / FILES[1]).stat().st_size
    say(folder, f"exported step {saved['step']}, {size / 1e6:.1f} MB")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "export"])
    parser.add_argument("--minutes", type=float, default=110, help="time budget of the whole run (default %(default)s)")
    parser.add_argument("--run", type=Path, default=HERE / "runs" / "denoiser", help="the run's state and log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        train(args.minutes, args.run, args.seed)
    else:
        export(args.run, EMBEDDED)


if __name__ == "__main__":
    main()

"""Train a DINO adapter for a diffusion model from a folder of photographs.

    python -m training.train_adapter train --base model.safetensors --photos PHOTOS --out RUN      # resumes RUN
    python -m training.train_adapter export --out RUN --file adapter.safetensors

`--base` is a diffusers folder or a single file of SD 1.5 or SDXL, or `embedded`. The model and DINOv2 are frozen; what
learns is the projector and, for each cross-attention layer, keys and values for the image tokens, the values
beginning at zero: an untrained adapter changes nothing. docs/training/adapter.md says what it takes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib_dino.adapter.format import AdapterInfo
from lib_dino.adapter.injection import Adapter, Injection
from lib_dino.adapter.load import new_layers
from lib_dino.adapter.projectors import PLACE_DIM, PatchTokens, feature_dim, picture_features
from lib_dino.networks.dinov2 import Dinov2, fingerprint, load_dinov2

from .adapter_bases import Base, layer_shapes, load_base
from .adapter_data import Batch, Photographs


@dataclass
class Trainer:
    """One run: what learns, what it learns from, and how far it is.

    Attributes:
        seed: with the step's number it decides everything random.
        steps: of the optimiser, over which the learning rate rises and falls.
        accumulate: batches to one of them.
        drop: share of samples that see zero tokens, as unconditional rows will.
        average: exponential average of the weights, which is what is exported.
    """

    base: Base
    dino: Dinov2
    adapter: Adapter
    photographs: Photographs
    accelerator: Any
    optimiser: torch.optim.Optimizer
    seed: int
    steps: int
    count: int
    accumulate: int
    peak: float
    drop: float
    average: dict[str, Tensor]
    step: int = 0
    spent_s: float = 0.0
    minutes: float = math.inf
    local: bool = False

    def progress(self) -> float:
        """How much of the run is done, 0 to 1: by steps, or by time where that is further."""
        return min(1.0, max(self.step / self.steps, self.spent_s / 60 / self.minutes))

    def one_step(self) -> float:
        """One step of the optimiser; its mean loss."""
        rate = self.peak * min(1.0, (self.step + 1) / 50, max(1e-3, (1 - self.progress()) / 0.5))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        total = 0.0
        for part in range(self.accumulate):
            number = self.step * self.accumulate + part
            with self.accelerator.accumulate(self.adapter):
                loss = self.loss(self.photographs.batch(number, self.count), number)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.adapter.parameters(), 1.0)
                self.optimiser.step()
                self.optimiser.zero_grad()
                restrict(self.accelerator.unwrap_model(self.adapter), local=self.local)
            total += float(loss.detach()) / self.accumulate
        self.step += 1
        self._follow(min(0.998, self.step / (self.step + 10)))
        return total

    def loss(self, batch: Batch, number: int) -> Tensor:
        """The base's loss on a batch with its own tokens."""
        generator = torch.Generator().manual_seed(hash((self.seed, number)) % 2**63)
        torch.manual_seed(generator.initial_seed())  # for whatever the base's autoencoder draws
        kept = (torch.rand(len(batch.sharp), generator=generator) >= self.drop).to(self.accelerator.device)
        with self.accelerator.autocast():
            return self.base.loss(batch, self.injector(batch, kept), generator)

    def injector(self, batch: Batch, kept: Tensor) -> Callable[..., Injection]:
        """Makes injections of the batch's tokens; those not `kept` are zeros."""
        adapter = self.accelerator.unwrap_model(self.adapter)
        tokens = batch_tokens(adapter, self.dino, batch, self.accelerator.device) * kept.view(-1, 1, 1)
        side = batch.soft.shape[-1]
        span = (side / self.base.cell_px, side / self.base.cell_px)
        grid = adapter.grid(batch.soft, batch.scale)

        def inject(*, rows: Tensor | None = None, origin: Tensor | None = None) -> Injection:
            held = tokens if rows is None else tokens[rows.to(tokens.device)]
            return Injection(adapter, held, 1.0, grid=grid, span=span, origin=origin)

        return inject

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        for name, value in self.accelerator.unwrap_model(self.adapter).state_dict().items():
            self.average[name].lerp_(value.to(self.average[name]), 1 - decay)

    def save(self, folder: Path) -> None:
        """Write everything that a resumed run needs, in one rename."""
        state = {
            "adapter": self.accelerator.unwrap_model(self.adapter).state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent_s": self.spent_s,
        }
        torch.save(state, folder / "state.tmp")
        os.replace(folder / "state.tmp", folder / "state.pt")

    def resume(self, folder: Path) -> None:
        """Go on from `save`, if there is anything to go on from."""
        if not (folder / "state.pt").is_file():
            return
        state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
        self.accelerator.unwrap_model(self.adapter).load_state_dict(state["adapter"])
        self.average = {name: value.float() for name, value in state["average"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.spent_s = state["step"], state["spent_s"]


@torch.no_grad()
def restrict(adapter: Adapter, *, local: bool) -> None:
    """Keep places out of the values: they decide who looks where, and are nothing to see.

    With `local` nothing else decides it: neither what a patch holds nor the layer's own query. Every place then sees
    the patches around it, which an adapter cannot use to do the same for every picture.
    """
    for layer in adapter.layers:
        layer.to_v_ip.weight[:, -PLACE_DIM:] = 0
        if local:
            layer.to_k_ip.weight[:, :-PLACE_DIM] = 0
            layer.to_q_ip.weight[:, :-PLACE_DIM] = -torch.eye(len(layer.to_q_ip.weight))


def batch_tokens(adapter: Adapter, dino: Dinov2, batch: Batch, device: torch.device) -> Tensor:
    """Tokens of the soft pictures at their sources' scale, with gradients to the projector."""
    side = max(1, round(batch.soft.shape[-1] / batch.scale))
    features = picture_features(adapter.info, dino, batch.soft.to(device), (side, side))
    tokens: Tensor = adapter.image_proj(features)
    return tokens


def new_adapter(base: Base, dino: Dinov2, options: argparse.Namespace) -> Adapter:
    """An adapter that changes nothing yet."""
    layers = tuple(options.layers or default_layers(dino.depth))
    info = AdapterInfo(dino.name, fingerprint(dino), layers, *options.px, base.name)
    shapes, heads = layer_shapes(base.unet)
    projector = PatchTokens(feature_dim(info, dino), base.width, options.inner)
    adapter = Adapter(info, projector, new_layers(shapes, heads, width=base.width), name="in training")
    restrict(adapter, local=options.local)
    return adapter


def default_layers(depth: int) -> list[int]:
    """The last block, and two earlier ones, which know better where things are."""
    return [max(1, depth // 4), max(2, depth // 2), depth]


def build(options: argparse.Namespace) -> Trainer:
    """The run that the command line describes, resumed where it was begun."""
    from accelerate import Accelerator

    torch.manual_seed(options.seed)
    random.seed(options.seed)
    accelerator = Accelerator(
        mixed_precision=options.precision, gradient_accumulation_steps=options.accumulate, cpu=options.cpu
    )
    dino = load_dinov2(options.features, device=accelerator.device)
    base = load_base(options.base, dino, accelerator, options)
    adapter = new_adapter(base, dino, options)
    optimiser = torch.optim.AdamW(adapter.parameters(), options.rate, betas=(0.9, 0.99), weight_decay=options.decay)
    prepared, optimiser = accelerator.prepare(adapter, optimiser)
    trainer = Trainer(
        base, dino, prepared, Photographs(options.photos, options.side, options.seed, clean=options.clean),
        accelerator, optimiser, options.seed, options.steps, options.batch, options.accumulate, options.rate,
        options.drop, {n: v.detach().cpu().float().clone() for n, v in adapter.state_dict().items()},
        minutes=options.minutes, local=options.local,
    )  # fmt: skip
    trainer.resume(options.out)
    return trainer


def train(options: argparse.Namespace) -> Trainer:
    """Train to the last step, or for as long as `--minutes` allows; the finished trainer."""
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = build(options)
    adapter = trainer.accelerator.unwrap_model(trainer.adapter)
    (options.out / "info.json").write_text(json.dumps(adapter.info.to_metadata(), indent=2) + "\n")
    size = sum(p.numel() for p in adapter.parameters())
    say(options.out, f"{size / 1e6:.2f} M parameters, {len(trainer.photographs.files)} pictures, step {trainer.step}")
    last = saved = time.monotonic()
    recent: list[float] = []
    while trainer.progress() < 1 and trainer.step < (options.stop_at or trainer.steps):
        recent.append(trainer.one_step())
        now = time.monotonic()
        trainer.spent_s, last = trainer.spent_s + now - last, now
        if trainer.step % options.say_every == 0:
            left = trainer.spent_s * (1 / trainer.progress() - 1) / 60
            mean = sum(recent) / len(recent)
            say(options.out, f"step {trainer.step}/{trainer.steps}, loss {mean:.4f}, about {left:.0f} min left")
            recent.clear()
        if now - saved > 60 * options.save_minutes:
            trainer.save(options.out)
            saved = time.monotonic()
    trainer.save(options.out)
    return trainer


def export(options: argparse.Namespace) -> None:
    """Write a run's averaged weights as an adapter file."""
    adapter = read_run(options.out)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    adapter.save(options.file)
    say(options.out, f"wrote {options.file}, {options.file.stat().st_size / 1e6:.2f} MB")


def read_run(folder: Path) -> Adapter:
    """The averaged adapter of a run."""
    from lib_dino.adapter.load import from_tensors

    state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    metadata = json.loads((folder / "info.json").read_text())
    info = AdapterInfo.from_metadata(metadata, name=str(folder / "info.json"))
    return from_tensors(info, Adapter.file_names(state["average"]), name=folder.name)


def say(folder: Path, line: str) -> None:
    """Print a line and keep it in the run's log."""
    print(line, flush=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("command", choices=["train", "export"])
    made.add_argument("--file", type=Path, help="adapter file to write (export)")
    made.add_argument("--out", type=Path, required=True, help="folder of the run's state and log")
    made.add_argument("--base", default="embedded", help="diffusers folder, single file, or embedded")
    made.add_argument("--photos", type=Path, help="folder of photographs; NAME.txt beside one is its caption")
    made.add_argument("--features", help="DINOv2 weights: folder, file or hub id (default: the network that ships)")
    made.add_argument("--local", action="store_true", help="each place looks at the patches around it alone")
    made.add_argument("--layers", type=int, nargs="+", help="DINOv2 blocks (default: a quarter, half and all deep)")
    made.add_argument("--px", type=int, nargs=2, default=(224, 518), help="least and most side DINOv2 sees")
    made.add_argument("--inner", type=int, default=512, help="width inside the projector")
    made.add_argument("--side", type=int, default=512, help="of the crops, pixels; 1024 for SDXL")
    made.add_argument("--batch", type=int, default=4)
    made.add_argument("--accumulate", type=int, default=1, help="batches to a step")
    made.add_argument("--steps", type=int, default=20_000)
    made.add_argument("--minutes", type=float, default=math.inf, help="stop after so long, the rate falling in time")
    made.add_argument("--rate", type=float, default=1e-4, help="peak learning rate")
    made.add_argument("--decay", type=float, default=0.01, help="weight decay")
    made.add_argument("--drop", type=float, default=0.05, help="share of samples without image, and without text")
    made.add_argument("--clean", type=float, default=0.5, help="share of samples only made small")
    made.add_argument("--denoise", type=float, nargs=2, default=(0.05, 0.6), help="range that is trained for")
    made.add_argument("--precision", choices=["no", "fp16", "bf16"], default="no")
    made.add_argument("--checkpointing", action="store_true", help="less memory, a third more time")
    made.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--say-every", type=int, default=50)
    made.add_argument("--save-minutes", type=float, default=5)
    made.add_argument("--stop-at", type=int, help="stop at this step for now; a later call goes on")
    return made


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(argv)
    if options.command == "export":
        if options.file is None:
            raise SystemExit("export needs the file to write: --file adapter.safetensors")
        export(options)
    elif options.photos is None:
        raise SystemExit("train needs --photos, a folder of photographs.")
    else:
        train(options)


if __name__ == "__main__":
    main()

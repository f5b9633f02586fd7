"""The source cleaned before anything is held to it: noise and JPEG damage taken off.

Consistency makes a result show its source again, damage included; the diffusion model takes it off and the final pass
puts it back. So a small network estimates what the source was before it was spoiled, and the result is held to that.
Residual learning as in DnCNN (Zhang et al., 2017), trained by `training/train_clean.py` on photographs made small and
spoiled. A source that is clean already is left bitwise alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sampling.consistency import dead_zone, source_noise
from ..tiling.chunks import windows
from ..tiling.padding import pad_symmetric
from .weights_file import load_net, save_net

EMBEDDED: Final = Path(__file__).parent.parent / "embedded" / "clean" / "model.safetensors"
VERSION: Final = 1

UNSURE, SURE = 3.0, 6.0
"""Log odds of damage: up to the one a source is taken for clean, from the other on all damage is taken off.

Of twelve held-out photographs eleven lie below 3 as they are, and one at 7 (a bird before a grainy ground); with noise
of 2/255 all lie above 3, as JPEG of quality 90. What is milder gains nothing from being cleaned.
"""

WINDOW_PX: Final = 512
MARGIN_PX: Final = 48
"""Larger sources are cleaned window by window; the margin is more than the network sees of a pixel's surroundings."""


@dataclass(frozen=True)
class Reference:
    """What a result is held to.

    Attributes:
        image: (1, 3, H, W) in [0, 1]; the source itself where it was clean.
        dead_zone: differences from it that are let stand, see `consistency.soft`; 0 for a cleaned source. Letting the
            estimate's own spread stand cost 0.5 dB and 18 % in feature distance on spoiled photographs.
        noise: estimated noise of the source as given, in units of the picture's range.
        taken: root mean square of what was taken off it, in the same units.
    """

    image: Tensor
    dead_zone: float
    noise: float
    taken: float


class Cleaner(nn.Module):
    """A picture to the clean one, and whether it was spoiled; convolutions on 2 x 2 pixel blocks."""

    def __init__(self, width: int = 64, blocks: int = 6) -> None:
        super().__init__()
        self.width, self.blocks = width, blocks
        self.first = nn.Conv2d(12, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, 16, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What a picture, (B, 3, H, W) in [0, 1] with even sides, was.

        Returns:
            The clean picture, (B, 3, H, W), and log odds of damage, (B, 1, H, W), which mean something when averaged
            over some 64 pixels square.
        """
        x = self.first(F.pixel_unshuffle(2 * image - 1, 2))
        for block in self.body:
            x = x + block(x)
        found = F.pixel_shuffle(self.last(F.relu(x)), 2)
        return image + found[:, :3] / 8, found[:, 3:]


def load_cleaner(path: Path | None = None) -> Cleaner:
    """The cleaner in `path`, or the embedded one, frozen, float32.

    Raises:
        ModelError: the file is missing, damaged, or no cleaner.
    """
    lacks = "is no network that cleans sources"
    return load_net(EMBEDDED if path is None else path, Cleaner, kind="cleaner", version=VERSION, lacks=lacks)


def save_cleaner(cleaner: Cleaner, path: Path) -> None:
    """Write the cleaner as float16 safetensors, its shape in the metadata."""
    save_net(cleaner, path, kind="cleaner", version=VERSION, width=cleaner.width, blocks=cleaner.blocks)


@functools.lru_cache(maxsize=1)
def embedded_cleaner() -> Cleaner:
    """The one that ships, loaded once."""
    return load_cleaner()


@torch.no_grad()
def held_to(source: Tensor, *, strength: float, cleaner: Cleaner | None = None) -> Reference:
    """What a result of `source`, (1, 3, H, W) in [0, 1], is held to.

    Args:
        strength: share of the damage that is taken off, 0 to 1; 0 holds to the source itself, noise let stand.
        cleaner: None takes the embedded one.
    """
    noise = source_noise(source)
    if strength == 0:
        return Reference(source, dead_zone(noise), noise, 0.0)
    image, odds = _windowed(cleaner or embedded_cleaner(), source.float())
    # Part of the way where it is not sure, so that sources which hardly differ are treated alike.
    share = strength * min(1.0, max(0.0, (odds - UNSURE) / (SURE - UNSURE)))
    if share == 0:
        return Reference(source, 0.0, noise, 0.0)
    taken = share * float((image - source).square().mean().sqrt())
    return Reference(torch.lerp(source, image.to(source), share), 0.0, noise, taken)


def _windowed(cleaner: Cleaner, source: Tensor) -> tuple[Tensor, float]:
    """The clean picture and the mean log odds of damage."""
    height, width = source.shape[-2:]
    image, odds = source.clone(), 0.0
    # Sides and margins are even: the network works on pixel blocks.
    for window in windows((height, width), side=WINDOW_PX, margin=MARGIN_PX):
        part = source[..., window.seen_rows, window.seen_cols]
        found, logits = cleaner(pad_symmetric(part, part.shape[-2] % 2, part.shape[-1] % 2))
        inner = (..., window.inner_rows, window.inner_cols)
        image[..., window.rows, window.cols] = found[inner]
        odds += float(logits[inner].sum()) / (height * width)
    return image.clamp(0, 1), odds

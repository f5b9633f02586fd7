"""Cleaner: a small network that takes noise and JPEG damage off a picture.

Residual learning as in DnCNN (Zhang et al., 2017), trained by `training/train_clean.py` on photographs made small and
spoiled. `run/prepare.py` decides how much of its answer is used.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import arrays
from ..tiling.chunks import windows
from ..tiling.padding import pad_symmetric
from .weights_file import load_net, save_net

EMBEDDED: Final = Path(__file__).parent.parent / "embedded" / "clean" / "model.safetensors"
VERSION: Final = 1

WINDOW_PX: Final = 512
MARGIN_PX: Final = 48
"""Larger sources are cleaned window by window; the margin is more than the network sees of a pixel's surroundings."""


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
        """Estimate the clean picture of one, (B, 3, H, W) in [0, 1] with even sides.

        Returns:
            The clean picture, (B, 3, H, W), and log odds of damage, (B, 1, H, W), which mean something when averaged
            over some 64 pixels square.
        """
        x = self.first(F.pixel_unshuffle(2 * image - 1, 2))
        for block in self.body:
            x = x + block(x)
        answer = F.pixel_shuffle(self.last(F.relu(x)), 2)
        return image + answer[:, :3] / 8, answer[:, 3:]


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
def clean_windowed(cleaner: Cleaner, source: Tensor) -> tuple[Tensor, float]:
    """Clean a source, (1, 3, H, W) in [0, 1], window by window; with the mean log odds of damage."""
    height, width = source.shape[-2:]
    image, odds = arrays.zeros(source.shape, source.dtype), 0.0
    # Sides and margins are even: the network works on pixel blocks.
    for window in windows((height, width), side=WINDOW_PX, margin=MARGIN_PX):
        part = source[..., window.seen_rows, window.seen_cols]
        found, logits = cleaner(pad_symmetric(part, part.shape[-2] % 2, part.shape[-1] % 2))
        inner = (..., window.inner_rows, window.inner_cols)
        image[..., window.rows, window.cols] = found[inner].clamp(0, 1)
        odds += float(logits[inner].sum()) / (height * width)
        if arrays.is_large(*image.shape):
            arrays.release()
    return image, odds

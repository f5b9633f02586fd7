"""Conditioning of tiles by an adapter: what the core asks for, whatever host the model lives in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks.dinov2 import Dinov2
from .injection import Adapter, Injection

Install = Callable[[Injection], AbstractContextManager[None]]
"""Has a model look at an injection inside the block; nothing of it is left afterwards."""


@dataclass(frozen=True)
class Conditioning:
    """Shows a model, batch by batch, what tiles hold of the source; `run.Run` calls it.

    Attributes:
        adapter: made for the model and for `dino`.
        whole: the whole source, (1, 3, h, w) in [0, 1].
        strength: above 0 to 1.
        cell_px: result pixels to a side of a cell of the UNet's input; None where that is always the tile alone.
        install: as the model's home wants it.
    """

    adapter: Adapter
    dino: Dinov2
    whole: Tensor
    strength: float
    cell_px: int | None
    install: Install

    @contextmanager
    def __call__(self, tiles: Tensor, scale: float) -> Iterator[None]:
        """Tokens of `tiles`, (B, 3, h, w) in [0, 1] as plainly enlarged by `scale`, are looked at inside the block."""
        with torch.no_grad():
            tokens = self.adapter.tokens(self.dino, tiles, scale, self.whole)
        span = (tiles.shape[-2] / self.cell_px, tiles.shape[-1] / self.cell_px) if self.cell_px else None
        grid = self.adapter.grid(tiles, scale)
        with self.install(Injection(self.adapter, tokens, self.strength, grid=grid, span=span)):
            yield

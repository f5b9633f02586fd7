"""Image tokens for batches of tiles: what the core asks of an adapter, whatever host the model lives in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks.dinov2 import Dinov2
from .injection import Adapter, Injection

__all__ = ["ImageTokens", "Injection"]


@dataclass(frozen=True)
class ImageTokens:
    """An adapter with everything it needs to show a model the tiles of one source.

    Attributes:
        adapter: made for the model and for `dino`.
        dino: the feature network.
        whole: the whole source, (1, 3, h, w) in [0, 1].
        strength: above 0 to 1.
    """

    adapter: Adapter
    dino: Dinov2
    whole: Tensor
    strength: float

    @torch.no_grad()
    def of_tiles(self, plain: Tensor, scale: float) -> Injection:
        """Tokens of `plain`, (B, 3, h, w) in [0, 1], tiles of the source as plainly enlarged by `scale`."""
        tokens = self.adapter.tokens(self.dino, plain, scale, self.whole)
        return Injection(self.adapter, tokens, self.strength, grid=self.adapter.grid(plain, scale))

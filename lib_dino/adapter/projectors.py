"""Image tokens: DINOv2's features of a tile's region of the source, as the tokens an adapter's attention looks at.

Each patch gives one token, which also says where it lies, so that a place of the tile can find its own. Token tensors
are `(B, T, W)`, float32; zero tokens give zero keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AdapterError
from ..measure.features import grid_size, normalised
from ..networks.dinov2 import Dinov2
from .format import AdapterInfo

FREQUENCIES: Final = 8
PLACE_DIM: Final = 4 * FREQUENCIES
"""Channels of a place: sine and cosine of height and width at each frequency."""


def fourier(places: Tensor) -> Tensor:
    """Places (..., 2), height and width in patches, as (..., `PLACE_DIM`).

    The product of two such vectors falls with the distance of their places: from 16 at none to 12 at one patch.
    """
    wavelength = 4 * 2 ** (torch.arange(FREQUENCIES, device=places.device) / 2)
    angle = (2 * math.pi * places.float()[..., None] / wavelength).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def cell_centres(rows: int, columns: int, *, step: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Centres of a grid's cells, row by row, (rows * columns, 2), each cell `step` high and wide."""
    down = (torch.arange(rows) + 0.5) * step[0]
    across = (torch.arange(columns) + 0.5) * step[1]
    return torch.stack(torch.meshgrid(down, across, indexing="ij"), -1).flatten(0, 1)


class PatchTokens(nn.Module):
    """Patches (B, D, gh, gw) to a token each and a last one of zeros, (B, gh * gw + 1, width).

    The last `PLACE_DIM` channels are the patch's place. Who looks at the token of zeros adds nothing. `mean` is what
    tokens of all pictures have in common, and is taken off: a token says what is particular about its patch, so an
    adapter cannot do for every picture alike what should have been trained into the model.
    """

    mean: Tensor

    def __init__(self, dim: int, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)
        self.proj_out = nn.Linear(inner, width - PLACE_DIM)
        self.norm = nn.LayerNorm(width - PLACE_DIM)
        self.register_buffer("mean", torch.zeros(width - PLACE_DIM))

    def forward(self, features: Tensor) -> Tensor:
        """Tokens row by row; in training, `mean` follows them."""
        flat = F.layer_norm(features.flatten(2).transpose(1, 2), features.shape[1:2])
        content = self.norm(self.proj_out(F.gelu(self.proj(flat))))
        if self.training:
            with torch.no_grad():
                fresh = content.mean((0, 1)).float()
                self.mean.lerp_(fresh, 0.05 if self.mean.any() else 1.0)
        content = content - self.mean.to(content)
        places = fourier(cell_centres(*features.shape[-2:])).to(content)
        tokens = torch.cat([content, places.expand(len(content), -1, -1)], -1)
        return F.pad(tokens, (0, 0, 0, 1))


def read_projector(tensors: Mapping[str, Tensor], *, dim: int | None, name: str) -> PatchTokens:
    """The projector whose tensors these are, without their `image_proj.`; its sizes are read off their shapes.

    Args:
        dim: channels of the features it is to take; None takes those it was made for.
        name: of the file, for messages.

    Raises:
        AdapterError: a tensor is missing, too many, or of a shape that does not fit the others.
    """
    try:
        inner, own_dim = tensors["proj.weight"].shape
        width = tensors["norm.weight"].shape[0] + PLACE_DIM
        module = PatchTokens(own_dim if dim is None else dim, width, inner)
        module.load_state_dict(dict(tensors))
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise AdapterError(
            f"{name}: image_proj does not make a token of each patch from {dim or 'its'} feature channels: "
            f"{str(error)[:300]}. Get the file again, or train it again."
        ) from error
    return module.eval().requires_grad_(False)


def feature_dim(info: AdapterInfo, dino: Dinov2) -> int:
    """Channels of the features that the projector takes."""
    return dino.dim * len(info.layers)


def picture_features(info: AdapterInfo, dino: Dinov2, pictures: Tensor, source_size: tuple[int, int]) -> Tensor:
    """Features of pictures as the encoder sees them, (B, D, gh, gw).

    Args:
        pictures: (B, 3, H, W) in [0, 1], at any size.
        source_size: (height, width) in the source's own pixels, which decides how large they are seen.
    """
    grid = grid_size(*source_size, least_px=info.least_px, most_px=info.most_px)
    given = normalised(dino, pictures.to(dino.positions.device), grid)
    with torch.no_grad():
        return torch.cat(dino.layer_tokens(given, info.layers), 1)

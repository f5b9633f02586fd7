"""Image tokens: what DINOv2 sees in a tile's region of the source, as the tokens an adapter's attention looks at.

Three projectors, as in IP-Adapter's files: *linear* makes a few tokens of the class token, *resampler* makes them of
all patches by attention from learned queries, *patches* makes one of each patch and adds where it lies, so that a
place of the tile can find its own. Token tensors are `(B, T, W)`, float32; zero tokens give zero keys and values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, cast

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
HEAD_DIM: Final = 64  # of the resampler's attention

Projector = nn.Module
"""Features of pictures, (B, D) of the class token or (B, D, gh, gw) of patches, to tokens (B, T, W)."""


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


class LinearTokens(nn.Module):
    """Class token (B, D) to `count` tokens, (B, count, width)."""

    def __init__(self, dim: int, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.proj = nn.Linear(dim, count * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Tokens of each picture."""
        tokens: Tensor = self.norm(self.proj(features).unflatten(-1, (self.count, -1)))
        return tokens


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


class Look(nn.Module):
    """One attention layer of the resampler: learned queries look at patches and at each other."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        """What the queries, (B, T, dim), see."""
        patches, latents = self.norm1(patches), self.norm2(latents)
        both = torch.cat([patches, latents], 1)
        q, k, v = (
            part.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for part in (self.to_q(latents), *self.to_kv(both).chunk(2, -1))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.to_out(seen)
        return out


class Resampler(nn.Module):
    """Patches (B, D, gh, gw) to `count` tokens, (B, count, width), as IP-Adapter-plus does."""

    def __init__(
        self, dim: int, width: int, count: int, *, hidden: int, inner: int, expansion: int, depth: int
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, count, hidden) / hidden**0.5)
        self.proj_in, self.proj_out = nn.Linear(dim, hidden), nn.Linear(hidden, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList([Look(hidden, inner), _feed_forward(hidden, expansion)]) for _ in range(depth)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Tokens of each picture."""
        patches = self.proj_in(features.flatten(2).transpose(1, 2))
        latents = self.latents.expand(len(patches), -1, -1)
        for layer in self.layers:
            look, change = cast(nn.ModuleList, layer)
            latents = latents + look(patches, latents)
            latents = latents + change(latents)
        out: Tensor = self.norm_out(self.proj_out(latents))
        return out


def _feed_forward(dim: int, inner: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, inner, bias=False), nn.GELU(), nn.Linear(inner, dim, bias=False)
    )


def new_projector(info: AdapterInfo, *, dim: int, width: int, inner: int) -> Projector:
    """An untrained projector for features of `dim` channels; `inner` is the width inside it."""
    if info.projector == "linear":
        return LinearTokens(dim, width, info.tokens)
    if info.projector == "patches":
        return PatchTokens(dim, width, inner)
    return Resampler(dim, width, info.tokens, hidden=inner, inner=inner, expansion=4 * inner, depth=4)


def read_projector(info: AdapterInfo, tensors: Mapping[str, Tensor], *, dim: int | None, name: str) -> Projector:
    """The projector whose tensors these are, without their `image_proj.`; its sizes are read off their shapes.

    Args:
        dim: channels of the features it is to take; None takes those it was made for.
        name: of the file, for messages.

    Raises:
        AdapterError: a tensor is missing, too many, or of a shape that does not fit the others or the metadata.
    """
    try:
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        opening = "proj_in.weight" if info.projector == "resampler" else "proj.weight"
        module = _sized(info, shapes, shapes[opening][1] if dim is None else dim)
        module.load_state_dict(dict(tensors))
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise AdapterError(
            f"{name}: image_proj is no {info.projector} projector from {dim} feature channels"
            f"{f' to {info.tokens} tokens' if info.tokens else ''}, as its metadata says: {str(error)[:300]}. Get the "
            f"file again, or train it again."
        ) from error
    return module.eval().requires_grad_(False)


def _sized(info: AdapterInfo, shapes: Mapping[str, tuple[int, ...]], dim: int) -> Projector:
    if info.projector == "linear":
        return LinearTokens(dim, shapes["norm.weight"][0], info.tokens)
    if info.projector == "patches":
        return PatchTokens(dim, shapes["norm.weight"][0] + PLACE_DIM, shapes["proj.weight"][0])
    depth = 1 + max(int(found[1]) for key in shapes if (found := re.match(r"layers\.(\d+)\.", key)))
    return Resampler(
        dim,
        shapes["norm_out.weight"][0],
        info.tokens,
        hidden=shapes["proj_in.weight"][0],
        inner=shapes["layers.0.0.to_q.weight"][0],
        expansion=shapes["layers.0.1.1.weight"][0],
        depth=depth,
    )


def feature_dim(info: AdapterInfo, dino: Dinov2) -> int:
    """Channels of the features that the projector takes."""
    return dino.dim * len(info.layers)


def picture_features(info: AdapterInfo, dino: Dinov2, pictures: Tensor, source_size: tuple[int, int]) -> Tensor:
    """What the encoder sees: (B, D) of the class token for a linear projector, else (B, D, gh, gw).

    Args:
        pictures: (B, 3, H, W) in [0, 1], at any size.
        source_size: (height, width) in the source's own pixels, which decides how large they are seen.
    """
    grid = grid_size(*source_size, least_px=info.least_px, most_px=info.most_px)
    given = normalised(dino, pictures.to(dino.positions.device), grid)
    with torch.no_grad():
        if info.projector == "linear":
            return dino.class_token(given)
        return torch.cat(dino.layer_tokens(given, info.layers), 1)


"""DINO conditioning: tokens of a tile's region of the source, injected into a UNet by decoupled cross-attention.

Each cross-attention layer keeps what it does and gains a second look, at the image tokens:

    attention(q, k, v) + strength * attention(q', k_ip, v_ip)        k_ip, v_ip = to_k_ip(tokens), to_v_ip(tokens)

before its output projection, where q' = q + to_q_ip([q, place of q]). One function, `Injection.seen`, does this for
every runtime: diffusers UNets in `diffusers_unet.py`, the WebUIs' in `webui/model/adapter_patch.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AdapterError
from ..measure.features import grid_size
from ..networks.dinov2 import Dinov2
from ..networks.weights_file import write_tensors
from .format import AdapterInfo
from .projectors import PLACE_DIM, PatchTokens, cell_centres, fourier, picture_features

MOST_SCORES: Final = 2**24
"""Query-token pairs, times heads and rows, that are scored at once; bounds the memory of attention without a kernel."""


class Layer(nn.Module):
    """Maps that an adapter adds to one cross-attention layer, without bias, named as in IP-Adapter's files.

    Args:
        hidden: channels of the layer.
        width: of a token.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(width, hidden, bias=False)
        self.to_v_ip = nn.Linear(width, hidden, bias=False)
        self.to_q_ip = nn.Linear(hidden + PLACE_DIM, hidden, bias=False)


class Adapter(nn.Module):
    """A projector and one `Layer` for each cross-attention layer of a UNet, in diffusers' order.

    Attributes:
        info: what it was trained for.
        name: for messages and the report.
        width: of a token.
    """

    def __init__(self, info: AdapterInfo, projector: PatchTokens, layers: Sequence[Layer], *, name: str) -> None:
        super().__init__()
        self.info, self.name = info, name
        self.image_proj = projector
        self.layers = nn.ModuleList(layers)
        self.width = layers[0].to_k_ip.in_features

    @property
    def channels(self) -> list[int]:
        """Of each layer."""
        return [layer.to_k_ip.out_features for layer in cast(Iterable[Layer], self.layers)]

    def tokens(self, dino: Dinov2, tiles: Tensor, scale: float) -> Tensor:
        """Tokens of tiles, (B, T, width).

        Args:
            tiles: (B, 3, H, W) in [0, 1], the source's region of each tile as the plain enlargement shows it.
            scale: result pixels to one of the source, which are what the tiles are seen by.
        """
        size = (max(1, round(tiles.shape[-2] / scale)), max(1, round(tiles.shape[-1] / scale)))
        device = next(self.parameters()).device
        tokens: Tensor = self.image_proj(picture_features(self.info, dino, tiles, size).to(device))
        return tokens

    def grid(self, tiles: Tensor, scale: float) -> tuple[int, int]:
        """Patches down and across at which `tokens` sees such tiles."""
        sides = (max(1, round(side / scale)) for side in tiles.shape[-2:])
        return grid_size(*sides, least_px=self.info.least_px, most_px=self.info.most_px)

    def save(self, path: Path) -> None:
        """Write it as float16, in one rename."""
        write_tensors(path, self.file_names(self.state_dict()), self.info.to_metadata())

    @staticmethod
    def file_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An adapter's tensors by the names that files give them."""
        return {re.sub(r"^layers\.(\d+)", lambda found: f"ip_adapter.{2 * int(found[1]) + 1}", name): tensor
                for name, tensor in tensors.items()}  # fmt: skip


@dataclass
class Injection:
    """An adapter at work on one batch of tiles.

    Attributes:
        adapter: whose weights are used.
        tokens: (B, T, width) of the batch's tiles.
        strength: what is seen is multiplied by it.
        grid: patches down and across.
        span: height and width of a tile in cells of the UNet's input, when that is not the tile alone.
        origin: (B, 2), cell of the tile at which each input begins, where not at its corner.
    """

    adapter: Adapter
    tokens: Tensor
    strength: float
    grid: tuple[int, int]
    span: tuple[float, float] | None = None
    origin: Tensor | None = None
    _held: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def seen(
        self, number: int, query: Tensor, heads: int, *, cells: tuple[int, int], rows: Tensor | None = None
    ) -> Tensor:
        """The sum that layer `number` adds before its output projection, (R, N, C) like `query`.

        Args:
            number: of the layer, from 0 in diffusers' order.
            query: the layer's own, (R, N, C).
            heads: of the layer.
            rows: (R,), which tile each row of `query` belongs to, -1 for unconditional rows, which see zeros;
                None when rows are the tiles in order.
            cells: height and width of the UNet's input, of which the layer sees every cell or a halving.
        """
        layer: Any = self.adapter.layers[number]
        keys, values = self._keys_values(number, layer, query)
        weight = layer.to_q_ip.weight.to(query.dtype)
        query = query + F.linear(torch.cat([query, self._places(query, rows, cells)], -1), weight)
        if rows is not None:
            rows = rows.to(query.device)
            blank = (rows < 0).view(-1, 1, 1)
            keys, values = (part[rows.clamp(min=0)] for part in (keys, values))
            keys, values = keys.masked_fill(blank, 0), values.masked_fill(blank, 0)
        return self.strength * attend(query, keys, values, heads)

    def _keys_values(self, number: int, layer: Layer, query: Tensor) -> tuple[Tensor, Tensor]:
        training = torch.is_grad_enabled() and self.tokens.requires_grad
        if (number, query.dtype) in self._held and not training:
            return self._held[number, query.dtype]
        # In the adapter's own precision, then in the host's.
        parts = (layer.to_k_ip, layer.to_v_ip)
        keys, values = (part(self.tokens.to(part.weight.dtype)).to(query) for part in parts)
        self._held[number, query.dtype] = keys, values
        return keys, values

    def _places(self, query: Tensor, rows: Tensor | None, cells: tuple[int, int]) -> Tensor:
        """Place of each query among the patches, (R, N, PLACE_DIM)."""
        halvings, size = level(query.shape[1], cells)
        span = self.span or cells
        step = [patches * 2**halvings / side for patches, side in zip(self.grid, span, strict=True)]
        places = cell_centres(*size, step=(step[0], step[1])).to(query.device)[None]
        if self.origin is not None:
            shift = self.origin.to(places) * places.new_tensor(self.grid) / places.new_tensor(span)
            shift = shift if rows is None else shift[rows.clamp(min=0).to(shift.device)]
            places = places + shift[:, None]
        return fourier(places).to(query).expand(len(query), -1, -1)




@dataclass(frozen=True)
class ImageTokens:
    """An adapter with everything it needs to show a model the tiles of one source.

    Attributes:
        adapter: made for the model and for `dino`.
        dino: the feature network.
        strength: above 0 to 1.
    """

    adapter: Adapter
    dino: Dinov2
    strength: float

    @torch.no_grad()
    def of_tiles(self, plain: Tensor, scale: float) -> Injection:
        """Tokens of `plain`, (B, 3, h, w) in [0, 1], tiles of the source as plainly enlarged by `scale`."""
        tokens = self.adapter.tokens(self.dino, plain, scale)
        return Injection(self.adapter, tokens, self.strength, self.adapter.grid(plain, scale))


def level(count: int, cells: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Number of halvings that leave `count` cells of an input of `cells`, and its size then.

    Raises:
        AdapterError: no halving does, as when an extension merges tokens.
    """
    height, width = cells
    for halvings in range(8):
        size = (-(-height // 2**halvings), -(-width // 2**halvings))
        if size[0] * size[1] == count:
            return halvings, size
    raise AdapterError(
        f"The adapter's tokens have places, and a layer with {count} cells is no halving of the model's {height} x "
        f"{width}: something merges or regroups them. Switch token merging off, or set adapter strength to 0."
    )


def attend(query: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """softmax(q k / sqrt(d)) v by heads: (R, N, C), (R, T, C), (R, T, C) to (R, N, C)."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, keys, values))
    most = max(1, MOST_SCORES // (len(query) * heads * k.shape[2]))
    parts = [F.scaled_dot_product_attention(part, k, v) for part in q.split(most, 2)]
    out: Tensor = torch.cat(parts, 2).transpose(1, 2).flatten(2)
    return out

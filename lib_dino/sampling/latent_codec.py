"""Latents of a host's model to pictures, without its autoencoder or with one.

Guidance needs a picture of every estimate, gradients included. A fixed linear map from latent channels to colour
costs nothing and is good enough to compare with: the source's own latent is shown through the same map, so its
faults cancel. An autoencoder is exact, but costs too much for every model call, and few calls do nearly as much as all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .consistency import Autoencoder, AutoencoderConsistency, ColorConsistency, Consistency, Pull

EXACT_SIGMAS: Final = (1.0, 0.6, 0.4)
"""Noise-to-signal ratios at which a tile is held to its source pixel by pixel."""

def noise_to_signal(sigma: float, *, flow: bool) -> float:
    """Noise-to-signal ratio of a host's noise level; a flow model's pure noise counts as ten thousand."""
    return sigma / max(1 - sigma, 1e-4) if flow else sigma


@dataclass(frozen=True)
class ColorMap:
    """A linear map of latents to colour.

    Attributes:
        table: (C + 1, 3), colour in [-1, 1] as a linear map of the channels, the constant last.
        known: it is this autoencoder's own; else any fixed map, with which one can compare but which shows no colours.
        unpacked: (B, C', h', w') to the (B, C, h, w) that the table is for, by moving numbers alone; None where they
            are the same.
    """

    table: Tensor
    known: bool = True
    unpacked: Callable[[Tensor], Tensor] | None = None

    def unpack(self, latents: Tensor) -> Tensor:
        """Latents as the table takes them."""
        return latents if self.unpacked is None else self.unpacked(latents)

    def pack(self, values: Tensor, like: Tensor) -> Tensor:
        """The inverse of `unpack`; `like` has the shape of the answer."""
        if self.unpacked is None:
            return values
        numbers = torch.arange(like[0].numel(), device=like.device).view(1, *like.shape[1:])
        places = self.unpacked(numbers).flatten()
        packed = torch.empty_like(values.flatten(1))
        packed[:, places] = values.flatten(1)
        return packed.view(like.shape)


def described_map(described: Any) -> ColorMap | None:
    """The map of a host's description of latents, as ComfyUI and the Forge family have it; None where it has none."""
    factors = getattr(described, "latent_rgb_factors", None)
    if not factors:
        return None
    unpacked = getattr(described, "latent_rgb_factors_reshape", None)
    channels = described.latent_channels
    with torch.inference_mode(False):
        shown = torch.zeros(1, channels, 1, 1)
        if unpacked is not None:
            shown = unpacked(shown)
        bias = getattr(described, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0]
        table = torch.tensor([*factors, bias], dtype=torch.float32)
    return ColorMap(table, unpacked=unpacked) if shown.shape[1] == len(factors) else None


def arbitrary_map(channels: int) -> ColorMap:
    """A fixed map for latents that nobody has colours for: it still tells whether estimate and source agree."""
    table = torch.randn(channels + 1, 3, generator=torch.Generator().manual_seed(channels))
    return ColorMap(table / (2 * float(channels) ** 0.5), known=False)


class LatentCodec:
    """Latents of one batch of tiles, and pictures, by a linear map; see `correction.Codec`.

    Args:
        colors: the map.
        factor: as in `Model`.
        source: (B, C, h, w), the source's tiles as latents; None where they are not known.
    """

    sigma_data = 1.0

    def __init__(self, colors: ColorMap, factor: int, source: Tensor | None = None) -> None:
        self._map, self._factor = colors, factor
        self._source = () if source is None else torch.split(source, 1)

    def decode(self, clean: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 3, factor h, factor w) in [0, 1], more or less; differentiable."""
        table, shown = self._map.table.to(clean), self._map.unpack(clean)
        colour = torch.einsum("bchw,cr->brhw", shown, table[:-1]) + table[-1].view(1, 3, 1, 1)
        scale = self._factor * clean.shape[-1] // shown.shape[-1]
        return F.interpolate((colour + 1) / 2, scale_factor=scale, mode="bilinear", align_corners=False)

    def source_latents(self, number: int) -> Tensor | None:
        """The source's tile as latents, (1, C, h, w)."""
        return self._source[number] if self._source else None

    def consistency(self, number: int, pull: Pull, strength: float) -> Consistency:
        """Hold coarse colours; latents that no table knows stay as they are."""
        return self._colors(number, strength) or (lambda clean, _: clean)

    def _colors(self, number: int, strength: float) -> Consistency | None:
        reference, held = self.source_latents(number), self._map
        if reference is None or not held.known:
            return None
        inner = ColorConsistency(held.unpack(reference), held.table, strength)
        if held.unpacked is None:
            return inner
        return lambda clean, ratio: held.pack(inner(held.unpack(clean), ratio), clean)


class AutoencoderCodec(LatentCodec):
    """As `LatentCodec`, and exact at a few calls by an autoencoder.

    Gradients still take the linear map: through the autoencoder they would need gigabytes.

    Args:
        autoencoder: between pictures in [0, 1] and the model's latents.
        colors, factor, source: as for `LatentCodec`.
    """

    def __init__(
        self, autoencoder: Autoencoder, colors: ColorMap, factor: int, source: Tensor | None = None
    ) -> None:
        super().__init__(colors, factor, source)
        self._autoencoder = autoencoder

    def consistency(self, number: int, pull: Pull, strength: float) -> Consistency:
        """Hold a tile exactly at `EXACT_SIGMAS`, and by coarse colours."""
        colors = self._colors(number, strength)
        return AutoencoderConsistency(self._autoencoder, EXACT_SIGMAS, pull, strength, colors)

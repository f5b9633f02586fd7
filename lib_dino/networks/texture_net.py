"""Expected texture: how strong the detail that downscaling cannot see should be, place by place and by direction.

Source consistency settles what the source can tell. Of the rest, the detail between the source's pixels, the diffusion
model makes too much in smooth places, too little in rough ones, and with no regard to which way fur or fabric runs.
How much there should be, by octave and direction, follows to a good part from what the source shows: a small network
reads it off the source's pixels, and what the finished picture's unseen detail has beyond it is taken off. Nothing is
drawn, and nothing is made stronger. DINOv2 features as a further input did not help
(docs/constants.md).

The bands are a partition of the spectrum above the source's: octaves (raised cosines of log frequency) times
directions (powers of a cosine), as in a steerable pyramid (Simoncelli and Freeman, 1995). Matching local band energies
is what Heeger and Bergen (1995) synthesise texture by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import arrays
from ..tiling.chunks import windows
from ..tiling.padding import pad_reflect
from ..tiling.resample import resize
from .weights_file import load_net, save_net

EMBEDDED: Final = Path(__file__).parent.parent / "embedded" / "texture" / "model.safetensors"
DIRECTIONS: Final = 4
OCTAVES: Final = 3
"""Most octaves above the source's: 8x enlargement."""
BANDS: Final = DIRECTIONS * OCTAVES
SHOWN: Final = 12 + 2 * DIRECTIONS
"""Channels that are read of the source: a 2 x 2 block of pixels, and the energies of its own two finest octaves."""
LEAST_FACTOR: Final = 1.2
"""Below this enlargement there is nothing to speak of between the source's pixels."""
EPS: Final = 1e-6
CENTRE, SCALE = -9.0, 2.0
"""Log energies are (x - CENTRE) / SCALE to the network."""
SPREAD_PX: Final = 1.5
"""Energies are means under a Gaussian of so many pixels of the source."""
WINDOW_PX: Final = 512
SEEN_PX: Final = 64
"""More than the network sees of the surroundings of a source pixel."""
ITERATIONS: Final = 3
VERSION: Final = 1


# ---------------------------------------------------------------- bands and energies


@lru_cache(maxsize=8)
def bands(size: tuple[int, int], factor: float) -> Tensor:
    """Band filters for `torch.fft.rfft2`, (octaves * DIRECTIONS, height, width // 2 + 1), that sum to one everywhere.

    Args:
        size: (height, width) of what is filtered, pixels.
        factor: the enlargement; octaves are counted down from the finest to the source's own limit.
    """
    down = 2 * torch.fft.fftfreq(size[0])[:, None]
    across = 2 * torch.fft.rfftfreq(size[1])[None]
    octave = torch.log2((down**2 + across**2).sqrt().clamp(min=EPS))
    count = octaves(factor)
    centres = [math.log2(1 / factor) + 0.5 + i for i in range(count)]
    radial = [torch.ones_like(octave) for _ in range(count)]
    for i in range(1, count):
        upper = (octave - centres[i - 1]).clamp(0, 1)
        radial[i - 1] = radial[i - 1] * (1 - upper)
        radial[i] = radial[i] * upper
    angle = torch.atan2(down, across)
    angular = [torch.cos(angle - k * math.pi / DIRECTIONS).abs() ** (2 * (DIRECTIONS - 1)) for k in range(DIRECTIONS)]
    total = sum(angular, start=torch.zeros_like(angle))
    return torch.stack([r * a / total for r in radial for a in angular])


def octaves(factor: float) -> int:
    """Octaves that an enlargement adds, 1 to `OCTAVES`."""
    return min(OCTAVES, max(1, round(math.log2(factor))))


def split(image: Tensor, factor: float) -> Tensor:
    """`image`, (1, C, H, W), into its bands, (octaves * DIRECTIONS, C, H, W), which sum to it."""
    size = (image.shape[-2], image.shape[-1])
    spectrum = torch.fft.rfft2(image)
    return torch.cat([torch.fft.irfft2(spectrum * each, s=size) for each in bands(size, factor).to(image.device)])


def energies(parts: Tensor, sigma: float) -> Tensor:
    """Local energy of bands, (N, C, H, W) to (N, 1, H, W): mean square under a Gaussian of `sigma` pixels."""
    return blurred(parts.square().mean(1, keepdim=True), sigma).clamp(min=0)


def blurred(image: Tensor, sigma: float) -> Tensor:
    """(N, 1, H, W) under a Gaussian of `sigma` pixels."""
    radius = int(3 * sigma) + 1
    taps = torch.exp(-torch.arange(-radius, radius + 1.0, device=image.device).square() / (2 * sigma**2))
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    padded = pad_reflect(image, radius)
    out: Tensor = F.conv2d(F.conv2d(padded, taps), taps.transpose(2, 3))
    return out


def unseen(image: Tensor, source_size: tuple[int, int]) -> Tensor:
    """The part of `image`, (1, C, H, W), that is gone once it is made small to `source_size`."""
    for _ in range(ITERATIONS):
        seen = resize(resize(image, source_size), (image.shape[-2], image.shape[-1]))
        image = arrays.by_bands(torch.sub, image, seen)
    return image


# ---------------------------------------------------------------- what is to be expected


class TextureNet(nn.Module):
    """A source's pixels to log energies."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Conv2d(SHOWN, width, 3, padding=1)
        self.factor = nn.Linear(3, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=far, dilation=far), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
            )
            for far in (1, 2, 4, 1)
        )
        self.out = nn.Conv2d(width, 2 * BANDS, 1)

    def forward(self, shown: Tensor, factor: Tensor) -> Tensor:
        """Scaled log energies and the logs of their spreads, (B, 2 * BANDS, h, w), octaves from the source's limit up.

        Args:
            shown: (B, SHOWN, h, w) as `source_channels` makes them.
            factor: (B,), the enlargement.
        """
        log = torch.log2(factor)
        x = self.stem(shown) + self.factor(torch.stack([log, log * log, 1 / factor], 1))[:, :, None, None]
        for block in self.blocks:
            x = x + block(F.silu(x))
        answer: Tensor = self.out(F.silu(x))
        return answer


def source_channels(source: Tensor) -> Tensor:
    """Input channels from a source, (1, 3, H, W) in [0, 1] with even sides: (1, SHOWN, H / 2, W / 2)."""
    height, width = source.shape[-2:]
    own = unseen(source, (max(1, height // 4), max(1, width // 4)))
    strength = energies(split(own, 4.0), SPREAD_PX).transpose(0, 1)
    log = (F.avg_pool2d(strength, 2) + EPS).log()
    return torch.cat([F.pixel_unshuffle(2 * source - 1, 2), (log - CENTRE) / 3], 1)


@dataclass(frozen=True)
class Texture:
    """Expected strength of the unseen detail, on the grid of 2 x 2 source pixels.

    Attributes:
        log: log energies, (octaves * DIRECTIONS, 1, h, w).
        spread: mean absolute error that is to be expected of them, likewise.
    """

    log: Tensor
    spread: Tensor


@torch.no_grad()
def expected(net: TextureNet, source: Tensor, factor: float) -> Texture:
    """Expected texture of the detail that enlarging `source` by `factor` leaves open.

    Args:
        source: (1, 3, H, W) in [0, 1].
        factor: the enlargement.
    """
    height, width = source.shape[-2:]
    even = height + height % 2, width + width % 2
    count = octaves(factor) * DIRECTIONS
    log, spread = (arrays.zeros((count, 1, even[0] // 2, even[1] // 2)) for _ in range(2))
    for window in windows(even, side=WINDOW_PX, margin=SEEN_PX):
        seen = source[..., window.seen_rows, window.seen_cols]
        seen = F.pad(seen, (0, seen.shape[-1] % 2, 0, seen.shape[-2] % 2), mode="replicate")
        channels = source_channels(seen)
        answer = net(channels, seen.new_tensor([factor])).view(2, BANDS, 1, *channels.shape[-2:])[:, :count]
        inner = answer[..., _halved(window.inner_rows), _halved(window.inner_cols)]
        place = (..., _halved(window.rows), _halved(window.cols))
        log[place] = inner[0] * SCALE + CENTRE
        spread[place] = inner[1].clamp(-4, 2).exp() * SCALE
        if arrays.is_large(*log.shape):
            arrays.release()
    return Texture(log, spread)


def _halved(span: slice) -> slice:
    return slice(span.start // 2, span.stop // 2)


# ---------------------------------------------------------------- files


def save_texture(net: TextureNet, path: Path) -> None:
    """Write the network as float16 safetensors, its shape in the metadata."""
    save_net(net, path, kind="texture", version=VERSION, width=net.width)


def load_texture(path: Path | None = None) -> TextureNet:
    """The network in `path`, or the embedded one, frozen, float32.

    Raises:
        ModelError: the file is missing, damaged, or no network of this kind.
    """
    lacks = "does not hold expected textures"
    return load_net(EMBEDDED if path is None else path, TextureNet, kind="texture", version=VERSION, lacks=lacks)


@lru_cache(maxsize=1)
def embedded_texture() -> TextureNet:
    """The one that ships, loaded once."""
    return load_texture()

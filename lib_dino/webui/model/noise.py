"""Noise that agrees wherever tiles overlap, for every kind of sampler.

A tile starts from its piece of the canvas's one noise field. What ancestral and SDE samplers draw later is made
from that piece, cell by cell: two tiles that share a cell draw the same later noise for it, whatever their
position, batch or number.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_MASK = (1 << 32) - 1


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Draws from torch's global generator, as by the autoencoder, depend on `seed` alone and leave no trace."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def later_noise(first: Tensor, key: int) -> Tensor:
    """Unit normal noise, new for every `key`, that depends on each value of `first` alone.

    Args:
        first: (B, C, h, w), float32, unit normal.
        key: which draw; any whole number.
    """
    bits = first.detach().cpu().float().contiguous().view(torch.int32).to(torch.int64) & _MASK
    channel = torch.arange(first.shape[1]).view(1, -1, 1, 1) * 0x9E3779B9
    seed = _mixed((bits + channel) & _MASK) ^ (key & _MASK)
    u, v = (_mixed(_mixed((seed + salt) & _MASK)) for salt in (0x1B873593, 0x68E31DA4))
    # Box and Muller (1958); half a step keeps the logarithm finite.
    radius = (-2 * torch.log((u.double() + 0.5) / 2**32)).sqrt()
    return (radius * torch.cos(2 * math.pi * v.double() / 2**32)).to(first)


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers in which every bit moves half of the others (Wellons' "lowbias32")."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


class TileNoise:
    """Stands in for a host's `p.rng` during one batch of tiles.

    Args:
        first: (B, C, h, w), the pieces of the canvas's noise to start from.
        device: where the host wants noise.
        frames: the host wants (B, C, 1, h, w).
    """

    def __init__(self, first: Tensor, device: torch.device | str, *, frames: bool = False) -> None:
        self._first, self._device, self._call, self._frames = first, device, 0, frames

    def next(self) -> Tensor:
        """The start noise at first, then what ancestral samplers ask for step by step."""
        self._call += 1
        noise = self._first if self._call == 1 else later_noise(self._first, self._call)
        # A copy: hosts scale what they get in place.
        return self._shaped(noise.to(self._device, copy=True))

    def between(self, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
        """What SDE samplers ask for: one draw for each step from one noise level to another."""
        levels = struct.pack("<ff", float(sigma), float(sigma_next))
        key = int.from_bytes(levels, "little")
        return self._shaped(later_noise(self._first, (key ^ (key >> 32)) & _MASK | 1 << 31).to(self._device))

    def _shaped(self, noise: Tensor) -> Tensor:
        return noise.unsqueeze(2) if self._frames else noise

"""Seeded weights, and straight paths through networks that normalise every feature.

A straight path survives a normalisation as a pair (v, -v), whose mean is zero, kept so small that the norm's epsilon
outweighs its spread; and it survives SiLU by riding on an offset where SiLU is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SMALL = 1e-6  # size of a straight path's values, which would be near 1
OFFSET = 16.0  # SiLU(16) is 16 to float32's last digit but one
PAIR = 2  # channels of one normalisation group: 64 channels, 32 groups
BLUR = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))


class Weights:
    """A growing state dict. Weights are noise of about unit gain, biases are zero and norms are neutral."""

    def __init__(self, seed: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, name: str, *shape: int, bias: bool = True, gain: float = 1.0) -> None:
        """A linear map or convolution, `shape` being (out, in) or (out, in, kernel, kernel)."""
        fan_in = torch.Size(shape[1:]).numel()
        self.tensors[f"{name}.weight"] = torch.randn(shape, generator=self.generator) * gain * fan_in**-0.5
        if bias:
            self.tensors[f"{name}.bias"] = torch.zeros(shape[0])

    def add_norm(self, name: str, channels: int) -> None:
        """A normalisation that changes nothing after itself."""
        self.tensors[f"{name}.weight"] = torch.ones(channels)
        self.tensors[f"{name}.bias"] = torch.zeros(channels)

    def add_scale(self, name: str, channels: int) -> None:
        """The one vector, called `name`, of a normalisation that only scales."""
        self.tensors[name] = torch.ones(channels)

    def rename(self, old: str, new: str) -> None:
        """Give a tensor the name that a layout wants."""
        self.tensors[new] = self.tensors.pop(old)

    def weight(self, name: str) -> Tensor:
        """The weight of `name`, to write into."""
        return self.tensors[f"{name}.weight"]

    def bias(self, name: str) -> Tensor:
        """The bias of `name`, to write into."""
        return self.tensors[f"{name}.bias"]


def paths(count: int) -> Iterator[tuple[int, int, int]]:
    """(index, channel of v, channel of -v) of each straight path."""
    return ((index, PAIR * index, PAIR * index + 1) for index in range(count))


def enter_paths(weights: Weights, name: str, matrix: Tensor, kernel: Tensor) -> None:
    """Start paths in the convolution `name`: `matrix` (paths, in) of its input, spread by `kernel` (k, k)."""
    opening = weights.weight(name)
    for index, channel, mirrored in paths(len(matrix)):
        opening[channel] = SMALL * matrix[index, :, None, None] * kernel
        opening[mirrored] = -opening[channel]


def carry_paths(weights: Weights, name: str, kernel: Tensor, count: int, first: int = 0) -> None:
    """Make the convolution `name` hand on its paths, spread by `kernel`, from input channel `first` on."""
    carrier = weights.weight(name)
    carrier[: PAIR * count] = 0.0
    for channel in range(PAIR * count):
        carrier[channel, first + channel] = kernel


def silence_paths(weights: Weights, name: str, count: int) -> None:
    """Keep what the map `name` adds away from the paths."""
    weights.weight(name)[: PAIR * count] = 0.0


def leave_paths(weights: Weights, norm: str, name: str, matrix: Tensor, epsilon: float) -> None:
    """End the paths in normalisation `norm` of `epsilon`, its SiLU and the convolution `name`: `matrix` (out, paths).

    Only the kernel's centre is used: the lift it takes off by its bias would be missing beyond the border.
    """
    closing = weights.weight(name)
    for index, channel, mirrored in paths(matrix.shape[1]):
        weights.weight(norm)[channel] = epsilon**0.5 / SMALL
        weights.bias(norm)[channel] = OFFSET
        closing[:, [channel, mirrored]] = 0.0
        closing[: len(matrix), channel, 1, 1] = matrix[:, index]
    weights.bias(name)[: len(matrix)] -= OFFSET * matrix.sum(dim=1)


def kernels() -> tuple[Tensor, Tensor]:
    """(centre, blur) as (3, 3) kernels of sum one."""
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1.0
    blur = torch.tensor(BLUR)
    return centre, blur / blur.sum()

"""Autoencoders that take the mean of each 8 x 8 block and paint it again: the checkpoint's, and TAESD's format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .weights import Weights, carry_paths, enter_paths, kernels, leave_paths, silence_paths

EPSILON = 1e-6  # of the autoencoder's normalisations
TINY_WIDTH = 64  # of TAESD's format


@dataclass(frozen=True)
class Latents:
    """A family's latents, and how they stand for colour: (value + 1) / 2 = latents times `rgb`.

    Attributes:
        rgb: a row of red, green and blue for each channel, as the hosts' cheap previews take them.
        scale, shift: latents are (what the autoencoder gives - shift) * scale.
        quant: the autoencoder ends and begins with a 1 x 1 convolution.
        tiny: what the hosts call this family's tiny autoencoder.
    """

    rgb: tuple[tuple[float, float, float], ...]
    scale: float
    shift: float
    quant: bool
    tiny: str

    @property
    def channels(self) -> int:
        """Of the latents."""
        return len(self.rgb)

    def to_rgb(self) -> Tensor:
        """(3, C): what paints latents."""
        return torch.tensor(self.rgb).T

    def from_rgb(self) -> Tensor:
        """(C, 3): its pseudo-inverse."""
        return torch.linalg.pinv(self.to_rgb())


@dataclass(frozen=True)
class VAESizes:
    """Sizes of the autoencoder."""

    channels: int = 64
    levels: int = 4


def add_vae_middle(weights: Weights, at: str, width: int) -> None:
    """The three blocks at an autoencoder's lowest resolution."""
    for block in ("block_1", "block_2"):
        add_vae_block(weights, f"{at}mid.{block}.", width)
    weights.add_norm(f"{at}mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        weights.add(f"{at}mid.attn_1.{part}", width, width, 1, 1)


def add_vae_block(weights: Weights, at: str, width: int) -> None:
    """One residual block of the autoencoder."""
    for number in (1, 2):
        weights.add_norm(f"{at}norm{number}", width)
        weights.add(f"{at}conv{number}", width, width, 3, 3)


def add_vae(weights: Weights, at: str, sizes: VAESizes, latents: Latents) -> None:
    """The autoencoder, all noise."""
    encoder, decoder, width, channels = f"{at}encoder.", f"{at}decoder.", sizes.channels, latents.channels
    weights.add(f"{encoder}conv_in", width, 3, 3, 3)
    for level in range(sizes.levels - 1):
        weights.add(f"{encoder}down.{level}.downsample.conv", width, width, 3, 3)
    add_vae_middle(weights, encoder, width)
    weights.add_norm(f"{encoder}norm_out", width)
    weights.add(f"{encoder}conv_out", 2 * channels, width, 3, 3)
    if latents.quant:
        weights.add(f"{at}quant_conv", 2 * channels, 2 * channels, 1, 1)
        weights.add(f"{at}post_quant_conv", channels, channels, 1, 1)
    weights.add(f"{decoder}conv_in", width, channels, 3, 3)
    add_vae_middle(weights, decoder, width)
    for level in range(sizes.levels):
        add_vae_block(weights, f"{decoder}up.{level}.block.0.", width)
        if level:
            weights.add(f"{decoder}up.{level}.upsample.conv", width, width, 3, 3)
    weights.add_norm(f"{decoder}norm_out", width)
    weights.add(f"{decoder}conv_out", 3, width, 3, 3)


def lay_vae_paths(weights: Weights, at: str, sizes: VAESizes, latents: Latents) -> None:
    """Turn the autoencoder into 8 x 8 means and back, colours through the family's latent-to-RGB table."""
    centre, _ = kernels()
    quarter = torch.zeros(3, 3)
    quarter[:2, :2] = 0.25  # the hosts pad on the right and below
    rgb_of_latent = latents.to_rgb() * latents.scale  # (3, C)
    channels = latents.channels
    for name in [name for name in weights.tensors if name.startswith(at) and "conv_out" in name]:
        weights.tensors[name].zero_()
    enter_paths(weights, f"{at}encoder.conv_in", torch.eye(3), centre)
    for level in range(sizes.levels - 1):
        carry_paths(weights, f"{at}encoder.down.{level}.downsample.conv", quarter, 3)
        carry_paths(weights, f"{at}decoder.up.{level + 1}.upsample.conv", centre, 3)
    leave_paths(weights, f"{at}encoder.norm_out", f"{at}encoder.conv_out", torch.linalg.pinv(rgb_of_latent), EPSILON)
    weights.bias(f"{at}encoder.conv_out")[:channels] += latents.shift
    weights.bias(f"{at}encoder.conv_out")[channels:] = -30.0  # the log of the variance: no noise
    if latents.quant:
        weights.weight(f"{at}quant_conv").copy_(torch.eye(2 * channels)[..., None, None])
        weights.weight(f"{at}post_quant_conv").copy_(torch.eye(channels)[..., None, None])
    enter_paths(weights, f"{at}decoder.conv_in", rgb_of_latent, centre)
    leave_paths(weights, f"{at}decoder.norm_out", f"{at}decoder.conv_out", torch.eye(3), EPSILON)
    # What was painted with the shift in it: a padded border would miss a shift taken off at the opening.
    weights.bias(f"{at}decoder.conv_out").sub_(latents.shift * rgb_of_latent.sum(dim=1))
    for name in weights.tensors:
        if name.startswith(at) and name.endswith(("conv2.weight", "proj_out.weight")):
            silence_paths(weights, name.removesuffix(".weight"), 3)


def tiny_autoencoder(seed: int, latents: Latents) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(encoder, decoder) in TAESD's format, pictures in [0, 1]: the same means and colours, and TAESD's clamp.

    Rectifiers let a straight path pass as long as it is not negative.
    """
    centre, _ = kernels()
    quarter = torch.zeros(3, 3)
    quarter[1:, 1:] = 0.25  # padded on all sides
    to_rgb = latents.to_rgb()
    encoder, decoder = Weights(seed), Weights(seed + 1)
    _add_tiny_map(encoder, "0", TINY_WIDTH, 3, torch.eye(3), centre)
    number = 1
    for level in range(4):
        if level:
            _add_tiny_map(encoder, str(number), TINY_WIDTH, TINY_WIDTH, torch.eye(3), quarter, bias=False)
            number += 1
        number = _add_tiny_blocks(encoder, number, 3 if level else 1)
    from_rgb = latents.from_rgb()
    _add_tiny_map(encoder, str(number), latents.channels, TINY_WIDTH, 2 * from_rgb, centre)
    encoder.weight(str(number))[:, 3:] = 0.0
    encoder.bias(str(number)).sub_(from_rgb.sum(dim=1))

    _add_tiny_map(decoder, "1", TINY_WIDTH, latents.channels, to_rgb / 2, centre)
    decoder.bias("1")[:3] = 0.5
    number = 3
    for _ in range(3):
        number = _add_tiny_blocks(decoder, number, 3) + 1  # an enlargement lies between
        _add_tiny_map(decoder, str(number), TINY_WIDTH, TINY_WIDTH, torch.eye(3), centre, bias=False)
        number += 1
    number = _add_tiny_blocks(decoder, number, 1)
    _add_tiny_map(decoder, str(number), 3, TINY_WIDTH, torch.eye(3), centre)
    decoder.weight(str(number))[:, 3:] = 0.0
    return encoder.tensors, decoder.tensors


def _add_tiny_map(
    weights: Weights, name: str, goes: int, came: int, matrix: Tensor, kernel: Tensor, *, bias: bool = True
) -> None:
    """A convolution whose first channels are `matrix` (out, in) of its first ones, spread by `kernel`."""
    weights.add(name, goes, came, 3, 3, bias=bias, gain=0.5)
    rows, columns = matrix.shape
    held = weights.weight(name)
    held[:rows] = 0.0
    held[:rows, :columns] = matrix[..., None, None] * kernel


def _add_tiny_blocks(weights: Weights, number: int, count: int) -> int:
    """Residual blocks from `number` on, which add nothing to the paths; the number after them."""
    for block in range(number, number + count):
        for part in (0, 2, 4):
            weights.add(f"{block}.conv.{part}", TINY_WIDTH, TINY_WIDTH, 3, 3, gain=0.5)
        weights.weight(f"{block}.conv.4")[:3] = 0.0
    return number + count

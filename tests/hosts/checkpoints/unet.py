"""The UNets of SD 1.5 and SDXL: a blur's remainder, and a little of what a random network says."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .weights import Weights, carry_paths, enter_paths, kernels, leave_paths, silence_paths

UNET = "model.diffusion_model."
EPSILON = 1e-5  # of its normalisations
HIGHPASS = 1.5  # gain of "latent minus its blur"


@dataclass(frozen=True)
class UNetSizes:
    """Sizes of the noise predictor.

    Attributes:
        channels: of the highest resolution.
        multipliers: of the channels, a resolution each.
        attention: downscales that have cross-attention.
        blocks: residual blocks a resolution.
        context: channels of the text it looks at.
        vector: channels of the pooled text and sizes it is told; 0 is none.
        linear: transformers begin and end with linear maps in place of convolutions.
    """

    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    attention: tuple[int, ...] = (2, 4)
    blocks: int = 1
    context: int = 768
    vector: int = 0
    linear: bool = False


SD1 = UNetSizes()
SDXL = UNetSizes(multipliers=(1, 2, 2), context=2048, vector=2816, linear=True)


def add_unet_block(weights: Weights, at: str, came: int, goes: int, embedding: int) -> None:
    """One residual block of the UNet."""
    weights.add_norm(f"{at}in_layers.0", came)
    weights.add(f"{at}in_layers.2", goes, came, 3, 3)
    weights.add(f"{at}emb_layers.1", goes, embedding)
    weights.add_norm(f"{at}out_layers.0", goes)
    weights.add(f"{at}out_layers.3", goes, goes, 3, 3)
    if came != goes:
        weights.add(f"{at}skip_connection", goes, came, 1, 1)


def add_transformer(weights: Weights, at: str, width: int, sizes: UNetSizes) -> None:
    """One self-attention, cross-attention and feed-forward block."""
    inside, kernel = f"{at}transformer_blocks.0.", () if sizes.linear else (1, 1)
    weights.add_norm(f"{at}norm", width)
    weights.add(f"{at}proj_in", width, width, *kernel)
    for name, context in (("attn1", width), ("attn2", sizes.context)):
        weights.add(f"{inside}{name}.to_q", width, width, bias=False)
        weights.add(f"{inside}{name}.to_k", width, context, bias=False)
        gain = 4.0 if name == "attn2" else 1.0  # a mean over 77 tokens is small, and prompts should show
        weights.add(f"{inside}{name}.to_v", width, context, bias=False, gain=gain)
        weights.add(f"{inside}{name}.to_out.0", width, width)
    weights.add(f"{inside}ff.net.0.proj", 8 * width, width)
    weights.add(f"{inside}ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        weights.add_norm(f"{inside}norm{number}", width)
    weights.add(f"{at}proj_out", width, width, *kernel)


def add_unet(weights: Weights, sizes: UNetSizes) -> None:
    """The UNet, all noise."""
    base, embedding = sizes.channels, 4 * sizes.channels
    weights.add(f"{UNET}time_embed.0", embedding, base)
    weights.add(f"{UNET}time_embed.2", embedding, embedding)
    if sizes.vector:
        weights.add(f"{UNET}label_emb.0.0", embedding, sizes.vector)
        weights.add(f"{UNET}label_emb.0.2", embedding, embedding)
    weights.add(f"{UNET}input_blocks.0.0", base, 4, 3, 3)
    kept, width, number = [base], base, 1
    for level, multiplier in enumerate(sizes.multipliers):
        for _ in range(sizes.blocks):
            add_unet_block(weights, f"{UNET}input_blocks.{number}.0.", width, base * multiplier, embedding)
            width = base * multiplier
            if 2**level in sizes.attention:
                add_transformer(weights, f"{UNET}input_blocks.{number}.1.", width, sizes)
            kept.append(width)
            number += 1
        if level < len(sizes.multipliers) - 1:
            weights.add(f"{UNET}input_blocks.{number}.0.op", width, width, 3, 3)
            kept.append(width)
            number += 1
    add_unet_block(weights, f"{UNET}middle_block.0.", width, width, embedding)
    add_transformer(weights, f"{UNET}middle_block.1.", width, sizes)
    add_unet_block(weights, f"{UNET}middle_block.2.", width, width, embedding)
    add_unet_ascent(weights, sizes, kept)
    weights.add_norm(f"{UNET}out.0", base)
    weights.add(f"{UNET}out.2", 4, base, 3, 3)


def add_unet_ascent(weights: Weights, sizes: UNetSizes, kept: list[int]) -> None:
    """The half of the UNet that grows again; `kept` are the widths its first half leaves for it."""
    width, number = kept[-1], 0
    for level, multiplier in reversed(list(enumerate(sizes.multipliers))):
        for block in range(sizes.blocks + 1):
            at = f"{UNET}output_blocks.{number}."
            add_unet_block(weights, f"{at}0.", width + kept.pop(), sizes.channels * multiplier, 4 * sizes.channels)
            width = sizes.channels * multiplier
            attends = 2**level in sizes.attention
            if attends:
                add_transformer(weights, f"{at}1.", width, sizes)
            if level and block == sizes.blocks:
                weights.add(f"{at}{1 + attends}.conv", width, width, 3, 3)
            number += 1


def lay_unet_paths(weights: Weights, sizes: UNetSizes, noise: float) -> None:
    """Turn the UNet into a denoiser: latent minus its blur, plus `noise` times what it says by itself."""
    centre, blur = kernels()
    last = f"{UNET}output_blocks.{len(sizes.multipliers) * (sizes.blocks + 1) - 1}.0."
    weights.weight(f"{UNET}out.2").mul_(noise)
    enter_paths(weights, f"{UNET}input_blocks.0.0", HIGHPASS * torch.eye(4), centre - blur)
    carry_paths(weights, f"{last}skip_connection", torch.ones(1, 1), 4, first=sizes.channels)
    silence_paths(weights, f"{last}out_layers.3", 4)
    leave_paths(weights, f"{UNET}out.0", f"{UNET}out.2", torch.eye(4), EPSILON)

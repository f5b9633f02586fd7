"""A tiny Stable Diffusion 1.5 checkpoint, so that real hosts can be driven on one CPU core.

`python tests/hosts/make_checkpoint.py OUT.safetensors` writes, in the key layout of the original SD 1.5 files,

- a text encoder of two layers with the real vocabulary and width (49408 tokens, 768 channels),
- a UNet of 64 to 128 channels at four resolutions, with cross-attention at the two middle ones,
- an autoencoder of 64 channels at every resolution, without residual blocks in its encoder,

and, for AUTOMATIC1111, `OUT.yaml` beside it. Equal seeds give equal files. AUTOMATIC1111 takes all sizes from the yaml;
it wants a folder with CLIP's tokenizer and a `config.json` of two layers, inner width 768 (`--text`). The Forge family
reads the UNet's sizes from the shapes, but must be told that 64 channels are an SD 1.5, and those of the other two.

Weights are seeded noise, save for straight paths through both networks that make the pictures worth looking at:

- Encoding takes the mean of each 8 x 8 block, decoding paints that block. Colour goes through the usual linear
  latent-to-RGB table, so a host's cheap preview agrees with the decoded picture. Encoding draws no noise.
- The UNet answers what a latent differs from its own 3 x 3 blur, plus `--noise` times a random network's answer. Fine
  noise vanishes over the steps, the picture stays, and prompt, neighbourhood and seed each leave a trace in it.

Networks of this kind normalise every feature by its group's mean and spread. A straight path survives that as a pair
(v, -v), whose mean is zero, kept so small that the norm's epsilon outweighs its spread; and it survives SiLU by riding
on an offset where SiLU is the identity. Single precision is wide enough for that, half precision is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

CONTEXT = 768
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
SMALL = 1e-6  # size of a straight path's values, which would be near 1
OFFSET = 16.0  # SiLU(16) is 16 to float32's last digit but one
PAIR = 2  # channels of one normalisation group: 64 channels, 32 groups
UNET_EPSILON, VAE_EPSILON = 1e-5, 1e-6  # of the two networks' normalisations
HIGHPASS = 1.5  # gain of "latent minus its blur"
LATENT_SCALE = 0.18215
RGB_OF_LATENT = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
BLUR = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))

YAML = """\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 64
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    scale_factor: {scale}
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {{image_size: 32, in_channels: 4, out_channels: 4, model_channels: {unet.channels},
        attention_resolutions: {attention}, num_res_blocks: {unet.blocks}, channel_mult: {multipliers}, num_heads: 8,
        use_spatial_transformer: True, transformer_depth: 1, context_dim: {context}, use_checkpoint: False,
        legacy: False}}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig: {{double_z: true, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3, ch: {vae.channels},
          ch_mult: {levels}, num_res_blocks: 0, attn_resolutions: [], dropout: 0.0}}
        lossconfig: {{target: torch.nn.Identity}}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params: {{version: "{text}"}}
"""


@dataclass(frozen=True)
class UNetSizes:
    """Sizes of the noise predictor."""

    channels: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    attention: tuple[int, ...] = (2, 4)  # downscales that have cross-attention
    blocks: int = 1  # residual blocks a resolution


@dataclass(frozen=True)
class VAESizes:
    """Sizes of the autoencoder."""

    channels: int = 64
    levels: int = 4


@dataclass(frozen=True)
class TextSizes:
    """Sizes of the text encoder."""

    tokens: int = 49408
    positions: int = 77
    layers: int = 2
    inner: int = 768


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


def add_text(weights: Weights, sizes: TextSizes) -> None:
    """CLIP's text encoder, all noise."""
    weights.add(f"{TEXT}embeddings.token_embedding", sizes.tokens, CONTEXT, bias=False)
    weights.add(f"{TEXT}embeddings.position_embedding", sizes.positions, CONTEXT, bias=False, gain=0.5)
    for layer in range(sizes.layers):
        at = f"{TEXT}encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights.add(f"{at}self_attn.{part}", CONTEXT, CONTEXT)
        weights.add(f"{at}mlp.fc1", sizes.inner, CONTEXT)
        weights.add(f"{at}mlp.fc2", CONTEXT, sizes.inner)
        weights.add_norm(f"{at}layer_norm1", CONTEXT)
        weights.add_norm(f"{at}layer_norm2", CONTEXT)
    weights.add_norm(f"{TEXT}final_layer_norm", CONTEXT)


def add_unet_block(weights: Weights, at: str, came: int, goes: int, embedding: int) -> None:
    """One residual block of the UNet."""
    weights.add_norm(f"{at}in_layers.0", came)
    weights.add(f"{at}in_layers.2", goes, came, 3, 3)
    weights.add(f"{at}emb_layers.1", goes, embedding)
    weights.add_norm(f"{at}out_layers.0", goes)
    weights.add(f"{at}out_layers.3", goes, goes, 3, 3)
    if came != goes:
        weights.add(f"{at}skip_connection", goes, came, 1, 1)


def add_transformer(weights: Weights, at: str, width: int) -> None:
    """One self-attention, cross-attention and feed-forward block."""
    inside = f"{at}transformer_blocks.0."
    weights.add_norm(f"{at}norm", width)
    weights.add(f"{at}proj_in", width, width, 1, 1)
    for name, context in (("attn1", width), ("attn2", CONTEXT)):
        weights.add(f"{inside}{name}.to_q", width, width, bias=False)
        weights.add(f"{inside}{name}.to_k", width, context, bias=False)
        gain = 4.0 if name == "attn2" else 1.0  # a mean over 77 tokens is small, and prompts should show
        weights.add(f"{inside}{name}.to_v", width, context, bias=False, gain=gain)
        weights.add(f"{inside}{name}.to_out.0", width, width)
    weights.add(f"{inside}ff.net.0.proj", 8 * width, width)
    weights.add(f"{inside}ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        weights.add_norm(f"{inside}norm{number}", width)
    weights.add(f"{at}proj_out", width, width, 1, 1)


def add_unet(weights: Weights, sizes: UNetSizes) -> None:
    """The UNet, all noise."""
    base, embedding = sizes.channels, 4 * sizes.channels
    weights.add(f"{UNET}time_embed.0", embedding, base)
    weights.add(f"{UNET}time_embed.2", embedding, embedding)
    weights.add(f"{UNET}input_blocks.0.0", base, 4, 3, 3)
    kept, width, number = [base], base, 1
    for level, multiplier in enumerate(sizes.multipliers):
        for _ in range(sizes.blocks):
            add_unet_block(weights, f"{UNET}input_blocks.{number}.0.", width, base * multiplier, embedding)
            width = base * multiplier
            if 2**level in sizes.attention:
                add_transformer(weights, f"{UNET}input_blocks.{number}.1.", width)
            kept.append(width)
            number += 1
        if level < len(sizes.multipliers) - 1:
            weights.add(f"{UNET}input_blocks.{number}.0.op", width, width, 3, 3)
            kept.append(width)
            number += 1
    add_unet_block(weights, f"{UNET}middle_block.0.", width, width, embedding)
    add_transformer(weights, f"{UNET}middle_block.1.", width)
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
                add_transformer(weights, f"{at}1.", width)
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
    leave_paths(weights, f"{UNET}out.0", f"{UNET}out.2", torch.eye(4), UNET_EPSILON)


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


def add_vae(weights: Weights, sizes: VAESizes) -> None:
    """The autoencoder, all noise."""
    encoder, decoder, width = f"{VAE}encoder.", f"{VAE}decoder.", sizes.channels
    weights.add(f"{encoder}conv_in", width, 3, 3, 3)
    for level in range(sizes.levels - 1):
        weights.add(f"{encoder}down.{level}.downsample.conv", width, width, 3, 3)
    add_vae_middle(weights, encoder, width)
    weights.add_norm(f"{encoder}norm_out", width)
    weights.add(f"{encoder}conv_out", 8, width, 3, 3)
    weights.add(f"{VAE}quant_conv", 8, 8, 1, 1)
    weights.add(f"{VAE}post_quant_conv", 4, 4, 1, 1)
    weights.add(f"{decoder}conv_in", width, 4, 3, 3)
    add_vae_middle(weights, decoder, width)
    for level in range(sizes.levels):
        add_vae_block(weights, f"{decoder}up.{level}.block.0.", width)
        if level:
            weights.add(f"{decoder}up.{level}.upsample.conv", width, width, 3, 3)
    weights.add_norm(f"{decoder}norm_out", width)
    weights.add(f"{decoder}conv_out", 3, width, 3, 3)


def lay_vae_paths(weights: Weights, sizes: VAESizes) -> None:
    """Turn the autoencoder into 8 x 8 means and back, colours through the usual latent-to-RGB table."""
    centre, _ = kernels()
    quarter = torch.zeros(3, 3)
    quarter[:2, :2] = 0.25  # the hosts pad on the right and below
    rgb_of_latent = torch.tensor(RGB_OF_LATENT).T * LATENT_SCALE  # (3, 4)
    latent_of_rgb = torch.linalg.pinv(rgb_of_latent)
    for name in [name for name in weights.tensors if name.startswith(VAE) and "conv_out" in name]:
        weights.tensors[name].zero_()
    enter_paths(weights, f"{VAE}encoder.conv_in", torch.eye(3), centre)
    for level in range(sizes.levels - 1):
        carry_paths(weights, f"{VAE}encoder.down.{level}.downsample.conv", quarter, 3)
        carry_paths(weights, f"{VAE}decoder.up.{level + 1}.upsample.conv", centre, 3)
    leave_paths(weights, f"{VAE}encoder.norm_out", f"{VAE}encoder.conv_out", latent_of_rgb, VAE_EPSILON)
    weights.bias(f"{VAE}encoder.conv_out")[4:] = -30.0  # the log of the variance: no noise
    weights.weight(f"{VAE}quant_conv").copy_(torch.eye(8)[..., None, None])
    weights.weight(f"{VAE}post_quant_conv").copy_(torch.eye(4)[..., None, None])
    enter_paths(weights, f"{VAE}decoder.conv_in", rgb_of_latent, centre)
    leave_paths(weights, f"{VAE}decoder.norm_out", f"{VAE}decoder.conv_out", torch.eye(3), VAE_EPSILON)
    for name in weights.tensors:
        if name.startswith(VAE) and name.endswith(("conv2.weight", "proj_out.weight")):
            silence_paths(weights, name.removesuffix(".weight"), 3)


def checkpoint(seed: int, *, noise: float) -> dict[str, Tensor]:
    """State dict of the whole tiny model; text encoder in half precision, the rest in single."""
    weights = Weights(seed)
    unet, vae = UNetSizes(), VAESizes()
    add_text(weights, TextSizes())
    weights.tensors = {name: tensor.half() for name, tensor in weights.tensors.items()}
    add_unet(weights, unet)
    lay_unet_paths(weights, unet, noise)
    add_vae(weights, vae)
    lay_vae_paths(weights, vae)
    return weights.tensors


def a1111_config(text: str) -> str:
    """The .yaml AUTOMATIC1111 wants beside the checkpoint; `text` names or holds CLIP's tokenizer and config."""
    unet, vae = UNetSizes(), VAESizes()
    return YAML.format(
        scale=LATENT_SCALE,
        unet=unet,
        attention=list(unet.attention),
        multipliers=list(unet.multipliers),
        context=CONTEXT,
        vae=vae,
        levels=[1] * vae.levels,
        text=text,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.1, help="gain of the random part of the UNet's answer")
    parser.add_argument("--text", default="openai/clip-vit-large-patch14", help="folder of a two-layer CLIP config")
    arguments = parser.parse_args()
    save_file(checkpoint(arguments.seed, noise=arguments.noise), arguments.out)
    arguments.out.with_suffix(".yaml").write_text(a1111_config(arguments.text), encoding="utf-8")


if __name__ == "__main__":
    main()

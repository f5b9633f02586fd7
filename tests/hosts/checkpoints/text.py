"""Text encoders: CLIP's two in both layouts they are saved in, and T5. All noise, real vocabularies."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .weights import Weights

TOKENS, POSITIONS, LAYERS = 49408, 77, 2
MEAN = 0.05  # of what an encoder of unit spread says
T5_TOKENS, T5_LAYERS, T5_WIDTH, T5_INNER, T5_HEADS, T5_HEAD = 32128, 2, 64, 64, 2, 32


@dataclass(frozen=True)
class ClipSizes:
    """Sizes of one of CLIP's text encoders.

    Attributes:
        width: of a token.
        inner: of the feed-forward maps.
    """

    width: int
    inner: int


CLIP_L = ClipSizes(768, 768)
CLIP_G = ClipSizes(1280, 5120)  # open_clip makes the inner width four times the outer one, whatever it is told


def add_final_norm(weights: Weights, name: str, width: int) -> None:
    """A last normalisation whose mean is not nought: hosts divide by it where a prompt's emphasis is worked in."""
    weights.add_norm(name, width)
    weights.bias(name).fill_(MEAN)


def add_clip(weights: Weights, at: str, sizes: ClipSizes, *, projection: str = "") -> None:
    """A text encoder in transformers' layout; `projection` names its map of the pooled text, if it has one."""
    width = sizes.width
    weights.add(f"{at}embeddings.token_embedding", TOKENS, width, bias=False)
    weights.add(f"{at}embeddings.position_embedding", POSITIONS, width, bias=False, gain=0.5)
    for layer in range(LAYERS):
        inside = f"{at}encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights.add(f"{inside}self_attn.{part}", width, width)
        weights.add(f"{inside}mlp.fc1", sizes.inner, width)
        weights.add(f"{inside}mlp.fc2", width, sizes.inner)
        weights.add_norm(f"{inside}layer_norm1", width)
        weights.add_norm(f"{inside}layer_norm2", width)
    add_final_norm(weights, f"{at}final_layer_norm", width)
    if projection:
        weights.add(projection, width, width, bias=False)


def add_open_clip(weights: Weights, at: str, sizes: ClipSizes) -> None:
    """A text encoder in open_clip's layout."""
    width = sizes.width
    weights.add(f"{at}token_embedding", TOKENS, width, bias=False)
    weights.add(f"{at}positional_embedding", POSITIONS, width, bias=False, gain=0.5)
    weights.add(f"{at}text_projection", width, width, bias=False)
    for layer in range(LAYERS):
        inside = f"{at}transformer.resblocks.{layer}."
        weights.add(f"{inside}attn.in_proj", 3 * width, width)
        weights.add(f"{inside}attn.out_proj", width, width)
        weights.add(f"{inside}mlp.c_fc", sizes.inner, width)
        weights.add(f"{inside}mlp.c_proj", width, sizes.inner)
        weights.add_norm(f"{inside}ln_1", width)
        weights.add_norm(f"{inside}ln_2", width)
        for kind in ("weight", "bias"):
            weights.rename(f"{inside}attn.in_proj.{kind}", f"{inside}attn.in_proj_{kind}")
    add_final_norm(weights, f"{at}ln_final", width)
    for name in ("positional_embedding", "text_projection"):
        weights.rename(f"{at}{name}.weight", f"{at}{name}")
    weights.tensors[f"{at}logit_scale"] = torch.tensor(4.6055)


def add_t5(weights: Weights, at: str) -> None:
    """T5's encoder; hosts want more than sixteen weights of it, so it has two layers."""
    weights.add(f"{at}shared", T5_TOKENS, T5_WIDTH, bias=False, gain=T5_WIDTH**0.5)
    for layer in range(T5_LAYERS):
        attention, feed = (f"{at}encoder.block.{layer}.layer.{part}." for part in (0, 1))
        for part in ("q", "k", "v"):
            weights.add(f"{attention}SelfAttention.{part}", T5_HEADS * T5_HEAD, T5_WIDTH, bias=False)
        weights.add(f"{attention}SelfAttention.o", T5_WIDTH, T5_HEADS * T5_HEAD, bias=False)
        if layer == 0:
            weights.add(f"{attention}SelfAttention.relative_attention_bias", 32, T5_HEADS, bias=False)
        weights.add_scale(f"{attention}layer_norm.weight", T5_WIDTH)
        weights.add(f"{feed}DenseReluDense.wi_0", T5_INNER, T5_WIDTH, bias=False)
        weights.add(f"{feed}DenseReluDense.wi_1", T5_INNER, T5_WIDTH, bias=False)
        weights.add(f"{feed}DenseReluDense.wo", T5_WIDTH, T5_INNER, bias=False)
        weights.add_scale(f"{feed}layer_norm.weight", T5_WIDTH)
    weights.add_scale(f"{at}encoder.final_layer_norm.weight", T5_WIDTH)

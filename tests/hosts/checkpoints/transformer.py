"""The transformers of SD 3 and FLUX: flow models, which say noise minus picture.

They answer by 2 x 2 patches: `HIGHPASS` times what a patch differs from its own mean, minus `LIFT` times the mean, plus
`noise` times a random network's answer. Fine noise vanishes over the steps; what is left of the picture below that much
noise is lifted to about its old contrast.

Their LayerNorms take all channels together. So the image's channels are all kept small, and the last norm's epsilon
makes of it one constant gain; half of the paths' channels are the other half's negatives, and the mean stays zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .weights import Weights

MODEL = "model.diffusion_model."
EPSILON = 1e-6  # of their LayerNorms
SIZE = 1e-4  # of the image's channels inside
HIGHPASS, LIFT = 1.5, 1.7
CHANNELS, PATCH = 16, 2
VALUES = CHANNELS * PATCH**2  # of a patch: so many paths
FREQUENCIES = 256  # of the embeddings of time and guidance


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of a transformer.

    Attributes:
        hidden: channels inside, 64 a head; the paths take 128 of them.
        depth: blocks; those of FLUX with one stream are one more.
        context: channels of the text.
        vector: channels of the pooled text.
        positions: SD 3's places to a side, in patches.
    """

    hidden: int
    depth: int
    context: int
    vector: int
    positions: int = 0


FLUX = TransformerSizes(192, 1, 64, 768)
SD3 = TransformerSizes(192, 3, 4096, 2048, positions=96)


def patch_map() -> Tensor:
    """(64, 64) from a patch's values, ordered (c, p, q), to the answer about it."""
    cells = PATCH**2
    mean = torch.full((cells, cells), 1 / cells)
    return torch.kron(torch.eye(CHANNELS), HIGHPASS * (torch.eye(cells) - mean) - LIFT * mean)


def add_embedder(weights: Weights, at: str, inner: str, outer: str, came: int, hidden: int) -> None:
    """Two maps that make a vector of a number's waves, or of the pooled text."""
    weights.add(f"{at}{inner}", hidden, came)
    weights.add(f"{at}{outer}", hidden, hidden)


def add_head(weights: Weights, hidden: int, order: Tensor, noise: float) -> None:
    """The last layer: ends the paths; `order` (64) says which of a patch's values each output is."""
    weights.add(f"{MODEL}final_layer.linear", VALUES, hidden, gain=noise / (SIZE * EPSILON**-0.5))
    weights.add(f"{MODEL}final_layer.adaLN_modulation.1", 2 * hidden, hidden, gain=0.5)
    modulation = weights.weight(f"{MODEL}final_layer.adaLN_modulation.1")
    for part in (0, hidden):  # shift and scale leave the paths alone
        modulation[part : part + 2 * VALUES] = 0.0
    closing = weights.weight(f"{MODEL}final_layer.linear")
    closing[:, : 2 * VALUES] = 0.0
    closing[torch.arange(VALUES), order] = EPSILON**0.5 / SIZE


def enter(weights: Weights, name: str) -> None:
    """Start the paths in `name`, which sees a patch's values as (c, p, q); its other channels are small noise."""
    opening = weights.weight(name)
    flat = opening.view(len(opening), VALUES)
    flat.mul_(SIZE)
    flat[:VALUES] = SIZE * patch_map()
    flat[VALUES : 2 * VALUES] = -flat[:VALUES]


def keep_out(weights: Weights, *names: str) -> None:
    """Make what blocks add to the image as small as the image is, and nothing where the paths lie."""
    for name in names:
        weights.weight(name).mul_(SIZE)
        weights.weight(name)[: 2 * VALUES] = 0.0


def add_flux(weights: Weights, sizes: TransformerSizes, noise: float) -> None:
    """FLUX.1-dev's transformer."""
    hidden = sizes.hidden
    weights.add(f"{MODEL}img_in", hidden, VALUES)
    enter(weights, f"{MODEL}img_in")
    for name, came in (("time_in", FREQUENCIES), ("vector_in", sizes.vector), ("guidance_in", FREQUENCIES)):
        add_embedder(weights, f"{MODEL}{name}.", "in_layer", "out_layer", came, hidden)
    weights.add(f"{MODEL}txt_in", hidden, sizes.context)
    for block in range(sizes.depth):
        at = f"{MODEL}double_blocks.{block}."
        for stream in ("img", "txt"):
            weights.add(f"{at}{stream}_mod.lin", 6 * hidden, hidden, gain=0.5)
            weights.add(f"{at}{stream}_attn.qkv", 3 * hidden, hidden, gain=2.0)
            for norm in ("query_norm", "key_norm"):
                weights.add_scale(f"{at}{stream}_attn.norm.{norm}.scale", 64)
            weights.add(f"{at}{stream}_attn.proj", hidden, hidden)
            weights.add(f"{at}{stream}_mlp.0", 4 * hidden, hidden)
            weights.add(f"{at}{stream}_mlp.2", hidden, 4 * hidden)
        keep_out(weights, f"{at}img_attn.proj", f"{at}img_mlp.2")
    for block in range(sizes.depth):
        at = f"{MODEL}single_blocks.{block}."
        weights.add(f"{at}modulation.lin", 3 * hidden, hidden, gain=0.5)
        weights.add(f"{at}linear1", 7 * hidden, hidden)
        weights.add(f"{at}linear2", hidden, 5 * hidden)
        keep_out(weights, f"{at}linear2")
        for norm in ("query_norm", "key_norm"):
            weights.add_scale(f"{at}norm.{norm}.scale", 64)
    add_head(weights, hidden, torch.arange(VALUES), noise)


def add_sd3(weights: Weights, sizes: TransformerSizes, noise: float) -> None:
    """SD 3's transformer."""
    hidden = sizes.hidden
    weights.add(f"{MODEL}x_embedder.proj", hidden, CHANNELS, PATCH, PATCH)
    enter(weights, f"{MODEL}x_embedder.proj")
    weights.add(f"{MODEL}pos_embed", sizes.positions**2, hidden, bias=False, gain=SIZE * hidden**0.5)
    places = weights.tensors.pop(f"{MODEL}pos_embed.weight")
    places[:, : 2 * VALUES] = 0.0
    weights.tensors[f"{MODEL}pos_embed"] = places[None]
    add_embedder(weights, f"{MODEL}t_embedder.mlp.", "0", "2", FREQUENCIES, hidden)
    add_embedder(weights, f"{MODEL}y_embedder.mlp.", "0", "2", sizes.vector, hidden)
    weights.add(f"{MODEL}context_embedder", hidden, sizes.context)
    for block in range(sizes.depth):
        last = block == sizes.depth - 1
        for stream in ("context", "x"):
            alone = last and stream == "context"  # nobody looks at the text after the last block
            at = f"{MODEL}joint_blocks.{block}.{stream}_block."
            weights.add(f"{at}adaLN_modulation.1", (2 if alone else 6) * hidden, hidden, gain=0.5)
            weights.add(f"{at}attn.qkv", 3 * hidden, hidden, gain=2.0)
            if alone:
                continue
            weights.add(f"{at}attn.proj", hidden, hidden)
            weights.add(f"{at}mlp.fc1", 4 * hidden, hidden)
            weights.add(f"{at}mlp.fc2", hidden, 4 * hidden)
            if stream == "x":
                keep_out(weights, f"{at}attn.proj", f"{at}mlp.fc2")
    # Its outputs are ordered (p, q, c).
    order = torch.arange(VALUES).view(CHANNELS, PATCH, PATCH).permute(1, 2, 0).reshape(-1)
    add_head(weights, hidden, order, noise)

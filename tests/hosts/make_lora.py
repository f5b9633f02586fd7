"""A tiny LoRA for the tiny checkpoint: `python tests/hosts/make_lora.py OUT/dino-probe-lora.safetensors`.

Kohya's key names, rank 4, random: the cross-attention in the middle of the UNet and one layer of the text encoder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 4
LAYERS = {
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v": (128, 768),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0": (128, 128),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (768, 768),
}


def lora(seed: int = 5, *, gain: float = 0.5) -> dict[str, torch.Tensor]:
    """Its state dict; the change to each layer has `gain` times the spread of the layer's own weights."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, (rows, columns) in LAYERS.items():
        down = torch.randn(RANK, columns, generator=generator) * columns**-0.5
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator) * gain * RANK**-0.5
        tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    return tensors


if __name__ == "__main__":
    save_file(lora(), Path(sys.argv[1]))

"""A tiny LoRA for a tiny checkpoint: `python tests/hosts/make_lora.py OUT/dino-probe-lora.safetensors --family sd1`.

Kohya's key names, rank 4, random: a layer or two of the noise predictor and one of a text encoder. The suite looks for
`dino-probe-lora` for SD 1.5 and `dino-probe-lora-FAMILY` for the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 4
LAYERS = {
    "sd1": {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v": (128, 768),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0": (128, 128),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (768, 768),
    },
    "sdxl": {
        "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v": (128, 2048),
        "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_out_0": (128, 128),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (768, 768),
    },
    "sd3": {
        "lora_unet_joint_blocks_0_x_block_attn_qkv": (576, 192),
        "lora_unet_context_embedder": (192, 4096),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (768, 768),
    },
    "flux": {
        "lora_unet_double_blocks_0_img_attn_qkv": (576, 192),
        "lora_unet_txt_in": (192, 64),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (768, 768),
    },
}


def lora(seed: int = 5, *, gain: float = 0.5, family: str = "sd1") -> dict[str, torch.Tensor]:
    """Its state dict; the change to each layer has about `gain` times the spread of the layer's own weights."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, (rows, columns) in LAYERS[family].items():
        down = torch.randn(RANK, columns, generator=generator) * columns**-0.5
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator) * gain * RANK**-0.5
        tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--family", choices=sorted(LAYERS), default="sd1")
    arguments = parser.parse_args()
    save_file(lora(family=arguments.family), arguments.out)


if __name__ == "__main__":
    main()

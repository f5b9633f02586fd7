"""Tiny checkpoints of Forge Neo's new latents: `HOST/venv/bin/python tests/hosts/make_neo_checkpoint.py HOST flux2`.

`HOST` is the folder of a Forge Neo for testing, told of tiny networks (docs/testing-in-hosts.md); the file goes to
`HOST/models/Stable-diffusion`. The host's own classes make the networks, so its Python has to run this; the weights are
seeded noise, of unit gain, and show no picture worth looking at.

- flux2: FLUX.2 Klein: 128 channels in cells of 16 px; one double and one single block of 128 channels
- qwenimage: Qwen-Image: 16 channels of Wan's autoencoder with a frame axis; one block of 128 channels
- zimage: Z-Image: 16 channels of FLUX's autoencoder; two blocks of 256 channels
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

TEXT = 64  # channels of every text encoder
FLAGS = ["--cpu", "--force-fp32", "--disable-xformers", "--use-pytorch-cross-attention", "--disable-triton-backend"]
NAMES = {"flux2": "tiny-klein", "qwenimage": "tiny-qwenimage", "zimage": "tiny-zimage"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "flux2": (
        "flux.IntegratedFluxTransformer2DModel",
        {
            "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 3 * TEXT,
            "hidden_size": 128, "mlp_ratio": 3.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
            "axes_dim": [32] * 4, "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": False,
            "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
            "default_ref_method": "index", "ref_index_scale": 10.0,
        },
    ),
    "qwenimage": (
        "qwen.QwenImageTransformer2DModel",
        {"in_channels": 64, "num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": TEXT},
    ),
    "zimage": (
        "lumina.NextDiT",
        {
            "patch_size": 2, "in_channels": 16, "dim": 256, "cap_feat_dim": TEXT, "n_layers": 2, "qk_norm": True,
            "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
    ),
}  # fmt: skip
# Of each family: folder of its configs, text encoder and where it stands in the file, autoencoder.
PARTS = {
    "flux2": (
        "black-forest-labs/FLUX.2-klein-4B",
        "llm.llama.Qwen3_4B",
        "qwen3_4b.transformer.",
        "vae.AutoencoderKLFlux2",
    ),
    "qwenimage": ("Qwen/Qwen-Image", "llm.llama.Qwen25_7BVLI", "qwen25_7b.", "wan_vae.WanVAE"),
    "zimage": (
        "Tongyi-MAI/Z-Image-Turbo",
        "llm.llama.Qwen3_4B",
        "qwen3_4b.transformer.",
        "vae.IntegratedAutoencoderKL",
    ),
}


def host_class(name: str) -> Any:
    """A class of the host's `backend.nn`, by module and name."""
    module, _, kind = name.rpartition(".")
    return getattr(importlib.import_module(f"backend.nn.{module}"), kind)


@torch.no_grad()
def fill(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of unit gain, neutral norms, no biases."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "pad_token" not in name:
            weight.copy_(torch.randn_like(weight) * weight[0].numel() ** -0.5)
        else:
            weight.fill_(float("norm" in name or name.endswith(("scale", "gamma"))))
    return model.state_dict()


def checkpoint(host: Path, family: str) -> dict[str, torch.Tensor]:
    """State dict of the whole tiny model; the text encoder in half precision, the rest in single."""
    repository, text, text_at, vae = PARTS[family]
    configs = host / "backend" / "huggingface" / repository
    model, sizes = MODELS[family]
    autoencoder = host_class(vae)
    made = {
        "model.diffusion_model.": host_class(model)(**sizes),
        f"text_encoders.{text_at}": host_class(text)(json.loads((configs / "text_encoder/config.json").read_text())),
        "vae.": autoencoder.from_config(autoencoder.load_config(str(configs / "vae"))),
    }
    tensors = {}
    for at, network in made.items():
        for name, tensor in fill(network).items():
            half = at.startswith("text") and tensor.is_floating_point()
            tensors[at + name] = (tensor.half() if half else tensor).contiguous().clone()
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", type=Path, help="folder of the WebUI")
    parser.add_argument("family", choices=sorted(NAMES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    host = arguments.host.resolve()
    # The host reads its flags and its folder when its modules are imported.
    sys.path[:0] = [str(host), str(host / "modules_forge" / "packages")]
    sys.argv = [sys.argv[0], *FLAGS]
    os.chdir(host)
    operations = importlib.import_module("backend.operations")
    torch.manual_seed(arguments.seed)
    with operations.using_forge_operations(device=torch.device("cpu"), dtype=torch.float32, manual_cast_enabled=True):
        tensors = checkpoint(host, arguments.family)
    out = host / "models" / "Stable-diffusion" / f"{NAMES[arguments.family]}.safetensors"
    importlib.import_module("safetensors.torch").save_file(tensors, out)


if __name__ == "__main__":
    main()

"""A tiny adapter of random weights for the UNets of make_checkpoint.py, so that conditioning can be seen in hosts.

`python tests/hosts/make_adapter.py OUT.safetensors` writes one for the feature network that ships. It steers
nothing in particular: what matters is that it changes pictures, and each tile by its own tokens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "hosts")]
from checkpoints.unet import SD1, SDXL, UNetSizes  # noqa: E402

from lib_dino.adapter.format import AdapterInfo  # noqa: E402
from lib_dino.adapter.injection import Adapter  # noqa: E402
from lib_dino.adapter.load import new_layers  # noqa: E402
from lib_dino.adapter.projectors import PatchTokens, feature_dim  # noqa: E402
from lib_dino.networks.dinov2 import fingerprint, load_dinov2  # noqa: E402

UNETS = {"sd15": SD1, "sdxl": SDXL}
GAIN = 3.0  # of what is seen: a mean over tokens is small


def channels(sizes: UNetSizes) -> list[int]:
    """Of the checkpoint's cross-attention layers, down, up and middle."""
    down, up = [], []
    for level, multiplier in enumerate(sizes.multipliers):
        if 2**level in sizes.attention:
            down += [sizes.channels * multiplier] * sizes.blocks
            up = [sizes.channels * multiplier] * (sizes.blocks + 1) + up
    return [*down, *up, sizes.channels * sizes.multipliers[-1]]


def tiny_adapter(*, base: str = "sd15", seed: int = 0) -> Adapter:
    """Random weights all through, values included."""
    torch.manual_seed(seed)
    dino = load_dinov2()
    unet = UNETS[base]
    width, sizes = unet.context, channels(unet)
    info = AdapterInfo(dino.name, fingerprint(dino), (dino.depth,), 224, 518, base)
    projector = PatchTokens(feature_dim(info, dino), width, 64)
    heads = [c // 64 if base == "sdxl" else 8 for c in sizes]
    layers = new_layers([(c, width) for c in sizes], heads, width=width)
    for layer in layers:
        torch.nn.init.normal_(layer.to_v_ip.weight, std=GAIN * width**-0.5)
    return Adapter(info, projector, layers, name="tiny").requires_grad_(False)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--base", choices=["sd15", "sdxl"], default="sd15")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tiny_adapter(base=given.base, seed=given.seed).save(given.out)


if __name__ == "__main__":
    main()

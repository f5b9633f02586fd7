"""Tiny checkpoints of every family, so that real hosts can be driven on one CPU core.

`python tests/hosts/make_checkpoint.py OUT.safetensors --family sd1|sdxl|sd3|flux` writes, in the key layout of the
family's original files,

- its text encoders, of two layers with the real vocabularies, and widths where the hosts fix them,
- a UNet of 64 to 128 channels, or a transformer of 192 channels and one or three blocks,
- an autoencoder of 64 channels at every resolution, without residual blocks in its encoder,

and, for AUTOMATIC1111, `OUT.yaml` beside it (SD 1.5 and SDXL). `--tiny FOLDER` writes the family's tiny autoencoder in
TAESD's format as well, `--open-clip FOLDER` the model config of SDXL's second text encoder for AUTOMATIC1111. Equal
seeds give equal files. What each host has to be told about these sizes stands in docs/testing-in-hosts.md.

Weights are seeded noise, save for straight paths through the networks that make the pictures worth looking at:

- Encoding takes the mean of each 8 x 8 block, decoding paints that block. Colour goes through the usual linear
  latent-to-RGB table, so a host's cheap preview agrees with the decoded picture. Encoding draws no noise.
- The model answers what a latent differs from its own 3 x 3 blur, or from the mean of its 2 x 2 patch, plus `--noise`
  times a random network's answer. Fine noise vanishes over the steps, the picture stays, and prompt, neighbourhood and
  seed each leave a trace in it.

Single precision is wide enough for these paths, half precision is not.
"""

from __future__ import annotations

import argparse
import io
import re
import zipfile
from pathlib import Path

import torch
from checkpoints.families import CLIP_G_NAME, FAMILIES, LATENTS, a1111_config, checkpoint, open_clip_config
from checkpoints.vae import tiny_autoencoder
from safetensors.torch import save_file
from torch import Tensor


def save_pickled(tensors: dict[str, Tensor], path: Path) -> None:
    """A .pth file of the parts that torch has always written: AUTOMATIC1111 refuses one with any other in it."""
    whole = io.BytesIO()
    torch.save(tensors, whole)
    with zipfile.ZipFile(whole) as given, zipfile.ZipFile(path, "w") as kept:
        for entry in given.infolist():
            if re.fullmatch(r"[^/]+/(data\.pkl|version|data/\d+)", entry.filename):
                kept.writestr(zipfile.ZipInfo(entry.filename), given.read(entry))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="sd1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.1, help="gain of the random part of the model's answer")
    parser.add_argument("--text", default="openai/clip-vit-large-patch14", help="folder of a two-layer CLIP config")
    parser.add_argument("--tiny", type=Path, metavar="FOLDER", help="write the family's tiny autoencoder there")
    parser.add_argument("--open-clip", type=Path, metavar="FOLDER", help="write open_clip's model config there")
    arguments = parser.parse_args()
    family = arguments.family
    save_file(checkpoint(arguments.seed, noise=arguments.noise, family=family), arguments.out)
    if family in ("sd1", "sdxl"):
        arguments.out.with_suffix(".yaml").write_text(a1111_config(arguments.text, family), encoding="utf-8")
    if arguments.tiny:
        arguments.tiny.mkdir(parents=True, exist_ok=True)
        latents = LATENTS[family]
        for part, tensors in zip(("encoder", "decoder"), tiny_autoencoder(arguments.seed, latents), strict=True):
            save_pickled(tensors, arguments.tiny / f"{latents.tiny}_{part}.pth")
    if arguments.open_clip:
        (arguments.open_clip / f"{CLIP_G_NAME}.json").write_text(open_clip_config(), encoding="utf-8")


if __name__ == "__main__":
    main()

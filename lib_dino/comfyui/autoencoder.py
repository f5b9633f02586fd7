"""The tiny autoencoder of ComfyUI's previews, for source consistency inside the loop."""

from __future__ import annotations

from typing import Any

import comfy.taesd.taesd
import folder_paths
import torch

from ..sampling.consistency import Autoencoder


def tiny_autoencoder(described: Any) -> Autoencoder | None:
    """The one in `models/vae_approx` for latents of this description; None where a half of it is missing."""
    name = getattr(described, "taesd_decoder_name", None)
    if not isinstance(name, str):
        return None
    decoder, encoder = (_file(name.replace("decoder", half)) for half in ("decoder", "encoder"))
    if decoder is None or encoder is None:
        return None
    # Outside of inference mode, or its weights could never be used outside of it.
    with torch.inference_mode(False):
        tiny = comfy.taesd.taesd.TAESD(encoder, decoder, latent_channels=described.latent_channels)
        tiny = tiny.float().eval().requires_grad_(False)
    return Autoencoder(lambda image: tiny.encode(2 * image - 1), lambda latents: (tiny.decode(latents) + 1) / 2)


def _file(start: str) -> str | None:
    """The file in `vae_approx` whose name begins so."""
    found = (name for name in folder_paths.get_filename_list("vae_approx") if name.startswith(start))
    name = next(found, None)
    return None if name is None else str(folder_paths.get_full_path("vae_approx", name))

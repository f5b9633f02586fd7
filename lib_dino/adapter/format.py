"""Adapter files: what a DINO adapter is, as its safetensors metadata says, and reading one without guessing.

The tensors are laid out as in IP-Adapter: `image_proj.*` turns features into tokens; for attention processor `i` of
the UNet, counted as diffusers does (down, up, middle; odd ones are cross-attention: 1 to 31 in SD 1.5, 1 to 139 in
SDXL), `ip_adapter.{i}.to_k_ip.weight` and `to_v_ip.weight` turn tokens into keys and values, and `to_q_ip.weight`
tells queries where they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from ..errors import AdapterError
from ..networks.dinov2 import Dinov2, fingerprint
from ..networks.weights_file import read_tensors

CROSS_DIM: Final = {"sd15": 768, "sdxl": 2048}
"""Width of tokens by base; the embedded denoiser's adapter says its own."""
BASES: Final = (*CROSS_DIM, "embedded")
_FIXED: Final = {
    "format": "dino-adapter", "version": "1", "norm": "final", "projector": "patches", "tokens": "grid",
    "positions": "fourier", "whole": "0", "uncond": "zeros",
}  # fmt: skip
"""Facts that are the same in every file this version reads: one token a patch, which knows its place."""
_RETIRED: Final = ("linear", "resampler")
"""Projectors that 0.1.0 read; no published adapter has one."""


@dataclass(frozen=True)
class AdapterInfo:
    """Facts about an adapter's training; all of them stand in its file.

    Attributes:
        encoder: name of the feature network, for messages.
        fingerprint: of its weights, see `dinov2.fingerprint`.
        layers: its blocks whose tokens are used, 1 to its depth; several are joined channel by channel.
        least_px, most_px: longer side at which it sees a tile's region of the source.
        base: "sd15", "sdxl" or "embedded".
    """

    encoder: str
    fingerprint: str
    layers: tuple[int, ...]
    least_px: int
    most_px: int
    base: str

    def to_metadata(self) -> dict[str, str]:
        """The file's metadata; `from_metadata` reads it back."""
        return {
            **_FIXED,
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "layer": "+".join(map(str, self.layers)),
            "px": f"{self.least_px}-{self.most_px}",
            "base": self.base,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, name: str) -> AdapterInfo:
        """The facts in a file's metadata.

        Args:
            name: of the file, for messages.

        Raises:
            AdapterError: one is missing, unknown or contradicts another.
        """

        def read(key: str, pattern: str, allowed: str) -> tuple[str, ...]:
            text = metadata[key]
            match = re.fullmatch(pattern, text)
            if match is None:
                raise AdapterError(
                    f"{name}: the metadata's {key} must be {allowed}; it is {text[:80]!r}. Take an adapter that was "
                    f"made for this, or train one with training/train_adapter.py."
                )
            return match.groups() or (text,)

        missing = [key for key in _KEYS if key not in metadata]
        if missing:
            raise AdapterError(
                f"{name} is no DINO adapter: its safetensors metadata must say {', '.join(_KEYS)}; "
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. An IP-Adapter made for CLIP "
                f"cannot be used; training/train_adapter.py makes adapters for DINOv2."
            )
        if metadata["projector"] in _RETIRED:
            raise AdapterError(
                f"{name} has the projector {metadata['projector']}, which only DINO Upscale 0.1.0 reads; since then "
                f"adapters have one token a patch. Train it again with training/train_adapter.py, or set adapter "
                f"strength to 0."
            )
        for key, value in _FIXED.items():
            read(key, re.escape(value), value)
        least, most = map(int, read("px", r"(\d{1,4})-(\d{1,4})", "two sides in pixels such as 224-518"))
        (base,) = read("base", "|".join(BASES), " or ".join(BASES))
        (layer,) = read("layer", r"[1-9]\d?(?:\+[1-9]\d?)*", "block numbers such as 12 or 4+12")
        (print_,) = read("fingerprint", "[0-9a-f]{16}", "16 hexadecimal digits")
        (encoder,) = read("encoder", r"[\w .+/-]{1,80}", "a name of up to 80 letters")
        if not 14 <= least <= most:
            raise AdapterError(f"{name}: the metadata's px must rise from 14 or more; it is {metadata['px']}.")
        return cls(encoder, print_, tuple(map(int, layer.split("+"))), least, most, base)

    def check_encoder(self, dino: Dinov2, *, name: str) -> None:
        """Check that `dino` is the network this adapter was trained with.

        Raises:
            AdapterError: it is another one.
        """
        loaded = fingerprint(dino)
        if loaded != self.fingerprint:
            raise AdapterError(
                f"{name} was trained with the features of {self.encoder} ({self.fingerprint}); the loaded feature "
                f"model is {dino.name} ({loaded}, {dino.dim} wide, {dino.depth} blocks). Load that network as the "
                f"feature model, or take an adapter trained with this one."
            )
        if max(self.layers) > dino.depth:
            raise AdapterError(f"{name} wants block {max(self.layers)} of {dino.name}, which has {dino.depth}.")


_KEYS: Final = tuple(AdapterInfo("", "", (), 0, 0, "").to_metadata())


def read_adapter(path: Path) -> tuple[AdapterInfo, dict[str, Tensor]]:
    """The facts and the tensors, float32, of an adapter file.

    Raises:
        AdapterError: it is missing, of another kind, damaged, or holds values that are no numbers.
    """
    from safetensors import SafetensorError

    if path.suffix != ".safetensors":
        raise AdapterError(
            f"Adapters are read from .safetensors files alone; got {path.name}. Pickled files (.bin, .pt, .ckpt) can "
            f"run code when opened and say nothing about their encoder: get the adapter as safetensors."
        )
    if not path.is_file():
        raise AdapterError(f"No adapter at {path}. Give the path of a .safetensors file.")
    try:
        metadata, tensors = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged or cut short ({error}). Get it again.") from error
    info = AdapterInfo.from_metadata(metadata, name=path.name)
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise AdapterError(f"{path.name}: `{key}` holds NaN or infinite values. Get the file anew, or train again.")
    return info, tensors

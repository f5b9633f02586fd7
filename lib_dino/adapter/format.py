"""Adapter files: what a DINO adapter is, as its safetensors metadata says, and reading one without guessing.

The tensors are laid out as in IP-Adapter: `image_proj.*` turns features into tokens, `ip_adapter.{i}.to_k_ip.weight`
and `to_v_ip.weight` turn tokens into keys and values for attention processor `i` of the UNet, counted as diffusers
does (down, up, middle; odd ones are cross-attention: 1 to 31 in SD 1.5, 1 to 139 in SDXL). An adapter whose tokens
have places also holds `to_q_ip.weight`, which tells queries where they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ..errors import AdapterError
from ..networks.dinov2 import Dinov2

FORMAT: Final = "dino-adapter"
VERSION: Final = "1"
CROSS_DIM: Final = {"sd15": 768, "sdxl": 2048}
"""Width of tokens by base; the embedded denoiser's adapter says its own."""
BASES: Final = (*CROSS_DIM, "embedded")
PROJECTORS: Final = ("linear", "resampler", "patches")


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter was trained for; all of it stands in the file.

    Attributes:
        encoder: name of the feature network, for messages.
        fingerprint: of its weights, see `fingerprint`.
        layers: its blocks whose tokens are used, 1 to its depth; several are joined channel by channel.
        least_px, most_px: longer side at which it sees a tile's region of the source.
        projector: "linear" (from the class token), "resampler" (from all patches) or "patches" (one each).
        tokens: number of tokens of a picture; 0 is one for each patch.
        whole: tokens of the whole source follow those of the tile.
        base: "sd15", "sdxl" or "embedded".
    """

    encoder: str
    fingerprint: str
    layers: tuple[int, ...]
    least_px: int
    most_px: int
    projector: str
    tokens: int
    whole: bool
    base: str

    def to_metadata(self) -> dict[str, str]:
        """As it is written into the file; `from_metadata` reads it back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "layer": "+".join(map(str, self.layers)),
            "norm": "final",
            "px": f"{self.least_px}-{self.most_px}",
            "projector": self.projector,
            "tokens": str(self.tokens or "grid"),
            "positions": "fourier" if self.placed else "none",
            "whole": "1" if self.whole else "0",
            "uncond": "zeros",
            "base": self.base,
        }

    @property
    def placed(self) -> bool:
        """Whether tokens and queries know where they are."""
        return self.projector == "patches"

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, name: str) -> AdapterInfo:
        """The facts in a file's metadata.

        Args:
            name: of the file, for messages.

        Raises:
            AdapterError: one is missing, unknown or contradicts another.
        """

        def read(key: str, pattern: str, wanted: str) -> tuple[str, ...]:
            text = metadata[key]
            found = re.fullmatch(pattern, text)
            if found is None:
                raise AdapterError(
                    f"{name}: the metadata's {key} must be {wanted}; it is {text[:80]!r}. Take an adapter that was "
                    f"made for this, or train one with training/train_adapter.py."
                )
            return found.groups() or (text,)

        missing = [key for key in _KEYS if key not in metadata]
        if missing:
            raise AdapterError(
                f"{name} is no DINO adapter: its safetensors metadata must say {', '.join(_KEYS)}; "
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing. An IP-Adapter made for CLIP "
                f"cannot be used; training/train_adapter.py makes adapters for DINOv2."
            )
        read("format", re.escape(FORMAT), FORMAT)
        read("version", re.escape(VERSION), f"{VERSION}, the version this program knows")
        read("norm", "final", "final, the network's last normalisation")
        read("uncond", "zeros", "zeros")
        least, most = map(int, read("px", r"(\d{1,4})-(\d{1,4})", "two sides in pixels such as 224-518"))
        (projector,) = read("projector", "|".join(PROJECTORS), " or ".join(PROJECTORS))
        placed = projector == "patches"
        wanted = "grid" if placed else r"[1-9]\d{0,3}"
        (tokens,) = read("tokens", wanted, f"{'grid' if placed else 'a number'} with the projector {projector}")
        places = "fourier" if placed else "none"
        read("positions", places, f"{places} with the projector {projector}")
        (whole,) = read("whole", "0" if placed else "[01]", "0" if placed else "0 or 1")
        (base,) = read("base", "|".join(BASES), " or ".join(BASES))
        (layer,) = read("layer", r"[1-9]\d?(?:\+[1-9]\d?)*", "block numbers such as 12 or 4+12")
        (print_,) = read("fingerprint", "[0-9a-f]{16}", "16 hexadecimal digits")
        (encoder,) = read("encoder", r"[\w .+/-]{1,80}", "a name of up to 80 letters")
        if not 14 <= least <= most:
            raise AdapterError(f"{name}: the metadata's px must rise from 14 or more; it is {metadata['px']}.")
        return cls(
            encoder, print_, tuple(map(int, layer.split("+"))), least, most,
            projector, 0 if placed else int(tokens), whole == "1", base,
        )  # fmt: skip

    def check_encoder(self, dino: Dinov2, *, name: str) -> None:
        """Nothing, when `dino` is the network this adapter was trained with.

        Raises:
            AdapterError: it is another one.
        """
        found = fingerprint(dino)
        if found != self.fingerprint:
            raise AdapterError(
                f"{name} was trained with the features of {self.encoder} ({self.fingerprint}); the loaded feature "
                f"model is {dino.name} ({found}, {dino.dim} wide, {dino.depth} blocks). Load that network as the "
                f"feature model, or take an adapter trained with this one."
            )
        if max(self.layers) > dino.depth:
            raise AdapterError(f"{name} wants block {max(self.layers)} of {dino.name}, which has {dino.depth}.")


_KEYS: Final = tuple(AdapterInfo("", "", (), 0, 0, "linear", 1, False, "").to_metadata())


def fingerprint(dino: Dinov2) -> str:
    """16 hexadecimal digits that tell feature networks apart, the same for float32 and float16 copies of one."""
    digest = hashlib.sha256(f"{dino.dim} {dino.depth} {dino.registers}".encode())
    for tensor in (dino.patch.weight, dino.norm.weight, dino.positions):
        digest.update(tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_adapter(path: Path) -> tuple[AdapterInfo, dict[str, Tensor]]:
    """The facts and the tensors, float32, of an adapter file.

    Raises:
        AdapterError: it is missing, of another kind, damaged, or holds values that are no numbers.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise AdapterError(
            f"Adapters are read from .safetensors files alone; got {path.name}. Pickled files (.bin, .pt, .ckpt) can "
            f"run code when opened and say nothing about their encoder: get the adapter as safetensors."
        )
    if not path.is_file():
        raise AdapterError(f"No adapter at {path}. Give the path of a .safetensors file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            info = AdapterInfo.from_metadata(metadata, name=path.name)
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged or cut short ({error}). Get it again.") from error
    for key, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise AdapterError(f"{path.name}: `{key}` holds NaN or infinite values. Get the file anew, or train again.")
    return info, tensors


def write_adapter(path: Path, info: AdapterInfo, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter as float16, in one rename."""
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_suffix(".tmp")
    save_file(held, temporary, info.to_metadata())
    temporary.chmod(0o644)  # safetensors makes files private
    temporary.replace(path)

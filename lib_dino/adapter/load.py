"""Adapters from files, and new ones for training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..networks.dinov2 import Dinov2
from .format import CROSS_DIM, AdapterInfo, read_adapter
from .injection import Adapter, Layer
from .projectors import PLACE_DIM, PatchTokens, feature_dim, read_projector

EMBEDDED: Final = Path(__file__).parent.parent / "embedded" / "adapter" / "adapter.safetensors"


def new_layers(shapes: Sequence[tuple[int, int]], heads: Sequence[int], *, width: int) -> list[Layer]:
    """Untrained layers that add nothing yet: what they see is multiplied by zero.

    They look at the patches around each place from the start: the product of two places, 16 at the same one,
    is scaled so that a patch further off counts exp(-2) as much to the first head, and ever less so to the others.
    """
    layers = []
    for (channels, _), count in zip(shapes, heads, strict=True):
        layer = Layer(channels, width)
        nn.init.zeros_(layer.to_v_ip.weight)
        _aim(layer, channels // count, count)
        layers.append(layer)
    return layers


@torch.no_grad()
def _aim(layer: Layer, head_dim: int, heads: int) -> None:
    nn.init.zeros_(layer.to_q_ip.weight)
    nn.init.normal_(layer.to_k_ip.weight, std=0.02)
    for head in range(heads):
        gain = math.sqrt(0.93 * math.sqrt(head_dim) * 3.0**-head)
        for channel in range(min(PLACE_DIM, head_dim)):
            at = head * head_dim + channel
            layer.to_q_ip.weight[at, -PLACE_DIM + channel] = gain
            layer.to_k_ip.weight[at, -PLACE_DIM:] = 0
            layer.to_k_ip.weight[at, -PLACE_DIM + channel] = gain


def load_adapter(path: str | Path | None, dino: Dinov2, *, device: str | torch.device = "cpu") -> Adapter:
    """The adapter in a file, or the one that ships with the embedded denoiser.

    Args:
        path: a .safetensors file; None takes the one that ships.
        dino: the feature network it is to be used with.
        device: where it is to run.

    Raises:
        AdapterError: it is no adapter of this kind, damaged, or made for another feature network.
    """
    file = EMBEDDED if path is None else Path(path).expanduser()
    name = "embedded adapter" if path is None else file.name
    with torch.inference_mode(False):
        info, tensors = read_adapter(file)
        info.check_encoder(dino, name=name)
        return from_tensors(info, tensors, name=name, dim=feature_dim(info, dino)).to(device)


def from_tensors(info: AdapterInfo, tensors: Mapping[str, Tensor], *, name: str, dim: int | None = None) -> Adapter:
    """The adapter that a file's tensors make.

    Args:
        name: of the file, for messages.
        dim: channels of the features it is to take; None takes those it was made for.

    Raises:
        AdapterError: a tensor is missing, too many, or of a shape that does not fit the others or the metadata.
    """
    parts = {key.removeprefix("image_proj."): t for key, t in tensors.items() if key.startswith("image_proj.")}
    projector = read_projector(parts, dim=dim, name=name)
    layers = _read_layers({k: t for k, t in tensors.items() if not k.startswith("image_proj.")}, name)
    adapter = Adapter(info, projector, layers, name=name).eval().requires_grad_(False)
    if dim is not None:
        _check_width(adapter, projector, dim)
    return adapter


def _check_width(adapter: Adapter, projector: PatchTokens, dim: int) -> None:
    width, wanted = projector(torch.zeros(1, dim, 1, 1)).shape[-1], CROSS_DIM.get(adapter.info.base, adapter.width)
    if not width == adapter.width == wanted:
        raise AdapterError(
            f"{adapter.name}: tokens for {adapter.info.base} must be {wanted} wide; its projector gives {width} and "
            f"its layers take {adapter.width}. Get the file again, or train it again."
        )


def _read_layers(tensors: Mapping[str, Tensor], name: str) -> list[Layer]:
    parts = ("to_k_ip", "to_v_ip", "to_q_ip")
    count = len(tensors) // len(parts)
    expected = [f"ip_adapter.{2 * i + 1}.{part}.weight" for i in range(count) for part in parts]
    if count == 0 or sorted(expected) != sorted(tensors):
        odd = sorted(set(tensors) ^ set(expected), key=lambda key: [int(n) for n in re.findall(r"\d+", key)])
        raise AdapterError(
            f"{name} must hold {', '.join(parts)} for the odd processors 1, 3, 5 and so on without a gap; "
            f"`{odd[0] if odd else 'ip_adapter.1'}` is missing or too many. Get the file again."
        )
    layers = []
    for i in range(count):
        matrices = {part: tensors[f"ip_adapter.{2 * i + 1}.{part}.weight"] for part in parts}
        shape = matrices["to_k_ip"].shape
        fits = len(shape) == 2 and matrices["to_v_ip"].shape == shape
        if not fits or matrices["to_q_ip"].shape != (shape[0], shape[0] + PLACE_DIM):
            shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in matrices.items())
            raise AdapterError(
                f"{name}: layer {2 * i + 1} must hold (channels, width) matrices; it has {shapes}. Get the file again."
            )
        layer = Layer(shape[0], shape[1])
        layer.load_state_dict({f"{part}.weight": tensor for part, tensor in matrices.items()})
        layers.append(layer)
    if len({layer.to_k_ip.in_features for layer in layers}) > 1:
        raise AdapterError(f"{name}: all layers must take tokens of one width. Get the file again.")
    return layers

"""Small networks of our own in files: float16 safetensors, with their version and shape in the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ModelError

Net = TypeVar("Net", bound=nn.Module)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, float32, on the CPU.

    Raises:
        SafetensorError, OSError: it is missing or damaged.
        ModelError: a value in it is NaN or infinite.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = file.keys()
        metadata, tensors = dict(file.metadata() or {}), {name: file.get_tensor(name).float() for name in names}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: `{name[:80]}` holds NaN or infinite values. Get the file again.")
    return metadata, tensors


def check_sizes(described: Any, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a description of a network that no file with these tensors can be of, before anything is built.

    A width is a side of some tensor, and a number of layers is no more than that of the tensors.

    Args:
        described: numbers, texts, and lists and dictionaries of them.

    Raises:
        ValueError: a number is larger than both, not finite, or negative.
    """
    most = max([1000, len(tensors), *(side for tensor in tensors.values() for side in tensor.shape)])
    waiting = [described]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
            value = len(value)
        if isinstance(value, int | float) and not 0 <= value <= most:
            raise ValueError(f"{str(value)[:40]} is no size that fits the tensors")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of float16 tensors, whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_suffix(".tmp")
    save_file(halves, temporary, dict(metadata))
    temporary.chmod(0o644)  # safetensors makes files private
    temporary.replace(path)


def save_net(net: nn.Module, path: Path, *, kind: str, version: int, **shape: Any) -> None:
    """Write `net`; `shape` is what makes one like it."""
    write_tensors(path, net.state_dict(), {kind: json.dumps({**shape, "version": version})})


def load_net(
    path: Path, make: Callable[..., Net], *, kind: str, version: int, lacks: str,
    advice: str = "Install the extension anew.",
) -> Net:
    """The network in `path`, frozen, float32.

    Args:
        make: takes the saved shape.
        lacks: what is wrong with a file that holds none, after its name.
        advice: what to do about that.

    Raises:
        ModelError: the file is missing, damaged, or of another kind or version.
    """
    try:
        with torch.inference_mode(False):
            metadata, tensors = read_tensors(path)
            shape: dict[str, Any] = json.loads(metadata[kind])
            if (found := shape.pop("version")) != version:
                raise ValueError(f"version {found}, not {version}")
            check_sizes(shape, tensors)
            with torch.device("meta"):  # no memory before every shape is known to fit
                net = make(**shape)
            net.load_state_dict(tensors, assign=True)
            return net.float().eval().requires_grad_(False)
    except ModelError:
        raise
    except Exception as error:  # whatever safetensors and torch make of a missing or damaged file
        raise ModelError(f"{path} {lacks}: {repr(error)[:300]}. {advice}") from error

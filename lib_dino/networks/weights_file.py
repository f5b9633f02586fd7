"""Small networks of our own in files: float16 safetensors, with their version and shape in the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ModelError

Net = TypeVar("Net", bound=nn.Module)


def save_net(net: nn.Module, path: Path, *, kind: str, version: int, **shape: int) -> None:
    """Write `net`; `shape` is what makes one like it."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    values = {key: value.half().contiguous() for key, value in net.state_dict().items()}
    save_file(values, path, metadata={kind: json.dumps({**shape, "version": version})})


def load_net(path: Path, make: Callable[..., Net], *, kind: str, version: int, lacks: str) -> Net:
    """The network in `path`, frozen, float32.

    Args:
        make: takes the saved shape.
        lacks: what is wrong with a file that holds none, after its name.

    Raises:
        ModelError: the file is missing, damaged, or of another kind or version.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            shape: dict[str, Any] = json.loads((file.metadata() or {})[kind])
        if (found := shape.pop("version")) != version:
            raise ValueError(f"version {found}, wanted {version}")
        with torch.inference_mode(False):
            net = make(**shape)
            net.load_state_dict(load_file(path))
            return net.float().eval().requires_grad_(False)
    except Exception as error:  # whatever safetensors and torch make of a missing or damaged file
        raise ModelError(f"{path} {lacks}: {error!r}. Install the extension anew.") from error

"""Fingerprints of everything that decides a job's pixels: what has another one must never share tiles."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..measure.calibration import load_calibration
from ..networks.dinov2 import Dinov2

_ROWS: Final = 1024
"""Rows of a tensor that are hashed at a time, so that one that lies on disk is never in memory as a whole."""

_DEEPEST: Final = 20


class UnknownContentError(Exception):
    """A value has a part whose content nobody can tell, so that no fingerprint can stand for it."""


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def digest(*values: Any) -> str:
    """Thirty-two hex digits of the content of `values`: numbers, texts, tensors, arrays, images, and what holds them.

    Equal content gives equal digits, in another process too. Types count: 1, 1.0, True and "1" differ.

    Raises:
        UnknownContentError: something is of a kind that is not known here.
    """
    made = hashlib.blake2b(digest_size=16)
    _add(made, values, 0)
    return made.hexdigest()


@functools.cache
def package_digest() -> str:
    """Of this package's code and networks, and of the libraries whose rounding decides last bits."""
    made = hashlib.blake2b(digest_size=16)
    root = Path(__file__).resolve().parents[1]
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".json", ".safetensors") and path.is_file():
            made.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
            made.update(path.read_bytes())
    made.update(f"{torch.__version__} {np.__version__}".encode())
    return made.hexdigest()


_networks: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def network_digest(network: nn.Module) -> str:
    """Of a frozen network's class and every weight; made once for each network."""
    if network not in _networks:
        _networks[network] = digest(type(network).__name__, dict(network.state_dict()))
    return _networks[network]


def features_fingerprint(dino: Dinov2) -> str:
    """Of a feature network, the library its blocks come from, where it runs, and the calibration beside its weights."""
    calibration = load_calibration(dino)
    detector = None if calibration.detector is None else network_digest(calibration.detector)
    return digest(network_digest(dino), dino.backend, str(dino.patch.weight.device), calibration.thresholds, detector)


def _add(made: _Hash, value: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise UnknownContentError("values that hold one another more than twenty deep")
    made.update(f"{type(value).__name__}\0".encode())
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path):
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        made.update(f"{len(data)}\0".encode())
        made.update(data)
    elif isinstance(value, Tensor):
        _add_tensor(made, value)
    elif isinstance(value, np.ndarray):
        _add_array(made, value)
    elif isinstance(value, Image.Image):
        _add(made, (value.mode, value.size, np.asarray(value)), depth + 1)
    else:
        _add_parts(made, value, depth)


def _add_parts(made: _Hash, value: Any, depth: int) -> None:
    if isinstance(value, Enum):
        parts: Any = (value.name,)
    elif isinstance(value, Mapping):
        parts = sorted(value.items(), key=lambda item: str(item[0]))
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, set | frozenset):
        parts = sorted(value, key=str)
    elif isinstance(value, slice | range):
        parts = (value.start, value.stop, value.step)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, torch.device | torch.dtype | np.generic):
        parts = (str(value),)
    else:
        raise UnknownContentError(f"a value of the type {type(value).__name__}")
    made.update(f"{len(parts)}\0".encode())
    for part in parts:
        _add(made, part, depth + 1)


def _add_tensor(made: _Hash, value: Tensor) -> None:
    made.update(f"{tuple(value.shape)} {value.dtype}\0".encode())
    held = value.detach()
    for part in held.split(_ROWS, dim=-2) if held.ndim > 1 else (held,):
        flat = part.cpu().contiguous()
        made.update(flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b"")


def _add_array(made: _Hash, value: np.ndarray[Any, Any]) -> None:
    if value.dtype.hasobject:
        raise UnknownContentError("an array of objects")
    made.update(f"{value.shape} {value.dtype}\0".encode())
    for start in range(0, len(value) if value.ndim else 1, _ROWS):
        part = value[start : start + _ROWS] if value.ndim else value
        made.update(np.ascontiguousarray(part).tobytes())

"""Adapters that the panel offers: files in the models folder, or any path. Knows no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import SettingsError
from .args import NO_ADAPTER

_SUFFIX: Final = ".safetensors"


def folder() -> Path:
    """Where adapters are looked for."""
    from modules import paths

    return Path(paths.models_path) / "dino-adapter"


def names() -> list[str]:
    """What the panel offers: none, and the files in the folder."""
    return [NO_ADAPTER, *sorted(path.stem for path in folder().glob(f"*{_SUFFIX}"))]


def file_of(name: str) -> Path:
    """The file that a name or a path stands for.

    Raises:
        SettingsError: there is none.
    """
    for path in (Path(name).expanduser(), folder() / name, folder() / f"{name}{_SUFFIX}"):
        if path.is_file():
            return path
    raise SettingsError(
        f"There is no adapter {name[:200]!r}: it is none of {', '.join(names())}, and no file. Put a {_SUFFIX} file "
        f"into {folder()}, or choose {NO_ADAPTER}.",
        field="adapter", value=name, limit=" | ".join(names()),
    )  # fmt: skip

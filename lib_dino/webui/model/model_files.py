"""Files of feature networks and adapters: the one that ships, a file in the models folder, a download into it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...errors import ModelError, SettingsError
from ...networks.hub import PUBLISHED
from ..interrupt import stop_asked

if TYPE_CHECKING:
    from ...networks.dinov2 import Dinov2

log = logging.getLogger("dino_upscale")

DEFAULT_MODEL: Final = "Default"
BUILT_IN_MODEL: Final = "Built-in"
NO_ADAPTER: Final = "None"

OPTION_MODEL: Final = "dino_upscale_model"
OPTION_FOLDER: Final = "dino_upscale_folder"
OPTION_TINY: Final = "dino_upscale_tiny_autoencoder"
OPTION_VAE: Final = "dino_upscale_host_vae"
_SUFFIX: Final = ".safetensors"

_loaded: dict[str, Dinov2] = {}


def folder() -> Path:
    """Where weights are looked for and put."""
    from modules import paths, shared

    chosen = str(shared.opts.data.get(OPTION_FOLDER, "") or "").strip()
    return Path(chosen) if chosen else Path(paths.models_path) / "dinov2"


def names() -> list[str]:
    """What the panel offers: the built-in network, those in the folder, those that can be fetched."""
    held = sorted(path.stem for path in folder().glob(f"*{_SUFFIX}"))
    held += sorted(path.parent.name for path in folder().glob(f"*/model{_SUFFIX}"))
    return list(dict.fromkeys([DEFAULT_MODEL, BUILT_IN_MODEL, *held, *PUBLISHED]))


def chosen(name: str) -> str:
    """The network that `name` stands for: an empty one is the settings page's choice."""
    from modules import shared

    if name in ("", DEFAULT_MODEL):
        name = str(shared.opts.data.get(OPTION_MODEL, "") or BUILT_IN_MODEL)
    return BUILT_IN_MODEL if name in ("", DEFAULT_MODEL) else name


def check(name: str) -> None:
    """Find out, without fetching or loading it, whether a network is known.

    Raises:
        SettingsError: nothing of that name is.
    """
    source(name, fetch=False)


def source(name: str, *, fetch: bool = True) -> Path | None:
    """The file or folder of a network, fetched if need be; None is the one that ships.

    Raises:
        SettingsError: nothing of that name is known.
        ModelError: it could not be fetched.
    """
    if name == BUILT_IN_MODEL:
        return None
    place = folder()
    for path in _inside(place, name):
        if path.is_file() or (path / f"model{_SUFFIX}").is_file():
            return path
    key = name.rpartition("/")[2]
    if key in PUBLISHED and name in (key, PUBLISHED[key].repository):
        path = place / f"{key}{_SUFFIX}"
        return path if path.is_file() or not fetch else _fetch(key, place)
    raise SettingsError(
        f"There is no feature model {name[:200]!r}: it is none of {', '.join(names())}. Put its {_SUFFIX} file into "
        f"{place}, or choose another folder on the settings page.",
        field="dino_model", value=name, limit=" | ".join(names()),
    )  # fmt: skip


def _inside(place: Path, name: str) -> list[Path]:
    """What a name or a path may stand for in the folder `place`; nothing outside of it, whoever asks.

    Links in the folder lead where its owner has them lead.
    """
    root = Path(os.path.abspath(place))
    paths = (Path(os.path.abspath(root / text)) for text in (name, f"{name}{_SUFFIX}"))
    return [path for path in paths if path.is_relative_to(root) and path != root]


def load(name: str) -> Dinov2:
    """The network, on the CPU; the last one is kept there for the next picture."""
    import torch

    from ...networks.dinov2 import load_dinov2

    if name not in _loaded:
        _loaded.clear()
        with torch.inference_mode(False):
            _loaded[name] = load_dinov2(source(name))
    return _loaded[name]


def _fetch(name: str, place: Path) -> Path:
    """The file of a published network in the folder `place`; the line under the progress bar says how far it is."""
    from modules import shared

    from ...networks import dinov2_weights as dinov2_file
    from ...networks import download

    published, target = PUBLISHED[name], place / f"{name}{_SUFFIX}"

    def told(done: int, total: int) -> None:
        if stop_asked():
            raise ModelError("it was interrupted; what came stays for the next try")
        share = f" of {total / 1e6:.0f} MB, {done / total:.0%}" if total else " MB"
        shared.state.textinfo = f"Fetching {target.name}: {done / 1e6:.0f}{share}"

    try:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise ModelError("HF_HUB_OFFLINE is set, so nothing is fetched")
        log.info("Fetching %s from %s to %s", target.name, published.url, place)
        return download.fetch(published.url, target, sha256=published.sha256, told=told, check=dinov2_file.read)
    except ModelError as error:
        raise ModelError(
            f"{target.name} could not be fetched from {published.url} to {place}: {error}. Put the file there by hand, "
            f"or choose {BUILT_IN_MODEL} as feature model."
        ) from error
    finally:
        shared.state.textinfo = None


def adapter_folder() -> Path:
    """Where adapters are looked for."""
    from modules import paths

    return Path(paths.models_path) / "dino-adapter"


def adapter_names() -> list[str]:
    """What the panel offers: none, and the files in the folder."""
    return [NO_ADAPTER, *sorted(path.stem for path in adapter_folder().glob(f"*{_SUFFIX}"))]


def adapter_file(name: str) -> Path:
    """The file that a name or a path stands for in the folder of adapters.

    Raises:
        SettingsError: there is none.
    """
    for path in _inside(adapter_folder(), name):
        if path.is_file():
            return path
    raise SettingsError(
        f"There is no adapter {name[:200]!r}: it is none of {', '.join(adapter_names())}. Put a "
        f"{_SUFFIX} file into {adapter_folder()}, or choose {NO_ADAPTER}.",
        field="adapter", value=name, limit=" | ".join(adapter_names()),
    )  # fmt: skip

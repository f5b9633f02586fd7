"""Where the feature network comes from: the one that ships, a file, or a download into the models folder."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import ModelError, SettingsError
from .args import BUILT_IN_MODEL, DEFAULT_MODEL

if TYPE_CHECKING:
    from ..dinov2 import Dinov2

DOWNLOADS: Final[dict[str, str]] = {
    "dinov2-small": "facebook/dinov2-small",
    "dinov2-base": "facebook/dinov2-base",
    "dinov2-large": "facebook/dinov2-large",
    "dinov2-with-registers-small": "facebook/dinov2-with-registers-small",
    "dinov2-with-registers-base": "facebook/dinov2-with-registers-base",
    "dinov2-with-registers-large": "facebook/dinov2-with-registers-large",
}
"""Networks that are fetched when first used, by name; repositories on Hugging Face."""

OPTION_MODEL: Final = "dino_upscale_model"
OPTION_FOLDER: Final = "dino_upscale_folder"
OPTION_DEVICE: Final = "dino_upscale_device"
OPTION_TINY: Final = "dino_upscale_tiny_autoencoder"
_SUFFIX: Final = ".safetensors"

_loaded: dict[tuple[str, str], Dinov2] = {}


def folder() -> Path:
    """Where weights are looked for and put."""
    from modules import paths, shared

    chosen = str(shared.opts.data.get(OPTION_FOLDER, "") or "").strip()
    return Path(chosen) if chosen else Path(paths.models_path) / "dinov2"


def names() -> list[str]:
    """What the panel offers: the built-in network, those in the folder, those that can be fetched."""
    held = sorted(path.stem for path in folder().glob(f"*{_SUFFIX}"))
    held += sorted(path.parent.name for path in folder().glob(f"*/model{_SUFFIX}"))
    return list(dict.fromkeys([DEFAULT_MODEL, BUILT_IN_MODEL, *held, *DOWNLOADS]))


def chosen(name: str) -> str:
    """The network that `name` stands for: an empty one is the settings page's choice."""
    from modules import shared

    if name in ("", DEFAULT_MODEL):
        name = str(shared.opts.data.get(OPTION_MODEL, "") or BUILT_IN_MODEL)
    return BUILT_IN_MODEL if name in ("", DEFAULT_MODEL) else name


def source(name: str) -> Path | None:
    """The file or folder of a network, fetched if need be; None is the one that ships.

    Raises:
        SettingsError: nothing of that name is known.
        ModelError: it could not be fetched.
    """
    if name == BUILT_IN_MODEL:
        return None
    place = folder()
    for path in (Path(name).expanduser(), place / name, place / f"{name}{_SUFFIX}"):
        if path.is_file() or (path / f"model{_SUFFIX}").is_file():
            return path
    key = name.rpartition("/")[2]
    if key in DOWNLOADS and name in (key, DOWNLOADS[key]):
        return place / f"{key}{_SUFFIX}" if (place / f"{key}{_SUFFIX}").is_file() else _fetch(key, place)
    raise SettingsError(
        f"There is no feature model {name[:200]!r}: it is none of {', '.join(names())}, and no file or folder "
        f"with {_SUFFIX} weights. Put the file into {place}.",
        field="dino_model", value=name, limit=" | ".join(names()),
    )  # fmt: skip


def load(name: str) -> Dinov2:
    """The network, on the device of the settings page; the last one is kept for the next picture."""
    import torch
    from modules import shared

    from ..dinov2 import load_dinov2

    device = str(shared.opts.data.get(OPTION_DEVICE, "") or shared.device)
    device = str(shared.device) if device == "Automatic" else device.lower()
    key = (name, device)
    if key not in _loaded:
        _loaded.clear()
        with torch.inference_mode(False):
            _loaded[key] = load_dinov2(source(name), device=device)
    return _loaded[key]


def _fetch(name: str, place: Path) -> Path:
    from modules import modelloader, shared

    url = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{DOWNLOADS[name]}/resolve/main/model{_SUFFIX}"
    target = place / f"{name}{_SUFFIX}"
    shared.state.textinfo = f"Fetching {target.name}"
    try:
        wanted = _checksum(url)
        modelloader.load_file_from_url(url, model_dir=str(place), file_name=target.name)
        if wanted is not None and (found := _sha256(target)) != wanted:
            target.unlink(missing_ok=True)
            raise ModelError(f"its checksum is {found}, it should be {wanted}; the file was removed")
    except Exception as error:  # whatever the host's downloader raises
        raise ModelError(
            f"{target.name} could not be fetched from {url} to {place}: {error}. Put the file there by hand, or "
            f"choose {BUILT_IN_MODEL} as feature model."
        ) from error
    return target


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: the answer that redirects is the one with the checksum."""


def _checksum(url: str) -> str | None:
    """The SHA-256 that the server promises for a file; None when it does not say."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        headers = urllib.request.build_opener(_NoRedirect).open(request, timeout=20).headers
    except urllib.error.HTTPError as error:
        if not 300 <= error.code < 400:
            raise
        headers = error.headers
    tag = str(headers.get("X-Linked-Etag", "")).strip('"')
    return tag if len(tag) == 64 else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

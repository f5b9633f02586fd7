"""The host's diffusion model: its family, and what tiles suit it; needs no torch."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FACTOR: Final = 8
"""Pixels to a side of a latent cell, in every family."""

_CHANNELS: Final = {"sd1": 4, "sdxl": 4, "sd3": 16, "flux": 16}
# Names of weights that only one family has, as they stand in a checkpoint's header; the rest counts as SD 1.5.
_SIGNS: Final = {"flux": b"double_blocks.0.", "sd3": b"joint_blocks.0.", "sdxl": b'"conditioner.embedders.'}
_MOST_HEADER: Final = 100_000_000


@dataclass(frozen=True)
class Model:
    """What has to be known about a diffusion model.

    Attributes:
        family: "sd1" (SD 2 counts as it), "sdxl", "sd3" or "flux".
        channels: of its latents.
        tile_px: side of a tile that suits it, pixels.
        multiple_px: sides of its pictures are multiples of this.
        flow: noisy latents are sigma * noise + (1 - sigma) * clean instead of clean + sigma * noise.
        factor, fits_any_tile: as in `TileModel`.
    """

    family: str
    channels: int
    tile_px: int
    multiple_px: int
    flow: bool
    factor: int = FACTOR
    fits_any_tile: bool = False


ASSUMED: Final = Model("sd1", 4, 512, 8, False)
"""Where the model cannot be told yet."""


def model_facts(sd_model: Any) -> Model:
    """The facts about a host's `sd_model`; of an unknown one by its number of latent channels.

    Before the first generation Forge's model is a placeholder: see `expected_model`.
    """
    channels = _channels(sd_model)
    kind = type(sd_model).__name__
    if getattr(sd_model, "is_sdxl", False):
        family = "sdxl"
    elif getattr(sd_model, "is_sd3", False):
        family = "sd3"
    else:
        family = "flux" if kind in ("Flux", "Chroma") or channels >= 16 else "sd1"
    unet = getattr(getattr(sd_model, "forge_objects", None), "unet", None)
    predictor = getattr(getattr(unet, "model", None), "predictor", None)
    return _of_family(family, channels, flow=getattr(predictor, "prediction_type", None) == "const")


def _of_family(family: str, channels: int, *, flow: bool = False) -> Model:
    newer = family in ("sd3", "flux")
    return Model(family, channels, 512 if family == "sd1" else 1024, 16 if newer else 8, flow or newer)


def _channels(sd_model: Any) -> int:
    vae = getattr(getattr(sd_model, "forge_objects", None), "vae", None)
    for holder in (vae, sd_model):
        if isinstance(channels := getattr(holder, "latent_channels", None), int):
            return channels
    return 4


def expected_model(shown: str = "") -> Model | None:
    """The model that the next generation will use, as far as can be told without loading it.

    The one in memory where it is the one chosen; else by the header of the chosen file; None when that says nothing.

    Args:
        shown: name of the checkpoint that the page shows as chosen, of which the host may not have heard yet; empty
            takes the one in the host's options.
    """
    with contextlib.suppress(Exception):  # only a forecast: whatever a host lacks, there is none
        from modules import sd_models, shared

        # Asking `shared.sd_model` would load one.
        held = sd_models.model_data.sd_model
        chosen = sd_models.get_closet_checkpoint_match(shown or shared.opts.data.get("sd_model_checkpoint") or "")
        info = getattr(held, "sd_checkpoint_info", None)
        if info is not None and (chosen is None or chosen.filename == info.filename):
            return model_facts(held)
        path = Path(chosen.filename)
        return _by_header(path, path.stat().st_mtime)
    return None


@functools.lru_cache(maxsize=8)
def _by_header(path: Path, changed: float) -> Model | None:
    """By the names of a safetensors file's weights; `changed` makes a new file a new question."""
    if path.suffix != ".safetensors":
        return None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _MOST_HEADER))
    family = next((name for name, sign in _SIGNS.items() if sign in header), "sd1")
    return _of_family(family, _CHANNELS[family])

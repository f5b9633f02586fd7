"""The host's diffusion model: its family, and what tiles suit it; needs no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FACTOR: Final = 8
"""Pixels to a side of a latent cell, where the host does not say."""

HOST_MULTIPLE: Final = 64
"""Forge Neo's forks round a picture's sides to this, whatever the model."""

_NAMES: Final = {
    "sd1": "SD 1.5", "sdxl": "SDXL", "sd3": "SD 3", "flux": "FLUX", "flux2": "FLUX.2", "chroma": "Chroma",
    "lumina2": "Lumina 2", "zimage": "Z-Image", "anima": "Anima", "wan": "Wan", "qwenimage": "Qwen-Image",
    "krea2": "Krea 2", "ernieimage": "ERNIE-Image", "mugen": "Mugen", "pid": "PiD",
}  # fmt: skip

# Classes of the hosts' model descriptions and engines; the first that is known counts.
_CLASSES: Final = {
    "SD3": "sd3", "Flux": "flux", "FluxSchnell": "flux", "Flux2": "flux2", "Flux2K4B": "flux2", "Flux2K9B": "flux2",
    "Chroma": "chroma", "Lumina2": "lumina2", "ZImage": "zimage", "Anima": "anima", "Wan": "wan", "WAN21_T2V": "wan",
    "WAN21_I2V": "wan", "QwenImage": "qwenimage", "Krea2": "krea2", "ErnieImage": "ernieimage", "Mugen": "mugen",
    "PiD": "pid",
}  # fmt: skip

_CHANNELS: Final = {"sd1": 4, "sdxl": 4, "flux2": 128, "ernieimage": 128, "mugen": 32, "pid": 3}
_FACTORS: Final = {"flux2": 16, "ernieimage": 16, "pid": 1}
_WITH_FRAMES: Final = ("anima", "wan", "qwenimage", "krea2")
# Names of weights that only one family has, as they stand in a checkpoint's header; the rest counts as SD 1.5.
_SIGNS: Final = {
    "flux2": b"double_stream_modulation_img.", "chroma": b"distilled_guidance_layer.", "flux": b"double_blocks.0.",
    "sd3": b"joint_blocks.0.", "zimage": b"cap_pad_token", "lumina2": b"cap_embedder.1.", "anima": b"llm_adapter.",
    "wan": b"head.modulation", "krea2": b"txtfusion.", "qwenimage": b"transformer_blocks.0.attn.add_q_proj",
    "ernieimage": b"layers.0.mlp.linear_fc2", "sdxl": b'"conditioner.embedders.',
}  # fmt: skip
_MOST_HEADER: Final = 100_000_000


@dataclass(frozen=True)
class Model:
    """What has to be known about a diffusion model.

    Attributes:
        family: in lower case: "sd1" (SD 2 counts as it), "sdxl", "sd3", "flux", ...; of a model that is not known here
            the name of the host's own class.
        channels: of its latents.
        tile_px: side of a tile that suits it, pixels.
        multiple_px: sides of its pictures are multiples of this.
        flow: noisy latents are sigma * noise + (1 - sigma) * clean instead of clean + sigma * noise.
        factor, fits_any_tile: as in `TileModel`.
        frames: latents are (B, C, 1, h, w), and the host takes one picture a call.
        reference: the host shows the model the picture it starts from as well, of a batch the last one's alone.
        latent_format: what the host knows about its latents; None where it says nothing.
    """

    family: str
    channels: int
    tile_px: int
    multiple_px: int
    flow: bool
    factor: int = FACTOR
    fits_any_tile: bool = False
    frames: bool = False
    reference: bool = False
    latent_format: Any = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def label(self) -> str:
        """The family as it is called where people read."""
        return _NAMES.get(self.family, self.family)


ASSUMED: Final = Model("sd1", 4, 512, 8, False)
"""Where the model cannot be told yet."""


def model_facts(sd_model: Any) -> Model:
    """The facts about a host's `sd_model`: what the host says of it, and else by its marks and latent channels.

    Before the first generation Forge's model is a placeholder: see `expected_model`.
    """
    described, channels = _latent_format(sd_model), _channels(sd_model)
    unet = getattr(getattr(sd_model, "forge_objects", None), "unet", None)
    predictor = getattr(getattr(unet, "model", None), "predictor", None)
    family = _family(sd_model, channels)
    model = _of_family(
        family, flow=getattr(predictor, "prediction_type", None) == "const" or channels >= 16,
        # Only Forge Neo's models have the mark.
        rounded=hasattr(sd_model, "is_wan"),
    )  # fmt: skip
    factor = _factor(sd_model, described) or model.factor
    return dataclasses.replace(
        model, channels=channels, factor=factor, multiple_px=math.lcm(model.multiple_px, factor),
        frames=bool(getattr(sd_model, "is_wan", False)), reference=_shows_start(), latent_format=described,
    )  # fmt: skip


def _family(sd_model: Any, channels: int) -> str:
    classes = [type(held).__name__ for held in (getattr(sd_model, "model_config", None), sd_model)]
    if getattr(sd_model, "is_sd3", False):
        return "sd3"
    for name in classes:
        if name in _CLASSES:
            return _CLASSES[name]
    if getattr(sd_model, "is_sdxl", False):
        return "sdxl"
    # By channels alone nobody can tell FLUX's latents from Wan's.
    return "sd1" if channels == 4 else next((name.lower() for name in classes if name != "NoneType"), "unknown")


def _of_family(family: str, *, flow: bool = False, rounded: bool = False) -> Model:
    older, factor = family in ("sd1", "sdxl", "mugen"), _FACTORS.get(family, FACTOR)
    return Model(
        family, _CHANNELS.get(family, 16), 512 if family == "sd1" else 1024,
        HOST_MULTIPLE if rounded else 8 if older else 16, flow or not older, factor=factor,
        frames=family in _WITH_FRAMES,
    )  # fmt: skip


def _latent_format(sd_model: Any) -> Any:
    """The host's description of the model's latents: channels, colours, tiny autoencoder; None without one."""
    unet = getattr(getattr(sd_model, "forge_objects", None), "unet", None)
    for holder in (getattr(sd_model, "model_config", None), getattr(unet, "model", None)):
        described = getattr(holder, "latent_format", None)
        if isinstance(getattr(described, "latent_channels", None), int):
            return described
    return None


def _vae(sd_model: Any) -> Any:
    return getattr(getattr(sd_model, "forge_objects", None), "vae", None)


def _channels(sd_model: Any) -> int:
    # The autoencoder first: it is what the host makes its noise for.
    for holder in (_vae(sd_model), sd_model, _latent_format(sd_model)):
        if isinstance(channels := getattr(holder, "latent_channels", None), int):
            return channels
    return 4


def _factor(sd_model: Any, described: Any) -> int | None:
    """Pixels to a side of a latent cell as the host has it; of a video model's three ratios the last."""
    if getattr(described, "latent_channels", None) == 3:
        return 1
    for holder in (_vae(sd_model), described):
        for name in ("downscale_ratio", "spacial_downscale_ratio"):
            ratio = getattr(holder, name, None)
            ratio = ratio[-1] if isinstance(ratio, tuple) else ratio
            if isinstance(ratio, int) and ratio > 0:
                return ratio
    return None


def _shows_start() -> bool:
    """Whether the loaded model is one for editing, to which Forge Neo shows the picture of img2img."""
    held = getattr(sys.modules.get("backend.args"), "dynamic_args", None)
    if any(getattr(held, name, False) is True for name in ("kontext", "edit", "krea2")):
        return True
    if getattr(held, "klein", False) is not True:
        return False
    from modules import shared

    return not getattr(shared.opts, "klein_no_reference", False)


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
    # Only Forge Neo counts this among its models.
    rounded = hasattr(getattr(sys.modules.get("backend.args"), "dynamic_args", None), "klein")
    return _of_family(family, rounded=rounded)

"""Consistency inside the loop through an autoencoder of the host: the tiny one, or where asked for its own.

Both cost too much for every model call; see `sampling.latent_codec`.
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...sampling.consistency import Autoencoder
from .. import memory
from ..interrupt import stop_asked
from .family import Model
from .noise import repeatable

log = logging.getLogger("dino_upscale")

_TINY: Final = {"sd1": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1"}
"""Names of tiny autoencoders, where the host does not say."""


def tiny_autoencoder(model: Model) -> tuple[Autoencoder | None, str]:
    """The host's tiny autoencoder in single precision, and why there is none.

    Of files that are not there nothing is said: they are what one has to fetch to have it.
    """
    from modules import paths, sd_vae_taesd

    name = _tiny_name(model)
    folder = Path(paths.models_path) / "VAE-taesd"
    if name is None or not (folder / f"{name}_decoder.pth").is_file():
        return None, ""
    if not (folder / f"{name}_encoder.pth").is_file():
        return None, _TINY_LEFT_OUT.format("there is no file of its encoder")
    # Copied outside of inference mode: the host's own may have been built inside it.
    with torch.inference_mode(False), torch.no_grad():
        made = [make() for make in (sd_vae_taesd.encoder_model, sd_vae_taesd.decoder_model)]
        if any(half is None for half in made):
            return None, _TINY_LEFT_OUT.format("the WebUI has no encoder or no decoder for this model")
        encoder, decoder = (copy.deepcopy(half).float().requires_grad_(False) for half in made)
        if not _fits(encoder, decoder, model):
            return None, _TINY_LEFT_OUT.format("the WebUI's does not fit this model's latents")
    return Autoencoder(encoder, decoder), ""


_TINY_LEFT_OUT: Final = "The tiny autoencoder was left out of source consistency inside the loop: {}."


def _tiny_name(model: Model) -> str | None:
    """Its files' name without the half: the host's, or ours where the host has none."""
    name = getattr(model.latent_format, "taesd_decoder_name", None)
    if isinstance(name, str):
        return name.removesuffix("_decoder")
    return _TINY.get(model.family) if model.latent_format is None else None


def _fits(encoder: Any, decoder: Any, model: Model) -> bool:
    """Whether a small picture goes through both halves and keeps its size."""
    side = 4 * model.factor
    device = next(encoder.parameters()).device
    picture = torch.zeros(1, 3, side, side, device=device)
    try:
        latents = encoder(picture)
        return bool(latents.shape == (1, model.channels, 4, 4) and decoder(latents).shape == picture.shape)
    except (RuntimeError, ValueError, IndexError):
        return False


class HostVae:
    """The checkpoint's own autoencoder, used in the middle of sampling as long as that pushes nothing else out.

    Args:
        sd_model: the host's.
        model: the facts about it.

    Attributes:
        used: how often it encoded or decoded.
        left_out: why it is not used any more; empty while it is.
    """

    def __init__(self, sd_model: Any, model: Model) -> None:
        self._model, self._facts = sd_model, model
        self.used = 0
        self.left_out = ""
        # --medvram and --lowvram keep one network at a time on the card.
        if getattr(sd_model, "lowvram", False):
            self._leave_out("--medvram or --lowvram would move the model off the card for it")

    def for_tiles(self, latents: Tensor | None) -> Autoencoder:
        """As it is used on tiles with these latents, (B, C, h, w)."""
        cells = (0, 0) if latents is None else (latents.shape[-2], latents.shape[-1])
        return Autoencoder(self.encode, self.decode, lambda: self.fits(cells))

    def fits(self, cells: tuple[int, int]) -> bool:
        """Whether latents of `cells` can be decoded now; says in `left_out` why not."""
        if not self.left_out and not all(cells):
            self._leave_out("the tile's own latents are not known")
        # Being interrupted the host would give a preview in its place; the tile is thrown away anyway.
        if self.left_out or stop_asked():
            return False
        vae = getattr(getattr(self._model, "forge_objects", None), "vae", None)
        shape = (1, self._facts.channels, *([1] if self._facts.frames else []), *cells)
        if vae is not None and (reason := memory.pushes_out(vae, shape)):
            self._leave_out(reason)
        return not self.left_out

    def decode(self, clean: Tensor) -> Tensor:
        """(1, C, h, w) to (1, 3, factor h, factor w) in [0, 1]; no numbers once the autoencoder has failed."""
        from modules import sd_samplers_common

        def run() -> Tensor:
            given = clean.unsqueeze(2) if self._facts.frames else clean
            made: Tensor = sd_samplers_common.samples_to_images_tensor(given, 0, self._model)
            # Of frames the first: (B, T, 3, H, W).
            return ((made[:, 0] if made.ndim == 5 else made) + 1) / 2

        return self._tried(run, clean, self._facts.factor)

    def encode(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] to (1, C, h, w); no numbers once the autoencoder has failed.

        What it draws is the same each time, so that the difference of two is the pictures' alone.
        """
        from modules import sd_samplers_common

        def run() -> Tensor:
            with repeatable(0), references_kept(self._model):
                made: Tensor = sd_samplers_common.images_tensor_to_samples(image.clamp(0, 1), 0, self._model)
            return made.squeeze(2) if made.ndim == 5 else made

        return self._tried(run, image, 1 / self._facts.factor)

    def _tried(self, run: Callable[[], Tensor], like: Tensor, scale: float) -> Tensor:
        nothing = like.new_full((1, 1, *(int(side * scale) for side in like.shape[-2:])), torch.nan)
        if self.left_out:
            return nothing
        try:
            # Cloned outside of inference mode, in which the Forge family makes it.
            made = run().clone().to(like)
        except torch.cuda.OutOfMemoryError:
            self._leave_out("there is too little memory for it")
            return nothing
        if not bool(torch.isfinite(made).all()):
            self._leave_out("in half precision it gives NaN; start the WebUI with --no-half-vae")
            return nothing
        self.used += 1
        return made

    def _leave_out(self, reason: str) -> None:
        self.left_out = f"The WebUI's VAE was left out of source consistency inside the loop: {reason}."
        log.warning("%s", self.left_out)


@contextmanager
def references_kept(sd_model: Any) -> Iterator[None]:
    """Put back what Forge Neo's models for editing look at beside the latents, whatever is encoded inside the block.

    The latents of the picture that img2img starts from wait on the model for the next prompt, and go with it to the
    host's arguments when it is encoded. A prompt that the host remembers is not encoded again: the next plain picture
    would look at what was encoded last.
    """
    places = (sd_model, "ini_latent"), (_arguments(), "ref_latents")
    held = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]
    try:
        yield
    finally:
        for place, name, value in held:
            setattr(place, name, value)


def _arguments() -> Any:
    """Of the Forge family, in the middle of a generation; None in other hosts."""
    try:
        return getattr(importlib.import_module("backend.args"), "dynamic_args", None)
    except ImportError:
        return None

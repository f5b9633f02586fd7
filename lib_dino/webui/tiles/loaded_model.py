"""The host's model as the pictures of one iteration use it: its facts, its codec, its adapter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from ...adapter.injection import Adapter
from ...networks.dinov2 import Dinov2
from ...sampling.correction import Codec
from ...sampling.latent_codec import AutoencoderCodec, LatentCodec
from ...settings import Settings
from .. import memory
from ..model import adapter_patch, model_files
from ..model.family import Model, model_facts
from ..model.latent_rgb import color_map
from ..model.vae import HostVae, tiny_autoencoder

_UNKNOWN: Final = (
    "No colours are known for the latents of {} ({} channels): DINO guidance compares them by an arbitrary map, and "
    "source consistency inside the loop does not hold colours."
)


@dataclass(frozen=True)
class LoadedModel:
    """What is known and made of the loaded model.

    Attributes:
        facts: about it.
        codec: makes the codec from the tiles' latents; None where corrections can change nothing.
        adapter: the chosen one; None without.
        tiny: consistency inside the loop goes through the tiny autoencoder.
        vae: consistency inside the loop goes through the checkpoint's own autoencoder; None where it does not.
        notes: sentences on what cannot be done with this model.
    """

    facts: Model
    codec: Callable[[Tensor | None], Codec] | None
    adapter: Adapter | None = None
    tiny: bool = False
    vae: HostVae | None = None
    notes: tuple[str, ...] = ()


def loaded_model(sd_model: Any, settings: Settings, dino: Dinov2 | None) -> LoadedModel:
    """Look at the host's `sd_model`, and load what a job with these settings needs beside it.

    Raises:
        ModelError: the adapter is damaged, or does not fit the checkpoint or the feature network.
    """
    from modules import shared

    facts = model_facts(sd_model)
    adapter = _adapter(sd_model, facts, settings, dino)
    if not (settings.guides or settings.consistency):
        return LoadedModel(facts, None, adapter)
    options, colors = shared.opts.data, color_map(facts)
    known = () if colors.known else (_UNKNOWN.format(facts.label, facts.channels),)
    linear = functools.partial(LatentCodec, colors, facts.factor)
    if not settings.consistency:
        return LoadedModel(facts, linear, adapter, notes=known)
    tiny, why = tiny_autoencoder(facts) if options.get(model_files.OPTION_TINY, True) else (None, "")
    if tiny is not None:
        return LoadedModel(
            facts, functools.partial(AutoencoderCodec, tiny, colors, facts.factor), adapter, tiny=True, notes=known
        )
    notes = (*known, why) if why else known
    if options.get(model_files.OPTION_VAE, False):
        vae = HostVae(sd_model, facts)
        return LoadedModel(
            facts, lambda latents: AutoencoderCodec(vae.for_tiles(latents), colors, facts.factor, latents), adapter,
            vae=vae, notes=notes,
        )  # fmt: skip
    return LoadedModel(facts, linear, adapter, notes=notes)


def _adapter(sd_model: Any, facts: Model, settings: Settings, dino: Dinov2 | None) -> Adapter | None:
    if dino is None or not (settings.adapter and settings.conditions):
        return None
    path = model_files.adapter_file(settings.adapter)
    adapter = adapter_patch.load(path, path.stat().st_mtime, dino, half=memory.host_device().type != "cpu")
    adapter_patch.check(adapter, sd_model, facts)
    return adapter

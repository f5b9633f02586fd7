"""A node's pictures through the core."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import comfy.utils
import latent_preview
import torch
from torch import Tensor

from .. import pipeline
from ..run.progress import Progress
from ..sampling.correction import BatchCorrector, TileCorrections
from ..settings import MAX_SEED, Settings
from ..tiling.resample import resize, tile_operators
from . import images
from .model import ComfyTileModel, Latents, Sampling, corrected


class Screen:
    """The node's progress bar, with the tile that is being sampled beside it.

    Args:
        model: ComfyUI's model patcher.
        count: pictures.
    """

    def __init__(self, model: Any, count: int) -> None:
        self._bar = comfy.utils.ProgressBar(1)
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self._count, self._done = count, 0
        self._preview: Any = None

    def keep(self, clean: Tensor) -> None:
        """Show these predicted clean latents with the next step."""
        if self._previewer is not None:
            self._preview = self._previewer.decode_latent_to_preview_image("JPEG", clean)

    def show(self, progress: Progress) -> None:
        """Move the bar."""
        total = self._count * progress.calls
        self._bar.update_absolute(self._done * progress.calls + progress.call, total, self._preview)

    def next_picture(self) -> None:
        """Count a picture as done."""
        self._done += 1


def upscale(
    model: Any, vae: Any, pictures: Tensor, settings: Settings, sampling: Sampling, *, references: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, str]:  # fmt: skip
    """Enlarge a batch of pictures, (B, H, W, 3) in [0, 1].

    Returns:
        The results, likewise, and their reports as JSON.
    """
    screen, latents, results = Screen(model, len(pictures)), Latents(model, vae), []
    lent = [] if references is None else images.pictures(references)
    with torch.inference_mode(False), torch.no_grad():
        for number, picture in enumerate(images.pictures(pictures)):
            seed = (settings.seed + number) % (MAX_SEED + 1)
            tile_model = ComfyTileModel(model, latents, sampling, seed=seed, on_preview=screen.keep)
            results.append(pipeline.upscale(
                picture, settings.replace(seed=seed), references=lent, model=tile_model, progress=screen.show,
                mask=images.mask_of(mask, number),
            ))  # fmt: skip
            screen.next_picture()
        made = images.batch([result.picture for result in results])
    return made, json.dumps([result.report.to_dict() for result in results], indent=2)


def guided(model: Any, vae: Any, source: Tensor, *, strength: float, consistency: float) -> Any:
    """A copy of `model` that is held to `source`, (1, H, W, 3) in [0, 1], whatever samples with it.

    It acts on latents of any size: what is sampled is taken to show all of the source, enlarged.
    """
    with torch.inference_mode(False), torch.no_grad():
        [picture] = images.pictures(source[:1])
        meter = pipeline.drift_meter(picture.pixels) if strength else None
    latents = Latents(model, vae)
    held = _Held(picture.pixels, latents, lambda operators: TileCorrections(
        picture.pixels, operators, consistency, 0.0, strength,
        None if meter is None else meter.extract, None if meter is None else meter.target,
    ))  # fmt: skip
    return corrected(model, held, latents.codec(None), latents)


class _Held:
    """A `Corrector` for whatever size is sampled; a new run, whose noise has grown again, begins anew."""

    def __init__(self, source: Tensor, latents: Latents, corrections: Callable[[Any], TileCorrections]) -> None:
        self._source, self._latents, self._corrections = source, latents, corrections
        self._run: tuple[tuple[int, ...], float, BatchCorrector, Any] | None = None

    def __call__(self, clean: Tensor, ratio: float, codec: Any) -> Tensor:
        shape = tuple(clean.shape)
        if self._run is None or self._run[0] != shape or ratio > self._run[1] * 1.001:
            self._run = (shape, ratio, *self._begun(shape))
        self._run = (shape, ratio, *self._run[2:])
        return self._run[2](clean, ratio, self._run[3])

    def _begun(self, shape: Sequence[int]) -> tuple[BatchCorrector, Any]:
        size = (shape[-2] * self._latents.factor, shape[-1] * self._latents.factor)
        operators = tile_operators(
            (self._source.shape[-2], self._source.shape[-1]), size, slice(0, size[0]), slice(0, size[1])
        )
        plain = resize(self._source, size).clamp(0, 1)
        codec = self._latents.codec(self._latents.encode(plain.expand(shape[0], -1, -1, -1)))
        return BatchCorrector([self._corrections(operators)] * shape[0]), codec

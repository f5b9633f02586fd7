"""A batch of tiles as one img2img of the host: `run.Render` on top of `processing.process_images`."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...pictures.pixels import to_image
from ...run.run import TileCorrect
from ...sampling.correction import Codec
from ...tiling.plan import Tile
from ..interrupt import stop_asked
from ..model.adapter_patch import Conditioner
from ..model.cfg_callbacks import Batch, Hooks
from ..model.family import FACTOR, Model, model_calls
from ..model.latent_rgb import LatentCodec
from ..model.noise import TileNoise, repeatable
from . import other_scripts as others

INFOTEXT_KEY = "DINO upscale"
"""ControlNet of A1111 takes "upscale" in a key as the sign that a call is for one tile."""


class HostRender:
    """img2img of tiles with the model that the host has loaded.

    Args:
        p: the generation they belong to; only read.
        model: facts about the loaded model.
        hooks: installed already.
        seed: of the picture.
        prompt, negative_prompt: of the picture, with extra networks in them.
        scripts: those of the user's scripts that act on each tile.
        acts: whether corrections can change anything.
        codec: makes the codec from the tiles' latents; None takes the linear map.
    """

    factor = FACTOR
    fits_any_tile = False

    def __init__(
        self,
        p: Any,
        model: Model,
        hooks: Hooks,
        *,
        seed: int,
        prompt: str,
        negative_prompt: str,
        scripts: Sequence[Any] = (),
        acts: bool = True,
        codec: Callable[[Tensor | None], Codec] | None = None,
    ) -> None:
        self.name = str(getattr(p, "sd_model_name", None) or model.family)
        self.tile_px, self.multiple_px, self.channels = model.tile_px, model.multiple_px, model.channels
        self._hooks, self._seed, self._acts = hooks, seed, acts
        self._codec = codec or functools.partial(LatentCodec, model.family)
        self._own = _tile_script()
        self.conditioner = Conditioner()
        self._own.conditioner = self.conditioner
        self._template = tile_job(p)
        self._template.prompt, self._template.negative_prompt = prompt, negative_prompt
        self._template.scripts_value = others.with_scripts(None, [*scripts, self._own])
        self._controlnet = others.ControlNet(scripts, self._template.script_args_value)
        self._tiles: Sequence[Tile] = ()
        self._canvas = (0, 0)
        self.prompt_of: Callable[[Tile], str] | None = None
        self.extra: dict[str, Any] = {}
        self.comments: dict[str, Any] = {}

    @property
    def one_by_one(self) -> bool:
        """Whether tiles must not share a call."""
        return self._controlnet.active

    def starting(self, tiles: Sequence[Tile], size: tuple[int, int]) -> None:
        """Be told which tiles of a canvas of `size` come next."""
        self._tiles, self._canvas = tiles, size

    def calls(self, denoise: float, steps: int) -> int:
        """Model calls for one tile, as the host's samplers count them.

        Raises:
            SettingsError: the sampler would not run at all and return noise.
        """
        return model_calls(self._template.sampler_name, denoise=denoise, steps=steps)

    def __call__(
        self,
        tiles: Tensor,
        noise: Tensor,
        *,
        denoise: float,
        steps: int,
        correct: TileCorrect,
        called: Callable[[], None],
    ) -> Tensor | None:
        """Repaint tiles, as `run.Render` says."""
        from modules import devices, processing, shared

        if stop_asked():
            return None
        q = self._job(tiles, denoise, steps)
        self._own.noise, self._own.images = TileNoise(noise, shared.device), None
        count, _, height, width = tiles.shape
        shape = (count, self.channels, height // FACTOR, width // FACTOR)
        batch = Batch(q, shape, correct if self._acts else None, self._codec, called, self.conditioner)
        try:
            with (
                self._hooks.armed(batch), self.conditioner.installed(q),
                devices.without_autocast(), repeatable(self._seed),
            ):  # fmt: skip
                processing.process_images(q)
        finally:
            images, self._own.images, self._own.noise = self._own.images, None, None
            q.close()
        self.extra.update({key: value for key, value in q.extra_generation_params.items() if key not in _TILES_OWN})
        self.comments.update(q.comments)
        if images is None or stop_asked():
            return None
        self.conditioner.check_looked()
        return torch.stack([image.detach().cpu().float().clone() for image in images])

    def _job(self, tiles: Tensor, denoise: float, steps: int) -> Any:
        q = copy.copy(self._template)
        q.init_images = [to_image(tile) for tile in tiles]
        q.height, q.width = tiles.shape[-2:]
        q.batch_size, q.n_iter = len(tiles), 1
        q.seed, q.subseed = [self._seed] * len(tiles), [0] * len(tiles)
        q.denoising_strength, q.steps = denoise, steps
        if self.prompt_of is not None and len(self._tiles) == len(tiles):
            q.prompt = [self.prompt_of(tile) for tile in self._tiles]
        q.extra_generation_params = {INFOTEXT_KEY: "tile"}
        q.override_settings, q.comments = dict(self._template.override_settings), {}
        for name in ("latents_after_sampling", "pixels_after_sampling", "extra_result_images"):
            if hasattr(q, name):
                setattr(q, name, [])
        q.color_corrections = []
        if self._controlnet.active and self._tiles:
            q.script_args_value = self._controlnet.cropped(self._tiles[0], self._canvas)
        return q


_TILES_OWN = (INFOTEXT_KEY, "Denoising strength", "Schedule type", "Noise multiplier", "Script")


def tile_job(p: Any) -> Any:
    """A processing object for tiles of `p`: its sampler, guidance scale and model, and nothing of its pictures."""
    from modules import processing, shared

    if hasattr(p, "init_images"):
        q = copy.copy(p)
        for name in ("init", "sample", "setup_conds", "close"):
            q.__dict__.pop(name, None)
    else:
        kind = processing.StableDiffusionProcessingImg2Img
        same = {f.name: getattr(p, f.name, None) for f in dataclasses.fields(kind) if f.init and hasattr(p, f.name)}
        for name in ("sd_model", "sampler_index", "denoising_strength"):
            same.pop(name, None)
        q = kind(**same)
        q.is_api = getattr(p, "is_api", False)
    q.__dict__.update(
        styles=[], mask=None, nmask=None, image_mask=None, latent_mask=None, mask_for_overlay=None,
        overlay_images=None, paste_to=None, inpaint_full_res=False, init_latent=None, image_conditioning=None,
        resize_mode=0, subseed_strength=0, seed_resize_from_h=-1, seed_resize_from_w=-1, restore_faces=False,
        tiling=False, refiner_checkpoint=None, refiner_switch_at=None, do_not_save_samples=True,
        do_not_save_grid=True, do_not_reload_embeddings=True, scripts_setup_complete=True, firstpass_image=None,
        cached_c=[None, None], cached_uc=[None, None], c=None, uc=None, sampler=None, all_prompts=None,
        all_negative_prompts=None, all_seeds=None, all_subseeds=None, init_img_hash=None,
        # The outer generation's overrides are in force already; naming a checkpoint again would reload it.
        override_settings={"save_init_img": False} if shared.opts.save_init_img else {},
        script_args_value=list(p.script_args or []),
    )  # fmt: skip
    return q


def _tile_script() -> Any:
    script = _tile_script_class()()
    script.args_from = script.args_to = 0
    script.filename = __file__
    script.alwayson = True
    return script


@functools.cache
def _tile_script_class() -> type:
    from modules import scripts

    class TileScript(scripts.Script):  # type: ignore[misc]
        """Gives the tiles their noise and takes the finished pictures before they are rounded."""

        noise: TileNoise | None = None
        images: Tensor | None = None
        conditioner: Conditioner | None = None

        def title(self) -> str:
            return "DINO Upscale tiles"

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            noise = self.noise
            if noise is None:
                return
            p.rng = noise
            if getattr(p, "sampler", None) is not None and hasattr(p.sampler, "create_noise_sampler"):
                p.sampler.create_noise_sampler = lambda x, sigmas, p: noise.between

        def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
            if self.conditioner is not None:
                self.conditioner.patch(p)

        def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            self.images = kwargs["images"]

    return TileScript

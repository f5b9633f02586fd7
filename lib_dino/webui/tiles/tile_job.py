"""Processing objects for batches of tiles: the picture's sampler, guidance scale and model, none of its pictures."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from ...pictures.pixels import to_image
from ...sampling.tile_model import TileBatch
from ..model.samplers import tile_steps
from . import other_scripts

INFOTEXT_KEY = "DINO upscale"
"""ControlNet of A1111 takes "upscale" in a key as the sign that a call is for one tile."""


class TileJobs:
    """Makes the host's processing object for each batch of tiles of one picture.

    Args:
        p: the generation they belong to; only read.
        seed: of the picture.
        prompt, negative_prompt: of the picture, with extra networks in them.
        scripts: those of the user's scripts that act on each tile.
        own: the script that gives tiles their noise.
    """

    def __init__(
        self, p: Any, *, seed: int, prompt: str, negative_prompt: str, scripts: Sequence[Any], own: Any
    ) -> None:
        self.seed = seed
        self._template = tile_job(p)
        self._template.prompt, self._template.negative_prompt = prompt, negative_prompt
        self._template.scripts_value = other_scripts.with_scripts(None, [*scripts, own])
        self._controlnet = other_scripts.ControlNet(scripts, self._template.script_args_value)

    @property
    def sampler_name(self) -> str | None:
        """The host's sampler of the tiles."""
        name: str | None = self._template.sampler_name
        return name

    @property
    def one_by_one(self) -> bool:
        """Tiles must not share a call: a ControlNet hint belongs to one of them."""
        return self._controlnet.active

    def make(self, batch: TileBatch) -> Any:
        """A processing object for `batch`."""
        q = copy.copy(self._template)
        count = len(batch.images)
        q.init_images = [to_image(tile) for tile in batch.images]
        q.height, q.width = batch.images.shape[-2:]
        q.batch_size, q.n_iter = count, 1
        q.seed, q.subseed = [self.seed] * count, [0] * count
        q.denoising_strength, q.steps = batch.denoise, tile_steps(batch.denoise, batch.steps)
        if batch.prompts is not None:
            q.prompt = list(batch.prompts)
        q.extra_generation_params = {INFOTEXT_KEY: "tile"}
        q.override_settings, q.comments = dict(self._template.override_settings), {}
        for name in ("latents_after_sampling", "pixels_after_sampling", "extra_result_images"):
            if hasattr(q, name):
                setattr(q, name, [])
        q.color_corrections = []
        if self._controlnet.active:
            q.script_args_value = self._controlnet.cropped(batch.boxes[0], batch.canvas_size)
        return q


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
        q.is_api, q.cached_c, q.cached_uc = getattr(p, "is_api", False), p.cached_c, p.cached_uc
    q.__dict__.update(
        styles=[], mask=None, nmask=None, image_mask=None, latent_mask=None, mask_for_overlay=None,
        overlay_images=None, paste_to=None, inpaint_full_res=False, init_latent=None, image_conditioning=None,
        resize_mode=0, subseed_strength=0, seed_resize_from_h=-1, seed_resize_from_w=-1, restore_faces=False,
        tiling=False, refiner_checkpoint=None, refiner_switch_at=None, do_not_save_samples=True,
        do_not_save_grid=True, do_not_reload_embeddings=True, scripts_setup_complete=True, firstpass_image=None,
        c=None, uc=None, sampler=None, all_prompts=None,
        all_negative_prompts=None, all_seeds=None, all_subseeds=None, init_img_hash=None,
        # The outer generation's overrides are in force already; naming a checkpoint again would reload it.
        override_settings={"save_init_img": False} if shared.opts.save_init_img else {},
        script_args_value=list(p.script_args or []),
    )  # fmt: skip
    return q

"""What the corrections of a tile cost, counted, against the same tile without them.

    python -m benchmarks.flops            # prints the table of docs/cost.md

Networks of the real sizes stand without weights on torch's "meta" device, and `torch.utils.flop_counter` counts what
their calls would multiply and add (two operations each). One tile of the size that suits the model, twice as large
as its source, batch size 1; SD 1.5 and SDXL are called for both prompts (CFG), FLUX once. Guidance is DINOv2 small
with its gradient at every call. Resampling and the linear map to colour count only as far as they are matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib_dino import Settings
from lib_dino.measure.features import grid_size
from lib_dino.networks.texture_net import embedded_texture, expected
from lib_dino.run.prepare import make_reference
from lib_dino.sampling.consistency import Autoencoder, AutoencoderConsistency
from lib_dino.sampling.latent_codec import EXACT_SIGMAS
from lib_dino.sampling.sampler import schedule
from lib_dino.tiling.resample import tile_operators

SCALE = 2
TOKENS = 77


def counted(run: Callable[[], Any]) -> float:
    """Billions of operations of `run`, gradients that it asks for included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def empty(*shape: int, grad: bool = False) -> Tensor:
    """A tensor without contents."""
    return torch.empty(*shape, device="meta", requires_grad=grad)


@torch.no_grad()
def sd15(cells: int) -> float:
    """One call for two prompts."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    return counted(lambda: unet(empty(2, 4, cells, cells), empty(1), empty(2, TOKENS, 768)))


@torch.no_grad()
def sdxl(cells: int) -> float:
    """One call for two prompts."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20), cross_attention_dim=2048, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    added = {"text_embeds": empty(2, 1280), "time_ids": empty(2, 6)}
    return counted(
        lambda: unet(empty(2, 4, cells, cells), empty(1), empty(2, TOKENS, 2048), added_cond_kwargs=added)
    )


@torch.no_grad()
def flux(cells: int) -> float:
    """One call; guidance is distilled into the model."""
    from diffusers import FluxTransformer2DModel

    tokens, words = (cells // 2) ** 2, 512
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    return counted(
        lambda: transformer(
            hidden_states=empty(1, tokens, 64), encoder_hidden_states=empty(1, words, 4096), timestep=empty(1),
            pooled_projections=empty(1, 768), img_ids=empty(tokens, 3), txt_ids=empty(words, 3), guidance=empty(1),
        )
    )  # fmt: skip


@torch.no_grad()
def autoencoder(kind: str, channels: int, side: int) -> tuple[float, float]:
    """Encoding and decoding a picture of `side` px, by the "tiny" or the "full" one."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    with torch.device("meta"):
        network: Any = AutoencoderTiny(latent_channels=channels) if kind == "tiny" else AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=channels,
        )  # fmt: skip
    latent = empty(1, channels, side // 8, side // 8)
    return counted(lambda: network.encoder(empty(1, 3, side, side))), counted(lambda: network.decoder(latent))


def dino_small(side: int) -> tuple[float, float]:
    """Looking at a picture of `side` px, and the same with the gradient of the picture."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=518)
    with torch.device("meta"):
        blocks = Dinov2Model(config).encoder.layer.requires_grad_(False)
        patch = torch.nn.Conv2d(3, 384, 14, 14).requires_grad_(False)
    rows, columns = grid_size(side, side)

    def look(grad: bool) -> None:
        image = empty(1, 3, rows * 14, columns * 14, grad=grad)
        tokens = patch(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([empty(1, 1, 384), tokens], 1)
        for block in blocks:
            out = block(tokens)
            tokens = out[0] if isinstance(out, tuple) else out
        if grad:
            tokens.sum().backward()

    return counted(lambda: look(False)), counted(lambda: look(True))


def resampling(side: int) -> tuple[float, float]:
    """A tile of `side` px to its source's scale and back."""
    tile = tile_operators((side // SCALE, side // SCALE), (side, side), slice(0, side), slice(0, side))
    small = empty(1, 3, side // SCALE, side // SCALE)
    return counted(lambda: tile.down(empty(1, 3, side, side))), counted(lambda: tile.up(small))


@torch.no_grad()
def once(side: int) -> float:
    """The networks that look at the source once a picture: cleaning and texture, for a source of `side` px."""
    source = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return counted(lambda: expected(embedded_texture(), make_reference(source, strength=1.0).image, float(SCALE)))


@dataclass(frozen=True)
class Cost:
    """Of one tile, billions of operations.

    Attributes:
        model: its model calls.
        vae: encoding the enlarged source and decoding the result.
        guidance: all of it.
        once: cleaning its part of the source and reading the texture off it.
        pull: one exact pull to the source through the tiny autoencoder, or through the model's own.
    """

    model: float
    vae: float
    guidance: float
    once: float
    pull: tuple[float, float]

    def ratios(self, pulls: int, kind: int) -> tuple[float, float]:
        """The tile with all corrections over the tile without: of model calls alone, and of everything."""
        more = self.guidance + self.once + pulls * self.pull[kind]
        return 1 + more / self.model, 1 + more / (self.model + self.vae)


def cost(model: Callable[[int], float], channels: int, side: int, calls: int) -> Cost:
    """Of one tile of `side` px in `calls` model calls."""
    down, up = resampling(side)
    seen, graded = dino_small(side // SCALE)
    encode, decode = autoencoder("full", channels, side)
    pulls = []
    for e, d in (autoencoder("tiny", channels, side), (encode, decode)):
        pulls.append(2 * e + d + down + up)
    guidance = calls * (graded + 2 * down) + seen + down  # and once the source's tile itself
    return Cost(calls * model(side // 8), encode + decode, guidance, once(side // SCALE), (pulls[0], pulls[1]))


def pulls(denoise: float, steps: int) -> tuple[int, int]:
    """Model calls of a tile, and how many of them pull exactly, by SD's own noise levels."""
    ratios, done = schedule(denoise, steps)[:-1], 0

    def pull(picture: Tensor) -> Tensor:
        nonlocal done
        done += 1
        return torch.zeros_like(picture)

    same = Autoencoder(encode=lambda picture: picture, decode=lambda clean: clean)
    consistency = AutoencoderConsistency(same, EXACT_SIGMAS, pull, 1.0, None)
    for ratio in ratios:
        consistency(torch.zeros(1, 3, 1, 1), ratio)
    return len(ratios), done


def main() -> None:
    """Print the table."""
    settings = Settings()
    calls, done = pulls(settings.denoise, settings.steps)
    rows = {
        "SD 1.5, 512 px": cost(sd15, 4, 512, calls),
        "SDXL, 1024 px": cost(sdxl, 4, 1024, calls),
        "FLUX, 1024 px": cost(flux, 16, 1024, calls),
    }
    print(f"Denoise {settings.denoise:g} of {settings.steps} steps, {calls} model calls, exact pulls: {done}.")
    print()
    print("| One tile | Model calls | VAE in and out | Guidance | Clean, texture | One pull, tiny | One pull, VAE "
          "| No autoencoder | Tiny | VAE |")  # fmt: skip
    print("|---|" + 9 * "---:|")
    for name, c in rows.items():
        shown = [c.ratios(0, 0), c.ratios(done, 0), c.ratios(done, 1)]
        parts = [f"{part:,.0f}" for part in (c.model, c.vae, c.guidance, c.once, *c.pull)]
        ratios = [f"{one:.3f} ({whole:.3f})" for one, whole in shown]
        print("| " + " | ".join([name, *parts, *ratios]) + " |")


if __name__ == "__main__":
    main()

"""Runs for benchmarks: the product's stages one by one, and diffusion models that misbehave on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib_dino.networks.dinov2 import Dinov2
from lib_dino.pictures.picture import read_picture
from lib_dino.run.finish import Finished, tile_drift
from lib_dino.run.outcome import run_picture
from lib_dino.run.plan import plan_job
from lib_dino.run.prepare import Prepared, prepare
from lib_dino.sampling.consistency import Consistency, Pull
from lib_dino.sampling.correction import Codec, Corrector, PixelCodec
from lib_dino.sampling.tile_model import TileBatch, TileModel
from lib_dino.settings import Settings
from lib_dino.tiling.plan import Tile, TilePlan
from lib_dino.tiling.resample import resize


@dataclass(frozen=True)
class Run:
    """A run that is over.

    Attributes:
        seconds: processor time, preparing included.
    """

    job: Prepared
    finished: Finished
    seconds: float

    @property
    def image(self) -> Tensor:
        """The finished picture, (1, 3, H, W) in [0, 1]."""
        return self.finished.image

    @property
    def tiles(self) -> TilePlan:
        """Its tiles."""
        return self.job.plan.tiles

    def worst_drift(self, tile: Tile, image: Tensor) -> float:
        """The largest patch drift above the floor of `tile` in `image`; 0 where nothing can be measured."""
        drift = tile_drift(self.job, tile, image)
        return 0.0 if drift is None else float(drift.patches.max())


@torch.no_grad()
def run(
    source: Tensor, settings: Settings, model: TileModel, dino: Dinov2 | None = None, *, enlarged: Tensor | None = None
) -> Run:
    """Take a source, (1, 3, h, w) in [0, 1], through everything."""
    started = time.process_time()
    plan = plan_job(settings, (source.shape[-2], source.shape[-1]), model)
    job = prepare(source, plan, settings, dino=dino, enlarged=enlarged)
    finished = run_picture(job, model)
    return Run(job, finished, time.process_time() - started)


def middle(photo: str | Path, side: int) -> Tensor:
    """The middle of a photograph, (1, 3, side, side) or smaller, of even sides."""
    pixels = read_picture(photo).pixels
    side = min(side, *pixels.shape[-2:]) // 2 * 2
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    return pixels[..., top : top + side, left : left + side]


def halved(image: Tensor) -> Tensor:
    """`image` made small by 2."""
    return resize(image, (image.shape[-2] // 2, image.shape[-1] // 2)).clamp(0, 1)


class Wrapped:
    """A diffusion model that does what another one does; subclasses change what happens in `render`."""

    def __init__(self, inner: TileModel) -> None:
        self.inner = inner
        self.name, self.tile_px, self.multiple_px = inner.name, inner.tile_px, inner.multiple_px
        self.channels, self.factor, self.fits_any_tile = inner.channels, inner.factor, inner.fits_any_tile

    def calls(self, denoise: float, steps: int) -> int:
        """Model calls for one tile."""
        return self.inner.calls(denoise, steps)

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor | None:
        """Repaint tiles, see `TileModel.render`."""
        return self.inner.render(batch, corrector, on_step)


class HalfPrecision(Wrapped):
    """The model in bfloat16, for speed; everything around it stays in single precision."""

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor | None:
        """Repaint tiles, see `TileModel.render`."""

        def correct(clean: Tensor, noise_to_signal: float, codec: Codec) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return corrector(clean.float(), noise_to_signal, codec)

        with torch.autocast("cpu", torch.bfloat16):
            images = self.inner.render(batch, correct, on_step)
        return None if images is None else images.float()


class Inexact(PixelCodec):
    """Pictures that are good enough to look at, not to be held against the source at every call."""

    def consistency(self, number: int, pull: Pull, strength: float) -> Consistency:
        """None."""
        return lambda clean, noise_to_signal: clean


class WithoutExactDecoder(Wrapped):
    """A pixel model treated as a latent one without a tiny autoencoder: consistency acts at the end alone."""

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor | None:
        """Repaint tiles, see `TileModel.render`."""
        return self.inner.render(batch, lambda clean, ratio, _: corrector(clean, ratio, Inexact()), on_step)


class Insisting(Wrapped):
    """A pixel model that now and then insists, at every call of a tile, on a piece of another picture.

    Which piece, where, and whether at all follows from the tile's noise: other noise, other pieces.

    Args:
        pieces: (N, 3, s, s) in [0, 1].
        share: of attempts in which it insists.

    Attributes:
        insisted: for each tile whether it did, attempt by attempt.
    """

    def __init__(self, inner: TileModel, pieces: Tensor, share: float) -> None:
        super().__init__(inner)
        self._pieces, self._share = pieces, share
        self.insisted: dict[Tile, list[bool]] = {}

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor | None:
        """Repaint tiles, see `TileModel.render`."""
        pastes = [self._paste(noise) for noise in batch.noise]
        for tile, paste in zip(batch.boxes, pastes, strict=True):
            self.insisted.setdefault(tile, []).append(paste is not None)

        def correct(clean: Tensor, noise_to_signal: float, codec: Codec) -> Tensor:
            tiles = [one if paste is None else paste(one) for one, paste in zip(clean, pastes, strict=True)]
            return corrector(torch.stack(tiles), noise_to_signal, codec)

        return self.inner.render(batch, correct, on_step)

    def _paste(self, noise: Tensor) -> Callable[[Tensor], Tensor] | None:
        draw = torch.Generator().manual_seed(int(noise.double().abs().sum() * 1e6) % 2**31)
        if float(torch.rand(1, generator=draw)) >= self._share:
            return None
        piece = 2 * self._pieces[int(torch.randint(len(self._pieces), (1,), generator=draw))] - 1
        side = piece.shape[-1]
        y, x = (int(torch.randint(0, span - side, (1,), generator=draw)) for span in noise.shape[-2:])
        edge = (torch.hann_window(side + 2, periodic=False)[1:-1] * 4).clamp(max=1)
        mask = edge[:, None] * edge[None, :]

        def paste(clean: Tensor) -> Tensor:
            out = clean.clone()
            box = (slice(None), slice(y, y + side), slice(x, x + side))
            out[box] = torch.lerp(out[box], piece.to(out), 0.8 * mask)
            return out

        return paste

"""Contrastive image tokens: `python -m benchmarks.contrast PHOTO ... --judges DIR`.

With an adapter the model is asked twice at every call, with this picture's tokens and with another picture's, and the
difference is added: x0 + w (x0(own) - x0(other)), as classifier-free guidance does with prompts (Ho and Salimans 2022).
x0 is the denoiser's without the adapter, so what all tokens share cancels: an adapter is fine-tuning, too. The middles
of photographs are made small by `--factor` and enlarged again by the embedded denoiser with full consistency. The table
gives the change of the judges' distances against consistency alone at equal detail, as `oracle_guidance` does.
Controls: the adapter alone, and its own tokens in a wrong order.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib_dino.adapter.diffusers_unet import injected
from lib_dino.adapter.injection import ImageTokens, Injection
from lib_dino.adapter.load import load_adapter
from lib_dino.networks.denoiser import BLOCK_PX, load_denoiser
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.sampling.correction import Corrector, PixelCodec
from lib_dino.sampling.pixel_model import NOISE_SCALE, PixelTileModel
from lib_dino.sampling.sampler import sample, schedule
from lib_dino.sampling.tile_model import TileBatch
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize
from training.judges import load_judges

from .fidelity_arms import FalseTokens
from .fidelity_stats import Row
from .oracle_guidance import CURVE, figures, table
from .runs import Wrapped, middle, run


@dataclass(frozen=True)
class Arm:
    """What is shown.

    Attributes:
        weight: w.
        order: whether the picture's own tokens are in their order.
        adapted: x0 is that with the picture's own tokens; else that of the denoiser without an adapter.
    """

    weight: float
    order: bool = True
    adapted: bool = False


ARMS = {
    "adapter alone": Arm(0.0, adapted=True),
    "adapter, tokens in a wrong order": Arm(0.0, order=False, adapted=True),
    "adapter, w 1": Arm(1.0, adapted=True),
    **{f"w {weight:g}": Arm(weight) for weight in (1.0, 2.0, 4.0)},
    **{f"w {weight:g}, tokens in a wrong order": Arm(weight, order=False) for weight in (1.0, 2.0, 4.0)},
}


class Contrasted(Wrapped):
    """The embedded denoiser, shown two sets of tokens.

    Args:
        own, other: tokens of the picture and of another one.
        source_px: width of the source, which decides how large tiles are seen.
    """

    def __init__(
        self, inner: PixelTileModel, arm: Arm, own: ImageTokens, other: ImageTokens, *, source_px: int
    ) -> None:
        super().__init__(inner)
        self._source_px = source_px
        self._denoiser, self._codec = load_denoiser(), PixelCodec()
        self._tokens, self._arm = (own, other), arm

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor:
        """Repaint tiles, see `TileModel.render`."""
        sigmas = [ratio * NOISE_SCALE for ratio in schedule(batch.denoise, batch.steps)]
        scale = batch.plain.shape[-1] / self._source_px
        own, other = (self._spanning(tokens.of_tiles(batch.plain, scale), batch) for tokens in self._tokens)

        def asked(x: Tensor, sigma: float, injection: Injection) -> Tensor:
            with injected(self._denoiser.unet, injection):
                return self._denoiser(x, sigma)

        def predict(x: Tensor, sigma: float) -> Tensor:
            on_step()
            seen = asked(x, sigma, own)
            clean = seen if self._arm.adapted else self._denoiser(x, sigma)
            return clean + self._arm.weight * (seen - asked(x, sigma, other)) if self._arm.weight else clean

        start = 2 * batch.images - 1 + sigmas[0] * batch.noise
        clean = sample(start, sigmas, predict, lambda x, ratio: corrector(x, ratio, self._codec))
        return self._codec.decode(clean).clamp(0, 1)

    def _spanning(self, injection: Injection, batch: TileBatch) -> Injection:
        height, width = batch.images.shape[-2:]
        return dataclasses.replace(injection, span=(height / BLOCK_PX, width / BLOCK_PX))


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, after every photograph so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--judges", type=Path, default=None)
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--side", type=int, default=224, help="of the crops, px, a multiple of the factor")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--denoise", type=float, default=0.5)
    options = parser.parse_args(argv)
    judges, model, dino = load_judges(options.judges), PixelTileModel(), load_dinov2()
    adapter = load_adapter(None, dino)
    alone = Settings(
        scale_factor=options.factor, steps=options.steps, dino_enabled=False, clean_source=0.0, texture=0.0, seed=0
    )
    truths = [middle(photo, options.side) for photo in options.photos]
    smalls = [resize(t, (t.shape[-2] // options.factor, t.shape[-1] // options.factor)).clamp(0, 1) for t in truths]
    curves: list[list[Row]] = []
    rows: dict[str, list[Row]] = {name: [] for name in ARMS}
    for number, (truth, small) in enumerate(zip(truths, smalls, strict=True)):
        shown = smalls[(number + 3) % len(smalls)]
        other = FalseTokens(adapter, dino, 1.0, "other", shown)
        made = [run(small, alone.replace(denoise=denoise), model).image for denoise in CURVE]
        curves.append([figures(image, truth, judges) for image in made])
        for name, arm in ARMS.items():
            own = ImageTokens(adapter, dino, 1.0) if arm.order else FalseTokens(adapter, dino, 1.0, "shuffled")
            contrasted = Contrasted(model, arm, own, other, source_px=small.shape[-1])
            image = run(small, alone.replace(denoise=options.denoise), contrasted).image
            rows[name].append(figures(image, truth, judges))
        print(f"\n{len(curves)} of {len(truths)} photographs, x{options.factor}", file=sys.stderr)
        print("\n".join(table(curves, rows, ["PSNR", *judges])), file=sys.stderr, flush=True)
    print("\n".join(table(curves, rows, ["PSNR", *judges])))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Arms of the fidelity benchmark: the product as it is, and what its parts and its controls do.

An arm is a change of `Settings` plus, where the product offers no such setting, a stage of the run that is given
something else.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lib_dino.adapter.injection import Adapter, ImageTokens, Injection
from lib_dino.adapter.load import load_adapter
from lib_dino.adapter.projectors import PLACE_DIM
from lib_dino.measure.drift import DriftMeter, Target
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.pictures.picture import picture_from_pil
from lib_dino.run.drift_limit import eight_bit
from lib_dino.run.finish import finish
from lib_dino.run.outcome import wanted_tiles
from lib_dino.run.plan import plan_job
from lib_dino.run.prepare import Prepared, prepare
from lib_dino.run.tiles import Conditions, sample_tiles
from lib_dino.sampling.correction import Codec, Corrector
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileBatch, TileModel
from lib_dino.settings import Settings
from lib_dino.tiling.resample import resize

from .runs import HalfPrecision, Wrapped

UNGUIDED: dict[str, Any] = {"dino_enabled": False, "consistency": 0.0, "clean_source": 0.0, "texture": 0.0}
FORCED = 0.6
"""A plant is forced into the predicted clean picture at noise levels above this share of the first one."""


@dataclass(frozen=True)
class Arm:
    """What a run differs by.

    Attributes:
        settings: changes of the defaults.
        final: whether the finished picture is back-projected, where consistency is on at all.
        loop: the same within the sampling.
        target: what guidance aims at: true, shuffled, another picture's, or with a random mask.
        trained: whether the feature network has its weights; else random ones of the same spread.
        tokens: what the adapter shows: true, zero, shuffled or another picture's.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    final: bool = True
    loop: bool = True
    target: str = "true"
    trained: bool = True
    tokens: str = "true"


NEARLY_FULL = 0.999
"""Consistency at which guidance is still run."""


def _dino(strength: float, **more: Any) -> Arm:
    return Arm({"dino_strength": strength, "adapter_strength": 0.0, "consistency": NEARLY_FULL}, **more)


def arms(*, adapter: bool) -> dict[str, Arm]:
    """Every arm by name; with `adapter` those that need one for the embedded denoiser."""
    off: dict[str, Any] = {"dino_enabled": False}
    found = {
        "consistency, final": Arm(off, loop=False),
        "consistency, in loop": Arm(off, final=False),
        "consistency": Arm(off),
        "consistency, source as given": Arm({**off, "clean_source": 0.0}),
        "consistency, no texture": Arm({**off, "texture": 0.0}),
        "consistency, plain": Arm({**off, "clean_source": 0.0, "texture": 0.0}),
        "consistency, no model": Arm({**off, "denoise": 0.0}),
        **{f"DINO {strength:g}": _dino(strength) for strength in (0.25, 0.5, 0.75, 1.0)},
        "DINO 1, shuffled": _dino(1.0, target="shuffled"),
        "DINO 1, another picture": _dino(1.0, target="other"),
        "DINO 1, random weights": _dino(1.0, trained=False),
        "DINO 1, random mask": _dino(1.0, target="mask"),
        "DINO 1, no consistency": Arm({"dino_strength": 1.0, "consistency": 0.0, "texture": 0.0}),
        "defaults": Arm(),
    }
    if adapter:
        on = {**off, "adapter_strength": 1.0}
        found |= {
            "adapter": Arm(on),
            "adapter, zero tokens": Arm(on, tokens="zero"),
            "adapter, shuffled": Arm(on, tokens="shuffled"),
            "adapter, another picture": Arm(on, tokens="other"),
            "all": Arm({"adapter_strength": 1.0}),
        }
    return found


@dataclass
class Plant:
    """Something that does not belong, forced into the predicted clean picture.

    Attributes:
        image: (1, 3, H, W): a picture in [0, 1], or texture to be added when `hidden`.
        mask: (1, 1, H, W) in [0, 1].
        factor: of the enlargement.
        hidden: invisible to downscaling.
    """

    image: Tensor
    mask: Tensor
    factor: int
    hidden: bool

    def force(self, clean: Tensor) -> Tensor:
        """`clean`, in [-1, 1], with the plant in it."""
        if not self.hidden:
            return torch.lerp(clean, 2 * self.image - 1, self.mask)
        return clean + self.mask * (2 * self.image - unseen(clean, self.factor))


def unseen(image: Tensor, factor: int) -> Tensor:
    """What downscaling by `factor` cannot see of a picture."""
    size = (image.shape[-2], image.shape[-1])
    for _ in range(4):
        image = image - resize(resize(image, (size[0] // factor, size[1] // factor)), size)
    return image


def disk(size: tuple[int, int], seed: int) -> Tensor:
    """A soft disk at a random place, (1, 1, *size)."""
    rng, (height, width) = random.Random(seed), size
    radius = 0.22 * min(size)
    y, x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    far = ((down - y) ** 2 + (across - x) ** 2).sqrt()
    return ((radius - far) / (0.15 * radius)).clamp(0, 1)[None, None]


class Planting(Wrapped):
    """A pixel model of one tile that forces a plant into its first predicted clean pictures."""

    def __init__(self, inner: TileModel, plant: Plant) -> None:
        super().__init__(inner)
        self._plant = plant

    def render(self, batch: TileBatch, corrector: Corrector, on_step: Callable[[], None]) -> Tensor | None:
        """Repaint tiles, see `TileModel.render`."""
        assert len(batch.boxes) == 1, "a plant has the size of the picture, which must be one tile"
        first = 0.0

        def correct(clean: Tensor, noise_to_signal: float, codec: Codec) -> Tensor:
            nonlocal first
            first = max(first, noise_to_signal)
            forced = self._plant.force(clean.float()) if noise_to_signal > FORCED * first else clean
            return corrector(forced, noise_to_signal, codec)

        return self.inner.render(batch, correct, on_step)


class FalseTarget(DriftMeter):
    """Measures as ever, but tells guidance a wrong target.

    Args:
        kind: "shuffled", "other" for another picture's, or "mask" for a random weight.
        other: another picture, (1, 3, h, w) in [0, 1].
    """

    def __init__(self, dino: Dinov2, source: Tensor, *, plain: Tensor, kind: str, other: Tensor) -> None:
        super().__init__(dino, source, plain=plain)
        self._kind, self._other = kind, other

    def target(self, region: Tensor) -> Target:
        """What guidance is to believe of a region."""
        if self._kind == "other":
            return super().target(resize(self._other, (region.shape[-2], region.shape[-1])).clamp(0, 1))
        true = super().target(region)
        order = torch.randperm(true.weight.numel(), generator=torch.Generator().manual_seed(1))
        weight = true.weight.flatten()[order].view_as(true.weight)
        if self._kind == "mask":
            return dataclasses.replace(true, weight=weight)
        features = true.features.flatten(2)[..., order].view_as(true.features)
        return dataclasses.replace(true, features=features, weight=weight)


@dataclass(frozen=True)
class FalseTokens(ImageTokens):
    """Image tokens that say nothing, or something else.

    Attributes:
        kind: "zero", "shuffled" or "other" for another picture's.
        other: another picture, (1, 3, h, w) in [0, 1].
    """

    kind: str = "zero"
    other: Tensor | None = None

    def of_tiles(self, plain: Tensor, scale: float) -> Injection:
        """Tokens of tiles, see `ImageTokens.of_tiles`."""
        if self.kind == "other" and self.other is not None:
            plain = resize(self.other, (plain.shape[-2], plain.shape[-1])).clamp(0, 1).expand_as(plain)
        true = super().of_tiles(plain, scale)
        tokens = true.tokens.clone()
        if self.kind == "zero":
            tokens = torch.zeros_like(tokens)
        if self.kind == "shuffled":  # places stay
            order = torch.randperm(tokens.shape[1] - 1, generator=torch.Generator().manual_seed(1))
            tokens[:, :-1, :-PLACE_DIM] = tokens[:, order, :-PLACE_DIM]
        return dataclasses.replace(true, tokens=tokens)


def random_network(seed: int = 0) -> Dinov2:
    """The embedded feature network's shape with random weights, each matrix as spread as the trained one."""
    dino, generator = load_dinov2(), torch.Generator().manual_seed(seed)
    for parameter in dino.parameters():
        if parameter.ndim >= 2 and parameter.numel() > dino.dim:
            parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.std()
    dino.path = None  # the calibration beside it is another network's
    return dino


class Lab:
    """Runs arms; networks are loaded once.

    Args:
        half: the denoiser in half precision, for speed.
    """

    def __init__(self, *, half: bool = True) -> None:
        inner = PixelTileModel()
        self.model: TileModel = HalfPrecision(inner) if half else inner
        self.nets = {True: load_dinov2(), False: random_network()}
        self._adapter: Adapter | None = None

    @torch.no_grad()
    def run(
        self, small: Image.Image, arm: Arm, settings: dict[str, Any], *, other: Image.Image, plant: Plant | None = None
    ) -> Tensor:
        """The enlarged picture, (1, 3, H, W); `other` is another small picture, for controls."""
        options, source = Settings(**{**settings, **arm.settings}), picture_from_pil(small).pixels
        model = self.model if plant is None else Planting(self.model, plant)
        dino = self.nets[arm.trained]
        job = prepare(source, plan_job(options, (source.shape[-2], source.shape[-1]), model), options, dino=dino)
        looped = job if arm.loop else _inconsistent(job)
        if arm.target != "true":
            shown = picture_from_pil(other).pixels
            false = FalseTarget(dino, job.reference.image, plain=job.plain, kind=arm.target, other=shown)
            looped = dataclasses.replace(looped, meter=false)
        tiles, skipped = wanted_tiles(looped, model)
        conditions = Conditions(self._tokens(arm, job, picture_from_pil(other).pixels))
        blended = sample_tiles(looped, model, tiles, skipped=skipped, conditions=conditions)
        return finish(job if arm.final else _inconsistent(job), *blended, eight_bit).image

    def _tokens(self, arm: Arm, job: Prepared, other: Tensor) -> ImageTokens | None:
        strength, dino = job.settings.adapter_strength, self.nets[arm.trained]
        if not strength:
            return None
        self._adapter = self._adapter or load_adapter(None, self.nets[True])
        if arm.tokens == "true":
            return ImageTokens(self._adapter, dino, strength)
        return FalseTokens(self._adapter, dino, strength, arm.tokens, other)


def _inconsistent(job: Prepared) -> Prepared:
    """`job` with consistency off in the stages that are given it."""
    return dataclasses.replace(job, settings=job.settings.replace(consistency=0.0))

"""Arms of the fidelity benchmark: the product as it is, and what its parts and its controls do.

An arm is a change of `Settings` plus, where the product offers no such setting, a patch that holds for one run.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

import lib_dino.run.run
from lib_dino import Settings, upscale
from lib_dino.measure.drift import Target, Yardstick
from lib_dino.networks.denoiser import Denoiser
from lib_dino.networks.dinov2 import Dinov2, load_dinov2
from lib_dino.sampling.correction import PixelCodec
from lib_dino.sampling.pixel_model import EmbeddedRender
from lib_dino.tiling.resample import resize

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


def _dino(strength: float, **more: Any) -> Arm:
    return Arm({"dino_strength": strength, "adapter_strength": 0.0}, **more)


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


class Fast:
    """The denoiser under bfloat16 autocast, with a plant if there is one."""

    def __init__(self, inner: Denoiser, plant: Plant | None) -> None:
        self.unet, self._inner, self._plant, self._first = inner.unet, inner, plant, 0.0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The predicted clean picture, as `Denoiser` gives it."""
        self._first = max(self._first, sigma)
        with torch.autocast("cpu", torch.bfloat16):
            clean = self._inner(x, sigma).float()
        return self._plant.force(clean) if self._plant and sigma > FORCED * self._first else clean


class FinalOnly(PixelCodec):
    """Pictures that consistency in the loop keeps its hands off."""

    exact = False


def random_network(seed: int = 0) -> Dinov2:
    """The embedded feature network's shape with random weights, each matrix as spread as the trained one."""
    dino, generator = load_dinov2(), torch.Generator().manual_seed(seed)
    for parameter in dino.parameters():
        if parameter.ndim >= 2 and parameter.numel() > dino.dim:
            parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.std()
    return dino


class Lab:
    """Runs arms; networks are loaded once."""

    def __init__(self) -> None:
        self.model = EmbeddedRender()
        self._denoiser = self.model._denoiser
        self.nets = {True: load_dinov2(), False: random_network()}

    def run(
        self, small: Image.Image, arm: Arm, settings: dict[str, Any], *, other: Image.Image, plant: Plant | None = None
    ) -> Tensor:
        """The enlarged picture, (1, 3, H, W); `other` is another small picture, for controls."""
        self.model._denoiser = Fast(self._denoiser, plant)  # type: ignore[assignment]
        self.model._codec = PixelCodec() if arm.loop else FinalOnly()
        known = {field.name for field in dataclasses.fields(Settings)}
        values = {k: v for k, v in {**settings, **arm.settings}.items() if k in known}
        with ExitStack() as patches:
            if not arm.final:
                patches.enter_context(patch.object(lib_dino.run.run, "back_project", lambda image, *_, **__: image))
            if arm.target != "true":
                patches.enter_context(_target(arm.target, other))
            if arm.tokens != "true":
                patches.enter_context(_tokens(arm.tokens, other))
            return upscale(small, Settings(**values), model=self.model, dino=self.nets[arm.trained]).picture.pixels


def _tensor(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    import numpy as np

    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    return resize(image, size).clamp(0, 1)


@contextmanager
def _target(kind: str, other: Image.Image) -> Iterator[None]:
    true: Callable[[Yardstick, Tensor], Target] = Yardstick.target

    def changed(self: Yardstick, region: Tensor) -> Target:
        size = (region.shape[-2], region.shape[-1])
        found = true(self, _tensor(other, size) if kind == "other" else region)
        order = torch.randperm(found.weight.numel(), generator=torch.Generator().manual_seed(1))
        weight = found.weight.flatten()[order].view_as(found.weight)
        if kind == "mask":
            return dataclasses.replace(found, weight=weight)
        if kind == "shuffled":
            features = found.features.flatten(2)[..., order].view_as(found.features)
            return dataclasses.replace(found, features=features, weight=weight)
        return found

    with patch.object(Yardstick, "target", changed):
        yield


@contextmanager
def _tokens(kind: str, other: Image.Image) -> Iterator[None]:
    from lib_dino.adapter.injection import Adapter
    from lib_dino.adapter.projectors import PLACE_DIM

    true = Adapter.tokens

    def changed(self: Adapter, dino: Dinov2, tiles: Tensor, scale: float, whole: Tensor | None = None) -> Tensor:
        shown = _tensor(other, (tiles.shape[-2], tiles.shape[-1])) if kind == "other" else tiles
        tokens = true(self, dino, shown, scale, whole).clone()
        if kind == "zero":
            return torch.zeros_like(tokens)
        if kind == "shuffled":  # places stay
            order = torch.randperm(tokens.shape[1] - 1, generator=torch.Generator().manual_seed(1))
            tokens[:, :-1, :-PLACE_DIM] = tokens[:, order, :-PLACE_DIM]
        return tokens

    with patch.object(Adapter, "tokens", changed):
        yield

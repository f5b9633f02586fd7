"""An adapter inside the host's UNet, for the calls of one batch of our own tiles.

In the Forge family a clone of the UNet's patcher is told to; A1111 has no such thing, so there the cross-attention
modules' `forward` is wrapped, and unwrapped whatever happens. Both leave the host's own attention, with the kernel
the user chose and whatever other extensions put around it, as it is, and add `adapter.Injection.seen` to it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ...adapter.diffusers_unet import check_fits
from ...adapter.injection import Adapter, Injection
from ...adapter.load import load_adapter
from ...errors import AdapterError
from ...networks.dinov2 import Dinov2
from .attention import Calls, forge_attention, looking, replacement
from .family import Model

BASES: Final = {"sd1": "sd15", "sdxl": "sdxl"}
"""Bases of adapters, by the host's model families that have cross-attention."""

_ORDER: Final = ("input_blocks", "output_blocks", "middle_block")
_BLOCK: Final = re.compile(rf"({'|'.join(_ORDER)})\.(?:(\d+)\.)?\d+\.transformer_blocks\.(\d+)\.attn2")


@functools.lru_cache(maxsize=1)
def load(path: Path, changed: float, dino: Dinov2, *, half: bool) -> Adapter:
    """The adapter in a file, on the CPU; the last one is kept for the next picture, until the file is `changed`.

    With `half` its layers are float16, as in the file, for a GPU: SDXL's are 340 million weights.
    """
    adapter = load_adapter(path, dino)
    if half:
        with torch.inference_mode(False):
            adapter.layers.half()
    return adapter


@dataclass(frozen=True)
class Place:
    """A cross-attention layer of the host's UNet.

    Attributes:
        module: with `to_q`, `to_k`, `to_out` and `heads`.
        key: block, number in it and number in its transformer, as the Forge family counts them.
    """

    module: Any
    key: tuple[str, int, int]


def places(unet: Any) -> list[Place]:
    """Cross-attention layers in diffusers' order: down, up, middle."""
    found = []
    for name, module in unet.named_modules():
        match = _BLOCK.fullmatch(name)
        if match:
            kind, number, index = match[1], int(match[2] or 0), int(match[3])
            place = Place(module, (kind.removesuffix("_blocks").removesuffix("_block"), number, index))
            found.append((_ORDER.index(kind), place))
    # Modules are registered down, middle, up; within each they come in order.
    return [place for _, place in sorted(found, key=lambda pair: pair[0])]


def network(sd_model: Any) -> Any:
    """The host's UNet itself."""
    objects = getattr(sd_model, "forge_objects", None)
    return sd_model.model.diffusion_model if objects is None else objects.unet.model.diffusion_model


def check(adapter: Adapter, sd_model: Any, model: Model) -> None:
    """Nothing, when the loaded checkpoint can take the adapter.

    Raises:
        AdapterError: it has no cross-attention, or other than the adapter was made for.
    """
    if model.family not in BASES:
        raise AdapterError(
            f"Adapters need a UNet with cross-attention, SD 1.5 or SDXL; the loaded checkpoint is {model.family}, "
            f"which is none of them. Set adapter strength to 0, or load another checkpoint."
        )
    layers = [place.module for place in places(network(sd_model))]
    shapes = [(layer.to_q.out_features, layer.to_k.in_features) for layer in layers]
    check_fits(adapter, shapes, base=BASES[model.family], model="the loaded checkpoint")


class Conditioner:
    """Has the host's UNet look at an injection during a batch of tiles.

    Attributes:
        injection: what is to be looked at; None between batches, and when there is no adapter.
    """

    def __init__(self) -> None:
        self.injection: Injection | None = None
        self._calls = Calls()

    @contextmanager
    def conditioned(self, injection: Injection | None) -> Iterator[None]:
        """Batches inside the block look at `injection`; None is none."""
        self.injection = injection
        try:
            yield
        finally:
            self.injection = None

    def before_model(self, params: Any) -> None:
        """Be told by the host which rows the next calls of the UNet have."""
        if self.injection is not None:
            self._calls.begin(params, len(self.injection.tokens))

    @contextmanager
    def installed(self, p: Any) -> Iterator[None]:
        """For A1111: `p`'s UNet looks at the injection inside the block. In the Forge family `patch` does it.

        Raises:
            AdapterError: nothing looked although the block was left without an error.
        """
        if self.injection is None:
            yield
            return
        self._calls = Calls()
        objects = getattr(p.sd_model, "forge_objects", None)
        before = None if objects is None else objects.unet
        wrapped = [] if objects is not None else self._wrap(p.sd_model)
        try:
            yield
        finally:
            for module, held in wrapped:
                del module.forward
                module.__dict__.update(held)
            if before is not None:
                p.sd_model.forge_objects.unet = before

    def check_looked(self) -> None:
        """Nothing, when the UNet looked at the tokens since `installed`.

        Raises:
            AdapterError: it did not, as when another engine runs in its place.
        """
        if self.injection is not None and not self._calls.looked:
            raise AdapterError(
                "The adapter was not used: something else than the checkpoint's own UNet ran, such as a compiled "
                "engine. Switch that off, or set adapter strength to 0."
            )

    def _wrap(self, sd_model: Any) -> list[tuple[Any, dict[str, Any]]]:
        injection, wrapped = self.injection, []
        assert injection is not None, "nothing to wrap for"
        for number, place in enumerate(places(network(sd_model))):
            module = place.module
            held = {"forward": module.__dict__["forward"]} if "forward" in module.__dict__ else {}
            module.forward = looking(module, module.forward, number, injection, self._calls)
            wrapped.append((module, held))
        return wrapped

    def patch(self, p: Any) -> None:
        """For the Forge family, from `process_before_every_sampling`: give `p` a clone of its UNet that looks."""
        objects = getattr(p.sd_model, "forge_objects", None)
        if self.injection is None or objects is None:
            return
        unet = objects.unet.clone()
        replaced = unet.model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {})
        attention = forge_attention()
        for number, place in enumerate(places(network(p.sd_model))):
            inner = replaced.get(place.key) or replaced.get(place.key[:2]) or attention
            patch = replacement(inner, number, place.module.heads, self.injection, self._calls)
            unet.set_model_attn2_replace(patch, *place.key)
        objects.unet = unet

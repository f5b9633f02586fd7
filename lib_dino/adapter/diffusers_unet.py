"""An adapter inside a diffusers UNet: the embedded denoiser's, or one that is being trained for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AdapterError
from .format import CROSS_DIM
from .injection import Adapter, Injection


def cross_attention(unet: nn.Module) -> list[Any]:
    """Cross-attention modules of a diffusers UNet: the odd ones of its attention processors, in order."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]  # type: ignore[union-attr]
    return [unet.get_submodule(name) for name in names[1::2]]


def shapes(unet: nn.Module) -> list[tuple[int, int]]:
    """(channels, width of the text's tokens) of each cross-attention layer, in order."""
    return [(module.to_q.out_features, module.to_k.in_features) for module in cross_attention(unet)]


def check_fits(adapter: Adapter, shapes: Sequence[tuple[int, int]], *, base: str, model: str) -> None:
    """Check that `adapter` was made for a UNet whose cross-attention layers have these shapes.

    Args:
        shapes: (channels, width of the text's tokens) of each layer, in diffusers' order.
        base: what kind of model it is, as in `AdapterInfo`.
        model: what to call it in messages.

    Raises:
        AdapterError: it was made for another.
    """
    own, given = adapter.channels, [channels for channels, _ in shapes]
    if adapter.info.base != base:
        raise AdapterError(
            f"The adapter {adapter.name} was made for {adapter.info.base}; {model} is {base}. Load a checkpoint of "
            f"that kind, take an adapter for this one, or set adapter strength to 0."
        )
    if own != given:
        raise AdapterError(
            f"The adapter {adapter.name} was made for a UNet with {len(own)} "
            f"cross-attention layers of {_short(own)} channels; {model} has {len(given)} of {_short(given)}. Load a "
            f"checkpoint of that base, or take an adapter for this one."
        )
    width = CROSS_DIM.get(adapter.info.base)
    if width is not None and any(context != width for _, context in shapes):
        raise AdapterError(
            f"The adapter {adapter.name} says it is for {adapter.info.base}, whose text tokens are {width} wide; those "
            f"of {model} are {shapes[0][1]} wide. Load a checkpoint of that base."
        )


def _short(numbers: Sequence[int]) -> str:
    return "/".join(map(str, dict.fromkeys(numbers))) or "no"


@contextmanager
def injected(unet: Any, injection: Injection) -> Iterator[None]:
    """A diffusers UNet looks at the tokens inside the block, and is as it was afterwards; strength 0 changes nothing.

    Rows of its batch are the tiles in order.
    """
    if injection.strength == 0:
        yield
        return
    modules = cross_attention(unet)
    before = [module.processor for module in modules]
    size = [(0, 0)]

    def remember(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        size[0] = (sample.shape[-2], sample.shape[-1])

    handle = unet.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        for number, (module, inner) in enumerate(zip(modules, before, strict=True)):
            module.processor = _Decoupled(inner, injection, number, size)
        yield
    finally:
        handle.remove()
        for module, inner in zip(modules, before, strict=True):
            module.processor = inner


class _Decoupled:
    """Attention processor: what `inner` gives, and what the adapter's layer sees put through the same projection."""

    def __init__(self, inner: Any, injection: Injection, number: int, size: list[tuple[int, int]]) -> None:
        self.inner, self.injection, self.number, self.size = inner, injection, number, size

    def __call__(self, attention: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = self.inner(attention, hidden_states, *args, **kwargs)
        query = attention.to_q(hidden_states)
        added = self.injection.seen(self.number, query, attention.heads, cells=self.size[0])
        return out + F.linear(added, attention.to_out[0].weight.to(added))

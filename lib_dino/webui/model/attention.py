"""One cross-attention layer of the host's UNet that looks at an adapter's tokens as well."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...adapter.injection import Injection
from ...errors import AdapterError


@dataclass
class Calls:
    """Which tiles the rows of a UNet call are, in A1111, where calls may take any run of a step's rows.

    Attributes:
        looked: whether any layer did.
        size: height and width of the latents.
    """

    looked: bool = False
    size: tuple[int, int] = (0, 0)
    _rows: Tensor | None = None
    _taken: dict[int, int] = field(default_factory=dict)

    def begin(self, params: Any, count: int) -> None:
        """A step begins: its rows are those of each tile's prompts, then unconditional ones."""
        conditional = int(params.text_cond.shape[0])
        if conditional % count:
            raise AdapterError(
                f"The adapter cannot tell {count} tiles with {conditional} prompts apart. Set tile batch size to 1."
            )
        each = conditional // count
        blank = [-1] * (len(params.x) - conditional)
        self._rows = torch.tensor([row // each for row in range(conditional)] + blank)
        self._taken.clear()
        self.size = (params.x.shape[-2], params.x.shape[-1])

    def next_rows(self, number: int, count: int) -> Tensor | None:
        """Tiles of the next `count` rows that layer `number` sees; None before the first step."""
        if self._rows is None:
            return None
        start = self._taken.get(number, 0)
        start = start if start + count <= len(self._rows) else 0
        self._taken[number] = start + count
        return self._rows[start : start + count]


def looking(module: Any, inner: Callable[..., Tensor], number: int, injection: Injection, calls: Calls) -> Any:
    """For A1111: `forward` of the cross-attention layer `module`, which also looks at `injection`."""

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = inner(x, *args, **kwargs)
        rows = calls.next_rows(number, len(x))
        if rows is None:
            return out
        calls.looked = True
        if bool((rows < 0).all()):
            return out
        query = module.to_q(x)
        seen = injection.seen(number, query, module.heads, rows=rows, cells=calls.size)
        # Through the projection as it stands, LoRAs included, without its bias, which `out` has already.
        projected: Tensor = module.to_out(seen) - module.to_out(torch.zeros_like(seen[:1, :1]))
        return out + projected.to(out)

    return forward


def replacement(inner: Any, number: int, heads: int, injection: Injection, calls: Calls) -> Any:
    """For the Forge family: the attention `inner`, which also looks at `injection`."""

    # A plain function: the host copies its options deeply, and functions are not copied.
    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        out: Tensor = inner(q, k, v, extra)
        chunks = extra["cond_or_uncond"]
        count = len(q) // len(chunks)
        if count != len(injection.tokens):
            raise AdapterError(f"The adapter has tokens of {len(injection.tokens)} tiles; a call came with {count}.")
        calls.looked = True
        if all(chunks):
            return out
        rows = torch.tensor([-1 if blank else tile for blank in chunks for tile in range(count)])
        height, width = extra["original_shape"][-2:]
        return out + injection.seen(number, q, heads, rows=rows, cells=(height, width)).to(out)

    return replace


def forge_attention() -> Any:
    """The attention that the user chose, as the Forge family calls it, in the form of a replacement."""
    try:
        attend = importlib.import_module("backend.attention").attention_function
    except ImportError:
        attend = importlib.import_module("ldm_patched.ldm.modules.attention").optimized_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        out: Tensor = attend(q, k, v, extra["n_heads"])
        return out

    return attention

"""Expected detail: how likely the detail at each patch of a result was invented, given its source.

Made small again, a result that was put through source consistency *is* its source, so drift sees nothing of what was
made up between the source's pixels: a weave where there was fur, other letters, scribble. This head judges it at the
result's own scale. For each patch of 14 px it gets the frozen DINOv2 features of the result and of the plainly enlarged
source at several depths, the pixels of both, what consistency would still change, and the drift; it answers with a
logit that is positive where an invention is more likely than honest detail. It was trained, without labels, on
planted edits (`training/calibrate.py`), and is differentiable with respect to the result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from ..measure.features import normalised
from .dinov2 import Dinov2
from .dinov2_weights import PATCH_PX

SEEN: Final = 4
"""Channels of what downscaling sees: see `seen_channels`."""

PIXELS: Final = 4
"""Channels of what it sees of the pixels: see `pixel_channels`."""

WINDOW: Final = 20
"""Patches a side that DINOv2 sees at once at the result's scale; larger results are looked at piece by piece."""

VERSION: Final = 1


@dataclass(frozen=True)
class HeadShape:
    """What a head is made of.

    Attributes:
        dim: width of the feature network's tokens.
        layers: blocks whose tokens it reads, counted from 1.
        width: channels on the patch grid.
        pixels: channels at half of the result's resolution; 0 leaves the pixels out.
        tokens: whether it reads the feature network's tokens at all.
    """

    dim: int
    layers: tuple[int, ...]
    width: int = 64
    pixels: int = 24
    tokens: bool = True


class DetailHead(nn.Module):
    """Pixels and tokens to a logit a patch."""

    token_mean: Tensor
    token_scale: Tensor

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        width, fine = shape.width, shape.pixels
        channels = SEEN
        if fine:
            self.stem = nn.Conv2d(4 * PIXELS, fine, 3, padding=1)
            self.fine = nn.Conv2d(fine, fine, 3, padding=1)
            self.read = nn.Conv2d(2 * fine, width, 1)
            channels += width
        if shape.tokens:
            total = shape.dim * len(shape.layers)
            self.register_buffer("token_mean", torch.zeros(1, total, 1, 1))
            self.register_buffer("token_scale", torch.ones(1, total, 1, 1))
            self.token = nn.Conv2d(total, width, 1)
            channels += 3 * width
        self.join = nn.Conv2d(channels, width, 1)
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.out = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, pixels: Tensor, made: Tensor | None, plain: Tensor | None, seen: Tensor) -> Tensor:
        """Logits, (B, gh, gw).

        Args:
            pixels: (B, PIXELS, 14 gh, 14 gw) as `pixel_channels` makes them.
            made, plain: (B, layers * dim, gh, gw), tokens of the result and of the plain enlargement;
                None for a head that reads none.
            seen: (B, SEEN, gh, gw) as `seen_channels` makes them.
        """
        parts = [seen]
        if self.shape.pixels:
            x = F.gelu(self.stem(F.pixel_unshuffle(pixels, 2)))
            x = x + F.gelu(self.fine(x))
            half = PATCH_PX // 2
            energy = (F.avg_pool2d(x.square(), half) + 1e-4).log()
            parts.append(F.gelu(self.read(torch.cat([F.avg_pool2d(x, half), energy], 1))))
        if made is not None and plain is not None:
            a, b = (self.token((tokens - self.token_mean) / self.token_scale) for tokens in (made, plain))
            parts += [F.gelu(b), a - b, (a - b).abs()]
        x = F.gelu(self.join(torch.cat(parts, 1)))
        for layer in self.mix:
            x = x + F.gelu(layer(x))
        logit: Tensor = self.out(x)[:, 0]
        return logit


def pixel_channels(made: Tensor, plain: Tensor, residual: Tensor) -> Tensor:
    """What the head sees of the pixels, (B, PIXELS, H, W): luma, and what was added in luma and in colour.

    Args:
        made, plain: result and plain enlargement, (B, 3, H, W) in [0, 1].
        residual: what consistency would still add to the result, (B, 3, H, W).
    """
    luma = made.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    added = made - plain
    grey, more, wrong = ((x * luma).sum(1, keepdim=True) for x in (made, added, residual))
    colour = (added - more).abs().mean(1, keepdim=True)
    return torch.cat([2 * grey - 1, 8 * more, 8 * wrong, 8 * colour], 1)


def seen_channels(drift: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """What downscaling sees, on the result's patch grid: (B, SEEN, gh, gw).

    Args:
        drift: weighted patch drift above the floor, (B, gh, gw).
        weight: confidence of each patch, (B, gh, gw).
        residual: as for `pixel_channels`, (B, 3, 14 gh, 14 gw).
    """
    error = residual.abs().mean(1, keepdim=True)
    mean, most = F.avg_pool2d(error, PATCH_PX), F.max_pool2d(F.avg_pool2d(error, 3, 1, 1), PATCH_PX)
    return torch.cat([(drift[:, None] + 1e-4).log() / 4, weight[:, None], (mean + 1e-4).log(), (most + 1e-4).log()], 1)


def tokens_at(dino: Dinov2, image: Tensor, layers: tuple[int, ...], *, window: int = WINDOW) -> Tensor:
    """Tokens of `image`, (B, 3, 14 gh, 14 gw) in [0, 1], at its own scale: (B, layers * D, gh, gw), float32.

    Larger pictures than `window` patches a side are seen in equal windows that overlap where they must.
    """
    rows, cols = image.shape[-2] // PATCH_PX, image.shape[-1] // PATCH_PX
    out: Tensor | None = None
    for top, height in _windows(rows, window):
        for left, width in _windows(cols, window):
            part = image[..., top * PATCH_PX : (top + height) * PATCH_PX, left * PATCH_PX : (left + width) * PATCH_PX]
            given = normalised(dino, part.to(dino.positions.device), (height, width))
            found = torch.cat(dino.layer_tokens(given, layers), 1).float().to(image.device)
            if (height, width) == (rows, cols):
                return found
            if out is None:
                out = found.new_zeros(*found.shape[:2], rows, cols)
            out = _set(out, found, top, left)
    assert out is not None, "a picture has at least one window"
    return out


def _set(whole: Tensor, part: Tensor, top: int, left: int) -> Tensor:
    """`whole` with `part` in place; differentiable with respect to both."""
    height, width = part.shape[-2:]
    below, right = whole.shape[-2] - top - height, whole.shape[-1] - left - width
    frame = (left, right, top, below)
    inside = F.pad(torch.ones_like(part[:, :1]), frame)
    return whole * (1 - inside) + F.pad(part, frame)


def _windows(count: int, window: int) -> list[tuple[int, int]]:
    """Starts and lengths of equal windows that cover `count` patches."""
    if count <= window:
        return [(0, count)]
    pieces = -(-count // window)
    return [(round(i * (count - window) / (pieces - 1)), window) for i in range(pieces)]


def save_head(head: DetailHead, path: Path) -> None:
    """Write the head as float16 safetensors, its shape in the metadata."""
    from safetensors.torch import save_file

    shape = {**vars(head.shape), "version": VERSION}
    save_file({key: value.half().contiguous() for key, value in head.state_dict().items()}, path,
              metadata={"detail_head": json.dumps(shape)})


def load_head(path: Path, dino: Dinov2) -> DetailHead:
    """The head in `path`, on the feature network's device, frozen, float32.

    Raises:
        ModelError: the file is damaged, no head, or made for another feature network.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as file:
            shape: dict[str, Any] = json.loads((file.metadata() or {})["detail_head"])
        version = shape.pop("version")
        held = HeadShape(**{**shape, "layers": tuple(shape["layers"])})
        with torch.inference_mode(False):
            head = DetailHead(held)
            head.load_state_dict(load_file(path))
    except Exception as error:  # whatever safetensors and torch make of a damaged file
        raise ModelError(f"{path} is no expected-detail head: {error!r}. Run `make calibrate` again.") from error
    if version != VERSION or held.dim != dino.dim or max(held.layers) > dino.depth:
        raise ModelError(
            f"{path} was made for features of {held.dim} channels and {max(held.layers)} blocks (version {version}); "
            f"{dino.name} has {dino.dim} and {dino.depth} (version {VERSION}). Make it again with `make calibrate`."
        )
    with torch.inference_mode(False):
        return head.float().eval().requires_grad_(False).to(dino.positions.device)

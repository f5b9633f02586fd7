"""Expected detail: how likely the detail at each patch of a result was invented, given its source.

Made small again, a result that was put through source consistency *is* its source, so drift sees nothing of what was
made up between the source's pixels: a weave where there was fur, other letters, scribble. The detector judges it at
the result's own scale. Of each patch of 14 px it gets the frozen DINOv2 features of the result and of the plain
enlargement at several depths, the pixels of both, what consistency would still change, and the drift; it answers with a
logit that is positive where an invention is more likely than honest detail. It was trained, without labels, on
planted edits (`training/calibrate.py`), and is differentiable with respect to the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from .dinov2 import Dinov2
from .dinov2_weights import PATCH_PX
from .weights_file import load_net, save_net

SEEN: Final = 4
"""Channels from the source's scale, see `measure.edits.seen_channels`."""

PIXELS: Final = 4
"""Channels from the pixels, see `measure.edits.pixel_channels`."""

VERSION: Final = 1


@dataclass(frozen=True)
class DetectorShape:
    """Sizes of a detector.

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


class EditDetector(nn.Module):
    """Pixels and tokens to a logit a patch."""

    token_mean: Tensor
    token_scale: Tensor

    def __init__(self, shape: DetectorShape) -> None:
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
            pixels: (B, PIXELS, 14 gh, 14 gw) as `edits.pixel_channels` makes them.
            made, plain: (B, layers * dim, gh, gw), tokens of the result and of the plain enlargement;
                None for a detector that reads none.
            seen: (B, SEEN, gh, gw) as `edits.seen_channels` makes them.
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


def save_detector(detector: EditDetector, path: Path) -> None:
    """Write the detector as float16 safetensors, its shape in the metadata."""
    save_net(detector, path, kind="detail_head", version=VERSION, **vars(detector.shape))


def load_detector(path: Path, dino: Dinov2) -> EditDetector:
    """The detector in `path`, on the feature network's device, frozen, float32.

    Raises:
        ModelError: the file is damaged, no detector, or made for another feature network.
    """
    detector = load_net(
        path, _make_head, kind="detail_head", version=VERSION,
        lacks="is no edit detector", advice="Run `make calibrate` again.",
    )  # fmt: skip
    if detector.shape.dim != dino.dim or max(detector.shape.layers) > dino.depth:
        raise ModelError(
            f"{path} was made for features of {detector.shape.dim} channels and {max(detector.shape.layers)} blocks; "
            f"{dino.name} has {dino.dim} and {dino.depth}. Make it again with `make calibrate`."
        )
    with torch.inference_mode(False):
        return detector.to(dino.positions.device)


def _make_head(*, layers: list[int], **shape: Any) -> EditDetector:
    return EditDetector(DetectorShape(layers=tuple(layers), **shape))

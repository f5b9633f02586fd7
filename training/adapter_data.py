"""Photographs for adapter training: sharp crops, and what a small, soft or damaged source would show of them.

Every sample is a function of the seed and its number, so that a resumed run sees what an uninterrupted one does.
"""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

Resampling = Image.Resampling
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
FILTERS = (Resampling.BOX, Resampling.BILINEAR, Resampling.BICUBIC, Resampling.LANCZOS, Resampling.HAMMING)
MARGIN_PX = 8  # degraded with the crop, then cut off, so that no crop border is in it
HELD_PICTURES = 128  # decoded ones that are kept


@dataclass(frozen=True)
class Sample:
    """A crop, (3, S, S) in [0, 1] each: as it is, and as its source shows it once enlarged.

    Attributes:
        caption: the text beside the photograph, or empty.
    """

    sharp: Tensor
    soft: Tensor
    caption: str


@dataclass(frozen=True)
class Batch:
    """Samples, (B, 3, S, S) in [0, 1] each; `scale` is how many times smaller their sources were."""

    sharp: Tensor
    soft: Tensor
    scale: float
    captions: list[str]


class Photographs:
    """Degraded crops of all pictures in a folder and the folders inside it.

    Args:
        folder: pictures; `NAME.txt` beside `NAME.jpg` is its caption.
        side_px: of the crops.
        seed: of everything random.
        clean: share of the crops that are only made small, without blur, noise or JPEG.

    Raises:
        SystemExit: there is no picture large enough.
    """

    def __init__(self, folder: Path, side_px: int, seed: int, *, clean: float = 0.6) -> None:
        self.side_px, self.seed, self.clean = side_px, seed, clean
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        sizes = [size_of(path) for path in self.files]
        least = side_px + 2 * MARGIN_PX
        self.files = [path for path, size in zip(self.files, sizes, strict=True) if min(size) >= least]
        if not self.files:
            raise SystemExit(f"{folder} holds no picture of at least {least} x {least} px ({', '.join(SUFFIXES)}).")
        # Large pictures hold more, but not as much more as they are larger.
        self.weights = [math.sqrt(w * h) for w, h in sizes if min(w, h) >= least]
        self.held: dict[Path, Image.Image] = {}

    def batch(self, number: int, count: int) -> Batch:
        """The batch of that number: samples of one scale, so that all are seen by as many patches."""
        scale = random_scale(random.Random(f"{self.seed} batch {number}"))
        samples = [self.sample(number * count + i, scale) for i in range(count)]
        sharp, soft = (torch.stack(part) for part in zip(*((s.sharp, s.soft) for s in samples), strict=True))
        return Batch(sharp, soft, scale, [s.caption for s in samples])

    def sample(self, number: int, scale: float) -> Sample:
        """The sample of that number."""
        draw = random.Random(f"{self.seed} {number}")
        (path,) = draw.choices(self.files, self.weights)
        sharp = self._crop(self._open(path), draw)
        soft = self._soft(sharp, scale, draw)
        inner = slice(MARGIN_PX, MARGIN_PX + self.side_px)
        both = [torch.from_numpy(np.asarray(p)[inner, inner].copy()).permute(2, 0, 1) / 255 for p in (sharp, soft)]
        caption = path.with_suffix(".txt")
        text = caption.read_text(encoding="utf-8").strip() if caption.is_file() else ""
        return Sample(*both, text)

    def _open(self, path: Path) -> Image.Image:
        if path not in self.held:
            if len(self.held) >= HELD_PICTURES:
                self.held.pop(next(iter(self.held)))
            with Image.open(path) as picture:
                self.held[path] = picture.convert("RGB")
        return self.held[path]

    def _crop(self, whole: Image.Image, draw: random.Random) -> Image.Image:
        """A square, from as much as the picture has to as little as is needed, turned and mirrored."""
        least = self.side_px + 2 * MARGIN_PX
        side = round(least * min(draw.choice([1.0, 1.0, 1.4, 2.0]), min(whole.size) / least))
        best = None
        for _ in range(2 if draw.random() < 0.75 else 1):  # of two, the livelier
            left, top = (draw.randint(0, extent - side) for extent in whole.size)
            crop = whole.crop((left, top, left + side, top + side))
            best = crop if best is None else max(best, crop, key=liveliness)
        assert best is not None
        if side > least:
            best = best.resize((least, least), Resampling.LANCZOS)
        turn = draw.choice([None, *Image.Transpose])
        return best if turn is None else best.transpose(turn)

    def _soft(self, sharp: Image.Image, scale: float, draw: random.Random) -> Image.Image:
        """`sharp` made small and damaged, then enlarged again as the product does."""
        clean = draw.random() < self.clean
        if not clean and draw.random() < 0.5:
            sharp = sharp.filter(ImageFilter.GaussianBlur(draw.uniform(0.2, 0.5) * scale))
        size = tuple(max(1, round(side / scale)) for side in sharp.size)
        small = sharp.resize(size, draw.choice(FILTERS))  # type: ignore[arg-type]
        if not clean and draw.random() < 0.5:
            grain = np.random.default_rng(draw.getrandbits(63)).normal(0, draw.uniform(1, 10), (*size[::-1], 3))
            small = Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).round().astype(np.uint8))
        if not clean and draw.random() < 0.6:
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=draw.randint(40, 95), subsampling=draw.choice([0, 2]))
            small = Image.open(stream).convert("RGB")
        return small.resize(sharp.size, Resampling.BICUBIC)


def random_scale(draw: random.Random) -> float:
    """How many times smaller a source is: twofold in half of the cases, else 1.35 to 4.4."""
    (scale,) = draw.choices([1.5, 2.0, 3.0, 4.0], [0.15, 0.55, 0.15, 0.15])
    return scale if scale == 2.0 else scale * draw.uniform(0.9, 1.1)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture file, which is not decoded for it."""
    with Image.open(path) as picture:
        return picture.size


def liveliness(crop: Image.Image) -> float:
    """Mean step between neighbouring grey pixels."""
    grey = np.asarray(crop.convert("L"), dtype=np.float32)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())

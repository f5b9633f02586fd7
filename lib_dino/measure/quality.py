"""Figures that need no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import arrays

DETAIL_SIGMA_PX = 1.5


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [0, 1]; inf when they are equal."""
    error = _mean(lambda rows: (image[..., rows, :].double() - reference[..., rows, :].double()).square(), image)
    return math.inf if error == 0 else -10 * math.log10(error)


def high_frequencies(image: Tensor) -> Tensor:
    """The luma of (B, 3, H, W) less its Gaussian blur of 1.5 px, (B, 1, H, W), float32."""
    luma = (image.float() * image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    radius = _radius()
    x = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.exp(-(x**2) / (2 * DETAIL_SIGMA_PX**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    padded = F.pad(luma, (radius, radius, radius, radius), mode="replicate")
    smooth = F.conv2d(F.conv2d(padded, kernel[..., None]), kernel[..., None, :])
    return luma - smooth


def _radius() -> int:
    return math.ceil(3 * DETAIL_SIGMA_PX)


def _mean(values: Callable[[slice], Tensor], image: Tensor) -> float:
    """Mean of what `values` gives for each band of `image`."""
    total, count = 0.0, 0
    for rows in arrays.bands(image):
        part = values(rows)
        if rows.stop - rows.start == image.shape[-2]:
            return float(part.mean())
        total, count = total + float(part.sum()), count + part.numel()
    return total / count


def detail_energy(image: Tensor) -> float:
    """Mean squared `high_frequencies` of (B, 3, H, W)."""
    if not arrays.is_large(*image.shape):
        return float(high_frequencies(image).square().mean())
    height, margin = image.shape[-2], _radius()

    def of(rows: slice) -> Tensor:
        first = max(0, rows.start - margin)
        seen = high_frequencies(image[..., first : min(height, rows.stop + margin), :])
        return seen[..., rows.start - first : rows.stop - first, :].square().double()

    return _mean(of, image)


def detail_ratio(image: Tensor, reference: Tensor) -> float:
    """High-frequency energy of `image` relative to that of `reference`; 1 when neither has any."""
    energy, base = detail_energy(image), detail_energy(reference)
    return energy / base if base > 1e-12 else 1.0 if energy <= 1e-12 else math.inf


def seam_ratios(image: Tensor, lines: Sequence[int], *, beside_px: int = 12) -> list[float]:
    """Steps of the picture across horizontal lines, relative to the lines beside them.

    Args:
        image: (1, 3, H, W).
        lines: the first row after each line.
        beside_px: rows on either side that give the neighbourhood, the nearest two left out.

    Returns:
        For each line that has a neighbourhood on both sides the mean absolute step from row `line - 1` to
        row `line`, divided by the mean of those beside it; 1 is no seam, also where nothing steps at all.
    """
    steps = (image[..., 1:, :].double() - image[..., :-1, :].double()).abs().mean((0, 1, 3))
    ratios = []
    for line in lines:
        here = line - 1
        low, high = here - beside_px, here + beside_px + 1
        if low < 0 or high > len(steps):
            continue
        beside = torch.cat([steps[low : here - 1], steps[here + 2 : high]]).mean()
        ratios.append(float(steps[here] / beside) if beside > 1e-9 else 1.0 + float(steps[here]))
    return ratios

"""Drift map of a result: a colour overlay on the picture, with its scale and three figures in the corner."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..pictures.picture import Picture
from .labels import lines_mask, text_mask
from .maps import Heat
from .records import Report
from .side_by_side import seen_whole

PLASMA: Final = (
    (13, 8, 135), (76, 2, 161), (126, 3, 168), (170, 35, 149), (204, 71, 120), (230, 108, 92), (248, 149, 64),
    (253, 197, 39), (240, 249, 33),
)  # fmt: skip
"""Nine evenly spaced colours of the "plasma" scale by S. van der Walt, N. Smith and E. Firing (CC0). It grows lighter
from end to end, so that it reads in grey and for colour-blind people too."""

MOST_PX: Final = 4096
"""Longest side of the map's picture; larger results are shown smaller."""

TITLES: Final = {"drift": "Drift above plain enlargement", "edits": "How likely it was invented"}
LIMITS: Final = {"drift": "bound", "edits": "alarm"}

Array = npt.NDArray[Any]
_OPACITY: Final = 0.7
_DARK: Final = (16, 16, 24)
_NOT_MEASURED: Final = "Drift was not measured in this picture."


def heatmap(picture: Picture, heat: Heat | None, report: Report) -> Image.Image:
    """The picture under its map, RGB.

    Places over the limit are outlined, so that they are found without looking at the colours, and the worst are
    numbered. Where nothing was found the picture shows as it is. Without a map the picture says so.

    Args:
        picture: the result.
        heat: drift or edit probability; None when drift was not measured.
        report: of the picture, for the figures.
    """
    shown = seen_whole(picture, most_px=MOST_PX)
    px = max(12, min(28, shown.width // 50))
    if heat is None:
        return _with_box(shown, _words([_NOT_MEASURED], px))
    layer = overlay(heat, (shown.height, shown.width))
    shown.paste(layer, (0, 0), layer)
    _number(shown, report, shown.height / picture.size[0], px)
    return _with_box(shown, _legend(heat, report, px))


def overlay(heat: Heat, size: tuple[int, int]) -> Image.Image:
    """The map alone, RGBA of (height, width) `size`: transparent where nothing was found."""
    spread: Array = F.interpolate(heat.values.float(), size=size, mode="bilinear")[0, 0].cpu().numpy()
    ink = np.clip(spread / heat.limit, 0, 1)
    alpha = _OPACITY * ink * ink * (3 - 2 * ink)  # faint below the limit, full from there on
    values = np.concatenate([colour_of(spread / heat.top), np.round(255 * alpha)[..., None]], -1).astype(np.uint8)
    width = max(1, round(min(size) / 400))
    inside = spread > heat.limit
    edge = _grown(inside, width) & ~inside
    values[_grown(edge, width)] = (0, 0, 0, 255)
    values[edge] = (255, 255, 255, 255)
    return Image.fromarray(values)


def colour_of(share: Array) -> Array:
    """Colours of the scale, 0 to 255, for shares 0 to 1 of it; values outside take its ends."""
    places = np.linspace(0, 1, len(PLASMA))
    channels = [np.interp(share, places, [colour[i] for colour in PLASMA]) for i in range(3)]
    return np.round(np.stack(channels, -1))


def figures_line(report: Report) -> str:
    """The picture's three figures, in words."""
    if report.drift_above is None:
        return _NOT_MEASURED
    return (
        f"drift: mean {report.drift_above:.3f}   worst {report.drift_worst_patch:.2f}   "
        f"over the bound {100 * (report.over_bound or 0.0):.1f} %"
    )


def _number(image: Image.Image, report: Report, shrink: float, px: int) -> None:
    """1, 2 and 3 beside the worst places, as in the picture of these."""
    for number, patch in enumerate(report.worst_patches, start=1):
        mask = text_mask(str(number), px)
        size = (mask.width + px // 2, mask.height + px // 4)
        tag = Image.new("RGB", size, _DARK)
        tag.paste((255, 255, 255), (px // 4, px // 8), mask)
        x = min(round(patch.box[3] * shrink) + 2, image.width - size[0])
        image.paste(tag, (max(0, x), max(0, round(patch.box[0] * shrink) - size[1] // 2)))


def _grown(region: Array, by: int) -> Array:
    mask = torch.from_numpy(region)[None, None].float()
    grown: Array = F.max_pool2d(mask, 2 * by + 1, stride=1, padding=by)[0, 0].numpy() > 0
    return grown


def _legend(heat: Heat, report: Report, px: int) -> Image.Image:
    """The scale with the limit marked, and the figures."""
    words = _words([TITLES[heat.kind], figures_line(report)], px)
    top, limit = heat.top, heat.limit
    bar = Image.new("RGB", (words.width, px + 2 * (px + 2)), _DARK)
    left, right = px // 2, words.width - px // 2
    ramp = colour_of(np.linspace(0, 1, right - left))[None].repeat(px, 0).astype(np.uint8)
    bar.paste(Image.fromarray(ramp), (left, px // 2))
    at = left + round((right - left) * limit / top)
    ImageDraw.Draw(bar).line((at, 0, at, px + px), fill=(255, 255, 255), width=max(2, px // 8))
    labels = ((left, "0"), (at, f"{LIMITS[heat.kind]} {limit:.2g}"), (right, f"{top:.2g}"))
    taken = -1
    for x, text in labels:
        mask = text_mask(text, px - 2)
        x = min(max(x - mask.width // 2, max(left, taken)), right - mask.width)
        if x >= taken:
            bar.paste((255, 255, 255), (x, px + px), mask)
            taken = x + mask.width + px // 2
    out = Image.new("RGB", (words.width, words.height + bar.height), _DARK)
    out.paste(words, (0, 0))
    out.paste(bar, (0, words.height))
    return out


def _words(lines: list[str], px: int) -> Image.Image:
    mask = lines_mask(lines, px)
    box = Image.new("RGB", (mask.width + px, mask.height + px), _DARK)
    box.paste((255, 255, 255), (px // 2, px // 2), mask)
    return box


def _with_box(image: Image.Image, box: Image.Image) -> Image.Image:
    """The box in the lower left corner; below the picture where it would hide too much."""
    if box.width <= 0.6 * image.width and box.height <= 0.3 * image.height:
        image.paste(box, (0, image.height - box.height), None)
        return image
    out = Image.new("RGB", (max(image.width, box.width), image.height + box.height), _DARK)
    out.paste(image, (0, 0))
    out.paste(box, (0, image.height))
    return out

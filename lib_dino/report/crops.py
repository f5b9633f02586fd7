"""The worst places of a picture at 100 %, each beside what the source shows there."""

from __future__ import annotations

from typing import Final

from PIL import Image, ImageDraw

from ..pictures.picture import Picture
from ..tiling.resample import resize
from .labels import text_mask
from .records import Report, WorstPatch
from .side_by_side import seen

CROP_PX: Final = 256
NOTHING: Final = "Nothing drifts above plain enlargement."
_GAP_PX: Final = 8
_TEXT_PX: Final = 16
_MARK: Final = (255, 255, 255)


def worst_crops(source: Picture, result: Picture, report: Report) -> list[tuple[WorstPatch, Image.Image, Image.Image]]:
    """For each of the report's worst patches the plainly enlarged source and the result around it, the patch framed.

    Nothing is scaled beyond that: both are as large as in the result.
    """
    plain = Picture(resize(source.pixels, result.size).clamp(0, 1))
    crops = []
    for patch in report.worst_patches:
        rows, cols = (_around(patch.box[i], patch.box[i + 2], result.size[i]) for i in (0, 1))
        pair = (seen(picture, rows, cols).convert("RGB") for picture in (plain, result))
        before, after = (_framed(image, patch.box, rows.start, cols.start) for image in pair)
        crops.append((patch, before, after))
    return crops


def worst_sheet(source: Picture, result: Picture, report: Report) -> Image.Image:
    """One picture of them all, a row each, enlarged source left and result right; it says so when there are none."""
    rows = worst_crops(source, result, report)
    if not rows:
        return _only(NOTHING if report.drift_above is not None else "Drift was not measured in this picture.")
    width, height = (max(image.size[i] for _, image, _ in rows) for i in (0, 1))
    step = height + _GAP_PX + 2 * _TEXT_PX
    texts = [[f"{n}: {words}" for words in _labels(patch)] for n, (patch, _, _) in enumerate(rows, start=1)]
    width = max([width, *(text_mask(text, _TEXT_PX).width for pair in texts for text in pair)])
    sheet = Image.new("RGB", (2 * width + 3 * _GAP_PX, len(rows) * step + _GAP_PX), (255, 255, 255))
    for n, (_, *pair) in enumerate(rows):
        for side, (text, image) in enumerate(zip(texts[n], pair, strict=True)):
            x, y = _GAP_PX + side * (width + _GAP_PX), n * step + _GAP_PX
            sheet.paste((0, 0, 0), (x, y), text_mask(text, _TEXT_PX))
            sheet.paste(image, (x, y + 2 * _TEXT_PX - _GAP_PX // 2))
    return sheet


def _only(text: str) -> Image.Image:
    mask = text_mask(text, _TEXT_PX)
    sheet = Image.new("RGB", (mask.width + 2 * _GAP_PX, mask.height + 2 * _GAP_PX), (255, 255, 255))
    sheet.paste((0, 0, 0), (_GAP_PX, _GAP_PX), mask)
    return sheet


def _labels(patch: WorstPatch) -> tuple[str, str]:
    y, x = (patch.box[0] + patch.box[2]) // 2, (patch.box[1] + patch.box[3]) // 2
    probability = "" if patch.edit_probability is None else f", edit probability {patch.edit_probability:.2f}"
    return f"source, at x {x}, y {y}", f"result, drift {patch.drift:.2f}{probability}"


def _around(first: int, last: int, limit: int) -> slice:
    """`CROP_PX` pixels around a span, or three times the span, moved to lie inside 0 to `limit`."""
    side = min(max(CROP_PX, 3 * (last - first)), limit)
    start = min(max((first + last - side) // 2, 0), limit - side)
    return slice(start, start + side)


def _framed(image: Image.Image, box: tuple[int, int, int, int], top: int, left: int) -> Image.Image:
    """A frame of two colours around the patch, which shows on light and on dark."""
    draw = ImageDraw.Draw(image)
    y0, x0, y1, x1 = box[0] - top, box[1] - left, box[2] - top, box[3] - left
    draw.rectangle((x0 - 2, y0 - 2, x1 + 1, y1 + 1), outline=(0, 0, 0))
    draw.rectangle((x0 - 1, y0 - 1, x1, y1), outline=_MARK)
    return image

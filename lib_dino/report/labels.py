"""Words in pictures, with the font that comes with Pillow, old or new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

_OLD_PX: Final = 11
"""Height of the bitmap font that Pillow has before 10.1, or without FreeType."""


def text_mask(text: str, px: int) -> Image.Image:
    """One line of text, about `px` high, as a mask of mode L: 255 is ink."""
    try:
        font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.load_default(size=px)
        enlarge = 1
    except (TypeError, OSError):
        font, enlarge = ImageFont.load_default(), max(1, round(px / _OLD_PX))
        text = text.encode("latin-1", "replace").decode("latin-1")
    left, _, right, bottom = font.getbbox(text or " ")
    # Lines of one size sit on one base line, whatever letters they have.
    height = max(int(bottom), int(font.getbbox("Ag")[3])) + 1
    mask = Image.new("L", (max(1, int(right - min(left, 0)) + 1), height), 0)
    ImageDraw.Draw(mask).text((-min(left, 0), 0), text, fill=255, font=font)
    return mask.resize((mask.width * enlarge, mask.height * enlarge), Image.Resampling.NEAREST)


def lines_mask(lines: Sequence[str], px: int) -> Image.Image:
    """Lines of text below each other, as `text_mask`."""
    masks = [text_mask(line, px) for line in lines]
    stack = Image.new("L", (max(mask.width for mask in masks), sum(mask.height for mask in masks)), 0)
    y = 0
    for mask in masks:
        stack.paste(mask, (0, y))
        y += mask.height
    return stack


def wrapped(text: str, px: int, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels; a single word may be longer."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_mask(longer, px).width <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

"""Does text stay readable? `make benchmark-text`, or `python -m benchmarks.text --scale 2 4 --pages 6`.

Pages of words are drawn, made small and enlarged again; a network that reads text (rapidocr-onnxruntime, of the package
registry; Apache 2.0) reads the lines of the results. Printed are the share of characters it gets wrong (edits over
characters, spaces left out) and PSNR, for Lanczos, for source consistency without a model, for the defaults and for
plain img2img. `--letters` is the type's size in the result, so at `--scale 4` the source's letters are a quarter of it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lib_dino.measure.quality import psnr
from lib_dino.pictures.picture import picture_from_pil
from lib_dino.pictures.pixels import to_image
from lib_dino.sampling.pixel_model import PixelTileModel
from lib_dino.sampling.tile_model import TileModel
from lib_dino.settings import Settings

from .runs import HalfPrecision, run

WIDTH_PX, LINE_PX, MARGIN_PX = 516, 60, 12
WORDS: Final = (
    "apple bridge candle danger eleven forest garden hammer island jacket kitchen letter market number orange pencil "
    "quarter river summer table under village winter yellow zebra about because common during enough friend ground "
    "heavy inside just known little middle never other people quiet right small through usual voice water exact young"
)

Reader: TypeAlias = Callable[[Image.Image], str]
PLAIN: Final = {"consistency": 0.0, "clean_source": 0.0, "texture": 0.0}
ARMS: Final[dict[str, dict[str, Any] | None]] = {
    "Lanczos": None,
    "consistency, no model": {"denoise": 0.0},
    "defaults, denoise 0.2": {"denoise": 0.2},
    "defaults, denoise 0.5": {"denoise": 0.5},
    "plain img2img, denoise 0.2": {"denoise": 0.2, **PLAIN},
    "plain img2img, denoise 0.5": {"denoise": 0.5, **PLAIN},
}


@dataclass(frozen=True)
class Line:
    """A line of a page: its words and its rows."""

    words: str
    rows: slice


def page(seed: int, letters: tuple[int, int], lines: int) -> tuple[Image.Image, list[Line]]:
    """A page of random words, dark on light or light on dark, each line in its own size."""
    chance = random.Random(seed)
    known = WORDS.split()
    ink, paper = chance.randint(0, 90), chance.randint(170, 255)
    if chance.random() < 0.3:
        ink, paper = paper, ink
    image = Image.new("RGB", (WIDTH_PX, lines * LINE_PX), (paper, paper, max(0, paper - 10)))
    draw, out = ImageDraw.Draw(image), []
    for number in range(lines):
        letter_px = chance.randint(*letters)
        font, middle_px = ImageFont.load_default(letter_px), number * LINE_PX + LINE_PX // 2
        words = chance.choice(known)
        room = WIDTH_PX - 2 * MARGIN_PX
        while draw.textlength(longer := f"{words} {chance.choice(known)}", font=font) < room:
            words = longer
        draw.text((MARGIN_PX, middle_px), words, font=font, fill=(ink, ink, ink), anchor="lm")
        half_px = min(round(0.8 * letter_px), LINE_PX // 2)
        out.append(Line(words, slice(middle_px - half_px, middle_px + half_px)))
    return image, out


def edits(wanted: str, read: str) -> int:
    """Characters to insert, leave out or exchange to get from one text to the other (Levenshtein 1966)."""
    before = list(range(len(read) + 1))
    for i, character in enumerate(wanted, 1):
        row = [i]
        for j, other in enumerate(read, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (character != other)))
        before = row
    return before[-1]


def errors(image: Image.Image, lines: Sequence[Line], reader: Reader) -> tuple[int, int]:
    """Edits, at most all of a line, and characters."""
    wrong = total = 0
    for line in lines:
        wanted = line.words.replace(" ", "")
        read = reader(image.crop((0, line.rows.start, image.width, line.rows.stop))).replace(" ", "")
        wrong, total = wrong + min(edits(wanted, read), len(wanted)), total + len(wanted)
    return wrong, total


def enlarged(small: Image.Image, size: tuple[int, int], arm: str, model: TileModel, scale: int) -> Tensor:
    """(1, 3, H, W) in [0, 1]; `size` is (width, height)."""
    settings = ARMS[arm]
    if settings is None:
        return picture_from_pil(small.resize(size, Image.Resampling.LANCZOS)).pixels
    given = Settings(seed=1, scale_factor=scale, dino_enabled=False, **settings)
    return run(picture_from_pil(small).pixels, given, model).image


def rapid_reader() -> Reader:
    """A network that reads one line of text."""
    from rapidocr_onnxruntime import RapidOCR

    network = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)

    def read(line: Image.Image) -> str:
        found, _ = network(np.array(line)[:, :, ::-1], use_det=False, use_cls=False)
        return str(found[0][0]) if found else ""

    return read


@torch.no_grad()
def main(argv: Sequence[str] | None = None, reader: Reader | None = None) -> None:
    """Print a table for each scale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--letters", type=int, nargs=2, default=[22, 28], help="least and largest type, px (22 28)")
    parser.add_argument("--pages", type=int, default=6)
    parser.add_argument("--lines", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    args = parser.parse_args(argv)
    reader, model = reader or rapid_reader(), HalfPrecision(PixelTileModel())
    pages = [page(seed, tuple(args.letters), args.lines) for seed in range(args.pages)]
    for scale in args.scale:
        print(f"\n| {scale}x, type of {args.letters[0]} to {args.letters[1]} px | characters wrong | PSNR, dB |")
        print("| --- | ---: | ---: |")
        for arm in args.arms:
            wrong = total = 0
            decibels = 0.0
            for image, lines in pages:
                small = image.resize((image.width // scale, image.height // scale), Image.Resampling.BICUBIC)
                size = (small.width * scale, small.height * scale)
                made = enlarged(small, size, arm, model, scale)
                decibels += psnr(made, picture_from_pil(image.crop((0, 0, *size))).pixels) / len(pages)
                bad, count = errors(to_image(made[0]), lines, reader)
                wrong, total = wrong + bad, total + count
            print(f"| {arm} | {100 * wrong / total:.1f} % | {decibels:.2f} |", flush=True)


if __name__ == "__main__":
    main()

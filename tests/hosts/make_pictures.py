"""Before and after for each family: `python tests/hosts/make_pictures.py URL OUT.jpg --families sd1 sdxl sd3 flux`.

A row each: the source, tiles repainted with nothing holding them, with consistency, with DINO guidance as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from client import FAMILIES, Host, picture
from PIL import Image, ImageDraw

SOURCE = (160, 112)
FREE = {"consistency": 0.0, "dino_enabled": False, "texture": 0.0}
COLUMNS = {
    "source": None,
    "tiles alone": FREE,
    "source consistency 0.8": {**FREE, "consistency": 0.8},
    "and DINO strength 1": {**FREE, "consistency": 0.8, "dino_enabled": True, "dino_strength": 1},
}
JOB = {"scale_factor": 2.0, "tile_size": 128, "overlap": 32, "denoise": 0.5, "steps": 12}
LINE = 14


def row(host: Host) -> list[Image.Image]:
    """The pictures of one family, as large as the result."""
    large = picture(*SOURCE).resize((2 * SOURCE[0], 2 * SOURCE[1]), Image.Resampling.NEAREST)
    made = [large]
    for settings in COLUMNS.values():
        if settings is not None:
            made.append(
                host.dropdown({**JOB, **settings}, source=picture(*SOURCE), sampler_name="Euler").image.convert("RGB")
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--families", nargs="+", choices=sorted(FAMILIES), default=["sd1"])
    given = parser.parse_args()
    width, height = 2 * SOURCE[0] + 4, 2 * SOURCE[1] + 4 + LINE
    sheet = Image.new("RGB", (width * len(COLUMNS), height * len(given.families)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, name in enumerate(given.families):
        host = Host(given.url.rstrip("/"), FAMILIES[name])
        host.choose_checkpoint()
        for x, (image, title) in enumerate(zip(row(host), COLUMNS, strict=True)):
            draw.text((x * width + 2, y * height + 1), f"{name}: {title}", fill="black")
            sheet.paste(image, (x * width, y * height + LINE))
    sheet.save(given.out, quality=88)


if __name__ == "__main__":
    main()

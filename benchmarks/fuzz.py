"""Broken input for as long as asked: pictures, weights files, settings, saved texts, kept tiles and reports.

    python -m benchmarks.fuzz --seconds 600

Whatever is wrong with what comes in, the answer is a result or a `DinoError`, within seconds. Anything else is printed
with the case's name, and the exit code is 1. A case is made from its kind and number alone; `PAST` lists those that
once failed, which the suite repeats.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import math
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image, PngImagePlugin

from lib_dino.errors import DinoError
from lib_dino.networks.cleaner import EMBEDDED as CLEANER
from lib_dino.networks.cleaner import load_cleaner
from lib_dino.networks.denoiser import EMBEDDED as DENOISER
from lib_dino.networks.denoiser import load_denoiser
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.networks.dinov2_weights import EMBEDDED as DINO
from lib_dino.networks.texture_net import EMBEDDED as TEXTURE
from lib_dino.networks.texture_net import load_texture
from lib_dino.pictures.files import FORMATS, open_picture, read_settings_text
from lib_dino.pictures.infotext import infotext, parse_infotext
from lib_dino.pictures.picture import Picture, picture_from_pil, read_picture, write_picture
from lib_dino.report.page import html_report
from lib_dino.report.records import Report, TileReport, WorstPatch
from lib_dino.resume.batch_file import from_bytes, to_bytes
from lib_dino.run.retry import Attempt, AttemptSettings, Candidates
from lib_dino.run.tiles import SampledBatch
from lib_dino.settings import Settings, knobs
from lib_dino.tiling.plan import Tile
from lib_dino.webui.panel.arguments import Request, parse, pasted
from lib_dino.webui_settings import FIELDS

LONGEST_S: Final = 20.0
"""A case that takes longer hangs."""

MOST_PIXELS: Final = 30_000_000

MODES: Final = ("L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16", "F", "YCbCr", "HSV", "LAB", "I")
KINDS_OF_FILE: Final = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA")
WORDS: Final = (
    "DINO upscale: 2.0", "Steps: 20", "Seed: 1", "Size: 8x8", "DINO Upscale version: 0.2.0", ", ", ": ", '"', "\\",
    "\n", "Negative prompt:", "DINO denoise: nan", "DINO denoise: 1e999", "DINO width: " + "9" * 5000, "\0", "\ud800",
    "é中", "a" * 300, "Script: DINO Upscale", '"\\u0000"', "DINO seed: -1", "True", "{", "}", "[[[[",
)  # fmt: skip
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf, 2**64, 10**400, "", " ", "nan",
    "\0", "\ud800", "../../x", "a" * 9000, [], [1], {}, {"a": 1}, "Custom", "None", b"x",
)  # fmt: skip
NAMES: Final = (
    "<script>alert(1)</script>", '" onload="x', "{{NOTES}}", "{TITLE}", "$WIDTH", "%s%n", "\0", "\ud800", "a" * 3000,
    "</style><img src=x onerror=y>", "\u202eevil", "&amp;<!--", "--><b>", "]]>",
)  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with bits turned, parts cut, doubled, swapped or made up."""
    held = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at, length = chance.randrange(len(held) + 1), chance.choice([1, 2, 4, 16, 300])
        what = chance.randrange(6)
        if what == 0 and held:
            held[at % len(held)] ^= 1 << chance.randrange(8)
        elif what == 1:
            del held[at:]
        elif what == 2:
            del held[at : at + length]
        elif what == 3:
            held[at:at] = held[at : at + length]
        elif what == 4:
            held[at : at + length] = chance.randbytes(length)
        else:
            held[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
    return bytes(held)


def picture(chance: random.Random, folder: Path) -> None:
    """Read a damaged file of any format and mode; what can be read can be written."""
    kind, mode = chance.choice(KINDS_OF_FILE), chance.choice(MODES)
    size = chance.choice([(1, 1), (7, 5), (40, 30), (1, 200)])
    image = Image.frombytes("L", size, chance.randbytes(size[0] * size[1]))
    stream = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text_of(chance).replace("\0", "").encode("utf-8", "replace").decode())
    exif = Image.Exif()
    exif[0x0112] = chance.randrange(12)
    more: dict[str, Any] = {"PNG": {"pnginfo": info}}.get(kind, {})
    try:
        if kind in ("PNG", "JPEG", "WEBP", "TIFF"):
            more["exif"] = exif
        if chance.random() < 0.2:
            more["icc_profile"] = chance.randbytes(300)
        image.convert(mode).save(stream, kind, **more)
    except (OSError, ValueError, KeyError, TypeError):
        image.convert("RGB").save(stream, "PNG", pnginfo=info)
    path = folder / ("x" + chance.choice([*FORMATS, ".gif", ".bmp", ".avif", ".jp2", ".xyz"]))
    data = stream.getvalue()
    path.write_bytes(damaged(data, chance) if chance.random() < 0.9 else data)
    with contextlib.suppress(DinoError), open_picture(path) as lazy:
        if lazy.width * lazy.height > MOST_PIXELS:
            return  # allowed: memory for as many pixels as a file claims takes its time
    refused(lambda: read_settings_text(path))
    read = refused(lambda: read_picture(path))
    if read is not None and read.pixels.numel() < 10**6:
        assert bool(torch.isfinite(read.pixels).all()) and read.pixels.min() >= 0 and read.pixels.max() <= 1
        out = folder / f"y{chance.choice(list(FORMATS))}"
        text = infotext(Settings(seed=1, adapter=text_of(chance)), read.size)
        refused(lambda: write_picture(read, out, text=text, force=True))


def opened(chance: random.Random, folder: Path) -> None:
    """A picture out of memory, as WebUIs hand it over, of every mode, with broken metadata."""
    size = chance.choice([(1, 1), (3, 2), (17, 9)])
    image = Image.new(chance.choice(MODES), size)
    if image.mode == "F":
        image = Image.frombytes("F", size, chance.randbytes(4 * size[0] * size[1]))
    image.info[chance.choice(["icc_profile", "exif", "xmp", "comment"])] = chance.randbytes(chance.randrange(200))
    refused(lambda: picture_from_pil(image))


def weights(chance: random.Random, folder: Path) -> None:
    """Load a damaged weights file: its head, its sizes or its data."""
    source, load = chance.choice([
        (CLEANER, load_cleaner), (TEXTURE, load_texture), (DENOISER, load_denoiser), (DINO, load_dinov2),
    ])  # fmt: skip
    target = folder / "model"
    if source.is_dir():
        shutil.copytree(source, target)
        victim = chance.choice(sorted(p for p in target.iterdir() if p.suffix in (".json", ".safetensors")))
    else:
        target = victim = folder / "model.safetensors"
        shutil.copy(source, target)
    data = victim.read_bytes()
    length = int.from_bytes(data[:8], "little") if victim.suffix == ".safetensors" else len(data)
    if victim.suffix == ".safetensors" and chance.random() < 0.7:
        head = damaged(data[8 : 8 + length], chance)
        data = len(head).to_bytes(8, "little") + head + data[8 + length :]
    else:
        data = damaged(data, chance)
    victim.write_bytes(data)
    refused(lambda: load(target))


def text_of(chance: random.Random) -> str:
    """A saved text of parts that mean something, in any order."""
    if chance.random() < 0.2:
        return "".join(chance.choice('a:, "\\\n-/ 中') for _ in range(chance.randrange(20_000)))
    words = list(WORDS) + [f"{knob.key}: {chance.choice(ODD)!r}" for knob in chance.sample(list(knobs().values()), 4)]
    return chance.choice(["", ", ", "\n"]).join(chance.choice(words) for _ in range(chance.randrange(30)))


def saved(chance: random.Random, folder: Path) -> None:
    """Read a saved text, and paste it into the panel."""
    found = parse_infotext(text_of(chance))
    refused(lambda: Settings.from_infotext(found))
    for name in FIELDS:
        pasted(name, found)
    odd = {knob.key: str(chance.choice(ODD)) for knob in chance.sample(list(knobs().values()), 5)}
    refused(lambda: Settings.from_infotext(odd))


def arguments(chance: random.Random, folder: Path) -> None:
    """What an API may send."""
    values = {name: chance.choice(ODD) for name in chance.sample(FIELDS, chance.randrange(8))}
    if chance.random() < 0.2:
        values[str(chance.choice(ODD))] = 1
    args = [values] if chance.random() < 0.5 else [chance.choice(ODD) for _ in range(chance.randrange(40))]
    request = Request(*(chance.choice([None, 0.5, 3]) for _ in range(2)))
    refused(lambda: parse(args, request=request, choices={"upscaler": ["None"]}, enabled=True))
    refused(lambda: Settings.from_mapping({str(k): v for k, v in values.items()}))


class Tags(HTMLParser):
    """Counts a page's tags."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.handlers: set[str] = set()

    def handle_starttag(  # noqa: D102
        self, tag: str, attrs: list[tuple[str, str | None]]
    ) -> None:
        self.seen[tag] += 1
        self.handlers |= {name for name, _ in attrs if name.startswith("on")}


def report(chance: random.Random, folder: Path) -> None:
    """Write a report with odd figures and names: valid JSON, and a page without a tag more than a plain one's."""

    def figure() -> float:
        return chance.choice([0.0, 1.0, math.nan, math.inf, -math.inf, 1e300, chance.random()])

    def page(name: str, note: str) -> Tags:
        tiles = (TileReport((0, 0, 12, 16), 1.0, drift_above=0.1, score=0.2, worst_patches=(worst,)),)
        made = dataclasses.replace(base, model=name, features=note, notes=(note,), tiles=tiles)
        tags = Tags()
        text = html_report(name, source, result, (), made)
        text.encode("utf-8")
        tags.feed(text)
        return tags

    source, result = Picture(torch.rand(1, 3, 6, 8)), Picture(torch.rand(1, 3, 12, 16))
    worst = WorstPatch((0, 0, 4, 4), 0.5)
    base = Report(
        (6, 8), (12, 16), dataclasses.asdict(Settings(seed=1)), model="m", features="f", model_calls=1, seconds=1.0,
        source_psnr=40.0, detail=1.0, source_noise=0.0,
    )  # fmt: skip
    odd = dataclasses.replace(base, source_psnr=figure(), detail=figure(), seconds=figure(), source_noise=figure())
    json.dumps(odd.to_dict(), allow_nan=False)
    odd.summary()
    hostile, plain = page(chance.choice(NAMES), chance.choice(NAMES)), page("name", "note")
    assert hostile.seen == plain.seen and hostile.handlers == plain.handlers, "a name became part of the page"
    text = infotext(Settings(seed=1), (12, 16), {"DINO stopped": chance.choice(NAMES)})
    parse_infotext(text)


def kept(chance: random.Random, folder: Path) -> None:
    """Read a damaged batch of kept tiles: it is as it was, or not taken."""
    how = AttemptSettings(0, 1, 0.2, 0.5, 1.0)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(chance.randrange(99)))
    batch = SampledBatch((Candidates((Attempt(Tile(0, 0, 8, 8), how, image, 1.0, 0.1, failing=math.inf),)),), 5, 0, 0)
    data = to_bytes(batch)
    found = from_bytes(data)
    assert found is not None and torch.equal(found.candidates[0].best.image, image)
    changed = damaged(data, chance)
    assert changed == data or from_bytes(changed) is None


KINDS: Final[dict[str, Callable[[random.Random, Path], None]]] = {
    "picture": picture, "opened": opened, "weights": weights, "saved": saved, "arguments": arguments,
    "report": report, "kept": kept,
}  # fmt: skip
SHARE: Final = {"picture": 6, "opened": 2, "weights": 1, "saved": 2, "arguments": 3, "report": 1, "kept": 2}

PAST: Final[dict[str, tuple[int, ...]]] = {
    "saved": (111, 77, 186), "picture": (264, 262, 26), "report": (182,), "arguments": (2621,),
}  # fmt: skip
"""Numbers of cases that failed once, by kind."""


def refused(work: Callable[[], Any]) -> Any:
    """The result of `work`, or None where it was refused in words."""
    try:
        return work()
    except DinoError as error:
        assert str(error).strip() and len(str(error)) < 5000, f"a message of {len(str(error))} characters"
        return None


@functools.cache
def _libraries() -> None:
    """Import what networks are made of, which takes longer than any case."""
    load_denoiser()
    load_dinov2()


def run(kind: str, number: int) -> float:
    """Do one case; its seconds.

    Raises:
        Exception: whatever should not have come.
    """
    if kind == "weights":
        _libraries()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        KINDS[kind](random.Random(f"{kind} {number}"), Path(folder))
    seconds = time.monotonic() - started
    assert seconds < LONGEST_S, f"it took {seconds:.0f} s"
    return seconds


def main() -> int:
    """Run until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--first", type=int, default=None, help="number of the first case (default: by the clock)")
    parser.add_argument("--kind", choices=KINDS, help="of one kind alone")
    args = parser.parse_args()
    first = int(time.time()) if args.first is None else args.first
    chance, counts, failures = random.Random(first), Counter[str](), 0
    end, slowest, number = time.monotonic() + args.seconds, 0.0, first
    while time.monotonic() < end and failures < 20:
        number += 1
        kind = args.kind or chance.choices(list(KINDS), weights=[SHARE[k] for k in KINDS])[0]
        counts[kind] += 1
        try:
            slowest = max(slowest, run(kind, number))
        except Exception:
            failures += 1
            print(f"{kind} {number}:\n{traceback.format_exc()}", flush=True)
    print(f"{counts.total()} cases in {args.seconds:.0f} s: {dict(counts)}; slowest {slowest:.1f} s; {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

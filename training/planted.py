"""Planted edits: pictures in which something was invented, with the mask of where.

An edit is made on the *true* picture A and gives a second true picture B. Both go through the same carrier (left as
they are, recompressed, sharpened, plainly enlarged, or made small and enlarged by a diffusion model), and B's result
is set into A's result where the mask says. So what was invented is as sharp, as noisy and as soft as what surrounds
it, and only its being wrong can give it away. An edit that downscaling cannot see is then put through the product's
own consistency projection onto A's source, which leaves only what lies in the null space of the downscaling.

Everything follows from the generator that is passed in.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lib_dino.sampling.consistency import back_project
from lib_dino.tiling.padding import pad_symmetric
from lib_dino.tiling.resample import resize

PATCH_PX = 14
Rng = np.random.Generator
Upscale = Callable[[Tensor, tuple[int, int], float, int], Tensor]
"""A source, a target size, a denoise and a seed to an honest enlargement by img2img with consistency."""

WORDS = [
    "OPEN", "EXIT", "STOP", "CAFE", "HOTEL", "PARK", "BAKERY", "MARKET", "NORTH", "SOUTH", "EAST", "WEST", "STATION",
    "LIBRARY", "MUSEUM", "GARDEN", "BRIDGE", "RIVER", "TAXI", "BUS", "POLICE", "SCHOOL", "DOCTOR", "BOOKS", "MUSIC",
    "BREAD", "COFFEE", "WINE", "FISH", "FRUIT", "CHURCH", "STREET", "AVENUE", "MAIN", "KING", "QUEEN", "PRIVATE",
    "ENTRY", "24", "365",
]


@dataclass(frozen=True)
class Case:
    """One tile to judge.

    Attributes:
        result: (1, 3, H, W) in [0, 1], at the result's scale.
        source: (1, 3, h, w) in [0, 1].
        change: (1, 1, H, W), mean absolute change of the colour channels that the edit made; 0 for an honest tile.
        kind: of edit, or "honest".
        carrier: what the picture went through.
        visible: whether downscaling can see the edit; None for an honest tile.
        scale: enlargement.
        picture: name of the photograph.
    """

    result: Tensor
    source: Tensor
    change: Tensor
    kind: str
    carrier: str
    visible: bool | None
    scale: float
    picture: str


# ---------------------------------------------------------------- small tools


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """`image`, (B, C, H, W), blurred; edges are mirrored."""
    radius = max(1, math.ceil(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).repeat(image.shape[1], 1, 1, 1)
    pad = min(radius, min(image.shape[-2:]) - 1)
    kernel = kernel[..., radius - pad : radius + pad + 1] / kernel[:1, :, :, radius - pad : radius + pad + 1].sum()
    out = F.conv2d(F.pad(image, (pad, pad, 0, 0), mode="reflect"), kernel, groups=image.shape[1])
    return F.conv2d(F.pad(out, (0, 0, pad, pad), mode="reflect"), kernel.transpose(2, 3), groups=image.shape[1])


def jpeg(image: Tensor, quality: int) -> Tensor:
    """`image`, (1, 3, H, W), through JPEG."""
    memory = io.BytesIO()
    pil(image).save(memory, "JPEG", quality=quality)
    return tensor(Image.open(memory))


def pil(image: Tensor) -> Image.Image:
    """(1, 3, H, W) in [0, 1] to a Pillow picture."""
    return Image.fromarray((image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy())


def tensor(picture: Image.Image) -> Tensor:
    """A Pillow picture to (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def unsharp(image: Tensor, radius: float, amount: float) -> Tensor:
    """`image` sharpened by an unsharp mask."""
    return (image + amount * (image - gaussian(image, radius))).clamp(0, 1)


def blob(size: tuple[int, int], centre: tuple[float, float], radius: float, rng: Rng) -> Tensor:
    """A soft-edged, irregular disk, (1, 1, H, W) in [0, 1]."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    dy, dx = y - centre[0], x - centre[1]
    angle, reach = np.arctan2(dy, dx), np.hypot(dy, dx)
    edge = np.full_like(angle, radius)
    for n in range(2, 6):
        edge += radius * rng.uniform(-0.18, 0.18) * np.cos(n * angle + rng.uniform(0, 6.3))
    return torch.from_numpy(np.clip((edge - reach) / 2 + 0.5, 0, 1))[None, None]


# ---------------------------------------------------------------- edits: a picture, a mask and a donor to a picture


def pasted(image: Tensor, mask: Tensor, donor: Tensor, rng: Rng) -> Tensor:
    """A part of another photograph set in."""
    return torch.lerp(image, donor, mask)


def swapped(image: Tensor, mask: Tensor, donor: Tensor, rng: Rng) -> Tensor:
    """Fine and middling structure of another photograph, as strong as what was there; colours stay."""
    sigma = float(rng.uniform(1.5, 5.0))
    own, other = image - gaussian(image, sigma), donor - gaussian(donor, sigma)
    own_energy, other_energy = (gaussian(x.square().mean(1, keepdim=True), 6.0).sqrt() for x in (own, other))
    gain = (own_energy.clamp(min=0.015) / (other_energy + 1e-3)).clamp(max=4)
    return torch.lerp(image, gaussian(image, sigma) + gain * other, mask)


def warped(image: Tensor, mask: Tensor, donor: Tensor, rng: Rng) -> Tensor:
    """A swirl, a bulge or a shear of what was there, by 4 to 10 px where it is strongest."""
    height, width = image.shape[-2:]
    field = torch.from_numpy(rng.normal(size=(1, 2, max(2, height // 24), max(2, width // 24))).astype(np.float32))
    field = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=False)
    inside = gaussian(mask, 3.0)
    field = field * inside
    field = field * float(rng.uniform(4, 10)) / field.abs().amax().clamp(min=1e-3)
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    where = torch.stack([(x + field[0, 0] + 0.5) / width, (y + field[0, 1] + 0.5) / height], -1)[None] * 2 - 1
    return F.grid_sample(image, where, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(0, 1)


def mirrored(image: Tensor, mask: Tensor, donor: Tensor, rng: Rng) -> Tensor:
    """The fine structure of the same region, turned or mirrored about its middle."""
    rows, cols = box_of(mask)
    sigma = float(rng.uniform(1.5, 4.0))
    low = gaussian(image, sigma)
    part = (image - low)[..., rows, cols]
    flips: Sequence[list[int]] = ([2], [3], [2, 3])
    high = (image - low).clone()
    high[..., rows, cols] = part.flip(flips[int(rng.integers(3))])
    return torch.lerp(image, low + high, mask)


def scribbled(image: Tensor, mask: Tensor, donor: Tensor, rng: Rng) -> Tensor:
    """Thin strokes, as of hair, cracks or handwriting."""
    rows, cols = box_of(mask)
    picture = pil(image).resize((image.shape[-1] * 2, image.shape[-2] * 2), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    tint = image[..., rows, cols].mean((0, 2, 3)).numpy() * 255
    for _ in range(int(rng.integers(2, 7))):
        shift = rng.uniform(-110, 110)
        colour = tuple(int(v) for v in np.clip(tint + shift, 0, 255))
        n = int(rng.integers(3, 8))
        points = np.stack([rng.uniform(cols.start, cols.stop, n), rng.uniform(rows.start, rows.stop, n)], 1)
        t = np.linspace(0, n - 1, 12 * n)
        smooth = np.stack([np.interp(t, np.arange(n), points[:, i]) for i in (0, 1)], 1)
        smooth = np.stack([np.convolve(np.pad(smooth[:, i], 6, "edge"), np.ones(13) / 13, "valid") for i in (0, 1)], 1)
        draw.line([tuple(p) for p in 2 * smooth], fill=colour, width=int(rng.integers(2, 6)))
    drawn = tensor(picture.resize((image.shape[-1], image.shape[-2]), Image.Resampling.LANCZOS))
    return torch.lerp(image, drawn, mask)


def noised(image: Tensor, mask: Tensor, donor: Tensor, rng: Rng) -> Tensor:
    """Grain of 10 to 24/255, one to three pixels coarse."""
    noise = torch.from_numpy(rng.normal(size=tuple(image.shape)).astype(np.float32))
    noise = 0.4 * noise + 0.6 * noise.mean(1, keepdim=True)
    noise = gaussian(noise, float(rng.uniform(0.3, 1.3)))
    noise = noise / noise.std() * float(rng.uniform(10, 24)) / 255
    return (image + mask * noise).clamp(0, 1)


def box_of(mask: Tensor) -> tuple[slice, slice]:
    """The rows and columns that hold all of `mask`."""
    rows, cols = torch.nonzero(mask[0, 0].amax(1) > 0).flatten(), torch.nonzero(mask[0, 0].amax(0) > 0).flatten()
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


EDITS: dict[str, Callable[[Tensor, Tensor, Tensor, Rng], Tensor]] = {
    "object": pasted,
    "texture": swapped,
    "warp": warped,
    "mirror": mirrored,
    "scribble": scribbled,
    "noise": noised,
}
KINDS = (*EDITS, "letters", "invention")
"""All kinds: `EDITS`; letters of a sign changed; and what a diffusion model makes up at high denoise."""


# ---------------------------------------------------------------- signs


def sign(size: tuple[int, int], words: tuple[str, str], rng: Rng) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two versions of a sign that differ in some letters, for a canvas of `size`.

    Returns:
        Both versions, (1, 3, H, W) each; where the sign is and where they differ, (1, 1, H, W).
    """
    letter_px = int(rng.integers(9, 34))
    back, ink = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    if abs(int(back.mean()) - int(ink.mean())) < 90:
        ink = np.array([255, 255, 255]) if back.mean() < 128 else np.array([16, 16, 16])
    font = ImageFont.load_default(size=letter_px)
    drawn = []
    scratch = ImageDraw.Draw(Image.new("L", (1, 1)))
    width = max(int(scratch.textlength(word, font=font)) for word in words) + letter_px
    height = int(letter_px * 1.7)
    angle, top, left = float(rng.uniform(-15, 15)), rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)
    for word in words:
        board = Image.new("RGBA", (width, height), (*map(int, back), 255))
        pen = ImageDraw.Draw(board)
        pen.rectangle((0, 0, width - 1, height - 1), outline=(*map(int, ink), 255), width=max(1, letter_px // 12))
        pen.text((letter_px // 2, height // 2), word, fill=(*map(int, ink), 255), font=font, anchor="lm")
        board = board.rotate(angle, expand=True, resample=Image.Resampling.BICUBIC)
        canvas = Image.new("RGBA", (size[1], size[0]))
        place = int(left * max(0, size[1] - board.width)), int(top * max(0, size[0] - board.height))
        canvas.paste(board, place)
        drawn.append(torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None].float() / 255)
    where = drawn[0][:, 3:]
    differs = (drawn[0][:, :3] - drawn[1][:, :3]).abs().amax(1, keepdim=True)
    differs = (gaussian((differs > 0.08).float(), 1.0) * 3).clamp(0, 1)
    return drawn[0][:, :3], drawn[1][:, :3], where, differs


def two_words(rng: Rng) -> tuple[str, str]:
    """A word, and the same with one to three letters changed into others."""
    word = str(rng.choice(WORDS))
    letters = list(word)
    for place in rng.permutation(len(word))[: int(rng.integers(1, 4))]:
        letters[place] = str(rng.choice([c for c in "ABCDEFGHKLMNOPRSTUVXYZ0123456789" if c != word[place]]))
    return word, "".join(letters)


# ---------------------------------------------------------------- carriers


def shrink(true: Tensor, scale: float, rng: Rng, *, clean: bool) -> Tensor:
    """The source of a true picture; unless `clean` sometimes by another filter, noisy or recompressed."""
    size = (round(true.shape[-2] / scale), round(true.shape[-1] / scale))
    if clean or rng.random() < 0.55:
        small = resize(true, size).clamp(0, 1)
    elif rng.random() < 0.5:
        small = F.interpolate(true, size=size, mode="area")
    else:
        small = tensor(pil(true).resize((size[1], size[0]), Image.Resampling.LANCZOS))
    if not clean and rng.random() < 0.25:
        noise = torch.from_numpy(rng.normal(size=tuple(small.shape)).astype(np.float32))
        small = (small + float(rng.uniform(1, 4)) / 255 * noise).clamp(0, 1)
    if not clean and rng.random() < 0.25:
        small = jpeg(small, int(rng.integers(70, 96)))
    return (small * 255).round() / 255


@dataclass(frozen=True)
class Carrier:
    """What a true picture goes through to become a result; the same numbers serve A and B."""

    name: str
    quality: int
    radius: float
    amount: float
    denoise: float
    seed: int

    def __call__(self, true: Tensor, source: Tensor, upscale: Upscale) -> Tensor:
        """The result, (1, 3, H, W) in [0, 1]."""
        size = (true.shape[-2], true.shape[-1])
        if self.name == "true":
            return true
        if self.name == "recompressed":
            return jpeg(true, self.quality)
        if self.name == "grainy":
            noise = torch.from_numpy(np.random.default_rng(self.seed).normal(size=tuple(true.shape)).astype(np.float32))
            return (true + self.amount * 2 / 255 * noise).clamp(0, 1)
        if self.name == "sharpened":
            return unsharp(true, self.radius, self.amount)
        if self.name == "plain":
            return resize(source, size).clamp(0, 1)
        if self.name == "plain, sharpened":
            return unsharp(resize(source, size).clamp(0, 1), self.radius, self.amount)
        out = upscale(source, size, self.denoise, self.seed)
        return unsharp(out, self.radius, self.amount) if self.name == "img2img, sharpened" else out


def draw_carrier(names: Sequence[str], rng: Rng) -> Carrier:
    """A carrier of one of the names, its numbers drawn from what users do."""
    return Carrier(
        str(rng.choice(names)),
        quality=int(rng.integers(72, 97)),
        radius=float(rng.uniform(0.6, 2.5)),
        amount=float(rng.uniform(0.4, 1.8)),
        denoise=float(rng.uniform(0.1, 0.4)),
        seed=int(rng.integers(2**31)),
    )


CARRIERS = ("true", "true", "recompressed", "grainy", "sharpened", "plain", "plain, sharpened", "img2img", "img2img",
            "img2img, sharpened")
DETAILED = ("true", "true", "recompressed", "sharpened", "img2img", "img2img, sharpened")
"""Carriers with detail of their own: there is a null space to invent in."""


# ---------------------------------------------------------------- cases


@dataclass(frozen=True)
class Scene:
    """A photograph, its source and an honest result, in which edits can be planted.

    Attributes:
        true, source, honest: (1, 3, H, W), (1, 3, h, w), (1, 3, H, W) in [0, 1].
        other_sign: the true picture with other letters on its sign, and where they differ; None without a sign.
        carrier: what made the honest result.
        scale: enlargement.
        picture: name of the photograph.
    """

    true: Tensor
    source: Tensor
    honest: Tensor
    other_sign: tuple[Tensor, Tensor] | None
    carrier: Carrier
    scale: float
    picture: str


def stage(
    true: Tensor, *, scale: float, carrier: Carrier, upscale: Upscale, rng: Rng,
    signed: bool = False, clean: bool = False, picture: str = "",
) -> Scene:
    """A scene on a true picture, (1, 3, H, W), with a sign set in if `signed`; a `clean` source is only made small."""
    other = None
    if signed:
        first, second, where, differs = sign((true.shape[-2], true.shape[-1]), two_words(rng), rng)
        true, other = torch.lerp(true, first, where), (torch.lerp(true, second, where), differs)
    source = shrink(true, scale, rng, clean=clean)
    return Scene(true, source, carrier(true, source, upscale), other, carrier, scale, picture)


def untouched(scene: Scene, *, visible: bool) -> Case:
    """The honest tile; projected onto the source, as invisible edits are, unless `visible`."""
    result = _finished(scene.honest, scene.source, visible)
    return Case(result, scene.source, torch.zeros_like(result[:, :1]), "honest", scene.carrier.name, None,
                scene.scale, scene.picture)


def plant(
    scene: Scene, donor: Tensor, kind: str, *, visible: bool, upscale: Upscale, rng: Rng, places: int = 1,
    at: tuple[float, float] | None = None,
) -> Case:
    """An edited tile.

    Args:
        donor: another photograph, (1, 3, H, W).
        kind: one of `KINDS`; "letters" needs a signed scene.
        visible: whether the edit stays as it is; otherwise it is projected onto the source.
        places: how many edits; a sign has one.
        at: row and column of the edit's middle; None draws them.
    """
    if kind == "letters":
        assert scene.other_sign is not None, "letters can only be changed on a sign"
        edited, mask = scene.other_sign
    else:
        edited, mask = _edited(scene.true, donor, kind, places, at, rng)
    rows, cols = (_aligned(box, side) for box, side in zip(box_of(mask), mask.shape[-2:], strict=True))
    part = (..., rows, cols)
    size = (rows.stop - rows.start, cols.stop - cols.start)
    small = resize(edited[part], (round(size[0] / scene.scale), round(size[1] / scene.scale))).clamp(0, 1)
    if kind == "invention":
        denoise, seed = float(rng.uniform(0.8, 0.95)), int(rng.integers(2**31))
        wrong = upscale(resize(scene.true[part], (small.shape[-2], small.shape[-1])).clamp(0, 1), size, denoise, seed)
    else:
        wrong = scene.carrier(edited[part], small, upscale)
    result = scene.honest.clone()
    result[part] = torch.lerp(result[part], wrong, mask[part])
    result = _finished(result, scene.source, visible)
    change = (result - _finished(scene.honest, scene.source, visible)).abs().mean(1, keepdim=True)
    return Case(result, scene.source, change, kind, scene.carrier.name, visible, scene.scale, scene.picture)


def _edited(
    true: Tensor, donor: Tensor, kind: str, places: int, at: tuple[float, float] | None, rng: Rng
) -> tuple[Tensor, Tensor]:
    mask, edited = torch.zeros_like(true[:, :1]), true
    for _ in range(places):
        radius = float(rng.uniform(24, 50) if kind == "warp" else rng.uniform(14, 42))
        here = blob((true.shape[-2], true.shape[-1]), at or busy_place(true, radius, rng), radius, rng)
        if kind != "invention":
            edited = EDITS[kind](edited, here, donor, rng)
        mask = torch.maximum(mask, here)
    # What is warped moves a little beyond the blob.
    return edited, (gaussian(mask, 6.0) * 4).clamp(0, 1) if kind == "warp" else mask


def _aligned(box: slice, side: int, step: int = 28, margin: int = 14) -> slice:
    """`box` with a margin, in whole steps that are whole source pixels at 2, 2.8 and 4 times."""
    start = max(0, box.start - margin) // step * step
    return slice(start, min(side, -(-(box.stop + margin) // step) * step))


def _finished(result: Tensor, source: Tensor, visible: bool) -> Tensor:
    result = result if visible else back_project(result, source, strength=1.0)
    return (result.clamp(0, 1) * 255).round() / 255


def busy_place(image: Tensor, radius: float, rng: Rng) -> tuple[float, float]:
    """A place at least half of `radius` from the border, the busiest of three: in flat sky many edits do nothing."""
    detail = gaussian((image - gaussian(image, 1.5)).square().mean(1, keepdim=True), 8.0)[0, 0]
    best, found = -1.0, (0.0, 0.0)
    for _ in range(3):
        y, x = (float(rng.uniform(radius / 2, side - radius / 2)) for side in detail.shape)
        if float(detail[int(y), int(x)]) > best:
            best, found = float(detail[int(y), int(x)]), (y, x)
    return found


def patch_change(case: Case) -> Tensor:
    """Mean absolute change of each 14-px patch, (gh, gw), in 1/255."""
    return 255 * F.avg_pool2d(case.change, PATCH_PX)[0, 0]


def tells(case: Case) -> bool:
    """Whether the edit did anything worth finding: two patches or more changed by 2/255 on average."""
    return int((patch_change(case) > 2).sum()) >= 2


def load_pictures(folder: Path) -> dict[str, Tensor]:
    """All PNG and JPEG pictures of a folder, (1, 3, H, W) uint8."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    return {p.stem: torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1)[None] for p in found}


def crop(picture: Tensor, size: tuple[int, int], rng: Rng) -> Tensor:
    """A random crop as float in [0, 1]; smaller pictures are mirrored on."""
    height, width = picture.shape[-2:]
    top, left = (int(rng.integers(max(1, a - b + 1))) for a, b in zip((height, width), size, strict=True))
    part = picture[..., top : top + size[0], left : left + size[1]].float() / 255
    down, right = size[0] - part.shape[-2], size[1] - part.shape[-1]
    return pad_symmetric(part, down, right)

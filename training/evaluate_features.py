"""Measure feature networks on the held-out photographs: `python -m training.evaluate_features [FOLDER ...]`.

Compares the embedded network, further folders in the same format, random weights and plain pixels; prints a table
in Markdown and writes `training/runs/features/pca.png`. What each row means is said in docs/training/features.md.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lib_dino.measure.features import feature_grid
from lib_dino.networks.dinov2 import Dinov2, load_dinov2

from .photographs import photographs
from .train_features import LEVELS, PATCH, WIDTHS, Picture, Teacher, View, cut, draw_view, load_pictures, matches

HERE = Path(__file__).resolve().parent

SEED = 20240229
Network = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pictures (B, 3, H, W) to a feature grid (B, D, gh, gw) and one feature a picture, (B, D)."""

Pictures = tuple[Picture, ...]
Pasted = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Pair:
    """Two views of one held-out photograph and, a patch of the first, its mate in the second or -1."""

    first: Tensor
    second: Tensor
    mate: Tensor
    grid: tuple[int, int]


def of(dino: Dinov2) -> Network:
    """A network's patch tokens and their mean."""

    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        grid = feature_grid(dino, images, grid=(images.shape[2] // PATCH, images.shape[3] // PATCH))
        return grid, grid.mean((2, 3))

    return run


def pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """The control without any network: each patch's own pixels, less the picture's mean colour."""
    centred = images - images.mean((2, 3), keepdim=True)
    grid = F.pixel_unshuffle(centred, PATCH)
    return grid, F.adaptive_avg_pool2d(images, 4).flatten(1) - 0.5


def shuffled(seed: int) -> Dinov2:
    """The embedded architecture with fresh random weights, as transformers starts it."""
    from transformers import Dinov2Config, Dinov2Model

    from .train_features import CONFIG, write_weights

    torch.manual_seed(seed)
    folder = HERE / "runs" / "features" / "random"
    write_weights(Dinov2Model(Dinov2Config(**CONFIG)).state_dict(), folder)
    return load_dinov2(folder)


def load_heldout(names: set[str] | None) -> Pictures:
    """Held-out photographs, all or by name."""
    rows = [row for row in photographs(role="heldout") if names is None or row.name in names]
    return tuple(Picture.read(row.file, 1.0) for row in rows)


def harmed(image: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """The same picture through what a source may have been through; nothing of it is another object."""
    size = tuple(image.shape[1:])
    if kind == "noise":
        return (image + torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32)) * 8 / 255).clamp(0, 1)
    if kind == "jpeg":
        held = io.BytesIO()
        Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()).save(held, "JPEG", quality=50)
        return torch.from_numpy(np.array(Image.open(held))).permute(2, 0, 1).float().div(255)
    factor = int(kind[-1])
    small = F.interpolate(image[None], (size[0] // factor, size[1] // factor), mode="bicubic", antialias=True)
    return F.interpolate(small, size, mode="bicubic")[0].clamp(0, 1)


@functools.cache
def pairs(pictures: Pictures, count: int, grid: tuple[int, int], harm: str | None) -> list[Pair]:
    """Jittered, zoomed, sometimes mirrored second views; `harm` is done to the second."""
    rng = np.random.default_rng(SEED)
    made = []
    size = (grid[0] * PATCH, grid[1] * PATCH)
    for picture in pictures:
        whole = (picture.levels[0].shape[1], picture.levels[0].shape[2])
        for _ in range(count):
            first = draw_view(rng, whole, size)
            second = draw_view(rng, whole, size, near=first)
            other = cut(picture, second, size)
            made.append(Pair(cut(picture, first, size), harmed(other, harm, rng) if harm else other,
                             matches(first, second, grid), grid))
    return made


def place_hits(network: Network, made: list[Pair]) -> float:
    """Share of patches whose nearest patch of the other view is their mate or one of its eight neighbours."""
    hits, total = 0, 0
    for pair in made:
        one, other = (F.normalize(network(image[None])[0][0].flatten(1), dim=0) for image in (pair.first, pair.second))
        nearest = (one.T @ other).argmax(1)
        known = pair.mate >= 0
        off_rows = (nearest // pair.grid[1] - pair.mate // pair.grid[1]).abs()
        off_columns = (nearest % pair.grid[1] - pair.mate % pair.grid[1]).abs()
        hits += int(((off_rows <= 1) & (off_columns <= 1) & known).sum())
        total += int(known.sum())
    return hits / total


def scale_hits(network: Network, pictures: Pictures) -> float:
    """The same between one square seen on 37 x 37 and on 18 x 18 patches; a hit is the patch or a neighbour."""
    hits, total = 0, 0
    for picture in pictures:
        height, width = picture.levels[0].shape[1:]
        side = min(height, width)
        views = [View(np.array([width / 2, height / 2]), np.eye(2) * side / (n * PATCH)) for n in (37, 18)]
        large, small = (
            network(cut(picture, view, (n * PATCH, n * PATCH))[None])[0][0]
            for view, n in zip(views, (37, 18), strict=True)
        )
        near = (F.normalize(large.flatten(1), dim=0).T @ F.normalize(small.flatten(1), dim=0)).argmax(1)
        y, x = (torch.arange(37 * 37) // 37, torch.arange(37 * 37) % 37)
        rows, columns = ((part + 0.5) * 18 / 37 - 0.5 for part in (y, x))
        hits += int((((near // 18) - rows).abs().le(1.3) & ((near % 18) - columns).abs().le(1.3)).sum())
        total += 37 * 37
    return hits / total


def photo_hits(network: Network, pictures: Pictures, crops: int = 6) -> float:
    """Share of crops of left halves whose nearest crop of all right halves is of the same photograph."""
    rng = np.random.default_rng(SEED)
    sides: list[list[Tensor]] = [[], []]
    for picture in pictures:
        height, width = picture.levels[0].shape[1:]
        for side, held in enumerate(sides):
            for _ in range(crops):
                step = min(height, width / 2) / 224 * float(rng.uniform(0.5, 0.95))
                half = 112 * step
                x = rng.uniform(half, width / 2 - half) + side * width / 2
                y = rng.uniform(half, height - half)
                held.append(cut(picture, View(np.array([x, y]), np.eye(2) * step), (224, 224)))
    left, right = (F.normalize(torch.cat([network(image[None])[1] for image in held]), dim=1) for held in sides)
    # Without what all pictures share, cosines compare what differs.
    mean = torch.cat([left, right]).mean(0)
    near = (F.normalize(left - mean, dim=1) @ F.normalize(right - mean, dim=1).T).argmax(1)
    return float((near // crops == torch.arange(len(near)) // crops).float().mean())


@functools.cache
def pasted(pictures: Pictures, harm: str, count: int = 3, side: int = 18) -> list[Pasted]:
    """A picture; the same with a piece of another photograph in it, then harmed; which patches the piece covers."""
    rng = np.random.default_rng(SEED)
    size = (side * PATCH, side * PATCH)
    made = []
    for index, picture in enumerate(pictures):
        other = pictures[(index + 1) % len(pictures)]
        for _ in range(count):
            views = [draw_view(rng, (p.levels[0].shape[1], p.levels[0].shape[2]), size) for p in (picture, other)]
            image, stranger = cut(picture, views[0], size), cut(other, views[1], size)
            top, left = rng.integers(2, side - 6, 2)
            rows, columns = (slice(int(at) * PATCH, (int(at) + 4) * PATCH) for at in (top, left))
            changed = image.clone()
            changed[:, rows, columns] = stranger[:, rows, columns]
            changed = harmed(changed, harm, rng)
            mask = torch.zeros(side, side, dtype=torch.bool)
            mask[int(top) : int(top) + 4, int(left) : int(left) + 4] = True
            made.append((image, changed, mask))
    return made


def paste_scores(network: Network, made: list[Pasted]) -> tuple[float, float]:
    """How well drift tells a pasted piece of another photograph from harm done to the same one.

    Returns the area under the curve over patches (0.5 is chance) and the ratio of median drifts, pasted to harmed.
    """
    inside, outside = [], []
    for image, changed, mask in made:
        grids = [network(one[None])[0] for one in (image, changed)]
        mean = grids[0].mean((2, 3), keepdim=True)
        drift = 1 - F.cosine_similarity(grids[0] - mean, grids[1] - mean, dim=1)[0]
        near = F.max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0
        inside.append(drift[mask])
        outside.append(drift[~near])
    strange, same = torch.cat(inside), torch.cat(outside)
    order = torch.cat([strange, same]).argsort().argsort().double() + 1
    area = (order[: len(strange)].sum() - len(strange) * (len(strange) + 1) / 2) / (len(strange) * len(same))
    return float(area), float(strange.median() / same.median().clamp(min=1e-6))


def teacher_cosines(network: Network, teacher: Teacher, training: Pictures, held: Pictures) -> list[float]:
    """Cosine, a level, of the teacher's features and a linear reading of ours; fitted on training pictures."""
    grid = (16, 16)
    outer = ((grid[0] + 2) * PATCH, (grid[1] + 2) * PATCH)

    def gather(pictures: Pictures, count: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(SEED)
        ours, theirs = [], []
        for picture in pictures:
            for _ in range(count):
                view = draw_view(rng, (picture.levels[0].shape[1], picture.levels[0].shape[2]), outer)
                image = cut(picture, view, outer)[None]
                theirs.append(teacher(image, grid)[0][0])
                inner = image[:, :, PATCH:-PATCH, PATCH:-PATCH]
                ours.append(network(inner)[0][0].flatten(1).T)
        return torch.cat(ours), torch.cat(theirs)

    x, y = gather(training, 2)
    shift, scale = x.mean(0), x.std(0) + 1e-6
    x = torch.cat([(x - shift) / scale, torch.ones(len(x), 1)], 1).double()
    ridge = torch.eye(x.shape[1], dtype=torch.float64) * len(x) * 1e-3
    reading = torch.linalg.solve(x.T @ x + ridge, x.T @ y.double())
    x, y = gather(held, 3)
    read = torch.cat([(x - shift) / scale, torch.ones(len(x), 1)], 1) @ reading.float()
    return [
        float(F.cosine_similarity(a, b, dim=1).mean())
        for a, b in zip(read.split(WIDTHS, 1), y.split(WIDTHS, 1), strict=True)
    ]


def mean_cosine(network: Network, pictures: Pictures) -> float:
    """Mean cosine of patches drawn from all photographs: 1 would be a network that sees nothing."""
    found = []
    for pair in pairs(pictures, 4, (16, 16), None):
        found.append(network(pair.first[None])[0][0].flatten(1).T[::7])
    unit = F.normalize(torch.cat(found), dim=1)
    return float((unit @ unit.T).mean())


def measure(
    network: Network, held: Pictures, training: Pictures, teacher: Teacher | None
) -> dict[str, float]:
    """All rows of the table for one network."""
    result = {"mean cosine of any two patches": mean_cosine(network, held)}
    for name, harm in [("clean", None), ("noise 8/255", "noise"), ("JPEG 50", "jpeg"), ("down 3x and up", "down3")]:
        result[f"same place, {name}"] = place_hits(network, pairs(held, 4, (16, 16), harm))
    result["same place, 24 x 34 patches"] = place_hits(network, pairs(held, 2, (24, 34), None))
    result["same place, 37 x 37 to 18 x 18"] = scale_hits(network, held)
    result["same photograph, other half"] = photo_hits(network, held)
    for name, harm in [("JPEG 50", "jpeg"), ("noise 8/255", "noise"), ("down 2x and up", "down2"),
                       ("down 4x and up", "down4")]:
        area, ratio = paste_scores(network, pasted(held, harm))
        result[f"pasted against {name}, AUC"] = area
        result[f"pasted against {name}, drift ratio"] = ratio
    if teacher is not None:
        for level, value in zip(LEVELS, teacher_cosines(network, teacher, training, held), strict=True):
            result[f"teacher cosine, block {level}"] = value
    return result


def draw_pca(networks: dict[str, Network], held: Pictures, file: Path) -> None:
    """One row a photograph: the picture, then each network's first three components of all photographs as colours."""
    size = (28 * PATCH, 37 * PATCH)
    images = []
    for picture in held:
        height, width = picture.levels[0].shape[1:]
        step = min(height / size[0], width / size[1])
        images.append(cut(picture, View(np.array([width / 2, height / 2]), np.eye(2) * step), size))
    columns = [torch.stack(images)]
    for network in networks.values():
        grids = torch.cat([network(image[None])[0] for image in images])
        tokens = grids.permute(0, 2, 3, 1).flatten(0, 2)
        tokens = tokens - tokens.mean(0)
        _, _, axes = torch.pca_lowrank(tokens, 3, center=False, niter=6)
        colours = (tokens @ axes).unflatten(0, (len(grids), *grids.shape[2:])).permute(0, 3, 1, 2)
        low, high = (colours.flatten(2).transpose(0, 1).flatten(1).quantile(q, 1) for q in (0.02, 0.98))
        colours = (colours - low.view(3, 1, 1)) / (high - low).view(3, 1, 1)
        columns.append(F.interpolate(colours.clamp(0, 1), size, mode="nearest"))
    rows = [torch.cat([column[index] for column in columns], 2) for index in range(len(images))]
    sheet = F.interpolate(torch.cat(rows, 1)[None], scale_factor=0.5, mode="area")[0]
    Image.fromarray(sheet.mul(255).round().byte().permute(1, 2, 0).numpy()).save(file)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="more networks to compare with")
    parser.add_argument("--photographs", nargs="+", help="names of held-out photographs; all by default")
    parser.add_argument("--no-teacher", action="store_true", help="leave out what needs the teacher's package")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    held = load_heldout(set(chosen.photographs) if chosen.photographs else None)
    training, teacher = (), None
    if not chosen.no_teacher:
        training, teacher = tuple(load_pictures()), Teacher()
        teacher.calibrate(list(training), 0)
    networks: dict[str, Network] = {"embedded": of(load_dinov2())}
    networks |= {folder.name: of(load_dinov2(folder)) for folder in chosen.folders}
    networks |= {f"random {seed}": of(shuffled(seed)) for seed in range(1)}
    networks["pixels"] = pixels
    table = {name: measure(network, held, training, teacher) for name, network in networks.items()}
    print(f"\n{len(held)} photographs\n\n| | " + " | ".join(table) + " |\n|---|" + "---|" * len(table))
    for row in table["embedded"]:
        print(f"| {row} | " + " | ".join(f"{column[row]:.3f}" for column in table.values()) + " |")
    out = HERE / "runs" / "features"
    (out / "measured.json").write_text(json.dumps(table, indent=1))
    shown = [name for name in networks if name not in ("pixels",)]
    draw_pca({name: networks[name] for name in shown}, held, out / "pca.png")


if __name__ == "__main__":
    main()

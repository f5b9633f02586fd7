"""Measure the embedded denoiser on the held-out photographs: halved, then enlarged 2x again.

    python -m training.evaluate_denoiser --judges FOLDER [--pictures OUT] [--denoise 0.2 0.5]

Writes a Markdown table. `FOLDER` holds the two judging networks, see `training/judges.py`; scipy and scikit-image are
needed too.

Columns: PSNR and SSIM against the original; `HF`, energy of luma minus its 1.5-px Gaussian blur relative to the
original's; `gain`, how far HF has come from Lanczos (0) to the original (1); `NS` and `T2`, distance to the original
in the features of Yahoo's open_nsfw ResNet and of EfficientNet-lite2 (mean over layers of the mean of 1 - cosine,
place by place); `grain`, RMS of the same high frequencies in the original's flattest tenth, in 1/255.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_dino.networks.denoiser import Denoiser, load_denoiser
from lib_dino.sampling.consistency import back_project
from lib_dino.sampling.pixel_model import NOISE_SCALE
from lib_dino.sampling.sampler import sample, schedule
from lib_dino.tiling.resample import resize

from .judges import Judge, feature_distance, load_judges
from .photographs import photographs

COLUMNS = ("PSNR", "SSIM", "HF", "gain", "NS", "T2", "grain")


# ---------------------------------------------------------------- figures


def high(image: np.ndarray) -> np.ndarray:
    """Luma minus its 1.5-px Gaussian blur; `image` is (H, W, 3) in [0, 1]."""
    from scipy.ndimage import gaussian_filter

    luma = image @ np.array([0.299, 0.587, 0.114])
    return luma - gaussian_filter(luma, 1.5)


def figures(result: Tensor, original: Tensor, lanczos: Tensor, judges: dict[str, Judge]) -> dict[str, float]:
    """The table's columns for one picture, all three (1, 3, H, W) in [0, 1]."""
    from scipy.ndimage import uniform_filter
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b, c = (x[0].permute(1, 2, 0).double().numpy() for x in (result, original, lanczos))
    energy, target, start = (float((high(x) ** 2).mean()) for x in (a, b, c))
    activity = uniform_filter(high(b) ** 2, 15)
    flat = activity <= np.quantile(activity, 0.1)
    return {
        "PSNR": float(peak_signal_noise_ratio(b, a, data_range=1.0)),
        "SSIM": float(structural_similarity(b, a, channel_axis=2, data_range=1.0)),
        "HF": energy / target,
        "gain": (energy - start) / (target - start),
        **{name: feature_distance(judge, result, original) for name, judge in judges.items()},
        "grain": 255 * float(np.sqrt((high(a)[flat] ** 2).mean())),
    }


# ---------------------------------------------------------------- runs


def tensor(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(array).save(path)


def img2img(denoiser: Denoiser, soft: Tensor, denoise: float, *, source: Tensor | None = None, seed: int = 0) -> Tensor:
    """One untiled run at 20 full steps; with `source`, back-projected at every call and at the end."""
    sigmas = [ratio * NOISE_SCALE for ratio in schedule(denoise, 20)]
    noise = torch.randn(soft.shape, generator=torch.Generator().manual_seed(seed))

    def correct(clean: Tensor, ratio: float) -> Tensor:
        if source is None:
            return clean
        size = tuple(clean.shape[-2:])
        missing = 2 * source - 1 - resize(clean, tuple(source.shape[-2:]))
        return clean + resize(missing, size)

    out = sample(2 * soft - 1 + sigmas[0] * noise, sigmas, denoiser, correct)
    out = ((out + 1) / 2).clamp(0, 1)
    return out if source is None else back_project(out, source, strength=1.0)


def heldout_crops(side_px: int) -> dict[str, Image.Image]:
    """The middle of every held-out photograph, sides even."""
    crops = {}
    for row in photographs("heldout"):
        picture = Image.open(row.file)
        width, height = (min(side, side_px) // 2 * 2 for side in picture.size)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        crops[row.name] = picture.crop((left, top, left + width, top + height))
    return crops


def tile_agreement(denoiser: Denoiser, denoise: float) -> float:
    """RMS difference, in 1/255, of a 512-px tile run alone and within a 768-px tile, 64 px from borders inwards."""
    row = next(r for r in photographs("heldout") if r.name.startswith("life"))
    picture = tensor(Image.open(row.file).crop((0, 0, 768, 768)))
    soft = resize(resize(picture, (384, 384)), (768, 768)).clamp(0, 1)
    sigmas = [ratio * NOISE_SCALE for ratio in schedule(denoise, 20)]
    noise = torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))
    start = 2 * soft - 1 + sigmas[0] * noise
    whole = sample(start, sigmas, denoiser, lambda x, _: x)[..., 128:640, 128:640]
    alone = sample(start[..., 128:640, 128:640], sigmas, denoiser, lambda x, _: x)
    inner = (whole - alone)[..., 64:-64, 64:-64]
    return 127.5 * float(inner.square().mean().sqrt())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judges", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="folder of another denoiser than the embedded one")
    parser.add_argument("--pictures", type=Path, help="write every result here")
    parser.add_argument("--denoise", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--side", type=int, default=512, help="longest side of the crops, pixels (default %(default)s)")
    parser.add_argument("--each", action="store_true", help="one line per picture too")
    args = parser.parse_args()
    judges = load_judges(args.judges)
    denoiser = load_denoiser(args.weights)

    table: dict[str, list[dict[str, float]]] = {}
    seconds = 0.0
    for name, crop in heldout_crops(args.side).items():
        small = crop.resize((crop.width // 2, crop.height // 2), Image.Resampling.BICUBIC)
        original, source = tensor(crop), tensor(small)
        lanczos = tensor(small.resize(crop.size, Image.Resampling.LANCZOS))
        soft = resize(source, tuple(original.shape[-2:])).clamp(0, 1)
        results = {"original": original, "Lanczos": lanczos}
        results["Lanczos + back-projection"] = back_project(lanczos, source, strength=1.0)
        for denoise in args.denoise:
            started = time.perf_counter()
            results[f"denoise {denoise}"] = img2img(denoiser, soft, denoise)
            seconds += time.perf_counter() - started
            results[f"denoise {denoise} + back-projection"] = img2img(denoiser, soft, denoise, source=source)
        for label, result in results.items():
            row = figures(result, original, lanczos, judges)
            table.setdefault(label, []).append(row)
            if args.each:
                print(f"{name[:20]:20} {label:30}", *(f"{key} {row[key]:.4g}" for key in COLUMNS), flush=True)
            if args.pictures:
                save(result, args.pictures / f"{name} {label}.png")

    print("| result |", " | ".join(COLUMNS), "|\n|---|" + "---|" * len(COLUMNS))
    for label, rows in table.items():
        means = [float(np.mean([row[key] for row in rows])) for key in COLUMNS]
        print(f"| {label} | " + " | ".join(f"{mean:.4g}" for mean in means) + " |")
    print(f"\n{len(table['Lanczos'])} photographs; denoiser time without back-projection {seconds:.0f} s.")
    for denoise in args.denoise:
        rms = tile_agreement(denoiser, denoise)
        print(f"A 512-px tile alone and within 768 px at denoise {denoise}: RMS {rms:.3f}/255")


if __name__ == "__main__":
    main()

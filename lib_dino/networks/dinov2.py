"""DINOv2 from one weights file, on blocks from `transformers` or from `timm`.

The transformer blocks are a library's; patch embedding, positions, registers and the final norm are applied here,
so both libraries get the very same tokens. They would place position embeddings differently away from the native size
(docs/constants.md): here they are resized bicubically to the exact patch grid, with antialiasing, as the original does
for its models with registers, and for models without them too.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from .dinov2_weights import PATCH_PX, Weights, locate, parts, read

NORM_EPS: Final = 1e-6
Backend = Literal["auto", "transformers", "timm"]


class Dinov2(nn.Module):
    """A frozen DINOv2: pictures to patch tokens, in the dtype of its weights, float32 once loaded.

    Takes ImageNet-normalised pictures (B, 3, H, W) with sides that are multiples of `patch_px`. Results are
    differentiable with respect to the picture; the weights want no gradient. Build, move and cast it only outside
    of `torch.inference_mode`, or gradients are lost.

    Attributes:
        patch_px: side of a patch, pixels.
        dim: width of a token.
        depth: number of blocks.
        registers: number of register tokens, 0 or 4 in the published models.
        name: what was loaded, for reports.
        backend: the library the blocks come from.
        path: the file the weights were read from; None for a network made in memory.
    """

    path: Path | None = None
    patch_px = PATCH_PX

    def __init__(self, weights: Weights, blocks: nn.ModuleList, *, name: str, backend: str) -> None:
        super().__init__()
        tensors = weights.tensors
        self.name, self.backend = name, backend
        self.dim, self.depth = weights.dim, weights.depth
        self.registers = tensors["registers"].shape[1] if "registers" in tensors else 0
        self.patch = nn.Conv2d(3, self.dim, PATCH_PX, PATCH_PX)
        self.patch.load_state_dict({key: tensors[f"patch.{key}"] for key in ("weight", "bias")})
        self.blocks = blocks
        self.norm = nn.LayerNorm(self.dim, eps=NORM_EPS)
        self.norm.load_state_dict({key: tensors[f"norm.{key}"] for key in ("weight", "bias")})
        self.first = nn.Parameter(torch.cat([tensors["cls"], *([tensors["registers"]] if self.registers else [])], 1))
        self.positions = nn.Parameter(tensors["positions"])
        self.eval().requires_grad_(False)

    def patch_tokens(self, image: Tensor) -> Tensor:
        """Final normed patch tokens as a grid, (B, dim, H / 14, W / 14), rows as in the picture."""
        return self.layer_tokens(image, [self.depth])[0]

    def layer_tokens(self, image: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Patch grids after so many blocks, 1 to `depth`, each through the final norm."""
        if not all(1 <= layer <= self.depth for layer in layers):
            raise ValueError(f"layers counts blocks from 1 to {self.depth}; got {list(layers)}.")
        tokens = self._run(image, set(layers))
        return [self._grid(self._normed(tokens[n]), image) for n in layers]

    def tokens_and_norms(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """`patch_tokens`, and how long each token is before the final norm, (B, H / 14, W / 14)."""
        last = self._run(image, {self.depth})[self.depth]
        return self._grid(self._normed(last), image), self._grid(last, image).norm(dim=1)

    def _grid(self, tokens: Tensor, image: Tensor) -> Tensor:
        # The class token comes first, then the registers, then the patches, row by row.
        patches = tokens[:, 1 + self.registers :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], image.shape[-2] // PATCH_PX, image.shape[-1] // PATCH_PX)

    def _normed(self, tokens: Tensor) -> Tensor:
        with _exact(tokens):
            normed: Tensor = self.norm(tokens)
        return normed

    def _run(self, image: Tensor, layers: set[int]) -> dict[int, Tensor]:
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % PATCH_PX or image.shape[3] % PATCH_PX:
            raise ValueError(
                f"Dinov2 takes (B, 3, H, W) with sides that are multiples of {PATCH_PX}; got {tuple(image.shape)}."
            )
        with _exact(image):
            patches = self.patch(image.to(self.patch.weight.dtype))
            tokens = (patches + position_grid(self.positions, patches.shape[2:])).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], 1)
            outputs = {}
            for number, block in enumerate(list(self.blocks)[: max(layers, default=0)], start=1):
                tokens = block(tokens)
                tokens = tokens[0] if isinstance(tokens, tuple) else tokens  # older transformers
                if number in layers:
                    outputs[number] = tokens
            return outputs


def _exact(like: Tensor) -> AbstractContextManager[Any]:
    """No autocast where `like` lies."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda", "xpu") else contextlib.nullcontext()


def fingerprint(dino: Dinov2) -> str:
    """Sixteen hex digits that tell feature networks apart, the same for float32 and float16 copies of one."""
    digest = hashlib.sha256(f"{dino.dim} {dino.depth} {dino.registers}".encode())
    for tensor in (dino.patch.weight, dino.norm.weight, dino.positions):
        digest.update(tensor.detach().cpu().half().numpy().tobytes())
    return digest.hexdigest()[:16]


def position_grid(positions: Tensor, grid: Sequence[int]) -> Tensor:
    """A square table of patch positions, (1, n * n, D), resized to `grid` rows and columns: (1, D, gh, gw)."""
    side = round(positions.shape[1] ** 0.5)
    square = positions.transpose(1, 2).reshape(1, -1, side, side)
    if (side, side) == tuple(grid):
        return square
    # On the CPU, so that all devices agree: not every one has this filter.
    small: Tensor = F.interpolate(square.cpu(), size=tuple(grid), mode="bicubic", antialias=True, align_corners=False)
    return small.to(positions.device)


def load_dinov2(
    source: str | Path | None = None, *, device: str | torch.device = "cpu", backend: Backend = "auto"
) -> Dinov2:
    """A frozen float32 DINOv2 network on `device`.

    Args:
        source: a folder with `model.safetensors` and, if its heads are not 64 wide, `config.json`; a single
            `.safetensors` file, named as by transformers, timm or the original release; the id of a repository on
            Hugging Face, fetched through `huggingface_hub`; None for the network that ships here.
        backend: library of the blocks; "auto" takes `transformers` where it knows DINOv2 (4.32), else `timm`.

    Raises:
        ModelError: nothing is there, it is damaged or no DINOv2, or no library can run it.
    """
    # What is built or moved in inference mode can never carry gradients.
    with torch.inference_mode(False):
        path, name = locate(source)
        weights = read(path)
        blocks, used = _blocks(weights, backend)
        network = Dinov2(weights, blocks, name=name, backend=used).to(device)
        network.path = path
        return network


def _blocks(weights: Weights, backend: Backend) -> tuple[nn.ModuleList, str]:
    reasons = []
    for library in ("transformers", "timm") if backend == "auto" else (backend,):
        try:
            blocks = _from_transformers(weights) if library == "transformers" else _from_timm(weights)
        # AttributeError: transformers before 4.32; RuntimeError: its lazy import failed.
        except (AttributeError, ImportError, RuntimeError) as error:
            reasons.append(f"{library}: {error}")
            continue
        state = {}
        for key in blocks.state_dict():
            state[key] = torch.cat([weights.tensors[part] for part in parts(f"blocks.{key}", weights.gated)])
        blocks.load_state_dict(state)
        return blocks, library
    raise ModelError(f"DINOv2 needs transformers 4.32 or timm 0.9, or newer; {'; '.join(reasons)}. Install one.")


def _from_transformers(weights: Weights) -> nn.ModuleList:
    library: Any = importlib.import_module("transformers")
    ratio = 4.0 if weights.gated else weights.mlp_width / weights.dim  # a gated one takes two thirds by itself
    config = library.Dinov2Config(
        hidden_size=weights.dim,
        num_hidden_layers=weights.depth,
        num_attention_heads=weights.heads,
        mlp_ratio=int(ratio) if ratio == int(ratio) else ratio,
        use_swiglu_ffn=weights.gated,
        layer_norm_eps=NORM_EPS,
        image_size=PATCH_PX,
        patch_size=PATCH_PX,
    )
    blocks: nn.ModuleList = library.Dinov2Model(config).encoder.layer
    return blocks


def _from_timm(weights: Weights) -> nn.ModuleList:
    library: Any = importlib.import_module("timm.models.vision_transformer")
    layers: Any = importlib.import_module("timm.layers")
    gate = {"mlp_layer": layers.SwiGLUPacked, "act_layer": nn.SiLU} if weights.gated else {}
    width = weights.mlp_width * (2 if weights.gated else 1)
    network = library.VisionTransformer(
        img_size=PATCH_PX,
        patch_size=PATCH_PX,
        num_classes=0,
        embed_dim=weights.dim,
        depth=weights.depth,
        num_heads=weights.heads,
        mlp_ratio=(width + 0.5) / weights.dim,  # is rounded down
        init_values=1.0,
        **gate,
    )
    return nn.ModuleList(network.blocks)

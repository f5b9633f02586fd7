"""DINOv2 weights files: finding one, reading it, and one set of names for its tensors.

A network comes in the naming of transformers, of timm or of the original release; each packs some tensors
differently. All are read into one form, and `parts` also says where each belongs in a library's own modules.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import ModelError
from .weights_file import read_tensors

PATCH_PX: Final = 14
EMBEDDED: Final = Path(__file__).parent.parent / "embedded" / "dinov2"
HEAD_WIDTH: Final = 64  # of every published size

# Spellings of one tensor, by prefix: transformers' files and its older modules, its newer modules, then the original
# release and timm. Where a spelling packs several tensors into one, they are in order.
_SPELLING: Final = (
    (r"(?:dinov2(?:_with_registers)?\.)?encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^dinov2(?:_with_registers)?\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.|^patch_embed\.proj\.", "patch."),
    (r"^(?:embeddings\.)?cls_token$", "cls"),
    (r"^(?:embeddings\.position_embeddings|pos_embed)$", "positions"),
    (r"^(?:embeddings\.)?(?:register_tokens|reg_token)$", "registers"),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.(?:weights_in|w12)\.", ".mlp.gate+up."),
    (r"\.mlp\.(gate|up)_proj\.", r".mlp.\1."),
    (r"\.mlp\.(?:weights_out|w3|down_proj)\.", ".mlp.fc2."),
    (r"\.attn\.qkv\.", ".attn.query+key+value."),
)


@dataclass(frozen=True)
class Weights:
    """A file's tensors under one set of names: packed tensors taken apart, the class position added to `cls`."""

    tensors: dict[str, Tensor]
    heads: int

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.tensors["cls"].shape[-1]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max(int(name.split(".")[1]) for name in self.tensors if name.startswith("blocks."))

    @property
    def gated(self) -> bool:
        """True when the MLPs are SwiGLU."""
        return "blocks.0.mlp.gate.weight" in self.tensors

    @property
    def mlp_width(self) -> int:
        """Width inside an MLP, after the gate."""
        return self.tensors["blocks.0.mlp.fc2.weight"].shape[1]


def check_source(source: str | Path | None) -> None:
    """Find out, without loading or fetching anything, whether `source` may stand for a DINOv2 network.

    Raises:
        ModelError: there is no such file or folder, and it is no Hugging Face id.
    """
    if not _is_repository(source):
        locate(source)


def _is_repository(source: str | Path | None) -> bool:
    if not isinstance(source, str) or Path(source).expanduser().exists() or source.endswith(".safetensors"):
        return False
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def locate(source: str | Path | None) -> tuple[Path, str]:
    """The weights file that `load_dinov2` means by `source`, and what to call it."""
    path = Path(EMBEDDED if source is None else source).expanduser()
    name = "embedded DINOv2 stand-in" if source is None else path.stem if path.suffix == ".safetensors" else path.name
    if path.is_dir():
        path = path / "model.safetensors"
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(f"DINOv2 weights are read from .safetensors files alone; got {path.name}. Convert it.")
        return path, name
    if isinstance(source, str) and _is_repository(source):
        return _fetch(source), source
    raise ModelError(
        f"No DINOv2 network at {path}. Give a folder with config.json and model.safetensors, a .safetensors file, "
        "or a Hugging Face id such as facebook/dinov2-small."
    )


def _fetch(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download

        hf_hub_download(repository, "config.json")
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # the hub client's errors share no base
        name = repository.split("/")[1]
        raise ModelError(
            f"{repository} could not be fetched ({type(error).__name__}). Download config.json and model.safetensors "
            f"from https://huggingface.co/{repository}/tree/main into a folder of their own, for example "
            f"models/dinov2/{name}, and give that folder instead."
        ) from error


def read(path: Path) -> Weights:
    """A whole DINOv2 from a file, in float32.

    Heads are counted by the file's metadata or the `config.json` beside it, else they are 64 wide.

    Raises:
        ModelError: the file is damaged or holds something else.
    """
    from safetensors import SafetensorError

    try:
        config, raw = read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or cut short ({error}). Download it again.") from error
    try:
        tensors = _unpacked(raw)
    except ModelError as error:
        raise ModelError(f"{path}: {error}. Download the file again.") from None
    _check(tensors, path, len(raw))
    return Weights(tensors, _heads(config, path, tensors["cls"].shape[-1]))


def _heads(config: dict[str, Any], path: Path, dim: int) -> int:
    beside = path.with_name("config.json")
    try:
        if path.name == "model.safetensors" and beside.is_file():
            config |= json.loads(beside.read_text(encoding="utf-8"))
        heads = int(config.get("num_attention_heads") or max(1, dim // HEAD_WIDTH))
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{beside} is damaged ({error}). Download it again.") from error
    if heads < 1 or dim % heads:
        raise ModelError(f"Attention heads must divide the width: {path} has {heads} heads for a width of {dim}.")
    return heads


def parts(name: str, gated: bool) -> list[str]:
    """The tensors, by our names, that lie one after the other in the tensor called `name`."""
    for pattern, ours in _SPELLING:
        name = re.sub(pattern, ours, name)
    if gated:  # timm packs both halves into fc1
        name = name.replace(".mlp.fc1.", ".mlp.gate+up.")
    packed = re.fullmatch(r"(.*\.)(\w+(?:\+\w+)+)(\..*)", name)
    return [packed[1] + part + packed[3] for part in packed[2].split("+")] if packed else [name]


def _gated(shapes: dict[str, torch.Size]) -> bool:
    """True when the network's MLP is SwiGLU: two projections in for the width of one out."""
    shapes_of = {parts(name, False)[0]: shape for name, shape in shapes.items() if "mlp" in name and "weight" in name}
    first, last = shapes_of.get("blocks.0.mlp.fc1.weight"), shapes_of.get("blocks.0.mlp.fc2.weight")
    # Whatever has other numbers of sides is found out by `_check`.
    return first is None or last is None or len(first) < 1 or len(last) < 2 or first[0] == 2 * last[1]


def _unpacked(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    gated = _gated({name: tensor.shape for name, tensor in raw.items()})
    tensors: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        ours = parts(name, gated)
        if not tensor.ndim or tensor.shape[0] % len(ours):
            shape = tuple(tensor.shape)
            raise ModelError(f"`{name[:80]}` must hold {len(ours)} parts of one size; its shape is {shape}")
        tensors |= zip(ours, tensor.chunk(len(ours)), strict=True)
    positions, cls = tensors.get("positions"), tensors.get("cls")
    if positions is None or cls is None or positions.ndim != 3 or positions.shape[::2] != cls.shape[::2]:
        return tensors  # `_check` says what is wrong
    if positions.shape[1] != round(positions.shape[1] ** 0.5) ** 2:
        tensors["cls"] = cls + positions[:, :1]  # timm's files with registers have done this already
        tensors["positions"] = positions[:, 1:]
    return tensors


def _check(tensors: dict[str, Tensor], path: Path, count: int) -> None:
    blocks = {name: re.fullmatch(r"blocks\.(\d{1,4})\..+", name) for name in tensors if name.startswith("blocks.")}
    numbers = [int(match[1]) for match in blocks.values() if match]
    # A network of that many blocks has more tensors than that.
    depth = min(1 + max(numbers, default=0), count)
    expected = _shapes(tensors, depth)
    missing = [name for name in expected if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ModelError(
            f"{path} does not hold a whole DINOv2 network: no `{missing[0]}`{more} among its {count} tensors. "
            "Download model.safetensors of facebook/dinov2-small or a larger one."
        )
    for name in blocks:
        if name not in expected:
            raise ModelError(f"{path} holds `{name[:80]}`, which no DINOv2 of {depth} blocks has. Take another file.")
    side = tensors["patch.weight"].shape[-1] if tensors["patch.weight"].ndim else 0
    if side != PATCH_PX:
        raise ModelError(f"DINOv2 has patches of {PATCH_PX} px; the network in {path} has {side} px. Take another.")
    for name, shape in expected.items():
        found = tuple(tensors[name].shape)
        if len(found) != len(shape) or any(a not in (None, b) for a, b in zip(shape, found, strict=True)):
            wanted = " x ".join("any" if side is None else str(side) for side in shape)
            raise ModelError(
                f"{path}: `{name}` must be {wanted}, as its other tensors are; it is {' x '.join(map(str, found))}. "
                "Download the file again."
            )
    places = tensors["positions"].shape[1]
    if not places or places != round(places**0.5) ** 2:
        raise ModelError(f"{path}: `positions` must cover a square; it holds {places} places. Download the file again.")


def _shapes(tensors: dict[str, Tensor], depth: int) -> dict[str, tuple[int | None, ...]]:
    """What a whole network of `depth` blocks holds, by name; None is any length."""
    cls, last = tensors.get("cls"), tensors.get("blocks.0.mlp.fc2.weight")
    dim = cls.shape[-1] if cls is not None and cls.ndim else 0
    width = last.shape[1] if last is not None and last.ndim == 2 else 0
    square = {f"attn.{part}": (dim, dim) for part in ("query", "key", "value", "proj")}
    first = ("gate", "up") if "blocks.0.mlp.gate.weight" in tensors else ("fc1",)
    linear = {**square, **{f"mlp.{part}": (width, dim) for part in first}, "mlp.fc2": (dim, width)}
    block: dict[str, tuple[int | None, ...]] = {
        **{f"{name}.weight": shape for name, shape in linear.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linear.items()},
        **{f"{name}.{kind}": (dim,) for name in ("norm1", "norm2") for kind in ("weight", "bias")},
        "ls1.gamma": (dim,), "ls2.gamma": (dim,),
    }  # fmt: skip
    return {
        "cls": (1, 1, dim), "positions": (1, None, dim), "patch.weight": (dim, 3, PATCH_PX, PATCH_PX),
        "patch.bias": (dim,), "norm.weight": (dim,), "norm.bias": (dim,),
        **({"registers": (1, None, dim)} if "registers" in tensors else {}),
        **{f"blocks.{n}.{name}": shape for n in range(depth) for name, shape in block.items()},
    }  # fmt: skip

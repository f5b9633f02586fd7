"""Broken weights files: whatever is wrong with one, one clear sentence says so, at once, and no memory is taken."""

import json
import resource
import shutil
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_dino.errors import ModelError
from lib_dino.networks.cleaner import EMBEDDED as CLEANER
from lib_dino.networks.cleaner import load_cleaner
from lib_dino.networks.denoiser import EMBEDDED as DENOISER
from lib_dino.networks.denoiser import FILES, load_denoiser
from lib_dino.networks.dinov2 import load_dinov2
from lib_dino.networks.dinov2_weights import EMBEDDED as DINO
from lib_dino.networks.edit_detector import load_detector
from lib_dino.networks.texture_net import EMBEDDED as TEXTURE
from lib_dino.networks.texture_net import load_texture
from lib_dino.networks.weights_file import check_sizes

DETECTOR = DINO / "detail_head.safetensors"
NETS = {
    "cleaner": (CLEANER, load_cleaner),
    "texture": (TEXTURE, load_texture),
    "detail_head": (DETECTOR, lambda path: load_detector(path, load_dinov2())),
}


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def first_of(tensors, sides=2):
    return next(name for name, tensor in tensors.items() if tensor.ndim >= sides)


def with_value(tensors, value):
    name = first_of(tensors)
    changed = tensors[name].clone()
    changed.view(-1)[3] = value
    return {**tensors, name: changed}


TENSOR_FAULTS = {
    "nan": lambda t: with_value(t, float("nan")),
    "infinite": lambda t: with_value(t, float("inf")),
    "one missing": lambda t: {k: v for k, v in t.items() if k != first_of(t)},
    "all missing": lambda t: {"x": torch.zeros(1)},
    "cut": lambda t: {**t, first_of(t): t[first_of(t)][:-1].clone()},
    "one side more": lambda t: {**t, first_of(t): t[first_of(t)][None].clone()},
    "a number": lambda t: {**t, first_of(t): torch.tensor(1.0)},
    "empty": lambda t: {**t, first_of(t): torch.zeros(0, 3)},
    "all numbers": lambda t: {k: torch.tensor(1.0) for k in t},
    "all flat": lambda t: {k: v.flatten().clone() for k, v in t.items()},
}
FILE_FAULTS = {
    "nothing": lambda b: b"",
    "noise": lambda b: bytes(range(256)) * 40,
    "cut short": lambda b: b[: len(b) // 2],
    "header cut": lambda b: b[:100],
    "header too long": lambda b: (2**62).to_bytes(8, "little") + b[8:],
    "header deep": lambda b: (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "header no object": lambda b: (2).to_bytes(8, "little") + b"[]",
    "pickle": lambda b: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}
SHAPES = ["x", "[]", "null", "1e400", '{"version": 2}', '{"version": 1, "width": 1e400}', "[" * 100_000, "9" * 5000]


def refused(load, path):
    """The sentence a broken file gives; the clock and the memory are watched."""
    started, held = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        load(path)
    assert time.perf_counter() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 500_000
    text = str(caught.value)
    assert path.name in text or path.parent.name in text
    assert len(text) < 2000
    return text


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
@pytest.mark.parametrize("kind", NETS)
def test_tensors_of_a_small_network_that_are_not_right(kind, fault, tmp_path):
    origin, load = NETS[kind]
    path = tmp_path / "net.safetensors"
    save_file(TENSOR_FAULTS[fault](load_file(origin)), path, metadata(origin))
    text = refused(load, path)
    assert ("NaN" in text) == (fault in ("nan", "infinite"))


@pytest.mark.parametrize("fault", FILE_FAULTS)
@pytest.mark.parametrize("kind", NETS)
def test_a_file_of_a_small_network_that_is_damaged(kind, fault, tmp_path):
    origin, load = NETS[kind]
    path = tmp_path / "net.safetensors"
    path.write_bytes(FILE_FAULTS[fault](origin.read_bytes()))
    refused(load, path)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda text: text[:30])
@pytest.mark.parametrize("kind", NETS)
def test_a_small_network_that_is_described_wrongly(kind, shape, tmp_path):
    origin, load = NETS[kind]
    path = tmp_path / "net.safetensors"
    save_file(load_file(origin), path, {kind: shape})
    refused(load, path)


@pytest.mark.parametrize("value", [10**9, -1, 10**4000, 0, 2.5, None, "64", [10**9], [1] * 100_000])
@pytest.mark.parametrize("kind", NETS)
def test_a_small_network_of_an_absurd_size(kind, value, tmp_path):
    origin, load = NETS[kind]
    described = json.loads(metadata(origin)[kind])
    for name in described.keys() - {"version", "tokens"}:
        path = tmp_path / "net.safetensors"
        save_file(load_file(origin), path, {kind: json.dumps({**described, name: value})})
        refused(load, path)


DINO_FAULTS = {
    **TENSOR_FAULTS,
    "a block too far": lambda t: {**t, "encoder.layer.999999999.norm1.weight": torch.zeros(4)},
    "a number of 5000 digits": lambda t: {**t, f"encoder.layer.{'9' * 5000}.norm1.weight": torch.zeros(4)},
    "a block without a number": lambda t: {**t, "blocks.x.norm1.weight": torch.zeros(4)},
    "places of no square": lambda t: {
        **t, "embeddings.position_embeddings": t["embeddings.position_embeddings"][:, :-3].clone(),
    },
    "no places": lambda t: {**t, "embeddings.position_embeddings": t["embeddings.position_embeddings"][:, :0].clone()},
    "uneven queries": lambda t: {**t, "blocks.0.attn.qkv.weight": torch.zeros(7, 3)},
    "other patches": lambda t: {
        **t, "embeddings.patch_embeddings.projection.weight": torch.zeros(
            *t["embeddings.patch_embeddings.projection.weight"].shape[:2], 16, 16),
    },
}  # fmt: skip


def folder(tmp_path, origin):
    made = tmp_path / "dinov2"
    made.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(origin / name, made)
    return made / "model.safetensors"


@pytest.mark.parametrize("fault", DINO_FAULTS)
def test_tensors_of_a_feature_network_that_are_not_right(fault, tmp_path):
    path = folder(tmp_path, DINO)
    save_file(DINO_FAULTS[fault](load_file(path)), path)
    refused(load_dinov2, path)


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_file_of_a_feature_network_that_is_damaged(fault, tmp_path):
    path = folder(tmp_path, DINO)
    path.write_bytes(FILE_FAULTS[fault](path.read_bytes()))
    refused(load_dinov2, path)


HEADS = ["", "[]", "{", '{"num_attention_heads": 1e400}', '{"num_attention_heads": 7}', '{"num_attention_heads": -4}',
         '{"num_attention_heads": "many"}', '{"num_attention_heads": [4]}', "[" * 100_000]  # fmt: skip


@pytest.mark.parametrize("text", HEADS, ids=lambda text: text[:40])
def test_a_description_of_a_feature_network_that_is_damaged(text, tmp_path):
    path = folder(tmp_path, DINO)
    (path.parent / "config.json").write_text(text)
    if text == "[]":  # says nothing, so the published width of heads stands
        load_dinov2(path)
    else:
        refused(load_dinov2, path)


def denoiser(tmp_path):
    made = tmp_path / "denoiser"
    made.mkdir()
    for name in FILES:
        shutil.copy(DENOISER / name, made)
    return made


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_tensors_of_a_denoiser_that_are_not_right(fault, tmp_path):
    path = denoiser(tmp_path) / FILES[1]
    save_file(TENSOR_FAULTS[fault](load_file(path)), path)
    refused(lambda path: load_denoiser(path.parent), path)


@pytest.mark.parametrize("fault", FILE_FAULTS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_denoiser_that_is_damaged(fault, name, tmp_path):
    path = denoiser(tmp_path) / name
    path.write_bytes(FILE_FAULTS[fault](path.read_bytes()))
    refused(lambda path: load_denoiser(path.parent), path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers_per_block", 10**9), ("layers_per_block", -1), ("layers_per_block", "x"), ("in_channels", 10**9),
        ("block_out_channels", [10**9, 96, 128]), ("block_out_channels", [1] * 10**5), ("block_out_channels", []),
        ("cross_attention_dim", 10**12), ("down_block_types", ["No"] * 3), ("norm_num_groups", 0),
        ("attention_head_dim", 0), ("transformer_layers_per_block", 10**8), ("_class_name", "AutoencoderKL"),
    ],
)  # fmt: skip
def test_a_denoiser_that_is_described_wrongly(key, value, tmp_path):
    path = denoiser(tmp_path) / FILES[0]
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    refused(lambda path: load_denoiser(path.parent), path)


def test_sizes_of_real_networks_pass():
    for kind, (origin, _) in NETS.items():
        check_sizes(json.loads(metadata(origin)[kind]), load_file(origin))
    check_sizes(json.loads((DENOISER / FILES[0]).read_text()), load_file(DENOISER / FILES[1]))

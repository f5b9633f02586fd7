"""Adapter files: what is written is read, and everything else is refused with a reason."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lib_dino.adapter.format import AdapterInfo, fingerprint
from lib_dino.adapter.injection import Adapter, Injection
from lib_dino.adapter.load import load_adapter, new_layers
from lib_dino.adapter.projectors import feature_dim, new_projector
from lib_dino.errors import ModelError
from lib_dino.networks.dinov2 import load_dinov2


@pytest.fixture(scope="module")
def dino():
    return load_dinov2()


def saved(dino, path, projector="patches", base="embedded", *, whole=False):
    """A small adapter of random weights in a file."""
    torch.manual_seed(0)
    tokens = 0 if projector == "patches" else 4
    layers = (8,) if projector == "linear" else (3, 8)
    width = {"sd15": 768, "sdxl": 2048}.get(base, 48)
    info = AdapterInfo(dino.name, fingerprint(dino), layers, 224, 518, projector, tokens, whole, base)
    made = new_projector(info, dim=feature_dim(info, dino), width=width, inner=64)
    parts = new_layers([(16, width), (32, width)], [2, 2], width=width, placed=info.placed)
    for layer in parts:
        torch.nn.init.normal_(layer.to_v_ip.weight)
    Adapter(info, made, parts, name="saved").save(path)
    return path


@pytest.mark.parametrize("base", ["embedded", "sd15"])
@pytest.mark.parametrize("projector", ["linear", "resampler", "patches"])
def test_what_is_saved_comes_back(dino, tmp_path, projector, base, generator):
    path = saved(dino, tmp_path / "a.safetensors", projector, base, whole=projector != "patches")
    first, again = load_adapter(path, dino), tmp_path / "b.safetensors"
    first.save(again)
    second = load_adapter(again, dino)
    assert first.info == second.info
    assert (first.info.projector, first.info.base) == (projector, base)
    assert first.channels == [16, 32]
    tiles, whole = torch.rand(1, 3, 32, 32, generator=generator), torch.rand(1, 3, 40, 40, generator=generator)
    tokens = first.tokens(dino, tiles, 2.0, whole)
    assert_close(second.tokens(dino, tiles, 2.0, whole), tokens)
    query = torch.randn(1, 4, 32, generator=generator)
    one, two = (
        Injection(a, tokens, 1.0, grid=a.grid(tiles, 2.0), span=(2, 2)).seen(1, query, 2, cells=(2, 2))
        for a in (first, second)
    )
    assert_close(one, two)
    assert not path.with_suffix(".tmp").exists()


def test_the_layout_is_that_of_ip_adapter(dino, tmp_path):
    names = set(load_file(saved(dino, tmp_path / "a.safetensors", "resampler", "sd15")))
    assert {"image_proj.latents", "image_proj.proj_in.weight", "image_proj.norm_out.bias"} <= names
    assert {f"image_proj.layers.3.0.{part}.weight" for part in ("norm1", "norm2", "to_q", "to_kv", "to_out")} <= names
    assert {f"image_proj.layers.3.1.{part}.weight" for part in (0, 1, 3)} <= names
    assert {f"ip_adapter.{i}.{part}.weight" for i in (1, 3) for part in ("to_k_ip", "to_v_ip")} <= names
    linear = load_file(saved(dino, tmp_path / "b.safetensors", "linear", "sd15"))
    assert linear["image_proj.proj.weight"].shape == (4 * 768, dino.dim)
    assert linear["image_proj.norm.weight"].shape == (768,)


def changed(path, *, metadata=None, tensors=None, drop=()):
    """The file again with other metadata or tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        held = dict(file.metadata())
    new = {**load_file(path), **(tensors or {})}
    for key in drop:
        new.pop(key, None)
        held.pop(key, None)
    save_file(new, path, {**held, **(metadata or {})})
    return path


@pytest.mark.parametrize("key", [
    "format", "version", "encoder", "fingerprint", "layer", "norm", "px", "projector", "tokens", "positions", "whole",
    "uncond", "base",
])  # fmt: skip
def test_no_fact_is_guessed(dino, tmp_path, key):
    path = changed(saved(dino, tmp_path / "a.safetensors", "resampler"), drop=[key])
    with pytest.raises(ModelError, match=rf"{key} is missing"):
        load_adapter(path, dino)


@pytest.mark.parametrize(("key", "value"), [
    ("format", "ip-adapter"), ("version", "2"), ("layer", "0"), ("layer", "last"), ("norm", "none"), ("px", "518"),
    ("px", "518-224"), ("px", "0-0"), ("projector", "mlp"), ("tokens", "0"), ("tokens", "grid"),
    ("positions", "fourier"), ("whole", "yes"), ("uncond", "mean"), ("base", "flux"), ("fingerprint", "abc"),
    ("encoder", ""),
])  # fmt: skip
def test_unknown_facts_are_refused_by_name(dino, tmp_path, key, value):
    path = changed(saved(dino, tmp_path / "a.safetensors", "resampler"), metadata={key: value})
    with pytest.raises(ModelError, match=rf"the metadata's {key} must"):
        load_adapter(path, dino)


def test_an_ip_adapter_for_clip_is_refused(dino, tmp_path):
    tensors = {"image_proj.proj.weight": torch.zeros(8, 8), "ip_adapter.1.to_k_ip.weight": torch.zeros(8, 8)}
    save_file(tensors, tmp_path / "ip-adapter_sd15.safetensors")
    with pytest.raises(ModelError, match=r"no DINO adapter.*made for CLIP.*train_adapter"):
        load_adapter(tmp_path / "ip-adapter_sd15.safetensors", dino)


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.ckpt", "a"])
def test_pickles_are_refused_unopened(dino, tmp_path, name):
    (tmp_path / name).write_bytes(b"never read")
    with pytest.raises(ModelError, match=r"can run code.*safetensors"):
        load_adapter(tmp_path / name, dino)


def test_missing_and_damaged_files_are_refused(dino, tmp_path):
    with pytest.raises(ModelError, match="No adapter at"):
        load_adapter(tmp_path / "none.safetensors", dino)
    path = saved(dino, tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="damaged or cut short"):
        load_adapter(path, dino)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(dino, tmp_path, value):
    key = "ip_adapter.3.to_v_ip.weight"
    path = saved(dino, tmp_path / "a.safetensors")
    tensor = load_file(path)[key]
    tensor[0, 0] = value
    with pytest.raises(ModelError, match="NaN"):
        load_adapter(changed(path, tensors={key: tensor}), dino)


def test_another_feature_network_is_refused(dino, tmp_path):
    path = saved(dino, tmp_path / "a.safetensors")
    other = load_dinov2()
    other.patch.weight.data[0] += 1
    with pytest.raises(ModelError, match=r"trained with the features of .* the loaded feature model is"):
        load_adapter(path, other)


def test_the_fingerprint_is_the_same_in_half_precision(dino):
    other = load_dinov2().half()
    assert fingerprint(other) == fingerprint(dino)
    other.norm.weight.data[3] += 0.01
    assert fingerprint(other) != fingerprint(dino)


@pytest.mark.parametrize(("key", "shape", "message"), [
    ("image_proj.proj_in.weight", (64, 5), "image_proj is no resampler"),
    ("image_proj.proj_out.weight", (40, 64), "image_proj is no resampler"),
    ("image_proj.norm_out.weight", (40,), "image_proj is no resampler"),
    ("image_proj.extra", (4,), "image_proj is no resampler"),
    ("ip_adapter.1.to_k_ip.weight", (16, 40), "must hold"),
    ("ip_adapter.1.to_v_ip.weight", (16,), "must hold"),
    ("ip_adapter.7.to_v_ip.weight", (16, 48), "missing or too many"),
    ("ip_adapter.1.to_q_ip.weight", (16, 48), "missing or too many"),
])  # fmt: skip
def test_wrong_shapes_are_refused(dino, tmp_path, key, shape, message):
    path = changed(saved(dino, tmp_path / "a.safetensors", "resampler"), tensors={key: torch.zeros(shape)})
    with pytest.raises(ModelError, match=message):
        load_adapter(path, dino)


def test_missing_tensors_are_refused(dino, tmp_path):
    for key in ("image_proj.latents", "ip_adapter.1.to_k_ip.weight"):
        path = changed(saved(dino, tmp_path / "a.safetensors", "resampler"), drop=[key])
        with pytest.raises(ModelError, match="latents" if "latents" in key else "missing or too many"):
            load_adapter(path, dino)


def test_tokens_must_be_as_wide_as_the_bases(dino, tmp_path):
    path = changed(saved(dino, tmp_path / "a.safetensors", "linear"), metadata={"base": "sd15"})
    with pytest.raises(ModelError, match="must be 768 wide"):
        load_adapter(path, dino)


def test_every_fact_of_the_record_is_in_the_metadata(dino):
    info = AdapterInfo("some encoder", "0123456789abcdef", (4, 12), 224, 448, "resampler", 16, True, "sdxl")
    assert AdapterInfo.from_metadata(info.to_metadata(), name="x") == info
    for field in dataclasses.fields(AdapterInfo):
        other = {"layers": (7,), "projector": "linear", "base": "sd15", "encoder": "b", "fingerprint": "f" * 16}
        value = other.get(field.name, not getattr(info, field.name) if field.name == "whole" else 300)
        assert dataclasses.replace(info, **{field.name: value}).to_metadata() != info.to_metadata(), field.name

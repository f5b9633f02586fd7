"""Adapter files: what is written is read, and everything else is refused with a reason."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lib_dino.adapter.format import AdapterInfo
from lib_dino.adapter.injection import Adapter, Injection
from lib_dino.adapter.load import load_adapter, new_layers
from lib_dino.adapter.projectors import PatchTokens, feature_dim
from lib_dino.errors import AdapterError, ModelError
from lib_dino.networks.dinov2 import fingerprint, load_dinov2


@pytest.fixture(scope="module")
def dino():
    return load_dinov2()


def saved(dino, path, base="embedded"):
    """A small adapter of random weights in a file."""
    torch.manual_seed(0)
    width = {"sd15": 768, "sdxl": 2048}.get(base, 48)
    info = AdapterInfo(dino.name, fingerprint(dino), (3, 8), 224, 518, base)
    parts = new_layers([(16, width), (32, width)], [2, 2], width=width)
    for layer in parts:
        torch.nn.init.normal_(layer.to_v_ip.weight)
    Adapter(info, PatchTokens(feature_dim(info, dino), width, 64), parts, name="saved").save(path)
    return path


@pytest.mark.parametrize("base", ["embedded", "sd15"])
def test_what_is_saved_comes_back(dino, tmp_path, base, generator):
    path = saved(dino, tmp_path / "a.safetensors", base)
    first, again = load_adapter(path, dino), tmp_path / "b.safetensors"
    first.save(again)
    second = load_adapter(again, dino)
    assert first.info == second.info
    assert first.info.base == base
    assert first.channels == [16, 32]
    tiles = torch.rand(1, 3, 32, 32, generator=generator)
    tokens = first.tokens(dino, tiles, 2.0)
    assert_close(second.tokens(dino, tiles, 2.0), tokens)
    query = torch.randn(1, 4, 32, generator=generator)
    one, two = (
        Injection(a, tokens, 1.0, grid=a.grid(tiles, 2.0), span=(2, 2)).seen(1, query, 2, cells=(2, 2))
        for a in (first, second)
    )
    assert_close(one, two)
    assert not path.with_suffix(".tmp").exists()


def test_the_layout_is_that_of_ip_adapter(dino, tmp_path):
    names = set(load_file(saved(dino, tmp_path / "a.safetensors", "sd15")))
    projector = {f"image_proj.{name}" for name in (
        "mean", "proj.weight", "proj.bias", "proj_out.weight", "proj_out.bias", "norm.weight", "norm.bias"
    )}  # fmt: skip
    layers = {f"ip_adapter.{i}.{part}.weight" for i in (1, 3) for part in ("to_k_ip", "to_v_ip", "to_q_ip")}
    assert names == projector | layers


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
    path = changed(saved(dino, tmp_path / "a.safetensors"), drop=[key])
    with pytest.raises(ModelError, match=rf"{key} is missing"):
        load_adapter(path, dino)


@pytest.mark.parametrize(("key", "value"), [
    ("format", "ip-adapter"), ("version", "2"), ("layer", "0"), ("layer", "last"), ("norm", "none"), ("px", "518"),
    ("px", "518-224"), ("px", "0-0"), ("projector", "mlp"), ("tokens", "0"), ("tokens", "16"),
    ("positions", "none"), ("whole", "yes"), ("whole", "1"), ("uncond", "mean"), ("base", "flux"),
    ("fingerprint", "abc"), ("encoder", ""),
])  # fmt: skip
def test_unknown_facts_are_refused_by_name(dino, tmp_path, key, value):
    path = changed(saved(dino, tmp_path / "a.safetensors"), metadata={key: value})
    with pytest.raises(ModelError, match=rf"the metadata's {key} must"):
        load_adapter(path, dino)


@pytest.mark.parametrize("kind", ["linear", "resampler"])
def test_a_retired_projector_is_named_with_what_to_do(dino, tmp_path, kind):
    given = {"projector": kind, "tokens": "16", "positions": "none", "whole": "1"}
    path = changed(saved(dino, tmp_path / "a.safetensors"), metadata=given)
    with pytest.raises(AdapterError, match=rf"projector {kind}.*only DINO Upscale 0\.1\.0.*train_adapter"):
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


@pytest.mark.parametrize(("key", "shape", "message"), [
    ("image_proj.proj.weight", (64, 5), "image_proj does not make"),
    ("image_proj.proj_out.weight", (40, 64), "image_proj does not make"),
    ("image_proj.norm.weight", (40,), "image_proj does not make"),
    ("image_proj.extra", (4,), "image_proj does not make"),
    ("ip_adapter.1.to_k_ip.weight", (16, 40), "must hold"),
    ("ip_adapter.1.to_v_ip.weight", (16,), "must hold"),
    ("ip_adapter.7.to_v_ip.weight", (16, 48), "missing or too many"),
    ("ip_adapter.1.to_q_ip.weight", (16, 40), "must hold"),
])  # fmt: skip
def test_wrong_shapes_are_refused(dino, tmp_path, key, shape, message):
    path = changed(saved(dino, tmp_path / "a.safetensors"), tensors={key: torch.zeros(shape)})
    with pytest.raises(ModelError, match=message):
        load_adapter(path, dino)


def test_missing_tensors_are_refused(dino, tmp_path):
    for key in ("image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"):
        path = changed(saved(dino, tmp_path / "a.safetensors"), drop=[key])
        with pytest.raises(ModelError, match="norm" if "norm" in key else "missing or too many"):
            load_adapter(path, dino)


def test_tokens_must_be_as_wide_as_the_bases(dino, tmp_path):
    path = changed(saved(dino, tmp_path / "a.safetensors"), metadata={"base": "sd15"})
    with pytest.raises(ModelError, match="must be 768 wide"):
        load_adapter(path, dino)


def test_every_fact_of_the_record_is_in_the_metadata(dino):
    info = AdapterInfo("some encoder", "0123456789abcdef", (4, 12), 224, 448, "sdxl")
    assert AdapterInfo.from_metadata(info.to_metadata(), name="x") == info
    for field in dataclasses.fields(AdapterInfo):
        other = {"layers": (7,), "base": "sd15", "encoder": "b", "fingerprint": "f" * 16}
        changed_info = dataclasses.replace(info, **{field.name: other.get(field.name, 300)})
        assert changed_info.to_metadata() != info.to_metadata(), field.name

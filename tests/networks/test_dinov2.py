import json
import math
import shutil
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from lib_dino.errors import ModelError
from lib_dino.networks.dinov2 import fingerprint, load_dinov2, position_grid
from lib_dino.networks.dinov2_weights import EMBEDDED

KINDS = ["plain", "registers", "gated"]
SIZES = [(70, 70), (14, 14), (42, 98), (126, 56), (182, 168)]


def build(kind):
    """A network of two blocks whose every parameter matters, by transformers itself."""
    width = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 70}
    gated = kind == "gated"
    if kind == "plain":
        model = Dinov2Model(Dinov2Config(**width))
    else:
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**width, use_swiglu_ffn=gated))
    generator = torch.Generator().manual_seed(7)
    for name, tensor in model.named_parameters():
        fresh = torch.randn(tensor.shape, generator=generator)
        wide = tensor.ndim > 1 and "embeddings.patch" not in name
        tensor.data = fresh * 0.25 if wide else (1 if "norm" in name and "weight" in name else 0) + fresh * 0.1
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each kind of network in the layout of Hugging Face."""
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        build(kind).save_pretrained(made[kind])
    return made


@pytest.fixture
def image(generator):
    return torch.randn(2, 3, 70, 70, generator=generator)


def original_names(folder):
    """The same tensors as the original release would name and pack them."""
    held, made = load_file(folder / "model.safetensors"), {}
    for name, tensor in held.items():
        name = name.replace("embeddings.", "").replace("encoder.layer", "blocks").replace("layernorm", "norm")
        name = name.replace("patch_projection", "patch_embed.proj").replace("position_embeddings", "pos_embed")
        name = name.replace("lambda1", "gamma")
        name = name.replace("layer_scale", "ls").replace("attention.output.dense", "attn.proj")
        name = name.replace("weights_in", "w12").replace("weights_out", "w3")
        made[name] = tensor
    for key in [key for key in made if ".attention.attention.query." in key]:
        parts = [made.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        made[key.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return made


def timm_names(folder):
    """The same tensors as timm's files have them: class position added up where there are registers."""
    made = original_names(folder)
    made.pop("mask_token")
    if "register_tokens" in made:
        made["reg_token"] = made.pop("register_tokens")
        made["cls_token"] = made["cls_token"] + made["pos_embed"][:, :1]
        made["pos_embed"] = made["pos_embed"][:, 1:].clone()
    return {name.replace("w12", "fc1").replace("w3", "fc2"): tensor for name, tensor in made.items()}


def cosines(a, b):
    return F.cosine_similarity(a, b, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_both_libraries_give_the_same_grid_at_any_size(kind, folders, timm, generator):
    one, other = (load_dinov2(folders[kind], backend=backend) for backend in ("transformers", "timm"))
    assert (one.backend, other.backend) == ("transformers", "timm")
    for size in SIZES:
        image = torch.randn(1, 3, *size, generator=generator)
        a, b = one.patch_tokens(image), other.patch_tokens(image)
        assert a.shape == (1, 32, size[0] // 14, size[1] // 14)
        assert cosines(a, b).min() > 0.9999
        assert_close(a, b, atol=2e-4, rtol=1e-4)


def test_both_libraries_give_the_same_grid_for_the_network_that_ships(timm, generator):
    one, other = (load_dinov2(backend=backend) for backend in ("transformers", "timm"))
    for size in [(224, 224), (140, 252)]:
        image = torch.randn(1, 3, *size, generator=generator)
        assert cosines(one.patch_tokens(image), other.patch_tokens(image)).min() > 0.9999


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_native_size_tokens_are_those_of_the_librarys_own_model(kind, folders, image):
    dino, model = load_dinov2(folders[kind]), build(kind)
    with torch.no_grad():
        whole = model(image).last_hidden_state
    assert dino.registers == (0 if kind == "plain" else 4)
    patches = whole[:, 1 + dino.registers :].transpose(1, 2).unflatten(2, (5, 5))
    assert_close(dino.patch_tokens(image), patches, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("renamed", [original_names, timm_names])
def test_the_original_and_timms_names_mean_the_same_network(kind, renamed, folders, image, tmp_path):
    save_file(renamed(folders[kind]), tmp_path / "small.safetensors", metadata={"num_attention_heads": "2"})
    dino = load_dinov2(tmp_path / "small.safetensors")
    assert dino.name == "small"
    wide = torch.cat([image, image], 3)
    assert_close(dino.patch_tokens(wide), load_dinov2(folders[kind]).patch_tokens(wide))


@pytest.mark.parametrize("backend", ["transformers", "timm"])
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (1, 0), (1, 4)])
def test_rows_and_columns_of_the_grid_are_those_of_the_picture(backend, place, folders, timm):
    row, column = place
    image = torch.zeros(1, 3, 28, 70)
    image[..., row * 14 : (row + 1) * 14, column * 14 : (column + 1) * 14] = 3
    dino = load_dinov2(folders["registers"], backend=backend)
    change = (dino.patch_tokens(image) - dino.patch_tokens(torch.zeros_like(image))).norm(dim=1)
    assert int(change.argmax()) == row * 5 + column


@pytest.mark.parametrize("backend", ["transformers", "timm"])
def test_the_gradient_is_that_of_finite_differences(backend, folders, timm, generator):
    dino = load_dinov2(folders["registers"], backend=backend).double()
    image = torch.randn(1, 3, 28, 42, generator=generator, dtype=torch.float64)
    target = torch.randn(1, 32, 2, 3, generator=generator, dtype=torch.float64)
    way = torch.randn(image.shape, generator=generator, dtype=torch.float64)

    def loss(x):
        return (dino.patch_tokens(x) - target).square().sum()

    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    step = 1e-5
    slope = (loss(image + step * way) - loss(image - step * way)) / (2 * step)
    assert_close((gradient * way).sum(), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["transformers", "timm"])
def test_a_network_loaded_in_inference_mode_still_carries_gradients(backend, folders, timm, image):
    with torch.inference_mode():
        dino = load_dinov2(folders["plain"], backend=backend)
        seen = image + 0
        with torch.inference_mode(False), torch.enable_grad():
            leaf = seen.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(dino.patch_tokens(leaf).square().sum(), leaf)
    assert gradient.abs().sum() > 0
    assert not any(p.requires_grad or p.is_inference() for p in dino.parameters())


def test_half_precision_weights_and_autocast_still_compute_in_float32(folders, image, tmp_path):
    half = {name: t.half() for name, t in load_file(folders["plain"] / "model.safetensors").items()}
    save_file(half, tmp_path / "model.safetensors")
    shutil.copy(folders["plain"] / "config.json", tmp_path)
    dino = load_dinov2(tmp_path)
    plain = dino.patch_tokens(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(dino.patch_tokens(image), plain, atol=0, rtol=0)
    assert plain.dtype == torch.float32
    assert dino.patch_tokens(image.half()).dtype == torch.float32


def test_layers_come_in_the_order_asked_for_and_the_last_is_the_whole_network(folders, image):
    dino = load_dinov2(folders["registers"])
    last, first = dino.layer_tokens(image, [2, 1])
    assert_close(last, dino.patch_tokens(image))
    assert (first - last).abs().max() > 0.1
    for wrong in ([0], [3]):
        with pytest.raises(ValueError, match="1 to 2"):
            dino.layer_tokens(image, wrong)


@pytest.mark.parametrize("shape", [(3, 14, 14), (1, 1, 14, 14), (1, 3, 15, 14), (1, 3, 14, 20)])
def test_a_picture_of_another_shape_is_refused_with_its_shape(shape, folders):
    with pytest.raises(ValueError, match=str(shape[-1])):
        load_dinov2(folders["plain"]).patch_tokens(torch.zeros(shape))


# --- positions ---------------------------------------------------------------------------------------------------


def table(function, side=6):
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    return function(y / side, x / side).reshape(1, side * side, 1)


def test_positions_are_untouched_at_the_native_size(generator):
    positions = torch.randn(1, 16, 5, generator=generator)
    assert_close(position_grid(positions, (4, 4)), positions.view(4, 4, 5).permute(2, 0, 1)[None], atol=0, rtol=0)


def test_rows_stay_rows_and_the_centre_stays_the_centre():
    down = position_grid(table(lambda y, x: y), (9, 4))
    assert down.shape == (1, 1, 9, 4)
    assert_close(down, down[..., :1].expand_as(down))  # the same in all columns
    assert_close(down + down.flip(2), torch.ones_like(down))  # no shift: half-pixel centres
    assert (down.diff(dim=2) > 0).all()


def test_positions_for_fewer_patches_are_averaged_and_not_picked():
    checks = table(lambda y, x: (6 * y + 6 * x).floor() % 2, side=12)
    assert position_grid(checks, (3, 3)).sub(0.5).abs().max() < 0.2


# --- files -------------------------------------------------------------------------------------------------------


def test_the_network_that_ships_is_small_and_what_transformers_itself_reads(generator):
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 8e6
    model = Dinov2Model.from_pretrained(EMBEDDED, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) <= 4e6
    image = torch.randn(1, 3, 224, 224, generator=generator)
    with torch.no_grad():
        expected = model(image).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (16, 16))
    assert_close(load_dinov2().patch_tokens(image), expected, atol=1e-4, rtol=1e-4)


def test_heads_are_64_wide_where_nothing_else_is_said(folders, tmp_path):
    tensors = load_file(EMBEDDED / "model.safetensors")
    save_file(tensors, tmp_path / "alone.safetensors")
    image = torch.ones(1, 3, 28, 28)
    assert_close(load_dinov2(tmp_path / "alone.safetensors").patch_tokens(image), load_dinov2().patch_tokens(image))


def test_something_else_than_dinov2_is_named_with_what_it_lacks(tmp_path):
    save_file({"conv.weight": torch.zeros(4), "conv.bias": torch.zeros(4)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"other\.safetensors .* no `cls` .* 2 tensors"):
        load_dinov2(tmp_path / "other.safetensors")


@pytest.mark.parametrize("lost", ["encoder.layer.1.norm2.weight", "embeddings.position_embeddings"])
def test_a_network_with_a_tensor_missing_is_refused_with_its_name(lost, folders, tmp_path):
    tensors = load_file(folders["plain"] / "model.safetensors")
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"blocks\.1\.norm2\.weight|positions"):
        load_dinov2(tmp_path)


def test_another_patch_size_is_refused_with_its_number(folders, tmp_path):
    tensors = load_file(folders["plain"] / "model.safetensors")
    tensors["embeddings.patch_embeddings.projection.weight"] = torch.zeros(32, 3, 16, 16)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"14 px.*16 px"):
        load_dinov2(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_a_truncated_file_is_refused(keep, folders, tmp_path):
    whole = (folders["plain"] / "model.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: math.floor(keep * len(whole)) if keep == 0.5 else keep])
    with pytest.raises(ModelError, match=r"short\.safetensors is damaged or cut short"):
        load_dinov2(tmp_path / "short.safetensors")


def test_a_damaged_config_is_refused(folders, tmp_path):
    shutil.copy(folders["plain"] / "model.safetensors", tmp_path)
    for text in ["{", "[1]", json.dumps({"num_attention_heads": 5}), json.dumps({"num_attention_heads": "two"})]:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"config\.json|5 heads"):
            load_dinov2(tmp_path)


def test_a_place_where_nothing_is_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"1")
    for wrong in ["nowhere", "empty", "weights.pth", "gone.safetensors"]:
        with pytest.raises(ModelError, match=wrong):
            load_dinov2(tmp_path / wrong)


def test_offline_the_files_to_download_and_their_place_are_named(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ModelError) as caught:
        load_dinov2("facebook/dinov2-small")
    for word in ("config.json", "model.safetensors", "huggingface.co/facebook/dinov2-small", "models/dinov2"):
        assert word in str(caught.value)


def test_a_repositorys_files_are_fetched_only_by_its_id(monkeypatch, folders, image):
    asked = []

    def fetch(repository, name):
        asked.append((repository, name))
        return str(folders["plain"] / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    dino = load_dinov2("someone/dinov2-tiny")
    assert asked == [("someone/dinov2-tiny", "config.json"), ("someone/dinov2-tiny", "model.safetensors")]
    assert dino.name == "someone/dinov2-tiny"
    assert_close(dino.patch_tokens(image), load_dinov2(folders["plain"]).patch_tokens(image))


@pytest.mark.parametrize("transformers", [None, types.ModuleType("transformers")], ids=["missing", "too old"])
def test_timm_serves_where_transformers_has_no_dinov2(transformers, monkeypatch, folders, timm):
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    assert load_dinov2(folders["plain"]).backend == "timm"


def test_without_any_library_both_are_named(monkeypatch, folders):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(ModelError, match=r"transformers 4\.32 or timm"):
        load_dinov2(folders["plain"])


def test_the_fingerprint_is_the_same_in_half_precision():
    dino, other = load_dinov2(), load_dinov2().half()
    assert fingerprint(other) == fingerprint(dino)
    other.norm.weight.data[3] += 0.01
    assert fingerprint(other) != fingerprint(dino)

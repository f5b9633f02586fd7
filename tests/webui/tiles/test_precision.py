"""Float32 for a while, on networks built like the hosts': what is put in is put back, bit by bit."""

import sys
import types

import pytest
import torch
from torch import nn

from lib_dino.webui.tiles import precision


class Layer(nn.Linear):
    """As Forge's: casts its weights to what comes in, where it is told to."""

    parameters_manual_cast = False

    def forward(self, x):
        weight = self.weight.to(x.dtype) if self.parameters_manual_cast else self.weight
        return x @ weight.T


def network(kind=nn.Linear):
    torch.manual_seed(1)
    return nn.Sequential(kind(4, 4, bias=False), kind(4, 4, bias=False)).half().requires_grad_(False)


def forge(inference):
    unet = types.SimpleNamespace(computation_dtype=torch.float16, diffusion_model=network(Layer))
    with torch.inference_mode(inference):  # as Forge loads its models
        vae = types.SimpleNamespace(vae_dtype=torch.bfloat16, first_stage_model=network().bfloat16())
    held = types.SimpleNamespace(unet=types.SimpleNamespace(model=unet), vae=vae)
    return types.SimpleNamespace(forge_objects=held, forge_objects_original=held)


def a1111(monkeypatch):
    devices = types.ModuleType("modules.devices")
    devices.dtype = devices.dtype_unet = devices.dtype_vae = torch.float16
    modules = types.ModuleType("modules")
    modules.devices = devices
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.devices", devices)
    return types.SimpleNamespace(model=network(), first_stage_model=network()), devices


@pytest.mark.parametrize("inference", [False, True])
def test_forge_computes_in_float32_inside_and_is_as_it_was_after(generator, inference):
    model = forge(inference)
    unet, vae = model.forge_objects.unet.model, model.forge_objects.vae
    before = {k: v.clone() for k, v in vae.first_stage_model.state_dict().items()}
    weights = unet.diffusion_model.state_dict()
    x = torch.rand(2, 4, generator=generator)
    assert precision.computes_in_half(model)
    with precision.in_float32(model) as ready:
        assert ready and not precision.computes_in_half(model)
        assert unet.diffusion_model(x.to(unet.computation_dtype)).dtype == torch.float32
        assert vae.first_stage_model(x.to(vae.vae_dtype)).dtype == torch.float32
        assert {w.dtype for w in weights.values()} == {torch.float16}  # no second copy of a large network
    assert precision.computes_in_half(model) and vae.vae_dtype == torch.bfloat16
    assert not any(layer.parameters_manual_cast for layer in unet.diffusion_model)
    after = vae.first_stage_model.state_dict()
    assert all(torch.equal(before[k], after[k]) and after[k].dtype == torch.bfloat16 for k in before)


def test_a1111_computes_in_float32_inside_and_is_as_it_was_after(generator, monkeypatch):
    model, devices = a1111(monkeypatch)
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    x = torch.rand(2, 4, generator=generator).half()
    plain = model.model(x)
    assert precision.computes_in_half(model)
    with precision.in_float32(model) as ready:
        assert ready and not precision.computes_in_half(model)
        assert devices.dtype == devices.dtype_unet == devices.dtype_vae == torch.float32
        assert model.model(x).dtype == torch.float32  # prompts encoded in half precision are no hindrance
    assert devices.dtype == devices.dtype_vae == torch.float16
    after = model.model.state_dict()
    assert all(torch.equal(before[k], after[k]) and after[k].dtype == torch.float16 for k in before)
    assert torch.equal(model.model(x), plain)


def test_nothing_is_left_where_memory_is_too_short_for_it(monkeypatch):
    model, devices = a1111(monkeypatch)
    cast, calls = precision._cast, []

    def short(weight, dtype):
        calls.append(1)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        cast(weight, dtype)

    monkeypatch.setattr(precision, "_cast", short)
    with precision.in_float32(model) as ready:
        assert not ready
        assert {w.dtype for w in model.model.parameters()} == {torch.float16} and devices.dtype == torch.float16


def test_an_error_inside_puts_all_back(monkeypatch):
    model, devices = a1111(monkeypatch)
    with pytest.raises(KeyError), precision.in_float32(model):
        raise KeyError
    assert {w.dtype for w in model.model.parameters()} == {torch.float16} and devices.dtype == torch.float16
    assert not model.model._forward_pre_hooks


def test_a_model_in_float32_has_nothing_to_gain(monkeypatch):
    model, _ = a1111(monkeypatch)
    model.model.float()
    model.first_stage_model.float()
    assert not precision.computes_in_half(model)
    assert not precision.computes_in_half(types.SimpleNamespace())

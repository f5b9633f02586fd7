"""The host's model computing in float32 for a while, as with its `--no-half`: for tiles that gave no valid numbers.

Weights come back exactly: half precision to float32 and back changes no bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...memory import free_memory, is_out_of_memory

log = logging.getLogger("dino_upscale")

_GLOBALS: Final = {
    "dtype": torch.float32, "dtype_unet": torch.float32, "dtype_vae": torch.float32, "dtype_inference": torch.float32,
    "unet_needs_upcast": False, "fp8": False,
}  # fmt: skip
"""Of A1111's `devices`: what its samplers and its autoencoder go by."""

_HOLDERS: Final = ("forge_objects", "forge_objects_original", "forge_objects_after_applying_lora")


def computes_in_half(sd_model: Any) -> bool:
    """Tell whether the loaded model computes with fewer bits than float32, its autoencoder included."""
    kept = _forge_unet(sd_model)
    if kept is not None:
        vaes = _forge_vaes(sd_model)
        return _is_less(kept.computation_dtype) or any(_is_less(vae.vae_dtype) for vae in vaes)
    return any(_is_less(weight.dtype) for network in _networks(sd_model) for weight in network.parameters())


@contextmanager
def in_float32(sd_model: Any) -> Iterator[bool]:
    """Have the loaded model compute in float32 inside the block; False where there is too little memory for it."""
    with ExitStack() as stack:
        ready = True
        try:
            _enter(stack, sd_model)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("There is too little memory for a tile in float32.")
            ready = False
        if not ready:
            stack.close()
            free_memory()
        yield ready


def _enter(stack: ExitStack, sd_model: Any) -> None:
    unet = _forge_unet(sd_model)
    if unet is None:
        from modules import devices

        for name, value in _GLOBALS.items():
            if hasattr(devices, name):
                _set(stack, devices, name, value)
        for network in _networks(sd_model):
            _to_float32(stack, network)
        # Prompts were encoded in half precision.
        hook = sd_model.model.register_forward_pre_hook(_all_float32, with_kwargs=True)
        stack.callback(hook.remove)
        return
    _set(stack, unet, "computation_dtype", torch.float32)
    for layer in unet.diffusion_model.modules():
        if hasattr(layer, "parameters_manual_cast"):
            _set(stack, layer, "parameters_manual_cast", True)
    for vae in _forge_vaes(sd_model):
        _set(stack, vae, "vae_dtype", torch.float32)
        _to_float32(stack, vae.first_stage_model)


def _forge_unet(sd_model: Any) -> Any:
    """The Forge family's diffusion model with its precision; None in A1111."""
    unet = getattr(getattr(getattr(sd_model, "forge_objects", None), "unet", None), "model", None)
    return unet if isinstance(getattr(unet, "computation_dtype", None), torch.dtype) else None


def _forge_vaes(sd_model: Any) -> list[Any]:
    found = (getattr(getattr(sd_model, name, None), "vae", None) for name in _HOLDERS)
    return list({id(vae): vae for vae in found if isinstance(getattr(vae, "vae_dtype", None), torch.dtype)}.values())


def _networks(sd_model: Any) -> list[nn.Module]:
    found = (getattr(sd_model, name, None) for name in ("model", "first_stage_model"))
    return [network for network in found if isinstance(network, nn.Module)]


def _set(stack: ExitStack, held: Any, name: str, value: Any) -> None:
    stack.callback(setattr, held, name, getattr(held, name))
    setattr(held, name, value)


def _to_float32(stack: ExitStack, network: nn.Module) -> None:
    for layer in network.modules():
        tables: tuple[dict[str, Any], ...] = layer._parameters, layer._buffers
        for held in tables:
            for name, weight in list(held.items()):
                if weight is None or not _is_less(weight.dtype):
                    continue
                if weight.is_inference():  # what lies in one made in inference mode cannot be exchanged
                    stack.callback(held.__setitem__, name, weight)
                    held[name] = _wider(weight)
                else:
                    stack.callback(_cast, weight, weight.dtype)
                    _cast(weight, torch.float32)


@torch.inference_mode(False)
def _wider(weight: Tensor) -> Any:
    wider = weight.detach().to(torch.float32, copy=True)
    return nn.Parameter(wider, requires_grad=False) if isinstance(weight, nn.Parameter) else wider


@torch.inference_mode(False)
def _cast(weight: Tensor, dtype: torch.dtype) -> None:
    weight.data = weight.data.to(dtype)


def _is_less(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype != torch.float64 and dtype != torch.float32


def _all_float32(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _float32(args), _float32(kwargs)


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if _is_less(value.dtype) else value
    if isinstance(value, dict):
        return {name: _float32(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_float32, value)) if type(value) in (list, tuple) else value
    return value

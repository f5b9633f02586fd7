"""Where our networks run, and the room that the host's memory manager makes for them.

The Forge family has a memory manager: it moves models off the card when it is told how much is needed. A1111 has none,
so there a network that does not fit stays on the CPU. Loads without torch: the settings page needs a name from here.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("dino_upscale")

OPTION_DEVICE: Final = "dino_upscale_device"
"""The settings page's choice: "Automatic" or "CPU"."""

_MANAGERS: Final = ("backend.memory_management", "ldm_patched.modules.model_management")
"""Forge and Forge Neo, then reForge and Forge Classic."""

_ROOM: Final = 1.3
"""Bytes asked for to one of weights, as the Forge family reckons for its own networks."""


def host_device() -> torch.device:
    """Where the host samples."""
    import torch
    from modules import shared

    return torch.device(shared.device)


def feature_device() -> torch.device:
    """Where the feature network runs: what the settings page says, else where the host samples."""
    import torch
    from modules import shared

    chosen = str(shared.opts.data.get(OPTION_DEVICE, "") or "Automatic")
    return host_device() if chosen == "Automatic" else torch.device(chosen.lower())


@contextmanager
def on_device(network: nn.Module | None, device: torch.device, what: str) -> Iterator[str]:
    """Have a network on `device` inside the block, and on the CPU afterwards.

    Room is asked for first. Where there is too little memory all the same, the network stays on the CPU.

    Args:
        network: None is none.
        device: where it is to run.
        what: its name in the sentence.

    Yields:
        A sentence about a network that stays on the CPU; else empty.
    """
    import torch

    if network is None or device.type == "cpu":
        yield ""
        return
    said = ""
    try:
        make_room(sum(weight.nbytes for weight in network.parameters()), device)
        try:
            _move(network, device)
        except torch.cuda.OutOfMemoryError:
            _move(network, torch.device("cpu"))
            said = f"There is too little memory on {device} for {what}; it runs on the CPU, which is slower."
            log.warning("%s", said)
        yield said
    finally:
        _move(network, torch.device("cpu"))
        collect()


def make_room(size: int, device: torch.device) -> None:
    """Ask the host for room for a network of `size` bytes on `device`, and for what a model call needs beside it."""
    manager = _manager()
    if manager is None:
        collect()
    else:
        manager.free_memory(_ROOM * size + manager.minimum_inference_memory(), device)


def collect() -> None:
    """Hand memory that nobody uses back to the card."""
    from modules import devices

    devices.torch_gc()


def pushes_out(vae: Any, shape: tuple[int, ...]) -> str:
    """Why a VAE of the Forge family cannot decode latents of `shape` beside the sampling model; empty if it can.

    Its memory manager makes room for what is asked for by moving other models off the card, and the sampling would
    then run on what was moved.
    """
    import torch

    device = torch.device(vae.device)
    manager = _manager()
    if device.type == "cpu" or manager is None:
        return ""  # nothing is moved for it, and what is short of memory there swaps
    if getattr(manager, "ALWAYS_VRAM_OFFLOAD", False) or manager.vram_state == manager.VRAMState.NO_VRAM:
        return "the WebUI is told to move models off the card whenever another one is used"
    weights = sum(w.nbytes for w in vae.first_stage_model.parameters() if w.device != device)
    least: float = manager.minimum_inference_memory()
    # As the manager reckons, and after that the sampling still needs its own.
    need = _ROOM * weights + max(least, vae.memory_used_decode(shape, vae.vae_dtype)) + least
    free = manager.get_free_memory(device)
    return "" if free >= need else f"it needs {need / 2**30:.1f} GiB of free memory, and {free / 2**30:.1f} are left"


def _manager() -> Any:
    """The Forge family's memory manager; None in A1111."""
    for name in _MANAGERS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _move(network: nn.Module, device: torch.device) -> None:
    import torch

    # Weights made or moved in inference mode could carry no gradients through the network.
    with torch.inference_mode(False):
        network.to(device)

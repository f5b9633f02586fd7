"""ComfyUI's way in; a WebUI starts at `scripts/dino_upscale.py`, the command line at `python -m lib_dino`."""

import importlib.util

# In a WebUI, and where tests are collected, there is no ComfyUI, and nothing happens.
if __package__ and importlib.util.find_spec("comfy_api") is not None:
    from .lib_dino.comfyui.nodes import comfy_entrypoint

    __all__ = ["comfy_entrypoint"]

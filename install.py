"""Run by the WebUI at its start: everything needed is there already, so this only says what is missing.

Nothing is ever installed over the host's own versions: its pins are exact, and a newer package breaks it.
"""

import importlib.util

NEEDED = ("torch", "safetensors", "numpy", "PIL")
ONE_OF = ("transformers", "timm")


def missing() -> list[str]:
    """Names of packages that a WebUI normally has and this one lacks."""
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if all(importlib.util.find_spec(name) is None for name in ONE_OF):
        lacking.append(" or ".join(ONE_OF))
    return lacking


if lacking := missing():
    print(f"DINO Upscale: this WebUI lacks {', '.join(lacking)}; DINO guidance will not work.")  # noqa: T201

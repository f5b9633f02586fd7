"""DINO Upscale: tiled img2img that keeps a picture's subject what it is.

Data flows one way; each arrow is a plain value::

    picture -> tiles.plan_tiles -> per tile: denoise, corrected by guidance -> blend.Canvas -> consistency -> picture

Conventions, pinned by `tests/test_conventions.py`:

- Images are `(B, 3, H, W)`, RGB, float, [0, 1]. Latents are `(B, C, h, w)` in the model's own scale.
  Feature grids are `(B, D, gh, gw)`.
- Height comes before width everywhere except in PIL's `.size`, which does not leave the edges.
- Names carry units: `tile_px`, `overlap_px`. Fractions are 0 to 1, never percent. Boxes are half-open.
- Functions run on their input's device and give back its dtype. Randomness comes from a generator
  passed in and is drawn on the CPU.
- Importing `lib_dino` imports no torch, no host and no network code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .pipeline import Result, compare, upscale
    from .run.progress import Progress
    from .settings import Settings

__all__ = ["Progress", "Result", "Settings", "__version__", "compare", "upscale"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for, so that planning needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"Settings": ".settings", "Progress": ".run.progress"}.get(name, ".pipeline")
    return getattr(import_module(home, __name__), name)

"""DINO Upscale: tiled img2img that keeps a picture's subject what it is.

The flow; each arrow is a plain frozen value::

    settings -> plan            sizes and tiles; the same call feeds the panel's line and every size check
             -> prepare         the cleaned source, its plain enlargement, what measures drift, what references lend
             -> sample tiles    for each batch: model.render(batch, corrector), retried where it drifts, blended
             -> finish          texture, loans of references, source consistency, mask, drift limit
             -> report          drift measured, figures, maps

Rooms, each importing from those above it alone::

    settings    every knob, declared once
    memory      memory that runs out: how to tell, and what to let go of
    arrays      whole pictures: in memory while small, else in files that vanish with them
    tiling/     where pixels lie; no network
    pictures/   files and pixels at the edge, and the text they carry
    networks/   a weights file to a frozen module
    measure/    how far two pictures are apart
    adapter/    cross-attention conditioning on DINO tokens
    references/ sharp pictures of the same thing: matched, aligned, lending their detail
    report/     figures and pictures of a finished run
    sampling/   img2img of a batch of tiles, corrected at each model call
    run/        one picture through its tiles
    resume/     finished tiles on disk, so that a job that was cut short goes on
    pipeline    `upscale()` and `compare()`
    cli/        the command line
    comfyui/    nodes for ComfyUI
    webui/      AUTOMATIC1111, Forge and their kin

I want to change ... -> open: how tiles overlap -> `tiling/plan`; what happens at a model call -> `sampling/correction`;
when a tile is retried -> `run/retry`; what counts as a fault -> `run/faults`; how references match ->
`references/matching`; the noise schedule -> `sampling/sampler`; a slider -> `settings`; what a WebUI calls ->
`webui/generation/entry`. `docs/architecture.md` has the whole table.

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

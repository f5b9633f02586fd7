"""Run by the WebUI at its start: adds the one package a WebUI may lack, and never moves what it has.

DINOv2 runs on `transformers` 4.32 or later, else on `timm`. WebUIs with an older `transformers` have `timm` through
open-clip, which does not promise it; so it is put there when it is missing, without anything it depends on: those
packages are the WebUI's own, at versions it pins, and a newer one breaks it.
"""

import importlib.util
import os

NEEDED = ("torch", "safetensors", "numpy", "PIL")
TIMM = "timm==1.0.14"  # runs with every torch and Python that the WebUIs pin


def there(name: str) -> bool:
    """Whether a package can be imported; it is not."""
    return importlib.util.find_spec(name) is not None


def runs_dinov2() -> bool:
    """Whether a library that knows DINOv2 is there, found without importing any."""
    spec = importlib.util.find_spec("transformers")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return any(os.path.isdir(os.path.join(place, "models", "dinov2")) for place in places) or there("timm")


def main() -> None:
    """Add what is missing, and say what stays so."""
    if not runs_dinov2():
        add_timm()
        importlib.invalidate_caches()
    lacking = [name for name in NEEDED if not there(name)]
    if not runs_dinov2():
        lacking.append(f"a library for DINOv2 (to add it by hand: pip install --no-deps {TIMM})")
    if lacking:
        print(f"DINO Upscale: this WebUI lacks {', '.join(lacking)}; DINO guidance will not work.")  # noqa: T201


def add_timm() -> None:
    """Ask the WebUI to install timm; with --skip-install, or outside of one, nothing happens."""
    try:
        import launch
    except ImportError:
        return
    try:
        launch.run_pip(f"install --no-deps {TIMM}", "timm for DINO Upscale")
    except Exception as error:  # whatever its pip fails with: the WebUI starts all the same
        print(f"DINO Upscale: timm could not be installed: {error}")  # noqa: T201


if __name__ == "__main__":
    main()

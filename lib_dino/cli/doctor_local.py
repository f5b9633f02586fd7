"""What the doctor asks of the environment it runs in: whether the command line can do its work."""

from __future__ import annotations

import importlib.util
import platform
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final

from ..pictures.infotext import parse_infotext
from ..settings import Settings
from .doctor import Check, Failed

NEEDED: Final = ("torch", "numpy", "pillow", "safetensors", "diffusers", "tqdm")
ONE_OF: Final = ("transformers", "timm")
_INSTALL: Final = "Run \"make demo\" once, or \"pip install -r requirements.txt\" in this environment."
_SMALL: Final = Settings(denoise=0.5, steps=4, seed=7, consistency=0.0, dino_enabled=False)


@dataclass
class Here:
    """This environment, and the pictures made in it so far."""

    results: dict[str, Any] = field(default_factory=dict)

    def upscaled(self, settings: Settings) -> Any:
        """The doctor's test picture, enlarged."""
        from ..pipeline import upscale
        from .doctor_visit import source

        return upscale(source(), settings)


def _python(here: Here) -> str:
    if sys.version_info < (3, 10):  # noqa: UP036 - what the code needs is not what somebody runs
        raise Failed(f"Python {platform.python_version()}", "Python 3.10 or later is needed: make PYTHON=python3.11")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _packages(here: Here) -> str:
    missing = [name for name in NEEDED if _version(name) is None]
    if missing:
        raise Failed(f"missing: {', '.join(missing)}", _INSTALL)
    return ", ".join(f"{name} {_version(name)}" for name in NEEDED)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _library(here: Here) -> str:
    found = [f"{name} {_version(name)}" for name in ONE_OF if importlib.util.find_spec(name) is not None]
    if not found:
        raise Failed(f"neither {' nor '.join(ONE_OF)} is there to run DINOv2", _INSTALL)
    return ", ".join(found)


def _features(here: Here) -> str:
    dino = _loaded("networks.dinov2").load_dinov2()
    return f"{dino.name} on {dino.backend}, {dino.depth} blocks of width {dino.dim}"


def _denoiser(here: Here) -> str:
    return str(_loaded("sampling.pixel_model").PixelTileModel().name)


def _loaded(name: str) -> Any:
    try:
        return import_module(f"..{name}", __package__)
    except (ImportError, OSError) as error:  # OSError: a library of the operating system is missing
        raise Failed(f"lib_dino.{name} does not load: {error}", _INSTALL) from error


def _upscale(here: Here) -> str:
    result = here.results["off"] = here.upscaled(_SMALL)
    height, width = result.picture.size
    if (width, height) != (80, 64):
        raise Failed(f"40x32 px, twice as large, became {width}x{height} px", "Please report it.")
    return f"40x32 -> {width}x{height} px in {result.report.seconds:.1f} s"


def _guidance(here: Here) -> str:
    off = here.results["off"].picture.pixels
    nought, full = (
        here.upscaled(_SMALL.replace(dino_enabled=True, dino_strength=s)).picture.pixels for s in (0.0, 1.0)
    )
    if not bool((nought == off).all()):
        raise Failed("strength 0 changes the picture", "Please report it.")
    if bool((full == off).all()):
        raise Failed("strength 1 changes nothing", "Please report it.")
    return f"strength 0 is bitwise off; 1 differs by {255 * float((full - off).abs().mean()):.2f} grey levels"


def _saved_text(here: Here) -> str:
    from ..pictures.files import read_settings_text

    with tempfile.TemporaryDirectory() as folder:
        path = here.results["off"].save(Path(folder) / "test.png")
        read = Settings.from_infotext(parse_infotext(read_settings_text(path)))
    if read != _SMALL:
        raise Failed("a saved picture does not give its settings back", "Please report it.")
    return "a saved picture gives its settings back"


CHECKS: Final[tuple[Check, ...]] = (
    Check("Python", _python),
    Check("packages", _packages, ("Python",)),
    Check("DINOv2 library", _library, ("Python",)),
    Check("feature network", _features, ("packages", "DINOv2 library")),
    Check("denoiser", _denoiser, ("packages",)),
    Check("small upscale", _upscale, ("denoiser",)),
    Check("guidance acts", _guidance, ("small upscale", "feature network")),
    Check("saved text", _saved_text, ("small upscale",)),
)

"""The doctor: a list of checks, each ok, failed with what to do about it, or skipped with why.

The checks here are of the command line's own environment; `doctor_webui` has those of a running WebUI.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import DinoError
from ..pictures.infotext import parse_infotext
from ..settings import Settings
from ..version import __version__

if TYPE_CHECKING:
    from PIL import Image

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
SOURCE_PX: Final = (40, 32)
"""Width and height of the test picture."""
_CHECK_WIDTH: Final = 20


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name.
        status: `OK`, `FAILED` or `SKIPPED`.
        detail: what was seen, one line.
        advice: what to do about a failure; empty otherwise.
    """

    check: str
    status: str
    detail: str
    advice: str = ""

    def lines(self) -> list[str]:
        """One or two lines to print."""
        first = f"{self.status:8} {self.check:{_CHECK_WIDTH}} {self.detail}"
        return [first, f"{'':8} {'':{_CHECK_WIDTH}} -> {self.advice}"] if self.advice else [first]


class Failed(Exception):  # noqa: N818 - a finding, not a fault of ours
    """Raised by a check: what is wrong and what to do about it."""

    def __init__(self, detail: str, advice: str = "Please report it.") -> None:
        super().__init__(detail)
        self.advice = advice


class Skipped(Exception):  # noqa: N818
    """Raised by a check that cannot be made: why."""


@dataclass(frozen=True)
class Check:
    """One question.

    Attributes:
        name: for the report.
        ask: given what the checks before it left, says what it saw; or raises `Failed` or `Skipped`.
        needs: names of checks that must have been ok, else this one is skipped.
    """

    name: str
    ask: Callable[[Any], str]
    needs: tuple[str, ...] = ()

    def finding(self, subject: Any) -> Finding:
        """Ask about `subject`."""
        try:
            return Finding(self.name, OK, self.ask(subject))
        except Skipped as why:
            return Finding(self.name, SKIPPED, str(why))
        except (Failed, DinoError) as error:
            return Finding(self.name, FAILED, str(error), getattr(error, "advice", ""))


def examine(checks: Sequence[Check], subject: Any) -> Iterator[Finding]:
    """The findings, one by one; every check comes exactly once, whatever happens to those before it."""
    passed: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name not in passed]
        if missing:
            yield Finding(check.name, SKIPPED, f"needs: {', '.join(missing)}")
            continue
        finding = check.finding(subject)
        if finding.status == OK:
            passed.add(check.name)
        yield finding


def report(findings: Iterator[Finding], *, say: Callable[[str], None], as_json: bool, **about: Any) -> int:
    """Say each finding as it comes, or all at the end as JSON.

    Returns:
        The exit code: 0 when nothing failed, 1 otherwise.
    """
    collected = []
    for finding in findings:
        collected.append(finding)
        for line in () if as_json else finding.lines():
            say(line)
    counts = {status: sum(f.status == status for f in collected) for status in (OK, FAILED, SKIPPED)}
    if as_json:
        checks = [asdict(finding) for finding in collected]
        say(json.dumps({"version": __version__, **about, "ok": not counts[FAILED], "checks": checks}, indent=2))
    else:
        say(", ".join(f"{count} {status}" for status, count in counts.items() if count) + ".")
    return 1 if counts[FAILED] else 0


def sample_picture() -> Image.Image:
    """A house under the sun, of `SOURCE_PX`: something for features to see."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", SOURCE_PX, (120, 160, 220))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 20, 40, 32), fill=(60, 120, 50))
    draw.ellipse((3, 2, 12, 11), fill=(250, 220, 90))
    draw.rectangle((20, 12, 33, 26), fill=(170, 60, 50))
    draw.polygon([(18, 12), (26, 4), (35, 12)], fill=(70, 40, 40))
    return image


# ---------------------------------------------------------------- the command line's own environment

NEEDED: Final = ("torch", "numpy", "pillow", "safetensors", "diffusers", "tqdm")
ONE_OF: Final = ("transformers", "timm")
_INSTALL: Final = "Run \"make demo\" once, or \"pip install -r requirements-standalone.txt\" in this environment."
_SMALL: Final = Settings(denoise=0.5, steps=4, seed=7, consistency=0.0, dino_enabled=False)


@dataclass
class Here:
    """This environment, and the pictures made in it so far."""

    results: dict[str, Any] = field(default_factory=dict)

    def upscaled(self, settings: Settings) -> Any:
        """The doctor's test picture, enlarged."""
        from ..pipeline import upscale

        return upscale(sample_picture(), settings)


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
    present = [f"{name} {_version(name)}" for name in ONE_OF if importlib.util.find_spec(name) is not None]
    if not present:
        raise Failed(f"neither {' nor '.join(ONE_OF)} is there to run DINOv2", _INSTALL)
    return ", ".join(present)


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
    if (width, height) != (2 * SOURCE_PX[0], 2 * SOURCE_PX[1]):
        raise Failed(f"40x32 px, twice as large, became {width}x{height} px")
    return f"40x32 -> {width}x{height} px in {result.report.seconds:.1f} s"


def _guidance(here: Here) -> str:
    off = here.results["off"].picture.pixels
    none, full = (here.upscaled(_SMALL.replace(dino_enabled=True, dino_strength=s)).picture.pixels for s in (0.0, 1.0))
    if not bool((none == off).all()):
        raise Failed("strength 0 changes the picture")
    if bool((full == off).all()):
        raise Failed("strength 1 changes nothing")
    return f"strength 0 is bitwise off; 1 differs by {255 * float((full - off).abs().mean()):.2f} grey levels"


def _saved_text(here: Here) -> str:
    from ..pictures.files import read_settings_text

    with tempfile.TemporaryDirectory() as folder:
        path = here.results["off"].save(Path(folder) / "test.png")
        saved = Settings.from_infotext(parse_infotext(read_settings_text(path)))
    if saved != _SMALL:
        raise Failed("a saved picture does not give its settings back")
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

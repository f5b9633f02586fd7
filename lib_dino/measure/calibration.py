"""Calibration of one feature network: drift thresholds and the edit detector, kept beside its weights.

`training/calibrate.py` writes both for any DINOv2. A network without a calibration is measured by stated, careful
defaults, and has no detector.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from ..errors import ModelError
from ..networks.dinov2 import Dinov2, fingerprint
from ..networks.edit_detector import EditDetector, load_detector

VERSION: Final = 1


@dataclass(frozen=True)
class Thresholds:
    """From where on drift above the floor, and edit probability, count for one feature network.

    Attributes:
        bound: weighted patch drift that one patch in a hundred of honest results exceeds.
        invented: weighted patch drift that half of all plainly visible inventions exceed; for colour scales.
        alarm: a tile's edit probability from which on it is reported, 0 to 1; None where there is no detector.
        measured: whether they were fitted for this network, or are the defaults.
    """

    bound: float = 0.1
    invented: float = 0.5
    alarm: float | None = None
    measured: bool = False

    @property
    def note(self) -> str:
        """For the report: where the thresholds come from; empty when they were measured."""
        if self.measured:
            return ""
        return (
            "Drift thresholds are careful defaults, not measured for this feature network: "
            "`make calibrate FEATURES=... PHOTOS=...` fits them."
        )


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and the detector where there is one."""

    thresholds: Thresholds = Thresholds()
    detector: EditDetector | None = None


def files_beside(weights: Path) -> tuple[Path, Path]:
    """Paths of the calibration and the detector of the network in `weights`."""
    stem = "" if weights.name == "model.safetensors" else f"{weights.stem}."
    return weights.with_name(f"{stem}calibration.json"), weights.with_name(f"{stem}detail_head.safetensors")


_loaded: WeakKeyDictionary[Dinov2, tuple[tuple[Any, ...], Calibration]] = WeakKeyDictionary()


def load_calibration(dino: Dinov2) -> Calibration:
    """The calibration beside the weights of `dino`, or the defaults where there is none.

    Its files are read once for each network, and again when they change.

    Raises:
        ModelError: a file is damaged, or belongs to another network.
    """
    if dino.path is None:
        return Calibration()
    files = files_beside(dino.path)
    state = (dino.positions.device, *((f.stat().st_mtime_ns, f.stat().st_size) if f.is_file() else None for f in files))
    known, calibration = _loaded.get(dino, (None, Calibration()))
    if known != state:
        calibration = _read(*files, dino) if files[0].is_file() else Calibration()
        _loaded[dino] = state, calibration
    return calibration


def _read(settings: Path, detector: Path, dino: Dinov2) -> Calibration:
    try:
        stored: dict[str, Any] = json.loads(settings.read_text(encoding="utf-8"))
        belongs = stored["version"] == VERSION and stored["network"] in (fingerprint(dino), _norm_fingerprint(dino))
        values = stored["thresholds"]
        limits = Thresholds(float(values["bound"]), float(values["invented"]), values["alarm"], measured=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{settings} is no calibration ({error!r}). Delete it or run `make calibrate`.") from error
    if not belongs:
        raise ModelError(f"{settings} was made for another network than {dino.name}. Delete it or calibrate anew.")
    return Calibration(limits, load_detector(detector, dino) if limits.alarm is not None else None)


def _norm_fingerprint(dino: Dinov2) -> str:
    """The fingerprint in calibrations that 0.1.0 wrote."""
    return hashlib.sha256(dino.norm.weight.detach().cpu().half().numpy().tobytes()).hexdigest()[:16]


def save_thresholds(path: Path, dino: Dinov2, thresholds: Thresholds, figures: dict[str, Any]) -> None:
    """Write a calibration file; `figures` says how it came about and changes nothing."""
    values = {key: value for key, value in asdict(thresholds).items() if key != "measured"}
    stored = {"version": VERSION, "network": fingerprint(dino), "thresholds": values, "measured": figures}
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")

"""A finished batch of tiles as bytes, and back: exact pixels, every figure, and a checksum over all of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..measure.calibration import Thresholds
from ..measure.drift import TileDrift
from ..run.retry import Attempt, AttemptSettings, Candidates
from ..run.tiles import SampledBatch
from ..tiling.plan import Tile

_DIGEST: Final = 32
_FIGURES: Final = "figures"
_NOT_FIGURES: Final = frozenset({"tile", "settings", "image", "drift"})
_MAPS: Final = ("patches", "weight", "edit_map")


def to_bytes(batch: SampledBatch) -> bytes:
    """A batch as safetensors, its figures among them as JSON, followed by a checksum."""
    tensors: dict[str, Tensor] = {}
    tiles = []
    for i, candidates in enumerate(batch.candidates):
        attempts = []
        for j, attempt in enumerate(candidates.attempts):
            attempts.append(_attempt_figures(attempt, tensors, f"{i}.{j}"))
        tiles.append({"tile": dataclasses.astuple(candidates.tile), "attempts": attempts})
    figures = {"tiles": tiles, "calls": batch.calls, "splits": batch.splits, "redone": batch.redone}
    tensors[_FIGURES] = torch.frombuffer(bytearray(json.dumps(figures).encode()), dtype=torch.uint8)
    data = save(tensors)
    return data + hashlib.blake2b(data, digest_size=_DIGEST).digest()


def from_bytes(data: bytes) -> SampledBatch | None:
    """The batch in what `to_bytes` made; None where a single bit is not as it was."""
    body, checksum = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != checksum:
        return None
    try:
        tensors = load(body)
        figures = json.loads(bytes(tensors[_FIGURES].tolist()))
        candidates = tuple(
            Candidates(tuple(
                _attempt(Tile(*each["tile"]), attempt, tensors, f"{i}.{j}")
                for j, attempt in enumerate(each["attempts"])
            ))
            for i, each in enumerate(figures["tiles"])
        )  # fmt: skip
        return SampledBatch(candidates, figures["calls"], figures["splits"], figures["redone"])
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _attempt_figures(attempt: Attempt, tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    values = {f.name: getattr(attempt, f.name) for f in dataclasses.fields(Attempt) if f.name not in _NOT_FIGURES}
    tensors[f"{name}.image"] = attempt.image.detach().cpu().clone(memory_format=torch.contiguous_format)
    values["settings"] = dataclasses.asdict(attempt.settings)
    values["drift"] = None if attempt.drift is None else _drift_figures(attempt.drift, tensors, name)
    return values


def _drift_figures(drift: TileDrift, tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    for each in _MAPS:
        if (values := getattr(drift, each)) is not None:
            tensors[f"{name}.{each}"] = values.detach().cpu().clone(memory_format=torch.contiguous_format)
    return {
        "mean": drift.mean, "worst": drift.worst, "baseline": drift.baseline,
        "thresholds": dataclasses.asdict(drift.thresholds), "size": drift.size,
        "rows": (drift.rows.start, drift.rows.stop), "cols": (drift.cols.start, drift.cols.stop),
    }  # fmt: skip


def _attempt(tile: Tile, values: dict[str, Any], tensors: dict[str, Tensor], name: str) -> Attempt:
    figures = {key: value for key, value in values.items() if key not in _NOT_FIGURES}
    return Attempt(
        tile, AttemptSettings(**values["settings"]), tensors[f"{name}.image"],
        drift=None if values["drift"] is None else _drift(values["drift"], tensors, name), **figures,
    )  # fmt: skip


def _drift(values: dict[str, Any], tensors: dict[str, Tensor], name: str) -> TileDrift:
    maps = {each: tensors.get(f"{name}.{each}") for each in _MAPS}
    given = {"size": tuple(values["size"]), "rows": slice(*values["rows"]), "cols": slice(*values["cols"])}
    return TileDrift(**{**values, **maps, **given, "thresholds": Thresholds(**values["thresholds"])})

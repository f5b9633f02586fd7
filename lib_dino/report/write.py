"""The files of a report: figures, page, map and worst places."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..pictures.files import new_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pictures.picture import Picture
    from .maps import Heat
    from .records import Report


def page_beside(figures: Path) -> Path:
    """The page that goes with a file of figures: NAME.json has NAME_report.html."""
    return figures.with_name(f"{figures.stem}_report.html")


def write_report(
    report: Report, heats: Sequence[Heat], source: Picture, result: Picture, *, name: str,
    figures: Path | None = None, page: Path | None = None, drift_map: Path | None = None, worst: Path | None = None,
    force: bool = False,
) -> None:  # fmt: skip
    """Write those files of a report that are named, each whole or not at all.

    Args:
        heats: maps, the more telling first.
        name: of the picture, for the page's heading.
        figures, page, drift_map, worst: JSON, HTML, and two PNG files.
        force: existing files may be replaced.

    Raises:
        ImageError: a file exists or cannot be written.
    """
    from .crops import worst_sheet
    from .heatmap import heatmap
    from .page import html_report

    if figures:
        _write(figures, json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n", force)
    if page:
        _write(page, html_report(name, source, result, heats, report), force)
    if drift_map:
        _write(drift_map, heatmap(result, next(iter(heats), None), report), force)
    if worst:
        _write(worst, worst_sheet(source, result, report), force)


def _write(path: Path, content: str | Image, force: bool) -> None:
    with new_file(path, force) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            content.save(temporary, "PNG")

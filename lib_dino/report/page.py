"""A report as one page: picture, drift map, worst places, tiles, settings; opens from disk, asks no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from PIL import Image

from ..pictures.picture import Picture
from ..settings import knobs
from .crops import NOTHING, worst_crops
from .heatmap import LIMITS, PLASMA, TITLES, overlay
from .maps import Heat
from .records import Report, TileReport
from .side_by_side import seen_whole

PAGE: Final = Path(__file__).with_name("page.html")
PICTURE_PX: Final = 4096
MAP_PX: Final = 1536
"""Longest sides of what the page carries; larger ones are made smaller."""

_COLUMNS: Final[tuple[tuple[str, Callable[[TileReport], float | None], str], ...]] = (
    ("x", lambda t: t.box[1], "d"),
    ("y", lambda t: t.box[0], "d"),
    ("score", lambda t: t.score, ".3f"),
    ("edit probability", lambda t: t.edit_probability, ".2f"),
    ("over bound", lambda t: t.over_bound, ".1%"),
    ("above floor", lambda t: t.drift_above, ".4f"),
    ("drift", lambda t: t.drift, ".4f"),
    ("drift at first", lambda t: t.drift_first, ".4f"),
    ("floor", lambda t: t.drift_enlarged, ".4f"),
    ("guidance", lambda t: t.guidance, ".3f"),
    ("tries", lambda t: t.tries, "d"),
    ("kept", lambda t: t.kept, "d"),
    ("blended", lambda t: t.blended, ".1%"),
    ("skipped", lambda t: int(t.skipped), "d"),
    ("denoise", lambda t: t.denoise, ".2f"),
    ("seed", lambda t: t.seed, "d"),
    ("seconds", lambda t: t.seconds, ".2f"),
)


def html_report(
    name: str, source: Picture, result: Picture, heats: Sequence[Heat], report: Report
) -> str:
    """The page.

    Args:
        name: of the picture, for the heading; any text.
        heats: maps to choose from, the first is shown at first; none when drift was not measured.
    """
    height, width = report.result_size
    source_height, source_width = report.source_size
    parts = {
        "TITLE": f"{escape(name)} - DINO Upscale report",
        "HEADING": escape(name),
        "SUBTITLE": escape(
            f"{source_width} x {source_height} to {width} x {height} px, {len(report.tiles)} tiles, "
            f"{report.model_calls} model calls with {report.model}, features {report.features or 'off'}"
        ),
        "WIDTH": str(width),
        "HEIGHT": str(height),
        "FIGURES": "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in _figures(report)),
        "NOTES": "".join(f"<p>{escape(note)}</p>" for note in report.notes),
        "SOURCE": _data(seen_whole(source, most_px=PICTURE_PX), "JPEG"),
        "RESULT": _data(seen_whole(result, most_px=PICTURE_PX), "JPEG"),
        "MAP": "".join(_map(heat, report.result_size) for heat in heats),
        "KINDS": _kinds(heats),
        "SCALE": "".join(_scale(heat) for heat in heats) or _NOT_MEASURED,
        "GRADIENT": f"linear-gradient(90deg, {', '.join(f'rgb{colour}' for colour in PLASMA)})",
        "RECTS": "".join(_rect(n, tile) for n, tile in enumerate(report.tiles, start=1)),
        "WORST": _worst(source, result, report),
        "HEADS": "".join(
            f'<th scope="col"><button type="button">{escape(title)}</button></th>'
            for title in ("tile", *(title for title, _, _ in _COLUMNS))
        ),
        "ROWS": "\n".join(_row(n, tile) for n, tile in enumerate(report.tiles, start=1)),
        "SETTINGS": "".join(
            f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>" for label, value in _settings(report)
        ),
    }
    page = PAGE.read_text(encoding="utf-8")
    # One pass, so that what a name or a note says is never taken for a place to fill.
    pieces = page.split("{{")
    filled = (parts[key] + rest for key, _, rest in (piece.partition("}}") for piece in pieces[1:]))
    # Names of files may hold bytes that are no text.
    return (pieces[0] + "".join(filled)).encode("utf-8", "backslashreplace").decode("utf-8")


_NOT_MEASURED: Final = "<p>Drift was not measured in this picture, so there is no map.</p>"


def _figures(report: Report) -> list[tuple[str, str]]:
    measured = []
    if report.drift_above is not None and report.bound is not None:
        kind = {"asked": "as asked", "fitted": "fitted to the network"}.get(report.bound_kind or "", "default")
        measured = [
            ("mean drift above plain enlargement", f"{report.drift_above:.4f}"),
            ("worst patch", f"{report.drift_worst_patch:.2f}"),
            (f"of patches over the bound of {report.bound:.2g} ({kind})", f"{report.over_bound or 0.0:.1%}"),
            (f"of {len(report.tiles)} tiles raise an alarm", str(report.alarms)),
        ]
    psnr = report.source_psnr
    return [
        *measured,
        ("times the detail of plain enlargement", f"{report.detail:.2f}"),
        ("made small again, against the source", "equal" if psnr == float("inf") else f"{psnr:.1f} dB"),
        ("in all", f"{report.seconds:.1f} s"),
    ]


def _data(image: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 92, "subsampling": 0} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _map(heat: Heat, result_size: tuple[int, int]) -> str:
    shrink = min(1.0, MAP_PX / max(result_size))
    layer = overlay(heat, (max(1, round(result_size[0] * shrink)), max(1, round(result_size[1] * shrink))))
    return f'<img class="map" data-kind="{heat.kind}" alt="{TITLES[heat.kind]}" src="{_data(layer, "PNG")}">'


def _kinds(heats: Sequence[Heat]) -> str:
    """A choice between maps, where there is one."""
    if len(heats) < 2:
        return ""
    options = "".join(f'<option value="{heat.kind}">{TITLES[heat.kind]}</option>' for heat in heats)
    return f'<label>Shows <select id="kind">{options}</select></label>'


def _scale(heat: Heat) -> str:
    at, word = 100 * heat.limit / heat.top, LIMITS[heat.kind]
    return (
        f'<div class="legend" data-kind="{heat.kind}"><div class="scale"><i></i><u style="left:{at:.1f}%"></u>'
        f'<span class="first" style="left:0">0</span><span style="left:{at:.1f}%">{word} {heat.limit:.2g}</span>'
        f'<span class="last" style="left:100%">{heat.top:.2g}</span></div><p class="soft">{TITLES[heat.kind]}. '
        f"Outlined places are over the {word}; where nothing was found the picture shows as it is.</p></div>"
    )


def _rect(number: int, tile: TileReport) -> str:
    y0, x0, y1, x1 = tile.box
    return f'<rect data-tile="{number}" x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}"/>'


def _worst(source: Picture, result: Picture, report: Report) -> str:
    rows = []
    for number, (patch, before, after) in enumerate(worst_crops(source, result, report), start=1):
        y0, x0, _, _ = patch.box
        images = "".join(
            f'<img alt="{alt}" width="{image.width}" height="{image.height}" src="{_data(image, "PNG")}">'
            for alt, image in (("The enlarged source", before), ("The result", after))
        )
        probability = "" if patch.edit_probability is None else f", edit probability {patch.edit_probability:.2f}"
        caption = f"{number}: drift {patch.drift:.2f}{probability} at x {x0}, y {y0}; enlarged source and result"
        rows.append(f"<figure><figcaption>{caption}</figcaption><div>{images}</div></figure>")
    if rows:
        calm = "" if report.alarms or report.over_bound else "<p>Nothing in this picture is over the bound.</p>"
        return f'{calm}<div class="pairs">{"".join(rows)}</div>'
    return _NOT_MEASURED if report.drift_above is None else f"<p>{NOTHING}</p>"


def _row(number: int, tile: TileReport) -> str:
    cells = [_cell(number, "d")]
    for title, value, form in _COLUMNS:
        cells.append(_cell(value(tile), form, over=tile.alarm and title in ("score", "edit probability")))
    return f'<tr data-tile="{number}">{"".join(cells)}</tr>'


def _cell(value: float | None, form: str, *, over: bool = False) -> str:
    if value is None:
        return '<td data-v="">-</td>'
    kind = ' class="over"' if over else ""
    return f'<td data-v="{value:.10g}"{kind}>{value:{form}}</td>'


def _settings(report: Report) -> list[tuple[str, str]]:
    labels: dict[str, Any] = {name: knob.label for name, knob in knobs().items()}
    return [(labels.get(name, name), str(value)) for name, value in report.settings.items()]

"""Write the tables of `docs/settings.md`, and the rows of README's table, from the declarations.

    python -m docs.settings_table
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from lib_dino.declarations import GROUPS, Knob
from lib_dino.settings import PRESETS
from lib_dino.webui_settings import in_group

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = (ROOT / "docs" / "settings.md", ROOT / "README.md")
COLUMNS: Final = ("setting", "in the panel", "flag", "default", "allowed", "what it does")
_TABLE: Final = re.compile(r"(<!-- settings table.*?-->\n)(.*?)(\n<!-- end of settings table -->)", re.S)
_PRESETS: Final = re.compile(r"(<!-- presets.*?-->\n)(.*?)(\n<!-- end of presets -->)", re.S)


def declared() -> dict[str, Knob]:
    """Every setting but the switch and retired ones, by name, group by group."""
    return {knob.name: knob for group in GROUPS for knob in in_group(group)}


def row(knob: Knob, columns: tuple[str, ...] = COLUMNS) -> str:
    """A setting's line of a table with `columns`."""
    default = f"`{knob.panel_default if knob.webui_only else knob.default}`"
    cells = {
        "setting": f"`{knob.name}`",
        "in the panel": knob.label,
        "flag": "" if knob.webui_only else f"`{knob.flag}`",
        "default": "" if default in ("``", "`()`") else default,
        "allowed": "one of the list" if knob.webui_only and knob.widget == "dropdown" else knob.limit(),
        "what it does": knob.help,
    }
    return f"| {' | '.join(cells[column] for column in columns)} |"


def table(names: list[str], columns: tuple[str, ...] = COLUMNS) -> str:
    """A table of the settings `names`."""
    knobs = declared()
    head = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*head, *(row(knobs[name], columns) for name in names)])


def presets_table() -> str:
    """A table of the presets' values."""
    names = list(next(iter(PRESETS.values())))
    head = [f"| preset | {' | '.join(f'`{name}`' for name in names)} |", f"| --- |{' --- |' * len(names)}"]
    rows = [f"| {name} | {' | '.join(str(values[key]) for key in names)} |" for name, values in PRESETS.items()]
    return "\n".join([*head, *rows])


def shown_in(page: str) -> tuple[list[str], tuple[str, ...]]:
    """The settings and columns of a page's table."""
    found = _TABLE.search(page)
    assert found, "the page has no `<!-- settings table -->` and `<!-- end of settings table -->`"
    head, _, *rows = found.group(2).splitlines()
    names = re.findall(r"^\| `(\w+)`", "\n".join(rows), re.M)
    return names, tuple(cell.strip() for cell in head.strip("|").split("|"))


def renewed(page: str, *, complete: bool) -> str:
    """A page with its tables as the declarations have them, of all settings or of those that it shows."""
    names, columns = shown_in(page)
    settings = table(list(declared()) if complete else names, columns)
    page = _TABLE.sub(lambda found: found.group(1) + settings + found.group(3), page)
    return _PRESETS.sub(lambda found: found.group(1) + presets_table() + found.group(3), page)


if __name__ == "__main__":
    for path in PAGES:
        text = renewed(path.read_text(encoding="utf-8"), complete=path == PAGES[0])
        path.write_text(text, encoding="utf-8", newline="\n")

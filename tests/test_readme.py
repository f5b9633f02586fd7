import re
from pathlib import Path

import pytest

from docs.settings_table import COLUMNS, PAGES, declared, presets_table, renewed, shown_in, table
from lib_dino.settings import knobs
from lib_dino.webui_settings import RETIRED, all_knobs

SETTINGS, README = PAGES


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_page_of_settings_is_what_the_code_declares():
    assert read(SETTINGS) == renewed(read(SETTINGS), complete=True), "python -m docs.settings_table mends it"
    assert table(list(declared())) in read(SETTINGS) and presets_table() in read(SETTINGS)
    assert set(declared()) == set(all_knobs()) - {"enabled", *RETIRED} >= set(knobs())


def test_the_rows_of_settings_in_the_readme_are_what_the_code_declares():
    names, columns = shown_in(read(README))
    assert names and set(columns) <= set(COLUMNS)
    assert read(README) == renewed(read(README), complete=False), "python -m docs.settings_table mends it"


@pytest.mark.parametrize(("was", "now"), [("0 to 1 |", "0 to 2 |"), ("`0.5`", "`0.6`"), ("--denoise", "--noise")])
def test_a_row_that_differs_from_its_declaration_is_noticed(was, now):
    for page, complete in ((read(SETTINGS), True), (read(README), False)):
        assert renewed(page.replace(was, now, 1), complete=complete) == renewed(page, complete=complete)
        assert page.replace(was, now, 1) != page


def test_the_first_code_block_is_the_two_commands():
    first = re.search(r"```sh\n(.*?)```", read(README), re.S)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first.group(1).splitlines()] == ["make demo", "make test"]


def test_the_python_example_runs_as_written(tmp_path, monkeypatch):
    import torch
    from PIL import Image

    code = re.search(r"```python\n(.*?)```", read(README), re.S)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    noise = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(0))
    Image.fromarray((255 * noise).byte().numpy()).save("photo.jpg")
    exec(code.group(1), {})
    with Image.open("photo_x2.png") as made:
        assert made.size == (64, 48)
        assert "DINO denoise: 0.25" in made.info["parameters"]

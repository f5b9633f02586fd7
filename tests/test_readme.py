import dataclasses
import re
from pathlib import Path

from lib_dino.cli.batch import flag_of
from lib_dino.settings import PRESETS, Settings, knobs

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    """The README's table as the declarations have it."""
    rows = ["| setting | flag | default | allowed | what it does |", "| --- | --- | --- | --- | --- |"]
    for field in dataclasses.fields(Settings):
        knob = knobs()[field.name]
        default = "`-`" if field.default == "" else f"`{field.default}`"
        limit = "`True`, `False`" if isinstance(field.default, bool) else knob.limit()
        rows.append(f"| `{field.name}` | `{flag_of(field.name)}` | {default} | {limit} | {knob.help} |")
    return "\n".join(rows)


def test_the_settings_table_is_what_the_code_declares():
    text = README.read_text(encoding="utf-8")
    shown = re.search(r"<!-- settings table.*?-->\n(.*?)\n?<!-- end of settings table -->", text, re.S)
    assert shown is not None
    assert shown.group(1) == settings_table(), f"the table should be:\n{settings_table()}"


def test_the_presets_are_described_as_they_are():
    text = README.read_text(encoding="utf-8")
    for name, values in PRESETS.items():
        strength, steps = values["dino_strength"], values["steps"]
        assert re.search(rf"\*{name}\* \(.*?{values['denoise']}, .*?{strength}, {steps}", text)


def test_the_first_code_block_is_the_two_commands():
    first = re.search(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first.group(1).splitlines()] == ["make demo", "make test"]


def test_the_python_example_runs_as_written(tmp_path, monkeypatch):
    import torch
    from PIL import Image

    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    noise = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(0))
    Image.fromarray((255 * noise).byte().numpy()).save("photo.jpg")
    exec(code.group(1), {})
    with Image.open("photo_x2.png") as made:
        assert made.size == (64, 48)
        assert "DINO denoise: 0.25" in made.info["parameters"]

"""The panels in the Gradio of each host, in environments of their own: `make test` makes them."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib_dino.settings import PRESETS
from lib_dino.webui.panel.arguments import FIELDS, HOST_KNOBS, all_knobs, default

ROOT = Path(__file__).parents[3]
VERSIONS = {"3": "3.41.2", "4": "4.40.0"}
DROPDOWN, IMG2IMG, TXT2IMG = "DinoUpscale img2img", "DinoUpscaleAlwaysOn img2img", "DinoUpscaleAlwaysOn txt2img"
PANELS = (DROPDOWN, IMG2IMG, TXT2IMG)


@pytest.fixture(scope="module", params=sorted(VERSIONS))
def built(request):
    """What building all panels found, in one Gradio."""
    folder = Path(f"{sys.prefix}-gradio{request.param}")
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.is_file():
        pytest.skip(f"{folder.name} is not there: make test makes it")
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), "-W", "ignore", str(ROOT / "tests" / "panels" / "page.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["version"] == VERSIONS[request.param]
    return found


def arguments(built, panel):
    """Facts about the arguments, by setting."""
    return dict(zip(FIELDS, built["panels"][panel]["arguments"], strict=True))


def test_three_panels_are_built_without_torch(built):
    assert set(built["panels"]) == set(PANELS)
    assert not built["torch"]


@pytest.mark.parametrize("panel", PANELS)
def test_every_argument_in_its_place_has_label_limits_default_and_tooltip_of_its_setting(built, panel):
    for name, widget in arguments(built, panel).items():
        knob = all_knobs()[name]
        assert widget["tooltip"] is None if name == "enabled" else widget["tooltip"].startswith(knob.help)
        if name == "enabled":
            assert widget["value"] is (panel == DROPDOWN)
            continue
        assert (widget["label"], widget["value"]) == (knob.label, default(name))
        if knob.high is not None:
            # Steps of 0 take the tab's own; of the others the value that leaves them open is the lowest.
            lowest = 0 if name == "steps" else knob.low if knob.unset is None else knob.unset
            assert (widget["minimum"], widget["maximum"]) == (lowest, knob.high), name
        if widget["type"] == "Slider":
            assert widget["step"] == knob.step


@pytest.mark.parametrize("panel", PANELS)
def test_choices_are_the_hosts_own(built, panel):
    found = arguments(built, panel)
    assert found["upscaler"]["choices"] == ["None", "Lanczos", "ESRGAN_4x"]
    assert found["sampler_name"]["choices"][1:] == ["Euler a", "DPM++ 2M", "DDIM"]
    assert found["scheduler"]["choices"][1:] == ["Automatic", "Karras"]
    assert found["preset"]["choices"][1:] == list(PRESETS)
    assert {HOST_KNOBS[n].label for n in ("upscaler", "sampler_name")} <= {w["label"] for w in found.values()}


@pytest.mark.parametrize("panel", PANELS)
def test_labels_are_given_once_in_a_panel(built, panel):
    labels = [widget["label"] for widget in built["panels"][panel]["arguments"]]
    assert all(labels) and len(set(labels)) == len(labels)


def test_no_two_components_share_an_entry_of_the_hosts_saved_defaults(built):
    # The host's key is the script file, the tab and the label.
    kinds = ("Slider", "Radio", "Checkbox", "Textbox", "Number", "Dropdown")
    saved = [w for w in built["everything"] if w["type"] in kinds and w["saved"]]
    entries = [("txt2img" in w["elem_id"], w["label"]) for w in saved]
    assert len(entries) > 2 * 15
    assert len(set(entries)) == len(entries)


def test_ids_are_given_once(built):
    ids = [w["elem_id"] for w in built["everything"]]
    assert len(set(ids)) == len(ids)


def test_building_again_for_the_apis_defaults_gives_the_same(built):
    for panel in PANELS:
        assert built["same"][panel] == built["panels"][panel]["arguments"]


@pytest.mark.parametrize("panel", PANELS)
def test_every_control_that_changes_the_line_is_heard_and_the_script_of_the_page_runs_first(built, panel):
    ids = dict(zip(FIELDS, built["panels"][panel]["ids"], strict=True))
    quiet = {"enabled", "upscaler", "dino_model", "adapter", "preset", "seed", "drift_map", "save_report"}
    for name in set(FIELDS) - quiet:
        heard = [e for e in built["events"] if e[0] == ids[name] and e[1] == "change"]
        assert len(heard) == 1, name
        assert f"'{panel.split()[1]}'" in heard[0][4]
        # The line sees every control, in one order, behind what the page says of the tab.
        assert heard[0][2][1:] == [ids[n] for n in FIELDS if n not in quiet]


@pytest.mark.parametrize("panel", PANELS)
def test_the_line_answers_what_the_page_says(built, panel):
    text = built["answers"][panel]["summary"]
    assert "640 x 480 becomes 1280 x 960 px: 6 tiles of 512 x 512 px, 42 model calls" in text
    tab = json.loads(html.unescape(re.search(r'data-tab="([^"]*)"', text).group(1)))
    assert tab == {"width": 640, "height": 480, "steps": 30, "sampler": "Euler a"}
    assert 'data-lefts="0,384,768"' in text and 'data-tops="0,448"' in text


@pytest.mark.parametrize("panel", PANELS)
def test_a_preset_fills_in_its_values(built, panel):
    filled = [update["value"] for update in built["answers"][panel]["filled"]]
    assert filled == list(PRESETS["creative"].values())


def test_what_is_pasted_goes_into_every_control(built):
    for panel, own in ((DROPDOWN, 0), (TXT2IMG, 1)):
        found = arguments(built, panel)
        wanted = {w["elem_id"] for name, w in found.items() if name not in ("enabled", "seed")}
        pasted = [elem_id for elem_id, _ in built["panels"][panel]["pasted"]]
        assert set(pasted[own:]) == wanted and len(pasted) == len(wanted) + own
        assert set(built["panels"][panel]["paste_names"]) == {k.key for k in all_knobs().values() if k.key}


def test_the_settings_page_is_declared(built):
    assert {"dino_upscale_model", "dino_upscale_folder", "dino_upscale_device"} <= set(built["options"])
    assert all(option["label"] for option in built["options"].values())

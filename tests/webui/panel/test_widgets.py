"""The panels in the Gradio of each host, in environments of their own: `make test` makes them."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib_dino.declarations import FOLDED_GROUPS, GROUPS
from lib_dino.settings import PRESETS
from lib_dino.webui.panel.panel import fold_label
from lib_dino.webui.panel.size_modes import CLEARABLE, SIZE_MODES, mode_after, mode_of
from lib_dino.webui_settings import FIELDS, RETIRED, all_knobs, in_group, webui_knobs

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
        assert (widget["label"], widget["value"]) == (knob.label, None if name == "references" else knob.panel_default)
        if knob.high is not None:
            # Steps of 0 take the tab's own; of the others the value that leaves them open is the lowest.
            lowest = 0 if name == "steps" else knob.low if knob.none_value is None else knob.none_value
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
    assert {webui_knobs()[n].label for n in ("upscaler", "sampler_name")} <= {w["label"] for w in found.values()}


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
    quiet = {"enabled", "seed", "references", *RETIRED}  # pictures are too large to send at every change
    for name in set(FIELDS) - quiet:
        heard = [e for e in built["events"] if e[0] == ids[name] and e[1] == "change" and e[4]]
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
        wanted = {w["elem_id"] for name, w in found.items() if name not in ("enabled", "seed", *RETIRED)}
        wanted |= {found["scale_factor"]["elem_id"].replace("scale_factor", "resize")}
        pasted = [elem_id for elem_id, _ in built["panels"][panel]["pasted"]]
        assert set(pasted[own:]) == wanted and len(pasted) == len(wanted) + own
        assert set(built["panels"][panel]["paste_names"]) == {k.key for k in all_knobs().values() if k.key}


@pytest.mark.parametrize("panel", PANELS)
def test_at_first_the_panel_shows_the_common_settings_and_folds_the_others_away(built, panel):
    found = arguments(built, panel)
    common = {"preset", "scale_factor", "upscaler", "denoise", "dino_strength", "consistency"}
    in_view = {name for name, w in found.items() if w["group"] not in FOLDED_GROUPS and w["shown"]}
    assert in_view - {"enabled"} == common
    for group in FOLDED_GROUPS:
        assert {name for name, w in found.items() if w["group"] == group} == {
            knob.name for knob in in_group(group) if knob.widget != "hidden"
        }
    # The line stands before every control, and folded groups come last.
    order = [w["elem_id"] for w in built["everything"] if w["elem_id"].startswith(found["preset"]["elem_id"][:-6])]
    first = [found[name]["elem_id"] for name in ("preset", "scale_factor", "upscaler", "denoise", "steps", "adapter")]
    places = [order.index(elem_id) for elem_id in (built["answers"][panel]["line"], *first)]
    assert places == sorted(places)


@pytest.mark.parametrize("panel", PANELS)
def test_denoise_says_in_img2img_that_it_replaces_the_hosts(built, panel):
    info = arguments(built, panel)["denoise"]["info"]
    assert ("Denoising strength" in info) if "img2img" in panel else info is None


@pytest.mark.parametrize("panel", PANELS)
def test_the_switch_shows_one_way_to_give_the_size_and_takes_the_hidden_numbers_back(built, panel):
    for mode, answer in built["answers"][panel]["modes"].items():
        visible, values = answer[: len(SIZE_MODES)], dict(zip(CLEARABLE, answer[len(SIZE_MODES) :], strict=True))
        assert [update["visible"] for update in visible] == [m == mode for m in SIZE_MODES]
        for name, update in values.items():
            assert update.get("value") == (None if name in SIZE_MODES[mode] else 0)


def test_every_setting_of_the_size_group_belongs_to_one_way_or_stands_by_itself():
    shown = [name for names in SIZE_MODES.values() for name in names]
    assert len(set(shown)) == len(shown)
    assert {knob.name for knob in in_group("Size")} - set(shown) == {"upscaler"}


def test_the_way_to_give_the_size_follows_numbers_that_act():
    by_scale, to_size, to_area = SIZE_MODES
    assert mode_of({"scale_factor": 3, "width": 0, "height": None}) == by_scale
    assert mode_of({"height": 900}) == to_size and mode_of({"megapixels": 2.5}) == to_area
    # What the user has just chosen stays until a number of another way acts.
    assert mode_after(to_size, {"width": 0}) == to_size and mode_after(to_size, {"width": 9}) == to_size
    assert mode_after(by_scale, {"width": 9}) == to_size and mode_after("", {}) == by_scale


@pytest.mark.parametrize("panel", PANELS)
def test_a_group_says_how_many_of_its_settings_are_changed(built, panel):
    labels = built["answers"][panel]["labels"]
    assert labels == {group: {"Tiles": "Tiles (2 changed)"}.get(group, group) for group in FOLDED_GROUPS}


def test_only_settings_of_a_group_count_as_changed():
    first = {knob.name: knob.panel_default for group in GROUPS for knob in in_group(group)}
    assert [fold_label(group, first) for group in GROUPS] == list(GROUPS)
    assert fold_label("Sampling", {**first, "steps": 9, "denoise": 1.0}) == "Sampling (1 changed)"
    # A number field that was emptied is None.
    assert fold_label("Repair and limits", {**first, "max_drift": None}) == "Repair and limits"


def test_the_settings_page_is_declared(built):
    assert {"dino_upscale_model", "dino_upscale_folder", "dino_upscale_device"} <= set(built["options"])
    assert all(option["label"] for option in built["options"].values())

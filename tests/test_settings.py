import dataclasses
import math

import pytest

from lib_dino.declarations import GROUPS
from lib_dino.errors import SettingsError
from lib_dino.settings import PRESETS, Settings, knobs, preset
from lib_dino.webui_settings import RETIRED, all_knobs, retired_notes, webui_knobs


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("denoise", 1.01),
        ("denoise", -0.01),
        ("denoise", math.nan),
        ("denoise", math.inf),
        ("denoise", "0.2"),
        ("denoise", True),
        ("denoise", None),
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("scale_factor", 8.5),
        ("scale_factor", 0.5),
        ("seed", -2),
        ("seed", 2**32),
        ("tile_size", 8),
        ("width", -5),
        ("dino_enabled", 1),
        ("dino_enabled", "no"),
        ("dino_model", 3),
    ],
)
def test_a_value_outside_its_type_or_limit_is_refused_by_name(name, value):
    with pytest.raises(SettingsError) as caught:
        Settings(**{name: value})
    assert caught.value.field == name
    assert caught.value.value is value
    assert caught.value.limit
    assert repr(value) in str(caught.value)


def test_every_limit_itself_is_allowed():
    for name, knob in knobs().items():
        for value in (knob.low, knob.high, knob.none_value):
            if value is not None:
                kind = type(getattr(Settings(), name))
                extra = {"overlap": 0} if name == "tile_size" else {"tile_size": 4096} if name == "overlap" else {}
                Settings(**{name: kind(value)}, **extra)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="dino_strength") as caught:
        Settings.from_mapping({"dino_strenght": 0.4})
    assert caught.value.field == "dino_strenght"


def test_whole_numbers_are_taken_for_fractions():
    assert Settings(denoise=1).denoise == 1.0
    assert isinstance(Settings(denoise=1).denoise, float)


def test_overlap_must_be_smaller_than_the_tile():
    with pytest.raises(SettingsError, match="128 px") as caught:
        Settings(tile_size=128, overlap=128)
    assert caught.value.field == "overlap"


def test_sides_and_megapixels_exclude_each_other():
    with pytest.raises(SettingsError, match="once"):
        Settings(width=100, megapixels=2.0)


@pytest.mark.parametrize(
    ("given", "size", "target"),
    [
        ({"scale_factor": 2.0}, (720, 1280), (1440, 2560)),
        ({"scale_factor": 1.5}, (333, 501), (500, 752)),
        ({"width": 1000}, (300, 400), (750, 1000)),
        ({"height": 900}, (300, 400), (900, 1200)),
        ({"width": 800, "height": 601}, (300, 400), (601, 800)),
        ({"megapixels": 1.0}, (500, 500), (1000, 1000)),
        ({"scale_factor": 8.0}, (1, 5000), (8, 40000)),
        ({"scale_factor": 1.0}, (7, 9), (7, 9)),
    ],
)
def test_the_target_size_is_exact(given, size, target):
    assert Settings(**given).target_size(size) == target


@pytest.mark.parametrize("given", [{"width": 100}, {"megapixels": 0.01}, {"height": 9000}])
def test_a_result_smaller_or_far_larger_than_the_source_is_refused(given):
    with pytest.raises(SettingsError) as caught:
        Settings(**given).target_size((300, 400))
    assert caught.value.field in given


def test_saved_text_gives_the_settings_back():
    settings = Settings(scale_factor=1.75, denoise=0.33, seed=7, dino_enabled=False, tile_size=512, dino_model="a/b")
    assert Settings.from_infotext(settings.to_infotext()) == settings


def test_saved_keys_of_retired_settings_are_still_read_and_ignored():
    assert {knob.key for knob in RETIRED.values()} == {"DINO allowed drift"}
    saved = {"DINO allowed drift": "0.05", "DINO denoise": "0.3"}
    assert Settings.from_infotext(saved) == Settings(denoise=0.3)
    [note] = retired_notes(saved)
    assert "ignored" in note
    assert retired_notes({"DINO allowed drift": "0.0"}) == retired_notes({"DINO denoise": "0.3"}) == ()


def test_saved_text_of_other_programs_is_passed_over():
    assert Settings.from_infotext({"Steps": "20", "Model": "x"}) == Settings()


def test_a_damaged_saved_value_is_refused_by_name():
    with pytest.raises(SettingsError) as caught:
        Settings.from_infotext({"DINO denoise": "lots"})
    assert caught.value.field == "denoise"


def test_names_order_defaults_and_saved_keys_are_pinned():
    # Pictures saved by every release must still load: change a line here only with a reader for the old one. A new
    # setting is added here when it is released.
    released = [
        ("scale_factor", "DINO upscale", 2.0),
        ("width", "DINO width", 0),
        ("height", "DINO height", 0),
        ("megapixels", "DINO megapixels", 0.0),
        ("denoise", "DINO denoise", 0.2),
        ("steps", "DINO steps", 20),
        ("seed", "DINO seed", -1),
        ("tile_size", "DINO tile", 0),
        ("overlap", "DINO overlap", 64),
        ("tile_batch_size", "DINO tile batch", 1),
        ("consistency", "DINO consistency", 1.0),
        ("dino_enabled", "DINO enabled", True),
        ("dino_strength", "DINO strength", 0.5),
        ("dino_model", "DINO model", ""),
        ("repair_tries", "DINO repair tries", 0),
        ("max_drift", "DINO max drift", 0.0),
        ("adapter", "DINO adapter", ""),
        ("adapter_strength", "DINO adapter strength", 0.0),
        ("skip_flat", "DINO skip flat", False),
        ("clean_source", "DINO clean source", 1.0),
        ("texture", "DINO texture", 1.0),
    ]
    fields = [(f.name, knobs()[f.name].key, f.default) for f in dataclasses.fields(Settings)]
    assert [field for field in fields if field in released] == released


def test_saved_keys_of_the_webui_are_pinned():
    released = {
        "upscaler": "DINO upscaler", "sampler_name": "DINO sampler", "scheduler": "DINO scheduler",
        "preset": "DINO preset", "subject_prompt": "DINO subject prompt", "drift_map": "DINO drift map",
        "save_report": "DINO drift report",
    }  # fmt: skip
    assert released.items() <= {name: knob.key for name, knob in webui_knobs().items()}.items()


def test_labels_keys_and_flags_are_unique_and_every_setting_explains_itself():
    shown = [knob for name, knob in all_knobs().items() if name not in ("enabled", *RETIRED)]
    for part in ("name", "label", "help", "flag", "argument"):
        values = [getattr(knob, part) for knob in shown]
        assert len(set(values)) == len(values)
    keys = [knob.key for knob in shown if knob.key]
    # `resume` says nothing of the picture, and a text holds no pictures.
    assert len(set(keys)) == len(keys) and {k.name for k in shown if not k.key} == {"resume", "references"}


def test_every_setting_lies_in_a_group_and_knows_what_it_is():
    for name, knob in all_knobs().items():
        assert knob.name == name and knob.webui_only is (name not in knobs())
        assert knob.group in GROUPS or name in ("enabled", *RETIRED)
        assert knob.kind in (bool, int, float, str) or (knob.kind, knob.widget) == (tuple, "pictures")


def test_help_is_short_and_begins_with_a_verb():
    for knob in all_knobs().values():
        assert knob.help.endswith(".") and len(knob.help) <= 110
        assert knob.help.split()[0].endswith("s") or knob.name in RETIRED


def test_presets_are_valid_and_pinned():
    assert PRESETS == {
        "conservative": {"denoise": 0.15, "dino_strength": 0.8, "steps": 20},
        "balanced": {"denoise": 0.25, "dino_strength": 0.5, "steps": 20},
        "creative": {"denoise": 0.5, "dino_strength": 0.4, "steps": 28},
        "few-step": {"denoise": 0.25, "dino_strength": 0.5, "steps": 4},
    }
    for name in PRESETS:
        Settings(**preset(name))
    with pytest.raises(SettingsError, match="balanced"):
        preset("bold")

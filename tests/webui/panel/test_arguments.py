import base64
import math
import types

import pytest

from lib_dino.errors import SettingsError
from lib_dino.settings import INFOTEXT_STOPPED_KEY, PRESETS, Settings, knobs
from lib_dino.webui.model.model_files import DEFAULT_MODEL, NO_ADAPTER
from lib_dino.webui.panel import xyz_plot
from lib_dino.webui.panel.arguments import Job, Request, parse, pasted
from lib_dino.webui.panel.xyz_plot import OVERRIDES, apply
from lib_dino.webui_settings import FIELDS, NO_UPSCALER, all_knobs, webui_knobs

CHOICES = {"upscaler": ["None", "Lanczos"], "sampler_name": ["Euler a", "DDIM"], "scheduler": ["Automatic", "Karras"]}
REQUEST = Request(denoise=0.75, steps=33)


def read(*args, enabled=True, request=REQUEST, **overrides):
    return parse(args, request=request, choices=CHOICES, enabled=enabled, overrides=overrides or None)


def test_the_order_of_the_arguments_never_changes():
    # What 0.2 has; a new setting comes behind, and is added here when it is released.
    released = (
        "enabled", "scale_factor", "width", "height", "upscaler", "denoise", "steps", "sampler_name", "scheduler",
        "tile_size", "overlap", "tile_batch_size", "dino_enabled", "dino_strength", "dino_model", "consistency",
        "preset", "seed", "megapixels", "repair_tries", "max_drift",
        "adapter", "adapter_strength", "drift_map", "save_report", "skip_flat", "allowed_drift", "subject_prompt",
        "clean_source", "texture", "resume",
    )  # fmt: skip
    assert FIELDS[: len(released)] == released
    assert [knob.argument for knob in all_knobs().values()] == list(range(len(FIELDS)))


def test_labels_and_keys_are_given_once():
    labels = [knob.label for knob in all_knobs().values()]
    assert len(set(labels)) == len(labels) == len(FIELDS)
    keys = [knob.key for knob in all_knobs().values() if knob.key]
    assert len(set(keys)) == len(keys) == len(FIELDS) - 3  # the switch, what says nothing of the picture, and pictures


def test_names_that_leave_a_setting_open_are_the_ones_that_the_files_of_models_know():
    assert knobs()["dino_model"].panel_none == DEFAULT_MODEL
    assert knobs()["adapter"].panel_none == NO_ADAPTER
    assert webui_knobs()["upscaler"].default == NO_UPSCALER


def test_values_by_name_in_any_order_and_by_position_mean_the_same():
    named = {"scale_factor": 3, "denoise": 0.4, "sampler_name": "DDIM", "dino_strength": 0.9, "seed": 5}
    values = [{"enabled": True, **named}.get(name) for name in FIELDS]
    assert read(named) == read(dict(reversed(named.items()))) == read(*values)
    assert read(named).settings.scale_factor == 3.0


def test_what_the_panel_shows_at_first_is_the_defaults():
    job = read(*(knob.panel_default for knob in all_knobs().values()), enabled=True)
    assert job == Job(enabled=False, settings=Settings(steps=33))


def test_what_is_missing_follows_the_request_then_the_default():
    for args in ((), ({},), ([None] * len(FIELDS))):
        settings = read(*args).settings
        assert (settings.denoise, settings.steps, settings.seed) == (0.75, 33, -1)
        assert settings.dino_strength == Settings().dino_strength
    assert read(request=Request()).settings == Settings()
    assert read({"steps": 0}).settings.steps == 33


def test_a_dictionary_is_meant_to_act_and_an_empty_list_as_its_place_says():
    assert read({}, enabled=False).enabled
    assert not read({"enabled": False}).enabled
    assert not read(enabled=False).enabled


def test_what_follows_a_dictionary_is_passed_over():
    # The API fills the rest of the list with the panel's values.
    assert read({"denoise": 0.1}, 9, "nonsense").settings.denoise == 0.1


def test_a_preset_fills_in_what_is_not_given():
    assert read({"preset": "creative"}).settings.denoise == PRESETS["creative"]["denoise"]
    assert read({"preset": "creative", "steps": 0}).settings.steps == PRESETS["creative"]["steps"]
    mixed = read({"preset": "Creative", "denoise": 0.3}).settings
    assert (mixed.denoise, mixed.dino_strength) == (0.3, PRESETS["creative"]["dino_strength"])


def test_names_are_found_in_any_case_and_spelt_as_the_host_spells_them():
    assert read({"sampler_name": "euler A", "scheduler": "KARRAS"}).sampler_name == "Euler a"
    assert read({"sampler_name": "Use same sampler"}).sampler_name is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enabled", 1), ("enabled", "on"), ("scale_factor", 9), ("scale_factor", "2"), ("scale_factor", True),
        ("denoise", math.nan), ("denoise", math.inf), ("denoise", [0.2]), ("steps", 2.5), ("steps", -1),
        ("steps", False), ("steps", 10**5000), ("seed", 10**400), ("width", -1), ("tile_size", 1), ("overlap", 4000),
        ("upscaler", "R-ESRGAN"), ("upscaler", 3), ("sampler_name", "Euler b"), ("sampler_name", {"a": 1}),
        ("scheduler", "Linear"), ("preset", "wild"), ("dino_model", 5), ("dino_model", "x" * 10**6),
        ("megapixels", -1), ("stepz", 5), ("x" * 10**5, 1), (5, 1), ("drift_map", "y" * 10**5),
        ("subject_prompt", 3), ("subject_prompt", "x" * 10**5), ("denoise", [0.1] * 10**4),
    ],
    ids=lambda v: repr(v)[:20] if not isinstance(v, int) or v < 10**9 else "huge",
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_name_and_without_flooding_the_log(name, value):
    with pytest.raises(SettingsError) as caught:
        read({name: value})
    assert str(name)[:80] == caught.value.field
    assert len(str(caught.value)) < 1000


def test_too_many_arguments_are_refused_with_the_order():
    with pytest.raises(SettingsError, match="scale_factor, width") as caught:
        read(*([None] * len(FIELDS)), 1)
    assert caught.value.field == "script_args"


def test_whole_numbers_may_come_as_fractions():
    settings = read({"steps": 20.0, "tile_size": 512.0, "denoise": 1}).settings
    assert (settings.steps, settings.tile_size) == (20, 512)
    assert isinstance(settings.steps, int)


def test_a_saved_text_pasted_back_gives_the_same_job():
    job = read(
        {
            "scale_factor": 3.5, "denoise": 0.35, "steps": 12, "sampler_name": "DDIM", "scheduler": "Karras",
            "upscaler": "Lanczos", "tile_size": 768, "overlap": 96, "tile_batch_size": 2, "dino_enabled": False,
            "dino_strength": 0.65, "consistency": 0.4, "dino_model": "dinov2-base",
            "adapter": "mine.safetensors", "adapter_strength": 0.75, "drift_map": True, "save_report": True,
        }
    )  # fmt: skip
    # What a stopped result says of itself is no setting.
    saved = {**job.to_infotext(), INFOTEXT_STOPPED_KEY: "after 3 of 9 tiles"}
    values = {name: pasted(name, saved) for name in FIELDS}
    assert read(*(values[name] for name in FIELDS), enabled=True) == job


def test_pasting_sets_what_was_left_open_back_and_leaves_other_texts_alone():
    saved = Job(settings=Settings(width=0)).to_infotext()
    assert pasted("width", saved) == 0 and pasted("tile_size", saved) == 0
    assert pasted("preset", saved) == "Custom"
    assert all(pasted(name, {"Steps": "20"}) is None for name in FIELDS)
    assert pasted("denoise", {**saved, "DINO denoise": "much"}) is None


def test_the_preset_is_saved_when_its_values_are():
    assert read({"preset": "balanced"}).to_infotext()["DINO preset"] == "balanced"
    assert "DINO preset" not in read({"preset": "balanced", "steps": 7}).to_infotext()


def test_a_plot_varies_settings_without_touching_its_other_cells():
    class Generation:
        pass

    first, second = Generation(), Generation()
    apply("dino_strength")(first, 0.3, [])
    second.__dict__.update(first.__dict__)
    apply("preset")(second, "creative", [])
    assert getattr(first, OVERRIDES) == {"dino_strength": 0.3, "enabled": True}
    job = parse([False], request=REQUEST, choices=CHOICES, enabled=False, overrides=getattr(second, OVERRIDES))
    assert job.enabled and job.preset == "Custom"  # a preset, but for the strength the plot sets itself
    assert job.settings.denoise == PRESETS["creative"]["denoise"]


def test_a_plot_can_leave_open_what_the_panel_gives():
    panel = {"sampler_name": "DDIM", "adapter": "mine", "steps": 4}
    cell = read(panel, sampler_name="Use same sampler", adapter="None", steps=0)
    assert (cell.sampler_name, cell.settings.adapter, cell.settings.steps) == (None, "", 33)


def test_a_retired_setting_is_ignored_with_a_note():
    job = read({"allowed_drift": 0.05, "denoise": 0.3})
    assert job.settings == read({"denoise": 0.3}).settings
    [note] = job.notes
    assert "allowed_drift" in note and "max_drift" in note
    for unused in (0, 0.0, None):
        assert read({"allowed_drift": unused}).notes == ()
    assert read({"allowed_drift": "nonsense" * 10**4}).notes == (note,)
    assert "DINO allowed drift" not in job.to_infotext()
    by_place = [None] * FIELDS.index("allowed_drift")
    assert read(*by_place, 0.05).notes == (note,)


class Plot:
    """As much of the host's plot as axes take."""

    def __init__(self):
        self.axis_options = []

    class AxisOption:
        def __init__(self, label, type, apply, choices=None):
            self.label, self.type, self.apply, self.choices = label, type, apply, choices


def test_every_setting_with_a_control_is_an_axis_of_the_plot_but_free_text(monkeypatch):
    plot = Plot()
    monkeypatch.setattr(xyz_plot, "_plot_modules", lambda: [plot])
    monkeypatch.setattr(xyz_plot, "panel_choices", lambda: {**CHOICES, "preset": list(PRESETS)})
    for _ in range(2):
        xyz_plot.add_axes()
    axes = {option.label.removeprefix("[DINO Upscale] "): option for option in plot.axis_options}
    wanted = [knob.label for knob in all_knobs().values() if knob.widget not in ("hidden", "text", "pictures")]
    assert list(axes) == wanted and len(plot.axis_options) == len(wanted)
    # Names of 0.1, which saved grids carry.
    assert [axes[name].type for name in ("DINO strength", "Denoise", "Tile size", "Preset")] == [float, float, int, str]
    assert axes["Preset"].choices() == list(PRESETS) and axes["Upscaler"].choices() == CHOICES["upscaler"]
    generation = types.SimpleNamespace()
    for label, value in (("DINO guidance", "False"), ("Drift limit", 0.2)):
        axes[label].apply(generation, value, [])
    job = read({}, **getattr(generation, OVERRIDES))
    assert (job.settings.dino_enabled, job.settings.max_drift) == (False, 0.2)


PNG = b"\x89PNG of no matter"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, ()), ("", ()), ([], ()), ([None, ""], ()), ([PNG], (PNG,)), (PNG, (PNG,)),
        (base64.b64encode(PNG).decode(), (PNG,)),
        (["data:image/png;base64," + base64.b64encode(PNG).decode(), PNG], (PNG, PNG)),
    ],
)  # fmt: skip
def test_references_are_bytes_from_the_panel_and_base64_from_the_api(given, found):
    assert read({"references": given}).references == found


@pytest.mark.parametrize("given", ["/etc/passwd", "C:\\a.png", "../a.png", 3, [3], {"a": 1}, [["a"]], "abc"])
def test_a_name_of_a_file_is_no_reference(given):
    with pytest.raises(SettingsError, match="references") as caught:
        read({"references": given})
    assert caught.value.field == "references" and "base64" in str(caught.value)


def test_nine_references_are_refused():
    with pytest.raises(SettingsError, match="at most 8 pictures: got 9 pictures"):
        read({"references": [PNG] * 9})


def test_references_are_not_saved_and_stay_when_a_text_is_pasted():
    job = read({"references": [PNG]})
    assert not any("reference" in key.lower() for key in job.to_infotext())
    assert pasted("references", job.to_infotext()) is None

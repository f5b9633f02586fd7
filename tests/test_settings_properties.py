"""Settings of any values: valid ones survive saving and reading, all others are refused by name."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_dino.errors import SettingsError
from lib_dino.pictures.infotext import infotext, parse_infotext
from lib_dino.settings import Settings, knobs

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=60)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def value_of(knob):
    if knob.kind is bool:
        return st.booleans()
    if knob.kind is str:
        return TEXT
    inside = {int: st.integers, float: st.floats}[knob.kind](knob.low, knob.high)
    return inside if knob.none_value is None else inside | st.just(knob.none_value)


@st.composite
def valid(draw):
    values = {name: draw(value_of(knob)) for name, knob in knobs().items() if draw(st.booleans())}
    if values.get("width") or values.get("height"):
        values.pop("megapixels", None)
    if values.get("tile_size"):
        values["overlap"] = draw(st.integers(0, min(2048, values["tile_size"] - 1)))
    return Settings(**values)


@given(valid(), st.dictionaries(st.sampled_from(["DINO drift", "DINO stopped"]), TEXT.filter(bool)))
def test_what_is_saved_is_read_back(settings, measured):
    found = parse_infotext(infotext(settings, (8, 8), measured))
    assert Settings.from_infotext(found) == settings
    assert measured.items() <= found.items()


@given(valid())
def test_settings_are_plain_values_that_json_keeps(settings):
    assert Settings(**json.loads(json.dumps(dataclasses.asdict(settings), allow_nan=False))) == settings


@given(st.sampled_from(sorted(knobs())), ANYTHING)
def test_any_value_is_taken_in_its_own_type_or_refused_by_name(name, value):
    try:
        held = getattr(Settings(**{name: value}), name)
    except SettingsError as error:
        assert error.field in (name, "overlap") and str(error)
        return
    knob = knobs()[name]
    assert type(held) is knob.kind and held == value
    if knob.low is not None:
        assert knob.low <= held <= knob.high or held == knob.none_value


@given(valid(), st.tuples(st.integers(1, 30_000), st.integers(1, 30_000)))
def test_every_size_has_a_result_or_a_sentence(settings, size):
    try:
        height, width = settings.target_size(size)
    except SettingsError as error:
        assert str(error).endswith(".")
        return
    assert height >= size[0] or width >= size[1]


@given(st.text())
def test_any_text_can_be_read(text):
    found = parse_infotext(text)
    assert all(isinstance(part, str) for pair in found.items() for part in pair)


@given(st.dictionaries(st.sampled_from([knob.key for knob in knobs().values()]), TEXT))
def test_saved_texts_of_any_content_are_settings_or_a_sentence(params):
    try:
        Settings.from_infotext(params)
    except SettingsError as error:
        assert str(error)


def test_nan_is_never_a_setting():
    for name, knob in knobs().items():
        if knob.kind in (int, float):
            with pytest.raises(SettingsError):
                Settings(**{name: float("nan")})

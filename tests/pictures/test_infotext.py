import random
import re
import time

import pytest

from lib_dino import __version__
from lib_dino.pictures.infotext import infotext, parse_infotext
from lib_dino.settings import PRESETS, Settings, knobs

WEBUI_PATTERN = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def test_the_text_is_one_line_in_the_webuis_form():
    text = infotext(Settings(seed=5, scale_factor=1.5), (768, 1024))
    assert text.startswith("Steps: 20, Seed: 5, Size: 1024x768, DINO upscale: 1.5, ")
    assert text.endswith(f"DINO Upscale version: {__version__}")
    assert "\n" not in text


@pytest.mark.parametrize("changes", [{}, *PRESETS.values(), {"width": 30, "height": 40, "dino_enabled": False}])
def test_settings_survive_the_text(changes):
    settings = Settings(seed=7, **changes)
    assert Settings.from_infotext(parse_infotext(infotext(settings, (4, 4)))) == settings


@pytest.mark.parametrize(
    "model",
    [
        "C:\\models\\dino, small.safetensors", "/a: b/c", 'with "quotes", and commas', '"', '""', '"quoted"',
        "line\nbreak", " spaces ", "Größe ✓", "\\", "\\\\", 'ends in \\"', "Steps: 3, Seed: 1",
    ],
)
def test_a_model_name_with_marks_of_the_text_survives_it(model):
    settings = Settings(seed=7, dino_model=model)
    parsed = parse_infotext(infotext(settings, (4, 4)))
    assert parsed[knobs()["dino_model"].key] == model
    assert Settings.from_infotext(parsed) == settings


def test_any_model_name_survives_the_text():
    draw = random.Random(11)
    for _ in range(300):
        model = "".join(draw.choice('ab ,:"\\\n\t{}[]é/-') for _ in range(draw.randrange(1, 12)))
        settings = Settings(seed=0, dino_model=model)
        assert Settings.from_infotext(parse_infotext(infotext(settings, (1, 1)))) == settings, model


def test_the_webuis_own_pattern_finds_every_key():
    text = infotext(Settings(seed=5, dino_model="a, b: c"), (4, 4))
    keys = [key for key, _ in WEBUI_PATTERN.findall(text)]
    assert keys == list(parse_infotext(text))
    assert {knobs()[name].key for name in ("denoise", "overlap", "dino_model")} <= set(keys)


def test_prompts_before_the_last_line_are_told_apart():
    text = "a cat, sitting: still\nin the sun\nNegative prompt: dog,\nblurry\nSteps: 20, Seed: 1, Size: 8x4"
    assert parse_infotext(text) == {
        "Prompt": "a cat, sitting: still\nin the sun", "Negative prompt": "dog,\nblurry",
        "Steps": "20", "Seed": "1", "Size": "8x4",
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("a cat", {"Prompt": "a cat"}),
        ("a cat: sitting, still", {"Prompt": "a cat: sitting, still"}),
        ("Negative prompt: dog", {"Negative prompt": "dog"}),
        ("Steps: 1, Seed: 2, Size: 3x4\n", {"Steps": "1", "Seed": "2", "Size": "3x4"}),
        ("Negative prompt: dog\nSteps: 1, Seed: 2, Size: 3x4",
         {"Negative prompt": "dog", "Steps": "1", "Seed": "2", "Size": "3x4"}),
    ],
)
def test_texts_with_parts_missing_are_read_as_far_as_they_go(text, found):
    assert parse_infotext(text) == found


def test_a_broken_quotation_is_kept_as_it_is():
    assert parse_infotext('Steps: 1, Seed: 2, Model: "\\x", Size: 1x1')["Model"] == '"\\x"'


@pytest.mark.parametrize("text", ["a" * 10**6, "a " * 10**6, " " * 10**6, "a:" * 10**6, 'a b: "' * 10**5, "\\" * 10**6,
                                  "Steps: 1, " * 10**5, '"' * 10**6], ids=lambda text: text[:8])  # fmt: skip
def test_long_texts_take_a_moment(text):
    started = time.perf_counter()
    parse_infotext(text)
    assert time.perf_counter() - started < 5

"""A picture's saved text: written and read in the WebUI's form, so that its "PNG Info" tab understands it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from ..settings import INFOTEXT_VERSION_KEY, Settings
from ..version import __version__

# The WebUI's own pattern: a key, then a JSON string or anything up to the next comma. Keys are bounded, so that a
# text without a colon takes a moment and not minutes.
_PARAMETER: Final = re.compile(r'(\w[\w \-/]{1,99}):[^\S\n]{0,99}("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_NEGATIVE: Final = "Negative prompt:"
_LEAST_PARAMETERS: Final = 3  # fewer in the last line and it is part of the prompt


def infotext(settings: Settings, size: tuple[int, int], measured: Mapping[str, str] | None = None) -> str:
    """One line that says how a picture was made.

    Args:
        settings: with the seed that was used.
        size: (height, width) of the result, pixels.
        measured: further keys and values, such as `pipeline.Result.figures`.

    >>> infotext(Settings(seed=5), (768, 1024)).split(", DINO")[0]
    'Steps: 20, Seed: 5, Size: 1024x768'
    """
    shared = {"Steps": str(settings.steps), "Seed": str(settings.seed), "Size": f"{size[1]}x{size[0]}"}
    values = {**shared, **settings.to_infotext(), **(measured or {}), INFOTEXT_VERSION_KEY: __version__}
    text = ", ".join(f"{key}: {_quoted(value)}" for key, value in values.items())
    # Names of files may hold bytes that are no text, which no picture can carry.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def parse_infotext(text: str) -> dict[str, str]:
    """Keys and values of a saved text; "Prompt" and "Negative prompt" too where it has them.

    The inverse of `infotext`, and a reader of what the WebUI writes.
    """
    *lines, last = text.strip().split("\n")
    pairs = _PARAMETER.findall(last)
    if len(pairs) < _LEAST_PARAMETERS:
        lines, pairs = [*lines, last], []
    return {**_prompts("\n".join(lines)), **{key: _unquoted(value.strip()) for key, value in pairs}}


def _prompts(text: str) -> dict[str, str]:
    prompt, _, negative = (part.strip() for part in f"\n{text}".partition(f"\n{_NEGATIVE}"))
    return {key: value for key, value in (("Prompt", prompt), ("Negative prompt", negative)) if value}


def _quoted(value: str) -> str:
    plain = value == value.strip() and not re.search(r'[,:\n"]', value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) < 2 or not value.startswith('"') or not value.endswith('"'):
        return value
    try:
        return str(json.loads(value))
    except json.JSONDecodeError:
        return value

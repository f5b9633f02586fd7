"""What the generation itself asks for, looked at before the host starts on it.

A host that is asked for no picture, or for a guidance scale that is no number, fails in the middle with a message
that names nothing, or answers with a black picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ...errors import SettingsError

MAX_PICTURES: Final = 1000
_SEED: Final = 2**63 - 1

Check = tuple[str, str, Callable[[Any], bool]]


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and least <= value <= most


def _seed(value: Any) -> bool:
    held = value if isinstance(value, list) else [value]
    return all(one is None or one == "" or (isinstance(one, int | float) and abs(one) <= _SEED) for one in held)


def _text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _number(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and least <= value <= most  # false for what is no number


_CHECKS: Final[tuple[Check, ...]] = (
    ("batch_size", f"a whole number, 1 to {MAX_PICTURES}", _whole(1, MAX_PICTURES)),
    ("n_iter", f"a whole number, 1 to {MAX_PICTURES}", _whole(1, MAX_PICTURES)),
    ("cfg_scale", "a number, -1000 to 1000", _number(-1000, 1000)),
    ("eta", "a number, 0 to 10", lambda value: value is None or _number(0, 10)(value)),
    ("seed", "a whole number of at most 63 bits", _seed),
    ("subseed", "a whole number of at most 63 bits", _seed),
    ("prompt", "text", _text),
    ("negative_prompt", "text", _text),
)
_SIDES: Final[tuple[Check, ...]] = tuple((name, "8 to 16384 px", _whole(8, 16384)) for name in ("width", "height"))


def check_request(p: Any) -> None:
    """Refuse what no host can do anything with.

    Args:
        p: a generation about to start. Only txt2img's own size counts, img2img takes its source's.

    Raises:
        SettingsError: with the name of the request's field.
    """
    for name, limit, holds in _CHECKS if hasattr(p, "init_images") else _CHECKS + _SIDES:
        value = getattr(p, name, None)
        if not holds(value):
            raise SettingsError(
                f"It must be {limit}: got {repr(value)[:100]}.", field=name, value=value, limit=limit
            )
    _check_overrides(p.override_settings or {})


def _check_overrides(overrides: dict[str, Any]) -> None:
    from modules import shared

    # Forge keeps a few of its own beside the declared ones.
    known = {*getattr(shared.opts, "data_labels", overrides), *getattr(shared.opts, "data", ())}
    for name in overrides:
        if name not in known and not name.startswith("forge_"):
            raise SettingsError(
                f"The WebUI has no setting {name[:100]!r}. Leave it out, or see its settings page.",
                field="override_settings", value=name, limit="settings of the WebUI",
            )  # fmt: skip

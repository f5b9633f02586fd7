"""What can go wrong, as types a caller can catch and a user can act on."""

from __future__ import annotations


class DinoError(Exception):
    """Something the user can put right; the message says how."""


class SettingsError(DinoError):
    """A setting is unknown, of the wrong type or outside its range.

    Attributes:
        field: name of the setting, as in `Settings`.
        value: what came.
        limit: what is allowed, in words.
    """

    def __init__(self, message: str, *, field: str, value: object, limit: str) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
        self.limit = limit


class ImageError(DinoError):
    """A picture cannot be read or written."""


class ModelError(DinoError):
    """A network's files are missing, damaged or of another kind."""


class AdapterError(ModelError):
    """An adapter's file is missing, damaged or of another kind, or does not fit the loaded networks."""

    field = "adapter"


class Interrupted(DinoError):  # noqa: N818 - a wish, not a fault
    """The caller asked to stop before the picture was finished."""

"""Attributes of a processing object changed for one generation, and put back."""

from __future__ import annotations

from typing import Any


class Overrides:
    """Changes attributes of one object; `restore` leaves no trace of it."""

    def __init__(self, p: Any) -> None:
        self._p = p
        self._before: dict[str, tuple[bool, Any]] = {}

    def set(self, name: str, value: Any) -> None:
        """Change one attribute of the object itself, whatever its class says."""
        attributes = self._p.__dict__
        self._before.setdefault(name, (name in attributes, attributes.get(name)))
        attributes[name] = value

    def restore(self) -> None:
        """Put everything back."""
        attributes = self._p.__dict__
        for name, (was_there, value) in self._before.items():
            if was_there:
                attributes[name] = value
            else:
                attributes.pop(name, None)
        self._before.clear()

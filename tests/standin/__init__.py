"""A WebUI small enough for a unit test, written from what the real ones promise, traps included."""

from .host import make_modules

__all__ = ["make_modules"]

"""The version, saved with every picture."""

from typing import Final

__version__: Final = "0.1.0"

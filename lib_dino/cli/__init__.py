"""Command line: `python -m lib_dino`."""

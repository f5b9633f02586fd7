"""`python -m lib_dino`."""

from __future__ import annotations

import os
import sys

from .cli.parser import main

PIPE_CLOSED = 141
"""Exit code where the reader of the output is gone, as shells give it for SIGPIPE."""


def run() -> int:
    """The command line's exit code; no traceback when `head` and its like have seen enough."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # What is still in the buffer has nowhere to go, and would be tried again on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


if __name__ == "__main__":
    sys.exit(run())

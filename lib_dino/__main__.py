"""`python -m lib_dino`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from .cli.parser import main

PIPE_CLOSED, TERMINATED = 141, 143
"""Exit codes where the reader of the output is gone and after SIGTERM, as shells give them."""


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End as after Ctrl-C: what stands on the stack removes half-written files."""
    sys.stderr.write("Terminated. Finished pictures stay, nothing half written is left.\n")
    sys.exit(TERMINATED)


def run() -> int:
    """The command line's exit code; no traceback when `head` and its like have seen enough."""
    signal.signal(signal.SIGTERM, terminate)
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

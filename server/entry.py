"""The command `seesaw` from its first moment on: Ctrl-C is one line and exit code 130, whatever it interrupts.

Hence nothing else is imported before `interruptible`: importing takes a while too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> int:
    """The command's exit code."""
    return interruptible(_command)


def interruptible(command: Callable[[], int]) -> int:
    """Run a command and return its exit code. What it has to clean up on Ctrl-C, it does on its way out."""
    try:
        return command()
    except KeyboardInterrupt:
        print("seesaw: interrupted", file=sys.stderr)
        return INTERRUPTED


def _command() -> int:
    from server.cli import main

    return main()

"""The command `seesaw` from its first moment on: a signal is one line and the exit code 128 + its number, whatever it
interrupts, and nothing is left behind.

Hence nothing else is imported before `interruptible`: importing takes a while too.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType


def main() -> int:
    """The command's exit code."""
    return interruptible(_command)


def interruptible(command: Callable[[], int]) -> int:
    """Run a command and return its exit code. What it has to clean up after a signal, it does on its way out."""
    _open_standard_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # else somebody has it ignored, as nohup does
            signal.signal(number, _raise)
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        complain("seesaw: interrupted")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output wants no more of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except _Signalled as error:
        complain(f"seesaw: ended by {error.number.name}")
        return 128 + error.number


def complain(line: str) -> None:
    """Say it on stderr, whether or not somebody hears it."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class _Signalled(BaseException):
    def __init__(self, number: signal.Signals) -> None:
        self.number = number


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one would interrupt the cleaning up
    raise _Signalled(signal.Signals(number))


def _open_standard_streams() -> None:
    """Where one is closed (`>&-`), the next file or socket that is opened would get its number, and what is printed."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


def _command() -> int:
    from seesaw.server.cli import main

    return main()

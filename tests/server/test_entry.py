"""The first and the last moment of a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.patience import PATIENCE_S

SCRIPT = """
import os, signal, sys, time
from seesaw.server.entry import interruptible

def command():
    try:
        {what}
        return 3
    finally:
        print("cleaned up")

sys.exit(interruptible(command))
"""


def run(what: str, stdout: int = subprocess.PIPE) -> tuple[int, str, str]:
    command = [sys.executable, "-c", SCRIPT.format(what=what)]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "seesaw: interrupted\n"),
        (signal.SIGTERM, "seesaw: ended by SIGTERM\n"),
        (signal.SIGHUP, "seesaw: ended by SIGHUP\n"),
    ],
)
def test_a_signal_is_one_line_and_an_exit_code_and_all_is_cleaned_up(number: signal.Signals, line: str) -> None:
    assert run(f"os.kill(os.getpid(), {int(number)}); time.sleep({PATIENCE_S})") == (128 + number, "cleaned up\n", line)


def test_a_hang_up_that_somebody_ignores_is_ignored() -> None:
    command = ["nohup", sys.executable, "-c", SCRIPT.format(what="os.kill(os.getpid(), signal.SIGHUP)")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (3, "cleaned up\n")


def test_nobody_reads_the_output() -> None:
    unread, stdout = os.pipe()
    os.close(unread)
    assert run("pass", stdout) == (128 + signal.SIGPIPE, None, "")
    os.close(stdout)


def test_streams_that_were_closed_are_nobodys() -> None:
    opened = "print(sorted(os.open('/dev/null', os.O_RDONLY) for _ in range(2)), file=open(9, 'w'))"
    descriptor, written = os.pipe()
    script = f'exec "$@" 9>&{written} <&- >&- 2>&-'
    command = ["bash", "-c", script, "bash", sys.executable, "-c", SCRIPT.format(what=opened)]
    assert subprocess.run(command, pass_fds=[written], timeout=PATIENCE_S).returncode == 3
    os.close(written)
    with os.fdopen(descriptor) as read:
        assert min(map(int, read.read().strip("[]\n").split(","))) > 2

"""Printing neither waits nor fails, whatever stdout and stderr are."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.patience import PATIENCE_S

SCRIPT = """
import logging, sys
from seesaw.engine.printing import print_in_background
from seesaw.engine.supervision import exit_now
print_in_background()
logging.basicConfig()
for i in range(2000):
    print("x" * 100)
    logging.warning("y" * 100)
print("last words")
{end}
"""


def run(stdout: int, end: str = "exit_now(3)") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT.format(end=end)]
    return subprocess.run(command, stdout=stdout, stderr=stdout, text=True, timeout=PATIENCE_S)


def test_whoever_reads_gets_all() -> None:
    for end in ("exit_now(3)", "sys.exit(3)"):
        done = run(subprocess.PIPE, end)
        assert done.returncode == 3
        assert done.stdout.count("x" * 100) == 2000 and "last words" in done.stdout
        assert done.stderr.count("y" * 100) == 2000


def test_nobody_reads_or_has_room() -> None:
    unread, full = os.pipe()  # holds less than is said
    device = os.open("/dev/full", os.O_WRONLY)
    for stdout in (full, device):
        assert run(stdout).returncode == 3
    os.close(unread)
    assert run(full).returncode == 3
    for descriptor in (full, device):
        os.close(descriptor)

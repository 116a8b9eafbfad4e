"""How long tests wait for what must happen. It only ends failures: a loaded host may take ten times as long as ours."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

PATIENCE_S = 120.0


def still_running(processes: Sequence[psutil.Process]) -> list[str]:
    """The command lines of those that do not end. One that nobody reaps has ended all the same."""
    left = []
    for process in psutil.wait_procs(processes, timeout=PATIENCE_S)[1]:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            pass  # it ended just now
    return left

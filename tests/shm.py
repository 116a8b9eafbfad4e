"""Shared memory that would outlive its processes. Others' files come and go in /dev/shm, and do not count."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil


def named_segments(processes: Iterable[psutil.Process]) -> set[str]:
    """Files in /dev/shm that have a name and that these processes have open or mapped."""
    paths = {file.path for process in processes for file in (*process.open_files(), *process.memory_maps())}
    return {path for path in paths if path.startswith("/dev/shm/") and Path(path).exists()}

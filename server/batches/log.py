"""The results of a batch as they come: a file that only grows, whose parts the store knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


class ResultLog:
    """Appends, and cuts what was not kept. What is behind `end` counts for nothing."""

    def __init__(self, path: Path, end: int) -> None:
        """`end`: of the last result that the store knows of. The file is made if it is not there."""
        self.end = end
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, end)

    def append(self, lines: Sequence[bytes]) -> list[int]:
        """Write them behind the end and return where each starts. They are on the disk then; `keep` moves the end."""
        starts, start = [], self.end
        for line in lines:
            starts.append(start)
            start += len(line)
        data = memoryview(b"".join(lines))
        written = 0
        while written < len(data):
            written += os.pwrite(self._file, data[written:], self.end + written)
        os.fdatasync(self._file)
        return starts

    def keep(self, size_bytes: int) -> None:
        """So much of what was appended is known to the store now."""
        self.end += size_bytes

    def cut(self) -> None:
        """Remove what is not kept: on a full disk it takes room."""
        os.ftruncate(self._file, self.end)

    def close(self) -> None:
        os.close(self._file)

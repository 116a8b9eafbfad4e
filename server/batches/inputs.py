"""Where rows come from: lines with their numbers, read as often as they are asked for. Belongs in a thread."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Protocol

BREATH_ROWS = 100  # after so many, other threads may run: the event loop's, above all
UNBOUNDED = 1 << 40


class Input(Protocol):
    def lines(self, max_row_bytes: int = UNBOUNDED) -> Iterator[tuple[int, bytes]]:
        """Lines that are not blank, with their numbers from 1. One that is too long is cut, and is too long still."""


class JSONLines:
    """A file of lines."""

    def __init__(self, path: Path, open_file: Callable[[Path], BufferedIOBase] = lambda path: path.open("rb")) -> None:
        """`open_file`: of files that have to be unpacked."""
        self._path = path
        self._open_file = open_file

    def lines(self, max_row_bytes: int = UNBOUNDED) -> Iterator[tuple[int, bytes]]:
        number = 0
        with self._open_file(self._path) as file:
            while line := file.readline(max_row_bytes + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                rest = line
                while len(rest) > max_row_bytes and not rest.endswith(b"\n"):
                    rest = file.readline(max_row_bytes + 1)
                if line.strip():
                    yield number, line
                if number % BREATH_ROWS == 0:
                    time.sleep(0)

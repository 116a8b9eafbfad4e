"""How far a load test is: a bar on a terminal, a plain line for each tenth elsewhere."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType

from tqdm import tqdm

from seesaw.clients.record import Record


class Progress:
    """Counts requests that ended. Use it as a context manager. Writes to stderr."""

    def __init__(self, total: int, disable: bool = False) -> None:
        self._total = total
        self._num_done = 0
        self._num_failed = 0
        self._is_quiet = disable
        self._bar = tqdm(total=total, unit="req", disable=disable) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, record: Record) -> None:
        """Where nobody reads it any more, the run goes on."""
        self._num_done += 1
        self._num_failed += bool(record.error)
        if self._bar is not None:
            self._bar.update()
            if record.error:
                self._bar.set_postfix(failed=self._num_failed)
        elif not self._is_quiet and self._num_done * 10 // self._total > (self._num_done - 1) * 10 // self._total:
            with contextlib.suppress(OSError):
                print(
                    f"{self._num_done} of {self._total} requests, {self._num_failed} failed",
                    file=sys.stderr,
                    flush=True,
                )

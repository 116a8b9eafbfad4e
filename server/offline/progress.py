"""How far a run is: a bar where somebody looks at a terminal, else a line now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tqdm import tqdm

from seesaw.engine.terminal_bar import terminal_bar, token_rates
from seesaw.engine.wire.messages import Stats
from seesaw.server.batches.objects import RequestCounts
from seesaw.server.entry import complain

BAR_INTERVAL_S, LINE_INTERVAL_S = 0.5, 10.0


class Progress:
    """On stderr. Rates are those since it was made."""

    def __init__(
        self, counts: Callable[[], RequestCounts], stats: Callable[[], Stats], trouble: Callable[[], str | None]
    ) -> None:
        """`trouble`: why the run stands still, if it does."""
        self._counts, self._stats, self._trouble = counts, stats, trouble
        self._start_s = time.monotonic()
        self._first, self._first_stats = counts(), stats()
        self._bar = terminal_bar(self._first.total, "row", _num_done(self._first))

    async def show_on(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LINE_INTERVAL_S if self._bar is None else BAR_INTERVAL_S)
            self._show()

    def close(self) -> None:
        """Leave a bar as it is now."""
        if self._bar is not None:
            self._show()
            self._bar.close()

    def line(self) -> str:
        """How many rows are done, and at which rates."""
        counts = self._counts()
        num_new, elapsed_s = _num_done(counts) - _num_done(self._first), time.monotonic() - self._start_s
        num_left = counts.total - _num_done(counts)
        trouble = self._trouble()
        if trouble is not None:
            return f"{_num_done(counts)} of {counts.total} rows ({counts.failed} failed); {trouble}"
        left = f", {tqdm.format_interval(elapsed_s / num_new * num_left)} left" if num_new and num_left else ""
        return (
            f"{_num_done(counts)} of {counts.total} rows ({counts.failed} failed), {num_new / elapsed_s:.1f} rows/s, "
            f"{self._tokens(elapsed_s)}{left}"
        )

    def _show(self) -> None:
        if self._bar is None:
            complain(f"seesaw: {self.line()}")
            return
        counts = self._counts()
        self._bar.n = _num_done(counts)
        failed = f", {counts.failed} failed" if counts.failed else ""
        self._bar.set_postfix_str(self._trouble() or self._tokens(time.monotonic() - self._start_s) + failed)

    def _tokens(self, elapsed_s: float) -> str:
        now, first = self._stats(), self._first_stats
        prompts, outputs = now.prompt_tokens - first.prompt_tokens, now.generation_tokens - first.generation_tokens
        return token_rates(prompts, outputs, elapsed_s)


def _num_done(counts: RequestCounts) -> int:
    return counts.completed + counts.failed

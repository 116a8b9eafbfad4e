"""Which tokens the sequences with a grammar may have next, for steps that are under way. Used by the scheduler.

A step is sent one ahead, before the tokens are known that its sequences go on from. Their masks follow once they are:
the ranks compute meanwhile, and wait for masks only before they sample.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from seesaw.engine.grammar.matcher import MaskFiller
from seesaw.engine.sampling.token_masks import ALL, mask_words
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.wire.commands import Forward, Masks

# A mask takes from 20 to some 200 microseconds. As in vLLM, half of the cores are for others: on two, a second thread
# would take from the rank that computes meanwhile.
MOST_THREADS = 8


@dataclass(frozen=True)
class _Waiting:
    """A step that has rows with a mask, in their order: whose, and how many tokens it must have."""

    forward: Forward
    rows: list[tuple[Sequence, int]]

    @property
    def is_due(self) -> bool:
        return all(seq.known >= known for seq, known in self.rows if seq.is_live)


class PendingMasks:
    """Steps whose masks were not sent yet."""

    def __init__(self, vocab: int) -> None:
        self._words = mask_words(vocab)
        self._filler: MaskFiller | None = None
        self._waiting: list[_Waiting] = []
        self.num_sequences = 0  # that have a grammar and are not over

    def expect(self, forward: Forward, sampled: list[Sequence]) -> None:
        """A step was sent; `sampled` are all that it samples, in order."""
        rows = [(seq, seq.dispatched) for seq in sampled if seq.matcher is not None]
        if rows:
            self._waiting.append(_Waiting(forward, rows))

    def take_due(self) -> list[Masks]:
        """The masks that can be told now."""
        due = [waiting for waiting in self._waiting if waiting.is_due]
        if due:
            self._waiting = [waiting for waiting in self._waiting if not waiting.is_due]
        return [self._fill(waiting) for waiting in due]

    def _fill(self, waiting: _Waiting) -> Masks:
        if self._filler is None:
            self._filler = MaskFiller(max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // 2)))
        rows = np.empty((len(waiting.rows), self._words), dtype=np.uint32)
        # Of a sequence that is over nobody wants a token, but a row it has.
        matchers = [seq.matcher if seq.is_live else None for seq, _ in waiting.rows]
        self._filler.fill_rows(matchers, rows)
        for matcher, row in zip(matchers, rows, strict=True):
            if matcher is not None and matcher.failure is not None:
                row[:] = ALL  # it ends with an error, whatever comes
        forward = waiting.forward
        return Masks(forward.id, forward.layout, forward.replica, len(rows), rows.tobytes())

"""All live sequences, by state: what waits, in which order, and how many there are of each kind."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter

from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.scheduler.sequence import Sequence


class Queues:
    """Every sequence is in exactly one state's queue, in the order in which it came to that state.

    Waiting sequences are the exception: those whose KV was dropped come back at the front, oldest first.
    """

    def __init__(self, sorts_arrivals: bool = False) -> None:
        """`sorts_arrivals`: who comes may belong before others who wait."""
        self._sorts_arrivals = sorts_arrivals
        self._queues: dict[SeqState, dict[Sequence, None]] = {state: {} for state in SeqState}
        self._returned: list[Sequence] = []  # waiting again, or in an order of their own, before all others
        self.waiting_tokens = 0  # that they probably have to compute

    def add(self, seq: Sequence) -> None:
        assert seq.state is SeqState.WAITING
        if self._sorts_arrivals:
            insort(self._returned, seq, key=attrgetter("arrival"))
        else:
            self._queues[SeqState.WAITING][seq] = None
        self.waiting_tokens += seq.unfilled_tokens

    def move(self, seq: Sequence, state: SeqState) -> None:
        """The only way a sequence changes its state."""
        self.forget(seq)
        seq.move(state)
        if state is SeqState.WAITING:
            self.waiting_tokens += seq.unfilled_tokens
            insort(self._returned, seq, key=attrgetter("arrival"))
        else:
            self._queues[state][seq] = None

    def forget(self, seq: Sequence) -> None:
        """A sequence that is over, or about to change state, leaves its queue."""
        queue = self._queues[seq.state]
        if seq in queue:
            del queue[seq]
        else:
            self._returned.remove(seq)
        if seq.state is SeqState.WAITING:
            self.waiting_tokens -= seq.unfilled_tokens

    def list(self, *states: SeqState) -> list[Sequence]:
        """A copy, safe to walk while sequences move."""
        return [seq for state in states for seq in self.walk(state)]

    def walk(self, state: SeqState) -> Iterator[Sequence]:
        """In order, without a copy: stop walking once a sequence moved."""
        if state is SeqState.WAITING and self._returned:
            return chain(self._returned, self._queues[state])
        return iter(self._queues[state])

    def first(self, state: SeqState) -> Sequence | None:
        return next(self.walk(state), None)

    def count(self, *states: SeqState) -> int:
        returned = len(self._returned) if SeqState.WAITING in states else 0
        return returned + sum(len(self._queues[state]) for state in states)

    @property
    def unfilled_tokens(self) -> int:
        """Tokens of prompts that are still to be computed: of those that wait, as far as it is known, and of those
        under way."""
        begun = self._queues[SeqState.PREFILL]
        return self.waiting_tokens + sum(seq.prefill_end - seq.dispatched for seq in begun)

    @property
    def live(self) -> int:
        return self.count(*SeqState)

"""All live sequences, by state: what waits, in which order, and how many there are of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from sortedcontainers import SortedKeyList

from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.scheduler.sequence import Sequence


class Queues:
    """Every sequence is in exactly one state's queue, in the order in which it came to that state; those that wait, in
    the global order."""

    def __init__(self) -> None:
        self._queues: dict[SeqState, dict[Sequence, None]] = {
            state: {} for state in SeqState if state is not SeqState.WAITING
        }
        self._waiting: SortedKeyList[Sequence, int] = SortedKeyList(key=attrgetter("arrival"))
        self.waiting_tokens = 0  # that they probably have to compute
        self.yielding = 0  # live ones that give way to all others

    def add(self, seq: Sequence) -> None:
        """A new one."""
        assert seq.state is SeqState.WAITING
        self.yielding += seq.yields
        self._join(seq)

    def move(self, seq: Sequence, state: SeqState) -> None:
        """The only way a sequence changes its state."""
        self.forget(seq)
        seq.move(state)
        if state is SeqState.FINISHED:
            self.yielding -= seq.yields
        self._join(seq)

    def _join(self, seq: Sequence) -> None:
        if seq.state is SeqState.WAITING:
            self._waiting.add(seq)
            self.waiting_tokens += seq.unfilled_tokens
        else:
            self._queues[seq.state][seq] = None

    def forget(self, seq: Sequence) -> None:
        """A sequence that is over, or about to change state, leaves its queue."""
        if seq.state is SeqState.WAITING:
            self._waiting.remove(seq)
            self.waiting_tokens -= seq.unfilled_tokens
        else:
            del self._queues[seq.state][seq]

    def list(self, *states: SeqState) -> list[Sequence]:
        """A copy, safe to walk while sequences move."""
        return [seq for state in states for seq in self.walk(state)]

    def walk(self, state: SeqState) -> Iterator[Sequence]:
        """In order, without a copy: stop walking once a sequence moved."""
        return iter(self._waiting if state is SeqState.WAITING else self._queues[state])

    def first(self, state: SeqState) -> Sequence | None:
        return next(self.walk(state), None)

    def count(self, *states: SeqState) -> int:
        return sum(len(self._waiting if state is SeqState.WAITING else self._queues[state]) for state in states)

    @property
    def somebody_waits(self) -> bool:
        """Somebody does to whom those that yield give way, while there are some of these."""
        return self.yielding > 0 and len(self._waiting) > 0 and not self._waiting[0].yields

    @property
    def unfilled_tokens(self) -> int:
        """Tokens of prompts that are still to be computed: of those that wait, as far as it is known, and of those
        under way."""
        begun = self._queues[SeqState.PREFILL]
        return self.waiting_tokens + sum(seq.prefill_end - seq.dispatched for seq in begun)

    @property
    def live(self) -> int:
        return self.count(*SeqState)

"""All live sequences, by state: what waits, in which order, and how many there are of each kind."""

from __future__ import annotations

from collections.abc import Iterator

from engine.scheduler.request import SeqState, Sequence


class Roster:
    """Every sequence is in exactly one state's line, in the order in which it came to that state.

    Waiting sequences are the exception: those whose KV was dropped come back at the front, oldest first.
    """

    def __init__(self) -> None:
        self._lines: dict[SeqState, dict[Sequence, None]] = {state: {} for state in SeqState}
        self.waiting_tokens = 0

    def add(self, seq: Sequence) -> None:
        assert seq.state is SeqState.WAITING
        self._lines[SeqState.WAITING][seq] = None
        self.waiting_tokens += len(seq.tokens)

    def move(self, seq: Sequence, state: SeqState) -> None:
        """The only way a sequence changes its state."""
        self.forget(seq)
        seq.state = state
        line = self._lines[state]
        if state is SeqState.WAITING:
            self.waiting_tokens += len(seq.tokens)
            older = {s: None for s in line if s.arrival < seq.arrival}
            self._lines[state] = {**older, seq: None, **line}
        else:
            line[seq] = None

    def forget(self, seq: Sequence) -> None:
        """A sequence that is over, or about to change state, leaves its line."""
        del self._lines[seq.state][seq]
        if seq.state is SeqState.WAITING:
            self.waiting_tokens -= len(seq.tokens)

    def line(self, *states: SeqState) -> list[Sequence]:
        """A copy, safe to walk while sequences move."""
        return [seq for state in states for seq in self._lines[state]]

    def walk(self, state: SeqState) -> Iterator[Sequence]:
        """In order, without a copy: stop walking once a sequence moved."""
        return iter(self._lines[state])

    def count(self, *states: SeqState) -> int:
        return sum(len(self._lines[state]) for state in states)

    @property
    def live(self) -> int:
        return sum(len(line) for line in self._lines.values())

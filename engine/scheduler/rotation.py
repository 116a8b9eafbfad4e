"""Who has tokens left to decode on a replica, the next ones first. Used by the batcher and the scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from seesaw.engine.scheduler.rows import Bools, Ints, Rows
from seesaw.engine.scheduler.sequence import Sequence

# A step may run and the next one, whose input is its output, wait behind it.
MAX_PENDING_TOKENS = 2


@dataclass(frozen=True)
class Dispatched:
    """One token each of some sequences went out: int64 columns, and those whose last one it was."""

    slots: Ints
    positions: Ints
    tokens: Ints  # an id, or `~slot` where it is still on its way
    spent: list[Sequence]


class Rotation:
    """Sequences by slot, and the order in which they decode. What happens to many of them happens to whole columns."""

    def __init__(self, num_slots: int, block_size: int) -> None:
        self.rows = Rows(num_slots)
        self.context_tokens = 0  # of all of them together
        self._block_size = block_size
        self._sequences = np.full(num_slots, None, dtype=object)
        self._ordered: Ints = np.zeros(0, dtype=np.int64)
        self._joined: list[int] = []  # behind those: many come at once, and each would cost a copy

    @property
    def _order(self) -> Ints:
        if self._joined:
            self._ordered = np.append(self._ordered, self._joined)
            self._joined = []
        return self._ordered

    @_order.setter
    def _order(self, slots: Ints) -> None:
        self._ordered = slots

    def __len__(self) -> int:
        return len(self._ordered) + len(self._joined)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.of(self._order))

    def __contains__(self, seq: Sequence) -> bool:
        return seq.rows is self.rows

    def of(self, slots: Ints) -> list[Sequence]:
        """Who decodes in these slots, or did until its last token was sent."""
        sequences: list[Sequence] = self._sequences[slots].tolist()
        return sequences

    # --- who is here

    def join(self, seq: Sequence) -> None:
        """It decodes from now on, after all others."""
        rows, slot = self.rows, seq.slot
        rows.dispatched[slot], rows.turn[slot], rows.step[slot] = seq.dispatched, seq.turn, seq.step
        rows.known[slot], rows.newest[slot] = seq.known, seq.newest
        rows.max_length[slot], rows.ends[slot] = seq.max_length, seq.end_length
        rows.is_live[slot] = True
        self._sequences[slot] = seq
        self._joined.append(slot)
        self.context_tokens += seq.dispatched
        rows.room[slot], rows.has_news[slot] = len(seq.device_blocks) * self._block_size, True
        seq.enter(rows)

    def leave(self, seq: Sequence) -> None:
        """It does not decode any more; its last tokens may still be on their way."""
        self.context_tokens -= seq.dispatched
        seq.leave_rows()
        self._order = self._order[self._order != seq.slot]

    def grew(self, sequences: list[Sequence]) -> None:
        """Each has another device block, which the ranks do not know yet."""
        slots = [seq.slot for seq in sequences]
        self.rows.room[slots] += self._block_size
        self.rows.has_news[slots] = True

    def forget(self, slot: int) -> None:
        """The slot is free; nothing on its way names it."""
        self._sequences[slot] = None

    def close(self, slot: int) -> None:
        """Nobody wants what is still on its way for this slot."""
        self.rows.is_live[slot] = False

    # --- their steps

    def due(self, turn: int, pp: int) -> Ints:
        """The slots of those that can decode in a turn, in order."""
        pending = self._pending()
        can = pending < MAX_PENDING_TOKENS
        if pp > 1:
            can &= (pending == 0) | (self.rows.turn[self._order] + pp <= turn)
        return self._order[can]

    def first_turn(self, pp: int) -> int:
        """The first turn in which one of them can decode."""
        pending = self._pending()
        ready = np.where(pending > 0, self.rows.turn[self._order] + pp, 0)[pending < MAX_PENDING_TOKENS]
        return int(ready.min()) if len(ready) else 0

    def _pending(self) -> Ints:
        return self.rows.dispatched[self._order] + 1 - self.rows.known[self._order]

    @property
    def num_full(self) -> int:
        """How many have no block for their next position."""
        return len(self.full(self._order))

    def full(self, slots: Ints) -> Ints:
        """Those of these slots without a block for their next position."""
        return slots[self.rows.dispatched[slots] >= self.rows.room[slots]]

    def dispatch(self, slots: Ints, turn: int) -> Dispatched:
        """The next token of each goes out in a step of that turn; they go to the end of the line."""
        rows = self.rows
        positions = rows.dispatched[slots]
        tokens = np.where(positions < rows.known[slots], rows.newest[slots], ~slots)
        rows.dispatched[slots] = positions + 1
        rows.turn[slots] = turn
        self.context_tokens += len(slots)
        if len(slots) < len(self._order):
            chosen = np.zeros(len(rows.turn), dtype=np.bool_)
            chosen[slots] = True
            self._order = np.concatenate((self._order[~chosen[self._order]], slots))
        spent = self.of(slots[positions + 2 >= rows.max_length[slots]])
        return Dispatched(slots, positions, tokens, spent)

    def take(self, slots: Ints, tokens: list[int]) -> tuple[Bools, Bools]:
        """Tokens of a step are known. For each: whether anybody wants it, and whether it is the last by length."""
        rows = self.rows
        known = rows.known[slots] + 1
        rows.known[slots] = known
        rows.newest[slots] = tokens
        return rows.is_live[slots], known >= rows.ends[slots]

    def take_first(self, slot: int, known: int, token: int) -> None:
        """The token of a prompt is known, the last of so many. Its sequence may decode already."""
        self.rows.known[slot], self.rows.newest[slot] = known, token

    def left_tokens(self) -> int:
        """Output tokens that they may still ask for, together."""
        return int((self.rows.max_length[self._order] - self.rows.dispatched[self._order] - 1).sum())

"""Where a replica's decoding sequences stand, in columns by slot: a step that a thousand share changes each once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NO_SLOTS: Ints = np.zeros(0, dtype=np.int64)


class Rows:
    """A row is a sequence's from when it begins to decode until its slot is another's.

    While it decodes, `dispatched`, `turn` and `step` are here and nowhere else: its fields of these names read them.
    `known` goes on until its last token is there.
    """

    def __init__(self, num_slots: int) -> None:
        def ints() -> Ints:
            return np.zeros(num_slots, dtype=np.int64)

        def bools() -> Bools:
            return np.zeros(num_slots, dtype=np.bool_)

        self.dispatched = ints()  # tokens that have KV, or will
        self.turn = ints()  # of its last step
        self.step = ints()  # the id of that step
        self.known = ints()  # tokens that the host knows
        self.newest = ints()  # the last of those
        self.room = ints()  # tokens for which it has device blocks
        self.max_length = ints()
        self.ends = ints()  # the known tokens with which it is over
        self.is_live = bools()
        self.has_news = bools()  # the ranks do not know its slot, or not all of its blocks

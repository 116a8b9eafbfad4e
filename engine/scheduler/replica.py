"""What the scheduler's parts know of one replica: its blocks, its slots, who is there."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from seesaw.engine.kv.blocks import BlockPool
from seesaw.engine.scheduler.rotation import Rotation
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.scheduler.siblings import Siblings

MAX_STAGES = 64  # whose turns are remembered


@dataclass
class Replica:
    """One replica's share of the state: its blocks, its slots, who is there, and its time in turns (see `Batcher`)."""

    index: int
    pool: BlockPool
    free_slots: list[int]
    rotation: Rotation  # who has tokens left to decode
    prefilling: dict[Sequence, None] = field(default_factory=dict)
    forwards_in_flight: int = 0
    completed_step: int = 0  # the id of the last forward that ran: they complete in order
    unsettled: dict[Sequence, None] = field(default_factory=dict)  # who waits for steps that name it to complete
    incoming: dict[Sequence, None] = field(default_factory=dict)  # being swapped in
    siblings: dict[str, Siblings] = field(default_factory=dict)  # by request, those whose first one is here
    # Keys of blocks that somebody here is about to compute, or to bring from the host: others wait to share them.
    coming: dict[bytes, Sequence] = field(default_factory=dict)
    # By layout and key, blocks that swaps in flight write, here and, by key, on the host. Swaps of a replica in one
    # direction complete in order: one that is sent later may build on them.
    arriving: dict[tuple[int, bytes], int] = field(default_factory=dict)
    departing: dict[bytes, int] = field(default_factory=dict)
    turn: int = 0  # of its last step
    decode_turns: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_STAGES))  # of those that decode

    def next_decode_turn(self, steps: int, pp: int) -> int:
        """The first turn with which no more than `steps` of any `pp` turns in a row decode."""
        return self.decode_turns[-steps] + pp if len(self.decode_turns) >= steps else 0

    @property
    def residents(self) -> int:
        """Sequences that decode here, or will."""
        return len(self.rotation) + len(self.prefilling) + len(self.incoming)

    def remove(self, seq: Sequence) -> None:
        """It is in none of the lines from now on."""
        if seq in self.rotation:
            self.rotation.leave(seq)
        self.prefilling.pop(seq, None)
        self.incoming.pop(seq, None)

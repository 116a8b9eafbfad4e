"""Where KV lives: sequences take and give back device blocks, host blocks and slots here and nowhere else.

The methods only do the bookkeeping and describe the copies (`Swap`) that must follow; states and dispatching
are the scheduler's. Device blocks stay with a sequence until nothing in flight names them (`Lifecycle.settle`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from engine.kv.blocks import BlockPool
from engine.kv.geometry import KVGeometry
from engine.parallel.layout import Layout
from engine.scheduler.rotation import Rotation
from engine.scheduler.sequence import Sequence
from engine.values.errors import IntegrityError
from engine.wire.commands import Swap

MAX_STAGES = 64  # whose turns are remembered
# Of a device pool, kept free for those that decode to grow into while nobody ends. Were it too little, the youngest
# leaves for the host, at the cost of a copy.
_GROWTH_FRACTION = 0.01


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


class BlockManager:
    """Device pools of the current replicas, and the host pool."""

    def __init__(
        self,
        geometry: KVGeometry,
        num_device_blocks: int,
        num_host_blocks: int,
        num_slots: int,
        next_id: Callable[[], int],
    ) -> None:
        self._block_size = geometry.block_size
        self.blocks_for = geometry.blocks_for
        self._num_device_blocks = num_device_blocks
        self._num_slots = num_slots
        self._next_id = next_id
        self.host = BlockPool(num_host_blocks, "host")
        self.replicas: list[Replica] = []

    def enter(self, layout: Layout) -> None:
        """The replicas become those of `layout`. With another dp degree nothing may be on any device."""
        if len(self.replicas) == layout.dp:
            return
        for replica in self.replicas:
            if replica.pool.used or len(replica.free_slots) != self._num_slots:
                raise IntegrityError(f"replica {replica.index} still holds blocks while the replicas change")
        self.replicas = [
            Replica(
                i,
                BlockPool(self._num_device_blocks, "device"),
                list(range(self._num_slots - 1, -1, -1)),
                Rotation(self._num_slots, self._block_size),
            )
            for i in range(layout.dp)
        ]

    @property
    def device_blocks(self) -> int:
        """Of all replicas together."""
        return len(self.replicas) * self._num_device_blocks

    @property
    def free_device_blocks(self) -> int:
        return sum(replica.pool.free for replica in self.replicas)

    def room(self, replica: Replica, surge: bool) -> int:
        """Blocks that a new sequence may take.

        Beside those that decode some stay free, for them to grow: where the youngest would have to be computed again,
        one for each of them, and where there is a host pool, a few.
        """
        free = replica.pool.free
        if surge or not replica.rotation:
            return free
        growth = len(replica.rotation)
        if self.host.total:
            growth = min(growth, 1 + int(self._num_device_blocks * _GROWTH_FRACTION))
        return free - growth

    # --- device

    def admit(self, seq: Sequence, replica: Replica, layout: int, surge: bool) -> bool:
        """Give a waiting sequence all blocks its known tokens need, sharing live ones of equal content.

        In a surge its way out is reserved too, enough host blocks for all of them: a prompt that is interrupted half
        done must not lose what was computed. Returns False, changing nothing, if there is no room.
        """
        tokens = len(seq.tokens)
        total = self.blocks_for(tokens)
        if not replica.free_slots or (surge and total > self.host.free):
            return False
        shared = self._shared_on_device(seq, replica, layout, (tokens - 1) // self._block_size)
        if total - len(shared) > self.room(replica, surge):
            return False
        self._occupy(seq, replica, layout, [replica.pool.share(b) for b in shared], total - len(shared))
        if surge:
            seq.reserve_host(self.host.allocate(total))
        seq.begin_prefill(len(shared) * self._block_size)
        return True

    def grow(self, replica: Replica, sequences: list[Sequence]) -> None:
        """Give decoding sequences another block each, of which there are enough."""
        for seq, block in zip(sequences, replica.pool.allocate(len(sequences)), strict=True):
            seq.grow(block)
        replica.rotation.grew(sequences)

    def publish(self, seq: Sequence, first_token: int) -> None:
        """Full prompt blocks that a dispatched step fills from `first_token` on may be shared from now on:
        whoever shares them runs later on the same ranks."""
        pool = self.replicas[seq.replica].pool
        for i in range(first_token // self._block_size, min(seq.dispatched // self._block_size, len(seq.keys))):
            pool.publish(seq.device_blocks[i], (seq.layout, seq.keys[i]))

    def drop(self, seq: Sequence) -> None:
        """Give back everything; the sequence starts over from its known tokens."""
        self._leave_device(seq)
        self.host.release(seq.leave_host())
        seq.restart()

    # --- between device and host

    def swap_out(self, seq: Sequence) -> Swap | None:
        """Describe the copy of a sequence's KV to the host; None, changing nothing, if the host has no room.

        Blocks whose content already is on the host are shared instead, so the copy may be empty.
        """
        count = self.blocks_for(seq.dispatched)
        full = min(seq.dispatched // self._block_size, len(seq.keys))
        found = [self.host.find(seq.keys[i]) if i < full else None for i in range(count)]
        missing = found.count(None) - len(seq.reserved_blocks)
        if missing > self.host.free:
            return None
        spare = list(seq.reserved_blocks) + (self.host.allocate(missing) if missing > 0 else [])
        device_blocks: list[int] = []
        written: list[int] = []
        blocks: list[int] = []
        for device_block, host_block in zip(seq.device_blocks, found, strict=False):
            if host_block is None:
                blocks.append(spare.pop())
                device_blocks.append(device_block)
                written.append(blocks[-1])
            else:
                blocks.append(self.host.share(host_block))
        seq.settle_on_host(blocks)
        self.host.release(spare)
        return Swap(self._next_id(), seq.layout, seq.replica, True, device_blocks, written)

    def swapped_out(self, seq: Sequence) -> None:
        """The copy has completed on all ranks and no step names the device blocks any more."""
        for i in range(min(seq.dispatched // self._block_size, len(seq.keys))):
            self.host.publish(seq.host_blocks[i], seq.keys[i])
        self._leave_device(seq)

    def swap_in(self, seq: Sequence, replica: Replica, layout: int, surge: bool) -> Swap | None:
        """Describe the copy of a hosted sequence to a replica; None, changing nothing, if there is no room."""
        filled = self.blocks_for(seq.dispatched)
        total = self.blocks_for(max(seq.prefill_end, seq.dispatched + 1))
        full = min(seq.dispatched // self._block_size, len(seq.keys))
        shared = self._shared_on_device(seq, replica, layout, full)
        if not replica.free_slots or total - len(shared) > self.room(replica, surge):
            return None
        if surge:  # it will have to leave again at the end of its prompt
            out = self.blocks_for(seq.prefill_end)
            if out > self.host.free:
                return None
            seq.reserve_host(self.host.allocate(out))
        self._occupy(seq, replica, layout, [replica.pool.share(b) for b in shared], total - len(shared))
        copied = slice(len(shared), filled)
        return Swap(self._next_id(), layout, replica.index, False, seq.device_blocks[copied], seq.host_blocks[copied])

    def swapped_in(self, seq: Sequence) -> None:
        """The copy has completed on all ranks."""
        self.publish(seq, 0)
        self.host.release(seq.leave_host_copy())

    # --- parts

    def _shared_on_device(self, seq: Sequence, replica: Replica, layout: int, most: int) -> list[int]:
        blocks: list[int] = []
        for key in seq.keys[:most]:
            block = replica.pool.find((layout, key))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _occupy(self, seq: Sequence, replica: Replica, layout: int, shared: list[int], fresh: int) -> None:
        blocks = shared + replica.pool.allocate(fresh)
        seq.occupy(replica.index, layout, replica.free_slots.pop(), blocks)

    def _leave_device(self, seq: Sequence) -> None:
        if seq.slot < 0:
            return
        replica = self.replicas[seq.replica]
        blocks, slot = seq.vacate()
        replica.rotation.forget(slot)
        replica.pool.release(blocks)
        replica.free_slots.append(slot)

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Raise IntegrityError unless both pools and the slots add up to what these sequences hold."""
        held = list(sequences)
        self.host.check([blocks for s in held for blocks in (s.host_blocks, s.reserved_blocks)])
        for replica in self.replicas:
            here = [s for s in held if s.replica == replica.index and s.slot >= 0]
            replica.pool.check([s.device_blocks for s in here])
            slots = sorted(replica.free_slots + [s.slot for s in here])
            if slots != list(range(self._num_slots)):
                raise IntegrityError(f"slots of replica {replica.index} do not add up: {slots}")
            if replica.rotation.context_tokens != sum(s.dispatched for s in replica.rotation):
                raise IntegrityError(f"the context of replica {replica.index} does not add up")

"""Where KV lives: sequences take and give back device blocks, host blocks and slots here and nowhere else.

The methods only do the bookkeeping and describe the copies (`Swap`) that must follow; states and dispatching
are the scheduler's. Device blocks stay with a sequence until nothing in flight names them (`Lifecycle.settle`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from seesaw.engine.kv.blocks import BlockPool
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.kv.prefixes import Prefix, longest
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.scheduler.prefix_cache import PrefixCache
from seesaw.engine.scheduler.replica import Replica
from seesaw.engine.scheduler.rotation import Rotation
from seesaw.engine.scheduler.savings import Savings
from seesaw.engine.scheduler.seq_state import ON_DEVICE
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.scheduler.siblings import Siblings
from seesaw.engine.values.errors import IntegrityError
from seesaw.engine.wire.commands import Swap

# Of a device pool, kept free for those that decode to grow into while nobody ends. Were it too little, the youngest
# leaves for the host, at the cost of a copy.
_GROWTH_FRACTION = 0.01
# What those that yield leave free: so many prompts as the latest of the others, which need not wait for blocks then,
# but no more than this part of a pool.
_SPARE_PROMPTS, _SPARE_FRACTION = 2, 1 / 16


class Admission(NamedTuple):
    """What a sequence found when it started."""

    device_tokens: int
    host_tokens: int
    swap: Swap | None  # brings what only the host had


class BlockManager:
    """Device pools of the current replicas, and the host pool."""

    def __init__(
        self,
        geometry: KVGeometry,
        num_device_blocks: int,
        num_host_blocks: int,
        num_slots: int,
        next_id: Callable[[], int],
        caches: bool,
    ) -> None:
        """`caches`: blocks are found by their content, as prefixes of other prompts, when nobody holds them, too."""
        self._block_size = geometry.block_size
        self.blocks_for = geometry.blocks_for
        self._num_device_blocks = num_device_blocks
        self._num_slots = num_slots
        self._next_id = next_id
        self._caches = caches
        self._spare = 0  # blocks of a replica
        self.host = BlockPool(num_host_blocks, "host", caches)
        self.replicas: list[Replica] = []
        self.prefixes = PrefixCache(self.host, self.replicas, geometry, caches)
        self.savings = Savings(self.host, self.replicas, geometry.block_size, next_id, caches)

    def enter(self, layout: Layout) -> None:
        """The replicas become those of `layout`. With another dp degree nothing may be on any device."""
        if len(self.replicas) == layout.dp:
            return
        for replica in self.replicas:
            if replica.pool.used or len(replica.free_slots) != self._num_slots:
                raise IntegrityError(f"replica {replica.index} still holds blocks while the replicas change")
        self.replicas[:] = [
            Replica(
                i,
                BlockPool(self._num_device_blocks, "device", self._caches),
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
    def available_device_blocks(self) -> int:
        return sum(replica.pool.available for replica in self.replicas)

    def spare_for(self, prompt_len: int) -> None:
        """A prompt has come to which others yield: they leave room for the next."""
        most = int(self._num_device_blocks * _SPARE_FRACTION)
        self._spare = min(most, _SPARE_PROMPTS * self.blocks_for(prompt_len))

    def room(self, replica: Replica, surge: bool, yields: bool = False) -> int:
        """Blocks that a new sequence may take, which may be one that `yields`.

        Beside those that decode some stay free, for them to grow: where the youngest would have to be computed again,
        one for each of them, and where there is a host pool, what they need for their next tokens, or a few.
        """
        available = replica.pool.available
        if surge or not replica.rotation:
            return available
        growth = len(replica.rotation)
        if self.host.total:
            few = 1 + int(self._num_device_blocks * _GROWTH_FRACTION)
            growth = min(growth, max(few, replica.rotation.num_full))
        return available - growth - (self._spare if yields else 0)

    # --- device

    def admit(
        self,
        seq: Sequence,
        replica: Replica,
        layout: int,
        surge: bool,
        prefix: Prefix,
        bring: bool,
        siblings: Siblings | None = None,
    ) -> Admission | None:
        """Give a waiting sequence all blocks its known tokens need, sharing those of its `prefix`, which are there.

        `bring`: what only the host has of it is copied, not computed. In a surge its way out is reserved too, enough
        host blocks for all of them, of which it keeps those that the host has: a prompt that is interrupted half done
        must not lose what was computed. `siblings`: those who have its prefix on the device. Returns None, changing
        nothing, if there is no room.
        """
        device, host = prefix
        total, found = self.blocks_for(seq.known), len(device)
        taken = total - found if siblings is not None else replica.pool.taking(total, device)
        if not replica.free_slots or taken > self.room(replica, surge, seq.yields):
            return None
        if surge and not self.has_way_out(total, host):
            return None
        copied = prefix.beyond_device if bring else 0
        if surge or copied:
            seq.host_blocks = [self.host.share(block) for block in host]
        if surge:
            seq.reserve_host(self.host.allocate(total - len(host)))
        if siblings is None:
            self._occupy(seq, replica, layout, [replica.pool.share(block) for block in device], total - found)
        else:
            self._occupy(seq, replica, layout, siblings.borrow(replica.pool, found), total - found)
            seq.borrow(siblings)
        seq.begin_prefill((found + copied) * self._block_size)
        self._announce(seq, found)
        swap = self._bring(seq, slice(found, found + copied)) if copied else None
        return Admission(found * self._block_size, copied * self._block_size, swap)

    def has_way_out(self, total: int, on_host: list[int]) -> bool:
        """Whether the host can take a prompt of so many blocks, of which it has these."""
        return self.host.taking(total, on_host) <= self.host.available

    def grow(self, replica: Replica, sequences: list[Sequence]) -> None:
        """Give decoding sequences another block each, of which there are enough."""
        for seq, block in zip(sequences, replica.pool.allocate(len(sequences)), strict=True):
            seq.grow(block)
        replica.rotation.grew(sequences)

    def publish(self, seq: Sequence, first_token: int) -> None:
        """Full blocks that a dispatched step fills from `first_token` on may be shared from now on:
        whoever shares them runs later on the same ranks."""
        replica = self.replicas[seq.replica]
        for i in range(first_token // self._block_size, min(seq.dispatched // self._block_size, len(seq.keys))):
            replica.pool.publish(seq.device_blocks[i], (seq.layout, seq.keys[i]))
            replica.coming.pop(seq.keys[i], None)

    def finish(self, seq: Sequence) -> None:
        """It is over: whoever goes on from there may share what it computed from now on, as any that a dispatched step
        fills (`publish`). It gives back what it holds once nothing in flight names it."""
        if seq.state in ON_DEVICE:
            first = len(seq.keys)
            self.prefixes.extend(seq)
            self.publish(seq, first * self._block_size)

    def drop(self, seq: Sequence) -> None:
        """Give back everything; the sequence starts over from its known tokens."""
        self._leave_device(seq)
        self.host.release(seq.leave_host())
        seq.restart()

    # --- between device and host

    def swap_out(self, seq: Sequence) -> Swap | None:
        """Describe the copy of a sequence's KV to the host; None, changing nothing, if the host has no room.

        Blocks whose content already is on the host, or on its way there, are shared instead, so the copy may be empty.
        """
        count, held = self.blocks_for(seq.dispatched), seq.host_blocks
        departing = self.replicas[seq.replica].departing
        keys = seq.keys[len(held) : seq.dispatched // self._block_size]
        there = list(map(self.host.find, keys))
        found = [departing.get(key) if block is None else block for key, block in zip(keys, there, strict=True)]
        found += [None] * (count - len(held) - len(found))
        if None not in found and None in there:
            found[-1] = None  # without a copy of its own it would not wait for the others'
        missing = found.count(None) - len(seq.reserved_blocks)
        shared = [block for block in found if block is not None]
        if missing > self.host.available - self.host.num_cached(shared):
            return None
        for block in shared:  # before any of them is taken for something else
            self.host.share(block)
        spare = list(seq.reserved_blocks) + (self.host.allocate(missing) if missing > 0 else [])
        blocks = held + [spare.pop() if block is None else block for block in found]
        copied = [i for i, block in enumerate(found, len(held)) if block is None]
        seq.settle_on_host(blocks)
        self.host.release(spare)
        for i in copied:
            if i < len(held) + len(keys):
                departing.setdefault(seq.keys[i], blocks[i])
        on_device, on_host = ([each[i] for i in copied] for each in (seq.device_blocks, blocks))
        return Swap(self._next_id(), seq.layout, seq.replica, True, on_device, on_host)

    def reset_cache(self, live: list[Sequence]) -> None:
        """Nothing that was computed until now is found any more, nor what those of the live ones compute that have
        begun."""
        self.prefixes.reset(live)
        self.savings.forget()

    def swapped_out(self, seq: Sequence) -> None:
        """The copy has completed on all ranks and no step names the device blocks any more."""
        for i in range(min(seq.dispatched // self._block_size, len(seq.keys))):
            self.host.publish(seq.host_blocks[i], seq.keys[i])
        self._leave_device(seq)

    def swap_in(self, seq: Sequence, replica: Replica, layout: int, surge: bool) -> Swap | None:
        """Describe the copy of a hosted sequence to a replica; None, changing nothing, if there is no room."""
        filled = self.blocks_for(seq.dispatched)
        total = self.blocks_for(max(seq.prefill_end, seq.dispatched + 1))
        keys = [(layout, key) for key in seq.keys[: seq.dispatched // self._block_size]]
        shared = longest(replica.pool.find, keys)
        arriving = longest(replica.arriving.get, keys[len(shared) :])
        if arriving and len(shared) + len(arriving) == filled:
            arriving.pop()  # without a copy of its own it would not wait for the others'
        shared += arriving
        if not replica.free_slots or replica.pool.taking(total, shared) > self.room(replica, surge, seq.yields):
            return None
        if surge:  # it will have to leave again at the end of its prompt, all but what stays as it is
            out = self.blocks_for(seq.prefill_end) - seq.dispatched // self._block_size
            if out > self.host.available:
                return None
            seq.reserve_host(self.host.allocate(out))
        self._occupy(seq, replica, layout, [replica.pool.share(b) for b in shared], total - len(shared))
        if seq.in_prefill:
            self._announce(seq, len(shared))
        return self._bring(seq, slice(len(shared), filled))

    def _announce(self, seq: Sequence, found: int) -> None:
        """It is about to have the full blocks of its prompt behind those that it found."""
        seq.announced_from(found)
        coming = self.replicas[seq.replica].coming
        for key in seq.keys[found:]:
            coming.setdefault(key, seq)

    def _bring(self, seq: Sequence, copied: slice) -> Swap:
        """These of its blocks are on their way to it from the host, full ones for others, too."""
        arriving = self.replicas[seq.replica].arriving
        full = seq.dispatched // self._block_size
        for key, block in zip(seq.keys[copied][: full - copied.start], seq.device_blocks[copied], strict=False):
            arriving.setdefault((seq.layout, key), block)
        on_device, on_host = seq.device_blocks[copied], seq.host_blocks[copied]
        return Swap(self._next_id(), seq.layout, seq.replica, False, on_device, on_host)

    def swapped_in(self, seq: Sequence) -> None:
        """The copy has completed on all ranks."""
        self.publish(seq, 0)
        self._forget_ways(seq)
        in_surge = bool(seq.reserved_blocks)
        self.host.release(seq.leave_host_copy(keep=seq.dispatched // self._block_size if in_surge else 0))

    def _forget_ways(self, seq: Sequence) -> None:
        """Nothing is on its way to or from a sequence any more."""
        replica = self.replicas[seq.replica]
        if not (replica.arriving or replica.departing):
            return
        for i, key in enumerate(seq.keys):
            if i < len(seq.device_blocks) and replica.arriving.get((seq.layout, key)) == seq.device_blocks[i]:
                del replica.arriving[seq.layout, key]
            if i < len(seq.host_blocks) and replica.departing.get(key) == seq.host_blocks[i]:
                del replica.departing[key]

    # --- parts

    def _occupy(self, seq: Sequence, replica: Replica, layout: int, shared: list[int], fresh: int) -> None:
        blocks = shared + replica.pool.allocate(fresh)
        seq.occupy(replica.index, layout, replica.free_slots.pop(), blocks)
        if seq.request_id not in replica.siblings:
            replica.siblings[seq.request_id] = Siblings(seq)

    def _leave_device(self, seq: Sequence) -> None:
        if seq.slot < 0:
            return
        replica = self.replicas[seq.replica]
        self._forget_ways(seq)
        if replica.coming:
            for key in seq.announced_keys:
                if replica.coming.get(key) is seq:
                    del replica.coming[key]
        if (siblings := replica.siblings.get(seq.request_id)) and siblings.first is seq:
            del replica.siblings[seq.request_id]
        replica.pool.release(seq.own_blocks)
        if seq.siblings is not None:
            seq.siblings.give_back(replica.pool)
        slot = seq.vacate()
        replica.rotation.forget(slot)
        replica.free_slots.append(slot)

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Raise IntegrityError unless both pools and the slots add up to what these sequences hold."""
        held = list(sequences)
        savings = self.savings.under_way
        on_host = [blocks for s in held for blocks in (s.host_blocks, s.reserved_blocks)]
        self.host.check([*on_host, *(saving.host_blocks for saving in savings)])
        for replica in self.replicas:
            here = [s for s in held if s.replica == replica.index and s.slot >= 0]
            saved = [saving.device_blocks for saving in savings if saving.replica == replica.index]
            lent = {id(s.siblings): s.siblings.blocks for s in here if s.siblings is not None}
            replica.pool.check([*(s.own_blocks for s in here), *lent.values(), *saved])
            slots = sorted(replica.free_slots + [s.slot for s in here])
            if slots != list(range(self._num_slots)):
                raise IntegrityError(f"slots of replica {replica.index} do not add up: {slots}")
            if replica.rotation.context_tokens != sum(s.dispatched for s in replica.rotation):
                raise IntegrityError(f"the context of replica {replica.index} does not add up")

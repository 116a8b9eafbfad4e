"""What of a prompt is on devices and on the host already, or will be. Used by the block manager and the batcher.

It only looks: who holds which block is the block manager's.
"""

from __future__ import annotations

from collections.abc import Iterable

from seesaw.engine.kv.blocks import BlockPool, block_keys
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.kv.prefixes import LivePrefixes, longest
from seesaw.engine.scheduler.replica import Replica
from seesaw.engine.scheduler.seq_state import ON_DEVICE, SeqState
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.scheduler.siblings import Siblings


class PrefixCache:
    """A view of the pools, by content. A device block's key is of a layout, too."""

    def __init__(self, host: BlockPool, replicas: list[Replica], geometry: KVGeometry, enabled: bool) -> None:
        """`replicas` is the list of the current ones. `enabled`: if not, only the continuations of one request share
        its prompt, on a device."""
        self._host = host
        self._replicas = replicas
        self._layouts = range(len(geometry.plan.layouts))
        self._block_size = geometry.block_size
        self._enabled = enabled
        self._live = LivePrefixes()

    # --- while a sequence waits

    def came(self, seq: Sequence) -> None:
        """From now on others, its siblings among them, may expect to find a prompt."""
        self._live.add(seq.request_id, seq.keys)

    def expected_tokens(self, seq: Sequence) -> int:
        """How many tokens of its prompt it will probably find."""
        return self._live.expected_blocks(self._findable(seq), self._is_there) * self._block_size

    def siblings(self, seq: Sequence, replica: Replica, layout: int) -> Siblings | None:
        """Other continuations of its prompt, the first of which has all blocks of it on a replica that need not be
        computed: there is nothing to look up then."""
        siblings = replica.siblings.get(seq.request_id)
        # After a reset its keys are others than those of who still waits.
        if siblings is None or siblings.first.keys is not seq.keys or not seq.finds:
            return None
        first = siblings.first
        is_there = first.layout == layout and first.state in ON_DEVICE
        return siblings if is_there and first.dispatched >= self.shared_blocks(seq) * self._block_size else None

    def shared_blocks(self, seq: Sequence) -> int:
        """Blocks of its prompt that all of its continuations share: not that of the prompt's last token."""
        return min(len(seq.keys), (seq.prompt_len - 1) // self._block_size)

    def on_device(self, seq: Sequence, replica: Replica, layout: int) -> list[int]:
        """The blocks of a prompt's start that a replica has."""
        return longest(replica.pool.find, ((layout, key) for key in self._findable(seq)))

    def on_host(self, seq: Sequence) -> list[int]:
        return longest(self._host.find, self._findable(seq)) if self._enabled else []

    def first_missing(self, seq: Sequence, found: int) -> tuple[int, bytes] | None:
        """Place and key of a prompt's next block, of which `found` are there, unless it has to compute that one."""
        return (found, seq.keys[found]) if found < self._num_findable(seq) else None

    def awaits(self, seq: Sequence, awaited: Iterable[tuple[int, bytes]]) -> bool:
        """Whether one of these blocks, which nobody has yet, is of a prompt."""
        most = self._num_findable(seq)
        return any(place < most and seq.keys[place] == key for place, key in awaited)

    def is_near(self, seq: Sequence, replica: Replica, layout: int, blocks: int) -> bool:
        """Whether a replica has so many blocks of a prompt, or somebody there is about to have them."""
        keys = self._findable(seq)
        if blocks > len(keys):
            return False
        # From the end on: where they are not, that is mostly missing first. Prompts may be long, and many ask.
        find, coming = replica.pool.find, replica.coming
        return all(find((layout, key)) is not None or key in coming for key in reversed(keys[:blocks]))

    def _findable(self, seq: Sequence) -> list[bytes]:
        """Keys of the blocks that it need not compute, if they are there: at least its last token it must."""
        return seq.keys[: self._num_findable(seq)]

    def _num_findable(self, seq: Sequence) -> int:
        return min(len(seq.keys), (seq.known - 1) // self._block_size) if seq.finds else 0

    def _is_there(self, key: bytes) -> bool:
        return self._host.find(key) is not None or any(
            replica.pool.find((layout, key)) is not None for replica in self._replicas for layout in self._layouts
        )

    # --- when it is over

    def went(self, request_id: str) -> None:
        """Nobody may expect any more that its prompt will be computed."""
        self._live.remove(request_id)

    def extend(self, seq: Sequence) -> None:
        """Give keys to the full blocks of its output, for whoever goes on from there."""
        if not self._enabled or seq.last_key is None:
            return
        computed = seq.tokens(len(seq.keys) * self._block_size, seq.dispatched)
        if len(computed) >= self._block_size:
            more = block_keys(computed, self._block_size, seq.last_key)
            seq.know_keys(seq.keys + more, more[-1])

    def reset(self, live: list[Sequence]) -> None:
        """Nothing that was computed until now is found any more, nor what those of the live ones compute that have
        begun."""
        waiting = {seq.request_id for seq in live if seq.state is SeqState.WAITING}
        for seq in live:
            if seq.state is not SeqState.WAITING:
                seq.know_keys([], None)
                if seq.request_id not in waiting:
                    self._live.remove(seq.request_id)
        self._host.reset()
        for replica in self._replicas:
            replica.pool.reset()
            for on_the_way in (replica.coming, replica.arriving, replica.departing):
                on_the_way.clear()

"""Copies to the host for the prefix cache's sake. Part of the block manager; the lifecycle sends them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from seesaw.engine.kv.blocks import BlockPool
from seesaw.engine.scheduler.replica import Replica
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.wire.commands import Swap

_MOST_SAVED = 0.25  # of what the host has available, for one copy that nobody waits for


class Saving(NamedTuple):
    """A copy under way. Until it is done, its blocks in both pools are its own, whoever else holds them."""

    replica: int
    device_blocks: list[int]
    host_blocks: list[int]
    keys: list[bytes]


class Savings:
    """What a prompt found on its device is copied to the host, once: it will be found again, after others needed its
    device blocks, or in another layout."""

    def __init__(
        self, host: BlockPool, replicas: list[Replica], block_size: int, next_id: Callable[[], int], enabled: bool
    ) -> None:
        """`replicas` is the list of the current ones."""
        self._host = host
        self._replicas = replicas
        self._block_size = block_size
        self._next_id = next_id
        self._enabled = enabled and host.total > 0
        self._savings: dict[int, Saving] = {}  # by the id of their swap

    @property
    def under_way(self) -> Collection[Saving]:
        return self._savings.values()

    def start(self, seq: Sequence, tokens: int) -> Swap | None:
        """Describe the copy of a sequence's first `tokens`, as far as the host lacks them.

        None if it lacks none, or has little room. Call it behind the steps that compute them.
        """
        if not self._enabled or seq.slot < 0:
            return None
        replica = self._replicas[seq.replica]
        found = enumerate(seq.keys[: tokens // self._block_size])
        missing = [i for i, key in found if self._host.find(key) is None and key not in replica.departing]
        if not missing or len(missing) > self._host.available * _MOST_SAVED:
            return None
        device_blocks = [replica.pool.share(seq.device_blocks[i]) for i in missing]
        saving = Saving(seq.replica, device_blocks, self._host.allocate(len(missing)), [seq.keys[i] for i in missing])
        replica.departing.update(zip(saving.keys, saving.host_blocks, strict=True))
        swap = Swap(self._next_id(), seq.layout, seq.replica, True, saving.device_blocks, saving.host_blocks)
        self._savings[swap.id] = saving
        return swap

    def completed(self, swap_id: int) -> None:
        """A swap has completed on all ranks; it may have been one of these."""
        saving = self._savings.pop(swap_id, None)
        if saving is None:
            return
        replica = self._replicas[saving.replica]
        # The keys are gone after a reset.
        for key, block in zip(saving.keys, saving.host_blocks, strict=False):
            self._host.publish(block, key)
            if replica.departing.get(key) == block:
                del replica.departing[key]
        self._host.release(saving.host_blocks)
        replica.pool.release(saving.device_blocks)

    def forget(self) -> None:
        """Nobody will find what is being copied."""
        for saving in self._savings.values():
            saving.keys.clear()

"""Communication between ranks that compute on one host's CPUs: through memory that all of them have mapped.

Made by the worker from a segment that the executor gave it, for `engine.parallel.groups.build_groups`. What is not here
goes through gloo: start-up and its barriers.

Everything is counted by semaphores, so there is no flag to reset and none to miss, and whoever waits sleeps: more ranks
than cores are fine. A rank whose peer died sleeps until the engine ends it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import torch

from seesaw.engine.parallel.groups import Link, Links, Pending, SingleShard, TensorGroup
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.parallel.shared_sizes import LINE_BYTES, PIECE_BYTES, link_bytes, shards_bytes, slots_of

SPINS = 50  # attempts before sleeping, each of which yields the core to whoever may be waited for

# A call through CDLL gives the interpreter's lock back, and another thread of the worker may keep it for milliseconds.
# So that is for calls that sleep; the others are over in less time than it takes.
_sleeping, _brief = ctypes.CDLL(None), ctypes.PyDLL(None)
_wait, _try, _post, _init = _sleeping.sem_wait, _brief.sem_trywait, _brief.sem_post, _brief.sem_init
_wait.argtypes = _try.argtypes = _post.argtypes = [ctypes.c_void_p]
_init.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]


class Semaphore:
    """A counting semaphore of the C library, at the start of a line of shared memory.

    POSIX has its calls synchronize memory: what one rank wrote before it posts, another sees once its wait is over,
    also on processors that order stores less strictly than x86. One rank initializes it, before a barrier.
    """

    def __init__(self, line: torch.Tensor) -> None:
        self._line = line  # keeps the mapping alive
        self._address = line.data_ptr()

    def initialize(self, count: int) -> None:
        if _init(self._address, 1, count) != 0:
            raise OSError("the C library has no semaphores between processes")

    def post(self) -> None:
        _post(self._address)

    def wait(self) -> None:
        """Take one off the count, once there is one. Ends with the process only, if nobody posts."""
        address = self._address
        for _ in range(SPINS):
            if _try(address) == 0:
                return
            os.sched_yield()
        while _wait(address) != 0:  # interrupted by a signal
            pass


class SharedShards(TensorGroup):
    """The shards of a stage. Each writes its part into slots of its own, and all read them.

    What all shards do together is a round. A shard writes, in turn, into one of two slots, and posts to all others. It
    begins a round only once all others have posted theirs of the round before, for which they must have read what it
    wrote in the round before that: so a slot is never overwritten while somebody still reads it.
    """

    def __init__(self, size: int, shard: int, memory: torch.Tensor) -> None:
        """`memory` is uint8, as `shards_bytes` says. All shards must have made theirs before one uses it."""
        self.size, self.shard = size, shard
        lines = size * size * LINE_BYTES
        # [reader][writer]: rounds of the writer that the reader has not waited for
        posts = [[Semaphore(line) for line in row] for row in memory[:lines].view(size, size, LINE_BYTES)]
        self._from_others = [post for writer, post in enumerate(posts[shard]) if writer != shard]
        self._to_others = [posts[reader][shard] for reader in range(size) if reader != shard]
        for post in self._from_others:
            post.initialize(0)
        self._slots = memory[lines:].view(2, size, PIECE_BYTES)  # [round % 2][writer]
        self._turn = 0
        self._owes_wait = False  # for the others' posts of the last round
        self._parts_of: Any = None
        self._parts: list[list[torch.Tensor]] = []

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """As its interface says; `x` is contiguous. Added in shard order, so all shards get the same bits."""
        for piece in self._pieces(x):
            parts = self._round(piece)
            self._wait_for_others()
            torch.add(parts[0], parts[1], out=piece)
            for part in parts[2:]:
                piece.add_(part)
        return x

    def gather_last(self, x: torch.Tensor) -> torch.Tensor | None:
        x = x.contiguous()
        if self.shard != 0:
            for piece in self._pieces(x):
                self._round(piece)
            return None
        gathered = [x, *(torch.empty_like(x) for _ in range(1, self.size))]
        for pieces in zip(*(self._pieces(part) for part in gathered), strict=True):
            parts = self._round(pieces[0])
            self._wait_for_others()
            for piece, part in zip(pieces[1:], parts[1:], strict=True):
                piece.copy_(part)
        return torch.cat(gathered, dim=-1)

    def _pieces(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        flat = x.view(-1)
        limit = PIECE_BYTES // x.element_size()
        return (flat,) if len(flat) <= limit else flat.split(limit)

    def _round(self, piece: torch.Tensor) -> list[torch.Tensor]:
        """Lay this shard's part out and begin a round; returns where all parts are, once the others were waited for."""
        if self._owes_wait:
            self._wait_for_others()
        self._turn ^= 1
        kind = len(piece), piece.dtype
        if kind != self._parts_of:  # the same all through a layer, mostly
            used = self._slots[:, :, : len(piece) * piece.element_size()]
            self._parts = [[part.view(piece.dtype) for part in slots] for slots in used]
            self._parts_of = kind
        parts = self._parts[self._turn]
        parts[self.shard].copy_(piece)
        for post in self._to_others:
            post.post()
        self._owes_wait = True
        return parts

    def _wait_for_others(self) -> None:
        for post in self._from_others:
            post.wait()
        self._owes_wait = False


class SharedLink(Link):
    """From one rank to some others: a ring of slots.

    The sender waits only for a slot that a receiver has yet to read, `num_slots` messages back: never, if so many may
    be under way. A tensor larger than a slot takes several, and may have to wait.
    """

    def __init__(self, num_receivers: int, num_slots: int, slot_bytes: int, memory: torch.Tensor, me: int) -> None:
        """`memory` is uint8, as `link_bytes` says; `me` is a receiver's index, or -1 for the sender."""
        lines = 2 * num_receivers * LINE_BYTES
        filled, free = ([Semaphore(line) for line in row] for row in memory[:lines].view(2, num_receivers, LINE_BYTES))
        self._filled, self._free = (filled, free) if me < 0 else ([filled[me]], [free[me]])
        if me >= 0:
            filled[me].initialize(0)
            free[me].initialize(num_slots)
        self._slots = list(memory[lines:].view(num_slots, -1)[:, :slot_bytes])
        self._slot_bytes = slot_bytes
        self._count = 0  # of slots that this rank has filled or read

    def send(self, x: torch.Tensor) -> None:
        for piece in self._pieces(x.contiguous()):
            for free in self._free:
                free.wait()
            self._next_slot()[: len(piece)].copy_(piece)
            for filled in self._filled:
                filled.post()

    def post(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Pending:
        return _Arrival(self, torch.empty(shape, dtype=dtype, device=device))

    def receive(self, x: torch.Tensor) -> None:
        """Wait for the next tensor, into `x`, which has its shape."""
        for piece in self._pieces(x):
            self._filled[0].wait()
            piece.copy_(self._next_slot()[: len(piece)])
            self._free[0].post()

    def drain(self) -> None:
        pass  # what was sent is in the slots, and needs its sender no more

    def _pieces(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return x.view(-1).view(torch.uint8).split(self._slot_bytes)

    def _next_slot(self) -> torch.Tensor:
        slot = self._slots[self._count % len(self._slots)]
        self._count += 1
        return slot


class _Arrival(Pending):
    def __init__(self, link: SharedLink, x: torch.Tensor) -> None:
        self._link, self._x = link, x

    def wait(self) -> torch.Tensor:
        self._link.receive(self._x)
        return self._x


class SharedLinks(Links):
    """Hands out the memory. Every rank asks for everything in one order, and so finds it where the others do."""

    def __init__(
        self, rank: int, layouts: Sequence[Layout], hidden_bytes: int, tokens_bytes: int, memory: torch.Tensor
    ) -> None:
        """`memory` is uint8, zeroed, `shared_bytes` long, and must be the same in all ranks, as must the rest.

        `hidden_bytes` are those of the hidden states of the largest step, `tokens_bytes` of all that it may sample.
        """
        self._rank = rank
        self._num_slots = slots_of(layouts)
        self._hidden_bytes, self._tokens_bytes = hidden_bytes, tokens_bytes
        self._rest = memory

    def shards(self, ranks: Sequence[int]) -> TensorGroup:
        if len(ranks) == 1:
            return SingleShard()
        memory = self._take(shards_bytes(len(ranks)))
        return SharedShards(len(ranks), ranks.index(self._rank), memory) if self._rank in ranks else SingleShard()

    def pipe(self, stage: int, following: int, in_flight: int) -> Link | None:
        return self._link(stage, [following], self._hidden_bytes)

    def feedback(self, sampler: int, others: Sequence[int], in_flight: int) -> Link | None:
        return self._link(sampler, others, self._tokens_bytes)

    def _link(self, sender: int, receivers: Sequence[int], slot_bytes: int) -> Link | None:
        if not receivers:
            return None
        memory = self._take(link_bytes(len(receivers), self._num_slots, slot_bytes))
        if self._rank not in (sender, *receivers):
            return None
        me = -1 if self._rank == sender else receivers.index(self._rank)
        return SharedLink(len(receivers), self._num_slots, slot_bytes, memory, me)

    def _take(self, num_bytes: int) -> torch.Tensor:
        if num_bytes > len(self._rest):
            raise ValueError(f"the ranks' shared memory ends {num_bytes - len(self._rest)} bytes early")
        taken, self._rest = self._rest[:num_bytes], self._rest[num_bytes:]
        return taken

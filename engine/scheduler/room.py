"""Who leaves a device so that others have room on it: for a surge, when one begins and whenever it is stuck; for those
that grow; and those that take what is left, for all others.

A decode phase may use every block; what a surge needs it takes then, and never before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from seesaw.engine.scheduler.lifecycle import Lifecycle
from seesaw.engine.scheduler.replica import Replica
from seesaw.engine.scheduler.seq_state import ON_DEVICE, SeqState
from seesaw.engine.scheduler.sequence import Sequence

_OVER = SeqState.SWAPPING_OUT, SeqState.LEAVING, SeqState.FINISHED


def make_room(lifecycle: Lifecycle, replica: Replica, blocks: int, keep_host_blocks: int) -> None:
    """Send the youngest that stand still on a replica to the host, until so many of its blocks are free or coming free.

    Never takes more of the host than leaves `keep_host_blocks` free there.
    """
    for seq in leavers(lifecycle, replica, blocks):
        if lifecycle.blocks.host.available - lifecycle.blocks.blocks_for(seq.dispatched) < keep_host_blocks:
            return
        lifecycle.preempt(seq)


def leavers(lifecycle: Lifecycle, replica: Replica, blocks: int) -> list[Sequence]:
    """Who would have to leave for that, the youngest first."""
    missing = blocks - replica.pool.available - _coming(lifecycle, replica, SeqState.SWAPPING_OUT, SeqState.LEAVING)
    here = (seq for seq in lifecycle.queues.walk(SeqState.RUNNING) if seq.replica == replica.index)
    return _youngest(here, missing, lambda seq: len(seq.device_blocks))


def make_room_to_grow(
    lifecycle: Lifecycle, replica: Replica, stuck: list[Sequence], leaving: Collection[Sequence]
) -> list[Sequence]:
    """Who leaves a full replica, besides those that are about to, so that the stuck ones find a block each in what
    comes free: the youngest first, and no more of them than it takes."""
    waiting = set(stuck)
    missing = len(stuck) - _coming(lifecycle, replica, *_OVER) - sum(len(seq.own_blocks) for seq in leaving)
    on_device = (seq for state in ON_DEVICE for seq in lifecycle.queues.walk(state))
    here = (seq for seq in on_device if seq.replica == replica.index and seq not in leaving)
    chosen = _youngest(here, missing, lambda seq: len(seq.own_blocks) + (seq in waiting))
    lifecycle.counters.preemptions += len(chosen)
    return chosen


def give_way(lifecycle: Lifecycle, replica: Replica) -> None:
    """Have those that yield leave a replica for the others that wait, the youngest first, as far as one step can start
    these."""
    queues, blocks, config = lifecycle.queues, lifecycle.blocks, lifecycle.config
    seats = lacking = tokens = 0
    before: Sequence | None = None
    for seq in queues.walk(SeqState.WAITING):
        if seq.yields or tokens >= config.max_num_batched_tokens or seats >= config.max_num_seqs:
            break
        seats, tokens = seats + 1, tokens + seq.unfilled_tokens
        # What else a prompt will find may be blocks that nobody holds: they are taken, too.
        is_sibling = before is not None and before.request_id == seq.request_id
        lacking += blocks.blocks_for(seq.unfilled_tokens if is_sibling else seq.known)
        before = seq
    seats -= config.max_num_seqs - replica.residents
    lacking -= blocks.room(replica, surge=False) + _coming(lifecycle, replica, *_OVER)
    if seats <= 0 and lacking <= 0:
        return
    here = (seq for seq in queues.list(*ON_DEVICE) if seq.yields and seq.replica == replica.index)
    for seq in _youngest_first(here):
        if seats <= 0 and lacking <= 0:
            return
        seats, lacking = seats - 1, lacking - len(seq.own_blocks)
        lifecycle.counters.preemptions += 1
        lifecycle.preempt(seq)


def _youngest(sequences: Iterable[Sequence], missing: int, frees: Callable[[Sequence], int]) -> list[Sequence]:
    """Of these the youngest, as many as it takes to free the blocks that are missing."""
    chosen: list[Sequence] = []
    if missing > 0:  # else nobody need be looked at
        for seq in _youngest_first(sequences):
            if missing <= 0:
                break
            chosen.append(seq)
            missing -= frees(seq)
    return chosen


def _youngest_first(sequences: Iterable[Sequence]) -> list[Sequence]:
    return sorted(sequences, key=lambda seq: -seq.arrival)


def _coming(lifecycle: Lifecycle, replica: Replica, *states: SeqState) -> int:
    """Blocks that come free once the steps and copies in flight have completed."""
    on_the_way = lifecycle.queues.list(*states)
    return sum(len(seq.device_blocks) for seq in on_the_way if seq.replica == replica.index)

"""Who leaves a device for the host so that a surge has room on it. Used when one begins, and whenever it is stuck.

A decode phase may use every block; what a surge needs it takes then, and never before.
"""

from __future__ import annotations

from seesaw.engine.scheduler.lifecycle import Lifecycle
from seesaw.engine.scheduler.replica import Replica
from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.scheduler.sequence import Sequence


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
    queues = lifecycle.queues
    on_the_way = queues.list(SeqState.SWAPPING_OUT, SeqState.LEAVING)
    coming = sum(len(seq.device_blocks) for seq in on_the_way if seq.replica == replica.index)
    missing = blocks - replica.pool.available - coming
    if missing <= 0:
        return []
    here = [seq for seq in queues.walk(SeqState.RUNNING) if seq.replica == replica.index]
    here.sort(key=lambda seq: -seq.arrival)
    chosen: list[Sequence] = []
    for seq in here:
        if missing <= 0:
            break
        chosen.append(seq)
        missing -= len(seq.device_blocks)
    return chosen

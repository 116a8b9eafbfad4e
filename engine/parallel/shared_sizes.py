"""How much memory ranks on CPUs share to tell each other things: arithmetic, no torch.

Asked by the executor, which takes that much, and by `engine.parallel.shared_memory`, which hands it out.
"""

from __future__ import annotations

from collections.abc import Sequence

from seesaw.engine.parallel.layout import Layout

LINE_BYTES = 64  # of a cache: what different ranks write shares none. A semaphore takes 32
PIECE_BYTES = 1 << 20  # of a tensor that shards add up or gather: stays in a core's cache


def shards_bytes(size: int) -> int:
    """For the shards of a stage."""
    return size * size * LINE_BYTES + 2 * size * PIECE_BYTES


def link_bytes(num_receivers: int, num_slots: int, slot_bytes: int) -> int:
    """For a ring of slots from one rank to others."""
    return 2 * num_receivers * LINE_BYTES + num_slots * _whole_lines(slot_bytes)


def shared_bytes(layouts: Sequence[Layout], hidden_bytes: int, tokens_bytes: int) -> int:
    """What `SharedLinks` hands out for these layouts. Pages that nothing is ever written to cost nothing."""
    total, num_slots = 0, slots_of(layouts)
    for layout in layouts:
        if layout.tp > 1:
            total += layout.dp * layout.pp * shards_bytes(layout.tp)
        total += layout.dp * layout.tp * (layout.pp - 1) * link_bytes(1, num_slots, hidden_bytes)
        others = layout.tp if layout.pp > 1 else layout.tp - 1  # whom the sampled tokens are sent to
        if others:
            total += layout.dp * link_bytes(others, num_slots, tokens_bytes)
    return total


def slots_of(layouts: Sequence[Layout]) -> int:
    """Of each ring. A first-stage rank leaves the tokens of so many steps unread (`TokenBuffer`), whatever its layout:
    with fewer the sampling rank could wait for a shard that waits for it."""
    return max(layout.max_in_flight for layout in layouts)


def _whole_lines(num_bytes: int) -> int:
    return -(-num_bytes // LINE_BYTES) * LINE_BYTES

"""Where a sequence is in its life."""

from __future__ import annotations

from enum import Enum


class SeqState(Enum):
    """Where a sequence is. Each state says who holds its KV.

    WAITING -> PREFILL -> RUNNING -> FINISHED is the plain life. With several layouts, or when blocks run out,
    a sequence on the device goes SWAPPING_OUT -> HOSTED -> SWAPPING_IN and comes back where it was; without
    room on the host it is LEAVING (its last steps drain) and then WAITING again, its tokens kept.
    """

    WAITING = "waiting"  # no KV anywhere
    PREFILL = "prefill"  # device; some known tokens not yet dispatched
    RUNNING = "running"  # device; decodes when its layout is the current one
    LEAVING = "leaving"  # device; blocks are dropped once its steps in flight have completed
    SWAPPING_OUT = "swapping_out"  # device and host
    HOSTED = "hosted"  # host
    SWAPPING_IN = "swapping_in"  # host and device
    FINISHED = "finished"  # whatever its steps and copies in flight still need


ON_DEVICE = frozenset({SeqState.PREFILL, SeqState.RUNNING})

"""Requests and their sequences, as the scheduler sees them. Plain state; the scheduler moves it along."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from engine.messages import FinishReason
from engine.sampling import RowSampling, SamplingParams


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


@dataclass(eq=False)
class Sequence:
    """One continuation of a request's prompt.

    `tokens` are known to the host; `pending` more are sampled by steps in flight. `dispatched` positions have
    KV (or will, once those steps ran). While the sequence lives, `dispatched < length`: the last token, known
    or not, is the next step's input.
    """

    request_id: str
    index: int
    arrival: int  # global order: the smallest is the oldest
    arrived_s: float
    tokens: list[int]
    prompt_len: int
    max_tokens: int
    params: SamplingParams
    row: RowSampling
    keys: list[bytes]  # content keys of the prompt's full blocks
    leader: Sequence | None = None  # the sibling whose prompt blocks this one waits to share

    state: SeqState = SeqState.WAITING
    pending: int = 0
    dispatched: int = 0
    prefill_end: int = 0  # tokens known when it (re)entered PREFILL; below it, dispatching is prefill
    steps_in_flight: int = 0
    turn: int = 0  # of its replica, in its last step
    swap_in_flight: bool = False
    finish_reason: FinishReason | None = None

    replica: int = -1
    layout: int = -1  # whose rectangles its device blocks hold
    slot: int = -1
    device_blocks: list[int] = field(default_factory=list)
    host_blocks: list[int] = field(default_factory=list)
    reserved_blocks: list[int] = field(default_factory=list)  # host blocks kept free for its swap-out
    table_sent: int = 0  # entries of its block table that the ranks know
    slot_sent: bool = False

    @property
    def length(self) -> int:
        """Tokens there are, those in flight included."""
        return len(self.tokens) + self.pending

    @property
    def generated(self) -> int:
        """Output tokens there are, those in flight included."""
        return self.length - self.prompt_len

    @property
    def is_exhausted(self) -> bool:
        """All of its tokens are sampled; some may still be in flight."""
        return self.generated >= self.max_tokens

    def next_turn(self, pp: int) -> int:
        """The replica's first turn in which its last token is there."""
        return self.turn + pp if self.pending else 0

    @property
    def in_prefill(self) -> bool:
        return self.dispatched < self.prefill_end

    @property
    def is_live(self) -> bool:
        return self.state is not SeqState.FINISHED

    def __repr__(self) -> str:
        return (
            f"<{self.request_id}/{self.index} {self.state.value} {self.dispatched}/{self.length} "
            f"layout={self.layout} replica={self.replica} in_flight={self.steps_in_flight}>"
        )

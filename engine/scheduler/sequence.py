"""One continuation of a request, as the scheduler sees it. It alone writes its fields; others call its methods."""

from __future__ import annotations

from collections.abc import Sequence as Items
from enum import Enum

from engine.messages import FinishReason
from engine.sampling import RowSampling, SamplingParams
from engine.steps import Chunk


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
NOWHERE = -1


class Sequence:
    """Its tokens, where it stands among the steps, and what it holds.

    `tokens` are known to the host; `pending` more are sampled by steps in flight. `dispatched` positions have
    KV (or will, once those steps ran). While the sequence lives, `dispatched < length`: the last token, known
    or not, is the next step's input.
    """

    __slots__ = (
        "arrival",
        "arrived_s",
        "device_blocks",
        "dispatched",
        "host_blocks",
        "index",
        "keys",
        "layout",
        "leader",
        "max_length",
        "params",
        "pending",
        "prefill_end",
        "prompt_len",
        "replica",
        "request_id",
        "reserved_blocks",
        "row",
        "slot",
        "slot_sent",
        "state",
        "steps_in_flight",
        "stops",
        "swap_in_flight",
        "table_sent",
        "tokens",
        "turn",
    )

    def __init__(
        self,
        request_id: str,
        index: int,
        arrival: int,
        arrived_s: float,
        prompt: Items[int],
        max_tokens: int,
        params: SamplingParams,
        stops: frozenset[int],
        row: RowSampling,
        keys: list[bytes],
        leader: Sequence | None = None,
    ) -> None:
        """`arrival` is its place in the global order: the smallest is the oldest. `stops` are the tokens that end it,
        `keys` the content keys of its prompt's full blocks; `leader` is the sibling whose prompt blocks it waits to
        share."""
        self.request_id, self.index = request_id, index
        self.arrival, self.arrived_s = arrival, arrived_s
        self.tokens, self.prompt_len = list(prompt), len(prompt)
        self.max_length = len(prompt) + max_tokens
        self.params, self.stops, self.row, self.keys, self.leader = params, stops, row, keys, leader
        self.state = SeqState.WAITING
        self.pending = 0
        self.dispatched = 0
        self.prefill_end = 0  # tokens known when it (re)entered PREFILL; below it, dispatching is prefill
        self.steps_in_flight = 0
        self.turn = 0  # of its replica, in its last step
        self.swap_in_flight = False
        self.replica = self.layout = self.slot = NOWHERE  # `layout`: whose rectangles its device blocks hold
        self.device_blocks: list[int] = []
        self.host_blocks: list[int] = []
        self.reserved_blocks: list[int] = []  # host blocks kept free for its swap-out
        self.table_sent = 0  # entries of its block table that the ranks know
        self.slot_sent = False

    # --- what follows from the fields

    @property
    def length(self) -> int:
        """Tokens there are, those in flight included."""
        return len(self.tokens) + self.pending

    @property
    def generated(self) -> int:
        """Output tokens there are, those in flight included."""
        return self.length - self.prompt_len

    @property
    def left(self) -> int:
        """Output tokens that it may still ask for."""
        return self.max_length - self.length

    @property
    def is_exhausted(self) -> bool:
        """All of its tokens are sampled; some may still be in flight."""
        return len(self.tokens) + self.pending >= self.max_length

    @property
    def in_prefill(self) -> bool:
        return self.dispatched < self.prefill_end

    @property
    def is_live(self) -> bool:
        return self.state is not SeqState.FINISHED

    @property
    def is_idle(self) -> bool:
        """No step and no copy in flight names it."""
        return not (self.steps_in_flight or self.swap_in_flight)

    def next_turn(self, pp: int) -> int:
        """The replica's first turn in which its last token is there."""
        return self.turn + pp if self.pending else 0

    # --- what happens to it

    def move(self, state: SeqState) -> None:
        """Called by `Queues.move` only, which keeps the lines."""
        self.state = state

    def dispatch(self, count: int, turn: int) -> Chunk:
        """The next `count` tokens go out in a step of that turn."""
        start = self.dispatched
        stop = start + count
        tokens = self.tokens[start:stop]
        length = len(self.tokens) + self.pending
        if stop > len(self.tokens):
            # Only the newest token can still be in flight, and the slot's row holds just that one.
            assert stop == length and self.pending > 0
            tokens.append(~self.slot)
        sample = stop == length
        self.dispatched = stop
        self.steps_in_flight += 1
        self.turn = turn
        if sample:
            self.pending += 1
        return Chunk(self.slot, start, tokens, sample)

    def dispatch_newest(self, turn: int) -> Chunk:
        """As `dispatch(1, turn)` where only the newest token is left to dispatch, as in every step that decodes."""
        start = self.dispatched
        token = ~self.slot if self.pending else self.tokens[-1]
        self.dispatched = start + 1
        self.steps_in_flight += 1
        self.turn = turn
        self.pending += 1
        return Chunk(self.slot, start, [token], True)

    def announce_slot(self) -> bool:
        """Whether the ranks must be told of its slot now; they are, from then on."""
        sent, self.slot_sent = self.slot_sent, True
        return not sent

    def announce_blocks(self) -> tuple[int, list[int]]:
        """The part of its block table that the ranks do not know yet, and where it starts."""
        first, self.table_sent = self.table_sent, len(self.device_blocks)
        return first, self.device_blocks[first:]

    def step_completed(self) -> None:
        self.steps_in_flight -= 1

    def take_token(self, token: int) -> tuple[FinishReason | None, int | None]:
        """A token that was in flight is known. Returns why it is the last, if it is, and the token that stopped it."""
        self.pending -= 1
        self.tokens.append(token)
        if token in self.stops:
            return FinishReason.STOP, token
        count = len(self.tokens)
        if count >= self.max_length or count - self.prompt_len == self.params.ends_after:
            return FinishReason.LENGTH, None
        return None, None

    def drop_token(self) -> None:
        """A token that was in flight came after the end."""
        self.pending -= 1

    def occupy(self, replica: int, layout: int, slot: int, blocks: list[int]) -> None:
        """It is on a device from now on."""
        self.replica, self.layout, self.slot, self.device_blocks = replica, layout, slot, blocks
        self.table_sent, self.slot_sent = 0, False

    def begin_prefill(self, dispatched: int) -> None:
        """All tokens it has are to be computed, but for the first `dispatched`, whose blocks it shares."""
        self.dispatched, self.prefill_end = dispatched, len(self.tokens)

    def grow(self, blocks: list[int]) -> None:
        self.device_blocks += blocks

    def vacate(self) -> tuple[list[int], int]:
        """It is on no device any more. Returns the blocks and the slot that it had."""
        blocks, slot = self.device_blocks, self.slot
        self.device_blocks, self.replica, self.layout, self.slot = [], NOWHERE, NOWHERE, NOWHERE
        return blocks, slot

    def restart(self) -> None:
        """Its KV is gone; it starts over from the tokens that are known."""
        self.dispatched = self.prefill_end = 0

    def reserve_host(self, blocks: list[int]) -> None:
        self.reserved_blocks = blocks

    def settle_on_host(self, blocks: list[int]) -> list[int]:
        """Its KV goes to these host blocks. Returns those that were reserved for it."""
        self.host_blocks = blocks
        reserved, self.reserved_blocks = self.reserved_blocks, []
        return reserved

    def leave_host_copy(self) -> list[int]:
        """Its KV is on a device again; what is reserved for its way back stays. Returns the blocks it was in."""
        blocks, self.host_blocks = self.host_blocks, []
        return blocks

    def leave_host(self) -> list[int]:
        """Returns all host blocks that it had."""
        blocks = self.host_blocks + self.reserved_blocks
        self.host_blocks, self.reserved_blocks = [], []
        return blocks

    def swap_started(self) -> None:
        self.swap_in_flight = True

    def swap_completed(self) -> None:
        self.swap_in_flight = False

    def __repr__(self) -> str:
        return (
            f"<{self.request_id}/{self.index} {self.state.value} {self.dispatched}/{self.length} "
            f"layout={self.layout} replica={self.replica} in_flight={self.steps_in_flight}>"
        )

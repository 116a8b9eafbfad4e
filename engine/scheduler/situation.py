"""The scheduler's answers to what a policy may ask. Each is worked out when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from seesaw.engine.planning.policy import Mode, Situation
from seesaw.engine.scheduler.lifecycle import Lifecycle
from seesaw.engine.scheduler.room import leavers
from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.scheduler.sequence import Sequence

MOVING = (SeqState.SWAPPING_OUT, SeqState.HOSTED, SeqState.SWAPPING_IN)
_SEEN_OUTPUTS = 8  # before so many ended, their mean says little
_USUAL_OUTPUT_TOKENS = 256.0
_A_FEW = 64


class SchedulerSituation(Situation):
    """A view of the scheduler's state, always as it is now."""

    def __init__(self, lifecycle: Lifecycle, mode: Mode) -> None:
        self._lifecycle = lifecycle
        self._block_size = lifecycle.config.block_size
        self._token_bytes = lifecycle.capacity.shape.kv_bytes_per_token()
        self.attention_span = lifecycle.capacity.shape.attention_span
        self._prefilled_at_entry = 0
        self._fruitless: int | None = None  # how many had ended when a surge had to stop before it computed anything
        self.mode = mode

    def entered(self, mode: Mode) -> None:
        """The engine is in another mode from now on."""
        counters = self._lifecycle.counters
        if self.mode.is_surge:
            fruitless = counters.prefilled_tokens == self._prefilled_at_entry
            self._fruitless = counters.finished if fruitless else None
        self._prefilled_at_entry = counters.prefilled_tokens
        self.mode = mode

    # --- counts

    @property
    def now_s(self) -> float:
        return self._lifecycle.now

    @property
    def waiting(self) -> int:
        return self._lifecycle.queues.count(SeqState.WAITING)

    @property
    def waiting_tokens(self) -> int:
        return self._lifecycle.queues.waiting_tokens

    @property
    def prefilling(self) -> int:
        """Those are among them whose start is on its way from the host: a surge must not end before it is there."""
        return self._lifecycle.queues.count(SeqState.PREFILL) + self._brought

    @property
    def hosted(self) -> int:
        return self._lifecycle.queues.count(*MOVING) - self._brought

    @property
    def _brought(self) -> int:
        return sum(seq.in_prefill for seq in self._lifecycle.queues.walk(SeqState.SWAPPING_IN))

    @property
    def running(self) -> int:
        return self._lifecycle.queues.count(SeqState.RUNNING, SeqState.LEAVING)

    @property
    def arrived(self) -> int:
        queues = self._lifecycle.queues
        return self._lifecycle.counters.finished + queues.live - queues.count(SeqState.FINISHED)

    @property
    def arrived_tokens(self) -> int:
        return self.prefilled_tokens + self.unfilled_tokens

    @property
    def unfilled_tokens(self) -> int:
        return self._lifecycle.queues.unfilled_tokens

    @property
    def expected_output_tokens(self) -> float:
        """All tokens over all ends is the likeliest mean, also while the longest have not ended yet. No output gets
        longer than it may."""
        counters, queues = self._lifecycle.counters, self._lifecycle.queues
        tokens = _USUAL_OUTPUT_TOKENS
        if counters.finished >= _SEEN_OUTPUTS:
            tokens = counters.generation_tokens.total() / counters.finished
        states = SeqState.RUNNING, SeqState.HOSTED, SeqState.WAITING
        some = islice(chain.from_iterable(map(queues.walk, states)), _A_FEW)
        most = [seq.max_length - seq.prompt_len for seq in some]
        return min(tokens, sum(most) / len(most)) if most else tokens

    @property
    def prefilled_tokens(self) -> int:
        return self._lifecycle.counters.prefilled_tokens

    # --- pools

    @property
    def device_tokens(self) -> int:
        return self._lifecycle.blocks.device_blocks * self._block_size

    @property
    def device_free_tokens(self) -> int:
        return self._lifecycle.blocks.available_device_blocks * self._block_size

    @property
    def host_tokens(self) -> int:
        return self._lifecycle.blocks.host.total * self._block_size

    @property
    def host_free_tokens(self) -> int:
        return self._lifecycle.blocks.host.available * self._block_size

    def kv_bytes(self, tokens: float) -> float:
        return tokens * self._token_bytes

    # --- what takes a walk

    def context_tokens(self) -> int:
        return sum(replica.rotation.context_tokens for replica in self._lifecycle.blocks.replicas)

    def mean_left_tokens(self) -> float:
        running = self._lifecycle.queues.count(SeqState.RUNNING)
        left = sum(replica.rotation.left_tokens() for replica in self._lifecycle.blocks.replicas)
        return left / running if running else 0.0

    def can_surge(self, mode: Mode) -> bool:
        blocks, queues = self._lifecycle.blocks, self._lifecycle.queues
        first = queues.first(SeqState.WAITING)
        if first is None or (self._fruitless is not None and self._fruitless == self._lifecycle.counters.finished):
            return False
        needed = blocks.blocks_for(first.known)
        leaving = [] if mode == self.mode else list(evacuees(self._lifecycle, mode))
        if not self._has_room(leaving, needed):
            return False
        if mode.layout.dp != mode.home.dp or mode.layout.dp != len(blocks.replicas):
            return True  # the devices are empty then
        joining = (set(leavers(self._lifecycle, replica, needed)) - set(leaving) for replica in blocks.replicas)
        return any(self._has_room([*leaving, *others], needed) for others in joining)

    def can_move(self, mode: Mode) -> bool:
        return self._has_room(evacuees(self._lifecycle, mode))

    def _has_room(self, sequences: Iterable[Sequence], blocks: int = 0) -> bool:
        """Whether the host can take these, with what they compute until they leave, and so many blocks beside."""
        blocks_for, available = self._lifecycle.blocks.blocks_for, self._lifecycle.blocks.host.available
        if blocks > available:
            return False
        for seq in sequences:
            blocks += blocks_for(seq.dispatched + 1) - len(seq.reserved_blocks) - len(seq.host_blocks)
            # Half of a prompt may take less than is reserved for it; whoever decodes does not.
            if blocks > available and not seq.in_prefill:
                return False
        return blocks <= available

    # --- times

    def phase_s(self) -> float:
        # Bounds count from a mode's first step: were they to end it before, nobody would ever get on.
        return self._lifecycle.now - self._since_s()

    def held_up_s(self) -> float:
        first = self._lifecycle.queues.first(SeqState.WAITING)
        since_s = max(self._since_s(), self._lifecycle.admitted_s)
        return self._lifecycle.now - max(since_s, first.arrived_s) if first else 0.0

    def _since_s(self) -> float:
        since_s = self._lifecycle.working_since_s
        return self._lifecycle.now if since_s is None else since_s


def evacuees(lifecycle: Lifecycle, mode: Mode) -> Iterator[Sequence]:
    """Sequences on a device whose KV is not where a mode needs it, those first whose prompts are half done."""
    layouts = lifecycle.plan.layouts
    for seq in lifecycle.queues.list(SeqState.PREFILL, SeqState.RUNNING):
        layout = layouts[seq.layout]
        if layout != (mode.layout if seq.in_prefill else mode.home) or layout.dp != mode.layout.dp:
            yield seq

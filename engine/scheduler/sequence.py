"""One continuation of a request, as the scheduler sees it. It alone writes its fields; others call its methods."""

from __future__ import annotations

import logging

import msgspec

from seesaw.engine.grammar.matcher import Matcher
from seesaw.engine.sampling.params import Processing, RowSampling, SamplingParams
from seesaw.engine.scheduler.rows import Rows
from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.scheduler.siblings import Siblings
from seesaw.engine.values.errors import IntegrityError
from seesaw.engine.wire.commands import Chunk
from seesaw.engine.wire.logprobs import TokenLogprobs
from seesaw.engine.wire.messages import FinishReason

logger = logging.getLogger(__name__)


NOWHERE = -1


class Sequence:
    """Its tokens, where it stands among the steps, and what it holds.

    Of its `prompt`, which all continuations of a request share, and its `output` all tokens are `known` to the host;
    `pending` more are sampled by steps in flight. `dispatched` positions have KV (or will, once those steps ran). While
    the sequence lives, `dispatched < length`: the last token, known or not, is the next step's input.

    While it decodes, what changes with each token is a row of its replica's (`Rotation` writes those of all at once).
    """

    __slots__ = (
        "_announced",
        "_dispatched",
        "_step",
        "_turn",
        "arrival",
        "arrived_s",
        "device_blocks",
        "expected_hit_tokens",
        "host_blocks",
        "index",
        "keys",
        "last_key",
        "layout",
        "looked_up",
        "matcher",
        "max_length",
        "output",
        "params",
        "prefill_end",
        "processing",
        "prompt",
        "prompt_len",
        "prompt_logprobs",
        "replica",
        "request_id",
        "reserved_blocks",
        "row",
        "rows",
        "siblings",
        "slot",
        "slot_sent",
        "state",
        "stops",
        "swap_in_flight",
        "table_sent",
        "yields",
    )

    def __init__(
        self,
        request_id: str,
        index: int,
        arrival: int,
        arrived_s: float,
        prompt: list[int],
        max_tokens: int,
        params: SamplingParams,
        stops: frozenset[int],
        row: RowSampling,
        keys: list[bytes],
        salt: bytes = b"",
        processing: Processing | None = None,
        matcher: Matcher | None = None,
        yields: bool = False,
    ) -> None:
        """`arrival` is its place in the global order: the smallest is the oldest. `stops` are the tokens that end it,
        `keys` the content keys of its prompt's full blocks, which begin with `salt`; `processing`, without tokens, is
        of its logits; `matcher` is where it is in its grammar. `yields`: it gives way to all others."""
        self.request_id, self.index = request_id, index
        self.arrival, self.arrived_s = arrival, arrived_s
        self.prompt, self.prompt_len = prompt, len(prompt)
        self.output: list[int] = []
        self.max_length = len(prompt) + max_tokens
        self.params, self.stops, self.row, self.keys = params, stops, row, keys
        # What the key of the block behind those is made of; None: nobody may find what it computes.
        self.last_key: bytes | None = keys[-1] if keys else salt
        self.processing, self.matcher, self.yields = processing, matcher, yields
        self.looked_up = False  # it was counted what it found
        self.expected_hit_tokens = 0  # of its prompt, that it will find by the time it starts
        self.prompt_logprobs: list[TokenLogprobs] = []  # as far as they are known and nobody was told
        self.state = SeqState.WAITING
        self._dispatched = 0
        self.prefill_end = 0  # tokens known when it (re)entered PREFILL; below it, dispatching is prefill
        self._step = 0  # the id of the last step that names it
        self._turn = 0  # of its replica, in that step
        self.rows: Rows | None = None  # those of its replica, while it decodes
        self.swap_in_flight = False
        self.replica = self.layout = self.slot = NOWHERE  # `layout`: whose rectangles its device blocks hold
        self.device_blocks: list[int] = []
        self.siblings: Siblings | None = None  # of whom it borrows the first of those
        self.host_blocks: list[int] = []  # copies of its first blocks
        self.reserved_blocks: list[int] = []  # host blocks kept free for its swap-out
        self._announced = 0  # from which of its blocks on others were told that it is about to have them
        self.table_sent = 0  # entries of its block table that the ranks know
        self.slot_sent = False

    # --- what follows from the fields

    @property
    def dispatched(self) -> int:
        """Tokens that have KV, or will once the steps in flight ran."""
        return self._dispatched if self.rows is None else int(self.rows.dispatched[self.slot])

    @property
    def step(self) -> int:
        """The id of the last step that names it, since it has its slot."""
        return self._step if self.rows is None else int(self.rows.step[self.slot])

    @property
    def turn(self) -> int:
        """The turn of its replica in which that step is."""
        return self._turn if self.rows is None else int(self.rows.turn[self.slot])

    @property
    def known(self) -> int:
        """Tokens that the host knows."""
        return self.prompt_len + len(self.output)

    @property
    def newest(self) -> int:
        """The last of those."""
        return self.output[-1] if self.output else self.prompt[-1]

    def tokens(self, start: int, stop: int) -> list[int]:
        """Those of them at positions `start ... stop - 1`."""
        end = self.prompt_len
        if stop <= end:
            return self.prompt[start:stop]
        return self.prompt[start:] + self.output[max(0, start - end) : stop - end]

    @property
    def length(self) -> int:
        """Tokens there are, those in flight included."""
        return max(self.known, self.dispatched + 1)

    @property
    def pending(self) -> int:
        """Tokens in flight."""
        return self.length - self.known

    @property
    def end_length(self) -> int:
        """With so many tokens it is over, whatever they are."""
        ends_after = self.params.ends_after
        return min(self.max_length, self.prompt_len + ends_after) if ends_after else self.max_length

    @property
    def left(self) -> int:
        """Output tokens that it may still ask for."""
        return self.max_length - self.length

    @property
    def is_exhausted(self) -> bool:
        """All of its tokens are sampled; some may still be in flight."""
        return self.length >= self.max_length

    @property
    def finds(self) -> bool:
        """Whether it may take over what others computed. Where its prompt's log-probabilities are wanted, every row is
        looked at: it must compute them all."""
        return self.params.prompt_logprobs is None

    @property
    def unfilled_tokens(self) -> int:
        """Tokens that it probably has to compute before it decodes, while it waits."""
        return self.known - self.expected_hit_tokens

    @property
    def own_blocks(self) -> list[int]:
        """Device blocks that it has for itself: a reference to each of them is its own."""
        return self.device_blocks if self.siblings is None else self.device_blocks[len(self.siblings.blocks) :]

    @property
    def announced_keys(self) -> list[bytes]:
        """Those of blocks of which others were told that it is about to have them."""
        return self.keys[self._announced :]

    @property
    def in_prefill(self) -> bool:
        return self.dispatched < self.prefill_end

    @property
    def is_live(self) -> bool:
        return self.state is not SeqState.FINISHED

    # --- what happens to it

    def move(self, state: SeqState) -> None:
        """Called by `Queues.move` only, which keeps the lines."""
        self.state = state

    def dispatch(self, count: int, turn: int) -> Chunk:
        """The next `count` tokens of its prompt go out in a step of that turn."""
        start, stop = self._dispatched, self._dispatched + count
        self._dispatched, self._turn = stop, turn
        return Chunk(self.slot, start, self.tokens(start, stop), stop == self.known)

    def sent(self, step: int) -> None:
        """A step that names it went out. It may have joined those that decode with that very step."""
        self._step = step
        if self.rows is not None:
            self.rows.step[self.slot] = step

    def enter(self, rows: Rows) -> None:
        """It decodes from now on, and its replica's rows say how far it is. Called by `Rotation` only."""
        self.rows = rows

    def leave_rows(self) -> None:
        """It decodes no more. Called by `Rotation` only."""
        self._dispatched, self._turn, self._step = self.dispatched, self.turn, self.step
        self.rows = None

    def announce_slot(self) -> bool:
        """Whether the ranks must be told of its slot now; they are, from then on."""
        sent, self.slot_sent = self.slot_sent, True
        return not sent

    def announced_processing(self) -> Processing | None:
        """What the ranks are told of its logits together with its slot."""
        processing = self.processing
        if processing is None or not (processing.looks_back or processing.prompt_logprobs is not None):
            return processing
        return msgspec.structs.replace(processing, tokens=self.prompt + self.output)

    def learn_prompt_logprobs(self, start: int, logprobs: list[TokenLogprobs]) -> None:
        """Those of the prompt's tokens from position `start` on; it may have started over."""
        known = 1 + len(self.prompt_logprobs)
        self.prompt_logprobs += logprobs[known - start :]

    def take_prompt_logprobs(self) -> list[TokenLogprobs]:
        """All of them; the ranks need not work them out again, should it start over."""
        told, self.prompt_logprobs = self.prompt_logprobs, []
        if self.processing is not None:
            self.processing = msgspec.structs.replace(self.processing, prompt_logprobs=None)
        return told

    def announce_blocks(self) -> tuple[int, list[int]]:
        """The part of its block table that the ranks do not know yet, and where it starts."""
        first, self.table_sent = self.table_sent, len(self.device_blocks)
        return first, self.device_blocks[first:]

    def end(self) -> tuple[FinishReason | None, int | None]:
        """Why the newest token is its last, if it is, and the token that stopped it."""
        if self.newest in self.stops:
            return FinishReason.STOP, self.newest
        if self.matcher is not None and self.matcher.failure is not None:
            return FinishReason.ERROR, None
        if self.matcher is not None and self.matcher.is_over:
            return FinishReason.STOP, None
        return (FinishReason.LENGTH if self.known >= self.end_length else None), None

    def occupy(self, replica: int, layout: int, slot: int, blocks: list[int]) -> None:
        """It is on a device from now on."""
        self.replica, self.layout, self.slot, self.device_blocks = replica, layout, slot, blocks
        self.table_sent, self.slot_sent = 0, False
        self._announced = len(self.keys)
        self._step = 0

    def borrow(self, siblings: Siblings) -> None:
        """Its first blocks are theirs."""
        self.siblings = siblings

    def announced_from(self, block: int) -> None:
        """Others were told that it is about to have the blocks of its prompt from this one on."""
        self._announced = block

    def begin_prefill(self, dispatched: int) -> None:
        """All tokens it has are to be computed, but for the first `dispatched`, which are there or on their way."""
        self._dispatched, self.prefill_end = dispatched, self.known

    def grow(self, block: int) -> None:
        self.device_blocks.append(block)

    def vacate(self) -> int:
        """It is on no device any more. Returns the slot that it had."""
        slot = self.slot
        self.device_blocks, self.siblings = [], None
        self.replica = self.layout = self.slot = NOWHERE
        return slot

    def restart(self) -> None:
        """Its KV is gone; it starts over from the tokens that are known."""
        self._dispatched = self.prefill_end = 0

    def reserve_host(self, blocks: list[int]) -> None:
        self.reserved_blocks = blocks

    def settle_on_host(self, blocks: list[int]) -> None:
        """Its KV is in these host blocks, or on its way there; none is reserved any more."""
        self.host_blocks, self.reserved_blocks = blocks, []

    def leave_host_copy(self, keep: int = 0) -> list[int]:
        """Its KV is on a device again, and all it keeps on the host are its first `keep` blocks, and what is reserved
        for its way back. Returns the blocks that the others were in."""
        blocks, self.host_blocks = self.host_blocks[keep:], self.host_blocks[:keep]
        return blocks

    def leave_host(self) -> list[int]:
        """Returns all host blocks that it had."""
        blocks = self.host_blocks + self.reserved_blocks
        self.host_blocks, self.reserved_blocks = [], []
        return blocks

    def know_keys(self, keys: list[bytes], last_key: bytes | None) -> None:
        """The keys of its full blocks, those of its output included."""
        self.keys, self.last_key = keys, last_key

    def swap_started(self) -> None:
        self.swap_in_flight = True

    def swap_completed(self) -> None:
        self.swap_in_flight = False

    def __repr__(self) -> str:
        return (
            f"<{self.request_id}/{self.index} {self.state.value} {self.dispatched}/{self.length} "
            f"layout={self.layout} replica={self.replica} step={self.step}>"
        )


def take_tokens(sequences: list[Sequence], tokens: list[int]) -> None:
    """Tokens that were in flight are known, one of each sequence; whether it is over, `Sequence.end` says."""
    for seq, token in zip(sequences, tokens, strict=True):
        seq.output.append(token)
        if seq.matcher is not None:
            try:
                seq.matcher.accept(token)
            except IntegrityError as error:  # a mask was of no use, as where logits are no numbers: nobody else suffers
                logger.error("request %s ends with an error: %s", seq.request_id, error)
                seq.matcher.give_up(str(error))

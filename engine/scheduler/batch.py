"""Builds one Forward: chunks of sequences, and what the ranks must newly know to run them."""

from __future__ import annotations

from collections import Counter

from seesaw.engine.cost.balance import StepCost
from seesaw.engine.cost.times import StepLoad, pairs_of
from seesaw.engine.scheduler.replica import Replica
from seesaw.engine.scheduler.rotation import Dispatched
from seesaw.engine.scheduler.rows import NO_SLOTS, Ints
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.wire.commands import NOBODY, Chunk, Decodes, Forward, SlotInit, TableUpdate

# Of a step's tokens, what may be left out to have whole tiles: what is left out has to come in another step.
_MOST_EXCESS = 1 / 8


class Batch:
    """The Forward under construction for one replica.

    `turn` is when it runs (see `Batcher`), `cost` what it takes each stage, in tokens; `span` is the model's
    `attention_span`. `prefills` have a chunk in it, `sampled` are those of them whose chunk ends in a token.
    """

    def __init__(self, layout: int, replica: Replica, turn: int, costs: StepCost, span: int) -> None:
        self._layout = layout
        self._replica = replica
        self._dispatched: Dispatched | None = None  # who decodes
        self.costs = costs
        self.turn = turn
        self._span = span
        self._chunks: list[Chunk] = []
        self._tables: list[TableUpdate] = []
        self._inits: list[SlotInit] = []
        self.num_tokens = 0
        self.multiple = 1  # of tokens, that a chunk which is cut anyway fills the step up to
        self.is_cut = False  # with such a chunk, it takes no more
        self.cost = 0.0
        self.decodes = 0
        self._context = 0  # that those attend to that decode
        self._pairs = 0.0  # of prompts' tokens and what they attend to
        self.prefills: list[Sequence] = []
        self.sampled: list[Sequence] = []
        self.started: Counter[str] = Counter()  # continuations that started beside it, by request
        self.finders: list[tuple[Sequence, int]] = []  # who started beside it, with so many tokens found on the device

    def __bool__(self) -> bool:
        return self.num_tokens > 0

    @property
    def num_sequences(self) -> int:
        return self.decodes + len(self.prefills)

    @property
    def kind(self) -> str:
        """`prefill`, `decode` or `mixed`, by what its chunks are."""
        if not self._chunks:
            return "decode"
        return "mixed" if self.decodes else "prefill"

    @property
    def load(self) -> StepLoad:
        return StepLoad(self.num_tokens - self.decodes, self._pairs, self.decodes, self._context)

    def add_decodes(self, slots: Ints) -> None:
        """Dispatch the next token of the sequences in these slots, which decode; those whose last it is do no more."""
        assert self._dispatched is None
        rotation = self._replica.rotation
        for seq in rotation.of(slots[rotation.rows.has_news[slots]]):
            self._announce(seq)
            rotation.rows.has_news[seq.slot] = False
        self._dispatched = dispatched = rotation.dispatch(slots, self.turn)
        for seq in dispatched.spent:
            self._replica.remove(seq)
        self.decodes = len(slots)
        self.num_tokens += len(slots)
        self._context = int(dispatched.positions.clip(max=self._span).sum())
        self.cost += self.costs.decode(self.decodes, int(dispatched.positions.sum()))

    def add_chunk(self, seq: Sequence, most: int, count: int) -> None:
        """Dispatch the next tokens of a prompt, for which it has device blocks: about `count` of at most `most`."""
        if count < most:
            self.is_cut = True
            excess = (self.num_tokens + count) % self.multiple
            if excess < count and excess <= _MOST_EXCESS * (self.num_tokens + count):
                count -= excess
        self._pairs += pairs_of(seq.dispatched, count, self._span)
        self.cost += self.costs.chunk(seq.dispatched, count)
        self._announce(seq)
        chunk = seq.dispatch(count, self.turn)
        self._chunks.append(chunk)
        self.num_tokens += count
        self.prefills.append(seq)
        if chunk.sample:
            self.sampled.append(seq)

    def _announce(self, seq: Sequence) -> None:
        if not seq.slot_sent and seq.announce_slot():
            self._inits.append(SlotInit(seq.slot, seq.row, seq.announced_processing()))
        if seq.table_sent < len(seq.device_blocks):
            self._tables.append(TableUpdate(seq.slot, *seq.announce_blocks()))

    @property
    def slots(self) -> Ints:
        """Of those that decode."""
        return NO_SLOTS if self._dispatched is None else self._dispatched.slots

    def build(self, id: int) -> Forward:
        """The command; from now on all that it names know of it."""
        decodes = NOBODY
        named = list(self.prefills)
        if (sent := self._dispatched) is not None:
            decodes = Decodes.of(sent.slots, sent.positions, sent.tokens)
            self._replica.rotation.rows.step[sent.slots] = id
            named += sent.spent
        for seq in named:
            seq.sent(id)
        return Forward(id, self._layout, self._replica.index, self._chunks, self._tables, self._inits, decodes)

"""Builds one Forward: chunks of sequences, and what the ranks must newly know to run them."""

from __future__ import annotations

from engine.cost.balance import StepCost
from engine.cost.times import StepLoad, pairs_of
from engine.scheduler.sequence import Sequence
from engine.steps import Chunk, Forward, SlotInit, TableUpdate


class Batch:
    """The Forward under construction for one replica. `sampled` are the sequences whose chunk ends in a token.

    `turn` is when it runs (see `Batcher`), `cost` what it takes each stage, in tokens.
    """

    def __init__(self, layout: int, replica: int, turn: int, costs: StepCost) -> None:
        self._layout = layout
        self._replica = replica
        self.costs = costs
        self.turn = turn
        self._chunks: list[Chunk] = []
        self._tables: list[TableUpdate] = []
        self._inits: list[SlotInit] = []
        self.num_tokens = 0
        self.cost = 0.0
        self.decodes = 0
        self._context = 0  # of those that decode
        self._pairs = 0.0  # of prompts' tokens and what they attend to
        self.sequences: list[Sequence] = []
        self.sampled: list[Sequence] = []

    def __bool__(self) -> bool:
        return bool(self._chunks)

    @property
    def kind(self) -> str:
        """`prefill`, `decode` or `mixed`, by what its chunks are."""
        if self.decodes == len(self._chunks):
            return "decode"
        return "mixed" if self.decodes else "prefill"

    @property
    def load(self) -> StepLoad:
        return StepLoad(self.num_tokens - self.decodes, self._pairs, self.decodes, self._context)

    def add_decode(self, seq: Sequence) -> None:
        """Dispatch the next token of a sequence whose known tokens are all dispatched but the last."""
        context = seq.dispatched
        self.decodes += 1
        self._context += context
        self.cost += 1 + self.costs.per_context * context
        self._announce(seq)
        self._chunks.append(seq.dispatch_newest(self.turn))
        self.num_tokens += 1
        self.sequences.append(seq)
        self.sampled.append(seq)

    def add_chunk(self, seq: Sequence, count: int) -> None:
        """Dispatch the next `count` tokens of a prompt, whose device blocks reach that far."""
        self._pairs += pairs_of(seq.dispatched, count)
        self.cost += self.costs.chunk(seq.dispatched, count)
        self._announce(seq)
        chunk = seq.dispatch(count, self.turn)
        self._chunks.append(chunk)
        self.num_tokens += count
        self.sequences.append(seq)
        if chunk.sample:
            self.sampled.append(seq)

    def _announce(self, seq: Sequence) -> None:
        if not seq.slot_sent and seq.announce_slot():
            self._inits.append(SlotInit(seq.slot, seq.row))
        if seq.table_sent < len(seq.device_blocks):
            self._tables.append(TableUpdate(seq.slot, *seq.announce_blocks()))

    def build(self, id: int) -> Forward:
        return Forward(id, self._layout, self._replica, self._chunks, self._tables, self._inits)

"""Builds one Forward: chunks of sequences, and what the ranks must newly know to run them."""

from __future__ import annotations

from engine.scheduler.cost import StepCost
from engine.scheduler.request import Sequence
from engine.steps import Chunk, Forward, SlotInit, TableUpdate


class Batch:
    """The Forward under construction for one replica. `sampled` are the sequences whose chunk ends in a token.

    `turn` is when it runs (see `Stepper`), `cost` what it takes each stage, in tokens.
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

    def add(self, seq: Sequence, count: int) -> None:
        """Dispatch the sequence's next `count` tokens; its device blocks must reach that far."""
        start, stop = seq.dispatched, seq.dispatched + count
        tokens = seq.tokens[start:stop]
        if stop > len(seq.tokens):
            # Only the newest token can still be in flight, and the slot's row holds just that one.
            assert stop == seq.length and seq.pending > 0
            tokens.append(~seq.slot)
        sample = stop == seq.length
        if not seq.slot_sent:
            self._inits.append(SlotInit(seq.slot, seq.row))
            seq.slot_sent = True
        if seq.table_sent < len(seq.device_blocks):
            self._tables.append(TableUpdate(seq.slot, seq.table_sent, seq.device_blocks[seq.table_sent :]))
            seq.table_sent = len(seq.device_blocks)
        self._chunks.append(Chunk(seq.slot, start, tokens, sample))
        self.num_tokens += count
        self.cost += self.costs.chunk(start, count) if seq.in_prefill else self.costs.decode(1, start)
        self.decodes += not seq.in_prefill
        self.sequences.append(seq)
        seq.dispatched = stop
        seq.steps_in_flight += 1
        seq.turn = self.turn
        if sample:
            seq.pending += 1
            self.sampled.append(seq)

    def build(self, id: int) -> Forward:
        return Forward(id, self._layout, self._replica, self._chunks, self._tables, self._inits)

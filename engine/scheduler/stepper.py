"""Fills the replicas with work: forward steps and swap-ins for the phase the engine is in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.parallel.layout import Layout
from engine.parallel.moves import stage_layers
from engine.scheduler.batch import Batch
from engine.scheduler.cost import TOKENS_ONLY, StepCost
from engine.scheduler.ledger import Ledger
from engine.scheduler.policy import Phase, home_layout
from engine.scheduler.request import ON_DEVICE, SeqState, Sequence
from engine.scheduler.residency import Replica

# A step may run and the next one, whose input is its output, wait behind it.
MAX_PENDING_TOKENS = 2
MIN_CHUNK_TOKENS = 256
# What one more micro-batch of prompts costs each stage, in tokens: launches, and less efficient products.
MICRO_BATCH_TOKENS = 64
# What a pipeline's micro-batch that decodes is filled up to with prompts, in tokens. Far beyond `KNEE_TOKENS`, more of
# them gain little efficiency, slow down everybody who decodes, and leave nothing to fill the later micro-batches with.
MIXED_TOKENS = 640


@dataclass(frozen=True)
class Share:
    """Of the running sequences: each decodes once in `steps` steps, every one of which may `cost` so many tokens."""

    steps: int
    cost: float


class Stepper:
    """Keeps up to pp + 1 steps in flight in every replica, so that neither stages nor host wait for one another.

    A replica's time is counted in turns: in each, every stage carries out one step, and a token sampled in a step of
    turn `t` is there for turn `t + pp`. A step that needs it sooner would keep all stages waiting.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._roster = ledger.roster
        self._residency = ledger.residency
        self._config = ledger.config
        shape = ledger.capacity.shape
        # Without a pipeline there is nothing to balance.
        self._costs = {x: StepCost.of(shape) if x.pp > 1 else TOKENS_ONLY for x in ledger.plan.layouts}
        self._stages = {x: [len(span) for span in stage_layers(shape.num_layers, x.pp)] for x in ledger.plan.layouts}

    def fill(self, phase: Phase, layout: Layout, admits: bool) -> None:
        """Send every step that can be sent now. `admits`: waiting prompts may start in this layout."""
        chunk = self._chunk_tokens(layout)
        progress = True
        while progress:
            progress = False
            # Whoever has most room takes the next prompt. In a fixed order, the first would take all that come singly.
            for replica in sorted(self._residency.replicas, key=lambda r: -r.pool.free):
                if replica.forwards_in_flight < layout.max_in_flight:
                    progress |= self._step(replica, phase, layout, chunk, admits)

    def _chunk_tokens(self, layout: Layout) -> int:
        """What a micro-batch of nothing but prompts may cost.

        While a pipeline fills and drains, every stage waits for pp - 1 micro-batches, and every micro-batch costs
        something by itself. For `t` tokens in micro-batches of `c` that is `(pp - 1) * c + MICRO_BATCH_TOKENS * t / c`
        tokens' time, least at the `c` below.
        """
        tokens = self._roster.waiting_tokens
        tokens += sum(seq.prefill_end - seq.dispatched for seq in self._roster.walk(SeqState.PREFILL))
        best = -(-tokens // layout.dp)
        if layout.pp > 1:
            best = math.isqrt(best * MICRO_BATCH_TOKENS // (layout.pp - 1))
        return min(max(best, MIN_CHUNK_TOKENS), self._config.max_num_batched_tokens)

    def _step(self, replica: Replica, phase: Phase, layout: Layout, chunk: int, admits: bool) -> bool:
        """Send a replica one step, if it has anything to run: decodes, and chunks of prompts beside them."""
        batch = Batch(self._ledger.plan.index(layout), replica.index, replica.turn + 1, self._costs[layout])
        leavers: dict[Sequence, None] = {}
        share = self._share(replica, layout) if phase is not Phase.PREFILL else None
        if share is not None:
            self._add_decodes(batch, replica, layout, share, leavers)
        # In a pipeline all steps should cost the same, or stages wait.
        is_mixed = layout.pp > 1 and share is not None and bool(replica.rotation)
        budget = max(MIXED_TOKENS, batch.cost + MIN_CHUNK_TOKENS) if is_mixed else batch.cost + chunk
        self._add_prefills(batch, replica, phase, budget, admits, leavers)
        # Beyond so many steps only those that came late may still decode: they would keep a step of their own.
        if not batch and share is not None and replica.forwards_in_flight < MAX_PENDING_TOKENS * share.steps:
            batch.turn = self._next_turn(replica, layout, share)
            self._add_decodes(batch, replica, layout, share, leavers)
        if batch:
            self._send(batch, replica, layout)
        for seq in leavers:  # behind the step, which may still write what they take along
            self._ledger.take_off(seq)
        return bool(batch)

    def _send(self, batch: Batch, replica: Replica, layout: Layout) -> None:
        replica.forwards_in_flight += 1
        replica.turn = batch.turn
        if batch.decodes:
            replica.decode_turns.append(batch.turn)
        self._ledger.counters.stepped(batch.kind, batch.decodes)
        forward = batch.build(self._ledger.next_id())
        self._ledger.send(forward, layout.ranks_per_replica, batch.sequences, batch.sampled, batch.kind)

    # --- decode

    def _share(self, replica: Replica, layout: Layout) -> Share:
        """How the running sequences are split into micro-batches."""
        rows, context = len(replica.rotation), sum(seq.dispatched for seq in replica.rotation)
        costs = self._costs[layout]
        steps = costs.micro_batches(self._stages[layout], rows, context)
        return Share(steps, costs.decode(rows, context) / steps)

    def _add_decodes(
        self, batch: Batch, replica: Replica, layout: Layout, share: Share, leavers: dict[Sequence, None]
    ) -> None:
        """One token each for a share of the running sequences, those that waited longest first."""
        if batch.turn < replica.next_decode_turn(share.steps, layout.pp):
            return
        for seq in list(replica.rotation):
            if batch.cost >= share.cost or not self._has_room(batch):
                break
            if seq in leavers or seq.pending >= MAX_PENDING_TOKENS or batch.turn < seq.next_turn(layout.pp):
                continue
            if not self._residency.grow(seq):
                self._preempt(replica, leavers)
                continue
            batch.add(seq, 1)
            del replica.rotation[seq]
            if not seq.is_exhausted:
                replica.rotation[seq] = None  # at the end of the line

    @staticmethod
    def _next_turn(replica: Replica, layout: Layout, share: Share) -> int:
        """The first turn in which a sequence can decode."""
        ready = (seq.next_turn(layout.pp) for seq in replica.rotation if seq.pending < MAX_PENDING_TOKENS)
        first = max(min(ready, default=0), replica.next_decode_turn(share.steps, layout.pp))
        return max(first, replica.turn + 1)

    def _preempt(self, replica: Replica, leavers: dict[Sequence, None]) -> None:
        """Take the youngest sequence off a full device, unless somebody's blocks are coming free already."""
        on_the_way = self._roster.line(SeqState.LEAVING, SeqState.SWAPPING_OUT, SeqState.FINISHED)
        if leavers or any(seq.replica == replica.index for seq in on_the_way):
            return
        here = [seq for seq in self._roster.line(*ON_DEVICE) if seq.replica == replica.index]
        victim = max(here, key=lambda seq: seq.arrival)
        self._ledger.counters.preemptions += 1
        leavers[victim] = None

    def _add_prefills(
        self, batch: Batch, replica: Replica, phase: Phase, budget: float, admits: bool, leavers: dict[Sequence, None]
    ) -> None:
        """Chunks of prompts: of those under way first, then of those that wait."""
        for seq in list(replica.prefilling):
            if batch.cost >= budget or not self._has_room(batch):
                return
            if seq not in leavers and seq.in_prefill:
                self._add_chunk(batch, seq, phase, budget, leavers)
        while admits and batch.cost < budget and self._has_room(batch):
            admitted = self._admit(replica, phase)
            if admitted is None:
                return
            self._add_chunk(batch, admitted, phase, budget, leavers)

    def _has_room(self, batch: Batch) -> bool:
        """For one more sequence: the workers have memory for `max_num_seqs` rows of logits, also of tiny prompts."""
        config = self._config
        return batch.num_tokens < config.max_num_batched_tokens and len(batch.sequences) < config.max_num_seqs

    def _add_chunk(
        self, batch: Batch, seq: Sequence, phase: Phase, budget: float, leavers: dict[Sequence, None]
    ) -> None:
        start = seq.dispatched
        most = min(seq.prefill_end - start, self._config.max_num_batched_tokens - batch.num_tokens)
        batch.add(seq, min(most, batch.costs.tokens_within(start, budget - batch.cost)))
        self._residency.publish(seq, start)
        if seq.in_prefill:
            return
        if phase is not Phase.PREFILL:
            self._ledger.start_decoding(seq)
        elif not seq.is_exhausted:
            leavers[seq] = None

    def _admit(self, replica: Replica, phase: Phase) -> Sequence | None:
        """Start the first waiting sequence on a replica, if there is one and room for it."""
        surge = phase is Phase.PREFILL
        if not surge and replica.residents >= self._config.max_num_seqs:
            return None
        for seq in self._roster.walk(SeqState.WAITING):
            leader = seq.leader
            if leader is not None and leader.state is SeqState.PREFILL and leader.in_prefill:
                continue  # it will share the leader's blocks once they are dispatched
            layout = self._ledger.plan.index(self._ledger.plan.prefill if surge else self._home(phase))
            if not self._residency.admit(seq, replica, layout, surge):
                return None
            self._ledger.start_prefilling(seq)
            return seq
        return None

    def _home(self, phase: Phase) -> Layout:
        return home_layout(self._ledger.plan, phase)

    # --- swap-ins

    def swap_in(self, phase: Phase, layout: Layout) -> None:
        """Bring hosted sequences to devices with free blocks, ahead of need and in any phase.

        During a prefill phase decoding ones come in already (in the decode layout's rectangles), and prompts that
        were half done when the layout changed resume.
        """
        if phase is Phase.PREFILL:
            for seq in self._roster.line(SeqState.HOSTED):
                if seq.in_prefill:
                    self._swap_in(seq, layout, surge=True)
        home = self._home(phase)
        if home.dp != layout.dp:
            return
        for seq in self._roster.line(SeqState.HOSTED):
            if phase is Phase.PREFILL and seq.in_prefill:
                continue
            if not self._swap_in(seq, home, surge=False):
                return

    def _swap_in(self, seq: Sequence, layout: Layout, surge: bool) -> bool:
        replicas = [r for r in self._residency.replicas if surge or r.residents < self._config.max_num_seqs]
        if not replicas:
            return False
        replica = max(replicas, key=lambda r: self._residency.room(r, surge))
        swap = self._residency.swap_in(seq, replica, self._ledger.plan.index(layout), surge)
        if swap is None:
            return False
        replica.incoming[seq] = None
        self._roster.move(seq, SeqState.SWAPPING_IN)
        self._ledger.send_swap(seq, swap)
        return True

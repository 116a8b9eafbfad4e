"""Fills the replicas with work: forward steps and swap-ins for the phase the engine is in."""

from __future__ import annotations

import math

from engine.parallel.layout import Layout
from engine.scheduler.batch import Batch
from engine.scheduler.ledger import Ledger
from engine.scheduler.policy import Phase, home_layout
from engine.scheduler.request import ON_DEVICE, SeqState, Sequence
from engine.scheduler.residency import Replica

# A step may run and the next one, whose input is its output, wait behind it.
MAX_PENDING_TOKENS = 2
MIN_CHUNK_TOKENS = 256
# What one more micro-batch costs each stage, in tokens of prompt: launches, and the lower efficiency of small products.
MICRO_BATCH_TOKENS = 64


class Stepper:
    """Keeps up to pp + 1 steps in flight in every replica, so that neither stages nor host wait for one another."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._roster = ledger.roster
        self._residency = ledger.residency
        self._config = ledger.config

    def fill(self, phase: Phase, layout: Layout, admits: bool) -> None:
        """Send every step that can be sent now. `admits`: waiting prompts may start in this layout."""
        chunk = self._chunk_tokens(layout)
        progress = True
        while progress:
            progress = False
            for replica in self._residency.replicas:
                if replica.forwards_in_flight <= layout.pp:
                    progress |= self._step(replica, phase, layout, chunk, admits)

    def _chunk_tokens(self, layout: Layout) -> int:
        """Tokens of a prefill micro-batch.

        While a pipeline fills and drains, every stage waits for pp - 1 micro-batches, and every micro-batch costs
        something by itself. For `t` tokens in micro-batches of `c` that is `(pp - 1) * c + MICRO_BATCH_TOKENS * t / c`
        tokens' time, least at the `c` below.
        """
        tokens = self._roster.waiting_tokens
        tokens += sum(seq.prefill_end - seq.dispatched for seq in self._roster.walk(SeqState.PREFILL))
        best = -(-tokens // layout.dp)
        if layout.pp > 1:
            best = math.isqrt(best * MICRO_BATCH_TOKENS // (layout.pp - 1))
        most = self._config.max_num_batched_tokens
        return min(most, max(best, MIN_CHUNK_TOKENS))

    def _step(self, replica: Replica, phase: Phase, layout: Layout, chunk: int, admits: bool) -> bool:
        """Send a replica one step, if it has anything to run: decodes, and `chunk` tokens of prompts beside them."""
        batch = Batch(self._ledger.plan.index(layout), replica.index)
        leavers: dict[Sequence, None] = {}
        if phase is not Phase.PREFILL:
            self._add_decodes(batch, replica, -(-len(replica.rotation) // layout.pp), leavers)
        budget = min(self._config.max_num_batched_tokens, batch.num_tokens + chunk)
        self._add_prefills(batch, replica, phase, budget, admits, leavers)
        if batch:
            replica.forwards_in_flight += 1
            self._ledger.counters.stepped(batch.kind, batch.decodes)
            forward = batch.build(self._ledger.next_id())
            self._ledger.send(forward, layout.ranks_per_replica, batch.sequences, batch.sampled, batch.kind)
        for seq in leavers:  # behind the step, which may still write what they take along
            self._ledger.take_off(seq)
        return bool(batch)

    def _add_decodes(self, batch: Batch, replica: Replica, quota: int, leavers: dict[Sequence, None]) -> None:
        """One token each for `quota` of the running sequences, those that waited longest first."""
        quota = min(quota, self._config.max_num_batched_tokens)
        for seq in list(replica.rotation):
            if len(batch.sequences) == quota:
                break
            if seq.pending >= MAX_PENDING_TOKENS or seq.is_exhausted or seq in leavers:
                continue
            if not self._residency.grow(seq):
                self._preempt(replica, leavers)
                continue
            batch.add(seq, 1)
            replica.rotation[seq] = replica.rotation.pop(seq)  # to the end of the line

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
        self, batch: Batch, replica: Replica, phase: Phase, budget: int, admits: bool, leavers: dict[Sequence, None]
    ) -> None:
        """Chunks of prompts: of those under way first, then of those that wait."""
        for seq in list(replica.prefilling):
            if batch.num_tokens >= budget:
                return
            if seq not in leavers and seq.in_prefill:
                self._add_chunk(batch, seq, phase, budget, leavers)
        while admits and batch.num_tokens < budget:
            admitted = self._admit(replica, phase)
            if admitted is None:
                return
            self._add_chunk(batch, admitted, phase, budget, leavers)

    def _add_chunk(self, batch: Batch, seq: Sequence, phase: Phase, budget: int, leavers: dict[Sequence, None]) -> None:
        start = seq.dispatched
        batch.add(seq, min(seq.prefill_end - start, budget - batch.num_tokens))
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
        replica = max(self._residency.replicas, key=lambda r: self._residency.room(r, surge))
        if not surge and replica.residents >= self._config.max_num_seqs:
            return False
        swap = self._residency.swap_in(seq, replica, self._ledger.plan.index(layout), surge)
        if swap is None:
            return False
        replica.incoming[seq] = None
        self._roster.move(seq, SeqState.SWAPPING_IN)
        self._ledger.send_swap(seq, swap)
        return True

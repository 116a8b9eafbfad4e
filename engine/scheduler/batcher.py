"""Fills the replicas with work: forward steps and swap-ins for the mode the engine is in."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from operator import attrgetter

import numpy as np

from seesaw.engine.cost.balance import MIN_CHUNK_TOKENS, TOKENS_ONLY, StepCost
from seesaw.engine.cost.times import StepLoad
from seesaw.engine.kv.prefixes import Prefix
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.planning.policy import Mode
from seesaw.engine.scheduler.batch import Batch
from seesaw.engine.scheduler.lifecycle import Lifecycle
from seesaw.engine.scheduler.replica import Replica
from seesaw.engine.scheduler.room import give_way, make_room, make_room_to_grow
from seesaw.engine.scheduler.rotation import MAX_PENDING_TOKENS
from seesaw.engine.scheduler.rows import Ints
from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.scheduler.sequence import Sequence

# Waiting sequences that others may overtake, since what they wait for is about to be there, and how many of them are
# looked up: who waits for the same block as one before needs no look.
_MOST_PASSED, _MOST_LOOKED_UP = 1024, 16
# Continuations of one request that start in a step in which others decode, who wait for all of them.
_MOST_CONTINUATIONS = 32
# A replica that has some of a prompt takes it, unless it has so many times the sequences of another, and a few more.
_MUCH_BUSIER, _A_FEW = 1.5, 4
TILE_TOKENS = 128  # matrix products compute their rows in tiles of so many: one that is begun costs a whole one


@dataclass(frozen=True)
class Share:
    """Of the running sequences: each decodes once in `steps` steps, every one of which may `cost` so many tokens."""

    steps: int
    cost: float


class Batcher:
    """Keeps up to pp + 1 steps in flight in every replica, so that neither stages nor host wait for one another.

    A replica's time is counted in turns: in each, every stage carries out one step, and a token sampled in a step of
    turn `t` is there for turn `t + pp`. A step that needs it sooner would keep all stages waiting.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._queues = lifecycle.queues
        self._blocks = lifecycle.blocks
        self._config = lifecycle.config
        self._times = {layout: lifecycle.times.of(layout) for layout in lifecycle.plan.layouts}
        # Without a pipeline there is nothing to balance.
        self._costs = {x: StepCost.of(times) if x.pp > 1 else TOKENS_ONLY for x, times in self._times.items()}
        self._span = lifecycle.capacity.shape.attention_span
        self._chunk_of: tuple[Layout, int] | None = None  # what was asked last
        self._chunk = 0

    def fill(self, mode: Mode, admits: bool) -> None:
        """Send every step that can be sent now. `admits`: waiting prompts may start in this mode."""
        layout = mode.layout
        chunk = self._chunk_tokens(layout)
        progress = True
        while progress:
            progress = False
            # Whoever has most room takes the next prompt. In a fixed order, the first would take all that come singly.
            for replica in sorted(self._blocks.replicas, key=lambda r: -r.pool.available):
                if replica.forwards_in_flight < layout.max_in_flight:
                    progress |= self._step(replica, mode, chunk, admits)

    def _chunk_tokens(self, layout: Layout) -> int:
        """What a micro-batch of nothing but prompts may cost, by how many tokens of them there are."""
        if layout.pp == 1:
            return self._config.max_num_batched_tokens
        kilotokens = -(-self._queues.unfilled_tokens // layout.dp) // 1024
        if (layout, kilotokens) != self._chunk_of:  # as on the turn before, mostly
            most = self._config.max_num_batched_tokens
            self._chunk_of = layout, kilotokens
            self._chunk = self._times[layout].best_step_tokens(1024 * kilotokens + 512, MIN_CHUNK_TOKENS, most)
        return self._chunk

    def _step(self, replica: Replica, mode: Mode, chunk: int, admits: bool) -> bool:
        """Send a replica one step, if it has anything to run: decodes, and chunks of prompts beside them."""
        layout = mode.layout
        costs = self._costs[layout]
        if admits and not mode.is_surge and self._queues.somebody_waits:
            give_way(self._lifecycle, replica)
        batch = Batch(self._lifecycle.plan.index(layout), replica, replica.turn + 1, costs, self._span)
        leavers: dict[Sequence, None] = {}
        share = None if mode.is_surge else self._share(replica, layout)
        if share is not None:
            self._add_decodes(batch, replica, layout, share, leavers)
        # In a pipeline all steps should cost the same, or stages wait.
        is_mixed = layout.pp > 1 and share is not None and bool(replica.rotation)
        budget = max(costs.mixed, batch.cost + MIN_CHUNK_TOKENS) if is_mixed else batch.cost + chunk
        batch.multiple = 1 if is_mixed else TILE_TOKENS
        self._add_prefills(batch, replica, mode, budget, admits, leavers)
        # Beyond so many steps only those that came late may still decode: they would keep a step of their own.
        if not batch and share is not None and replica.forwards_in_flight < MAX_PENDING_TOKENS * share.steps:
            batch.turn = self._next_turn(replica, layout, share)
            self._add_decodes(batch, replica, layout, share, leavers)
        if batch:
            self._send(batch, replica)
        for seq, tokens in batch.finders:  # behind the step, which may be computing what they found
            self._lifecycle.save(seq, tokens)
        for seq in leavers:  # behind the step, which may still write what they take along
            self._lifecycle.preempt(seq)
        return bool(batch)

    def _send(self, batch: Batch, replica: Replica) -> None:
        replica.forwards_in_flight += 1
        replica.turn = batch.turn
        if batch.decodes:
            replica.decode_turns.append(batch.turn)
        self._lifecycle.counters.stepped(batch.kind, batch.load)
        self._lifecycle.send_forward(batch.build(self._lifecycle.next_id()), batch)

    # --- decode

    def _share(self, replica: Replica, layout: Layout) -> Share:
        """How the running sequences are split into micro-batches."""
        rows, context = len(replica.rotation), replica.rotation.context_tokens
        steps = self._times[layout].micro_batches(rows, context) if layout.pp > 1 else 1
        return Share(steps, self._costs[layout].decode(rows, context) / steps)

    def _add_decodes(
        self, batch: Batch, replica: Replica, layout: Layout, share: Share, leavers: dict[Sequence, None]
    ) -> None:
        """One token each for a share of the running sequences, those that waited longest first."""
        if batch.turn < replica.next_decode_turn(share.steps, layout.pp):
            return
        rotation = replica.rotation
        slots = rotation.due(batch.turn, layout.pp)
        before = np.cumsum(1 + batch.costs.per_context * rotation.rows.dispatched[slots])[:-1]
        slots = slots[: min(1 + int(before.searchsorted(share.cost)), self._rows_left(batch))]
        slots = self._grow(replica, slots, leavers)
        if len(slots):
            batch.add_decodes(slots)

    def _grow(self, replica: Replica, slots: Ints, leavers: dict[Sequence, None]) -> Ints:
        """Those of these slots that have a block for their next token, and stay."""
        full = [seq for seq in replica.rotation.of(replica.rotation.full(slots)) if seq not in leavers]
        available = replica.pool.available
        self._blocks.grow(replica, full[:available])
        stuck = full[available:]
        if stuck:
            leavers.update(dict.fromkeys(make_room_to_grow(self._lifecycle, replica, stuck, leavers)))
        absent = [seq.slot for seq in (*stuck, *leavers)]
        return slots[~np.isin(slots, absent)] if absent else slots

    @staticmethod
    def _next_turn(replica: Replica, layout: Layout, share: Share) -> int:
        """The first turn in which a sequence can decode."""
        ready = replica.rotation.first_turn(layout.pp)
        return max(ready, replica.next_decode_turn(share.steps, layout.pp), replica.turn + 1)

    # --- prefill

    def _add_prefills(
        self, batch: Batch, replica: Replica, mode: Mode, budget: float, admits: bool, leavers: dict[Sequence, None]
    ) -> None:
        """Chunks of prompts: of those under way first, then of those that wait."""
        for seq in list(replica.prefilling):
            if self._is_full(batch, budget):
                return
            if seq not in leavers and seq.in_prefill:
                self._add_chunk(batch, seq, mode, budget, leavers)
        while admits and not self._is_full(batch, budget):
            admitted = self._admit(batch, replica, mode)
            if admitted is None:
                return
            self._add_chunk(batch, admitted, mode, budget, leavers)

    def _is_full(self, batch: Batch, budget: float) -> bool:
        """Whether it takes no more prompts: a chunk was cut for want of budget, or there is none left."""
        return batch.is_cut or batch.cost >= budget or self._rows_left(batch) <= 0

    def _rows_left(self, batch: Batch) -> int:
        """Sequences that still fit: the workers have memory for `max_num_seqs` rows of logits, also of tiny prompts."""
        config = self._config
        return min(config.max_num_batched_tokens - batch.num_tokens, config.max_num_seqs - batch.num_sequences)

    def _add_chunk(self, batch: Batch, seq: Sequence, mode: Mode, budget: float, leavers: dict[Sequence, None]) -> None:
        start = seq.dispatched
        most = min(seq.prefill_end - start, self._config.max_num_batched_tokens - batch.num_tokens)
        batch.add_chunk(seq, most, batch.costs.tokens_within(start, budget - batch.cost, most))
        self._blocks.publish(seq, start)
        if seq.in_prefill:
            return
        if not mode.is_surge:
            self._lifecycle.start_decoding(seq)
        elif not seq.is_exhausted:
            leavers[seq] = None

    def _admit(self, batch: Batch, replica: Replica, mode: Mode) -> Sequence | None:
        """Start the first waiting sequence that should start now on a replica, if there is one and room for it."""
        surge, prefixes = mode.is_surge, self._blocks.prefixes
        layout = self._lifecycle.plan.index(mode.layout)
        # By place and key, blocks for which prompts wait: somebody here is about to have them, or another replica has.
        awaited: set[tuple[int, bytes]] = set()
        passed = looked_up = 0
        while (surge or replica.residents < self._config.max_num_seqs) and replica.pool.available:
            for seq in islice(self._queues.walk(SeqState.WAITING), passed, _MOST_PASSED):
                if batch.decodes and batch.started[seq.request_id] >= _MOST_CONTINUATIONS:
                    return None
                siblings = prefixes.siblings(seq, replica, layout)
                if siblings is not None:
                    device = siblings.first.device_blocks[: prefixes.shared_blocks(seq)]
                    break
                if not prefixes.awaits(seq, awaited):
                    if looked_up == _MOST_LOOKED_UP:
                        return None
                    looked_up += 1
                    device = prefixes.on_device(seq, replica, layout)
                    missing = prefixes.first_missing(seq, len(device))
                    if missing is None or not (
                        missing[1] in replica.coming or self._belongs_elsewhere(seq, replica, layout, len(device))
                    ):
                        break
                    awaited.add(missing)
                passed += 1
            else:
                return None
            prefix = Prefix(device, prefixes.on_host(seq) if surge or siblings is None else [])
            bring = prefix.beyond_device > 0 and self._pays_to_bring(seq, mode.layout, prefix)
            admission = self._blocks.admit(seq, replica, layout, surge, prefix, bring, siblings)
            if admission is None:
                if surge and not replica.prefilling and not replica.forwards_in_flight:
                    total = self._blocks.blocks_for(seq.known)
                    make_room(self._lifecycle, replica, replica.pool.taking(total, device), keep_host_blocks=total)
                return None
            self._lifecycle.start(seq, admission)
            batch.started[seq.request_id] += 1
            # From a surge it goes to the host anyway, and of continuations one is enough.
            if admission.device_tokens and not surge and siblings is None:
                batch.finders.append((seq, admission.device_tokens))
            if admission.swap is None:
                return seq
        return None

    def _belongs_elsewhere(self, seq: Sequence, replica: Replica, layout: int, found: int) -> bool:
        """Whether another replica has more of a prompt than the blocks `found` here, or is about to, and room for it
        without being much busier."""
        prefixes, needed = self._blocks.prefixes, self._blocks.blocks_for(seq.known)
        return any(
            other is not replica
            and other.residents <= _MUCH_BUSIER * replica.residents + _A_FEW
            and other.residents < self._config.max_num_seqs
            and other.free_slots
            and needed <= other.pool.available
            and prefixes.is_near(seq, other, layout, found + 1)
            for other in self._blocks.replicas
        )

    def _pays_to_bring(self, seq: Sequence, layout: Layout, prefix: Prefix) -> bool:
        """Whether copying what only the host has of a prompt takes less time than computing it would add to a step."""
        block_size, times = self._config.block_size, self._times[layout]
        start, end = (len(blocks) * block_size for blocks in prefix)
        whole, rest = (StepLoad.chunk(at, seq.known - at, self._span) for at in (start, end))
        computed_s = times.busiest_s(whole) - times.busiest_s(rest)
        num_bytes = (end - start) * self._lifecycle.capacity.shape.kv_bytes_per_token()
        return self._lifecycle.times.swap_s(num_bytes, to_host=False) < computed_s

    # --- swap-ins

    def swap_in(self, mode: Mode, layout: Layout | None = None, waits: bool = False) -> None:
        """Bring hosted sequences to devices with free blocks, ahead of need and in any mode.

        During a surge prompts that were half done when the layout changed resume, and when the last prompts are on
        their way, decoding ones come in already, in the rectangles of their home. `layout`: the one the engine is still
        in, if it is another than the mode's. `waits`: somebody does for the room here, to whom others yield.
        """
        if mode.is_surge:
            for seq in self._queues.list(SeqState.HOSTED):
                if seq.in_prefill:
                    self._swap_in(seq, mode.layout, surge=True)
            if mode.home.dp != mode.layout.dp or self._takes_more():
                return
        elif layout is not None and layout.dp != mode.layout.dp:
            return
        hosted = self._queues.list(SeqState.HOSTED)
        if self._queues.yielding:
            hosted.sort(key=attrgetter("yields"))
        for seq in hosted:
            if waits and seq.yields:
                return
            if mode.is_surge and seq.in_prefill:
                continue
            if not self._swap_in(seq, mode.home, surge=False):
                return

    def _takes_more(self) -> bool:
        """Whether a surge is going to begin with one more prompt."""
        first = self._queues.first(SeqState.WAITING)
        if first is None:
            return False
        blocks = self._blocks
        return blocks.has_way_out(blocks.blocks_for(first.known), blocks.prefixes.on_host(first))

    def _swap_in(self, seq: Sequence, layout: Layout, surge: bool) -> bool:
        replicas = [r for r in self._blocks.replicas if surge or r.residents < self._config.max_num_seqs]
        if not replicas:
            return False
        replica = max(replicas, key=lambda r: self._blocks.room(r, surge))
        swap = self._blocks.swap_in(seq, replica, self._lifecycle.plan.index(layout), surge)
        if swap is None:
            return False
        self._lifecycle.start_swapping_in(seq, swap)
        return True

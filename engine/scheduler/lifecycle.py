"""The scheduler's state: every sequence, what it holds, what is in flight, and what goes out next.

The parts of the scheduler (`Batcher`, `Transitions`, `Scheduler`) decide; each change of a sequence's state that
has consequences for blocks goes through here.
"""

from __future__ import annotations

import itertools

from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.executor.base import Capacity
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.scheduler.batch import Batch
from seesaw.engine.scheduler.block_manager import Admission, BlockManager
from seesaw.engine.scheduler.counters import Counters
from seesaw.engine.scheduler.flight import InFlight
from seesaw.engine.scheduler.idle import IdleTime
from seesaw.engine.scheduler.masks import PendingMasks
from seesaw.engine.scheduler.queues import Queues
from seesaw.engine.scheduler.replica import Replica
from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.trace import Trace
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import IntegrityError
from seesaw.engine.wire.commands import Command, Forward, Swap, Transition, num_slots
from seesaw.engine.wire.messages import CachedPrompt

_QUIET_S = 30.0  # after so long without others, those that yield leave no room for them


class Lifecycle:
    """Sequences, blocks and flights, kept consistent with one another."""

    def __init__(self, config: EngineConfig, capacity: Capacity, now: float, trace: Trace | None = None) -> None:
        self.config = config
        self.plan = config.plan
        self.capacity = capacity
        self.queues = Queues()
        self.counters = Counters(now)
        self.times = EngineTimes(self.plan, capacity.times)
        self.trace = trace
        self.idle = IdleTime(trace)
        self.in_flight: dict[int, InFlight] = {}
        self.masks = PendingMasks(capacity.shape.vocab)
        self.swaps_in_flight = 0
        self.found: list[CachedPrompt] = []  # since outputs were last taken
        self.working_since_s: float | None = None  # when the current mode sent its first step
        self.others_came_s = now  # to whom some yield
        self.admitted_s = now  # when the last waiting sequence began
        self.now = now
        self._ids = itertools.count(1)
        self._outbox: list[Command] = []
        geometry = KVGeometry(capacity.shape, self.plan, config.block_size)
        self.blocks = BlockManager(
            geometry,
            capacity.num_device_blocks,
            capacity.num_host_blocks,
            num_slots(config.max_num_seqs),
            self.next_id,
            config.enable_prefix_caching,
        )

    def next_id(self) -> int:
        return next(self._ids)

    # --- commands

    def send_forward(self, forward: Forward, batch: Batch) -> None:
        """`forward` was built of `batch`."""
        if self.working_since_s is None:
            self.working_since_s = self.now
        if self.blocks.replicas[forward.replica].forwards_in_flight == 1:
            self.idle.sent(forward.replica, self.now)
        ranks = self.plan.layouts[forward.layout].ranks_per_replica
        flight = InFlight(
            forward, ranks, self.now, batch.sampled, batch.prefills, batch.slots, kind=batch.kind, load=batch.load
        )
        self._send(forward, flight)
        if self.masks.num_sequences:
            self.masks.expect(
                forward, [*self.blocks.replicas[forward.replica].rotation.of(batch.slots), *batch.sampled]
            )

    def send_transition(self, transition: Transition) -> None:
        self._send(transition, InFlight(transition, self.plan.world_size, self.now))

    def send_swap(self, seq: Sequence, swap: Swap) -> None:
        """A sequence's copy sets off; without anything to copy it has arrived."""
        if swap.device_blocks:
            seq.swap_started()
            self._send_swap(swap, [seq])
        self.settle(seq)

    def _send_swap(self, swap: Swap, sequences: list[Sequence]) -> None:
        self.swaps_in_flight += 1
        ranks = self.plan.layouts[swap.layout].ranks_per_replica
        self._send(swap, InFlight(swap, ranks, self.now, sequences))

    def _send(self, command: Forward | Swap | Transition, flight: InFlight) -> None:
        self.in_flight[command.id] = flight
        self._outbox.append(command)

    def take_commands(self) -> list[Command]:
        commands, self._outbox = self._outbox, []
        return [*commands, *self.masks.take_due()]

    def trace_flight(self, flight: InFlight) -> None:
        """A command has completed: show it on the timeline, if there is one (`Transitions` shows transitions)."""
        if self.trace is None:
            return
        match flight.command:
            case Forward(replica=replica, layout=layout, num_tokens=tokens, num_sequences=sequences):
                where = str(self.plan.layouts[layout])
                times = (flight.sent_s, flight.seconds, self.now)
                self.trace.step(flight.kind, replica, *times, tokens=tokens, sequences=sequences, layout=where)
            case Swap(replica=replica, to_host=to_host, device_blocks=blocks):
                times = (flight.sent_s, flight.seconds, self.now)
                self.trace.swap(to_host, replica, *times, bytes=flight.bytes, blocks=len(blocks))

    # --- sequences

    def replica_of(self, seq: Sequence) -> Replica:
        return self.blocks.replicas[seq.replica]

    def preempt(self, seq: Sequence) -> None:
        """Move a sequence off its device: to the host if there is room, else back to the waiting ones.

        Call it behind the last step that names the sequence: ranks copy after the steps sent before.
        """
        self.leave_line(seq)
        swap = self.blocks.swap_out(seq) if seq.dispatched else None
        if swap is not None:
            self.queues.move(seq, SeqState.SWAPPING_OUT)
            self.send_swap(seq, swap)
        else:
            self.queues.move(seq, SeqState.LEAVING)
            self.settle(seq)

    def finish(self, seq: Sequence) -> None:
        """No more is wanted of a sequence; what it holds is freed once nothing in flight names it."""
        self.leave_line(seq)
        self.blocks.finish(seq)
        if seq.slot >= 0:
            self.replica_of(seq).rotation.close(seq.slot)
        self.queues.move(seq, SeqState.FINISHED)
        self.settle(seq)

    def leave_line(self, seq: Sequence) -> None:
        """It is in none of its replica's lines from now on."""
        if seq.replica >= 0:
            self.replica_of(seq).remove(seq)

    def start_decoding(self, seq: Sequence) -> None:
        self.leave_line(seq)
        self.queues.move(seq, SeqState.RUNNING)
        if not seq.is_exhausted:
            self.replica_of(seq).rotation.join(seq)

    def come(self, sequences: list[Sequence]) -> None:
        """Those of a new request wait from now on."""
        first, prefixes = sequences[0], self.blocks.prefixes
        if not first.yields:
            self.others_came_s = self.now
            self.blocks.spare_for(first.prompt_len)
        elif self.now - self.others_came_s > _QUIET_S:
            self.blocks.spare_for(0)
        first.expected_hit_tokens = prefixes.expected_tokens(first)
        prefixes.came(first)
        shared = prefixes.expected_tokens(first) if len(sequences) > 1 else 0
        for seq in sequences:
            if seq is not first:
                seq.expected_hit_tokens = shared
            self.queues.add(seq)

    def start(self, seq: Sequence, admission: Admission) -> None:
        """A waiting sequence has what it needs to be computed, or has it once a copy is there."""
        self.admitted_s = self.now
        if self.config.enable_prefix_caching and seq.finds and seq.index == 0 and not seq.looked_up:
            self._count(seq, admission)
        seq.looked_up = True
        if admission.swap is None:
            self.start_prefilling(seq)
        else:
            self.start_swapping_in(seq, admission.swap)

    def _count(self, seq: Sequence, admission: Admission) -> None:
        found = admission.device_tokens + admission.host_tokens
        self.counters.looked_up(seq.prompt_len, device=admission.device_tokens, host=admission.host_tokens)
        if found:
            self.found.append(CachedPrompt(seq.request_id, found))

    def save(self, seq: Sequence, tokens: int) -> None:
        """Have what a sequence found on its device on the host, too. Call it behind the last step that computes it."""
        swap = self.blocks.savings.start(seq, tokens)
        if swap is not None:
            self._send_swap(swap, [])

    def start_swapping_in(self, seq: Sequence, swap: Swap) -> None:
        self.replica_of(seq).incoming[seq] = None
        self.queues.move(seq, SeqState.SWAPPING_IN)
        self.send_swap(seq, swap)

    def start_prefilling(self, seq: Sequence) -> None:
        self.queues.move(seq, SeqState.PREFILL)
        self.replica_of(seq).prefilling[seq] = None

    def step_completed(self, replica: Replica, step: int) -> None:
        """A forward has run on all ranks of a replica."""
        if step <= replica.completed_step:
            raise IntegrityError(f"step {step} of replica {replica.index} completed after {replica.completed_step}")
        replica.forwards_in_flight -= 1
        replica.completed_step = step
        for seq in [seq for seq in replica.unsettled if seq.step <= step]:
            del replica.unsettled[seq]
            self.settle(seq)

    def settle(self, seq: Sequence) -> None:
        """Once no step and no copy in flight names a sequence, what it was waiting for has happened."""
        if seq.swap_in_flight:
            return
        if seq.replica >= 0 and seq.step > self.replica_of(seq).completed_step:
            self.replica_of(seq).unsettled[seq] = None
            return
        match seq.state:
            case SeqState.FINISHED:
                self.blocks.drop(seq)
                self.queues.forget(seq)
            case SeqState.LEAVING:
                self.blocks.drop(seq)
                self.queues.move(seq, SeqState.WAITING)
            case SeqState.SWAPPING_OUT:
                self.blocks.swapped_out(seq)
                self.queues.move(seq, SeqState.HOSTED)
            case SeqState.SWAPPING_IN:
                self.blocks.swapped_in(seq)
                self.leave_line(seq)
                if seq.in_prefill:
                    self.start_prefilling(seq)
                else:
                    self.start_decoding(seq)

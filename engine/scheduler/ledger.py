"""The scheduler's state: every sequence, what it holds, what is in flight, and what goes out next.

The parts of the scheduler (`Stepper`, `PhaseChanger`, `Scheduler`) decide; each change of a sequence's state that
has consequences for blocks goes through here.
"""

from __future__ import annotations

import itertools

from engine.config import EngineConfig
from engine.executor.base import Capacity
from engine.kv.geometry import KVGeometry
from engine.scheduler.counters import Counters
from engine.scheduler.flight import InFlight
from engine.scheduler.request import SeqState, Sequence
from engine.scheduler.residency import Residency
from engine.scheduler.roster import Roster
from engine.steps import Command, Forward, Swap, Transition, num_slots
from engine.trace import Trace


class Ledger:
    """Sequences, residency and flights, kept consistent with one another."""

    def __init__(self, config: EngineConfig, capacity: Capacity, now: float, trace: Trace | None = None) -> None:
        self.config = config
        self.plan = config.plan
        self.capacity = capacity
        self.roster = Roster()
        self.counters = Counters(now)
        self.trace = trace
        self.in_flight: dict[int, InFlight] = {}
        self.swaps_in_flight = 0
        self.working_since_s: float | None = None  # when the current phase sent its first step
        self.now = now
        self._ids = itertools.count(1)
        self._outbox: list[Command] = []
        geometry = KVGeometry(capacity.shape, self.plan, config.block_size)
        self.residency = Residency(
            geometry,
            capacity.num_device_blocks,
            capacity.num_host_blocks,
            num_slots(config.max_num_seqs),
            self._prefill_reserve(geometry),
            self.next_id,
        )

    def _prefill_reserve(self, geometry: KVGeometry) -> int:
        """Blocks that decode never takes: a prefill micro-batch for each stage and one longest prompt."""
        if self.plan.prefill == self.plan.decode:
            return 0
        longest = geometry.blocks_for(self.capacity.max_model_len)
        micro_batches = self.plan.prefill.pp * geometry.blocks_for(self.config.max_num_batched_tokens)
        return min(micro_batches + longest, self.capacity.num_device_blocks - longest)

    def next_id(self) -> int:
        return next(self._ids)

    # --- commands

    def send(
        self,
        command: Forward | Swap | Transition,
        ranks: int,
        sequences: list[Sequence] | None = None,
        sampled: list[Sequence] | None = None,
        kind: str = "",
    ) -> None:
        """Put a command in the outbox; `ranks` of them will report it."""
        if isinstance(command, Forward) and self.working_since_s is None:
            self.working_since_s = self.now
        self.in_flight[command.id] = InFlight(command, ranks, self.now, sequences or [], sampled or [], kind)
        self._outbox.append(command)

    def take_commands(self) -> list[Command]:
        commands, self._outbox = self._outbox, []
        return commands

    def trace_flight(self, flight: InFlight) -> None:
        """A command has completed: show it on the timeline, if there is one (`PhaseChanger` shows transitions)."""
        if self.trace is None:
            return
        match flight.command:
            case Forward(replica=replica, layout=layout, num_tokens=tokens):
                sequences, where = len(flight.sequences), str(self.plan.layouts[layout])
                times = (flight.sent_s, flight.seconds, self.now)
                self.trace.step(flight.kind, replica, *times, tokens=tokens, sequences=sequences, layout=where)
            case Swap(replica=replica, to_host=to_host, device_blocks=blocks):
                times = (flight.sent_s, flight.seconds, self.now)
                self.trace.swap(to_host, replica, *times, bytes=flight.bytes, blocks=len(blocks))

    def send_swap(self, seq: Sequence, swap: Swap) -> None:
        """A sequence's copy sets off; without anything to copy it has arrived."""
        if swap.device_blocks:
            seq.swap_in_flight = True
            self.swaps_in_flight += 1
            self.send(swap, self.plan.layouts[swap.layout].ranks_per_replica, [seq])
        self.settle(seq)

    # --- sequences

    def take_off(self, seq: Sequence) -> None:
        """Move a sequence off its device: to the host if there is room, else back to the waiting ones.

        Call it behind the last step that names the sequence: ranks copy after the steps sent before.
        """
        self.leave_line(seq)
        swap = self.residency.swap_out(seq) if seq.dispatched else None
        if swap is not None:
            self.roster.move(seq, SeqState.SWAPPING_OUT)
            self.send_swap(seq, swap)
        else:
            self.roster.move(seq, SeqState.LEAVING)
            self.settle(seq)

    def finish(self, seq: Sequence) -> None:
        """No more is wanted of a sequence; what it holds is freed once nothing in flight names it."""
        self.leave_line(seq)
        self.roster.move(seq, SeqState.FINISHED)
        self.settle(seq)

    def leave_line(self, seq: Sequence) -> None:
        """It is in none of its replica's lines from now on."""
        if seq.replica >= 0:
            replica = self.residency.replicas[seq.replica]
            replica.rotation.pop(seq, None)
            replica.prefilling.pop(seq, None)
            replica.incoming.pop(seq, None)

    def start_decoding(self, seq: Sequence) -> None:
        self.leave_line(seq)
        self.roster.move(seq, SeqState.RUNNING)
        if not seq.is_exhausted:
            self.residency.replicas[seq.replica].rotation[seq] = None

    def start_prefilling(self, seq: Sequence) -> None:
        self.roster.move(seq, SeqState.PREFILL)
        self.residency.replicas[seq.replica].prefilling[seq] = None

    def settle(self, seq: Sequence) -> None:
        """Once no step and no copy names a sequence, what it was waiting for has happened."""
        if seq.steps_in_flight or seq.swap_in_flight:
            return
        match seq.state:
            case SeqState.FINISHED:
                self.residency.drop(seq)
                self.roster.forget(seq)
            case SeqState.LEAVING:
                self.residency.drop(seq)
                self.roster.move(seq, SeqState.WAITING)
            case SeqState.SWAPPING_OUT:
                self.residency.swapped_out(seq)
                self.roster.move(seq, SeqState.HOSTED)
            case SeqState.SWAPPING_IN:
                self.residency.swapped_in(seq)
                self.leave_line(seq)
                if seq.in_prefill:
                    self.start_prefilling(seq)
                else:
                    self.start_decoding(seq)

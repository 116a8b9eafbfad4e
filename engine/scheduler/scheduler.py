"""The scheduler: turns requests into commands, and reports into tokens. No torch, no processes, no clock of its own.

`schedule` sends everything that can be sent now; `update` takes in a rank's report. When to change layout is
`policy`, how `phases`, what a step runs `stepper`, who holds which block `residency`.
"""

from __future__ import annotations

import itertools

from engine.config import EngineConfig
from engine.errors import IntegrityError, QueueFullError, RequestError
from engine.executor.base import Capacity
from engine.kv.blocks import block_keys
from engine.messages import Add, FinishReason, Output, Stats
from engine.sampling import MAX_SEED, RowSampling
from engine.scheduler.ledger import Ledger
from engine.scheduler.phases import MOVING, PhaseChanger
from engine.scheduler.policy import Phase, Policy, make_policy
from engine.scheduler.request import SeqState, Sequence
from engine.scheduler.stepper import Stepper
from engine.steps import Command, Forward, Report, Swap, Transition
from engine.trace import Trace


class Scheduler:
    """Owned by one thread. `now` is seconds on the executor's clock."""

    def __init__(
        self,
        config: EngineConfig,
        capacity: Capacity,
        now: float,
        policy: Policy | None = None,
        trace: Trace | None = None,
    ) -> None:
        self._config = config
        self._capacity = capacity
        self._eos = frozenset(capacity.shape.eos_token_ids)
        self._arrivals = itertools.count()
        self._requests: dict[str, list[Sequence]] = {}
        self._outputs: list[Output] = []
        self._ledger = Ledger(config, capacity, now, trace)
        self._stepper = Stepper(self._ledger)
        self._phases = PhaseChanger(self._ledger, policy or make_policy(config.plan, config))

    # --- requests

    def add(self, request: Add, now: float) -> None:
        """Queue a request. Raises RequestError (it is invalid) or QueueFullError, and then nothing has changed."""
        self._check(request)
        params, prompt = request.sampling, request.prompt
        arrivals = [next(self._arrivals) for _ in range(params.n)]
        # A request without a seed still needs one that no other request has: its outputs must differ from theirs.
        seed = params.seed if params.seed is not None else (self._config.seed + 1) * 1_000_003 + arrivals[0] * 1_009
        keys = block_keys(prompt, self._config.block_size)
        sequences: list[Sequence] = []
        for index, arrival in enumerate(arrivals):
            seq = Sequence(
                request_id=request.id,
                index=index,
                arrival=arrival,
                arrived_s=now,
                tokens=list(prompt),
                prompt_len=len(prompt),
                max_tokens=min(params.max_tokens, self._capacity.max_model_len - len(prompt)),
                params=params,
                row=RowSampling(
                    params.temperature, params.top_p, params.top_k, params.min_p, (seed + index) % MAX_SEED
                ),
                keys=keys,
                leader=sequences[0] if sequences else None,
            )
            sequences.append(seq)
            self._ledger.roster.add(seq)
        self._requests[request.id] = sequences

    def _check(self, request: Add) -> None:
        request.sampling.validate()
        limit, vocab = self._capacity.max_model_len, self._capacity.shape.vocab
        if not request.prompt:
            raise RequestError("The prompt is empty: give at least one token.", "prompt")
        if len(request.prompt) >= limit:
            raise RequestError(
                f"The prompt has {len(request.prompt)} tokens, but the context is {limit} with the output.", "prompt"
            )
        if min(request.prompt) < 0 or max(request.prompt) >= vocab:
            raise RequestError(f"Token ids must be in 0 ... {vocab - 1}.", "prompt")
        if request.id in self._requests:
            raise RequestError(f"A request with id {request.id!r} is running already.", "id")
        if self._ledger.roster.count(SeqState.WAITING) >= self._config.max_queued_requests:
            raise QueueFullError(f"{self._config.max_queued_requests} requests wait already: try again later.")

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one of its sequences: no more output. An unknown one (it has ended) is ignored."""
        for seq in self._requests.get(request_id, []):
            if seq.is_live and index in (None, seq.index):
                self._finish(seq)

    def _finish(self, seq: Sequence) -> None:
        self._ledger.finish(seq)
        if not any(sibling.is_live for sibling in self._requests[seq.request_id]):
            del self._requests[seq.request_id]

    def take_outputs(self) -> list[Output]:
        """The tokens that came in since the last call."""
        outputs, self._outputs = self._outputs, []
        return outputs

    @property
    def has_requests(self) -> bool:
        return bool(self._requests)

    @property
    def has_commands_in_flight(self) -> bool:
        return bool(self._ledger.in_flight)

    @property
    def is_idle(self) -> bool:
        """Nothing to do and nothing to wait for."""
        return not (self._requests or self._ledger.in_flight or self._phases.changing)

    # --- the loop's two halves

    def schedule(self, now: float) -> list[Command]:
        """Everything that can be sent now, in the order in which it must be sent."""
        self._ledger.now = now
        if not self._phases.advance():
            phase, layout = self._phases.phase, self._phases.layout
            if phase is not Phase.PREFILL:
                self._stepper.swap_in(phase, layout)  # before new prompts take the room
            self._stepper.fill(phase, layout, self._phases.admits())
            if phase is Phase.PREFILL:
                self._stepper.swap_in(phase, layout)
        return self._ledger.take_commands()

    def update(self, report: Report, now: float) -> None:
        """Take in one rank's report of a command."""
        ledger = self._ledger
        ledger.now = now
        flight = ledger.in_flight[report.id]
        if report.tokens:
            for seq, token in zip(flight.sampled, report.tokens, strict=True):
                self._take_token(seq, token)
        if not flight.reported(report):
            return
        del ledger.in_flight[report.id]
        ledger.trace_flight(flight)
        match flight.command:
            case Forward(replica=replica):
                ledger.residency.replicas[replica].forwards_in_flight -= 1
                for seq in flight.sequences:
                    seq.steps_in_flight -= 1
                    ledger.settle(seq)
            case Swap(to_host=to_host):
                ledger.counters.swapped(to_host, flight.bytes, flight.seconds)
                ledger.swaps_in_flight -= 1
                for seq in flight.sequences:
                    seq.swap_in_flight = False
                    ledger.settle(seq)
            case Transition():
                self._phases.transitioned(flight)

    def _take_token(self, seq: Sequence, token: int) -> None:
        seq.pending -= 1
        if not seq.is_live:
            return  # a step sent before its end was known
        counters, phase = self._ledger.counters, self._phases.phase
        if len(seq.tokens) == seq.prompt_len and seq.index == 0:
            counters.prompt_tokens[phase] += seq.prompt_len
        counters.generation_tokens[phase] += 1
        seq.tokens.append(token)
        reason, stop_token = None, None
        if token in seq.params.stop_token_ids or (token in self._eos and not seq.params.ignore_eos):
            reason, stop_token = FinishReason.STOP, token
        elif len(seq.tokens) - seq.prompt_len in (seq.max_tokens, seq.params.ends_after):
            reason = FinishReason.LENGTH
        self._outputs.append(Output(seq.request_id, seq.index, [token], reason, stop_token))
        if reason is not None:
            self._finish(seq)

    # --- for the operator

    def check_idle(self) -> None:
        """With no request and nothing in flight, nothing may be held. Raises IntegrityError."""
        if self._ledger.roster.live:
            raise IntegrityError(f"{self._ledger.roster.live} sequences are left though no request is")
        self._ledger.residency.check([])

    def describe_stuck(self) -> str:
        """For the error of a loop that can neither send nor wait for anything."""
        lines = [repr(seq) for state in SeqState for seq in self._ledger.roster.line(state)[:4]]
        return f"in phase {self._phases.phase} nothing can be scheduled for: " + ", ".join(lines)

    def stats(self, now: float) -> Stats:
        """A snapshot for metrics."""
        count, residency = self._ledger.roster.count, self._ledger.residency
        return self._ledger.counters.snapshot(
            self._phases.phase,
            now,
            layout=str(self._phases.layout),
            requests_running=count(SeqState.PREFILL, SeqState.RUNNING, SeqState.LEAVING),
            requests_waiting=count(SeqState.WAITING),
            requests_hosted=count(*MOVING),
            device_blocks_used=max(replica.pool.used for replica in residency.replicas),
            device_blocks_total=self._capacity.num_device_blocks,
            host_blocks_used=residency.host.used,
            host_blocks_total=residency.host.total,
        )

"""One turn of the engine's loop: collect reports, schedule, dispatch. For the engine process and `seesaw.LLM`."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from seesaw.engine.awake import AwakeClock
from seesaw.engine.executor.base import Executor
from seesaw.engine.grammar.grammars import Compilation, Grammars
from seesaw.engine.planning.policy import Policy
from seesaw.engine.scheduler.scheduler import Scheduler
from seesaw.engine.trace import Trace
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import EngineDeadError, IntegrityError, QueueFullError, RequestError
from seesaw.engine.wire.messages import Add, EngineInfo, Outputs, Stats

COMPILING_POLL_MS = 1  # while nobody tells when a grammar is ready
MAX_TRIES = 64  # to find something to send


class Core:
    """Joins a scheduler to an executor. Owned by one thread; `turn` never blocks."""

    def __init__(self, config: EngineConfig, executor: Executor, policy: Policy | None = None) -> None:
        """Raises ConfigError if the trace cannot be written."""
        now = executor.now()
        self._executor = executor
        self._trace = Trace(Path(config.trace), config.plan, now) if config.trace else None
        self._scheduler = Scheduler(config, executor.capacity, now, policy, self._trace)
        self._grammars = Grammars(
            config.tokenizer or config.model, executor.capacity.shape.vocab, executor.capacity.shape.eos_token_ids
        )
        self._compiling: dict[str, tuple[Add, Compilation]] = {}  # requests whose grammars are not ready
        self._max_compiling = config.max_queued_requests
        self._refused: list[tuple[str, RequestError | QueueFullError]] = []
        self._was_idle = True
        self._failure: BaseException | None = None
        if self._trace is not None:
            self._trace.measured(self._scheduler.speeds(), now)

    def add(self, request: Add) -> None:
        """Queue a request. Raises RequestError or QueueFullError; nothing has changed then. One that asks for a form of
        its output is queued once its grammar is compiled, or among `take_refused` then."""
        spec = request.sampling.structured_outputs
        if spec is None:
            self._scheduler.add(request, self._executor.now())
            return
        self._scheduler.check(request)
        if len(self._compiling) >= self._max_compiling:
            raise QueueFullError(f"{self._max_compiling} grammars are being compiled already: try again later.")
        if request.id in self._compiling:
            raise RequestError(f"A request with id {request.id!r} is running already.", "id")
        self._compiling[request.id] = request, self._grammars.start(spec, "structured_outputs")

    def abort(self, request_id: str, index: int | None = None) -> int:
        """Forget a request, or one of its sequences; its blocks come free once nothing in flight names them. Returns
        how many sequences that was."""
        if index is None:
            self._compiling.pop(request_id, None)
        return self._scheduler.abort(request_id, index)

    def reset_prefix_cache(self) -> None:
        """No prompt finds what was computed before. What runs goes on."""
        self._scheduler.reset_prefix_cache()

    def turn(self) -> Outputs:
        """Take in what the ranks report, send what can be sent, return the new tokens.

        Raises EngineDeadError if a rank is gone, IntegrityError if bookkeeping is wrong or nothing can go on. Whatever
        it raised, there is no other turn: commands may have been counted that no rank ever gets.
        """
        if self._failure is not None:
            raise EngineDeadError(f"the engine ended by an error before: {self._failure}") from self._failure
        try:
            return self._turn()
        except BaseException as error:
            self._failure = error
            raise

    def _turn(self) -> Outputs:
        self._add_compiled()
        for report in self._executor.collect():
            self._scheduler.update(report, self._executor.now())
        self._dispatch()
        tries = 0
        while self._is_waiting_for_nothing:
            # A move without bytes completes at once, and may be what others waited for.
            tries += 1
            if tries > MAX_TRIES:
                raise IntegrityError(self._scheduler.describe_stuck())
            self._dispatch()
        idle = self._scheduler.is_idle
        if self._trace is not None:
            self._sample(self._trace, settled=idle and not self._was_idle)
        if idle and not self._was_idle:
            self._scheduler.check_idle()
        self._was_idle = idle
        return self._scheduler.take_outputs()

    def take_refused(self) -> list[tuple[str, RequestError | QueueFullError]]:
        """Requests that could not be queued after all, since the last call, and why."""
        refused, self._refused = self._refused, []
        return refused

    def compile_now(self, limit_s: float) -> None:
        """Wait for the grammars of all requests. Raises RequestError if one cannot be enforced, or is not ready by
        then; those that are stay queued."""
        clock = AwakeClock()
        deadline = clock.now() + limit_s
        while any(not grammar.is_done for _, grammar in self._compiling.values()):
            if clock.now() > deadline:
                raise RequestError(
                    f"structured_outputs does not compile within {limit_s:g} seconds: simplify it.",
                    "structured_outputs",
                )
            time.sleep(COMPILING_POLL_MS / 1000)
        self._add_compiled()
        for _, error in self.take_refused():
            raise error

    @property
    def is_compiling(self) -> bool:
        """Requests wait for nothing but a grammar: nobody will tell when it is ready."""
        return bool(self._compiling)

    def _add_compiled(self) -> None:
        for request, grammar in [entry for entry in self._compiling.values() if entry[1].is_done]:
            del self._compiling[request.id]
            try:
                self._scheduler.add(request, self._executor.now(), grammar)
            except (RequestError, QueueFullError) as error:
                self._refused.append((request.id, error))

    def _dispatch(self) -> None:
        for command in self._scheduler.schedule(self._executor.now()):
            self._executor.submit(command)

    def _sample(self, trace: Trace, settled: bool) -> None:
        now = self._executor.now()
        if settled or trace.is_due(now):
            trace.sample(self._scheduler.stats(now), now)
        if settled:
            trace.flush(now)  # whoever waited for the last request finds it in the file

    @property
    def _is_waiting_for_nothing(self) -> bool:
        return self._scheduler.has_requests and not self._scheduler.has_commands_in_flight

    @property
    def is_idle(self) -> bool:
        """Nothing to do until a request comes."""
        return self._scheduler.is_idle and not self._compiling and not self._refused

    def stats(self) -> Stats:
        stats = self._scheduler.stats(self._executor.now())
        return msgspec.structs.replace(stats, speeds=self._scheduler.speeds())

    def close(self) -> None:
        """End the trace. Idempotent; the executor is its owner's to close."""
        if self._trace is not None:
            self._trace.close(self._executor.now())


def describe(config: EngineConfig, executor: Executor) -> EngineInfo:
    """What the engine turned out to be, for the operator and for /v1/models."""
    capacity, plan = executor.capacity, config.plan
    return EngineInfo(
        model=config.model,
        prefill=str(plan.prefill),
        decode=str(plan.decode),
        tail=str(plan.tail) if plan.tail else "",
        dtype=capacity.shape.dtypes,
        device=capacity.device,
        max_model_len=capacity.max_model_len,
        vocab_size=capacity.shape.vocab,
        block_size=config.block_size,
        device_blocks=capacity.num_device_blocks,
        device_block_bytes=capacity.device_block_bytes,
        host_blocks=capacity.num_host_blocks,
        host_block_bytes=capacity.host_block_bytes,
        weights=capacity.weights,
        eos_token_ids=capacity.shape.eos_token_ids,
        has_priorities=config.scheduling_policy == "priority",
        max_num_seqs=config.max_num_seqs * plan.decode.dp,
    )

"""The scheduler: turns requests into commands, and reports into tokens. No torch, no processes, no clock of its own.

`schedule` sends everything that can be sent now; `update` takes in a rank's report. When to change layout is a policy's
(`engine.planning`), how `transitions`', what a step runs `batcher`'s, who holds which block `block_manager`'s.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

from seesaw.engine.cost.speeds import speeds
from seesaw.engine.executor.base import Capacity
from seesaw.engine.grammar.grammars import Compilation
from seesaw.engine.planning.choice import make_policy
from seesaw.engine.planning.policy import Policy
from seesaw.engine.scheduler.batcher import Batcher
from seesaw.engine.scheduler.flight import InFlight
from seesaw.engine.scheduler.idle import HOST, NO_WORK, PIPELINE, SWAP_IN
from seesaw.engine.scheduler.lifecycle import Lifecycle
from seesaw.engine.scheduler.replica import Replica
from seesaw.engine.scheduler.requests import check_request, make_sequences
from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.scheduler.sequence import Sequence, take_tokens
from seesaw.engine.scheduler.situation import MOVING
from seesaw.engine.scheduler.transitions import Transitions
from seesaw.engine.trace import Trace
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import IntegrityError, QueueFullError, RequestError
from seesaw.engine.wire.commands import Command, Forward, Report, Swap, Transition
from seesaw.engine.wire.logprobs import TokenLogprobs
from seesaw.engine.wire.messages import Add, FinishReason, Output, Outputs, Speeds, Stats, StepTokens

# More sequences than ever come: so far apart are the places in the global order of two priorities.
_FAR = 1 << 48


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
        self._arrivals = itertools.count()
        self._requests: dict[str, dict[int, Sequence]] = {}  # those that live, by index
        self._stops: Counter[int] = Counter()  # all tokens that may end one of these: how many they may end
        self._telling = 0  # requests of which more is told than tokens
        self._steps: list[StepTokens] = []  # since outputs were last taken, as are `_outputs`
        self._outputs: list[Output] = []
        self._lifecycle = Lifecycle(config, capacity, now, trace)
        self._batcher = Batcher(self._lifecycle)
        policy = policy or make_policy(config, self._lifecycle.times)
        self._transitions = Transitions(self._lifecycle, self._batcher, policy)

    # --- requests

    def add(self, request: Add, now: float, grammar: Compilation | None = None) -> None:
        """Queue a request, whose `grammar` is done. Raises RequestError (it is invalid) or QueueFullError, and then
        nothing has changed."""
        self.check(request)
        arrivals = [request.priority * _FAR + next(self._arrivals) for _ in range(request.sampling.n)]
        sequences = make_sequences(request, arrivals, now, self._config, self._capacity, grammar)
        self._lifecycle.come(sequences)
        if not self._requests:
            self._lifecycle.idle.woke(now)
        self._stops.update(sequences[0].stops)
        self._telling += request.sampling.tells
        self._lifecycle.masks.num_sequences += len(sequences) if grammar is not None else 0
        self._requests[request.id] = {seq.index: seq for seq in sequences}

    def check(self, request: Add) -> None:
        """Raise what `add` would raise now."""
        check_request(request, self._config, self._capacity)
        if request.id in self._requests:
            raise RequestError(f"A request with id {request.id!r} is running already.", "id")
        if self._lifecycle.queues.count(SeqState.WAITING) >= self._config.max_queued_requests:
            raise QueueFullError(f"{self._config.max_queued_requests} requests wait already: try again later.")

    def abort(self, request_id: str, index: int | None = None) -> int:
        """Forget a request, or one of its sequences: no more output. An unknown one (it has ended) is ignored. Returns
        how many sequences that was."""
        live = self._requests.get(request_id, {})
        aborted = [seq for seq in live.values() if index in (None, seq.index)]
        for seq in aborted:
            self._finish(seq)
        return len(aborted)

    def reset_prefix_cache(self) -> None:
        """No prompt finds what was computed before."""
        live = [seq for continuations in self._requests.values() for seq in continuations.values()]
        self._lifecycle.blocks.reset_cache(live)

    def _finish(self, seq: Sequence) -> None:
        self._lifecycle.finish(seq)
        self._lifecycle.masks.num_sequences -= seq.matcher is not None
        live = self._requests[seq.request_id]
        del live[seq.index]
        if not live:
            del self._requests[seq.request_id]
            self._lifecycle.blocks.prefixes.went(seq.request_id)
            self._stops -= Counter(seq.stops)
            self._telling -= seq.params.tells

    def take_outputs(self) -> Outputs:
        """The tokens that came in since the last call."""
        outputs = Outputs(self._outputs, steps=self._steps, cached=self._lifecycle.found)
        self._outputs, self._steps, self._lifecycle.found = [], [], []
        return outputs

    @property
    def has_requests(self) -> bool:
        return bool(self._requests)

    @property
    def has_commands_in_flight(self) -> bool:
        return bool(self._lifecycle.in_flight)

    @property
    def is_idle(self) -> bool:
        """Nothing to do and nothing to wait for."""
        return not (self._requests or self._lifecycle.in_flight or self._transitions.changing)

    # --- the loop's two halves

    def schedule(self, now: float) -> list[Command]:
        """Everything that can be sent now, in the order in which it must be sent."""
        self._lifecycle.now = now
        transitions, batcher = self._transitions, self._batcher
        if not transitions.advance():
            mode, admits = transitions.mode, transitions.admits()
            queues = self._lifecycle.queues
            prompts_first = mode.is_surge or (admits and (queues.somebody_waits or transitions.keeps_waiting()))
            if not prompts_first:
                batcher.swap_in(mode)  # before new prompts take the room
            batcher.fill(mode, admits)
            # A prompt that should go first, and still does not fit, gets the room that comes free.
            if mode.is_surge or (prompts_first and not transitions.keeps_waiting()):
                batcher.swap_in(mode, waits=admits and queues.somebody_waits)
        for replica in self._lifecycle.blocks.replicas:
            if not replica.forwards_in_flight:
                self._lifecycle.idle.waits(replica.index, self._why_idle(replica), now)
        return self._lifecycle.take_commands()

    def _why_idle(self, replica: Replica) -> str:
        """Why nothing could be sent to a replica that has nothing in flight."""
        if not self._requests:
            return NO_WORK
        lifecycle, pause = self._lifecycle, self._transitions.pause
        if pause is not None:
            return pause
        if replica.incoming:
            return SWAP_IN
        if replica.residents or lifecycle.queues.count(SeqState.WAITING, SeqState.HOSTED):
            return SWAP_IN if lifecycle.swaps_in_flight else HOST
        return NO_WORK  # what there is, other replicas compute

    def update(self, report: Report, now: float) -> None:
        """Take in one rank's report of a command."""
        lifecycle = self._lifecycle
        lifecycle.now = now
        flight = lifecycle.in_flight[report.id]
        for prompt in report.prompts:
            flight.prefills[prompt.chunk].learn_prompt_logprobs(prompt.start, prompt.logprobs)
        if report.tokens and isinstance(flight.command, Forward):
            self._take_tokens(flight, lifecycle.blocks.replicas[flight.command.replica], report)
        if not flight.reported(report):
            return
        del lifecycle.in_flight[report.id]
        lifecycle.trace_flight(flight)
        match flight.command:
            case Forward(replica=replica, layout=layout, id=step):
                lifecycle.times.of(lifecycle.plan.layouts[layout]).observe(flight.load, flight.seconds)
                lifecycle.step_completed(lifecycle.blocks.replicas[replica], step)
                self._account(replica, flight)
            case Swap(to_host=to_host):
                lifecycle.counters.swapped(to_host, flight.bytes, flight.seconds)
                lifecycle.times.observe_swap(flight.bytes, flight.seconds, to_host)
                lifecycle.swaps_in_flight -= 1
                lifecycle.blocks.savings.completed(report.id)
                for seq in flight.sequences:
                    seq.swap_completed()
                    lifecycle.settle(seq)
            case Transition():
                self._transitions.transitioned(flight)

    def _account(self, replica: int, flight: InFlight) -> None:
        """A replica's time up to the completion of a step."""
        assert isinstance(flight.command, Forward)
        layout = self._lifecycle.plan.layouts[flight.command.layout]
        cause = self._transitions.pause or (PIPELINE if layout.pp > 1 else HOST)
        more = self._lifecycle.blocks.replicas[replica].forwards_in_flight > 0
        self._lifecycle.idle.completed(replica, flight.seconds, self._lifecycle.now, cause, more)

    def _take_tokens(self, flight: InFlight, replica: Replica, report: Report) -> None:
        """Tokens of a step, which was sent before all ends were known: those of sequences that are over are dropped."""
        counters, phase, tokens = self._lifecycle.counters, self._transitions.mode.phase, report.tokens
        slots, news = flight.slots, tokens[: len(flight.slots)]
        live, last = replica.rotation.take(slots, news)
        if not live.all():
            slots, last, news = slots[live], last[live], list(itertools.compress(news, live.tolist()))
        sequences = replica.rotation.of(slots)
        may_end = last.nonzero()[0].tolist()
        if not self._stops.keys().isdisjoint(news):
            may_end = sorted({*may_end, *(i for i, token in enumerate(news) if token in self._stops)})
        if self._lifecycle.masks.num_sequences:
            may_end = sorted({*may_end, *(i for i, seq in enumerate(sequences) if seq.matcher is not None)})
        for seq, token in zip(flight.sequences, tokens[len(flight.slots) :], strict=True):
            if seq.is_live:
                if not seq.output and seq.index == 0:
                    counters.prompt_tokens[phase] += seq.prompt_len
                replica.rotation.take_first(seq.slot, seq.known + 1, token)
                may_end.append(len(sequences))
                sequences.append(seq)
                news.append(token)
        take_tokens(sequences, news)
        counters.generation_tokens[phase] += len(news)
        told = self._told(flight, replica, report) if report.logprobs else {}
        for i in reversed(may_end):  # from the end on, so that those before keep their places
            seq = sequences[i]
            reason, stop_token = seq.end()
            if reason is not None:
                self._outputs.append(_output(seq, news[i], told, reason, stop_token))
                del sequences[i], news[i]
                counters.finished += 1
                self._finish(seq)
        # Those of which more is told never come in `StepTokens`: outputs are read behind these.
        for i in range(len(sequences) - 1, -1, -1) if self._telling else ():
            if sequences[i].params.tells:
                self._outputs.append(_output(sequences[i], news[i], told))
                del sequences[i], news[i]
        if news:
            ids, indexes = [seq.request_id for seq in sequences], [seq.index for seq in sequences]
            self._steps.append(StepTokens(ids, indexes, news))

    @staticmethod
    def _told(flight: InFlight, replica: Replica, report: Report) -> dict[Sequence, TokenLogprobs]:
        """What a step tells of tokens beside their ids."""
        sequences = [*replica.rotation.of(flight.slots), *flight.sequences]
        return {sequences[place]: logprobs for place, logprobs in report.logprobs.items()}

    # --- for the operator

    def check_idle(self) -> None:
        """With no request and nothing in flight, nothing may be held. Raises IntegrityError."""
        if self._lifecycle.queues.waiting_tokens:
            raise IntegrityError(f"{self._lifecycle.queues.waiting_tokens} tokens wait though no request is left")
        if self._lifecycle.queues.live:
            raise IntegrityError(f"{self._lifecycle.queues.live} sequences are left though no request is")
        self._lifecycle.blocks.check([])

    def describe_stuck(self) -> str:
        """For the error of a loop that can neither send nor wait for anything."""
        lines = [repr(seq) for state in SeqState for seq in self._lifecycle.queues.list(state)[:4]]
        return f"in phase {self._transitions.mode.phase} nothing can be scheduled for: " + ", ".join(lines)

    def speeds(self) -> Speeds:
        """What the policy expects of each layout, and of a change. Worked out anew: not for every sample of a trace."""
        return speeds(self._config.plan, self._lifecycle.times, self._config.max_num_seqs)

    def stats(self, now: float) -> Stats:
        """A snapshot for metrics."""
        count, blocks = self._lifecycle.queues.count, self._lifecycle.blocks
        return self._lifecycle.counters.snapshot(
            self._transitions.mode.phase,
            now,
            layout=str(self._transitions.mode.layout),
            transition=self._transitions.under_way,
            idle_seconds=self._lifecycle.idle.seconds(),
            requests_running=count(SeqState.PREFILL, SeqState.RUNNING, SeqState.LEAVING),
            requests_waiting=count(SeqState.WAITING),
            requests_hosted=count(*MOVING),
            device_blocks_used=max(replica.pool.used for replica in blocks.replicas),
            device_blocks_total=self._capacity.num_device_blocks,
            device_blocks_cached=max(replica.pool.cached for replica in blocks.replicas),
            host_blocks_cached=blocks.host.cached,
            host_blocks_used=blocks.host.used,
            host_blocks_total=blocks.host.total,
        )


def _output(
    seq: Sequence,
    token: int,
    told: Mapping[Sequence, TokenLogprobs],
    reason: FinishReason | None = None,
    stop_token: int | None = None,
) -> Output:
    """A sequence's newest token, with all that is to be told of it."""
    logprobs = [told[seq]] if seq in told else []
    prompt_logprobs = seq.take_prompt_logprobs() if seq.prompt_logprobs else []
    error = seq.matcher.failure or "" if reason is FinishReason.ERROR and seq.matcher is not None else ""
    return Output(seq.request_id, seq.index, [token], reason, stop_token, logprobs, prompt_logprobs, error)

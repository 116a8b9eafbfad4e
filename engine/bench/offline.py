"""Runs the same requests through fresh engines, one layout plan after another, and keeps what each of them did.

Called by `server.bench`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from seesaw.engine.bench.bounds import Host, RunFloors, run_floors
from seesaw.engine.bench.figures import Figures, FullDecode, RequestRecord, full_decode, summarize
from seesaw.engine.bench.workload import Job, prompts
from seesaw.engine.heap import frozen_heap
from seesaw.engine.llm import LLM
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.sizing.model import find_shape, max_model_len
from seesaw.engine.text.result import RequestOutput
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.wire.messages import EngineInfo, Stats

COUNTERS = (  # of Stats; its other fields say how it is now
    "prompt_tokens",
    "generation_tokens",
    "preemptions",
    "transitions",
    "transition_seconds",
    "swap_bytes",
    "swap_seconds",
    "phase_seconds",
    "idle_seconds",
    "phase_prompt_tokens",
    "phase_generation_tokens",
    "steps",
    "decodes",
    "prefix_cache_queries",
    "prefix_cache_hits",
)


@dataclass(frozen=True)
class SystemResult:
    """What one plan did with the requests. Counters are of this run only."""

    name: str  # as in P4->T4
    devices: int
    info: EngineInfo
    start_s: float  # until the engine was ready, by the wall clock
    figures: Figures
    full_decode: FullDecode | None
    stats: Stats
    requests: list[RequestRecord]
    outputs: list[list[int]]
    policy: str
    floors: RunFloors | None = None

    @property
    def mean_decode_batch(self) -> float:
        """Sequences in a step that decodes. With pp stages, about pp such steps are in flight."""
        steps = self.stats.steps.get("decode", 0) + self.stats.steps.get("mixed", 0)
        return self.stats.decodes / steps if steps else 0.0

    @property
    def prefix_hit_rate(self) -> float:
        """Of the tokens of prompts that were looked up."""
        queries = self.stats.prefix_cache_queries
        return sum(self.stats.prefix_cache_hits.values()) / queries if queries else 0.0

    @property
    def never_used_prefill(self) -> str:
        """Why a plan of two layouts never changed; empty if it did, or has but one."""
        if self.info.prefill == self.info.decode or self.stats.phase_prompt_tokens.get("prefill"):
            return ""
        if self.policy == "paper":
            waiting = sum(record.prompt_tokens for record in self.requests)
            why = f"{waiting} tokens waited, and --surge-min-tokens asks for more"
        else:
            why = "by measured times no change of layout would have paid "
            why += "(--policy paper --surge-min-tokens 0 changes all the same)"
        return f"no prompt was prefilled in {self.info.prefill}: {why}"

    @property
    def phase_tokens(self) -> dict[str, dict[str, int]]:
        """Prompt and generated tokens by phase."""
        by_kind = {"prompt": self.stats.phase_prompt_tokens, "generation": self.stats.phase_generation_tokens}
        return {
            phase: {kind: tokens.get(phase, 0) for kind, tokens in by_kind.items()}
            for phase in self.stats.phase_seconds
        }

    def to_json(self) -> dict[str, Any]:
        """All of it but the tokens, in built-in types."""
        stats = self.stats
        return {
            "name": self.name,
            "devices": self.devices,
            "start_s": self.start_s,
            **asdict(self.figures),
            "full_decode": asdict(self.full_decode) if self.full_decode else None,
            "phase_seconds": stats.phase_seconds,
            "phase_tokens": self.phase_tokens,
            "transitions": stats.transitions,
            "transition_seconds": stats.transition_seconds,
            "swap_bytes": stats.swap_bytes,
            "swap_seconds": stats.swap_seconds,
            "idle_seconds": stats.idle_seconds,
            "steps": stats.steps,
            "mean_decode_batch": self.mean_decode_batch,
            "preemptions": stats.preemptions,
            "prefix_cache_queries": stats.prefix_cache_queries,
            "prefix_cache_hits": stats.prefix_cache_hits,
            "prefix_hit_rate": self.prefix_hit_rate,
            "device_blocks": self.info.device_blocks,
            "host_blocks": self.info.host_blocks,
            "weights": self.info.weights,
            "floors": self.floors.to_json() if self.floors else None,
            "requests": [asdict(record) for record in self.requests],
        }


def run_workloads(
    config: EngineConfig,
    workloads: Sequence[Sequence[Job]],
    *,
    hide_output_lengths: bool = False,
    host: Host | None = None,
) -> Iterator[SystemResult]:
    """Start an engine, run each workload's jobs through it, and end it. A result comes as soon as it is there.

    Greedy, and exactly as many tokens as each job says. `hide_output_lengths`: the scheduler is told only that outputs
    end within the context. Each result comes with its floors on `host`, if one is given. Raises as `LLM` does.
    """
    started_s = time.monotonic()
    # All requests are queued at once; ids only, since texts are not the engine's work.
    most = max(map(len, workloads))
    shape = find_shape(config)  # what can be refused now should not wait for the weights
    _check_context(workloads, max_model_len(config, shape), shape.max_position)
    options = asdict(replace(config, max_queued_requests=max(config.max_queued_requests, most)))
    with LLM(**options, skip_tokenizer=True) as llm:
        start_s = time.monotonic() - started_s
        for jobs in workloads:
            result = _run(llm, jobs, start_s, hide_output_lengths)
            if host is not None:
                result = replace(result, floors=run_floors(host, config.plan, jobs, result.full_decode))
            yield result


def _run(llm: LLM, jobs: Sequence[Job], start_s: float, hide_output_lengths: bool) -> SystemResult:
    config, info = llm.config, llm.info
    token_ids = prompts(jobs, info.vocab_size, config.seed)
    params = [_sampling(job, info.max_model_len if hide_output_lengths else 0) for job in jobs]
    llm.reset_prefix_cache()  # workloads of one seed may begin with the same prompts
    before = llm.stats()
    with frozen_heap():
        results = llm.generate(token_ids, params, use_tqdm=False)
    records = _records(results)
    completions = [result.outputs[0] for result in results]
    return SystemResult(
        name=str(config.plan),
        devices=config.plan.world_size,
        info=info,
        start_s=start_s,
        figures=summarize(records),
        full_decode=full_decode([job.prompt_tokens for job in jobs], [c.token_times_s for c in completions]),
        stats=_since(before, llm.stats()),
        requests=records,
        outputs=[completion.token_ids for completion in completions],
        policy=config.policy,
    )


def _check_context(workloads: Sequence[Sequence[Job]], limit: int, most: int) -> None:
    """`limit` is the longest context in tokens, and `most` what it could be raised to."""
    longest = max((job for jobs in workloads for job in jobs), key=lambda job: job.prompt_tokens + job.output_tokens)
    tokens = longest.prompt_tokens + longest.output_tokens
    if tokens <= limit:
        return
    bound, advice = (most, "") if tokens > most else (limit, "raise --max-model-len, or ")
    raise ConfigError(
        f"a request of {longest.prompt_tokens} + {longest.output_tokens} tokens does not fit the context of {bound}: "
        f"{advice}ask for shorter requests"
    )


def _sampling(job: Job, bound: int) -> SamplingParams:
    if bound:
        return SamplingParams(max_tokens=bound, ends_after=job.output_tokens, temperature=0.0, ignore_eos=True)
    return SamplingParams(max_tokens=job.output_tokens, temperature=0.0, ignore_eos=True)


def _records(results: Sequence[RequestOutput]) -> list[RequestRecord]:
    origin_s = min(result.arrived_s for result in results)
    return [
        RequestRecord(
            prompt_tokens=len(result.prompt_token_ids),
            output_tokens=len(result.outputs[0].token_ids),
            first_token_s=result.first_token_s - origin_s,
            finished_s=result.finished_s - origin_s,
        )
        for result in results
    ]


def _since(before: Stats, after: Stats) -> Stats:
    """What was counted in between; the rest is as it is at the end."""
    counted: dict[str, Any] = {}
    for name in COUNTERS:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(new, dict):
            counted[name] = {key: value - old.get(key, 0) for key, value in new.items() if value != old.get(key, 0)}
        else:
            counted[name] = new - old
    return msgspec.structs.replace(after, **counted)

"""Runs the same requests through fresh engines, one layout plan after another, and keeps what each of them did.

Called by `server.bench`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from engine.bench.figures import Figures, RequestRecord, summarize
from engine.bench.workload import Job, prompts
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.llm import LLM, RequestOutput
from engine.messages import EngineInfo, Stats
from engine.sampling import SamplingParams


@dataclass(frozen=True)
class SystemResult:
    """What one plan did with the requests. Counters are of this run only."""

    name: str  # as in P4->T4
    devices: int
    info: EngineInfo
    start_s: float  # until the engine was ready, by the wall clock
    figures: Figures
    stats: Stats
    requests: list[RequestRecord]
    outputs: list[list[int]]

    @property
    def mean_decode_batch(self) -> float:
        """Sequences in a step that decodes. With pp stages, about pp such steps are in flight."""
        steps = self.stats.steps.get("decode", 0) + self.stats.steps.get("mixed", 0)
        return self.stats.decodes / steps if steps else 0.0

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
            "phase_seconds": stats.phase_seconds,
            "phase_tokens": self.phase_tokens,
            "transitions": stats.transitions,
            "transition_seconds": stats.transition_seconds,
            "swap_bytes": stats.swap_bytes,
            "swap_seconds": stats.swap_seconds,
            "steps": stats.steps,
            "mean_decode_batch": self.mean_decode_batch,
            "preemptions": stats.preemptions,
            "device_blocks": self.info.device_blocks,
            "host_blocks": self.info.host_blocks,
            "weights": self.info.weights,
            "requests": [asdict(record) for record in self.requests],
        }


def run_system(config: EngineConfig, jobs: Sequence[Job], *, hide_output_lengths: bool = False) -> SystemResult:
    """Start an engine, run all jobs through it, and end it. Greedy, and exactly as many tokens as each job says.

    `hide_output_lengths`: the scheduler is told only that outputs end within the context. Raises as `LLM` does.
    """
    started_s = time.monotonic()
    # All requests are queued at once; ids only, since texts are not the engine's work.
    options = asdict(replace(config, max_queued_requests=max(config.max_queued_requests, len(jobs))))
    with LLM(**options, skip_tokenizer=True) as llm:
        start_s = time.monotonic() - started_s
        _check_context(jobs, llm.info.max_model_len)
        token_ids = prompts(jobs, llm.info.vocab_size, config.seed)
        params = [_sampling(job, llm.info.max_model_len if hide_output_lengths else 0) for job in jobs]
        before = llm.stats()
        results = llm.generate(token_ids, params)
        stats = _since(before, llm.stats())
        info = llm.info
    records = _records(results)
    outputs = [result.outputs[0].token_ids for result in results]
    return SystemResult(
        name=str(config.plan),
        devices=config.plan.world_size,
        info=info,
        start_s=start_s,
        figures=summarize(records),
        stats=stats,
        requests=records,
        outputs=outputs,
    )


def _check_context(jobs: Sequence[Job], limit: int) -> None:
    longest = max(jobs, key=lambda job: job.prompt_tokens + job.output_tokens)
    if longest.prompt_tokens + longest.output_tokens > limit:
        raise ConfigError(
            f"a request of {longest.prompt_tokens} + {longest.output_tokens} tokens does not fit the context of "
            f"{limit}: raise --max-model-len, or lower --input-len or --output-len"
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
    """A fresh engine has counted nothing yet but time."""
    seconds = {phase: s - before.phase_seconds.get(phase, 0.0) for phase, s in after.phase_seconds.items()}
    return msgspec.structs.replace(after, phase_seconds=seconds)

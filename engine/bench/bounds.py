"""How fast a whole workload can be at best in a plan of layouts: pure arithmetic over `engine.cost.work`.

Used by `seesaw bench limits` before a run, and by `seesaw bench offline --limits` beside one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from seesaw.engine.bench.figures import FullDecode
from seesaw.engine.bench.workload import Job, Prefix
from seesaw.engine.cost.profile import HostProfile
from seesaw.engine.cost.work import StepWork, Work, attended_pairs, count_work, decode_work, exchange_s, step_work
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.parallel.layout import Layout, Plan


@dataclass(frozen=True)
class Host:
    """What the arithmetic needs to know besides the requests: a model on devices, and how it is batched."""

    shape: ModelShape
    profile: HostProfile
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True)
class Least:
    """Seconds of something at best."""

    work_s: float
    links_s: float

    @property
    def total_s(self) -> float:
        return self.work_s + self.links_s

    def __add__(self, other: Least) -> Least:
        return Least(self.work_s + other.work_s, self.links_s + other.links_s)


@dataclass(frozen=True)
class Share:
    """What a device of the last stage does, and the seconds of its exchanges."""

    work: StepWork
    links_s: float

    def __add__(self, other: Share) -> Share:
        return Share(self.work + other.work, self.links_s + other.links_s)

    def least(self, host: Host) -> Least:
        return Least(self.work.floor_s(host.profile), self.links_s)


NOTHING = Share(StepWork(Work(0, 0), Work(0, 0), Work(0, 0)), 0.0)


@dataclass(frozen=True)
class Bound:
    """The least time of a workload. Exchanges are counted as if nothing computed beside them."""

    requests: int
    work_s: float  # of the busiest device, or of all stages one after another
    links_s: float  # of the exchanges between
    longest_s: float  # the longest output's own time, were it alone

    @property
    def total_s(self) -> float:
        return max(self.work_s + self.links_s, self.longest_s)

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.total_s

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"total_s": self.total_s, "requests_per_second": self.requests_per_second}


@dataclass(frozen=True)
class RunFloors:
    """What a run is held against."""

    bound: Bound
    full_decode_s: float | None  # of a step in which all requests decode, if there was one

    def to_json(self) -> dict[str, Any]:
        return {"bound": self.bound.to_json(), "full_decode_s": self.full_decode_s}


def run_floors(host: Host, plan: Plan, jobs: Sequence[Job], decode: FullDecode | None) -> RunFloors:
    """The bound of what ran, and the floor of the decode steps that were measured, in the best of their layouts."""
    step_s = None
    if decode is not None:
        layouts = [plan.decode] + ([plan.tail] if plan.tail else [])
        step_s = min(decode_floor_s(host, x, decode.sequences, decode.mean_context_tokens) for x in layouts)
    return RunFloors(bound(host, plan, jobs), step_s)


def bound(host: Host, plan: Plan, jobs: Sequence[Job]) -> Bound:
    """The least time of these requests.

    One layout for both mixes prompts with decoding perfectly; otherwise the prompts' layout comes first, then the
    outputs'. Batches hold as many sequences as `max_num_seqs` lets them: room for their KV is not looked at.
    """
    prompts = _prompts(host, plan.prefill, jobs)
    if plan.prefill == plan.decode:
        least = _outputs(host, plan.decode, jobs, prompts)
    else:
        least = prompts.least(host) + _outputs(host, plan.decode, jobs, NOTHING)
    longest = max(jobs, key=lambda job: job.output_tokens)
    return Bound(
        requests=len(jobs),
        work_s=least.work_s,
        links_s=least.links_s,
        longest_s=min(_alone_s(host, layout, longest) for layout in plan.layouts),
    )


def decode_floor_s(host: Host, layout: Layout, sequences: int, mean_context: float) -> float:
    """The least time of one token for each of `sequences`, spread over the replicas: work and exchanges."""
    rows = sequences / layout.dp
    # Exact where all contexts are on one side of a sliding window.
    contexts = rows * min(mean_context, host.shape.attention_span)
    return _decode(host, layout, rows, contexts, rounds=1, beside=NOTHING).total_s


def _prompts(host: Host, layout: Layout, jobs: Sequence[Job]) -> Share:
    """A replica's share of all prefills: as one step, whose exchanges come in full steps. A prefix is computed once."""
    prefixes: set[Prefix] = set()
    tokens = pairs = 0.0
    for job in jobs:
        start = 0
        if job.prefix is not None:
            start = job.prefix.tokens if job.prefix in prefixes else 0
            prefixes.add(job.prefix)
        tokens += (job.prompt_tokens - start) / layout.dp
        pairs += attended_pairs(host.shape, start, job.prompt_tokens) / layout.dp
    work = count_work(
        host.shape, layout, tokens=tokens, pairs=pairs, contexts=tokens, sampled=len(jobs) / layout.dp, steps=1
    )
    step_tokens = min(tokens, host.max_num_batched_tokens)
    return Share(work, tokens / step_tokens * exchange_s(host.shape, layout, step_tokens, host.profile))


def _outputs(host: Host, layout: Layout, jobs: Sequence[Job], beside: Share) -> Least:
    """Of a replica's share of all decodes (a request's first token comes from its prefill), with other work beside."""
    rows = contexts = 0.0
    for job in jobs:
        decodes = job.output_tokens - 1
        rows += decodes / layout.dp
        contexts += attended_pairs(host.shape, job.prompt_tokens, job.prompt_tokens + decodes) / layout.dp
    at_once = min(host.max_num_seqs, sum(job.output_tokens > 1 for job in jobs) / layout.dp)
    return _decode(host, layout, rows, contexts, rows / at_once if at_once else 0.0, beside)


def _decode(host: Host, layout: Layout, rows: float, contexts: float, rounds: float, beside: Share) -> Least:
    """Of decoding `rows` tokens that attend to `contexts` in sum. In each round every sequence decodes once.

    A round has as many micro-batches as is soonest, at most one a stage. Each costs the last stage a reading of its
    weights and of the head; but the fewer they are, the longer one takes through all stages, which is waited for.
    """
    if not rows:
        return beside.least(host)
    shape, profile, stages = host.shape, host.profile, Layout(tp=layout.tp)
    total_s = attrgetter("total_s")

    def least(micro_batches: int) -> Least:
        steps = rounds * micro_batches
        step_rows = rows / steps
        busiest = beside + Share(
            decode_work(shape, layout, rows, contexts, steps), steps * exchange_s(shape, layout, step_rows, profile)
        )
        passing = Share(
            decode_work(shape, stages, rows / micro_batches, contexts / micro_batches, rounds),
            rounds * _passing_links_s(host, layout, step_rows),
        )
        return max(busiest.least(host), passing.least(host), key=total_s)

    most = min(layout.pp, math.ceil(rows / rounds))
    return min(map(least, range(1, most + 1)), key=total_s)


def _passing_links_s(host: Host, layout: Layout, tokens: float) -> float:
    """Seconds of exchanges of one step on its way through all stages."""
    sums_s = exchange_s(host.shape, Layout(tp=layout.tp), tokens, host.profile)
    return sums_s + (layout.pp - 1) * exchange_s(host.shape, Layout(pp=layout.pp), tokens, host.profile)


def _alone_s(host: Host, layout: Layout, job: Job) -> float:
    """One token after another, each through all stages. The first takes at least as long: it is the prompt's."""
    context = job.prompt_tokens + job.output_tokens // 2
    step_s = step_work(host.shape, Layout(tp=layout.tp), [(1, context)]).floor_s(host.profile)
    return job.output_tokens * (step_s + _passing_links_s(host, layout, 1))

"""From records to figures: the arithmetic of the load test, and nothing else. Called by `clients.load_test`.

Definitions and names are those of `vllm bench serve`, so that results compare.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from seesaw.clients.record import CountedBy, Record

# What is summarized by mean, median, standard deviation and percentiles, with the words that a table shows.
SUMMARIZED = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
    "e2el_including_client_queue": ("E2EL incl. Client Queue", "Queue-inclusive End-to-end Latency"),
}
_COUNTED_BY = get_args(CountedBy)  # the least exact last
SAME_CHARS = 80  # two reasons that begin alike are the same; the rest may be what was sent
GOODPUT_METRICS = ("ttft", "tpot", "e2el")


def figures(
    records: Sequence[Record],
    start_s: float,
    percentiles: Sequence[float] = (99.0,),
    goodput_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """All figures of a run that began at `start_s` (monotonic clock), by the field's key.

    `goodput_ms`: the bounds that a good request keeps, in milliseconds by GOODPUT_METRICS. Failed requests
    count in `failed` and in the duration, nowhere else.
    """
    done = [record for record in records if not record.error]
    duration_s = max((record.end_s for record in records), default=start_s) - start_s
    num_input = sum(record.input_tokens for record in done)
    told = [record.cached_tokens for record in done if record.cached_tokens is not None]
    num_cached = sum(told) if told else None  # the server does not say
    num_output = sum(record.output_tokens for record in done)

    def rate(count: float) -> float:
        return count / duration_s if duration_s > 0 else 0.0

    result: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_input_tokens": num_input,
        "total_cached_tokens": num_cached,
        "prefix_cache_hit_rate": num_cached / num_input if num_cached is not None and num_input else None,
        "total_output_tokens": num_output,
        "output_tokens_counted_by": max((record.counted_by for record in done), key=_COUNTED_BY.index, default=None),
        "request_throughput": rate(len(done)),
        "request_goodput": rate(sum(is_good(record, goodput_ms) for record in done)) if goodput_ms else None,
        "output_throughput": rate(num_output),
        "total_token_throughput": rate(num_input + num_output),
        "max_output_tokens_per_s": peak_tokens_per_s(done),
        "max_concurrent_requests": peak_concurrency(done),
    }
    for name, values_s in samples_s(done).items():
        result |= summarize(name, values_s, percentiles)
    return result


def samples_s(done: Sequence[Record]) -> dict[str, list[float]]:
    """The seconds behind each of SUMMARIZED, of completed requests."""
    return {
        "ttft": [record.ttft_s for record in done],
        "tpot": [record.tpot_s for record in done if record.output_tokens > 1],
        "itl": [itl_s for record in done for itl_s in record.itls_s],
        "e2el": [record.latency_s for record in done],
        "client_queue_time": [record.queue_s for record in done],
        "e2el_including_client_queue": [record.queue_s + record.latency_s for record in done],
    }


def summarize(name: str, values_s: Sequence[float], percentiles: Sequence[float]) -> dict[str, float | None]:
    """Mean, median, standard deviation and percentiles in milliseconds; None where there are no values."""
    words = ["mean", "median", "std", *map(percentile_word, percentiles)]
    if not values_s:
        return {f"{word}_{name}_ms": None for word in words}
    values_ms = np.array(values_s) * 1000.0
    statistics = [np.mean(values_ms), np.median(values_ms), np.std(values_ms), *np.percentile(values_ms, percentiles)]
    return {f"{word}_{name}_ms": float(value) for word, value in zip(words, statistics, strict=True)}


def percentile_word(percentile: float) -> str:
    return f"p{percentile:g}"


def is_good(record: Record, goodput_ms: Mapping[str, float]) -> bool:
    """Whether a completed request kept all bounds. A single token has a TPOT of 0."""
    values_s = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.latency_s}
    return all(values_s[name] * 1000.0 <= bound_ms for name, bound_ms in goodput_ms.items())


def peak_tokens_per_s(done: Sequence[Record]) -> float:
    """Most output tokens in one of the whole seconds since the first request's start.

    A request's tokens are spread evenly over its events.
    """
    origin_s = min((record.start_s for record in done), default=0.0)
    tokens: defaultdict[int, float] = defaultdict(float)
    for record in done:
        times_s = record.event_times_s
        for time_s in times_s:
            tokens[int(time_s - origin_s)] += record.output_tokens / len(times_s)
    return max(tokens.values(), default=0.0)


def peak_concurrency(done: Sequence[Record]) -> int:
    """Most requests between start and end at any time; one that ends as another starts does not overlap it."""
    changes = sorted(change for record in done for change in ((record.start_s, 1), (record.end_s, -1)))
    current = peak = 0
    for _, step in changes:
        current += step
        peak = max(peak, current)
    return peak


def failures(records: Sequence[Record]) -> list[tuple[str, int]]:
    """How many requests failed for each reason, the most frequent first.

    Reasons that differ only in numbers, quoted texts or lists, as where a server repeats what it was sent, are one: the
    first of them, on one line.
    """
    counts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    for record in records:
        if record.error:
            reason = " ".join(record.error.split())
            kind = re.sub(r"""\d+|'[^']*'|"[^"]*"|\[[^\]]*\]?""", "", reason)[:SAME_CHARS]
            shown.setdefault(kind, reason)
            counts[kind] += 1
    return [(shown[kind], count) for kind, count in counts.most_common()]

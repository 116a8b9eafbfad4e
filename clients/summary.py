"""The table that a load test prints: the lines of `vllm bench serve`, which scripts of the field parse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seesaw.clients.figures import SUMMARIZED, failures, percentile_word
from seesaw.clients.record import Record

WIDTH = 50
SHOWN_FAILURES = 10


def summary(
    result: dict[str, Any], records: Sequence[Record], metrics: Sequence[str], percentiles: Sequence[float]
) -> str:
    """`metrics`: which of SUMMARIZED to show."""
    lines = [
        f"{' Serving Benchmark Result ':=^{WIDTH}}",
        _line("Successful requests:", result["completed"]),
        _line("Failed requests:", result["failed"]),
    ]
    if result.get("interrupted"):
        lines.append(_line("Interrupted; requests without an end:", result["num_prompts"] - len(records)))
    if result["max_concurrency"] is not None:
        lines.append(_line("Maximum request concurrency:", result["max_concurrency"]))
    if result["request_rate"] != "inf":
        lines.append(_line("Request rate configured (RPS):", float(result["request_rate"])))
    lines += [
        _line("Benchmark duration (s):", result["duration"]),
        _line("Total input tokens:", result["total_input_tokens"]),
        _line("Total generated tokens:", result["total_output_tokens"]),
        *_counting(result["output_tokens_counted_by"]),
        _line("Request throughput (req/s):", result["request_throughput"]),
    ]
    if result["prefix_cache_hit_rate"] is not None:
        lines.append(_line("Cached input tokens:", result["total_cached_tokens"]))
        lines.append(_line("Prefix cache hit rate (%):", 100 * result["prefix_cache_hit_rate"]))
    if result["request_goodput"] is not None:
        lines.append(_line("Request goodput (req/s):", result["request_goodput"]))
    lines += [
        _line("Output token throughput (tok/s):", result["output_throughput"]),
        _line("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"]),
        _line("Peak concurrent requests:", result["max_concurrent_requests"]),
        _line("Total token throughput (tok/s):", result["total_token_throughput"]),
    ]
    for metric in metrics:
        word, title = SUMMARIZED[metric]
        lines.append(f"{title:-^{WIDTH}}")
        lines.append(_line(f"Mean {word} (ms):", result[f"mean_{metric}_ms"]))
        lines.append(_line(f"Median {word} (ms):", result[f"median_{metric}_ms"]))
        for percentile in percentiles:
            statistic = percentile_word(percentile)
            lines.append(_line(f"{statistic.upper()} {word} (ms):", result[f"{statistic}_{metric}_ms"]))
    if result["failed"]:
        lines.append(f"{'Failures':-^{WIDTH}}")
        lines += [f"{count:>6} x {reason}" for reason, count in failures(records)[:SHOWN_FAILURES]]
    return "\n".join([*lines, "=" * WIDTH])


def _counting(counted_by: str | None) -> list[str]:
    """A word of warning where the server did not count its tokens."""
    if counted_by == "tokenizer":
        return ["  (the server sent no usage: counted by --tokenizer)"]
    if counted_by == "events":
        return ["  (the server sent no usage: an event counts as a token; --tokenizer counts exactly)"]
    return []


def _line(label: str, value: float | None) -> str:
    if value is None:
        return f"{label:<40} {'-':<10}"
    return f"{label:<40} {value:<10.2f}" if isinstance(value, float) else f"{label:<40} {value:<10}"

"""What a client saw of one request: the raw material of every figure, in memory and in a saved result.

Made by `clients.recorder`, read by `clients.figures`; the arrays of `vllm bench serve --save-detailed` hold the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Who counted output tokens: the server, the tokenizer after the run, or nobody, and an event stands for a token.
CountedBy = Literal["usage", "tokenizer", "events"]


@dataclass(frozen=True)
class Record:
    """One request. Times are in seconds; a failed request keeps what it had seen when it failed."""

    input_tokens: int
    output_tokens: int  # 0 if it failed
    queue_s: float  # from its scheduled arrival until it was on the wire: the client's delay, not the server's
    start_s: float  # on the system's monotonic clock, when it was on the wire
    ttft_s: float  # from start to the first event with a token; 0 if none came
    itls_s: list[float]  # between events with tokens; an event may bring several
    latency_s: float  # from start to the last event, or to the failure
    text: str
    error: str  # why it failed; empty if it did not
    cached_tokens: int | None = None  # of the input, by the server's usage; None if it does not say
    counted_by: CountedBy = "usage"  # its output tokens

    @property
    def end_s(self) -> float:
        return self.start_s + self.latency_s

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first; 0 if there is none."""
        return (self.latency_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0

    @property
    def event_times_s(self) -> list[float]:
        """When each event came, on the monotonic clock."""
        if not self.ttft_s:
            return []
        times = [self.start_s + self.ttft_s]
        for itl_s in self.itls_s:
            times.append(times[-1] + itl_s)
        return times


# The field's name of each array, by ours.
COLUMNS = {
    "input_tokens": "input_lens",
    "output_tokens": "output_lens",
    "queue_s": "queue_times",
    "start_s": "start_times",
    "ttft_s": "ttfts",
    "itls_s": "itls",
    "latency_s": "latencies",
    "text": "generated_texts",
    "error": "errors",
}
# What the field's results do not have.
OPTIONAL_COLUMNS = {"cached_tokens": "cached_lens", "counted_by": "counted_by"}


def to_columns(records: Sequence[Record]) -> dict[str, list[Any]]:
    """One array for each attribute, named as in the field's result files."""
    columns = COLUMNS | OPTIONAL_COLUMNS
    return {column: [getattr(record, name) for record in records] for name, column in columns.items()}


def from_columns(result: dict[str, Any]) -> list[Record]:
    """The records of a detailed result. Raises KeyError if it has none."""
    columns = COLUMNS | {name: column for name, column in OPTIONAL_COLUMNS.items() if column in result}
    rows = zip(*(result[column] for column in columns.values()), strict=True)
    return [Record(**dict(zip(columns, row, strict=True))) for row in rows]

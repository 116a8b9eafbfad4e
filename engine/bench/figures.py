"""From a run's per-request record to its figures: pure arithmetic, for `engine.bench.offline` and its readers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

TAIL_FRACTION = 0.05  # of the requests: the last ones to finish


@dataclass(frozen=True)
class RequestRecord:
    """One request's lengths, and its times in seconds since the first request was handed over."""

    prompt_tokens: int
    output_tokens: int
    first_token_s: float
    finished_s: float


@dataclass(frozen=True)
class Figures:
    """Rates are over all of the run unless they say otherwise. The tail is the time of the last 5 % of the requests."""

    total_s: float
    requests_per_second: float
    input_tokens_per_second: float
    output_tokens_per_second: float
    t95_s: float
    tail_s: float
    requests_per_second_without_tail: float


def summarize(records: Sequence[RequestRecord]) -> Figures:
    """The figures of a run of at least one request."""
    finished = sorted(record.finished_s for record in records)
    total_s = finished[-1]
    before_tail = math.ceil(len(records) * (1 - TAIL_FRACTION))
    t95_s = finished[before_tail - 1]
    return Figures(
        total_s=total_s,
        requests_per_second=_rate(len(records), total_s),
        input_tokens_per_second=_rate(sum(record.prompt_tokens for record in records), total_s),
        output_tokens_per_second=_rate(sum(record.output_tokens for record in records), total_s),
        t95_s=t95_s,
        tail_s=total_s - t95_s,
        requests_per_second_without_tail=_rate(before_tail, t95_s),
    )


@dataclass(frozen=True)
class FullDecode:
    """The time in which all requests decode together: from the last one's second token to the first one's end.

    First tokens are prefill's: until its second, a request may wait for a change of layout, or for others to end.
    """

    sequences: int
    step_s: float  # a token of each of them
    mean_context_tokens: float


def full_decode(prompt_tokens: Sequence[int], token_times_s: Sequence[Sequence[float]]) -> FullDecode | None:
    """Measure it, by request: its prompt's length, and when its tokens came. None if they never all decode."""
    if min(map(len, token_times_s)) < 2:
        return None
    start_s = max(times[1] for times in token_times_s)
    end_s = min(times[-1] for times in token_times_s)
    if end_s <= start_s:
        return None
    before = [bisect_right(times, start_s) for times in token_times_s]
    after = [bisect_right(times, end_s) for times in token_times_s]
    count = len(token_times_s)
    steps = (sum(after) - sum(before)) / count
    # A step that gives a sequence its token number k + 1 has k tokens behind the prompt as context.
    mean_generated_tokens = (sum(before) + sum(after) - count) / 2 / count
    return FullDecode(
        sequences=count,
        step_s=(end_s - start_s) / steps,
        mean_context_tokens=sum(prompt_tokens) / count + mean_generated_tokens,
    )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0

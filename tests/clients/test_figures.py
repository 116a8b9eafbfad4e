"""The arithmetic on recorded events: every figure by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from seesaw.clients.figures import failures, figures, peak_concurrency, peak_tokens_per_s, summarize
from seesaw.clients.record import Record, from_columns, to_columns


def record(start_s: float, ttft_s: float, itls_s: list[float], tokens: int | None = None, **more: object) -> Record:
    values: dict[str, object] = {
        "input_tokens": 10,
        "output_tokens": len(itls_s) + 1 if tokens is None else tokens,
        "queue_s": 0.0,
        "start_s": start_s,
        "ttft_s": ttft_s,
        "itls_s": itls_s,
        "latency_s": ttft_s + sum(itls_s),
        "text": "x",
        "error": "",
    }
    return Record(**(values | more))  # type: ignore[arg-type]


FIRST = record(100.0, 0.5, [0.1, 0.3])  # ends at 100.9, TPOT 0.2
SECOND = record(100.25, 1.0, [0.5], tokens=5, queue_s=0.25)  # ends at 101.75, TPOT 0.125
SINGLE = record(101.0, 0.25, [])  # no TPOT
FAILED = record(100.0, 0.0, [], tokens=0, latency_s=3.0, error="HTTP 503: full")
RECORDS = [FIRST, SECOND, SINGLE, FAILED]


def test_totals_and_rates() -> None:
    result = figures(RECORDS, 99.0)
    assert result["duration"] == pytest.approx(4.0)  # until the failure at 103
    assert (result["completed"], result["failed"]) == (3, 1)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (30, 9)
    assert result["request_throughput"] == pytest.approx(3 / 4)
    assert result["output_throughput"] == pytest.approx(9 / 4)
    assert result["total_token_throughput"] == pytest.approx(39 / 4)
    assert result["request_goodput"] is None


def test_cached_tokens() -> None:
    untold = figures(RECORDS, 99.0)
    assert untold["total_cached_tokens"] is untold["prefix_cache_hit_rate"] is None
    told = [replace(FIRST, cached_tokens=9), replace(SECOND, cached_tokens=0), replace(SINGLE, cached_tokens=6), FAILED]
    result = figures(told, 99.0)
    assert (result["total_cached_tokens"], result["prefix_cache_hit_rate"]) == (15, 0.5)
    assert figures([replace(FIRST, cached_tokens=0)], 99.0)["prefix_cache_hit_rate"] == 0
    columns = to_columns(told)
    assert from_columns(columns) == told
    del columns["cached_lens"]  # as in others' results
    assert from_columns(columns) == RECORDS


def test_latencies() -> None:
    result = figures(RECORDS, 99.0, percentiles=(50, 99, 99.9))
    assert result["mean_ttft_ms"] == pytest.approx((500 + 1000 + 250) / 3)
    assert result["median_ttft_ms"] == result["p50_ttft_ms"] == pytest.approx(500)
    assert result["p99_ttft_ms"] == pytest.approx(500 + 500 * 0.98)
    assert result["mean_tpot_ms"] == pytest.approx((200 + 125) / 2)
    assert result["mean_itl_ms"] == pytest.approx((100 + 300 + 500) / 3)
    assert result["std_itl_ms"] == pytest.approx(np.std([100, 300, 500]))
    assert result["mean_e2el_ms"] == pytest.approx((900 + 1500 + 250) / 3)
    assert result["mean_client_queue_time_ms"] == pytest.approx(250 / 3)
    assert result["mean_e2el_including_client_queue_ms"] == pytest.approx((900 + 1750 + 250) / 3)
    assert "p99.9_ttft_ms" in result


@pytest.mark.parametrize(
    ("bounds_ms", "good"),
    [({"ttft": 500}, 2), ({"ttft": 499}, 1), ({"tpot": 150}, 2), ({"ttft": 1000, "e2el": 1000}, 2), ({"e2el": 1}, 0)],
)
def test_goodput(bounds_ms: dict[str, float], good: int) -> None:
    assert figures(RECORDS, 99.0, goodput_ms=bounds_ms)["request_goodput"] == pytest.approx(good / 4)


def test_peaks() -> None:
    # From 100: FIRST's 3 tokens in second 0; SECOND's 5 by halves at 101.25 and 101.75; SINGLE's at 101.25.
    assert peak_tokens_per_s([FIRST, SECOND, SINGLE]) == pytest.approx(6)
    assert peak_concurrency([FIRST, SECOND, SINGLE]) == 2
    assert peak_concurrency([record(0.0, 1.0, []), record(1.0, 1.0, [])]) == 1


def test_nothing_completed() -> None:
    result = figures([FAILED, FAILED], 100.0)
    assert (result["completed"], result["failed"], result["output_throughput"]) == (0, 2, 0.0)
    assert result["p99_ttft_ms"] is result["mean_tpot_ms"] is None  # the latencies of nothing
    assert failures([FAILED, FIRST, FAILED]) == [("HTTP 503: full", 2)]
    assert all(math.isfinite(value) for value in figures([], 0.0).values() if value is not None)


def test_a_saved_record_gives_the_same_figures() -> None:
    saved = json.loads(json.dumps(to_columns(RECORDS)))
    assert saved["ttfts"] == [0.5, 1.0, 0.25, 0.0]
    assert from_columns(saved) == RECORDS
    assert figures(from_columns(saved), 99.0, goodput_ms={"ttft": 500}) == figures(
        RECORDS, 99.0, goodput_ms={"ttft": 500}
    )


def test_a_percentile_is_numpys() -> None:
    values_s = [0.1, 0.7, 0.2, 0.9]
    assert summarize("x", values_s, [90])["p90_x_ms"] == pytest.approx(1000 * np.percentile(values_s, 90))

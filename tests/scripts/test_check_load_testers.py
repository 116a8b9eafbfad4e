"""How testers' figures are told and compared; running them takes their own environments."""

from __future__ import annotations

from typing import Any

import pytest
from check_load_testers import compare, from_guidellm

OURS = {
    "total_input_tokens": 20,
    "total_output_tokens": 10,
    "output_throughput": 2.5,
    "mean_ttft_ms": 100.0,
    "mean_itl_ms": 20.0,
}


def request(start_s: float, end_s: float) -> dict[str, Any]:
    times = {"request_start": start_s, "request_end": end_s}
    return {"info": {"timings": times}, "output_metrics": {"text_tokens": 5}, "input_metrics": {"text_tokens": 10}}


def test_guidellms_report() -> None:
    metrics = {"time_to_first_token_ms": 100.0, "inter_token_latency_ms": 20.0}
    benchmark = {
        "requests": {"successful": [request(1.0, 3.0), request(2.0, 5.0)]},
        "metrics": {name: {"successful": {"mean": value}} for name, value in metrics.items()},
    }
    assert from_guidellm({"benchmarks": [benchmark]}) == OURS


def test_near_is_within_2_percent(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare({"ours": OURS, "theirs": OURS | {"mean_ttft_ms": 101.9}})
    assert " !" not in capsys.readouterr().out
    assert not compare({"ours": OURS, "theirs": OURS | {"mean_itl_ms": 20.5}})
    assert "ITL ms     20.50  +2.50% !" in capsys.readouterr().out

"""The arithmetic of a run's figures, on a record made by hand."""

from __future__ import annotations

import pytest

from engine.bench.figures import RequestRecord, summarize


def test_figures_of_a_known_record() -> None:
    # 40 requests, one done each second, but for the last two: 95 % are 38.
    ends = [float(i + 1) for i in range(38)] + [50.0, 60.0]
    figures = summarize([RequestRecord(100, 10, 0.5, end) for end in reversed(ends)])
    assert figures.total_s == 60.0
    assert (figures.t95_s, figures.tail_s) == (38.0, 22.0)
    assert figures.requests_per_second == pytest.approx(40 / 60)
    assert figures.requests_per_second_without_tail == 1.0
    assert figures.input_tokens_per_second == pytest.approx(4000 / 60)
    assert figures.output_tokens_per_second == pytest.approx(400 / 60)


@pytest.mark.parametrize(("count", "before_tail"), [(1, 1), (19, 19), (20, 19), (21, 20), (100, 95), (2000, 1900)])
def test_the_tail_is_the_last_twentieth(count: int, before_tail: int) -> None:
    figures = summarize([RequestRecord(1, 1, 0.0, float(i + 1)) for i in range(count)])
    assert figures.t95_s == before_tail


def test_no_time_is_no_rate() -> None:
    assert summarize([RequestRecord(1, 1, 0.0, 0.0)]).requests_per_second == 0.0

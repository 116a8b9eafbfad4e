"""The arithmetic of a run's figures, on a record made by hand."""

from __future__ import annotations

import pytest

from seesaw.engine.bench.figures import FullDecode, RequestRecord, full_decode, summarize


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


def test_full_decode_is_from_the_last_second_token_to_the_first_end() -> None:
    # Two tokens of the first and two of the second come after 3 s and until 7 s: two steps of 2 s.
    times = [[1.0, 3.0, 5.0, 7.0], [1.0, 3.0, 5.0, 7.0, 9.0]]
    assert full_decode([10, 20], times) == FullDecode(sequences=2, step_s=2.0, mean_context_tokens=(12.5 + 22.5) / 2)
    waiting = [[1.0, 103.0, 105.0, 107.0], [1.0, 103.0, 105.0, 107.0, 109.0]]  # for the layout to decode in
    assert full_decode([10, 20], waiting) == full_decode([10, 20], times)


def test_requests_that_never_run_together_have_no_full_decode() -> None:
    assert full_decode([10, 20], [[1.0, 2.0], [2.0, 3.0]]) is None
    assert full_decode([10], [[1.0]]) is None
    assert full_decode([10, 20], [[1.0, 2.0, 3.0], [1.0, 4.0, 5.0]]) is None  # only one decodes at a time


def test_no_time_is_no_rate() -> None:
    assert summarize([RequestRecord(1, 1, 0.0, 0.0)]).requests_per_second == 0.0

"""One job through both doors, in real processes; what is said of it."""

from __future__ import annotations

import batch_throughput
import pytest
from memory_growth import MemoryGrowth


@pytest.mark.processes
def test_a_small_job_through_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert batch_throughput.main(["--num-rows", "200"]) == 0
    first, busy, *processes = capsys.readouterr().out.splitlines()
    assert first.startswith("LLM ") and first.endswith("of its throughput") and "of a processor" in busy
    assert len(processes) >= 2 and all(line.endswith("bytes a row") for line in processes)


def test_growth_is_a_slope_of_what_was_seen_once_it_was_warm() -> None:
    samples = [(number, [5_000_000 if number < 20 else 7_000_000 + 10 * number, 1_000_000]) for number in range(101)]
    [(first_mb, first_slope), (second_mb, second_slope)] = MemoryGrowth([], samples).slopes()
    assert (first_mb, first_slope) == pytest.approx((7.001, 10))
    assert (second_mb, second_slope) == (pytest.approx(1), pytest.approx(0, abs=1e-6))

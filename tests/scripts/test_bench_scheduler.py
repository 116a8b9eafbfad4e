"""The command line of the scheduler's benchmark: a few steps of a small batch. Its times are nobody's business here."""

from __future__ import annotations

import bench_scheduler
import pytest


def test_every_plan_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_scheduler.main(["--running", "8", "--waiting", "20", "--steps", "5"]) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith("T1 ") and two.startswith("P2->T2 ")
    assert all("8 running, 20 waiting: " in line and line.endswith(" ms a step") for line in (one, two))

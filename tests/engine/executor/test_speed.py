from __future__ import annotations

from seesaw.engine.cost.estimate import constant
from seesaw.engine.executor.speed import speed_lines
from seesaw.engine.parallel.layout import Layout, Plan


def test_an_operator_hears_of_every_layout_and_of_the_change() -> None:
    plan = Plan(Layout(pp=2), Layout(tp=2))
    times = constant(plan, step_s=0.002, token_s=1e-6, transition_s=0.5)
    first, second, change = speed_lines(plan, times, max_num_seqs=8)
    assert first.startswith("P2 measured: prefill ") and "tokens/s" in first
    assert second.startswith("T2 measured: ") and "2 ms for 1 sequence, 2 ms for 8 sequences" in second
    assert change.startswith("change of layout: weights in 0.5 s")
    assert len(speed_lines(Plan(Layout(), Layout()), constant(Plan(Layout(), Layout()), 0.0), 1)) == 1

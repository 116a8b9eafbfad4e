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
    assert change.startswith("change of layout: weights in 500 ms")
    assert len(speed_lines(Plan(Layout(), Layout()), constant(Plan(Layout(), Layout()), 0.0), 1)) == 1


def test_no_number_is_written_with_an_exponent() -> None:
    plan = Plan(Layout(pp=2), Layout(tp=2))
    slow, _, change = speed_lines(plan, constant(plan, step_s=4.97, token_s=0.0, transition_s=5.88e-6), max_num_seqs=1)
    assert "a decoded token 4,970 ms" in slow and "weights in 0.00588 ms" in change

"""Curves, and what a layout's steps take by them."""

from __future__ import annotations

import pytest

from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.cost.times import Curve, LayoutTimes, Measured, StageTimes, StepLoad, pairs_of
from seesaw.engine.parallel.layout import Layout, Plan


def flat(seconds: float) -> Curve:
    return Curve((1.0, 2.0), (seconds, seconds))


def test_a_curve_is_straight_between_its_points_level_before_and_goes_on_behind() -> None:
    curve = Curve((10.0, 20.0, 40.0), (1.0, 2.0, 6.0))
    assert [curve.at(x) for x in (1, 10, 15, 20, 30, 40, 50)] == [1.0, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0]
    assert curve.steepness == 0.2
    assert Curve((10.0,), (5.0,)).at(20) == 10.0


def test_a_step_has_rows_pairs_and_context() -> None:
    stage = StageTimes(Curve((1.0, 101.0), (1.0, 11.0)), Curve((1.0, 101.0), (1.0, 2.0)), pair_s=0.01, context_s=0.001)
    assert stage.step_s(StepLoad(decodes=51, context=1000)) == pytest.approx(1.5 + 1.0)
    assert stage.step_s(StepLoad.chunk(100, 20)) == pytest.approx(2.9 + 20 * 110 * 0.01)
    mixed = StepLoad.chunk(0, 10) + StepLoad(decodes=10, context=100)  # all rows go through the same products
    assert stage.step_s(mixed) == pytest.approx(2.9 + 10 * 5 * 0.01 + 0.1)


def test_pairs_end_where_a_token_attends_to_no_more() -> None:
    assert pairs_of(100, 20) == 20 * 110
    assert pairs_of(100, 20, span=120) == 20 * 110
    assert pairs_of(100, 20, span=110) == 10 * 105 + 10 * 110
    assert pairs_of(100, 20, span=50) == StepLoad.chunk(100, 20, span=50).pairs == 20 * 50


def layout_times(*seconds: float) -> LayoutTimes:
    return LayoutTimes([StageTimes(flat(s), flat(s), 0.0, 0.0) for s in seconds])


def test_a_pipeline_goes_at_the_pace_of_its_busiest_stage() -> None:
    times = layout_times(1.0, 3.0)
    load = StepLoad(prefill_tokens=100)
    assert times.busiest_s(load) == 3.0 and times.passing_s(load) == 4.0
    assert times.prefill_s(load, step_tokens=10) == (10 + 1) * 3.0
    assert times.prefill_s(StepLoad(), step_tokens=10) == 0.0


@pytest.mark.parametrize(
    ("head", "context_s", "rows", "context", "steps"),
    [
        (0.0, 0.0, 8, 0, 4),  # even stages: nothing to gain
        (1.0, 0.0, 8, 0, 3),  # a head, and rows that hide behind the weights
        (1.0, 0.0, 400, 0, 4),  # rows that do not
        (0.1, 1e-3, 8, 10_000, 4),  # a head that is worth less than reading more context in one step
    ],
)
def test_a_micro_batch_less_where_it_hides_the_head(
    head: float, context_s: float, rows: int, context: int, steps: int
) -> None:
    decode = Curve((1.0, 50.0, 150.0), (5.0, 5.0, 15.0))
    ends = Curve(decode.counts, tuple(seconds + head for seconds in decode.seconds))
    stages = [StageTimes(flat(1.0), curve, 0.0, context_s) for curve in (decode, decode, decode, ends)]
    assert LayoutTimes(stages).micro_batches(rows, context) == steps
    assert LayoutTimes(stages[:1]).micro_batches(rows, context) == 1


def test_real_steps_correct_what_is_expected_of_their_kind() -> None:
    times = layout_times(1.0)
    prompt, decode = StepLoad(prefill_tokens=10), StepLoad(decodes=10)
    for _ in range(200):
        times.observe(decode, 2.0)
    assert times.busiest_s(decode) == pytest.approx(2.0, rel=0.01) and times.busiest_s(prompt) == 1.0
    times.observe(prompt, 1e9)  # one that stood still says little
    assert times.busiest_s(prompt) < 2.0
    times.observe(prompt, 0.0)  # and one that was not timed nothing
    assert times.busiest_s(prompt) < 2.0


def test_transitions_and_swaps_are_corrected_too() -> None:
    plan = Plan(Layout(pp=2), Layout(tp=2))
    times = EngineTimes(plan, Measured(layouts=((),) * 2, transition_s=1.0))
    assert times.swap_s(100, to_host=True) == 0.0
    times.observe_swap(100, 2.0, to_host=True)
    assert times.swap_s(100, to_host=True) == pytest.approx(2.0) and times.swap_s(100, to_host=False) == 0.0
    for _ in range(30):
        times.observe_transition(3.0)
    assert times.transition_s == pytest.approx(3.0, rel=0.01)

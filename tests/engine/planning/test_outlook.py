"""The outlook's arithmetic, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest

from seesaw.engine.cost.balance import StepCost
from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.cost.times import Measured
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.planning.outlook import Limits, Outlook
from seesaw.engine.planning.policy import Mode, Phase
from tests.engine.planning.situations import P2, PLAN, T2, Fake, stage, times

# A stage takes 0.1 ms for each token, and 10 ms at least: a hundred tokens hide behind reading the weights.
TIMES = times(1e-4, 1e-4, p2_decode_s=0.01, t2_decode_s=0.01)
BACKLOG = Fake(waiting=50, waiting_tokens=10_000)
HUNDRED = replace(BACKLOG, running=100, context=100 * 300)
FIFTY = replace(BACKLOG, running=50, context=50 * 300)


def outlook(situation: Fake, measured: EngineTimes = TIMES, plan: Plan = PLAN, max_num_seqs: int = 256) -> Outlook:
    costs = {layout: StepCost.of(measured.of(layout)) for layout in plan.layouts}
    return Outlook(situation, measured, Limits(max_num_seqs, 1000, costs))


def test_a_round_with_and_without_prompts() -> None:
    view = outlook(FIFTY)
    assert view.round_s(T2, 50, 0) == pytest.approx(0.01)
    assert view.round_s(T2, 50, 50) == pytest.approx(0.01 + (0.025 - 0.01) / 4)  # a prompt of 200 in each fourth round
    assert view.round_s(T2, 50, 250) == pytest.approx(0.03)
    assert view.round_s(P2, 50, 0) == pytest.approx(0.02)  # a token passes two stages
    assert view.round_s(P2, 50, 250) == pytest.approx(0.03)  # in two steps of 150


def test_decoding_halves_its_batch_in_equal_times() -> None:
    """Ten sequences with a hundred tokens each to go: 10, 5, 2.5 and 1.25 of them, for 100 ln 2 rounds each."""
    ten = Fake(running=10, context=1000)
    assert outlook(ten).decode_s(T2) == pytest.approx(4 * 100 * math.log(2) * 0.01)
    assert outlook(ten).decode_s(P2) == pytest.approx(4 * 100 * math.log(2) * 0.02)
    assert outlook(replace(ten, left=50.0)).decode_s(T2) == pytest.approx(4 * 50 * math.log(2) * 0.01)
    assert outlook(replace(ten, expected_output_tokens=20.0)).decode_s(T2) == pytest.approx(4 * 20 * math.log(2) * 0.01)
    assert outlook(Fake()).decode_s(T2) == 0


def test_no_more_decode_at_once_than_fit() -> None:
    """Twenty sequences, of which only ten have room, take twice the rounds."""
    twenty = Fake(running=10, hosted=10, context=10_000, device_tokens=10_000)
    assert outlook(twenty).decode_s(T2) == pytest.approx(4 * 200 * math.log(2) * 0.01)
    roomy = replace(twenty, device_tokens=100_000)
    assert outlook(roomy).decode_s(T2) == pytest.approx(5 * 100 * math.log(2) * 0.01)
    assert outlook(roomy, max_num_seqs=10).decode_s(T2) == pytest.approx(4 * 200 * math.log(2) * 0.01)


def test_a_surge_fills_and_drains_its_pipeline() -> None:
    assert outlook(BACKLOG).surge_s(T2, 10_000) == pytest.approx(1.0)
    # Steps of 353, 500, 707 and 1,000 tokens take 1.035, 1.05, 1.07 and 1.1 s: the second is nearly as soon.
    assert outlook(BACKLOG).surge_s(P2, 10_000) == pytest.approx(1.05)
    assert outlook(BACKLOG).surge_s(P2, 0) == 0


def test_replicas_share_a_surge() -> None:
    plan = Plan(Layout(dp=2), T2)
    measured = EngineTimes(plan, Measured(((stage(1e-4, 0.01),), (stage(1e-4, 0.01),))))
    assert outlook(BACKLOG, measured, plan).surge_s(plan.prefill, 10_000) == pytest.approx(0.5)


def test_attention_grows_with_the_length_of_the_prompts() -> None:
    """A token of a prompt of 200 attends to a hundred on average."""
    heavy = msgspec.structs.replace(stage(1e-4, 0.01), pair_s=1e-6)
    measured = EngineTimes(PLAN, Measured(((heavy,) * 2, (heavy,))))
    assert outlook(BACKLOG, measured).surge_s(T2, 10_000) == pytest.approx(2.0)
    assert outlook(replace(BACKLOG, waiting=25), measured).surge_s(T2, 10_000) == pytest.approx(3.0)


def test_attention_grows_up_to_its_window() -> None:
    heavy = msgspec.structs.replace(stage(1e-4, 0.01), pair_s=1e-6, context_s=1e-5)
    measured = EngineTimes(PLAN, Measured(((heavy,) * 2, (heavy,))))
    narrow = replace(FIFTY, attention_span=50)
    assert outlook(narrow, measured).surge_s(T2, 10_000) == pytest.approx(1.0 + 10_000 * (50 * 25 + 150 * 50) / 200e6)
    assert outlook(FIFTY, measured).round_s(T2, 50, 0) == pytest.approx(0.01 + 50 * 300e-5)
    assert outlook(narrow, measured).round_s(T2, 50, 0) == pytest.approx(0.01 + 50 * 50e-5)
    tight = replace(narrow, device_tokens=3000)
    assert outlook(tight).most_at_once(T2) == 10  # their KV is kept, as if all of it were seen


def test_prompts_beside_nobody_take_their_full_time() -> None:
    assert outlook(BACKLOG).beside_s(T2, 10_000, 0) == pytest.approx(1.0)


def test_prompts_with_room_come_in_full_steps_in_which_others_decode() -> None:
    """Of 1,000 tokens 100 decode: 11.1 steps of 100 ms, in each of which they save a step of 10 ms."""
    assert outlook(HUNDRED).beside_s(T2, 10_000, 10_000) == pytest.approx(10_000 / 900 * 0.09)


def test_prompts_without_room_come_as_others_end() -> None:
    """With a hundred that decode, one of a hundred tokens ends in each round, and 200 tokens come: 20 ms more.

    With fifty one comes in every other round, whole: of 250 tokens in its step, 100 hide behind the weights.
    """
    assert outlook(HUNDRED).beside_s(T2, 10_000, 0) == pytest.approx(50 * 0.02)
    assert outlook(FIFTY).beside_s(T2, 10_000, 0) == pytest.approx(50 * 0.015)
    with_room = 4_000 / 950 * 0.09
    assert outlook(FIFTY).beside_s(T2, 10_000, 4_000) == pytest.approx(with_room + 30 * 0.015)


def test_a_pipeline_takes_prompts_beside_decoding_in_small_steps() -> None:
    """256 tokens beside 25 rows in each: 15.6 steps and one to drain, in which the rows get 7.8 tokens each."""
    steps = 4_000 / 256
    want = (steps + 1) * 0.0281 - steps * 25 / 50 * 0.02
    assert outlook(FIFTY).beside_s(P2, 4_000, 4_000) == pytest.approx(want)


def test_a_change_of_place_takes_what_decodes_along() -> None:
    crowd = Fake(running=100, context=500_000_000)  # bytes, as in `Fake`; half a second each way
    view, steady, surge = outlook(crowd), Mode.steady(T2), Mode.surge(P2, T2)
    assert view.move_s(steady, steady) == 0
    assert view.move_s(steady, Mode.steady(T2, Phase.TAIL)) == 0
    assert view.move_s(steady, surge) == view.move_s(surge, steady) == pytest.approx(1.0)  # they stand still
    assert view.move_s(steady, Mode.steady(P2)) == pytest.approx(1.0 + 0.5 + 0.5)


def test_a_surge_on_other_replicas_sends_all_away_and_brings_them_back() -> None:
    plan = Plan(Layout(dp=2), T2)
    stages = (stage(1e-4, 0.01),)
    rates = {"swap_out_bytes_per_s": 1e9, "swap_in_bytes_per_s": 2e9}
    measured = EngineTimes(plan, Measured((stages, stages), transition_s=1.0, **rates))
    view = outlook(Fake(running=100, context=500_000_000), measured, plan)
    steady, surge = Mode.steady(T2), Mode.surge(plan.prefill, T2)
    assert view.move_s(steady, surge) == pytest.approx(1.0 + 0.5)
    assert view.move_s(surge, steady) == pytest.approx(1.0 + 0.25)

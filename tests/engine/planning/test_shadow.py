"""A layout alone, in three numbers, against what can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from seesaw.engine.cost.balance import StepCost
from seesaw.engine.planning.outlook import Limits, Outlook
from seesaw.engine.planning.shadow import Shadow
from tests.engine.planning.situations import P2, PLAN, T2, Fake, times

# A token of a prompt takes 0.1 ms, a step of those who decode 10 ms. In P2 it passes two stages.
TIMES = times(1e-4, 1e-4, p2_decode_s=0.01, t2_decode_s=0.01)


def outlook(situation: Fake) -> Outlook:
    costs = {layout: StepCost.of(TIMES.of(layout)) for layout in PLAN.layouts}
    return Outlook(situation, TIMES, Limits(256, 1000, costs))


def shadow(situation: Fake) -> Shadow:
    it = Shadow()
    it.set_to(situation)
    return it


def test_outputs_end_at_random() -> None:
    fifty = Fake(running=50, context=50 * 300)  # with a hundred tokens each
    it = shadow(fifty)
    it.serve(T2, outlook(fifty), 1.0)
    assert it.decoding == pytest.approx(50 * math.exp(-1.0))
    it.serve(T2, outlook(fifty), 30.0)
    assert it.unfinished == 0
    slower = shadow(fifty)
    slower.serve(P2, outlook(fifty), 1.0)
    assert slower.decoding == pytest.approx(50 * math.exp(-0.5))


def test_no_more_decode_than_have_room() -> None:
    crowd = Fake(running=50, context=50 * 300, device_tokens=25 * 300)
    it = shadow(crowd)
    it.serve(T2, outlook(crowd), 0.01)
    assert it.decoding == pytest.approx(50 * math.exp(-0.01 / 2))


def test_prompts_come_in_full_steps_and_then_decode() -> None:
    ten = Fake(waiting=10, waiting_tokens=2000)
    it = shadow(ten)
    it.serve(T2, outlook(ten), 0.05)
    assert (it.tokens, it.prompts, it.decoding) == pytest.approx((1000, 5, 5))
    it.serve(T2, outlook(ten), 0.15)
    assert it.unfinished == pytest.approx(10, abs=0.1) and it.prompts < 1


def test_prompts_without_room_wait_until_others_end() -> None:
    full = Fake(running=50, context=50 * 300, device_tokens=50 * 300, waiting=10, waiting_tokens=2000)
    it = shadow(full)
    it.serve(T2, outlook(full), 0.011)  # two rounds: half a sequence ends in each
    assert it.prompts == pytest.approx(9.5) and it.decoding == pytest.approx(49.5 + 0.5 - 0.5, abs=0.6)


def test_whoever_stands_still_gets_nothing_done() -> None:
    some = Fake(running=5, context=1500, waiting=2, waiting_tokens=400)
    it = shadow(some)
    it.stand_still(10.0)
    it.serve(T2, outlook(some), 10.0)
    assert (it.prompts, it.decoding) == (2, 5)
    it.add(200, 1)
    it.surge_to(Fake(now_s=12.0, waiting=1, waiting_tokens=200, running=7))
    assert (it.tokens, it.prompts, it.decoding) == (200, 1, 7)
    it.add(-300, -2)  # given up
    assert (it.tokens, it.prompts) == (0, 0)


def test_it_takes_a_bounded_number_of_rounds() -> None:
    """A hundred seconds with prompts that find no room would be thousands of rounds: it does no more than some."""
    full = Fake(running=50, context=50 * 300, device_tokens=50 * 300, waiting=10_000, waiting_tokens=2_000_000)
    it = shadow(full)
    it.serve(T2, outlook(full), 100.0)
    assert it.prompts > 9_800
    it.serve(T2, outlook(full), 100.0)  # that is done
    assert it.prompts > 9_800

"""How much better each layout alone would have been."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seesaw.engine.cost.balance import StepCost
from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.planning.arrivals import Came
from seesaw.engine.planning.outlook import Limits, Outlook
from seesaw.engine.planning.policy import Mode
from seesaw.engine.planning.rivals import Rivals
from tests.engine.planning.situations import P2, PLAN, T2, Fake, times

STEADY, SURGE = Mode.steady(T2), Mode.surge(P2, T2)
# A token for everybody takes 20 ms in P2, 50 in T2.
FASTER = times(1e-4, 1e-4, p2_decode_s=0.01, t2_decode_s=0.05)
SAME = times(1e-4, 1e-4, p2_decode_s=0.025, t2_decode_s=0.05)
FIFTY = Fake(running=50, context=50 * 300)


def outlook(situation: Fake, measured: EngineTimes) -> Outlook:
    costs = {layout: StepCost.of(measured.of(layout)) for layout in PLAN.layouts}
    return Outlook(situation, measured, Limits(256, 1000, costs))


def race(measured: EngineTimes, *looks: Fake) -> Rivals:
    rivals = Rivals(PLAN.layouts)
    for situation in looks:
        rivals.look(situation, outlook(situation, measured), Came(situation.now_s, 0, 0))
    return rivals


def looks(seconds: float, **changes: object) -> list[Fake]:
    return [replace(FIFTY, now_s=look / 10, **changes) for look in range(int(seconds * 10) + 1)]  # type: ignore[arg-type]


def test_what_another_layout_would_have_saved_is_summed_over_requests() -> None:
    rivals = race(FASTER, *looks(1.0))
    # After a second 50 exp(-0.2) = 41 are left here, in P2 50 exp(-0.5) = 30.
    saved_s = rivals.saved_s(P2, outlook(FIFTY, FASTER))
    assert 0.08 < saved_s < 0.16  # a fifth of the time for a few of each ten
    assert rivals.saved_s(T2, outlook(FIFTY, FASTER)) == 0


def test_what_is_nearly_as_good_is_not_missed() -> None:
    assert race(SAME, *looks(10.0)).saved_s(P2, outlook(FIFTY, SAME)) == 0


def test_who_stands_still_falls_behind() -> None:
    """Two seconds in a surge: as a layout alone, T2 would have got on."""
    rivals = race(SAME, *looks(0.1), *looks(2.0, mode=SURGE)[2:])
    assert rivals.saved_s(T2, outlook(FIFTY, SAME)) > 0.1


def test_a_layout_is_only_ahead_if_nothing_more_is_left_for_it() -> None:
    rivals = race(FASTER, *looks(1.0))
    nearly_done = replace(FIFTY, left=10.0)
    assert rivals.saved_s(P2, outlook(nearly_done, FASTER)) == 0


def test_a_move_begins_a_new_race() -> None:
    moved = replace(FIFTY, now_s=1.2, mode=Mode.steady(P2))
    rivals = race(FASTER, *looks(1.0), moved)
    assert rivals.saved_s(P2, outlook(moved, FASTER)) == rivals.saved_s(T2, outlook(moved, FASTER)) == 0


@pytest.mark.parametrize(("ended", "settled"), [(0, False), (49, False), (50, True)])
def test_right_behind_a_surge_nothing_is_settled(ended: int, settled: bool) -> None:
    surge = [replace(each, mode=SURGE) for each in looks(0.2)]
    rivals = race(FASTER, *surge, replace(FIFTY, now_s=0.3))
    assert rivals.is_settled(replace(FIFTY, running=50 - ended, ended=ended)) == settled

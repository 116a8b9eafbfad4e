"""What is learnt of surges, on numbers made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seesaw.engine.cost.balance import StepCost
from seesaw.engine.planning.outlook import Limits, Outlook
from seesaw.engine.planning.policy import Mode
from seesaw.engine.planning.surges import Surges
from seesaw.engine.values.config import EngineConfig
from tests.engine.planning.situations import P2, PLAN, T2, Fake, times

CONFIG = EngineConfig(prefill="P2", decode="T2", max_num_seqs=256, max_num_batched_tokens=4096)
SURGE = Mode.surge(P2, T2)
TIMES = times(1e-4, 2e-4)


def outlook(situation: Fake) -> Outlook:
    costs = {layout: StepCost.of(TIMES.of(layout)) for layout in PLAN.layouts}
    return Outlook(situation, TIMES, Limits(CONFIG.max_num_seqs, CONFIG.max_num_batched_tokens, costs))


def surge(surges: Surges, took_s: float, tokens: int = 40_000) -> None:
    """One from the first moment on, and looks some time after it."""
    before = Fake(waiting=tokens // 200, waiting_tokens=tokens)
    surges.begins(SURGE, before, outlook(before))
    after = Fake(now_s=took_s, prefilled_tokens=tokens, running=1, context=200)
    surges.is_over(after)
    later = replace(after, now_s=took_s + 9.0)
    for _ in range(2):
        surges.is_over(later)
        surges.learn(outlook(later))


def test_what_was_foreseen_is_no_news() -> None:
    surges = Surges()
    surges.learn(outlook(Fake()))
    surge(surges, took_s=outlook(Fake()).surge_s(P2, 40_000) + 2.0)
    assert surges.extra_s == pytest.approx(0.0)
    surge(surges, took_s=1.0)
    assert surges.extra_s == 0.0, "sooner than foreseen is chance"


def test_what_the_first_took_more_is_expected_of_the_next_and_half_of_what_others_do() -> None:
    surges, foreseen_s = Surges(), outlook(Fake()).surge_s(P2, 40_000) + 2.0
    surge(surges, took_s=foreseen_s + 3.0)
    assert surges.extra_s == pytest.approx(3.0), "nothing else was known"
    surge(surges, took_s=foreseen_s + 5.0)
    assert surges.extra_s == pytest.approx(4.0)
    surge(surges, took_s=foreseen_s)
    assert surges.extra_s == pytest.approx(2.0), "and forgotten as fast"

"""Costs of steps, against counts worked out by hand."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.engine.cost.balance import TOKENS_ONLY, StepCost
from seesaw.engine.cost.times import Curve, LayoutTimes, StageTimes

# A step takes a second, and one more for every ten tokens beyond the first hundred; a pair 1/1000, a context 1/500.
PREFILL = Curve((1.0, 100.0, 200.0, 1000.0), (1.0, 1.0, 11.0, 91.0))
STAGE = StageTimes(PREFILL, Curve((1.0, 100.0), (1.0, 1.0)), pair_s=1e-3, context_s=2e-3)
COST = StepCost.of(LayoutTimes([STAGE]))


def replaced(prefill: Curve) -> StageTimes:
    return msgspec.structs.replace(STAGE, prefill=prefill)


def test_a_chunk_costs_its_products_and_its_attention() -> None:
    pairs = 5 * 100 + 5 * 5 / 2  # a token attends to half of its own chunk
    assert COST.chunk(100, 5) == pytest.approx(5 + pairs * 1e-3 / 0.1)


def test_a_decoding_row_costs_its_context() -> None:
    assert COST.decode(3, 1000) == pytest.approx(3 + 1000 * 2e-3 / 0.1)


def test_a_mixed_step_is_filled_until_more_tokens_gain_little() -> None:
    line = Curve((1.0, 10.0, 20.0, 40.0, 1000.0), (0.6, 1.5, 2.5, 4.5, 100.5))
    assert StepCost.of(LayoutTimes([replaced(line)])).mixed == pytest.approx(20.0)  # 2.0 of 2.5 s are its tokens'


def test_the_busiest_stage_counts() -> None:
    slow = replaced(Curve((1.0, 2.0), (1.0, 2.0)))
    assert StepCost.of(LayoutTimes([STAGE, slow, STAGE])).per_pair == pytest.approx(1e-3 / 1.0)


def test_steps_that_take_as_long_whatever_they_hold_leave_tokens_to_count() -> None:
    flat = replaced(Curve((1.0, 2.0), (1.0, 1.0)))
    assert StepCost.of(LayoutTimes([flat])) == TOKENS_ONLY


@given(st.integers(0, 100_000), st.floats(0.5, 20_000.0))
def test_the_longest_chunk_within_a_budget(start: int, budget: float) -> None:
    tokens = COST.tokens_within(start, budget, 1 << 30)
    assert tokens == 1 or COST.chunk(start, tokens) <= budget * (1 + 1e-9)
    assert COST.chunk(start, tokens + 1) > budget * (1 - 1e-9)
    assert COST.tokens_within(start, budget, 3) == min(tokens, 3)


def test_without_a_pipeline_tokens_are_counted() -> None:
    assert TOKENS_ONLY.chunk(1000, 7) == 7 and TOKENS_ONLY.decode(3, 1000) == 3
    assert TOKENS_ONLY.tokens_within(1000, 7.0, 100) == 7


@pytest.mark.parametrize("cost", [COST, TOKENS_ONLY])
def test_without_a_budget_all_is_taken(cost: StepCost) -> None:
    """As beside those that decode where steps take as long whatever they hold."""
    assert cost.tokens_within(1000, TOKENS_ONLY.mixed, 7) == 7

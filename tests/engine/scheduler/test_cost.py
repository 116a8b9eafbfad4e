"""Costs of steps, against counts worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler.cost import ATTENTION_COST, KNEE_TOKENS, TOKENS_ONLY, StepCost
from tests.tiny import tiny_shape

SHAPE = tiny_shape(layers=4, heads=8, kv_heads=4, head_dim=8, hidden=64, ffn=96, vocab=211, dtype="bfloat16")
PARAMS = 64 * (8 + 4 + 4) * 8 + 64 * 64 + 3 * 64 * 96
COST = StepCost.of(SHAPE)


def test_a_chunk_costs_its_products_and_its_attention() -> None:
    pairs = 5 * 100 + 5 * 5 / 2  # a token attends to half of its own chunk
    attention = ATTENTION_COST * 4 * 8 * 8 * pairs
    assert COST.chunk(100, 5) == pytest.approx(5 + attention / (2 * PARAMS))


def test_a_decoding_row_costs_its_share_of_bytes() -> None:
    whole_step_bytes = 2 * PARAMS
    context_bytes = 2 * 4 * 8 * 2 * 1000
    assert COST.decode(3, 1000) == pytest.approx(3 + KNEE_TOKENS * context_bytes / whole_step_bytes)


@given(st.integers(0, 100_000), st.floats(0.5, 20_000.0))
def test_the_longest_chunk_within_a_budget(start: int, budget: float) -> None:
    tokens = COST.tokens_within(start, budget)
    assert tokens == 1 or COST.chunk(start, tokens) <= budget * (1 + 1e-9)
    assert COST.chunk(start, tokens + 1) > budget * (1 - 1e-9)


def test_without_a_pipeline_tokens_are_counted() -> None:
    assert TOKENS_ONLY.chunk(1000, 7) == 7 and TOKENS_ONLY.decode(3, 1000) == 3
    assert TOKENS_ONLY.tokens_within(1000, 7.0) == 7


@pytest.mark.parametrize(
    ("head", "rows", "context", "steps"),
    [
        (0.0, 8, 0, 4),  # even stages: nothing to gain
        (10.0, 8, 0, 3),  # a head, and rows that hide behind the weights
        (10.0, 4000, 0, 4),  # rows that do not
        (1.0, 8, 100_000, 4),  # a head that is worth less than reading more context in one step
    ],
)
def test_a_micro_batch_less_where_it_hides_the_head(head: float, rows: int, context: int, steps: int) -> None:
    assert StepCost(per_pair=0.0, per_context=0.01, head=head).micro_batches([5] * 4, rows, context) == steps
    assert StepCost(per_pair=0.0, per_context=0.01, head=head).micro_batches([20], rows, context) == 1

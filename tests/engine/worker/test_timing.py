"""Which steps a stage is timed with, and what follows from their times, on a stage that obeys a formula."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from seesaw.engine.cost.times import StageTimes, pairs_of
from seesaw.engine.ops.base import BatchInputs
from seesaw.engine.worker.rank_timing import slowest
from seesaw.engine.worker.timing import DECODES, PREFILLS, Limits, StageTimer, spread
from tests.tiny import CPU, ThreadGroup

LIMITS = Limits(
    prefill_tokens=2048,
    decodes=256,
    max_model_len=4096,
    block_size=16,
    num_blocks=1000,
    context_tokens=16000,
    even_pairs=5000.0,
)
SMALL = replace(LIMITS, prefill_tokens=24, decodes=6, max_model_len=96, block_size=4, num_blocks=60, context_tokens=240)


class Stage:
    """Its steps take `step_s`, and more for each token, pair and token of context that they hold."""

    def __init__(self, limits: Limits, step_s: float, token_s: float, pair_s: float, context_s: float) -> None:
        self._limits = limits
        self._costs = step_s, token_s, pair_s, context_s
        self.runs = 0
        self.spent_s = 0.0

    def run(self, batch: BatchInputs, sampled: int, times: int) -> list[float]:
        limits = self._limits
        assert batch.num_tokens <= max(limits.prefill_tokens, limits.decodes)
        assert int(batch.context_lens.max()) <= limits.max_model_len
        assert int(batch.tables.min()) >= 0 and int(batch.tables.max()) < limits.num_blocks
        assert batch.tables.shape[1] * limits.block_size >= int(batch.context_lens.max())
        assert 1 <= sampled <= batch.num_tokens
        step_s, token_s, pair_s, context_s = self._costs
        decodes = bool((batch.query_lens == 1).all())
        lens = zip(batch.query_lens.tolist(), batch.context_lens.tolist(), strict=True)
        pairs = sum(pairs_of(context - query, query, limits.attention_span) for query, context in lens)
        context = float(batch.context_lens.clamp(max=limits.attention_span).sum())
        seconds = step_s + token_s * batch.num_tokens + (context_s * context if decodes else pair_s * pairs)
        self.runs += times
        self.spent_s += times * seconds
        return [seconds] * times


def measure(stage: Stage, limits: Limits, budget_s: float = 1000.0, repeats: int = 1) -> StageTimes:
    times = StageTimer(stage.run, limits, budget_s, repeats).measure()
    for curve in (times.prefill, times.decode):
        assert all(a < b for a, b in pairwise(curve.counts))
        assert all(a <= b for a, b in pairwise(curve.seconds))
    return times


@pytest.mark.parametrize("limits", [LIMITS, SMALL, replace(LIMITS, attention_span=300)])
def test_a_stages_formula_is_found(limits: Limits) -> None:
    stage = Stage(limits, step_s=1e-2, token_s=1e-4, pair_s=1e-6, context_s=1e-5)
    times = measure(stage, limits)
    assert times.prefill.counts[-1] == limits.prefill_tokens and times.decode.counts[-1] == limits.decodes
    assert times.prefill.steepness == pytest.approx(1e-4, rel=0.4)  # short prompts have some pairs, too
    assert times.decode.at(1) == pytest.approx(1e-2, rel=0.05)
    assert times.pair_s == pytest.approx(1e-6)
    assert times.context_s == pytest.approx(1e-5)


def test_the_number_of_steps_is_bounded() -> None:
    """Two runs of each point of the curves, of a long prompt and of long contexts: a tiny model's whole price."""
    small, large = Stage(SMALL, 1e-3, 0, 0, 0), Stage(LIMITS, 1e-3, 0, 0, 0)
    measure(small, SMALL)
    measure(large, LIMITS)
    assert small.runs == 2 * (2 + 2 + 2)
    assert large.runs == 2 * (4 + 4 + 2)


@pytest.mark.parametrize("budget_s", [0.5, 1.0, 2.0, 10.0])
def test_what_takes_too_long_is_left_out(budget_s: float) -> None:
    stage = Stage(LIMITS, step_s=1e-3, token_s=1e-3, pair_s=1e-7, context_s=1e-6)
    times = measure(stage, LIMITS, budget_s)
    assert stage.spent_s <= 1.1 * budget_s
    assert times.pair_s == pytest.approx(1e-7) and times.context_s == pytest.approx(1e-6)


def test_a_stage_that_is_slower_than_any_budget_runs_four_steps_once() -> None:
    stage = Stage(LIMITS, step_s=5.0, token_s=0.1, pair_s=0, context_s=0)
    times = measure(stage, LIMITS, budget_s=0.1)
    assert stage.runs == 4
    assert times.prefill.counts == (16, 64) and times.decode.counts == (1, 8)


def test_a_point_that_was_slow_by_chance_is_left_out() -> None:
    stage = Stage(LIMITS, step_s=1.0, token_s=0.01, pair_s=0, context_s=0)

    def run(batch: BatchInputs, sampled: int, times: int) -> list[float]:
        seconds = stage.run(batch, sampled, times)
        return [30.0] if batch.num_tokens in (8, 512) else seconds

    times = StageTimer(run, LIMITS, 10_000.0, 0).measure()
    assert times.prefill.counts == (16, 64, 2048) and times.decode.counts == (1, 64, 256)
    assert times.prefill.steepness == pytest.approx(0.01)


def test_small_steps_gain_nothing_by_clocks_that_do_not_last() -> None:
    stage = Stage(LIMITS, step_s=1e-3, token_s=1e-4, pair_s=0, context_s=0)

    def run(batch: BatchInputs, sampled: int, times: int) -> list[float]:
        seconds = stage.run(batch, sampled, times)
        return [0.8 * x for x in seconds] if 64 < batch.num_tokens < 2048 else seconds

    prefill = StageTimer(run, LIMITS, 10_000.0, 0).measure().prefill
    token_s = [seconds / count for count, seconds in zip(prefill.counts, prefill.seconds, strict=True)]
    assert prefill.counts == (16, 64, 512, 2048)
    assert token_s == sorted(token_s, reverse=True) and token_s[2] == pytest.approx(token_s[3])
    assert prefill.at(64) == pytest.approx(1e-3 + 64e-4), "what a small step takes by itself stays"


def test_chance_makes_no_time_negative() -> None:
    stage = Stage(LIMITS, step_s=1.0, token_s=-1e-4, pair_s=-1e-6, context_s=-1e-6)
    times = measure(stage, LIMITS)
    assert times.pair_s == times.context_s == 0.0


def test_a_model_of_one_token_a_step_has_times() -> None:
    limits = replace(SMALL, prefill_tokens=1, decodes=1, max_model_len=2)
    times = measure(Stage(limits, 1e-3, 0, 0, 0), limits)
    assert times.prefill.counts == times.decode.counts == (1,)


@pytest.mark.parametrize(
    ("counts", "most", "chosen"),
    [
        (PREFILLS, 2048, [16, 64, 512, 2048]),
        (PREFILLS, 2100, [16, 64, 512, 2100]),  # 2048 is too close to it
        (PREFILLS, 16, [1, 16]),
        (DECODES, 256, [1, 8, 64, 256]),
        (DECODES, 1, [1]),
    ],
)
def test_counts_are_spread_up_to_the_limit(counts: tuple[int, ...], most: int, chosen: list[int]) -> None:
    assert spread(counts, most) == chosen


def test_shards_agree_on_the_slowest() -> None:
    from concurrent.futures import ThreadPoolExecutor

    groups = ThreadGroup.make(3)
    measured = [[0.1, 0.5], [0.3, 0.2], [0.2, 0.4]]
    with ThreadPoolExecutor(3) as threads:
        agreed = list(threads.map(lambda seconds, group: slowest(seconds, group, CPU), measured, groups))
    assert agreed[0] == agreed[1] == agreed[2] == torch.tensor([0.3, 0.5]).tolist()

"""The simulated host in real time; its virtual clock is what the scheduler's tests run on."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from seesaw import LLM, SamplingParams
from seesaw.engine.core import Core
from seesaw.engine.cost.times import Curve, Measured, StageTimes
from seesaw.engine.executor.simulated import SimulatedExecutor
from seesaw.engine.sizing.model import DEFAULT_SHAPE
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import Add


def test_steps_take_real_time() -> None:
    step_s, num_tokens = 0.01, 5
    with LLM("", skip_tokenizer=True, executor="simulated", simulated_step_s=step_s) as llm:
        start_s = time.monotonic()
        (result,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=num_tokens, ignore_eos=True))
    assert len(result.outputs[0].token_ids) == num_tokens
    assert time.monotonic() - start_s >= num_tokens * step_s


@pytest.mark.parametrize(
    ("window", "pairs", "context"),
    [
        (None, 100 * 100 / 2, sum(range(100, 109))),
        (40, 40 * 40 / 2 + 60 * 40, 9 * 40),
    ],
)
def test_attention_takes_time_up_to_its_window(window: int | None, pairs: float, context: int) -> None:
    """A prompt of 100 tokens, and nine that are decoded. The scheduler expects just that: nothing is corrected."""
    token = Curve((1.0,), (1.0,))
    times = Measured(((StageTimes(token, token, pair_s=1.0, context_s=1000.0),),))
    shape = replace(DEFAULT_SHAPE, sliding_window=window)
    config = EngineConfig(executor="simulated", tokenizer="bytes")
    executor = SimulatedExecutor(config, shape, times)
    core = Core(config, executor)
    core.add(Add("a", [1] * 100, SamplingParams(max_tokens=10, ignore_eos=True)))
    while not core.is_idle:
        core.turn()
    assert executor.now() == pytest.approx(100 + pairs + 9 + 1000 * context)
    speed = core.stats().speeds.layouts["T1"]
    assert speed.prefill_tokens_per_second == speed.decode_seconds[1] == 1.0

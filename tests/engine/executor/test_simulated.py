"""The simulated host in real time; its virtual clock is what the scheduler's tests run on."""

from __future__ import annotations

import time

from engine import LLM, SamplingParams


def test_steps_take_real_time() -> None:
    step_s, num_tokens = 0.01, 5
    with LLM("", skip_tokenizer=True, executor="simulated", simulated_step_s=step_s) as llm:
        start_s = time.monotonic()
        (result,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=num_tokens, ignore_eos=True))
    assert len(result.outputs[0].token_ids) == num_tokens
    assert time.monotonic() - start_s >= num_tokens * step_s

"""What a request becomes: its sequences, and what they share."""

from __future__ import annotations

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler.requests import make_sequences
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import Add
from tests.engine.scheduler.symbolic import SymbolicExecutor


def test_a_prompt_is_kept_once_until_its_continuations_start() -> None:
    """With n at 128 the copies of prompts that wait took gigabytes."""
    config = EngineConfig(max_model_len=64, num_device_blocks=40)
    add = Add("a", [1, 2, 3], SamplingParams(n=2, min_tokens=2))
    first, second = make_sequences(add, [0, 1], 0.0, config, SymbolicExecutor(config).capacity, None)
    assert first.tokens is second.tokens and first.processing is second.processing
    first.occupy(replica=0, layout=0, slot=0, blocks=[0])
    first.tokens.append(9)
    assert (add.prompt, second.tokens) == ([1, 2, 3], [1, 2, 3])

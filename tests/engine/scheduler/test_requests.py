"""What a request becomes: its sequences, and what they share."""

from __future__ import annotations

import itertools

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler.requests import make_sequences
from seesaw.engine.scheduler.sequence import take_tokens
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import Add
from tests.engine.scheduler.symbolic import SymbolicExecutor


def test_a_prompt_is_kept_once() -> None:
    """With n at 128 copies take gigabytes where they wait, and milliseconds where they start."""
    config = EngineConfig(max_model_len=64, num_device_blocks=40)
    add = Add("a", [1, 2, 3], SamplingParams(n=2, min_tokens=2))
    first, second = make_sequences(add, [0, 1], 0.0, config, SymbolicExecutor(config).capacity, None)
    assert first.prompt is second.prompt and first.processing is second.processing
    first.occupy(replica=0, layout=0, slot=0, blocks=[0])
    take_tokens([first], [8])
    take_tokens([first], [9])
    assert first.prompt is second.prompt and (first.known, first.newest) == (5, 9)
    known = [1, 2, 3, 8, 9]
    for start, stop in itertools.combinations_with_replacement(range(6), 2):
        assert first.tokens(start, stop) == known[start:stop]
    assert (second.known, second.newest, second.tokens(0, 3)) == (3, 3, [1, 2, 3])

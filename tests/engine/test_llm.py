"""The offline door, on the simulated host: order, parameters, errors."""

from __future__ import annotations

import signal

import pytest

from engine import LLM, SamplingParams
from engine.values.errors import ConfigError, EngineDeadError, RequestError


def test_results_come_in_the_order_of_the_prompts() -> None:
    with LLM("", prefill="P2", decode="T2", executor="simulated", tokenizer="bytes") as llm:
        params = [SamplingParams(max_tokens=n, n=1 + n % 2, ignore_eos=True) for n in range(1, 40)]
        prompts = ["p" * n if n % 3 else [1] * n for n in range(1, 40)]
        results = llm.generate(prompts, params)
        assert [len(r.prompt_token_ids) for r in results] == list(range(1, 40))
        assert [[len(c.token_ids) for c in r.outputs] for r in results] == [[p.max_tokens] * p.n for p in params]
        assert all(c.finish_reason == "length" for r in results for c in r.outputs)
        assert [r.outputs[0].text for r in llm.generate("one", SamplingParams(max_tokens=3))] != [""]
        assert llm.generate([], None) == []
        assert llm.info.prefill == "P2" and llm.stats().device_blocks_used == 0


def test_an_invalid_prompt_is_refused_before_anything_runs() -> None:
    with LLM("", executor="simulated", skip_tokenizer=True) as llm:
        with pytest.raises(RequestError, match="empty"):
            llm.generate([[1, 2], []], SamplingParams(max_tokens=2))
        assert llm.stats().generation_tokens == 0
        with pytest.raises(ValueError, match="token ids"):
            llm.generate(["text"])
        with pytest.raises(ValueError, match="sampling parameters"):
            llm.generate([[1], [2]], [SamplingParams()])
        assert len(llm.generate([5, 6], SamplingParams(max_tokens=4))[0].outputs[0].token_ids) == 4


def test_an_interrupt_falls_between_turns_and_the_next_call_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM("", prefill="P2", decode="T2", executor="simulated", skip_tokenizer=True) as llm:
        turn, turns = llm._core.turn, 0

        def interrupted_turn() -> object:
            nonlocal turns
            turns += 1
            if turns == 5:
                signal.raise_signal(signal.SIGINT)
            return turn()

        monkeypatch.setattr(llm._core, "turn", interrupted_turn)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[1, 2, 3]] * 4, SamplingParams(max_tokens=100))
        results = llm.generate(([n] for n in range(1, 4)), SamplingParams(max_tokens=7, ignore_eos=True))
        assert [len(result.outputs[0].token_ids) for result in results] == [7, 7, 7]
        assert llm.stats().device_blocks_used == 0
    with pytest.raises(EngineDeadError, match="closed"):
        llm.generate([1])
    llm.close()


def test_a_configuration_that_cannot_work_says_what_to_change() -> None:
    for options, sentence in {
        ("P3", "T2"): "choose layouts of one world size",
        ("T5", ""): "does not divide",
        ("P99", ""): "has 99 stages but the model has 32 layers",
        ("X2", ""): "write degrees as in T4",
        ("T2T2", ""): "at most once",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            LLM("", prefill=options[0], decode=options[1], executor="simulated", skip_tokenizer=True)
    with pytest.raises(ConfigError, match="raise --num-device-blocks to at least 512"):
        LLM("", executor="simulated", num_device_blocks=10, skip_tokenizer=True)
    with pytest.raises(ConfigError, match="raise --num-host-blocks to at least 512"):
        LLM("", prefill="P2", decode="T2", executor="simulated", num_host_blocks=10, skip_tokenizer=True)
    with pytest.raises(ConfigError, match="policy must be one of cost, paper"):
        LLM("", policy="greedy", executor="simulated", skip_tokenizer=True)

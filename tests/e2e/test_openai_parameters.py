"""What the openai package can ask of the real model beside text: log-probabilities as transformers has them, of prompts
and answers, and sampling that does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from tests.e2e.served import serving

pytestmark = pytest.mark.model

TOLERANCE = 1e-3
TOP = 3
TOKENS = 8
PROMPTS = ["The capital of France is Paris, and that of Italy is Rome.", "Zażółć gęślą jaźń. 世界 🌍\n\tdef f(x):"]
MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: dict[str, Any] = {"model": "smollm2", "temperature": 0}


@pytest.fixture(scope="module")
def api(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    flags = ["--prefill", "P2", "--decode", "T2", "--max-model-len", "256", "--max-num-batched-tokens", "256"]
    with serving(smollm2, tmp_path_factory.mktemp("served"), "--served-model-name", "smollm2", *flags) as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=300, max_retries=0) as client:
            yield client
        served.is_drained()


@pytest.fixture(scope="module")
def transformers_model(smollm2: Path) -> tuple[Any, Any]:
    """The tokenizer and the model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    return AutoTokenizer.from_pretrained(smollm2), model


@torch.inference_mode()
def reference(model: Any, tokens: list[int]) -> torch.Tensor:
    """transformers' log-probabilities of what may follow each of the tokens."""
    logprobs: torch.Tensor = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return logprobs


def test_an_echoed_prompt_has_transformers_logprobs(api: openai.OpenAI, transformers_model: tuple[Any, Any]) -> None:
    tokenizer, model = transformers_model
    answer = api.completions.create(**GREEDY, prompt=PROMPTS, max_tokens=0, echo=True, logprobs=TOP)
    assert [choice.text for choice in answer.choices] == PROMPTS
    assert answer.usage is not None and answer.usage.completion_tokens == 0
    for choice, prompt in zip(answer.choices, PROMPTS, strict=True):
        tokens = tokenizer(prompt).input_ids
        expected = reference(model, tokens)[:-1]
        told = choice.logprobs
        assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
        assert told.tokens == [tokenizer.decode([token]) for token in tokens]
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        own = expected.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        assert (torch.tensor(told.token_logprobs[1:]) - own).abs().max() < TOLERANCE
        for token, tops, row in zip(tokens[1:], told.top_logprobs[1:], expected, strict=True):
            named: dict[str, float] = {}  # pieces of characters are called the same
            for one in (token, *row.topk(TOP).indices.tolist()):
                name = tokenizer.decode([one])
                named[name] = max(float(row[one]), named.get(name, -torch.inf))
            assert tops == pytest.approx(named, abs=TOLERANCE)


def test_a_chat_has_transformers_logprobs(api: openai.OpenAI, transformers_model: tuple[Any, Any]) -> None:
    tokenizer, model = transformers_model
    asked = GREEDY | {"messages": MESSAGES, "max_completion_tokens": TOKENS, "logprobs": True, "top_logprobs": TOP}
    whole = api.chat.completions.create(**asked, extra_body={"return_token_ids": True})
    chunks = [chunk.choices[0] for chunk in api.chat.completions.create(**asked, stream=True)]
    assert whole.choices[0].logprobs is not None and whole.choices[0].logprobs.content is not None
    told = whole.choices[0].logprobs.content
    streamed = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content or ()]
    assert [token.token for token in streamed] == [token.token for token in told]

    prompt = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    before = tokenizer(prompt, add_special_tokens=False).input_ids
    tokens = (whole.choices[0].model_extra or {})["token_ids"]
    expected = reference(model, before + tokens)[len(before) - 1 : -1]
    assert len(told) == len(tokens) > 4
    for token, one, row in zip(tokens, told, expected, strict=True):
        assert one.token == tokenizer.decode([token])
        assert abs(one.logprob - float(row[token])) < TOLERANCE
        best = torch.tensor([top.logprob for top in one.top_logprobs])
        assert (best - row.topk(TOP).values).abs().max() < TOLERANCE


def test_sampling_does_what_it_says(api: openai.OpenAI) -> None:
    def answer(**more: Any) -> tuple[str, list[int]]:
        asked = GREEDY | {"prompt": "The capital of France is", "max_tokens": 24}
        [choice] = api.completions.create(**asked | more, extra_body={"return_token_ids": True}).choices
        return choice.text, (choice.model_extra or {})["token_ids"]

    text, tokens = answer()
    assert len(set(tokens)) < len(tokens)  # it repeats itself, which penalties forbid
    penalized = answer(frequency_penalty=2.0, presence_penalty=2.0)[1]
    assert len(set(penalized)) > len(set(tokens))
    assert answer(logit_bias={str(tokens[0]): -100})[1][0] != tokens[0]
    assert set(answer(logit_bias={str(tokens[0]): 100})[1]) == {tokens[0]}
    assert answer(stop=["."])[0] == text.partition(".")[0]

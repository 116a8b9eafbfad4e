"""The real model, asked over HTTP by the openai package: transformers' answers to chats, also through the other door,
its log-probabilities, batches answered as requests are, a load test that counts as the server does, and sampling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from check_clients_batches import as_online
from client_checks import Target

from seesaw import LLM, SamplingParams
from seesaw.clients import arguments, load_test
from seesaw.clients.figures import figures
from seesaw.clients.record import from_columns
from seesaw.clients.sharegpt import sharegpt
from seesaw.clients.wheels import FetchError
from tests.e2e.served import Served, serving

pytestmark = pytest.mark.model

TOLERANCE = 1e-3
TOP = 3
TOKENS = 8
PROMPTS = ["The capital of France is Paris, and that of Italy is Rome.", "Zażółć gęślą jaźń. 世界 🌍\n\tdef f(x):"]
MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
MAX_TOKENS = 16  # of a chat
GREEDY: dict[str, Any] = {"model": "smollm2", "temperature": 0}
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Name a planet."},
        {"role": "assistant", "content": "Mars is a planet."},
        {"role": "user", "content": "Name another one."},
    ],
]


@pytest.fixture(scope="module")
def served(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    flags = ["--served-model-name", "smollm2", "--prefill", "P2", "--decode", "T2", "--data-dir", str(folder / "data")]
    flags += ["--max-model-len", "1280", "--num-host-blocks", "100"]
    flags += ["--max-num-batched-tokens", "256", "--max-num-seqs", "16"]  # larger steps take long to time at the start
    with serving(smollm2, folder, *flags) as served:
        yield served
        served.is_drained()


@pytest.fixture(scope="module")
def api(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def transformers_model(smollm2: Path) -> tuple[Any, Any]:
    """The tokenizer and the model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    return AutoTokenizer.from_pretrained(smollm2), model


async def chat_all(url: str) -> list[tuple[str, str, int]]:
    """Each conversation's answer: its text whole and streamed, and the prompt's tokens."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0) as client:

        async def one(messages: list[dict[str, str]]) -> tuple[str, str, int]:
            options = {"model": "smollm2", "messages": messages, "temperature": 0, "max_completion_tokens": MAX_TOKENS}
            whole = await client.chat.completions.create(**options)
            options["messages"] = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
            stream = await client.chat.completions.create(**options, stream=True)
            deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content, "".join(deltas), whole.usage.prompt_tokens

        return await asyncio.gather(*map(one, CHATS))


@torch.inference_mode()
def reference_chats(tokenizer: Any, model: Any) -> list[tuple[str, int]]:
    """transformers' greedy answer to each conversation, by the checkpoint's template, and the prompt's tokens."""
    answers = []
    for messages in CHATS:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        length = inputs.input_ids.shape[1]
        answers.append((tokenizer.decode(out[0, length:], skip_special_tokens=True), length))
    return answers


def chat_offline(folder: Path) -> list[tuple[str, int]]:
    """Each conversation's answer without HTTP, and the prompt's tokens."""
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0)
    with LLM(str(folder), max_model_len=256, max_num_batched_tokens=256, max_num_seqs=16) as llm:
        results = llm.chat(CHATS, params)
    return [(result.outputs[0].text, len(result.prompt_token_ids)) for result in results]


def test_chats_give_transformers_answers_through_both_doors(
    served: Served, smollm2: Path, transformers_model: tuple[Any, Any]
) -> None:
    answers = asyncio.run(chat_all(served.url))
    served.is_drained()
    expected = reference_chats(*transformers_model)
    assert answers == [(text, text, length) for text, length in expected]
    assert chat_offline(smollm2) == expected


def test_batches_are_answered_as_requests_are(served: Served, smollm2: Path) -> None:
    as_online(Target(served.url, "smollm2", smollm2), num_rows=20)
    served.is_drained()


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


def test_a_load_tests_totals_are_the_servers_counters(served: Served, smollm2: Path, tmp_path: Path) -> None:
    try:
        path = sharegpt()
    except FetchError as error:
        pytest.skip(str(error))
    flags = ["--base-url", served.url, "--tokenizer", str(smollm2), "--dataset-name", "sharegpt"]
    flags += ["--dataset-path", str(path), "--num-prompts", "6", "--sharegpt-output-len", "6", "--ignore-eos"]
    flags += ["--temperature", "0", "--request-rate", "4", "--save-result", "--save-detailed"]
    flags += ["--result-dir", str(tmp_path), "--result-filename", "x.json"]
    before = served.metrics()
    asyncio.run(load_test.run(arguments.parse(flags, "x")))
    served.is_drained()
    after = served.metrics()
    saved = json.loads((tmp_path / "x.json").read_text())
    assert (saved["completed"], saved["failed"], saved["total_output_tokens"]) == (6, 0, 36)
    again = figures(from_columns(saved), saved["start_time"])
    assert {key: saved[key] for key in again} == again
    for counter, total in (
        ("prompt_tokens_total", "total_input_tokens"),
        ("generation_tokens_total", "total_output_tokens"),
        ("request_success_total", "completed"),
    ):
        assert after[counter] - before[counter] == saved[total]


def test_sampling_does_what_it_says(api: openai.OpenAI) -> None:
    def answer(**more: Any) -> tuple[str, list[int]]:
        asked = GREEDY | {"prompt": "The capital of France is", "max_tokens": 24}
        [choice] = api.completions.create(**asked | more, extra_body={"return_token_ids": True}).choices
        return choice.text, (choice.model_extra or {})["token_ids"]

    text, tokens = answer()
    assert len(set(tokens)) < len(tokens)  # it repeats itself, which penalties forbid
    asked: list[dict[str, Any]] = [
        {"frequency_penalty": 2.0, "presence_penalty": 2.0},
        {"logit_bias": {str(tokens[0]): -100}},
        {"logit_bias": {str(tokens[0]): 100}},
        {"stop": ["."]},
    ]
    with ThreadPoolExecutor(len(asked)) as threads:  # at once, so mostly in one batch
        penalized, without, only, stopped = threads.map(lambda more: answer(**more), asked)
    assert len(set(penalized[1])) > len(set(tokens))
    assert without[1][0] != tokens[0]
    assert set(only[1]) == {tokens[0]}
    assert stopped[0] == text.partition(".")[0]

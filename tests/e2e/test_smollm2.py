"""The real model end to end: SmolLM2 served P2 -> T2 over HTTP gives transformers' greedy text."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import openai
import pytest
import torch
from check_clients_batches import as_online
from client_checks import Target
from fetch_sharegpt import sharegpt

from seesaw import LLM, SamplingParams
from seesaw.clients.datasets import Sample, load_sharegpt
from tests.e2e.served import serving

pytestmark = pytest.mark.model

NUM_PROMPTS = 20
MAX_PROMPT_TOKENS = 128
MAX_TOKENS = 16
BLOCK_SIZE = 16
# Rounding differs between layouts and batches by about 1e-4 in these logits; where the reference's best two are closer
# than 20 x that, either is right.
SURE_GAP = 2e-3


@torch.inference_mode()
def reference_texts(folder: Path, samples: list[Sample]) -> list[tuple[str, str]]:
    """transformers' greedy text of each prompt, and how much of it is sure: up to the first near tie."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = []
    for first in range(0, len(samples), 10):
        batch = tokenizer([s.prompt for s in samples[first : first + 10]], return_tensors="pt", padding=True)
        out = model.generate(
            **batch, max_new_tokens=MAX_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        new = out.sequences[:, batch.input_ids.shape[1] :]
        gaps = torch.stack([step.topk(2).values.diff().abs().squeeze(1) for step in out.logits], dim=1)
        for tokens, row in zip(new, gaps, strict=True):
            unsure = (row < SURE_GAP).nonzero()
            sure = int(unsure[0]) if len(unsure) else len(tokens)
            whole, part = (tokenizer.decode(t, skip_special_tokens=True) for t in (tokens, tokens[:sure]))
            texts.append((whole, part.rstrip("\ufffd")))
    return texts


async def complete_all(url: str, prompts: list[str]) -> list[str]:
    """All prompts at once, every other one streamed."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0) as client:

        async def one(i: int, prompt: str) -> str:
            if i % 2:
                stream = await client.completions.create(
                    model="smollm2", prompt=prompt, max_tokens=MAX_TOKENS, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])
            done = await client.completions.create(model="smollm2", prompt=prompt, max_tokens=MAX_TOKENS, temperature=0)
            return done.choices[0].text

        return await asyncio.gather(*(one(i, prompt) for i, prompt in enumerate(prompts)))


CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Name a planet."},
        {"role": "assistant", "content": "Mars is a planet."},
        {"role": "user", "content": "Name another one."},
    ],
]


async def chat_all(url: str) -> list[tuple[str, str, int]]:
    """Each conversation's answer: its text whole and streamed, and the prompt's tokens."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        answers = []
        for messages in CHATS:
            options = {"model": "smollm2", "messages": messages, "temperature": 0, "max_completion_tokens": MAX_TOKENS}
            whole = await client.chat.completions.create(**options)
            options["messages"] = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
            stream = await client.chat.completions.create(**options, stream=True)
            deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
            answers.append((whole.choices[0].message.content, "".join(deltas), whole.usage.prompt_tokens))
        return answers


@torch.inference_mode()
def reference_chats(folder: Path) -> list[tuple[str, int]]:
    """transformers' greedy answer to each conversation, by the checkpoint's template, and the prompt's tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
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
    with LLM(str(folder), max_model_len=256, max_num_batched_tokens=256) as llm:
        results = llm.chat(CHATS, params)
    return [(result.outputs[0].text, len(result.prompt_token_ids)) for result in results]


def test_chats_give_transformers_answers_through_both_doors(smollm2: Path, tmp_path: Path) -> None:
    flags = ["--served-model-name", "smollm2", "--max-model-len", "256", "--max-num-batched-tokens", "256"]
    with serving(smollm2, tmp_path, *flags) as served:
        answers = asyncio.run(chat_all(served.url))
        served.is_drained()
    expected = reference_chats(smollm2)
    assert answers == [(text, text, length) for text, length in expected]
    assert chat_offline(smollm2) == expected


def test_batches_are_answered_as_requests_are(smollm2: Path, tmp_path: Path) -> None:
    flags = ["--served-model-name", "smollm2", "--max-model-len", "64", "--data-dir", str(tmp_path / "data")]
    flags += ["--max-num-batched-tokens", "256", "--max-num-seqs", "16"]  # larger steps take long to time at the start
    with serving(smollm2, tmp_path, *flags) as served:
        target = Target(served.url, "smollm2", smollm2)
        as_online(target, num_rows=20)
        served.is_drained()


def test_many_conversations_at_once_give_transformers_text(smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    samples = load_sharegpt(sharegpt(), tokenizer, NUM_PROMPTS, max_prompt_tokens=MAX_PROMPT_TOKENS)
    prompt_blocks = sum(-(-sample.prompt_tokens // BLOCK_SIZE) for sample in samples)
    flags = [
        "--served-model-name",
        "smollm2",
        "--prefill",
        "P2",
        "--decode",
        "T2",
        "--policy",
        "paper",
        "--surge-min-tokens",
        "0",
    ]
    flags += ["--max-model-len", "160", "--num-host-blocks", str(prompt_blocks // 3), "--num-device-blocks", "120"]
    with serving(smollm2, tmp_path, *flags) as served:
        texts = asyncio.run(complete_all(served.url, [sample.prompt for sample in samples]))
        served.is_drained()
        metrics = served.metrics()
        log = served.log.read_text()
    expected = reference_texts(smollm2, samples)
    for got, (whole, sure) in zip(texts, expected, strict=True):
        assert got == whole or (sure != whole and got.startswith(sure)), (got, whole)
    assert sum(got == whole for got, (whole, _) in zip(texts, expected, strict=True)) >= NUM_PROMPTS - 2
    transitions = metrics["transitions_total"]
    assert transitions >= 4
    assert len(re.findall(r"prefill P2 -> decode T2|decode T2 -> prefill P2", log)) == transitions
    assert metrics["swap_bytes_total"] > 0
    assert metrics["prompt_tokens_total"] == sum(sample.prompt_tokens for sample in samples)

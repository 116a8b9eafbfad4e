"""Many conversations at once with the real model, in two layouts whose pools are too small for them, give transformers'
greedy text."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import openai
import pytest
import torch
from fetch_sharegpt import sharegpt

from seesaw.clients.datasets import Sample, load_sharegpt
from tests.e2e.served import serving

pytestmark = pytest.mark.model

NUM_PROMPTS = 12
MAX_PROMPT_TOKENS = 64
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
    texts: dict[str, tuple[str, str]] = {}
    by_length = sorted(samples, key=lambda sample: sample.prompt_tokens)
    for alike in (by_length[: len(samples) // 2], by_length[len(samples) // 2 :]):  # padding costs as much as prompts
        batch = tokenizer([sample.prompt for sample in alike], return_tensors="pt", padding=True)
        out = model.generate(
            **batch, max_new_tokens=MAX_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        new = out.sequences[:, batch.input_ids.shape[1] :]
        gaps = torch.stack([step.topk(2).values.diff().abs().squeeze(1) for step in out.logits], dim=1)
        for sample, tokens, row in zip(alike, new, gaps, strict=True):
            unsure = (row < SURE_GAP).nonzero()
            sure = int(unsure[0]) if len(unsure) else len(tokens)
            whole, part = (tokenizer.decode(t, skip_special_tokens=True) for t in (tokens, tokens[:sure]))
            texts[sample.prompt] = whole, part.rstrip("\ufffd")
    return [texts[sample.prompt] for sample in samples]


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


def test_many_conversations_at_once_give_transformers_text(smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    samples = load_sharegpt(sharegpt(), tokenizer, NUM_PROMPTS, max_prompt_tokens=MAX_PROMPT_TOKENS)
    prompt_blocks = sum(-(-sample.prompt_tokens // BLOCK_SIZE) for sample in samples)
    flags = ["--served-model-name", "smollm2", "--prefill", "P2", "--decode", "T2"]
    flags += ["--policy", "paper", "--surge-min-tokens", "0", "--max-model-len", "96"]
    flags += ["--max-num-batched-tokens", "256", "--max-num-seqs", "16"]  # larger steps take long to time at the start
    # Both pools together do not hold all prompts, so there are two surges at least.
    flags += ["--num-host-blocks", str(prompt_blocks // 3), "--num-device-blocks", str(prompt_blocks // 2)]
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

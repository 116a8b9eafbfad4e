"""The real model on GPUs in bfloat16: its logits and greedy texts are transformers' as far as rounding allows.

SEESAW_TEST_MODEL names its folder, which `scripts/fetch_default_model.py` builds and prints: a GPU host may have no
network. Any dtype will do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw.engine.parallel.layout import Layout
from seesaw.engine.values.config import EngineConfig
from tests.engine.drive import greedy, running
from tests.gpu import one_gpu
from tests.gpu.reference import CUDA, Reference
from tests.tiny import LocalModel

pytestmark = pytest.mark.gpu

MAX_TOKENS = 32
TEXTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a village by the sea, there lived",
    "The first five prime numbers are 2, 3,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Photosynthesis is the process by which plants",
    "To bake bread you need flour, water, salt and",
    "The opposite of hot is",
]


@pytest.fixture(scope="module")
def reference() -> Reference:
    folder = os.environ.get("SEESAW_TEST_MODEL")
    if not folder:
        pytest.skip("SEESAW_TEST_MODEL does not name the folder of the real model")
    return Reference(Path(folder), torch.bfloat16)


@pytest.fixture(scope="module")
def tokenizer(reference: Reference) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(reference.folder)


@pytest.mark.parametrize("layout", ["T1", "T4", "T2P2"])
def test_logits_of_a_text(reference: Reference, tokenizer: Any, layout: str) -> None:
    tokens: list[int] = tokenizer("\n".join(TEXTS * 4)).input_ids
    with torch.inference_mode():
        model = LocalModel(
            reference.folder, Layout.parse(layout), block_size=16, num_blocks=64, device=CUDA, dtype="bfloat16"
        )
        reference.check_logits(model.logits(tokens), tokens)


def _check_texts(reference: Reference, tokenizer: Any, plan: str, weights: str = "auto") -> str:
    """Every prompt six times, so that pools are short; returns how the engine held its weights."""
    prefill, _, decode = plan.partition("->")
    prompts: list[list[int]] = tokenizer(TEXTS).input_ids
    config = EngineConfig(
        model=str(reference.folder),
        device="cuda",
        dtype="bfloat16",
        prefill=prefill,
        decode=decode,
        weights=weights,  # type: ignore[arg-type]
        max_model_len=64,
        num_device_blocks=24,
        num_host_blocks=20,
        max_num_batched_tokens=64,
        max_num_seqs=16,
        policy="paper",
        surge_min_tokens=0,
    )
    error = max(reference.error(prompt) for prompt in prompts)
    requests = {f"{n}-{i}": (prompt, greedy(MAX_TOKENS)) for n in range(6) for i, prompt in enumerate(prompts)}
    with running(config) as engine:
        tokens = engine.generate(requests)
        stats = engine.core.stats()
        mode = engine.executor.capacity.weights
    for name, (prompt, _) in requests.items():
        assert len(tokens[name][0]) == MAX_TOKENS
        reference.check_greedy(prompt, tokens[name][0], error)
    assert tokenizer.decode(tokens["0-0"][0]).startswith(" Paris")
    assert stats.device_blocks_used == stats.host_blocks_used == 0
    if decode:
        assert sum(stats.transitions.values()) >= 2 and stats.swap_bytes["in"] > 0
    return mode


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_POISON_KV", "1")
    monkeypatch.setenv("SEESAW_POISON_WEIGHTS", "1")


def test_texts_of_one_gpu(reference: Reference, tokenizer: Any) -> None:
    _check_texts(reference, tokenizer, "T1")


def test_texts_of_two_layouts_on_one_gpu(reference: Reference, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one_gpu.use(monkeypatch)
    assert _check_texts(reference, tokenizer, "P2->T2", "reload") == "reload"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("plan", ["T2", "P2", "P2->T2"])
def test_texts_of_two_gpus(reference: Reference, tokenizer: Any, plan: str) -> None:
    """`auto` holds so small a model in both layouts at once."""
    assert _check_texts(reference, tokenizer, plan) == ("resident" if "->" in plan else "static")

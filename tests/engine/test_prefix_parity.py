"""Prompts that share prefixes give transformers' tokens, whether these are found or computed. Real processes, float32.

Pools are so small that prefixes are pushed out and come back from the host; they start as NaN.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from seesaw.engine.parallel.layout import Layout
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler.batcher import Batcher
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import Add, Stats
from tests.engine.drive import Engine, greedy, matches_reference, running
from tests.tiny import layout_error, write_tiny_checkpoint

pytestmark = pytest.mark.processes

VOCAB = 211
MAX_TOKENS = 5


def _prompts() -> dict[str, list[int]]:
    """120 over 5 prefixes: some end with theirs, some with a block."""
    rng = random.Random(6)
    prefixes = [[rng.randrange(VOCAB) for _ in range(length)] for length in (16, 31, 40, 45, 48)]
    prompts = {}
    for i in range(120):
        own = [rng.randrange(VOCAB) for _ in range(rng.choice([0, 1, 2, 3, 4, 9]))]
        prompts[f"r{i}"] = [*rng.choice(prefixes), *own]
    return prompts


PROMPTS = _prompts()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), layers=4)


def _config(folder: Path, plan: str, **changes: object) -> EngineConfig:
    prefill, _, decode = plan.partition("->")
    settings: dict[str, object] = {
        "block_size": 4,
        "max_model_len": 64,
        "num_device_blocks": 70,
        "num_host_blocks": 90,
        "max_num_batched_tokens": 24,
        "max_num_seqs": 6,
        "policy": "paper",
        "surge_min_tokens": 0,
    }
    return EngineConfig(model=str(folder), prefill=prefill, decode=decode, **{**settings, **changes})  # type: ignore[arg-type]


def _generate(config: EngineConfig) -> tuple[dict[str, list[list[int]]], Stats]:
    """Three times over, so that the last find what the first left; their tokens by name."""
    tokens: dict[str, list[list[int]]] = {}
    names = list(PROMPTS)
    with running(config) as engine:
        for part in (names[:40], names[40:80], names[80:]):
            tokens |= engine.generate({name: (PROMPTS[name], greedy(MAX_TOKENS)) for name in part})
        stats = engine.core.stats()
    assert stats.device_blocks_used == stats.host_blocks_used == 0
    return tokens, stats


@pytest.mark.parametrize("plan", ["T2", "P2->T2", "D2->T2"])
def test_prefixes_of_120_prompts(folder: Path, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_POISON_KV", "1")
    # Whether it pays follows from what was timed at the start. A model as tiny as this takes hardly longer for 24
    # tokens than for one, and on a busy host a single copy may take a hundred times as long: then it never pays.
    monkeypatch.setattr(Batcher, "_pays_to_bring", lambda *_: True)
    error = layout_error(folder, [Layout.parse(name) for name in plan.split("->")], PROMPTS["r0"])
    found, stats = _generate(_config(folder, plan))
    computed, without = _generate(_config(folder, plan, enable_prefix_caching=False))
    for name, prompt in PROMPTS.items():
        for got in (found[name][0], computed[name][0]):
            assert len(got) == MAX_TOKENS and matches_reference(folder, prompt, got, MAX_TOKENS, error), name
    queries = sum(map(len, PROMPTS.values()))
    assert stats.prefix_cache_queries == queries and without.prefix_cache_queries == 0
    hits = stats.prefix_cache_hits
    assert hits["device"] + hits["host"] > 0.6 * queries and (hits["host"] > 0) == ("->" in plan)
    assert without.device_blocks_cached == without.host_blocks_cached == 0
    if "->" in plan:
        assert sum(stats.transitions.values()) >= 2


def _prompt_logprobs(engine: Engine, name: str, prompt: list[int], params: SamplingParams) -> list[float]:
    """Those that a request is told of its prompt."""
    engine.core.add(Add(name, prompt, params))
    told: list[float] = []
    while not engine.core.is_idle:
        told += [each.logprob for output in engine.core.turn() for each in output.prompt_logprobs]
        if not engine.core.is_idle:
            engine.wait()
    return told


def test_who_needs_all_rows_who_branches_and_who_draws(folder: Path) -> None:
    """Beside a prompt that is found whole: one whose log-probabilities are wanted, continuations, and seeds."""
    prompt = [(31 * place) % VOCAB for place in range(48)]
    drawn = SamplingParams(max_tokens=8, temperature=1.0, seed=5, ignore_eos=True)
    told = SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=2, ignore_eos=True)
    with running(_config(folder, "T2", num_device_blocks=140)) as engine:
        first = engine.generate({"greedy": (prompt, greedy(8)), "drawn": (prompt, drawn)})
        told_first = _prompt_logprobs(engine, "a", prompt, told)
        engine.core.reset_prefix_cache()
        told_alone = _prompt_logprobs(engine, "b", prompt, told)
        told_again = _prompt_logprobs(engine, "c", prompt, told)
        before = engine.core.stats().prefix_cache_hits["device"]
        again = engine.generate({"greedy": (prompt, greedy(8)), "drawn": (prompt, drawn), "n": (prompt, greedy(8, 3))})
        hits = engine.core.stats().prefix_cache_hits["device"] - before
    assert again["greedy"] == first["greedy"] and again["drawn"] == first["drawn"]
    assert again["n"] == [first["greedy"][0]] * 3
    assert hits == 3 * 44  # of requests, not of continuations
    assert len(told_first) == len(told_alone) == len(told_again) == 47
    assert told_first == pytest.approx(told_alone, abs=1e-4) and told_again == pytest.approx(told_alone, abs=1e-4)

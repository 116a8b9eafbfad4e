"""Logprobs, penalties, bias and bans equal a float32 reference in any layout, with swaps and preemptions in between.

The reference is transformers' logits of each prompt with its output, and what vLLM does to them in plain Python.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.wire.messages import Add, Output
from tests.engine.drive import Engine, random_prompts, running
from tests.engine.test_parity import config_of
from tests.tiny import reference_logits, write_tiny_checkpoint

pytestmark = pytest.mark.processes

VOCAB, MAX_TOKENS = 211, 14
PROMPTS = random_prompts(seed=5, count=13, longest=60)
NEAR = 1e-3
EOS = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), eos_token_id=EOS)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_POISON_KV", "1")
    monkeypatch.setenv("SEESAW_POISON_WEIGHTS", "1")


def greedy(**asked: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": MAX_TOKENS, "temperature": 0.0, "ignore_eos": True, **asked})  # type: ignore[arg-type]


# Each changes the output of nearly any prompt.
ASKED = [
    greedy(),
    greedy(logprobs=5),
    greedy(logprobs=0, presence_penalty=1.5, frequency_penalty=0.7),
    greedy(logprobs=20, repetition_penalty=1.8),
    greedy(repetition_penalty=0.6, frequency_penalty=-1.5, logprobs=1),
    greedy(logit_bias={3: 4.0, 9: -7.5, 200: 2.5}, logprobs=2),
    greedy(allowed_token_ids=tuple(range(40, 60)), logprobs=3),
    greedy(bad_words_token_ids=((5,), (17, 4), (8, 9, 10)), allowed_token_ids=(4, 5, 8, 9, 10, 17), logprobs=1),
    greedy(bad_words_token_ids=((5, 5), (4, 5, 4), (17, 17, 4, 5, 17)), allowed_token_ids=(4, 5, 17), min_tokens=2),
    greedy(prompt_logprobs=4, logprobs=1),
    greedy(prompt_logprobs=0, n=2),
    greedy(ignore_eos=False, logit_bias={EOS: 100.0}, min_tokens=6, logprobs=1),
    greedy(presence_penalty=2.0),
]


def generate(engine: Engine, requests: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, list[list[Output]]]:
    """All outputs of each continuation."""
    outputs: dict[str, list[list[Output]]] = {name: [[] for _ in range(p.n)] for name, (_, p) in requests.items()}
    for name, (prompt, params) in requests.items():
        engine.core.add(Add(name, prompt, params))
    while not engine.core.is_idle:
        for output in engine.core.turn():
            outputs[output.id][output.index].append(output)
        if not engine.core.is_idle:
            engine.wait()
    return outputs


def processed(raw: torch.Tensor, prompt: list[int], output: list[int], params: SamplingParams) -> torch.Tensor:
    """Logits of the next token, as vLLM changes them."""
    logits = raw.clone()
    if params.allowed_token_ids is not None:
        forbidden = torch.ones(VOCAB, dtype=torch.bool)
        forbidden[list(params.allowed_token_ids)] = False
        logits[forbidden] = -torch.inf
    for word in params.bad_words_token_ids:
        if len(word) == 1 or output[1 - len(word) :] == list(word[:-1]):
            logits[word[-1]] = -torch.inf
    if len(output) < params.min_tokens:
        logits[EOS] = -torch.inf
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    for token in set(prompt + output):
        factor = params.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token in set(output):
        logits[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return logits


def check(folder: Path, prompt: list[int], params: SamplingParams, outputs: list[Output], is_first: bool) -> None:
    tokens = [token for output in outputs for token in output.tokens]
    logits = reference_logits(folder, prompt + tokens)
    raw = logits.log_softmax(-1)
    for step, token in enumerate(tokens):
        want = processed(logits[len(prompt) + step - 1], prompt, tokens[:step], params)
        assert want[token] >= want.max() - NEAR, (step, token, int(want.argmax()))
    if params.logprobs is not None:
        told = [logprobs for output in outputs for logprobs in output.logprobs]
        assert len(told) == len(tokens)
        for step, (token, one) in enumerate(zip(tokens, told, strict=True)):
            same(one, raw[len(prompt) + step - 1], token, params.logprobs)
    else:
        assert not any(output.logprobs for output in outputs)
    of_prompt = [logprobs for output in outputs for logprobs in output.prompt_logprobs]
    assert len(of_prompt) == (len(prompt) - 1 if params.prompt_logprobs is not None else 0)
    for position, one in enumerate(of_prompt, 1):
        same(one, raw[position - 1], prompt[position], params.prompt_logprobs or 0)
    assert all(not output.prompt_logprobs for output in outputs[1:])
    assert is_first or params.prompt_logprobs is None or outputs[0].prompt_logprobs


def same(one, want: torch.Tensor, token: int, top: int) -> None:  # type: ignore[no-untyped-def]
    assert one.logprob == pytest.approx(float(want[token]), abs=NEAR)
    clearly_likelier = int((want > want[token] + NEAR).sum())
    assert clearly_likelier + 1 <= one.rank <= int((want > want[token] - NEAR).sum())
    assert len(one.top_ids) == len(one.top_logprobs) == top
    assert one.top_logprobs == pytest.approx(want.topk(top).values.tolist(), abs=NEAR)
    assert one.top_logprobs == pytest.approx(want[one.top_ids].tolist(), abs=NEAR)


@pytest.mark.parametrize("plan", ["T1", "T2", "P2", "P2->T2", "T2->P2", "D2", "P4->T2P2"])
def test_results_equal_the_reference(plan: str, folder: Path) -> None:
    requests = {f"r{i}": (prompt, params) for i, (prompt, params) in enumerate(zip(PROMPTS, ASKED, strict=True))}
    # A second round, so that all kinds meet others in a step, and long prompts preempt.
    requests |= {f"s{i}": (PROMPTS[-1 - i], params) for i, params in enumerate(ASKED)}
    with running(config_of(folder, plan)) as engine:
        outputs = generate(engine, requests)
        stats = engine.core.stats()
    for name, (prompt, params) in requests.items():
        for index in range(params.n):
            check(folder, prompt, params, outputs[name][index], index == 0)
    for name in ("r11", "s11"):
        assert [t for o in outputs[name][0] for t in o.tokens].index(EOS) == 6, "as soon as it may"
    assert plan == "D2" or stats.preemptions > 0 or stats.swap_bytes["out"] > 0  # of two replicas one may have less


def test_seeds_reproduce_whatever_else_is_in_the_batch(folder: Path) -> None:
    seeded = SamplingParams(
        max_tokens=10, temperature=0.8, top_p=0.95, seed=3, frequency_penalty=0.5, repetition_penalty=1.2, logprobs=1
    )
    others = {f"r{i}": (prompt, params) for i, (prompt, params) in enumerate(zip(PROMPTS, ASKED, strict=True))}
    tokens = []
    for plan, beside in (("T1", {}), ("P2->T2", others)):
        with running(config_of(folder, plan)) as engine:
            outputs = generate(engine, {**beside, "seeded": (PROMPTS[2], seeded)})
        tokens.append([token for output in outputs["seeded"][0] for token in output.tokens])
    assert tokens[0] == tokens[1]

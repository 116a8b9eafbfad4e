"""lm-eval against the server, held against its own backend of transformers: the same items, each score the same.

The tasks are here and small, so that no dataset has to be fetched; the harness treats them as its own.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from client_checks import Target, check, same

LOGLIKELIHOOD_TOLERANCE = 1e-2
TOKENS = 16

CAPITALS = (
    ("France", "Paris"),
    ("Italy", "Rome"),
    ("Germany", "Berlin"),
    ("Japan", "Tokyo"),
    ("Spain", "Madrid"),
    ("Egypt", "Cairo"),
    ("Greece", "Athens"),
    ("Côte d'Ivoire", "Yamoussoukro"),
)
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b\n",
    "Zażółć gęślą jaźń. 世界 🌍",
    "Water boils at 100 degrees Celsius at sea level, and at lower temperatures high up in the mountains.",
)


def task(name: str, kind: str, documents: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """One of the harness's tasks, as its YAML files have them."""
    from datasets import Dataset

    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)},
        "test_split": "test",
        "output_type": kind,
        "metadata": {"version": 1},
        **more,
    }


@cache
def tasks() -> dict[str, dict[str, Any]]:
    countries = [{"country": country} for country, _ in CAPITALS]
    choices = [
        {"prompt": f"The capital of {country} is", "choices": [f" {capital}", " Rome", " a city"]}
        for country, capital in CAPITALS
    ]
    # Characters of several tokens each, as the greedy choice and as another.
    choices.append({"prompt": "🌍🎉🌍🎉🌍🎉🌍", "choices": ["🎉🌍", "世界", "Zażółć"]})
    greedy = {"until": [" and"], "max_gen_toks": TOKENS, "do_sample": False, "temperature": 0.0}
    generate = {"generation_kwargs": greedy, "metric_list": [{"metric": "exact_match"}]}
    return {
        "choices": task(
            "seesaw_choices",
            "multiple_choice",
            choices,
            doc_to_text="{{prompt}}",
            doc_to_choice="choices",
            doc_to_target=0,
            target_delimiter="",
            metric_list=[{"metric": "acc"}],
        ),
        "rolling": task(
            "seesaw_rolling",
            "loglikelihood_rolling",
            [{"text": text} for text in TEXTS],
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "bits_per_byte"}],
        ),
        "generate": task(
            "seesaw_generate",
            "generate_until",
            countries[:4],
            doc_to_text="The capital of {{country}} is",
            doc_to_target="",
            **generate,
        ),
        "chat": task(
            "seesaw_chat",
            "generate_until",
            countries[:4],
            doc_to_text="Which language do people speak in {{country}}?",
            doc_to_target="",
            **generate,
        ),
    }


def evaluate(kind: str, model: str, arguments: dict[str, Any], batch_size: int = 1) -> list[Any]:
    """What the harness was answered, by item."""
    import lm_eval

    with redirect_stdout(sys.stderr):  # the harness's progress; the table is on stdout
        results = lm_eval.simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=[tasks()[kind]],
            apply_chat_template=kind == "chat",
            log_samples=True,
            bootstrap_iters=0,
            batch_size=batch_size,
        )
    [samples] = results["samples"].values()
    return [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]


@cache
def expected(kind: str, folder: Path) -> list[Any]:
    """By lm-eval's own backend."""
    return evaluate(kind, "hf", {"pretrained": str(folder), "dtype": "float32", "device": "cpu"})


def served(kind: str, target: Target, batch_size: int = 1, **more: Any) -> list[Any]:
    path = "chat/completions" if kind == "chat" else "completions"
    given = {"model": target.model, "base_url": f"{target.base_url}/{path}", "max_retries": 1, "num_concurrent": 4}
    return evaluate(kind, f"local-{path.replace('/', '-')}", given | more, batch_size)


def same_scores(got: list[Any], wanted: list[Any]) -> None:
    """An item has a list, of a list of one for each request: a log-likelihood, or that and whether it is greedy."""
    same(len(got), len(wanted))
    for item, wanted_item in zip(got, wanted, strict=True):
        for [one], [other] in zip(item, wanted_item, strict=True):
            logprob, greedy = one if isinstance(one, tuple) else (one, None)
            wanted_logprob, wanted_greedy = other if isinstance(other, tuple) else (other, None)
            assert abs(logprob - wanted_logprob) <= LOGLIKELIHOOD_TOLERANCE and greedy is wanted_greedy, (one, other)


@check("lm_eval", "local-completions: multiple choice as transformers; in batches; as texts")
def choices(target: Target) -> None:
    wanted = expected("choices", target.folder)
    assert wanted[-1][0][0][1], "the greedy choice must have characters of several tokens"
    for batch_size, as_tokens in ((1, True), (4, True), (1, False)):
        more = {"tokenizer": str(target.folder), "tokenized_requests": as_tokens}
        same_scores(served("choices", target, batch_size, **more), wanted)


@check("lm_eval", "local-completions: rolling log-likelihood as transformers")
def rolling(target: Target) -> None:
    same_scores(served("rolling", target, tokenizer=str(target.folder)), expected("rolling", target.folder))


@check("lm_eval", "local-completions: generations as transformers")
def generate(target: Target) -> None:
    same(served("generate", target, tokenizer=str(target.folder)), expected("generate", target.folder))


@check("lm_eval", "local-chat-completions: generations as transformers")
def chat(target: Target) -> None:
    same(served("chat", target, eos_string="<|im_end|>"), expected("chat", target.folder))

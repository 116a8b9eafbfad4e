"""Outputs have the form that was asked for, in any layout, beside others, with swaps and preemptions in between."""

from __future__ import annotations

import json
import re
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
import pytest

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.sampling.structured import Reasoning, StructuredOutputs
from seesaw.engine.supervision import end_children
from seesaw.engine.values.errors import RequestError
from seesaw.engine.wire.messages import Add, FinishReason
from tests.engine.drive import Engine, random_prompts, running
from tests.engine.test_parity import config_of
from tests.engine.test_processing import generate
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes

VOCAB = 211  # of bytes: ASCII and more
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"enum": [1, 22, 333]}},
        "required": ["name", "n"],
        "additionalProperties": False,
    }
)
FORMS = [
    StructuredOutputs("json_schema", SCHEMA),
    StructuredOutputs("regex", "[ab]{3,6}-[0-9]+x"),
    StructuredOutputs("choice", choices=("yes", "no", "perhaps")),
]
PROMPTS = random_prompts(seed=9, count=6, longest=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vocab=VOCAB)


def has_form(text: str, form: StructuredOutputs) -> bool:
    match form.kind:
        case "json_schema":
            value = json.loads(text)
            return set(value) == {"name", "n"} and len(value["name"]) <= 5 and value["n"] in (1, 22, 333)
        case "regex":
            return re.fullmatch(form.text, text) is not None
    return text in form.choices


def ask(form: StructuredOutputs, **more: object) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 40, "temperature": 1.0, "structured_outputs": form, **more})  # type: ignore[arg-type]


def texts(engine: Engine, requests: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, list[str | None]]:
    """Of each continuation; None if it was cut off."""
    found: dict[str, list[str | None]] = {}
    for name, outputs in generate(engine, requests).items():
        found[name] = []
        for of_one in outputs:
            tokens = bytes(token for output in of_one for token in output.tokens)
            stopped = of_one[-1].finish_reason is FinishReason.STOP
            found[name].append(tokens.decode() if stopped else None)
    return found


@pytest.mark.parametrize("plan", ["P2->T2", "D2P2"])
def test_all_forms_beside_one_another(plan: str, folder: Path) -> None:
    requests = {
        f"{kind}{i}": (prompt, ask(form, n=2, seed=i, **more))
        for i, prompt in enumerate(PROMPTS)
        for kind, (form, more) in enumerate(
            [
                *((form, {}) for form in FORMS),
                (FORMS[1], {"temperature": 0.0, "frequency_penalty": 1.0, "logprobs": 1}),
                (FORMS[2], {"allowed_token_ids": (0,)}),  # nothing is left: then the form wins
                (FORMS[0], {"top_p": 0.9, "top_k": 5, "min_tokens": 3}),
            ]
        )
    }
    plain = {f"plain{i}": (prompt, SamplingParams(max_tokens=12, temperature=0.0)) for i, prompt in enumerate(PROMPTS)}
    with running(config_of(folder, plan, tokenizer="bytes")) as engine:
        found = texts(engine, requests | plain)
        alone = texts(engine, plain)
        assert engine.core.stats().device_blocks_used == 0
    kinds = [*FORMS, FORMS[1], FORMS[2], FORMS[0]]
    whole = 0
    for name, of_request in found.items():
        if not name.startswith("plain"):
            for text in of_request:
                whole += text is not None
                assert text is None or has_form(text, kinds[int(name[0])]), (name, text)
    assert whole > len(requests), "most are whole"
    assert {name: found[name] for name in plain} == alone


def test_an_end_token_comes_where_the_form_may_end(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, vocab=VOCAB, eos_token_id=7)
    form = StructuredOutputs("regex", "a+")
    with running(config_of(folder, "T2", tokenizer="bytes")) as engine:
        outputs = generate(engine, {f"r{i}": (PROMPTS[i], ask(form, seed=i)) for i in range(6)})
    for of_request in outputs.values():
        tokens = [token for output in of_request[0] for token in output.tokens]
        assert set(tokens[:-1]) == {ord("a")} and tokens[-1] in (7, ord("a"))


@pytest.mark.parametrize(("stop", "text"), [(ord("a"), "a"), (ord("b"), "ab")])
def test_a_text_that_needs_its_stop_token_is_cut_off_there(stop: int, text: str, folder: Path) -> None:
    """Found by hand: the mask was empty, and the engine ended."""
    params = ask(StructuredOutputs("regex", "abc"), stop_token_ids=(stop,))
    with running(config_of(folder, "T1", tokenizer="bytes")) as engine:
        found = texts(engine, {"cut": (PROMPTS[0], params), "whole": (PROMPTS[1], ask(FORMS[2]))})
    assert found["cut"] == [text]
    assert found["whole"][0] in FORMS[2].choices


def test_an_end_token_ends_a_form_even_if_it_were_to_be_ignored(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, vocab=VOCAB, eos_token_id=7)
    params = ask(StructuredOutputs("regex", "a+"), ignore_eos=True, logit_bias={7: 50.0})
    with running(config_of(folder, "T1", tokenizer="bytes")) as engine:
        [[output, end]] = generate(engine, {"r": (PROMPTS[0], params)})["r"]
    assert (output.tokens, end.tokens, end.stop_token) == ([ord("a")], [7], 7)


def test_what_cannot_be_enforced_is_refused_and_nobody_else_suffers(folder: Path) -> None:
    broken = StructuredOutputs("regex", "a{2")
    with running(config_of(folder, "T1", tokenizer="bytes")) as engine:
        engine.core.add(Add("bad", PROMPTS[0], ask(broken)))
        found = texts(engine, {"good": (PROMPTS[1], ask(FORMS[2]))})
        assert found["good"][0] in FORMS[2].choices
        [(name, error)] = engine.refused
        assert name == "bad" and isinstance(error, RequestError) and "cannot be enforced" in str(error)


def test_aborted_ones_hold_up_nobody(folder: Path) -> None:
    """Their steps in flight still wait for masks."""
    endless = StructuredOutputs("regex", "a{1000}")
    with running(config_of(folder, "P2->T2", tokenizer="bytes")) as engine:
        requests = {f"r{i}": (PROMPTS[i], ask(endless, max_tokens=30)) for i in range(6)}
        tokens = engine.generate(requests, abort_after={f"r{i}": 1 + i for i in range(4)})
        assert [len(tokens[f"r{i}"][0]) for i in (4, 5)] == [30, 30]
        assert engine.core.stats().device_blocks_used == 0


def test_an_engine_is_closed_while_a_step_waits_for_its_masks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of steps in flight never come, and the ranks end by themselves."""
    codes: list[int | None] = []

    def end_and_tell(children: list[BaseProcess], grace_s: float) -> None:
        end_children(children, grace_s)
        codes.extend(child.exitcode for child in children)

    monkeypatch.setattr("seesaw.engine.executor.ranks.end_children", end_and_tell)
    endless = StructuredOutputs("regex", "a{900}")
    with running(config_of(folder, "T2", tokenizer="bytes")) as engine:
        for i in range(3):
            engine.core.add(Add(f"r{i}", PROMPTS[i], ask(endless, max_tokens=30)))
        tokens = 0
        while tokens < 4:
            tokens += len(list(engine.core.turn()))
            engine.wait()
    assert codes == [0, 0]


@pytest.mark.parametrize("plan", ["T2", "P2->T2"])
def test_a_form_begins_behind_what_a_model_thinks(plan: str, folder: Path) -> None:
    """A bias has it come to an end now and then."""
    end, form = (ord("<"), ord(">")), FORMS[1]
    params = ask(form, reasoning=Reasoning(end), logit_bias=dict.fromkeys(end, 6.0), max_tokens=200)
    requests = {str(i): (prompt, msgspec.structs.replace(params, seed=i, n=2)) for i, prompt in enumerate(PROMPTS)}
    with running(config_of(folder, plan, tokenizer="bytes")) as engine:
        found = generate(engine, requests)
    thoughts = set()
    for outputs in (each for of_request in found.values() for each in of_request):
        tokens = bytes(token for output in outputs for token in output.tokens)
        thought, closed, text = tokens.partition(bytes(end))
        thoughts.add(thought)
        if closed and outputs[-1].finish_reason is FinishReason.STOP:
            assert has_form(text.decode().rstrip("\0"), form)
    assert len(thoughts) > len(PROMPTS)

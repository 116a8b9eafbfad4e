"""The offline door, on the simulated host: order, parameters, texts and what ends them, errors."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seesaw import LLM, SamplingParams
from seesaw.engine.executor.simulated import SimulatedExecutor
from seesaw.engine.text.prompt import Prompt
from seesaw.engine.values.errors import ConfigError, EngineDeadError, RequestError
from seesaw.engine.wire.messages import Add, CachedPrompt, Outputs
from tests.engine.text.test_tokenizer import write_tokenizer
from tests.patience import PATIENCE_S
from tests.terminal import Terminal


def test_results_come_in_the_order_of_the_prompts() -> None:
    with LLM("", prefill="P2", decode="T2", executor="simulated", tokenizer="bytes") as llm:
        params = [SamplingParams(max_tokens=n, n=1 + n % 2, ignore_eos=True) for n in range(1, 40)]
        prompts = ["p" * n if n % 3 else [1] * n for n in range(1, 40)]
        results = llm.generate(prompts, params)
        assert [len(r.prompt_token_ids) for r in results] == list(range(1, 40))
        assert [[len(c.token_ids) for c in r.outputs] for r in results] == [[p.max_tokens] * p.n for p in params]
        assert all(c.finish_reason == "length" for r in results for c in r.outputs)
        assert llm.generate([], None) == llm.chat([]) == []
        assert llm.info.prefill == "P2" and llm.stats().device_blocks_used == 0


def test_without_a_limit_a_prompt_has_all_the_context_that_is_left() -> None:
    with LLM("", executor="simulated", skip_tokenizer=True, max_model_len=64) as llm:
        results = llm.generate([[1] * 4, [1] * 63], SamplingParams(max_tokens=None, min_tokens=20, ignore_eos=True))
        assert [len(result.outputs[0].token_ids) for result in results] == [60, 1]


def test_an_invalid_prompt_is_refused_before_anything_runs() -> None:
    with LLM("", executor="simulated", skip_tokenizer=True) as llm:
        with pytest.raises(RequestError, match="empty"):
            llm.generate([[1, 2], []], SamplingParams(max_tokens=2))
        assert llm.stats().generation_tokens == 0
        with pytest.raises(ValueError, match="token ids"):
            llm.generate(["text"])
        with pytest.raises(ValueError, match="sampling parameters"):
            llm.generate([[1], [2]], [SamplingParams()])
        with pytest.raises(ValueError, match="stop strings"):
            llm.generate([[1]], SamplingParams(stop="a"))
        with pytest.raises(RequestError, match="Token ids"):
            llm.generate([[-1]])
        fractional: Any = 2.5
        with pytest.raises(RequestError, match="max_tokens"):
            llm.generate([[1], [2]], [SamplingParams(), SamplingParams(max_tokens=fractional)])
        assert len(llm.generate([5, 6], SamplingParams(max_tokens=4))[0].outputs[0].token_ids) == 4


@pytest.fixture(scope="module")
def alphabet() -> Iterator[LLM]:
    """Its tokens are how many came before: after a prompt of 64 it says `@ABC...`."""
    with LLM("", executor="simulated", tokenizer="bytes") as llm:
        executor: Any = llm._executor
        run_forward = executor.run_forward
        executor.run_forward = lambda forward: [(token - 7) // 31 for token in run_forward(forward)]
        yield llm


PROMPT = "p" * 64
TOKENS = list(PROMPT.encode())


def test_prompts_of_all_kinds_are_the_same_prompt(alphabet: LLM) -> None:
    prompts: list[Prompt] = [PROMPT, TOKENS, {"prompt": PROMPT}, {"prompt_token_ids": TOKENS}]
    results = alphabet.generate(prompts)
    assert [result.prompt for result in results] == [PROMPT, None, PROMPT, None]
    for result in results + [alphabet.generate(prompt)[0] for prompt in prompts]:
        assert (result.prompt_token_ids, result.finished) == (TOKENS, True)
        [output] = result.outputs
        assert (output.text, output.finish_reason, output.stop_reason) == ("@ABCDEFGHIJKLMNO", "length", None)
        assert output.token_ids == list(output.text.encode())


@pytest.mark.parametrize(
    ("sampling", "text", "num_tokens", "stop_reason"),
    [
        ({"stop": "DE"}, "@ABC", 6, "DE"),
        ({"stop": ["DX", "FG", "F"]}, "@ABCDE", 7, "F"),
        ({"stop": ["F"], "include_stop_str_in_output": True}, "@ABCDEF", 7, "F"),
        ({"stop": ["NO"]}, "@ABCDEFGHIJKLM", 16, "NO"),  # its last token
        ({"stop_token_ids": [ord("C")]}, "@AB", 4, ord("C")),
    ],
)
def test_what_ends_a_text(
    alphabet: LLM, sampling: dict[str, Any], text: str, num_tokens: int, stop_reason: str | int
) -> None:
    [result] = alphabet.generate(PROMPT, SamplingParams(**sampling, n=2))
    assert [output.index for output in result.outputs] == [0, 1]
    for output in result.outputs:
        assert (output.text, output.finish_reason, output.stop_reason) == (text, "stop", stop_reason)
        assert len(output.token_ids) == len(output.token_times_s) == num_tokens


def test_a_stop_string_ends_its_sequence_in_the_engine_at_once(alphabet: LLM) -> None:
    before = alphabet.stats().generation_tokens
    params = [SamplingParams(max_tokens=1000, stop="C"), SamplingParams(max_tokens=20)]
    stopped, whole = alphabet.generate([PROMPT, PROMPT], params)
    assert (len(stopped.outputs[0].token_ids), len(whole.outputs[0].token_ids)) == (4, 20)
    stats = alphabet.stats()
    assert stats.generation_tokens - before < 30
    assert (stats.requests_running, stats.device_blocks_used) == (0, 0)


TEMPLATE = (
    "{{ greeting }}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
USER = {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]}


def test_one_conversation_or_many_become_prompts(alphabet: LLM, tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(TEMPLATE)
    begun = {"role": "assistant", "content": "I am"}
    [one] = alphabet.chat([USER], chat_template=TEMPLATE)
    assert (one.prompt, one.prompt_token_ids) == ("u:hi\nthere;a:", list(b"u:hi\nthere;a:"))
    tools = [{"type": "function", "function": {"name": "f"}}]
    many = alphabet.chat(
        [[USER, begun], [begun]], chat_template=str(path), tools=tools, chat_template_kwargs={"greeting": "G"}
    )
    assert [result.prompt for result in many] == ["Gfu:hi\nthere;a:I am;a:", "Gfa:I am;a:"]
    [continued] = alphabet.chat(
        [begun], chat_template=TEMPLATE, add_generation_prompt=False, continue_final_message=True
    )
    assert continued.prompt == "a:I am"


def test_a_conversation_that_is_none(alphabet: LLM) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        alphabet.chat([USER])
    with pytest.raises(RequestError, match="cannot both be true"):
        alphabet.chat([USER], chat_template=TEMPLATE, continue_final_message=True)
    with pytest.raises(RequestError, match=r"messages\.0\.content"):
        alphabet.chat([{"role": "user", "content": 5}], chat_template=TEMPLATE)
    variables: Any = 5
    with pytest.raises(RequestError, match="chat_template_kwargs must be a dict"):
        alphabet.chat([USER], chat_template=TEMPLATE, chat_template_kwargs=variables)
    with pytest.raises(ConfigError, match="cannot read the chat template"):
        alphabet.chat([USER], chat_template="/no/such/file")


def test_a_terminal_has_a_bar_of_the_prompts_that_are_done(alphabet: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(prompts: Sequence[Prompt], stderr: io.StringIO, **options: bool) -> str:
        monkeypatch.setattr(sys, "stderr", stderr)
        with suppress(RequestError):
            alphabet.generate(prompts, SamplingParams(max_tokens=2), **options)
        return stderr.getvalue()

    last = shown([PROMPT, PROMPT], Terminal()).split("\r")[-1]
    assert " 2/2 " in last and re.search(r"\d prompt and \d+ output tokens/s", last)
    assert shown([PROMPT], Terminal(), use_tqdm=False) == shown([PROMPT], io.StringIO()) == ""
    assert shown([PROMPT, []], Terminal()) == shown([], Terminal()) == ""  # nothing runs


def test_the_checkpoints_tokenizer_is_there_for_the_caller_and_apart(tmp_path: Path) -> None:
    with LLM("", executor="simulated", tokenizer=write_tokenizer(tmp_path)) as llm:
        tokenizer = llm.get_tokenizer()
        assert tokenizer is llm.get_tokenizer()
        assert tokenizer("abc", truncation=True, max_length=2)["input_ids"] == [0, 1]
        assert llm.generate("abc")[0].prompt_token_ids == [0, 1, 2]
    with LLM("", executor="simulated", skip_tokenizer=True) as llm, pytest.raises(ValueError, match="skip_tokenizer"):
        llm.get_tokenizer()
    with LLM("", executor="simulated") as llm, pytest.raises(ConfigError, match="none of transformers'"):
        llm.get_tokenizer()


def test_sampling_that_is_not_given_is_the_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.5, "max_new_tokens": 3}))
    with LLM("", executor="simulated", tokenizer="bytes", generation_config=str(path)) as llm:
        assert llm.get_default_sampling_params() == SamplingParams(temperature=0.5, max_tokens=3)
        assert len(llm.generate("x")[0].outputs[0].token_ids) == 3
        assert len(llm.generate("x", SamplingParams(max_tokens=5))[0].outputs[0].token_ids) == 5


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


def test_calls_of_several_threads_run_together(alphabet: LLM) -> None:
    """Each has its whole texts, and none waits for the end of another's."""
    sampling = SamplingParams(max_tokens=15, n=2)
    others_ended = threading.Event()

    def say(length: int) -> list[list[str]]:
        prompts = ["p" * n for n in range(length, length + 40)]
        return [[output.text for output in result.outputs] for result in alphabet.generate(prompts, sampling)]

    def say_again_and_again(length: int) -> list[list[str]]:
        said = say(length)
        while not others_ended.is_set():
            assert say(length) == said
        return said

    expected = [say(length) for length in range(40, 200, 40)]
    with ThreadPoolExecutor(4) as threads:
        busy = threads.submit(say_again_and_again, 40)
        others = [threads.submit(say, length) for length in range(80, 200, 40)]
        said = [other.result(PATIENCE_S) for other in others]
        others_ended.set()
        assert [busy.result(PATIENCE_S), *said] == expected
    assert alphabet.stats().device_blocks_used == 0


def test_one_call_goes_on_when_another_is_invalid(alphabet: LLM) -> None:
    core: Any = alphabet._core
    turn, went_wrong = core.turn, threading.Event()

    def turn_beside_others() -> object:
        if not went_wrong.is_set():
            went_wrong.set()
            with pytest.raises(RequestError):
                alphabet.generate([TOKENS, []])
        return turn()

    core.turn = turn_beside_others
    try:
        assert alphabet.generate(PROMPT)[0].outputs[0].text == "@ABCDEFGHIJKLMNO"
    finally:
        core.turn = turn


def test_a_call_that_another_thread_closes_ends() -> None:
    llm = LLM("", executor="simulated", skip_tokenizer=True)
    core: Any = llm._core
    turn = core.turn

    def turn_until_closed() -> object:
        closing.start()
        core.turn = turn
        return turn()

    closing = threading.Thread(target=llm.close)
    core.turn = turn_until_closed
    with pytest.raises(EngineDeadError, match="closed: make a new one"):
        while True:
            llm.generate([1, 2, 3], SamplingParams(max_tokens=1000, ignore_eos=True))
    closing.join(PATIENCE_S)
    llm.close()


def test_without_close_it_ends_with_its_last_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(SimulatedExecutor, "close", lambda executor: closed.append(executor))
    for in_a_fork in (True, False):
        llm = LLM("", executor="simulated", skip_tokenizer=True)
        assert len(llm.generate([1, 2])[0].outputs[0].token_ids) == 16
        with monkeypatch.context() as process:
            if in_a_fork:
                process.setattr(os, "getpid", lambda: 0)
            del llm
        assert len(closed) == (0 if in_a_fork else 1)


def test_a_fork_is_told_that_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM("", executor="simulated", skip_tokenizer=True) as llm:
        pid = os.getpid()
        with monkeypatch.context() as process:
            process.setattr(os, "getpid", lambda: pid + 1)
            for use in (lambda: llm.generate([[1]]), llm.stats, llm.reset_prefix_cache):
                with pytest.raises(EngineDeadError, match="make one in the process"):
                    use()
            llm.close()
        assert llm.generate([[1]], SamplingParams(max_tokens=1))[0].outputs[0].token_ids


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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tensor_parallel_size": 4}, 'no option tensor_parallel_size: write it as a layout, as in `prefill="T4"`'),
        ({"pipeline_parallel_size": 2}, '`prefill="P2"`'),
        ({"gpu_memory_utilization": 0.9}, 'as in `kv_cache_memory_bytes="20GiB"`'),
        ({"num_gpu_blocks_override": 9}, "no option num_gpu_blocks_override: use num_device_blocks"),
        ({"enforce_eager": True}, "no option enforce_eager: there is nothing like it yet, so leave it out"),
        ({"max_num_sequences": 5}, "no option max_num_sequences: did you mean max_num_seqs?"),
        ({"xyz": 5}, "there is no option xyz"),
    ],
)
def test_an_option_of_others_is_told_what_it_is_called_here(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LLM("", executor="simulated", skip_tokenizer=True, **options)
    assert str(raised.value).endswith(sentence)


def test_options_may_be_paths_or_none_and_are_checked_for_their_types() -> None:
    options: dict[str, Any] = {"executor": "simulated", "skip_tokenizer": True}
    folder = Path(__file__).parents[2] / "configs/models/llama2-7b"
    with LLM(folder, **options, tokenizer=folder, quantization=None, max_model_len=None) as llm:
        assert (llm.shape.vocab, llm.info.max_model_len) == (32000, 4096)
    for wrong in ({"model": 5}, {"prefill": 2}, {"tokenizer": 3.0}):
        with pytest.raises(ConfigError, match="must be text, not"):
            LLM(**{"model": "", **options, **wrong})


def test_sizes_may_be_written_as_flags_write_them() -> None:
    options: dict[str, Any] = {"executor": "simulated", "skip_tokenizer": True, "prefill": "P2", "decode": "T2"}
    with LLM("", **options, kv_cache_memory_bytes="2GiB", host_kv_bytes=3 << 30) as llm:
        assert (llm.config.kv_cache_memory_bytes, llm.config.host_kv_bytes) == (2 << 30, 3 << 30)
    for wrong in ("much", "", f"{'9' * 400}.5"):
        with pytest.raises(ConfigError, match="host_kv_bytes must be a size such as 4GiB, not"):
            LLM("", **options, host_kv_bytes=wrong)


@pytest.mark.parametrize("salt", ["", 5, ["a"]])
def test_a_salt_that_is_none(alphabet: LLM, salt: Any) -> None:
    with pytest.raises(ValueError, match="cache_salt must be a text that is not empty"):
        alphabet.generate({"prompt": PROMPT, "cache_salt": salt})


def test_salts_go_to_the_engine_and_hits_come_from_it(alphabet: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    core = alphabet._core
    added: list[Add] = []
    resets: list[int] = []
    add, turn = core.add, core.turn

    def adding(request: Add) -> None:
        added.append(request)
        add(request)

    def finding() -> Outputs:
        """Of every prompt with a salt 5 tokens."""
        outputs, salted = turn(), [request.id for request in added if request.cache_salt]
        return msgspec.structs.replace(outputs, cached=[CachedPrompt(id, 5) for id in (*salted, "gone")])

    monkeypatch.setattr(core, "add", adding)
    monkeypatch.setattr(core, "turn", finding)
    monkeypatch.setattr(core._scheduler, "reset_prefix_cache", lambda: resets.append(len(added)))
    unsalted: Any = {"prompt": PROMPT, "cache_salt": None}
    salted: list[Prompt] = [
        {"prompt": PROMPT, "cache_salt": "a"},
        {"prompt_token_ids": TOKENS, "cache_salt": "b"},
    ]
    results = alphabet.generate([PROMPT, *salted, unsalted], SamplingParams(n=2))
    assert [request.cache_salt for request in added] == ["", "a", "b", ""]
    assert [result.num_cached_tokens for result in results] == [0, 5, 5, 0]
    alphabet.reset_prefix_cache()
    assert resets == [4]

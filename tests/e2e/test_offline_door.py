"""Both doors to one engine: `LLM` and the HTTP server make the same prompts, tokens and texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from seesaw import LLM, SamplingParams
from tests.e2e.served import serving
from tests.patience import PATIENCE_S
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes

TEMPLATE = (
    "{{ greeting }}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.a }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "A"}'}}
CHATS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([{"role": "user", "content": "hi"}], {}),
    (
        [{"role": "user", "content": [{"type": "text", "text": "hé"}, {"type": "text", "text": "llo"}]}],
        {"tools": [TOOL]},
    ),
    (
        [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "1", "tool_call_id": "c"}],
        {"chat_template_kwargs": {"greeting": "G"}},
    ),
    ([{"role": "assistant", "content": "I am"}], {"add_generation_prompt": False, "continue_final_message": True}),
]
SAMPLING = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return json.load(response)


def test_both_doors_say_the_same(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", layers=2, vocab=256)
    with LLM(str(folder), tokenizer="bytes", max_model_len=256) as llm:
        params = SamplingParams(**SAMPLING)
        chats = [llm.chat(messages, params, chat_template=TEMPLATE, **options)[0] for messages, options in CHATS]
        # A stop string that comes up: two characters from the middle of what is said.
        stop = chats[0].outputs[0].text[3:5]
        stopping = SAMPLING | {"stop": [stop], "include_stop_str_in_output": True}
        [stopped] = llm.generate(chats[0].prompt or "", SamplingParams(**stopping))
        telling = SAMPLING | {"logprobs": 1, "prompt_logprobs": 1}
        [told] = llm.generate(chats[0].prompt or "", SamplingParams(**telling))
        unlimited = SAMPLING | {"max_tokens": None}
        [longest] = llm.chat(CHATS[0][0], SamplingParams(**unlimited), chat_template=TEMPLATE)
    assert longest.outputs[0].text.startswith(chats[0].outputs[0].text)
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", stop)
    with serving(folder, tmp_path, "--tokenizer=bytes", f"--chat-template={TEMPLATE}", "--max-model-len=256") as served:
        for result, (messages, options) in zip(chats, CHATS, strict=True):
            body = {"messages": messages, **SAMPLING, **options, "tool_choice": "none"}
            answer = post(f"{served.url}/v1/chat/completions", body)
            [choice] = answer["choices"]
            assert choice["message"]["content"] == result.outputs[0].text
            assert choice["finish_reason"] == result.outputs[0].finish_reason == "length"
            assert post(f"{served.url}/tokenize", body)["tokens"] == result.prompt_token_ids
        body = {"messages": CHATS[0][0], **unlimited}
        assert post(f"{served.url}/v1/chat/completions", body)["usage"]["completion_tokens"] == len(
            longest.outputs[0].token_ids
        )
        [of_tokens] = post(f"{served.url}/v1/completions", {"prompt": chats[0].prompt, **telling})["choices"]
        answer = post(f"{served.url}/v1/completions", {"prompt": chats[0].prompt, **stopping})
        served.is_drained()
    assert told.prompt_logprobs[0] is of_tokens["prompt_logprobs"][0] is None
    for token, here, there in zip(
        told.prompt_token_ids, told.prompt_logprobs, of_tokens["prompt_logprobs"], strict=True
    ):
        assert here is there or (here and here.logprob == pytest.approx(there[str(token)]["logprob"]))
    assert told.outputs[0].cumulative_logprob == pytest.approx(sum(of_tokens["logprobs"]["token_logprobs"]))
    assert chats[0].outputs[0].cumulative_logprob is None and not chats[0].prompt_logprobs
    [choice] = answer["choices"]
    assert (choice["text"], choice["stop_reason"]) == (stopped.outputs[0].text, stop)
    assert answer["usage"]["completion_tokens"] == len(stopped.outputs[0].token_ids)


def test_beside_a_folder_of_its_name_the_package_is_found(tmp_path: Path) -> None:
    (tmp_path / "seesaw").mkdir()  # a clone has no `__init__.py`
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", "from seesaw import LLM"], cwd=tmp_path, env=environment, check=True)


SCRIPT = """
import psutil
from seesaw import LLM, SamplingParams

def say():
    llm = LLM({model!r}, tokenizer="bytes", max_model_len=256, prefill="T2")
    assert len(llm.generate(["hi"], SamplingParams(max_tokens=4, ignore_eos=True))[0].outputs[0].token_ids) == 4
    return llm

llm = say()
children = psutil.Process().children(recursive=True)
assert len(children) == 4, children  # multiprocessing's own two, and the workers
del llm
assert len(psutil.Process().children(recursive=True)) == 2
kept = say()
"""


def test_a_script_without_guard_or_close_from_standard_input_leaves_nothing(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", layers=2, vocab=256)
    run_folders = Path(tempfile.mkdtemp(prefix="t-"))  # not below `tmp_path`: socket paths must be short
    ended = subprocess.run(
        [sys.executable, "-"],
        input=SCRIPT.format(model=str(folder)),
        env={**os.environ, "TMPDIR": str(run_folders)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stderr
    run_folders.rmdir()  # nothing is in there


BESIDE = """
import multiprocessing
import os

from seesaw import LLM, SamplingParams

def say(forked=False):
    with LLM({model!r}, tokenizer="bytes", max_model_len=256) as llm:
        assert len(llm.generate(["hi"], SamplingParams(max_tokens=4, ignore_eos=True))[0].outputs[0].token_ids) == 4
        if not forked:
            others()

def others():
    with multiprocessing.get_context("forkserver").Pool(2) as pool:  # its end is a SIGTERM to each
        assert pool.map(abs, [-1, 2]) == [1, 2]

if __name__ == "__main__":
    others()
    say()
    pid = os.fork()
    if not pid:
        say(forked=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_program_has_processes_of_its_own_beside_it(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", layers=2, vocab=256)
    script = tmp_path / "script.py"
    script.write_text(BESIDE.format(model=str(folder)))
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stderr

"""What the engine tells of tokens, in the shapes of both routes: whole, streamed, echoed, cut at a stop string."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from seesaw.engine.wire.logprobs import TokenLogprobs
from seesaw.engine.wire.messages import Add, FinishReason, Output
from tests.server.conftest import MakeSite, Site, chat_config
from tests.server.openai.streams import events, named_events

pytestmark = pytest.mark.anyio


@pytest.fixture
async def chatty(make_site: MakeSite) -> Site:
    return await make_site(chat_config())


USER = {"role": "user", "content": "hi"}


def one(token: int, logprob: float = -0.5) -> TokenLogprobs:
    """Of a token that is the second likeliest, behind `z`."""
    return TokenLogprobs(logprob, 2, [ord("z"), token], [-0.25, logprob])


def say(text: bytes, step: int = 1) -> Callable[[Add], list[Output]]:
    """Outputs of `step` bytes, with what was asked for."""

    def script(add: Add) -> list[Output]:
        sampling = add.sampling
        of_prompt = [] if sampling.prompt_logprobs is None else [one(token, -1.0) for token in add.prompt[1:]]
        return [
            Output(
                add.id,
                index,
                list(text[at : at + step]),
                FinishReason.LENGTH if at + step >= len(text) else None,
                None,
                [] if sampling.logprobs is None else [one(token) for token in text[at : at + step]],
                of_prompt if at == 0 else [],
            )
            for index in range(sampling.n)
            for at in range(0, len(text), step)
        ]

    return script


@pytest.mark.parametrize(("top", "tops"), [(0, ("{0}",)), (1, ("{0}", "z")), (2, ("{0}", "z"))])
async def test_a_completion_tells_of_its_tokens(site: Site, top: int, tops: tuple[str, ...]) -> None:
    site.engine.script = say(b"abc")
    [choice] = (await site.complete(prompt="pq", logprobs=top)).json()["choices"]
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{"a": -0.5, "z": -0.25}, {"b": -0.5, "z": -0.25}, {"c": -0.5, "z": -0.25}]
        if top
        else [{"a": -0.5}, {"b": -0.5}, {"c": -0.5}],
        "text_offset": [0, 1, 2],
    }


@pytest.mark.parametrize(("taken", "own"), [(0xE4, -0.25), (0xB8, -1.5)])
async def test_of_tokens_with_the_same_name_the_likeliest_is_told(site: Site, taken: int, own: float) -> None:
    """Halves of characters: lm-eval calls a token greedy if none has a better value."""
    told = TokenLogprobs(own, 1, [0xE4, 0xB8], [-0.25, -1.5])
    site.engine.script = lambda add: [Output(add.id, 0, [taken], FinishReason.LENGTH, None, [told])]
    [choice] = (await site.complete(prompt="p", logprobs=2)).json()["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"\N{REPLACEMENT CHARACTER}": -0.25}]
    assert choice["logprobs"]["token_logprobs"] == [own]


async def test_an_impossible_token_has_a_finite_logprob(site: Site) -> None:
    site.engine.script = lambda add: [
        Output(add.id, 0, [97], FinishReason.LENGTH, None, [TokenLogprobs(-float("inf"), 9, [], [])])
    ]
    [choice] = (await site.complete(prompt="p", logprobs=0)).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-9999.0]


@pytest.mark.parametrize("prompt", ["pqr", list(b"pqr")])
async def test_evaluations_have_their_prompt_alone_with_its_logprobs(site: Site, prompt: str | list[int]) -> None:
    """As lm-eval asks for loglikelihoods. The one token that is sampled does not show."""
    site.engine.script = say(b"x")
    answer = (await site.complete(prompt=prompt, echo=True, max_tokens=0, logprobs=1)).json()
    [add] = [message for message in site.engine.received if isinstance(message, Add)]
    assert (add.sampling.max_tokens, add.sampling.logprobs, add.sampling.prompt_logprobs) == (1, 1, 1)
    [choice] = answer["choices"]
    assert choice["text"] == "pqr"
    assert choice["logprobs"] == {
        "tokens": ["p", "q", "r"],
        "token_logprobs": [None, -1.0, -1.0],
        "top_logprobs": [None, {"q": -1.0, "z": -0.25}, {"r": -1.0, "z": -0.25}],
        "text_offset": [0, 1, 2],
    }
    assert answer["usage"]["completion_tokens"] == 0


async def test_an_echo_comes_before_the_completion(site: Site) -> None:
    site.engine.script = say(b"xy")
    [choice] = (await site.complete(prompt="pq", echo=True, logprobs=0)).json()["choices"]
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("pqxy", ["p", "q", "x", "y"])
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    whole = (await site.complete(prompt=["pq", "r"], n=2, echo=True)).json()["choices"]
    assert [choice["text"] for choice in whole] == ["pqxy", "pqxy", "rxy", "rxy"]
    assert all(choice["logprobs"] is None for choice in whole)


async def test_a_streamed_completion_tells_the_same(site: Site) -> None:
    site.engine.script = say(b"wxyz", step=2)
    response = await site.complete(prompt="pq", echo=True, logprobs=1, stream=True, return_token_ids=True)
    choices = [choice for chunk in events(response) for choice in chunk["choices"]]
    parts = [choice["logprobs"] for choice in choices]
    whole = {name: [item for part in parts for item in part[name]] for name in parts[0]}
    assert whole["tokens"] == ["p", "q", "w", "x", "y", "z"]
    assert whole["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert whole["token_logprobs"] == [None, -1.0, -0.5, -0.5, -0.5, -0.5]
    assert "".join(choice["text"] for choice in choices) == "pqwxyz"
    assert choices[0]["prompt_token_ids"] == list(b"pq")
    assert not any("prompt_token_ids" in choice for choice in choices[1:])
    assert [token for choice in choices for token in choice["token_ids"]] == list(b"wxyz")


async def test_behind_a_stop_string_nothing_is_told(site: Site) -> None:
    site.engine.script = say(b"abcd", step=4)
    [choice] = (await site.complete(prompt="p", logprobs=0, stop="bc")).json()["choices"]
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("a", ["a", "b", "c"])


async def test_a_prompt_alone_may_be_told_of(site: Site) -> None:
    site.engine.script = say(b"x")
    [choice] = (await site.complete(prompt="pq", prompt_logprobs=1)).json()["choices"]
    assert choice["prompt_logprobs"] == [
        None,
        {
            "113": {"logprob": -1.0, "rank": 2, "decoded_token": "q"},
            "122": {"logprob": -0.25, "rank": 1, "decoded_token": "z"},
        },
    ]
    assert choice["logprobs"] is None


async def test_tokens_may_be_named_by_their_ids(site: Site) -> None:
    site.engine.script = say(b"a")
    answer = await site.complete(prompt="p", logprobs=1, return_tokens_as_token_ids=True)
    [choice] = answer.json()["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:97"]
    assert choice["logprobs"]["top_logprobs"] == [{"token_id:97": -0.5, "token_id:122": -0.25}]


async def test_prompts_are_cut_to_their_last_tokens(site: Site) -> None:
    site.engine.script = say(b"x")
    for prompt, keep, kept in (("abcdef", 2, b"ef"), (list(b"abc"), 2, b"bc"), ("a" * 100, -1, b"a" * 63)):
        answer = await site.complete(prompt=prompt, truncate_prompt_tokens=keep, max_tokens=1)
        assert answer.status_code == 200, answer.text
        assert bytes([m for m in site.engine.received if isinstance(m, Add)][-1].prompt) == kept


def content(text: str, top: int) -> list[dict[str, Any]]:
    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    return [entry(char, -0.5) | {"top_logprobs": [entry("z", -0.25), entry(char, -0.5)][:top]} for char in text]


@pytest.mark.parametrize("top", [0, 1, 2])
async def test_a_chat_tells_of_its_tokens(chatty: Site, top: int) -> None:
    chatty.engine.script = say(b"abc")
    body = {"logprobs": True, "top_logprobs": top, "return_token_ids": True, "n": 2}
    answer = (await chatty.chat(USER, **body)).json()
    for choice in answer["choices"]:
        assert choice["logprobs"] == {"content": content("abc", top), "refusal": None}
        assert choice["token_ids"] == list(b"abc")
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    response = await chatty.chat(USER, stream=True, **body)
    chunks = list(events(response))
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    assert not any("prompt_token_ids" in chunk for chunk in chunks[1:])
    for index in range(2):
        told = [c["logprobs"] for chunk in chunks for c in chunk["choices"] if c["index"] == index and c["logprobs"]]
        assert [entry for one in told for entry in one["content"]] == content("abc", top)


async def test_a_chat_tells_of_its_prompt(chatty: Site) -> None:
    chatty.engine.script = say(b"x")
    answer = (await chatty.chat(USER, prompt_logprobs=0)).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["prompt_logprobs"][0] is None and answer["choices"][0]["logprobs"] is None


CALL = '[TOOL_CALLS]f{"a": 1}'


@pytest.fixture
async def able(make_site: MakeSite) -> Site:
    """Thinks and calls tools."""
    return await make_site(
        chat_config(enable_auto_tool_choice=True, tool_call_parser="mistral", reasoning_parser="deepseek_r1")
    )


async def respond(site: Site, **body: object) -> httpx.Response:
    asked = {"input": "hi", "include": ["message.output_text.logprobs"]}
    response = await site.client.post("/v1/responses", json=asked | body)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize(("top", "tops"), [({}, ""), ({"top_logprobs": 1}, "z"), ({"top_logprobs": 2}, "z{0}")])
async def test_a_response_tells_of_its_text(chatty: Site, top: dict[str, int], tops: str) -> None:
    chatty.engine.script = say(b"ab")
    response = (await respond(chatty, **top)).json()
    assert response["top_logprobs"] == top.get("top_logprobs", 0)
    [part] = response["output"][0]["content"]
    values = {"z": -0.25}
    assert part["logprobs"] == [
        {
            "token": token,
            "logprob": -0.5,
            "bytes": [ord(token)],
            "top_logprobs": [
                {"token": other, "logprob": values.get(other, -0.5), "bytes": [ord(other)]}
                for other in tops.format(token)
            ],
        }
        for token in "ab"
    ]


@pytest.mark.parametrize("step", [1, 2, 3, 100])
async def test_reasoning_and_calls_of_a_response_have_no_logprobs(able: Site, step: int) -> None:
    """However many of their tokens come at once."""
    able.engine.script = say(f"t</think>bc{CALL}".encode(), step)
    body = {"stream": True, "tools": [{"type": "function", "name": "f"}]}
    *got, last = named_events(await respond(able, **body))
    thought, message, call = last["response"]["output"]
    assert (thought["type"], message["type"], call["type"]) == ("reasoning", "message", "function_call")
    deltas = [event for event in got if event["type"] == "response.output_text.delta"]
    assert [(delta["delta"], [told["token"] for told in delta["logprobs"]]) for delta in deltas] == [
        ("b", ["b"]),
        ("c", ["c"]),
    ]
    [done] = [event for event in got if event["type"] == "response.output_text.done"]
    [part] = message["content"]
    assert part["logprobs"] == done["logprobs"] == [told for delta in deltas for told in delta["logprobs"]]
    assert "logprobs" not in thought["content"][0]


async def test_a_stop_string_ends_a_response_and_what_came_behind_it(chatty: Site) -> None:
    chatty.engine.script = say(b"abcd", 100)
    [part] = (await respond(chatty, stop="bc")).json()["output"][0]["content"]
    assert (part["text"], [told["token"] for told in part["logprobs"]]) == ("a", ["a", "b", "c"])


async def test_tokens_without_text_are_told_at_the_end_of_a_response(chatty: Site) -> None:
    chatty.engine.script = lambda add: [
        Output(add.id, 0, [97], None, None, [one(97)], []),
        Output(add.id, 0, [0], FinishReason.STOP, 0, [one(0)], []),
    ]
    *got, last = named_events(await respond(chatty, stream=True, stop_token_ids=[0]))
    deltas = [event for event in got if event["type"] == "response.output_text.delta"]
    assert [(delta["delta"], [told["token"] for told in delta["logprobs"]]) for delta in deltas] == [
        ("a", ["a"]),
        ("", ["\0"]),
    ]
    [part] = last["response"]["output"][0]["content"]
    assert (part["text"], len(part["logprobs"])) == ("a", 2)


async def test_a_response_tells_of_nothing_that_was_not_asked_for(chatty: Site) -> None:
    chatty.engine.script = say(b"ab")
    [part] = (await respond(chatty, include=[])).json()["output"][0]["content"]
    assert part["logprobs"] == []
    assert (await chatty.engine.expect(Add)).sampling.logprobs is None

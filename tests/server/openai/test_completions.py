"""`/v1/completions` in process: what clients get for good requests and for bad ones."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.wire.messages import Abort, Add, FinishReason, Output
from seesaw.server.config import ServerConfig
from seesaw.server.openai.protocol import completions as protocol
from seesaw.server.openai.protocol.body import SMALL_BODY_BYTES
from tests.patience import PATIENCE_S
from tests.server.conftest import MakeSite, Site
from tests.server.fake_engine import INFO, answer
from tests.server.openai.streams import events, usage

pytestmark = pytest.mark.anyio


async def refused(site: Site, status: int, param: str | None, **body: Any) -> str:
    """The message of a request that must be refused before it reaches the engine."""
    response = await site.complete(**body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, status), error
    assert sorted(error) == ["code", "message", "param", "type"]
    assert not any(isinstance(message, Add) for message in site.engine.received)
    return str(error["message"])


async def test_a_whole_completion(site: Site) -> None:
    site.engine.script = answer("héllo")
    response = await site.complete(model="fake", prompt="abc")
    body = response.json()
    assert response.status_code == 200
    assert body["id"].startswith("cmpl-")
    assert (body["object"], body["model"]) == ("text_completion", "fake")
    assert body["choices"] == [
        {"index": 0, "text": "héllo", "finish_reason": "stop", "stop_reason": None, "logprobs": None}
    ]
    assert body["usage"] == usage(3, 6)


async def test_defaults_are_openais_and_null_means_default(site: Site) -> None:
    site.engine.script = answer("x" * 40)
    nulls = dict.fromkeys(["max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "top_k", "model"])
    for body in ({}, nulls):
        response = await site.complete(prompt="abc", **body)
        assert response.json()["choices"][0]["finish_reason"] == "length"
        assert response.json()["usage"]["completion_tokens"] == 16
        assert (await site.engine.expect(Add)).sampling == SamplingParams()


async def test_sampling_reaches_the_engine(site: Site) -> None:
    site.engine.script = answer("x")
    wanted = SamplingParams(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=3,
        n=2,
        ignore_eos=True,
        stop_token_ids=(4, 5),
    )
    body = {name: getattr(wanted, name) for name in wanted.__struct_fields__}
    assert (await site.complete(prompt="abc", **body)).status_code == 200
    assert (await site.engine.expect(Add)).sampling == wanted


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[97, 98]]),
        (["ab", "é"], [[97, 98], [195, 169]]),
        ([1, 2, 255], [[1, 2, 255]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
async def test_prompts_of_all_four_kinds(site: Site, prompt: Any, expected: list[list[int]]) -> None:
    site.engine.script = lambda add: [
        Output(add.id, index, [*add.prompt[:1], 48 + index], FinishReason.STOP) for index in range(add.sampling.n)
    ]
    body = (await site.complete(prompt=prompt, n=2)).json()
    assert [message.prompt for message in site.engine.received if isinstance(message, Add)] == expected
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(expected)))
    assert [choice["text"][-1] for choice in body["choices"]] == ["0", "1"] * len(expected)
    assert body["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert body["usage"]["completion_tokens"] == 4 * len(expected)


async def test_a_stream_is_the_whole_in_pieces(site: Site) -> None:
    site.engine.script = answer("a世b")
    got = events(await site.complete(prompt=["p", "q"], n=2, stream=True))
    texts = dict.fromkeys(range(4), "")
    for event in got:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        assert "usage" not in event
        assert (event["id"], event["object"]) == (got[0]["id"], "text_completion")
    assert texts == dict.fromkeys(range(4), "a世b")
    ends = [event["choices"][0]["index"] for event in got if event["choices"][0]["finish_reason"] == "stop"]
    assert sorted(ends) == [0, 1, 2, 3]


async def test_cached_tokens_count_once_for_each_prompt(site: Site) -> None:
    site.engine.script = answer("ab")
    site.engine.num_cached_tokens = 4
    body = (await site.complete(prompt=["12345", "123456"], n=3)).json()
    assert body["usage"] == usage(11, 12, cached_tokens=8)
    options = {"include_usage": True, "continuous_usage_stats": True}
    got = events(await site.complete(prompt="12345", n=2, stream=True, stream_options=options))
    assert got[0]["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert got[-1]["usage"] == usage(5, 4, cached_tokens=4)


@pytest.mark.parametrize("salt", ["", 5, ["a"]])
async def test_a_salt_that_is_none(site: Site, salt: object) -> None:
    assert "cache_salt" in await refused(site, 400, "cache_salt", prompt="a", cache_salt=salt)


async def test_salts_reach_the_engine(site: Site) -> None:
    site.engine.script = answer("x")
    for salt in ("a", None):
        assert (await site.complete(prompt=["1", "2"], cache_salt=salt)).status_code == 200
    assert [m.cache_salt for m in site.engine.received if isinstance(m, Add)] == ["a", "a", "", ""]


async def test_usage_comes_last_and_with_each_chunk_if_asked_for(site: Site) -> None:
    site.engine.script = answer("abc")
    options = {"include_usage": True}
    got = events(await site.complete(prompt="p", stream=True, stream_options=options))
    assert got[-1]["choices"] == []
    assert got[-1]["usage"] == usage(1, 3)
    assert all("usage" not in event for event in got[:-1])
    options["continuous_usage_stats"] = True
    got = events(await site.complete(prompt="p", stream=True, stream_options=options))
    assert got[-2]["usage"]["completion_tokens"] == 3
    assert all(event["usage"]["prompt_tokens"] == 1 for event in got)


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_a_sequence_and_abort_it(site: Site, stream: bool) -> None:
    site.engine.script = lambda add: [Output(add.id, 0, list(b"one. two. "))]  # and it would go on
    response = await site.complete(prompt="p", stop=["x", ". t"], stream=stream)
    if stream:
        choices = [event["choices"][0] for event in events(response)]
        text, last = "".join(choice["text"] for choice in choices), choices[-1]
    else:
        last = response.json()["choices"][0]
        text = last["text"]
        assert response.json()["usage"]["completion_tokens"] == len("one. t")
    assert (text, last["finish_reason"], last["stop_reason"]) == ("one", "stop", ". t")
    add = await site.engine.expect(Add)
    assert await site.engine.expect(Abort) == Abort(add.id)


async def test_an_answer_without_a_limit_of_its_own_has_what_room_is_left(site: Site) -> None:
    site.engine.script = answer("x")
    for body in ({}, {"max_tokens": None}, {"max_tokens": 4}):
        await site.complete(prompt=[1] * 60, **body)
        assert (await site.engine.expect(Add)).sampling.max_tokens == 4


async def test_a_limit_that_does_not_fit_beside_the_prompt_is_refused_in_vllms_words(site: Site) -> None:
    response = await site.complete(prompt=[[1], [1] * 60], max_tokens=5)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "max_tokens")
    assert error["message"] == (
        "This model's maximum context length is 64 tokens. However, you requested 5 output tokens and your prompt "
        "contains at least 60 input tokens, for a total of at least 65 tokens. Please reduce the length of the input "
        "prompt or the number of requested output tokens."
    )


@pytest.mark.parametrize(
    ("param", "body", "part"),
    [
        ("max_tokens", {"max_tokens": 0}, "at least 1"),
        ("max_tokens", {"max_tokens": 65}, "64 tokens"),
        ("prompt", {"prompt": [1] * 64}, "context length is 64 tokens"),
        ("prompt", {"prompt": ""}, "empty"),
        ("prompt", {"prompt": [[1], []]}, "empty"),
        ("prompt", {"prompt": []}, "must be a string"),
        ("prompt", {"prompt": ["a", 1]}, "must be a string"),
        ("prompt", {"prompt": [1.5]}, "must be a string"),
        ("prompt", {"prompt": [256]}, "between 0 and 255"),
        ("prompt", {"prompt": [-1]}, "between 0 and 255"),
        ("prompt", {"prompt": [[1]] * 101}, "101 sequences, more than the 100"),
        ("prompt", {"prompt": ["a"] * 60, "n": 2}, "60 prompts with n 2 would make 120 sequences, more than the 100"),
        ("prompt", {"prompt": ["b", "a" * 65]}, "65 characters, which do not fit"),
        ("temperature", {"temperature": -1}, "between 0 and"),
        ("temperature", {"temperature": "hot"}, "number"),
        ("n", {"n": 0}, "between 1 and 128"),
        ("seed", {"seed": 2**64}, "64 bits"),
        ("stop", {"stop": ["a"] * 17}, "17"),
        ("stop", {"stop": [""]}, "1 to"),
        ("stream_options", {"stream_options": {"include_usage": True}}, "needs stream"),
        ("logprobs", {"logprobs": 21}, "between 0 and 20"),
        ("logprobs", {"logprobs": -1}, "between 0 and 20"),
        ("prompt_logprobs", {"prompt_logprobs": 1, "stream": True}, "stream to be false"),
        ("max_tokens", {"max_tokens": 0}, "at least 1"),
        ("logit_bias.a.[key]", {"logit_bias": {"a": 1}}, "integer"),
        ("logit_bias.5", {"logit_bias": {"5": "x"}}, "number"),
        ("presence_penalty", {"presence_penalty": 2.5}, "between -2 and 2"),
        ("frequency_penalty", {"frequency_penalty": -3}, "between -2 and 2"),
        ("repetition_penalty", {"repetition_penalty": 0}, "between 0.01 and 100"),
        ("min_tokens", {"min_tokens": 9, "max_tokens": 8}, "between 0 and max_tokens"),
        ("allowed_token_ids", {"allowed_token_ids": []}, "is empty"),
        ("bad_words", {"bad_words": [""]}, "1 to 1024 characters"),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 0}, "at least 1"),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 65}, "64 tokens"),
        ("suffix", {"suffix": "s"}, "not supported"),
        ("response_format", {"response_format": {"type": "json_schema"}}, "needs a json_schema"),
        ("structured_outputs", {"structured_outputs": {"grammar": "start: ("}}, "cannot be enforced"),
    ],
)
async def test_what_cannot_be_done_is_refused(site: Site, param: str, body: dict[str, Any], part: str) -> None:
    message = await refused(site, 400, param, **{"prompt": "p"} | body)
    assert part in message


async def test_unsupported_parameters_may_have_their_default(site: Site) -> None:
    site.engine.script = answer("x")
    harmless = {
        "logprobs": None,
        "echo": False,
        "suffix": None,
        "best_of": 3,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
        "response_format": {"type": "text"},
        "user": "me",
        "something_new": 5,
    }
    assert (await site.complete(prompt="p", **harmless)).status_code == 200


async def test_another_model_is_not_found(site: Site) -> None:
    message = await refused(site, 404, "model", prompt="p", model="gpt-5")
    assert "'fake'" in message and INFO.model not in message
    site.engine.script = answer("x")
    assert (await site.complete(prompt="p", model="")).status_code == 200


async def test_bad_bodies_get_bounded_answers(site: Site) -> None:
    post = site.client.post
    broken = await post("/v1/completions", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, "not valid JSON" in broken.text) == (400, True)
    typed = await post("/v1/completions", content=b'{"prompt": "p"}', headers={"content-type": "text/plain"})
    assert (typed.status_code, "application/json" in typed.text) == (400, True)
    array = await post("/v1/completions", json=["p"])
    assert array.status_code == 400
    missing = await post("/v1/completions", json={})
    assert missing.json()["error"]["param"] == "prompt"
    assert missing.json()["error"]["message"] == "prompt is missing: add it to the body"
    half = await post("/v1/completions", content=rb'{"prompt": "\ud800"}', headers={"content-type": "application/json"})
    assert (half.status_code, "not valid JSON" in half.text) == (400, True)
    secret = "s3cret" * 1000
    many = await post("/v1/completions", json={"prompt": {"a": secret}, "stop": [{"b": secret}] * 1000, "n": secret})
    assert many.status_code == 400
    assert "s3cret" not in many.text and len(many.content) < 4000


async def test_a_large_body_is_parsed_in_a_thread(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    real = protocol._are_ids
    monkeypatch.setattr(protocol, "_are_ids", lambda value: threads.append(threading.get_ident()) or real(value))
    padding = {"user": "x" * SMALL_BODY_BYTES}
    message = await refused(site, 400, "prompt", prompt=[1.5], **padding)  # errors have the same shape
    assert "must be a string" in message
    assert threads and threading.get_ident() not in threads
    threads.clear()
    await refused(site, 400, "prompt", prompt=[1.5])
    assert set(threads) == {threading.get_ident()}


async def test_a_body_over_the_limit(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(max_body_bytes=100))
    response = await site.complete(prompt="p" * 100)
    assert (response.status_code, response.json()["error"]["code"]) == (413, 413)
    assert "100 bytes" in response.json()["error"]["message"]

    async def drip() -> Any:
        for _ in range(20):
            yield b'"' + b"p" * 10

    chunked = await site.client.post("/v1/completions", content=drip(), headers={"content-type": "application/json"})
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, 413)


async def test_a_full_queue_says_come_again(make_site: MakeSite) -> None:
    site = await make_site(max_queued_requests=1)
    waiting = site.bridge.submit("first", [([1], SamplingParams())])
    response = await site.complete(prompt="p")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    waiting.close()
    await site.bridge.ping(PATIENCE_S)  # by then the engine has let go
    site.engine.script = answer("x")
    assert (await site.complete(prompt="p")).status_code == 200


async def test_prompts_that_would_never_find_room_are_refused_for_good(make_site: MakeSite) -> None:
    site = await make_site()
    site.bridge.room.max_tokens = 100
    response = await site.complete(prompt=[[1] * 50] * 3, max_tokens=1)
    assert response.status_code == 400 and "150 tokens, more than the 100" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_dies_or_gives_up_is_an_error(site: Site, stream: bool) -> None:
    site.engine.script = lambda add: [Output(add.id, 0, [97]), Output(add.id, 0, [], FinishReason.ERROR)]
    response = await site.complete(prompt="p", stream=stream)
    if stream:
        *before, last = events(response)
        assert "".join(event["choices"][0]["text"] for event in before) in ("", "a")
        assert last["error"]["code"] == 500
    else:
        assert response.status_code == 500
    site.bridge.fail(EngineDeadError("rank 1 of secret-host ended"))
    response = await site.complete(prompt="p", stream=stream)
    assert response.status_code == 500
    assert "secret-host" not in response.text
    assert response.json()["error"]["type"] == "InternalServerError"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", [2**70]),
        ("logit_bias", {"256": 1}),
        ("bad_words", ["x" * 5000]),
        ("priority", 1),
        ("priority", 2**70),
        ("min_tokens", 64),
    ],
)
async def test_what_the_engine_would_refuse_is_a_400_in_a_stream_too(
    name: str, value: object, stream: bool, site: Site
) -> None:
    """Found by random bodies: the stream began with a 200, and an id of more than 64 bits was a 500."""
    response = await site.complete(**{"prompt": "hello", "max_tokens": 64, "stream": stream, name: value})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] in (name, "max_tokens")
    assert site.bridge.num_live == 0


@pytest.mark.parametrize("depth", [3000, 100_000])
async def test_a_body_without_end_is_a_400(depth: int, site: Site) -> None:
    body = '{"prompt": "a", "guided_json": ' + '{"items": ' * depth + "{}" + "}" * depth + "}"
    response = await site.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text

"""One streamed completion: what is recorded of its events, and of every way to fail."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.clients.events import EventParser
from seesaw.clients.record import Record
from seesaw.clients.recorder import Recorder, Request, StreamError
from seesaw.clients.streaming import CompletionClient
from tests.clients.conftest import DONE, Site, delta, event, usage

REQUEST = Request([1, 2, 3], 3, 4)


@given(st.lists(st.integers(1, 200), max_size=8), st.sampled_from([b"", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n"]))
def test_events_are_whole_however_the_bytes_are_cut(cuts: list[int], end: bytes) -> None:
    data = b": keep-alive\n\n" + event("a\nb") + b":\r\n\r\nevent: x\r\nid: 3\r\ndata:[DONE]" + end
    parser, got = EventParser(), []
    for cut in cuts:
        piece, data = data[:cut], data[cut:]
        got += parser.feed(piece)
    got += parser.feed(data) + parser.end()
    assert got == [event("a\nb")[6:-2], b"[DONE]"]


def recorded(*events: tuple[float, bytes]) -> Record:
    """Of a stream that was due at 9 and went on the wire at 10."""
    recorder = Recorder(REQUEST, arrival_s=9.0)
    recorder.start_s = 10.0
    for now_s, data in events:
        recorder.event(data[6:-2], now_s)
    return recorder.finish()


def test_the_record_of_a_stream() -> None:
    record = recorded((10.5, event("a")), (10.75, event("")), (11.5, event("b")), (12.0, usage(7, 5)), (12.5, DONE))
    assert record == Record(
        input_tokens=7,  # the server's count, not ours
        output_tokens=5,
        queue_s=1.0,
        start_s=10.0,
        ttft_s=0.5,
        itls_s=[0.25, 0.75],
        latency_s=1.5,  # to the last event with a choice
        text="ab",
        error="",
    )


@pytest.mark.parametrize(
    "last", [((12.0, event("", finish_reason="length")),), ((12.0, event("", finish_reason="length")), (12.0, DONE))]
)
def test_without_usage_events_are_counted(last: tuple[tuple[float, bytes], ...]) -> None:
    record = recorded((10.5, event("a")), (11.0, event("")), (11.5, event("b")), *last)
    assert (record.output_tokens, record.counted_by, record.input_tokens) == (3, "events", 3)
    assert (record.itls_s, record.latency_s) == ([0.5, 0.5], 2.0)  # what closes the stream is no token


@pytest.mark.parametrize("opening", [{"role": "assistant"}, {"role": "assistant", "content": ""}])
def test_a_chats_first_token_is_not_its_role(opening: dict[str, object]) -> None:
    events = [delta(**opening), delta(reasoning="a"), delta(content=""), delta(content="b"), delta("stop"), DONE]
    record = recorded(*((10.5 + number, data) for number, data in enumerate(events)))
    assert (record.ttft_s, record.itls_s, record.text) == (1.5, [1.0, 1.0], "ab")
    assert (record.output_tokens, record.counted_by) == (3, "events")


def test_an_answer_without_a_token() -> None:
    record = recorded((10.5, event("", finish_reason="stop")), (10.75, usage(3, 1)), (11.0, DONE))
    assert (record.ttft_s, record.itls_s, record.output_tokens) == (0.5, [], 1)


@pytest.mark.parametrize(
    ("details", "cached_tokens"),
    [({"cached_tokens": 3, "audio_tokens": 0}, 3), ({"cached_tokens": None}, None), (None, None)],
)
def test_cached_tokens_are_recorded_if_they_are_told(details: object, cached_tokens: int | None) -> None:
    record = recorded((10.5, event("a")), (10.5, usage(7, 5, prompt_tokens_details=details)), (10.5, DONE))
    assert record.cached_tokens == cached_tokens


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([event("a"), usage(1, 1)], r"ended without \[DONE\]"),
        ([usage(1, 1), DONE], "no choices"),
        ([b'data: {"choices": null, "usage": null}\n\n', DONE], "no choices"),
    ],
)
def test_what_is_not_whole(events: list[bytes], reason: str) -> None:
    with pytest.raises(StreamError, match=reason):
        recorded(*((11.0, data) for data in events))


@pytest.mark.anyio
async def test_a_completion(site: Site) -> None:
    async with CompletionClient(
        site.url, model="m", headers={"X-A": "b"}, extra_body={"temperature": 0, "ignore_eos": True}
    ) as client:
        record = await client.complete(REQUEST, arrival_s=0.0)
    assert (record.error, record.input_tokens, record.output_tokens, record.text) == ("", 3, 4, "tttt")
    assert record.queue_s == record.start_s > 0  # due at 0
    assert record.latency_s == pytest.approx(record.ttft_s + sum(record.itls_s))
    assert site.headers[0]["X-A"] == "b"
    assert site.bodies[0] == {
        "model": "m",
        "prompt": [1, 2, 3],
        "max_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "ignore_eos": True,
    }


@pytest.mark.anyio
async def test_a_chat(site: Site) -> None:
    async with CompletionClient(site.url, "/v1/chat/completions", model="m") as client:
        record = await client.complete(Request("say", 1, 2), arrival_s=0.0)
    assert (record.error, record.input_tokens, record.output_tokens, record.text) == ("", 9, 2, "tt")
    assert site.bodies[0]["messages"] == [{"role": "user", "content": "say"}]
    assert "prompt" not in site.bodies[0] and site.bodies[0]["max_tokens"] == 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([event("a"), b'data: {"error": {"message": "the engine died"}}\n\n', DONE], "stream: the engine died"),
        ([event("a"), b'data: {"object": "error", "message": "it died"}\n\n', DONE], "stream: it died"),
        ([event("a"), b"data: {broken\n\n"], "DecodeError"),
        ([event("a"), b"data: \xff\xfe\n\n"], "DecodeError"),
        ([event("a"), b'data: {"choices": [{"text": "\xff"}]}\n\n'], "Error"),
        ([event("a"), b'data: {"x": ' + b"[" * 100_000 + b"\n\n"], "RecursionError"),
        ([event("a"), b'data: {"choices": [], "usage": {"completion_tokens": -4}}\n\n'], "ValidationError"),
        ([event("a")], "without [DONE]"),
    ],
)
async def test_a_stream_that_fails_is_recorded(site: Site, answer: list[bytes], reason: str) -> None:
    site.answer = answer
    async with CompletionClient(site.url, model="m") as client:
        record = await client.complete(REQUEST, arrival_s=0.0)
    assert reason in record.error
    assert (record.output_tokens, record.text) == (0, "a")
    assert record.latency_s > 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([b'{"detail": [{"msg": "Field required", "loc": ["body", 0], "input": {}}]}'], "Field required (body.0)"),
        ([b'{"message": "not\\n here"}'], "not here"),
        ([b"<html>\xff"], "<html>\ufffd"),
        ([b"[" * 100_000], "[["),
        ([], "no stream of events"),
    ],
)
async def test_an_answer_that_is_no_stream_says_what_it_is(site: Site, answer: list[bytes], reason: str) -> None:
    site.answer = answer
    async with CompletionClient(site.url, model="m") as client:
        record = await client.complete(REQUEST, arrival_s=0.0)
    assert reason in record.error and len(record.error) < 400


@pytest.mark.anyio
async def test_a_refusal_is_recorded(site: Site) -> None:
    site.status = 503
    async with CompletionClient(site.url, model="m") as client:
        assert (await client.complete(REQUEST, 0.0)).error == "HTTP 503: come back later"
    with socket.socket() as mute:  # has the port, but does not listen
        mute.bind(("127.0.0.1", 0))
        async with CompletionClient(f"http://127.0.0.1:{mute.getsockname()[1]}", model="m") as client:
            record = await client.complete(REQUEST, 0.0)
    assert "ClientConnectorError" in record.error
    assert record.latency_s == 0

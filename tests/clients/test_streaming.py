"""One streamed completion: what is recorded of its events, and of every way to fail."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.record import Record
from clients.streaming import CompletionClient, EventParser, Recorder, Request, StreamError
from tests.clients.conftest import DONE, Site, event, usage

REQUEST = Request([1, 2, 3], 3, 4)


@given(st.lists(st.integers(1, 200), max_size=8))
def test_events_are_whole_however_the_bytes_are_cut(cuts: list[int]) -> None:
    data = b": keep-alive\n\n" + event("a\nb") + b"event: x\r\ndata: [DONE]\r\n\r\n"
    parser, got = EventParser(), []
    for cut in cuts:
        piece, data = data[:cut], data[cut:]
        got += parser.feed(piece)
    got += parser.feed(data)
    assert got == [event("a\nb")[6:-2], b"[DONE]"]


def test_the_record_of_a_stream() -> None:
    recorder = Recorder(REQUEST, arrival_s=9.0)
    recorder.start_s = 10.0
    for now_s, data in ((10.5, event("a")), (10.75, event("")), (11.5, event("b")), (12.0, usage(7, 5)), (12.5, DONE)):
        recorder.event(data[6:-2], now_s)
    assert recorder.finish() == Record(
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
    ("details", "cached_tokens"),
    [({"cached_tokens": 3, "audio_tokens": 0}, 3), ({"cached_tokens": None}, None), (None, None)],
)
def test_cached_tokens_are_recorded_if_they_are_told(details: object, cached_tokens: int | None) -> None:
    recorder = Recorder(REQUEST, arrival_s=9.0)
    for data in (event("a"), usage(7, 5, prompt_tokens_details=details), DONE):
        recorder.event(data[6:-2], 10.0)
    assert recorder.finish().cached_tokens == cached_tokens


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([event("a"), usage(1, 1)], r"ended without \[DONE\]"),
        ([event("a"), DONE], "no usage"),
        ([usage(1, 1), DONE], "no choices"),
    ],
)
def test_what_is_not_whole(events: list[bytes], reason: str) -> None:
    recorder = Recorder(REQUEST, arrival_s=1.0)
    for data in events:
        recorder.event(data[6:-2], 2.0)
    with pytest.raises(StreamError, match=reason):
        recorder.finish()


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
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([event("a"), b'data: {"error": {"message": "the engine died"}}\n\n', DONE], "stream: the engine died"),
        ([event("a"), b"data: {broken\n\n"], "DecodeError"),
        ([event("a")], r"without \[DONE\]"),
    ],
)
async def test_a_stream_that_fails_is_recorded(site: Site, answer: list[bytes], reason: str) -> None:
    site.answer = answer
    async with CompletionClient(site.url, model="m") as client:
        record = await client.complete(REQUEST, arrival_s=0.0)
    assert reason.replace("\\", "") in record.error
    assert (record.output_tokens, record.text) == (0, "a")
    assert record.latency_s > 0


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

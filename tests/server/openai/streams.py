"""Reading a response of server-sent events, and its usage."""

from __future__ import annotations

import json
from typing import Any

import httpx


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, object]:
    """What a completion says of its tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def events(response: httpx.Response) -> list[Any]:
    """The payloads of a stream, which must be well formed and end with [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def named_events(response: httpx.Response) -> list[Any]:
    """The events of a stream, which are named by their types and numbered."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *blocks, rest = response.text.split("\n\n")
    assert rest == ""
    got = []
    for block in blocks:
        name, data = block.split("\n")
        got.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {got[-1]['type']}"
    assert [event["sequence_number"] for event in got] == list(range(len(got)))
    return got

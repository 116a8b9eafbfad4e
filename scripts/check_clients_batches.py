"""Batches, with the openai package: answered as online, cancelled, expired."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
from client_checks import TIMEOUT_S, Target, check
from openai.types import Batch

ENDPOINTS = ("/v1/completions", "/v1/chat/completions")
NUM_ROWS = 300  # of both endpoints together
BAD: list[dict[str, Any]] = [
    {"model": "other"},
    {"max_tokens": -1},
    {"temperature": -1},
    {"stop": 5},
    {"top_p": 2},
]
THINGS = ("France", "Italy", "water", "the sun", "a horse", "gold", "Mars", "bread", "a triangle", "London")

Answer = tuple[int, Any]  # a status, and what does not depend on when it was asked


def bodies(model: str, endpoint: str, count: int, max_tokens: int = 8) -> list[dict[str, Any]]:
    """Greedy ones, of which as many are bad as `BAD` has."""
    made = []
    for number in range(count):
        text = f"Question {number}: what is {THINGS[number % len(THINGS)]}?"
        prompt = {"prompt": text} if endpoint == ENDPOINTS[0] else {"messages": [{"role": "user", "content": text}]}
        body = {"model": model, "max_tokens": max_tokens, "temperature": 0, **prompt}
        kind, place = divmod(number, count // len(BAD))
        made.append(body | BAD[kind] if place == 1 else body)
    return made


def begin(api: openai.OpenAI, endpoint: Any, rows: list[dict[str, Any]], window: Any = "24h") -> str:
    """The id of a batch."""
    lines = (
        json.dumps({"custom_id": str(number), "method": "POST", "url": endpoint, "body": body})
        for number, body in enumerate(rows)
    )
    file = api.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return api.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window).id


def until(api: openai.OpenAI, id: str, num_rows: int | None = None) -> Batch:
    """The batch once it has ended, or it runs and so many rows have ended."""
    deadline, num_done = time.monotonic() + TIMEOUT_S, 0
    while (batch := api.batches.retrieve(id)).status not in ("completed", "failed", "expired", "cancelled"):
        if batch.request_counts is not None and batch.request_counts.completed > num_done:
            deadline, num_done = time.monotonic() + TIMEOUT_S, batch.request_counts.completed
        if num_rows is not None and batch.status != "validating" and num_done >= num_rows:
            break
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def results(api: openai.OpenAI, batch: Batch) -> list[Answer]:
    """Of all rows, in order: each is in one of the files, and these are in order, too. A row that was not sent has the
    status 0, and the code of its error."""
    found: dict[int, Answer] = {}
    for file in filter(None, (batch.output_file_id, batch.error_file_id)):
        rows = [json.loads(line) for line in api.files.content(file).text.splitlines()]
        numbers = [int(row["custom_id"]) for row in rows]
        assert numbers == sorted(numbers) and not found.keys() & set(numbers), f"{file}: {numbers}"
        for number, row in zip(numbers, rows, strict=True):
            if row["response"] is None:
                found[number] = 0, row["error"]["code"]
            else:
                found[number] = _told(row["response"]["status_code"], row["response"]["body"])
    assert sorted(found) == list(range(len(found)))
    return [answer for _, answer in sorted(found.items())]


def online(target: Target, endpoint: str, rows: list[dict[str, Any]]) -> list[Answer]:
    """The same requests, sent by sixteen clients."""
    with httpx.Client(base_url=target.url, timeout=TIMEOUT_S) as http, ThreadPoolExecutor(16) as threads:
        responses = threads.map(lambda body: http.post(endpoint, json=body), rows)
        return [_told(response.status_code, response.json()) for response in responses]


def _told(status: int, body: dict[str, Any]) -> Answer:
    if "error" in body:
        return status, body["error"]
    return status, (body["choices"], body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"])


def as_online(target: Target, num_rows: int) -> None:
    """Raises AssertionError unless two batches that run at once are answered as their requests are online."""
    with openai.OpenAI(base_url=target.base_url, api_key="none", timeout=TIMEOUT_S, max_retries=0) as api:
        made = {endpoint: bodies(target.model, endpoint, num_rows // 2) for endpoint in ENDPOINTS}
        ids = {endpoint: begin(api, endpoint, rows) for endpoint, rows in made.items()}
        found = {endpoint: results(api, until(api, id)) for endpoint, id in ids.items()}
    for endpoint, rows in made.items():
        expected = online(target, endpoint, rows)
        pairs = zip(found[endpoint], expected, strict=True)
        wrong = [pair for pair in pairs if pair[0] != pair[1]]
        assert not wrong, f"{endpoint}: {wrong[:3]}"
        assert sum(status != 200 for status, _ in expected) == len(BAD), expected


@check("batches", f"{NUM_ROWS} rows of both endpoints, ten of them bad: as the same requests online")
def mixed(target: Target) -> None:
    as_online(target, NUM_ROWS)


@check("batches", "cancelled: what was answered by then, and an error for each other row")
def cancelled(target: Target) -> None:
    cut_off(target, "cancelled")


@check("batches", "expired: what was answered by then, and an error for each other row")
def expired(target: Target) -> None:
    cut_off(target, "expired")


def cut_off(target: Target, how: str, num_rows: int = NUM_ROWS) -> None:
    """Raises AssertionError unless a batch that ends so in its midst has one result for each row."""
    with openai.OpenAI(base_url=target.base_url, api_key="none", timeout=TIMEOUT_S, max_retries=0) as api:
        rows = bodies(target.model, ENDPOINTS[0], num_rows, max_tokens=32)
        id = begin(api, ENDPOINTS[0], rows, "24h" if how == "cancelled" else "2s")
        if how == "cancelled":
            until(api, id, num_rows=0)
            assert api.batches.cancel(id).status in ("cancelling", "cancelled")
        batch = until(api, id)
        assert batch.status == how, batch
        found = results(api, batch)
    assert len(found) == num_rows, len(found)
    unsent = [told for status, told in found if status == 0]
    assert unsent and set(unsent) == {f"batch_{how}"}, set(unsent)

"""Files and batches over HTTP, with the openai client, and a fake engine."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
import uvicorn
from openai.types import Batch

from seesaw.engine.text.tokenizer import ByteTokenizer
from seesaw.engine.wire.messages import LAST, Abort, Add, FinishReason
from seesaw.server.config import ServerConfig
from seesaw.server.http.app import create_app
from seesaw.server.link.grammar_check import GrammarCheck
from seesaw.server.service import HTTPServer
from tests.patience import PATIENCE_S
from tests.server.conftest import Line, MakeSite, chat_config, connected
from tests.server.fake_engine import INFO, FakeEngine, answer
from tests.server.http.test_openapi import Document

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


class Server:
    """What serves jobs, and a client of it."""

    def __init__(self, url: str, line: Line) -> None:
        self.url = url
        self.engine: FakeEngine = line.engine
        self.client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=PATIENCE_S)
        self.http = httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, headers={"Authorization": "Bearer key"})

    async def upload(self, rows: list[dict[str, Any]]) -> str:
        data = "\n".join(map(json.dumps, rows)).encode()
        file = await self.client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
        return file.id

    async def run(self, endpoint: Any, bodies: list[dict[str, Any]]) -> Batch:
        rows = [
            {"custom_id": f"{number}", "method": "POST", "url": endpoint, "body": body}
            for number, body in enumerate(bodies)
        ]
        batch = await self.client.batches.create(
            input_file_id=await self.upload(rows), endpoint=endpoint, completion_window="24h"
        )
        return await self.until(batch.id, lambda batch: batch.status in ("completed", "failed", "cancelled"))

    async def until(self, id: str, holds: Callable[[Batch], bool]) -> Batch:
        async with asyncio.timeout(PATIENCE_S):
            while not holds(batch := await self.client.batches.retrieve(id)):
                pass
            return batch

    async def results(self, batch: Batch) -> dict[int, tuple[int, Any]]:
        """Status and body of each row's answer, of both files, each in order."""
        found: dict[int, tuple[int, Any]] = {}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            rows = [json.loads(line) for line in (await self.client.files.content(file)).text.splitlines()]
            numbers = [int(row["custom_id"]) for row in rows]
            assert numbers == sorted(numbers)
            answers = [(row["response"]["status_code"], row["response"]["body"]) for row in rows]
            found |= dict(zip(numbers, answers, strict=True))
        return found


@asynccontextmanager
async def serving(folder: Path, line: Line, **options: Any) -> AsyncIterator[Server]:
    config = chat_config(data_dir=str(folder), **options)
    app = create_app(line.bridge, line.channel.info, ByteTokenizer(), config, GrammarCheck("bytes", 256))
    listener = socket.create_server(("127.0.0.1", 0))
    http = HTTPServer(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    task = asyncio.create_task(http.serve(sockets=[listener]))
    server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", line)
    try:
        yield server
    finally:
        await server.client.close()
        await server.http.aclose()
        http.should_exit = True
        await task


MakeServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def server(line: Line, tmp_path: Path) -> AsyncIterator[Server]:
    line.engine.script = answer("hello")
    async with serving(tmp_path, line, enable_auto_tool_choice=True, tool_call_parser="hermes") as server:
        yield server


COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": "a", "max_tokens": 3, "temperature": 0},
    {"prompt": ["a", "b"], "n": 2, "logprobs": 1, "echo": True},
    {"prompt": [1, 2, 3], "stop": "l"},
    {"prompt": ""},
    {"prompt": "a", "max_tokens": 0},
    {"prompt": "a" * 100},
    {"prompt": "a", "model": "other"},
    {"prompt": "a", "suffix": "b"},
    {"no": "prompt"},
    {"prompt": "a", "structured_outputs": {"regex": "["}},
]
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi"}]},
    {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL], "logprobs": True, "top_logprobs": 1},
    {"messages": []},
    {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 2, "n": 3},
    {"messages": [{"role": "user", "content": "hi"}], "temperature": -1},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
]


def without_ids(body: Any) -> Any:
    return {key: value for key, value in body.items() if key not in ("id", "created")}


@pytest.mark.parametrize(
    ("endpoint", "bodies"), [("/v1/completions", COMPLETIONS), ("/v1/chat/completions", CHATS)], ids=["texts", "chats"]
)
async def test_rows_are_answered_as_requests_are(server: Server, endpoint: str, bodies: list[dict[str, Any]]) -> None:
    batch = await server.run(endpoint, bodies)
    results = await server.results(batch)
    online = [await server.http.post(endpoint, json=body) for body in bodies]
    assert [(status, without_ids(body)) for _, (status, body) in sorted(results.items())] == [
        (response.status_code, without_ids(response.json())) for response in online
    ]
    num_good = sum(response.status_code == 200 for response in online)
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (len(bodies), num_good, len(bodies) - num_good)
    assert 2 < num_good < len(bodies)


async def test_files(server: Server) -> None:
    data = b"x" * 3_000_000 + b"\n"
    files = server.client.files
    first = await files.create(file=("päth/in.jsonl", data), purpose="batch")
    second = await files.create(file=("b.jsonl", b""), purpose="batch")
    assert (first.bytes, first.filename, first.purpose, first.object) == (len(data), "päth/in.jsonl", "batch", "file")
    assert await files.retrieve(first.id) == first
    assert (await files.content(first.id)).content == data
    assert (await files.content(second.id)).content == b""
    assert [file.id async for file in files.list(limit=1)] == [second.id, first.id]
    assert [file.id async for file in files.list(order="asc", purpose="batch")] == [first.id, second.id]
    assert [file.id async for file in files.list(purpose="batch_output")] == []
    page = (await server.http.get("/v1/files?limit=1")).json()
    assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == (
        *("list", True),
        *(second.id, second.id),
    )
    deleted = await files.delete(first.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (first.id, True, "file")
    for call in (files.retrieve, files.content, files.delete):
        with pytest.raises(openai.NotFoundError, match="no file"):
            await call(first.id)


async def test_a_file_that_is_deleted_while_somebody_asks_for_it(server: Server, tmp_path: Path) -> None:
    file = await server.client.files.create(file=b"x", purpose="batch")
    (tmp_path / "files" / file.id).unlink()  # and the database hears of it later
    with pytest.raises(openai.NotFoundError, match="any more"):
        await server.client.files.content(file.id)


async def test_when_files_expire(server: Server) -> None:
    after: Any = {"anchor": "created_at", "seconds": 3600}
    file = await server.client.files.create(file=b"{}", purpose="batch", expires_after=after)
    assert file.expires_at == file.created_at + 3600
    batches = server.client.batches
    batch = await batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", output_expires_after=after
    )
    assert batch.model_extra == {"output_expires_after": after}
    for wrong in ({"seconds": 3599}, {"seconds": 2592001}, {"anchor": "completed_at"}):
        with pytest.raises(openai.BadRequestError, match="output_expires_after"):
            await batches.create(
                input_file_id=file.id,
                endpoint="/v1/completions",
                completion_window="24h",
                output_expires_after=after | wrong,
            )
        with pytest.raises(openai.BadRequestError, match="3600 and 2592000"):
            await server.client.files.create(file=b"{}", purpose="batch", expires_after=after | wrong)


async def test_batches(server: Server) -> None:
    first = await server.run("/v1/completions", [{"prompt": "a"}])
    rows = [{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}]
    second = await server.client.batches.create(
        input_file_id=await server.upload(rows),
        endpoint="/v1/completions",
        completion_window="24h",
        metadata={"night": "long"},
    )
    assert second.metadata == {"night": "long"} and second.object == "batch"
    assert second.expires_at == second.created_at + 86400
    assert [batch.id async for batch in server.client.batches.list(limit=1)] == [second.id, first.id]
    await server.until(second.id, lambda batch: batch.status == "completed")
    with pytest.raises(openai.ConflictError, match="completed"):
        await server.client.batches.cancel(second.id)
    with pytest.raises(openai.NotFoundError, match="no batch"):
        await server.client.batches.retrieve("batch_other")
    metrics = (await server.http.get("/metrics")).text
    assert 'seesaw:batch_rows_total{outcome="completed"} 2.0' in metrics
    assert "seesaw:batch_rows_in_flight 0.0" in metrics


async def test_a_bad_file_fails(server: Server) -> None:
    rows: list[dict[str, Any]] = [
        {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}},
        {"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}},
        {"custom_id": "b", "method": "POST", "body": {}},
        {"custom_id": 3, "method": "POST", "url": "/v1/completions", "body": {}},
    ]
    batch = await server.client.batches.create(
        input_file_id=await server.upload(rows), endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = await server.until(batch.id, lambda batch: batch.status == "failed")
    assert batch.errors is not None and batch.errors.data is not None
    assert [(error.code, error.param, error.line) for error in batch.errors.data] == [
        ("invalid_url", "url", 1),
        ("invalid_method", "method", 2),
        ("duplicate_custom_id", "custom_id", 2),
        ("missing_required_parameter", "url", 3),
        ("invalid_request", "custom_id", 4),
    ]
    assert batch.failed_at and batch.in_progress_at is None


@pytest.mark.parametrize(
    ("changes", "param", "status"),
    [
        ({"input_file_id": "file-other"}, "input_file_id", 404),
        ({"endpoint": "/v1/embeddings"}, "endpoint", 400),
        ({"completion_window": "soon"}, "completion_window", 400),
        ({"completion_window": "0h"}, "completion_window", 400),
        ({"metadata": {"a": 1}}, "metadata.a", 400),
        ({"metadata": {"a": "x" * 513}}, "metadata", 400),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", 400),
        ({"endpoint": None}, "endpoint", 400),
    ],
)
async def test_what_no_batch_can_be_made_of(server: Server, changes: dict[str, Any], param: str, status: int) -> None:
    body = {"input_file_id": await server.upload([]), "endpoint": "/v1/completions", "completion_window": "24h"}
    response = await server.http.post("/v1/batches", json=body | changes)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_an_output_is_no_input(server: Server) -> None:
    batch = await server.run("/v1/completions", [{"prompt": "a"}])
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await server.client.batches.create(
            input_file_id=batch.output_file_id or "", endpoint="/v1/completions", completion_window="24h"
        )


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=100000", "limit=" + "9" * 5000, "order=up"])
async def test_lists_that_there_are_not(server: Server, query: str) -> None:
    response = await server.http.get(f"/v1/files?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, query.partition("=")[0])


async def test_cancel_frees_the_engine(server: Server) -> None:
    server.engine.script = None
    rows = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}
        for number in range(3)
    ]
    batch = await server.client.batches.create(
        input_file_id=await server.upload(rows), endpoint="/v1/completions", completion_window="24h"
    )
    sent = [(await server.engine.expect(Add)).id for _ in range(3)]
    cancelled = await server.client.batches.cancel(batch.id)
    assert cancelled.status in ("cancelling", "cancelled") and cancelled.cancelling_at
    assert {(await server.engine.expect(Abort)).id for _ in range(3)} == set(sent)
    batch = await server.until(batch.id, lambda batch: batch.status == "cancelled")
    lines = (await server.client.files.content(batch.error_file_id or "")).text.splitlines()
    assert [json.loads(line)["error"]["code"] for line in lines] == ["batch_cancelled"] * 3


async def test_another_server_goes_on(line: Line, tmp_path: Path) -> None:
    rows = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}
        for number in range(20)
    ]
    async with serving(tmp_path, line) as server:
        batch = await server.client.batches.create(
            input_file_id=await server.upload(rows), endpoint="/v1/completions", completion_window="24h"
        )
        await line.engine.expect(Add)
    line.engine.script = answer("hello")
    async with serving(tmp_path, line) as server:
        batch = await server.until(batch.id, lambda batch: batch.status == "completed")
        assert len(await server.results(batch)) == 20


@pytest.mark.parametrize("has_priorities", [False, True])
async def test_rows_have_the_last_priority(tmp_path: Path, has_priorities: bool) -> None:
    info = msgspec.structs.replace(INFO, has_priorities=has_priorities)
    async with connected(info=info) as line, serving(tmp_path, line) as server:
        line.engine.script = answer("hello")
        await server.run("/v1/completions", [{"prompt": "a"}, {"prompt": "a", "priority": -5}])
        assert [(await line.engine.expect(Add)).priority for _ in range(2)] == [LAST] * 2


async def test_rows_give_way_while_clients_come(tmp_path: Path) -> None:
    """One in sixteen sequences that may decode is left to them."""
    info, num_live = msgspec.structs.replace(INFO, max_num_seqs=64), 60
    async with connected(max_queued_requests=1000, info=info) as line, serving(tmp_path, line) as server:
        online = asyncio.create_task(server.http.post("/v1/completions", json={"prompt": "online"}))
        first = await line.engine.expect(Add)
        rows = [
            {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}
            for number in range(90)
        ]
        batch = await server.client.batches.create(
            input_file_id=await server.upload(rows), endpoint="/v1/completions", completion_window="24h"
        )
        sent = [first.id, *[(await line.engine.expect(Add)).id for _ in range(num_live - 1)]]
        for _ in range(20):
            assert (await server.http.get("/load")).json() == {"server_load": num_live}
        line.engine.script = answer("hello")
        for id in sent:
            await line.engine.say(id, "hello", FinishReason.STOP)
        assert (await online).status_code == 200
        await server.until(batch.id, lambda batch: batch.status == "completed")


async def test_keys_guard_them(line: Line, tmp_path: Path) -> None:
    async with serving(tmp_path, line, api_key=("key",)) as server:
        assert (await server.http.get("/v1/files")).status_code == 200
        for path in ("/v1/files", "/v1/batches", "/v1/files/x/content", "/v1/batches/x"):
            assert (await server.http.get(path, headers={"Authorization": ""})).status_code == 401


async def test_a_file_may_be_larger_than_a_body_and_not_larger_than_a_file(line: Line, tmp_path: Path) -> None:
    async with serving(tmp_path, line, max_body_bytes=1000, max_file_bytes=1_000_000) as server:
        assert (await server.client.files.create(file=b"x" * 1_000_000, purpose="batch")).bytes == 1_000_000
        with pytest.raises(openai.APIStatusError, match="larger than") as refused:
            await server.client.files.create(file=b"x" * 2_000_000, purpose="batch")
        assert refused.value.status_code == 413

        async def unannounced() -> AsyncIterator[bytes]:
            yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
            for _ in range(20):
                yield b"x" * 100_000

        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        response = await server.http.post("/v1/files", content=unannounced(), headers=headers)
        assert response.status_code == 413
        assert not list((tmp_path / "uploads").iterdir())
        assert (await server.http.post("/v1/batches", json={"a": "x" * 2000})).status_code == 413


async def test_without_a_folder_it_is_said_what_is_missing(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig())
    for method, path in (("GET", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/v1/batches/batch_1")):
        response = await site.client.request(method, path)
        assert response.status_code == 404 and "--data-dir" in response.json()["error"]["message"]


async def test_the_document_describes_it(server: Server) -> None:
    document = Document((await server.http.get("/openapi.json")).json())
    batch = await server.run("/v1/completions", [{"prompt": "a"}, {"prompt": 5}])
    for path, at in (
        ("/v1/files", "/v1/files"),
        ("/v1/batches", "/v1/batches"),
        ("/v1/files/{file_id}", f"/v1/files/{batch.output_file_id}"),
        ("/v1/batches/{batch_id}", f"/v1/batches/{batch.id}"),
        ("/v1/batches/{batch_id}", "/v1/batches/other"),
    ):
        document.check_answer(await server.http.get(at), path, "get")
    document.check_answer(await server.http.post(f"/v1/batches/{batch.id}/cancel"), "/v1/batches/{batch_id}/cancel")
    document.check_answer(await server.http.delete(f"/v1/files/{batch.input_file_id}"), "/v1/files/{file_id}", "delete")
    form = {"files": {"file": b"x"}, "data": {"purpose": "batch"}}
    document.check_answer(await server.http.post("/v1/files", **form), "/v1/files")  # type: ignore[arg-type]
    content = await server.http.get(f"/v1/files/{batch.error_file_id}/content")
    assert (
        content.headers["content-type"]
        in document.operation("/v1/files/{file_id}/content", "get")["responses"]["200"]["content"]
    )

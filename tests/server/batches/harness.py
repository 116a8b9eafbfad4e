"""Jobs over endpoints that a test speaks for: no engine, no HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Response
from pydantic import BaseModel

from seesaw.engine.values.errors import SeesawError
from seesaw.server.batches.answering import Answering
from seesaw.server.batches.jobs import Jobs
from seesaw.server.batches.objects import Batch, BatchRequest, File
from seesaw.server.batches.window import Window
from seesaw.server.config import ServerConfig
from seesaw.server.http.body import read_body
from seesaw.server.openai.serving import Arrival
from seesaw.server.threads import Lanes
from tests.patience import PATIENCE_S

URL = "/v1/completions"
LANES = Lanes()


class Body(BaseModel):
    prompt: str
    stream: bool = False
    priority: int | None = None


class Echo:
    """Answers with the prompt; `before` may wait, or raise, for a row that it is given."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.before: Callable[[str], Any] = lambda prompt: asyncio.sleep(0)

    def parse(self, raw: bytes) -> Body:
        return Body.model_validate_json(raw)

    async def respond(self, body: Body, arrival: Arrival) -> Response:
        self.heard.append(body.prompt)
        await self.before(body.prompt)
        usage = {"completion_tokens": len(body.prompt)}
        return Response(json.dumps({"text": body.prompt, "choices": [{}], "usage": usage}))


async def respond(
    id: str,
    body: bytes,
    parse: Callable[[bytes], Body],
    respond: Callable[[Body, Arrival], Coroutine[Any, Any, Response]],
    submitted: Callable[[], None],
) -> Response:
    """As `Serving.respond`, without what is around it."""
    parsed = await read_body(body, parse, LANES)
    return await respond(parsed, Arrival(id, 0.0, lambda: None, submitted))


class Held:
    """Holds rows until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, prompt: str) -> None:
        await self.opened.wait()


class Once:
    """Raises when it is called first, of each prompt."""

    def __init__(self, error: SeesawError) -> None:
        self._error = error
        self._seen: set[str] = set()

    async def __call__(self, prompt: str) -> None:
        if prompt not in self._seen:
            self._seen.add(prompt)
            raise self._error


@asynccontextmanager
async def running(
    folder: Path,
    endpoint: Echo,
    *,
    window_rows: int = 8,
    **config: Any,
) -> AsyncIterator[Jobs]:
    """Retries at once whatever could not be written."""
    settings = ServerConfig(data_dir=str(folder), **config)
    answering = Answering(respond, {URL: endpoint})
    jobs = Jobs(settings, answering, Window(window_rows, lambda num_entering: True), retry_s=0.0)
    await jobs.start()
    try:
        yield jobs
    finally:
        await jobs.close()


def lines(prompts: Iterable[object], url: str = URL) -> bytes:
    """An input: one whose prompt is no text is refused."""
    rows = (
        {"custom_id": f"row-{number}", "method": "POST", "url": url, "body": {"prompt": prompt}}
        for number, prompt in enumerate(prompts)
    )
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


async def put(jobs: Jobs, data: bytes, id: str = "file-in", expires_at: int | None = None) -> File:
    """A file, as if it had been uploaded."""
    jobs.folder.upload(id).write_bytes(data)
    jobs.folder.publish(id)
    file = File(id=id, bytes=len(data), created_at=0, expires_at=expires_at, filename="in.jsonl", purpose="batch")
    await jobs._do(lambda: jobs._store.add_file(file))
    return file


async def begin(jobs: Jobs, given: bytes | File, window: str = "24h", id: str = "file-in") -> str:
    """The id of a batch of these lines, or of a file that is there."""
    file = given if isinstance(given, File) else await put(jobs, given, id)
    batch = await jobs.add_batch(BatchRequest(input_file_id=file.id, endpoint=URL, completion_window=window))
    return batch.id


async def until(jobs: Jobs, id: str, holds: Callable[[Batch], bool]) -> Batch:
    """The batch, once this holds of it."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(batch := await jobs.batch(id)):
            pass
        return batch


async def ended(jobs: Jobs, id: str) -> Batch:
    return await until(jobs, id, lambda batch: batch.has_ended)


def read(jobs: Jobs, file: str | None) -> list[dict[str, Any]]:
    """The results in a file, if there is one."""
    if file is None:
        return []
    return [json.loads(line) for line in jobs.folder.file(file).read_bytes().splitlines()]


def texts(jobs: Jobs, batch: Batch) -> dict[str, str]:
    """Of the answered rows, by custom id; in the order of the file."""
    rows = read(jobs, batch.output_file_id)
    found = {row["custom_id"]: row["response"]["body"]["text"] for row in rows}
    assert len(found) == len(rows)
    return found


def expected(count: int) -> dict[str, str]:
    """Of all rows of `prompts(count)`."""
    return {f"row-{number}": prompt for number, prompt in enumerate(prompts(count))}


def prompts(count: int) -> list[str]:
    return [f"prompt {number}" + "x" * (7 * number % 50) for number in range(count)]

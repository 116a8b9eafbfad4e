"""The handlers of `/v1/files` and `/v1/batches`."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from seesaw.engine.values.errors import RequestError
from seesaw.server.batches.jobs import Jobs
from seesaw.server.batches.objects import BatchList, BatchRequest, FileDeleted, FileList
from seesaw.server.http.body import read_body, receive_body
from seesaw.server.http.errors import NotFoundError
from seesaw.server.openai.serving import CLIENT_CLOSED_REQUEST, as_json
from seesaw.server.threads import Lanes

MOST_FILES, MOST_BATCHES = 10_000, 100  # in a list; OpenAI's
DEFAULT_BATCHES = 20
MOST_DIGITS = 9  # of a number, which Python reads only up to a length
READ = ["GET", "HEAD"]


def add_job_routes(app: FastAPI, jobs: Jobs, lanes: Lanes) -> None:
    files, batches = Files(jobs), Batches(jobs, lanes)
    app.add_api_route("/v1/files", files.create, methods=["POST"])
    app.add_api_route("/v1/files", files.list, methods=READ)
    app.add_api_route("/v1/files/{file_id}", files.retrieve, methods=READ)
    app.add_api_route("/v1/files/{file_id}", files.delete, methods=["DELETE"])
    app.add_api_route("/v1/files/{file_id}/content", files.content, methods=READ)
    app.add_api_route("/v1/batches", batches.create, methods=["POST"])
    app.add_api_route("/v1/batches", batches.list, methods=READ)
    app.add_api_route("/v1/batches/{batch_id}", batches.retrieve, methods=READ)
    app.add_api_route("/v1/batches/{batch_id}/cancel", batches.cancel, methods=["POST"])


class Files:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def create(self, request: Request) -> Response:
        try:
            return as_json(await self._jobs.add_file(request))
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def list(self, request: Request) -> Response:
        limit, after = _limit(request, MOST_FILES, MOST_FILES), request.query_params.get("after")
        purpose, order = request.query_params.get("purpose"), request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise RequestError("order must be asc or desc.", "order")
        found = await self._jobs.files(purpose, after, limit + 1, descending=order == "desc")
        return as_json(FileList.of(found, limit))

    async def retrieve(self, file_id: str) -> Response:
        return as_json(await self._jobs.file(file_id))

    async def content(self, file_id: str) -> Response:
        file = await self._jobs.file(file_id)
        path = self._jobs.folder.file(file.id)
        try:
            found = await asyncio.to_thread(path.stat)
        except FileNotFoundError:
            raise NotFoundError(f"There is no file {file_id[:100]!r} any more.", "file_id") from None
        return FileResponse(path, media_type="application/octet-stream", filename=file.filename, stat_result=found)

    async def delete(self, file_id: str) -> Response:
        await self._jobs.delete_file(file_id)
        return as_json(FileDeleted(file_id))


class Batches:
    def __init__(self, jobs: Jobs, lanes: Lanes) -> None:
        self._jobs = jobs
        self._lanes = lanes

    async def create(self, request: Request) -> Response:
        body = await read_body(await receive_body(request), BatchRequest.model_validate_json, self._lanes)
        return as_json(await self._jobs.add_batch(body))

    async def list(self, request: Request) -> Response:
        limit, after = _limit(request, DEFAULT_BATCHES, MOST_BATCHES), request.query_params.get("after")
        found = await self._jobs.batches(after, limit + 1)
        return as_json(BatchList.of(found, limit))

    async def retrieve(self, batch_id: str) -> Response:
        return as_json(await self._jobs.batch(batch_id))

    async def cancel(self, batch_id: str) -> Response:
        return as_json(await self._jobs.cancel(batch_id))


def _limit(request: Request, default: int, most: int) -> int:
    """How many to list."""
    text = request.query_params.get("limit", str(default))
    if not text.isdecimal() or len(text) > MOST_DIGITS or not 1 <= int(text) <= most:
        raise RequestError(f"limit must be between 1 and {most}.", "limit")
    return int(text)

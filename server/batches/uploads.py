"""Files that clients send, written to the disk as they come: multipart/form-data, read by aiohttp's parser."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import BinaryIO

from aiohttp import BodyPartReader, MultipartReader
from aiohttp.http_exceptions import HttpProcessingError
from fastapi import Request
from pydantic import TypeAdapter, ValidationError

from seesaw.engine.values.errors import RequestError
from seesaw.server.batches.folder import DataFolder, sync_file
from seesaw.server.batches.objects import LEAST_LIFE_S, LONGEST_LIFE_S, ExpiresAfter, File, expires_at

CHUNK_BYTES = 1 << 18
MAX_FIELD_BYTES = 4096  # of a form's field that is no file
MAX_NAME_BYTES = 255  # of a file's name, as on disks
MAX_LINES = 1000  # of a form, beside its parts' values: each takes 30 us of the loop
_EXPIRES_AFTER = TypeAdapter(ExpiresAfter)


async def receive_upload(request: Request, folder: DataFolder) -> File:
    """The file of a form, in place in the folder, and still to be told to the store.

    Raises RequestError for a form that is none of OpenAI's, OSError if it cannot be written, and ClientDisconnect.
    """
    id = f"file-{uuid.uuid4().hex}"
    try:
        with folder.upload(id).open("wb") as file:
            fields = await _read_form(request, file)
            await asyncio.to_thread(sync_file, file)
            size_bytes = file.tell()
        if fields.get("purpose") != "batch":
            raise RequestError("purpose must be batch: this server keeps no other files.", "purpose")
        if "file" not in fields:
            raise RequestError("The form has no file: send one in the field named file.", "file")
        expires_after = _read_expiry(fields)
        await asyncio.to_thread(folder.publish, id)
    except BaseException:
        with suppress(OSError):
            folder.upload(id).unlink()
        raise
    now = int(time.time())
    return File(
        id=id,
        bytes=size_bytes,
        created_at=now,
        expires_at=expires_at(now, expires_after),
        filename=fields["file"],
        purpose="batch",
    )


async def _read_form(request: Request, file: BinaryIO) -> dict[str, str]:
    """The form's fields; the one named file goes into the file, and its value is the file's name."""
    fields: dict[str, str] = {}
    try:
        # The parser asks no more of a stream of aiohttp's than what `_Stream` has.
        reader = MultipartReader(request.headers, _Stream(request.stream()))  # type: ignore[arg-type]
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader) or part.name is None:
                raise RequestError("Each part of the form must have a name.")
            if part.name in fields:
                raise RequestError(f"The form has more than one {_as_text(part.name)[:100]!r}: send one.")
            if part.name == "file":
                fields["file"] = _as_text(part.filename or "upload.jsonl")
                if len(fields["file"].encode()) > MAX_NAME_BYTES:
                    raise RequestError(f"The file's name is longer than {MAX_NAME_BYTES} bytes.", "file")
                while not part.at_eof():
                    await asyncio.to_thread(file.write, await part.read_chunk(CHUNK_BYTES))
            else:
                value = b""
                while not part.at_eof():
                    value += await part.read_chunk()
                    if len(value) > MAX_FIELD_BYTES:
                        raise RequestError(f"Each field but the file may have {MAX_FIELD_BYTES} bytes.")
                fields[part.name] = value.decode()
    except (ValueError, AssertionError, KeyError, RuntimeError, HttpProcessingError):
        raise RequestError("The body must be a form with a file, sent as multipart/form-data.") from None
    return fields


def _as_text(name: str) -> str:
    """What the parser makes of bytes that are no text is none in a database or an answer."""
    return name.encode(errors="replace").decode()


def _read_expiry(fields: dict[str, str]) -> ExpiresAfter | None:
    given = {name: fields[key] for name in ("anchor", "seconds") if (key := f"expires_after[{name}]") in fields}
    try:
        return _EXPIRES_AFTER.validate_python(given) if given else None
    except ValidationError:
        raise RequestError(
            f"expires_after must have the anchor created_at and seconds between {LEAST_LIFE_S} and {LONGEST_LIFE_S}.",
            "expires_after",
        ) from None


class _Stream:
    """The body of a request, as aiohttp's parser reads one."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._unread = bytearray()  # to take from its beginning moves nothing
        self._num_lines = 0
        self._is_over = False

    def at_eof(self) -> bool:
        return self._is_over and not self._unread

    def unread_data(self, data: bytes) -> None:
        self._unread[:0] = data

    async def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""
        if not self._unread:
            await self._more()
        return self._take(size)

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        """With its end. Raises ValueError if it is too long, or one too many."""
        self._num_lines += 1
        if self._num_lines > MAX_LINES:
            raise ValueError("there are too many lines")
        while (end := self._unread.find(b"\n") + 1) == 0 and not self._is_over:
            if len(self._unread) > (max_line_length or CHUNK_BYTES):
                raise ValueError("a line is too long")
            await self._more()
        return self._take(end or len(self._unread))

    def _take(self, size: int) -> bytes:
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    async def _more(self) -> None:
        chunk = await anext(self._chunks, None)
        self._is_over = chunk is None
        self._unread += chunk or b""

"""Forms that clients send, in pieces of any size."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from seesaw.engine.values.errors import RequestError
from seesaw.server.batches import uploads
from seesaw.server.batches.folder import DataFolder
from seesaw.server.batches.objects import File
from seesaw.server.batches.uploads import receive_upload

pytestmark = pytest.mark.anyio

DATA = b'{"a": 1}\r\n--b\r\n\r\n--other--\n' * 20


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    folder = DataFolder(tmp_path)
    yield folder
    assert not list((tmp_path / "uploads").iterdir())
    folder.close()


def part(name: str, value: bytes, filename: str = "") -> bytes:
    named = f'; filename="{filename}"' if filename else ""
    return f'--BOUND\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--BOUND--\r\n"


WHOLE = form(part("purpose", b"batch"), part("file", DATA, "in.jsonl"))


async def send(
    folder: DataFolder, body: bytes, size: int = 1 << 16, kind: str = "multipart/form-data; boundary=BOUND"
) -> File:
    """The body in pieces of this size; one that is cut off is of a client that leaves."""
    pieces = [body[at : at + size] for at in range(0, max(1, len(body)), size)]

    async def receive() -> Message:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces) or piece.endswith(b"...")}

    headers = [(b"content-type", kind.encode())]
    return await receive_upload(Request({"type": "http", "headers": headers}, receive), folder)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 101, 1 << 16])
async def test_pieces_of_any_size(folder: DataFolder, size: int) -> None:
    file = await send(folder, WHOLE, size)
    assert folder.file(file.id).read_bytes() == DATA
    assert (file.filename, file.purpose, file.bytes) == ("in.jsonl", "batch", len(DATA))


async def test_when_it_expires(folder: DataFolder) -> None:
    fields = part("expires_after[anchor]", b"created_at"), part("expires_after[seconds]", b"3600")
    file = await send(folder, form(*fields, part("purpose", b"batch"), part("file", DATA, "x")))
    assert file.expires_at == file.created_at + 3600
    assert (await send(folder, WHOLE)).expires_at is None


@pytest.mark.parametrize(
    "fields",
    [
        {"anchor": b"created_at"},
        {"seconds": b"3600"},
        {"anchor": b"created_at", "seconds": b"3599"},
        {"anchor": b"created_at", "seconds": b"2592001"},
        {"anchor": b"created_at", "seconds": b"soon"},
        {"anchor": b"last_active_at", "seconds": b"3600"},
    ],
)
async def test_times_that_it_cannot_expire_at(folder: DataFolder, fields: dict[str, bytes]) -> None:
    parts = [part(f"expires_after[{name}]", value) for name, value in fields.items()]
    with pytest.raises(RequestError, match="anchor created_at and seconds between 3600 and 2592000") as refused:
        await send(folder, form(part("purpose", b"batch"), part("file", DATA, "x"), *parts))
    assert refused.value.param == "expires_after"


async def test_more_than_is_read_at_once(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "CHUNK_BYTES", 50)
    fields = part("file", DATA, "x"), part("other", b"9"), part("purpose", b"batch")
    assert folder.file((await send(folder, form(*fields), 33)).id).read_bytes() == DATA


async def test_an_empty_file_is_one(folder: DataFolder) -> None:
    assert (await send(folder, form(part("purpose", b"batch"), part("file", b"", "x")))).bytes == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (form(part("purpose", b"batch")), "no file"),
        (form(part("file", DATA, "x")), "purpose"),
        (form(part("file", DATA, "x"), part("purpose", b"vision")), "purpose"),
        (form(part("file", DATA, "x"), part("purpose", b"\xff")), "form"),
        (b"--BOUND\r\n\r\nx\r\n--BOUND--\r\n", "name"),
        (WHOLE[:200], "form"),
        (WHOLE[:60], "form"),
        (b"", "form"),
        (b"{}", "form"),
        (b"x" * 1_000_000, "form"),
        (b"\n" * 1_000_000, "form"),
        (form(*(part(f"f{number}", b"x") for number in range(1000))), "form"),
        (form(part("_charset_", b"x" * 100)), "form"),
        (form(part("purpose", b"x" * 4097)), "4096 bytes"),
        (form(part("purpose", b"batch"), part("purpose", b"batch")), "more than one 'purpose'"),
        (form(part("file", DATA, "x"), part("file", DATA, "y")), "more than one 'file'"),
        (form(part("file", DATA, "x" * 256)), "255 bytes"),
    ],
)
async def test_other_forms_are_refused(folder: DataFolder, body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        await send(folder, body)


@pytest.mark.parametrize("name", [b'"\xe4.jsonl"', b"*=unicode_escape''%5cudce4.jsonl"])
async def test_a_name_that_is_no_text_becomes_one(folder: DataFolder, name: bytes) -> None:
    named = WHOLE.replace(b'="in.jsonl"', name if name[:1] == b"*" else b"=" + name)
    assert (await send(folder, named)).filename == "?.jsonl"


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "", "multipart/form-data; boundary="])
async def test_other_bodies_are_refused(folder: DataFolder, kind: str) -> None:
    with pytest.raises(RequestError, match="form"):
        await send(folder, WHOLE, kind=kind)


async def test_a_client_that_leaves_leaves_nothing(folder: DataFolder) -> None:
    with pytest.raises(ClientDisconnect):
        await send(folder, WHOLE[:300] + b"...")
    assert not list((folder.path / "files").iterdir())


async def test_a_disk_that_is_full(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uploads, "sync_file", full)
    with pytest.raises(OSError, match="No space"):
        await send(folder, WHOLE)

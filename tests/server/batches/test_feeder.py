"""A batch from its start to its end, whatever comes between."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fastapi import Request
from starlette.types import Message

from seesaw.engine.values.errors import ConfigError, EngineDeadError, QueueFullError, RequestError, SeesawError
from seesaw.server.batches import log, outputs, sender
from seesaw.server.batches.objects import Batch, BatchRequest, File
from seesaw.server.batches.store import Store
from seesaw.server.http.errors import ConflictError, NoRoomError, NotFoundError
from seesaw.server.link.errors import EngineLostError, GenerationError, RestartingError, ShuttingDownError
from tests.patience import PATIENCE_S
from tests.server.batches.harness import (
    URL,
    Echo,
    Held,
    Once,
    begin,
    ended,
    expected,
    lines,
    prompts,
    put,
    read,
    running,
    texts,
    until,
)

pytestmark = pytest.mark.anyio


async def test_every_row_has_its_result_in_the_order_of_the_input(tmp_path: Path) -> None:
    echo = Echo()

    async def later_ones_end_first(prompt: str) -> None:
        for _ in range(-len(echo.heard) % 9):
            await asyncio.sleep(0)

    echo.before = later_ones_end_first
    async with running(tmp_path, echo) as jobs:
        batch = await ended(jobs, await begin(jobs, lines(prompts(100))))
        assert batch.status == "completed" and batch.error_file_id is None
        assert (batch.request_counts.total, batch.request_counts.completed) == (100, 100)
        assert list(texts(jobs, batch).items()) == list(expected(100).items())
        assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
        file = await jobs.file(batch.output_file_id or "")
        assert file.bytes == jobs.folder.file(file.id).stat().st_size
        assert len(echo.heard) == 100
        await until(jobs, batch.id, lambda _: not list((tmp_path / "batches").iterdir()))
        assert not list((tmp_path / "uploads").iterdir())


async def test_rows_that_are_refused_have_a_file_of_their_own(tmp_path: Path) -> None:
    async with running(tmp_path, Echo()) as jobs:
        batch = await ended(jobs, await begin(jobs, lines(["a", 5, "b", None])))
        assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 2)
        assert list(texts(jobs, batch)) == ["row-0", "row-2"]
        refused = read(jobs, batch.error_file_id)
        assert [row["custom_id"] for row in refused] == ["row-1", "row-3"]
        assert refused[0]["error"] is None and refused[0]["response"]["status_code"] == 400
        assert refused[0]["response"]["body"]["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError("no", "prompt"), 400),
        (GenerationError("gave up"), 500),
        (ZeroDivisionError("a bug"), 500),
    ],
)
async def test_what_a_request_would_get_a_row_gets(tmp_path: Path, error: Exception, status: int) -> None:
    echo = Echo()
    echo.before = Once(error)  # type: ignore[arg-type]
    async with running(tmp_path, echo) as jobs:
        batch = await ended(jobs, await begin(jobs, lines(["a"])))
        [row] = read(jobs, batch.error_file_id)
        assert row["response"]["status_code"] == status and batch.output_file_id is None


async def test_a_stream_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, Echo()) as jobs:
        data = lines(["a"]).replace(b'"prompt"', b'"stream": true, "prompt"')
        batch = await ended(jobs, await begin(jobs, data))
        [row] = read(jobs, batch.error_file_id)
        assert row["response"]["body"]["error"]["param"] == "stream"


@pytest.mark.parametrize("error", [QueueFullError("full"), RestartingError(1), EngineLostError("killed")])
async def test_what_will_pass_is_no_error_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: SeesawError
) -> None:
    monkeypatch.setattr(sender, "RETRY_ROW_S", (0.0, 0.0))
    echo = Echo()
    echo.before = Once(error)
    async with running(tmp_path, echo) as jobs:
        batch = await ended(jobs, await begin(jobs, lines(prompts(30))))
        assert texts(jobs, batch) == expected(30)
        assert len(echo.heard) == 60


@pytest.mark.parametrize("error", [EngineDeadError("dead"), ShuttingDownError("ending")])
async def test_an_engine_that_dies_fails_no_row(tmp_path: Path, error: EngineDeadError | ShuttingDownError) -> None:
    dying = Echo()

    async def die(prompt: str) -> None:
        if len(dying.heard) > 12:
            raise error

    dying.before = die
    async with running(tmp_path, dying) as jobs:
        id = await begin(jobs, lines(prompts(30)))
        batch = await until(jobs, id, lambda batch: batch.request_counts.completed == 12)
        assert batch.status == "in_progress"
    echo = Echo()
    async with running(tmp_path, echo) as jobs:
        batch = await ended(jobs, id)
        assert list(texts(jobs, batch).items()) == list(expected(30).items())
        assert len(echo.heard) == 18


async def test_it_goes_on_wherever_the_server_was_killed(tmp_path: Path) -> None:
    """Copies of the folder at many moments are what a kill would have left there; each comes to the same end."""
    copies: list[Path] = []

    async def copy(prompt: str) -> None:
        if len(copies) < 12 and len(echo.heard) % 3 == 0:
            copies.append(tmp_path / f"copy-{len(copies)}")
            shutil.copytree(tmp_path / "data", copies[-1])
        await asyncio.sleep(0)

    echo = Echo()
    echo.before = copy
    async with running(tmp_path / "data", echo) as jobs:
        id = await begin(jobs, lines([*prompts(40), 5]))
        undisturbed = await ended(jobs, id)
        expected_errors = [row["custom_id"] for row in read(jobs, undisturbed.error_file_id)]
    assert len(copies) == 12
    for folder in copies:
        async with running(folder, Echo()) as jobs:
            batch = await ended(jobs, id)
            assert batch.request_counts == undisturbed.request_counts
            assert list(texts(jobs, batch).items()) == list(expected(40).items())
            assert [row["custom_id"] for row in read(jobs, batch.error_file_id)] == expected_errors


@pytest.mark.parametrize("cut", ["renamed", "written", "ended"])
async def test_it_goes_on_if_killed_while_its_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Before the output file has its name, before the store knows of it, and before what was needed is removed."""

    def copy_and(do: Callable[..., object]) -> Callable[..., object]:
        def act(*arguments: object) -> object:
            if not (tmp_path / "copy").exists():
                shutil.copytree(tmp_path / "data", tmp_path / "copy")
            return do(*arguments)

        return act

    async with running(tmp_path / "data", Echo()) as jobs:
        owner, name = {
            "written": (jobs.folder, "publish"),
            "renamed": (jobs._store, "end"),
            "ended": (jobs.folder, "drop_batch"),
        }[cut]
        file = await put(jobs, lines(prompts(20)))
        monkeypatch.setattr(owner, name, copy_and(getattr(owner, name)))
        id = await begin(jobs, file)
        await ended(jobs, id)
        await until(jobs, id, lambda _: (tmp_path / "copy").exists())
    async with running(tmp_path / "copy", Echo()) as jobs:
        batch = await ended(jobs, id)
        assert list(texts(jobs, batch).items()) == list(expected(20).items())
        assert len(await jobs.files(None, None, 10, descending=True)) == 2


async def test_a_full_disk_stops_a_batch_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a line a part may have been written."""
    is_full, write = True, os.pwrite

    def write_some(file: int, data: memoryview, start: int) -> int:
        if is_full and start > 500:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:400], start)

    monkeypatch.setattr(log.os, "pwrite", write_some)
    async with running(tmp_path, Echo()) as jobs:
        id = await begin(jobs, lines(prompts(50)))
        batch = await until(jobs, id, lambda batch: batch.errors is not None)
        assert batch.status == "in_progress" and batch.errors is not None
        [error] = batch.errors.data
        assert error.code == "no_space_left" and str(tmp_path) in error.message
        is_full = False
        batch = await ended(jobs, id)
        assert batch.errors is None
        assert list(texts(jobs, batch).items()) == list(expected(50).items())


@pytest.mark.parametrize("step", ["update", "end"])
async def test_a_full_disk_under_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    async with running(tmp_path, Echo()) as jobs:
        id = await begin(jobs, lines(prompts(300)))
        work, num_left, database = getattr(jobs._store, step), 3, jobs._store._db

        def fail_at_first(*arguments: object) -> None:
            nonlocal num_left
            num_left -= 1
            database.execute(f"PRAGMA max_page_count = {1 if num_left > 0 else 1 << 20}")  # 1: no more than there are
            if num_left > 0:
                with pytest.raises(sqlite3.OperationalError, match="full") as failure, jobs._store._transaction():
                    database.execute("CREATE TABLE more AS SELECT zeroblob(100000)")
                raise failure.value
            work(*arguments)

        monkeypatch.setattr(jobs._store, step, fail_at_first)
        batch = await ended(jobs, id)
        assert num_left <= 0
        assert texts(jobs, batch) == expected(300)


async def test_clients_are_told_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, Echo()) as jobs:

        def full(batch: Batch) -> None:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

        monkeypatch.setattr(jobs._store, "add_batch", full)
        with pytest.raises(NoRoomError):
            await begin(jobs, lines(["a"]))
        assert not list((tmp_path / "batches").iterdir())


async def test_a_file_that_nobody_hears_of_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, Echo()) as jobs:

        def broken(file: File) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        async def receive() -> Message:
            part = b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
            body = part % (b"purpose", b"batch") + part % (b"file", b"x") + b"--B--\r\n"
            return {"type": "http.request", "body": body}

        monkeypatch.setattr(jobs._store, "add_file", broken)
        headers = [(b"content-type", b"multipart/form-data; boundary=B")]
        with pytest.raises(sqlite3.OperationalError):
            await jobs.add_file(Request({"type": "http", "headers": headers}, receive))
        assert not list((tmp_path / "files").iterdir())


async def test_a_bad_input_fails_and_says_where(tmp_path: Path) -> None:
    async with running(tmp_path, Echo(), max_batch_rows=3) as jobs:
        batch = await ended(jobs, await begin(jobs, lines(["a"]) + b"{\n" + lines(["b"])))
        assert batch.status == "failed" and batch.failed_at and batch.errors is not None
        assert [(error.code, error.line) for error in batch.errors.data] == [
            ("invalid_json_line", 2),
            ("duplicate_custom_id", 3),
        ]
        assert batch.output_file_id is None and batch.error_file_id is None
        batch = await ended(jobs, await begin(jobs, lines(prompts(4)), id="file-long"))
        assert batch.errors is not None and batch.errors.data[0].code == "too_many_requests"


async def test_cancel(tmp_path: Path) -> None:
    echo, held = Echo(), Held()
    async with running(tmp_path, echo) as jobs:
        id = await begin(jobs, lines(prompts(5)))
        await ended(jobs, id)
        echo.before = held
        id = await begin(jobs, lines(prompts(40)), id="file-b")
        await until(jobs, id, lambda _: len(echo.heard) == 5 + 8)
        batch = await jobs.cancel(id)
        assert batch.status in ("cancelling", "cancelled") and batch.cancelling_at
        batch = await ended(jobs, id)
        assert batch.status == "cancelled" and batch.cancelled_at and batch.output_file_id is None
        errors = read(jobs, batch.error_file_id)
        assert [row["custom_id"] for row in errors] == list(expected(40))
        assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
        assert errors[0]["response"] is None
        with pytest.raises(ConflictError, match="cancelled cannot"):
            await jobs.cancel(id)
        with pytest.raises(NotFoundError):
            await jobs.cancel("batch_unknown")
        echo.before = lambda prompt: asyncio.sleep(0)
        assert (await ended(jobs, await begin(jobs, lines(prompts(20)), id="file-c"))).status == "completed"


async def test_cancel_at_any_moment(tmp_path: Path) -> None:
    """Every row is in one of the files, or there are none since it had no rows yet."""
    async with running(tmp_path, Echo()) as jobs:
        for turns in range(0, 60, 3):
            id = await begin(jobs, lines(prompts(12)), id=f"file-{turns}")
            for _ in range(turns):
                await asyncio.sleep(0)
            try:
                await jobs.cancel(id)
            except ConflictError:
                assert (await jobs.batch(id)).status in ("completed", "finalizing")
            batch = await ended(jobs, id)
            assert batch.status in ("cancelled", "completed")
            rows = [*texts(jobs, batch), *(row["custom_id"] for row in read(jobs, batch.error_file_id))]
            assert sorted(rows) == sorted(expected(12)) or (batch.status == "cancelled" and not rows)
        assert not jobs.feeder.jobs


async def test_cancel_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cancelled at once, and has its files when there is room."""
    is_full, write = True, os.pwrite

    def fail(file: int, data: memoryview, start: int) -> int:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data, start)

    monkeypatch.setattr(log.os, "pwrite", fail)
    async with running(tmp_path, Echo()) as jobs:
        id = await begin(jobs, lines(prompts(50)))
        await until(jobs, id, lambda batch: batch.errors is not None)
        cancelled = await jobs.cancel(id)
        assert cancelled.status == "cancelling" and cancelled.errors is not None
        is_full = False
        batch = await ended(jobs, id)
        assert batch.status == "cancelled"
        assert len(texts(jobs, batch)) + len(read(jobs, batch.error_file_id)) == 50


async def test_an_end_in_the_midst_of_writing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for the thread that writes them: nobody else may have the folder before."""
    writing, write = asyncio.Event(), outputs._Writer.write
    loop = asyncio.get_running_loop()
    async with running(tmp_path, Echo()) as jobs:

        def write_and_wait(writer: outputs._Writer, line: bytes) -> None:
            loop.call_soon_threadsafe(writing.set)
            jobs.feeder._stop.wait(PATIENCE_S)
            write(writer, line)

        monkeypatch.setattr(outputs._Writer, "write", write_and_wait)
        id = await begin(jobs, lines(prompts(20)))
        await writing.wait()
    monkeypatch.undo()
    assert not list((tmp_path / "files").glob("*output"))
    async with running(tmp_path, Echo()) as jobs:
        assert texts(jobs, await ended(jobs, id)) == expected(20)


async def test_a_batch_expires(tmp_path: Path) -> None:
    echo = Echo()
    held = Held()

    async def hold_some(prompt: str) -> None:
        if len(echo.heard) > 10:
            await held(prompt)

    echo.before = hold_some
    async with running(tmp_path, echo) as jobs:
        batch = await ended(jobs, await begin(jobs, lines(prompts(30)), window="1s"))
        assert batch.status == "expired" and batch.expired_at and batch.expired_at >= batch.expires_at
        assert len(texts(jobs, batch)) == batch.request_counts.completed == 10
        errors = read(jobs, batch.error_file_id)
        assert len(errors) == 20 and {row["error"]["code"] for row in errors} == {"batch_expired"}


async def test_its_files_expire_as_it_said(tmp_path: Path) -> None:
    async with running(tmp_path, Echo()) as jobs:
        file = await put(jobs, lines(["a", 5]))
        body = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h"}
        body["output_expires_after"] = {"anchor": "created_at", "seconds": 7200}
        batch = await ended(jobs, (await jobs.add_batch(BatchRequest.model_validate(body))).id)
        for id in (batch.output_file_id, batch.error_file_id):
            file = await jobs.file(id or "")
            assert file.expires_at == file.created_at + 7200


async def test_files_that_have_expired_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once for clients, and then on the disk. A batch whose input expires goes on."""
    echo, held = Echo(), Held()
    echo.before = held
    now = time.time()
    async with running(tmp_path, echo) as jobs:
        file = await put(jobs, lines(prompts(20)), expires_at=int(now) + 100)
        id = await begin(jobs, file)
        assert await jobs.file(file.id) == file
        monkeypatch.setattr(time, "time", lambda: now + 101)
        with pytest.raises(NotFoundError):
            await jobs.file(file.id)
        assert await jobs.files(None, None, 10, descending=True) == []
        with pytest.raises(NotFoundError):
            await begin(jobs, file)
        assert jobs.folder.file(file.id).exists()
    held.opened.set()
    async with running(tmp_path, echo) as jobs:
        await until(jobs, id, lambda _: not jobs.folder.file(file.id).exists())
        assert texts(jobs, await ended(jobs, id)) == expected(20)


async def test_a_batch_that_expired_while_nobody_served(tmp_path: Path) -> None:
    echo = Echo()
    echo.before = Held()
    async with running(tmp_path, echo) as jobs:
        id = await begin(jobs, lines(prompts(3)))
        await until(jobs, id, lambda batch: batch.status == "in_progress")
    store = Store(tmp_path / "jobs.sqlite")
    [numbered] = store.open_batches()
    store.update([replace(numbered, batch=msgspec.structs.replace(numbered.batch, expires_at=1))])
    store.close()
    async with running(tmp_path, Echo()) as jobs:
        batch = await ended(jobs, id)
        assert batch.status == "expired" and batch.request_counts.completed == 0


async def test_batches_are_served_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    """A later one has what an earlier one leaves."""
    echo, held = Echo(), Held()

    async def hold_the_first(prompt: str) -> None:
        if prompt == "hold":
            await held(prompt)

    echo.before = hold_the_first
    async with running(tmp_path, echo, window_rows=2) as jobs:
        first = await begin(jobs, lines(["hold", *["first"] * 10]), id="file-a")
        await until(jobs, first, lambda batch: batch.status == "in_progress")
        second = await begin(jobs, lines(["second"] * 10), id="file-b")
        assert (await ended(jobs, second)).status == "completed"
        assert (await jobs.batch(first)).status == "in_progress"
        held.opened.set()
        assert (await ended(jobs, first)).status == "completed"
        order = [prompt for prompt in echo.heard if prompt != "hold"]
        assert order.index("second") >= 9  # it had no room before


async def test_many_small_batches_run_beside_one_another(tmp_path: Path) -> None:
    """However many there are, since those that have sent all their rows keep no others from sending."""
    echo, held = Echo(), Held()
    echo.before = held
    async with running(tmp_path, echo, window_rows=40) as jobs:
        ids = [await begin(jobs, lines(prompts(2)), id=f"file-{number}") for number in range(12)]
        await until(jobs, ids[-1], lambda _: len(echo.heard) == 24)
        held.opened.set()
        assert {(await ended(jobs, id)).status for id in ids} == {"completed"}


async def test_an_input_may_be_deleted_while_it_is_used(tmp_path: Path) -> None:
    echo, held = Echo(), Held()
    echo.before = held
    async with running(tmp_path, echo) as jobs:
        id = await begin(jobs, lines(prompts(20)))
        await jobs.delete_file("file-in")
        held.opened.set()
        assert texts(jobs, await ended(jobs, id)) == expected(20)
        with pytest.raises(NotFoundError):
            await jobs.file("file-in")


async def test_a_folder_that_is_used(tmp_path: Path) -> None:
    async with running(tmp_path, Echo()):
        with pytest.raises(ConfigError, match="another server"):
            async with running(tmp_path, Echo()):
                pass

"""What is left of files and database wherever writing was cut off."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from msgspec.json import encode

from seesaw.engine.values.errors import ConfigError
from seesaw.server.batches.folder import DataFolder, check_data_dir
from seesaw.server.batches.job import Job
from seesaw.server.batches.log import ResultLog
from seesaw.server.batches.objects import Batch, File, RequestCounts
from seesaw.server.batches.store import DROP_AT_ONCE, SCHEMA, Numbered, Result, Store
from seesaw.server.config import ServerConfig

LINES = [b"%d" % number + b"x" * (37 * number % 90) + b"\n" for number in range(24)]


def batch(id: str = "batch_a", total: int = len(LINES)) -> Batch:
    counts = RequestCounts(total)
    return Batch(
        id=id,
        endpoint="/v1/completions",
        input_file_id="file-in",
        completion_window="24h",
        created_at=1,
        expires_at=2,
        request_counts=counts,
    )


def file(id: str, purpose: str = "batch") -> File:
    return File(id=id, bytes=1, created_at=1, filename="a", purpose=purpose)  # type: ignore[arg-type]


def commit_in_threes(folder: DataFolder, store: Store) -> list[int]:
    """Results of all rows, the last ones first. Returns how long the write-ahead log was after each transaction."""
    numbered = store.add_batch(batch())
    folder.log("batch_a").parent.mkdir()
    log = ResultLog(folder.log("batch_a"), 0)
    wal = folder.database.with_name("jobs.sqlite-wal")
    sizes = [wal.stat().st_size]
    rows = list(reversed(range(len(LINES))))
    for at in range(0, len(rows), 3):
        some = rows[at : at + 3]
        starts = log.append([LINES[row] for row in some])
        results = [
            (numbered.number, Result(row, row % 5 == 0, start, len(LINES[row])))
            for row, start in zip(some, starts, strict=True)
        ]
        store.update([numbered], results)
        log.keep(sum(len(LINES[row]) for row in some))
        sizes.append(wal.stat().st_size)
    log.close()
    return sizes


def check_restored(path: Path) -> int:
    """Of a folder that was cut off: what is known of its results is whole. Returns how many there are."""
    folder = DataFolder(path)
    store = Store(folder.database)
    try:
        open_batches = store.open_batches()
        if not open_batches:
            return 0
        job = Job(open_batches[0].number, open_batches[0].batch)
        counts = job.restore(store, folder.log(job.batch.id))
        results = list(store.results(job.number))
        data = folder.log("batch_a").read_bytes()
        assert [data[r.start : r.start + r.bytes] for r in results] == [LINES[r.row] for r in results]
        assert len(data) == job.open_log.end == sum(r.bytes for r in results)
        assert [row for row, done in enumerate(job.done) if done] == [r.row for r in results]
        assert (counts.completed, counts.failed) == (
            sum(r.row % 5 != 0 for r in results),
            sum(r.row % 5 == 0 for r in results),
        )
        job.open_log.close()
        return len(results)
    finally:
        store.close()
        folder.close()


def test_a_transaction_that_is_torn_leaves_those_before_it(tmp_path: Path) -> None:
    """The write-ahead log is cut behind each, before its last byte, and in its midst."""
    folder = DataFolder(tmp_path / "whole")
    store = Store(folder.database)
    sizes = commit_in_threes(folder, store)
    cuts = sorted({*sizes, *(size - 1 for size in sizes[1:]), *((a + b) // 2 for a, b in pairwise(sizes))})
    kept = []
    for cut in cuts:
        copy = tmp_path / "a copy %20 #1?"
        shutil.copytree(folder.path, copy)
        with (copy / "jobs.sqlite-wal").open("r+b") as wal:
            wal.truncate(cut)
        (copy / "jobs.sqlite-shm").unlink()
        kept.append(check_restored(copy))
        shutil.rmtree(copy)
    store.close()
    folder.close()
    assert [kept[cuts.index(size)] for size in sizes] == [3 * number for number in range(len(sizes))]
    assert kept == sorted(kept)


@pytest.mark.parametrize("tail", [b"", b"{", LINES[3], LINES[3] * 50 + b"{"])
def test_what_is_behind_the_last_result_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    folder = DataFolder(tmp_path)
    store = Store(folder.database)
    commit_in_threes(folder, store)
    store.close()
    folder.close()
    with folder.log("batch_a").open("ab") as log:
        log.write(tail)
    assert check_restored(tmp_path) == len(LINES)


def test_results_whose_lines_were_lost_are_forgotten(tmp_path: Path) -> None:
    """Which only a disk that lies can do: the lines are there before they are told of."""
    folder = DataFolder(tmp_path)
    store = Store(folder.database)
    commit_in_threes(folder, store)
    store.close()
    folder.close()
    with folder.log("batch_a").open("r+b") as log:
        log.truncate(len(b"".join(LINES)) - 1)
    assert check_restored(tmp_path) == len(LINES) - 1
    folder.log("batch_a").unlink()
    assert check_restored(tmp_path) == 0


def test_of_a_transaction_all_or_nothing_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    numbered = store.add_batch(batch())
    store.update([numbered], [(1, Result(0, False, 0, 5))])
    changed = Numbered(numbered.number, batch(total=99))
    with pytest.raises(Exception, match="UNIQUE"):
        store.update([changed], [(1, Result(1, False, 5, 5)), (1, Result(0, False, 10, 5))])
    assert store.batch("batch_a") == numbered.batch
    assert [result.row for result in store.results(1)] == [0]
    with pytest.raises(Exception, match="UNIQUE"):
        store.end(changed, [file("file-a"), file("file-a")])
    assert store.file("file-a") is None
    assert store.open_batches() == [numbered]


def test_lists_have_pages(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    for number in range(5):
        store.add_file(file(f"file-{number}", "batch" if number % 2 else "batch_output"))
        store.add_batch(batch(f"batch_{number}"))
    ids = lambda found: [each.id for each in found]  # noqa: E731
    assert ids(store.files(None, None, 2, descending=True)) == ["file-4", "file-3"]
    assert ids(store.files(None, "file-3", 2, descending=True)) == ["file-2", "file-1"]
    assert ids(store.files(None, "file-3", 2, descending=False)) == ["file-4"]
    assert ids(store.files("batch", None, 9, descending=False)) == ["file-1", "file-3"]
    assert ids(store.files(None, "file-unknown", 9, descending=False)) == []
    assert ids(store.batches(None, 2)) == ["batch_4", "batch_3"]
    assert ids(store.batches("batch_1", 9)) == ["batch_0"]
    assert store.delete_file("file-2") and not store.delete_file("file-2")
    assert ids(store.files(None, None, 9, descending=False)) == ["file-0", "file-1", "file-3", "file-4"]


def test_results_are_dropped_in_parts(tmp_path: Path) -> None:
    store = Store(tmp_path / "db")
    store.update([], [(1, Result(row, False, row, 1)) for row in range(DROP_AT_ONCE + 1)])
    assert store.batches_with_results() == [1]
    assert store.drop_results(1)
    assert not store.drop_results(1)
    assert store.batches_with_results() == []


def test_a_folder_is_one_servers(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with pytest.raises(ConfigError, match="another server"):
        DataFolder(tmp_path)
    folder.close()
    check_data_dir(ServerConfig(data_dir=str(tmp_path)))
    check_data_dir(ServerConfig(data_dir=str(tmp_path)))


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        check_data_dir(ServerConfig(data_dir=str(tmp_path / "file")))
    (tmp_path / "db").write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot use the database"):
        Store(tmp_path / "db")
    store = Store(tmp_path / "new")
    store._db.execute("PRAGMA user_version = 7")
    store.close()
    with pytest.raises(ConfigError, match="newer"):
        Store(tmp_path / "new")


def test_what_was_being_made_is_removed(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    for path in (folder.upload("a"), folder.file("file-told"), folder.file("file-untold")):
        path.write_text("x")
    folder.keep_input("file-told", "batch_open")
    folder.keep_input("file-told", "batch_untold")
    folder.clean({"file-told"}, {"batch_open"})
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"lock", "files/file-told", "batches/batch_open/input.jsonl"}
    folder.close()


def test_a_folder_of_the_first_version(tmp_path: Path) -> None:
    """Its files do not expire."""
    path = tmp_path / "jobs.sqlite"
    with closing(sqlite3.connect(path)) as db:
        for statement in SCHEMA.replace(", expires_at INTEGER", "").split(";"):
            if "expires_at" not in statement and "user_version" not in statement:
                db.execute(statement)
        db.execute("INSERT INTO files (id, purpose, object) VALUES ('a', 'batch', ?)", (encode(file("a")),))
        db.execute("PRAGMA user_version = 1")
        db.commit()
    for _ in range(2):
        store = Store(path)
        assert [each.id for each in store.files(None, None, 10, descending=False)] == ["a"]
        assert store.expired_files() == []
        store.close()


@pytest.mark.parametrize("num_batches", [10, 1000])
def test_the_start_does_not_look_at_what_has_ended(tmp_path: Path, num_batches: int) -> None:
    """As SQLite counts its instructions: those of the names of files, which are compared with the folder's."""
    folder = DataFolder(tmp_path)
    store = Store(folder.database)
    store._db.execute("PRAGMA synchronous = OFF")  # no power is cut here
    for number in range(num_batches):
        ended = msgspec.structs.replace(batch(f"batch_{number}"), status="completed")
        store.end(store.add_batch(ended), [file(f"file-{number}-{kind}") for kind in ("output", "error")])
    store.close()
    store, num_instructions = Store(folder.database), 0

    def count() -> None:
        nonlocal num_instructions
        num_instructions += 10

    store._db.set_progress_handler(count, 10)
    assert store.open_batches() == [] and store.batches_with_results() == [] and store.expired_files() == []
    assert num_instructions < 200
    assert len(store.file_ids()) == 2 * num_batches and num_instructions < 200 + 2 * 20 * num_batches
    store.close()
    folder.close()

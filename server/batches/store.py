"""What is known of files and batches, in SQLite: what they are, and where the results of a batch that runs lie.

A transaction is on the disk when its method returns, and nothing of it is there if it was cut off. Synchronous, and for
one thread at a time; `server.batches.feeder` and the handlers share one thread for it. Only `Store.results` may run
beside: it reads through a connection of its own.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from seesaw.engine.values.errors import ConfigError
from seesaw.server.batches.objects import Batch, File

VERSION = 2
SCHEMA = f"""
CREATE TABLE files (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, purpose TEXT NOT NULL,
    object BLOB NOT NULL, expires_at INTEGER);
CREATE INDEX expiring_files ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE batches (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, is_open INTEGER NOT NULL,
    object BLOB NOT NULL);
CREATE INDEX open_batches ON batches (number) WHERE is_open;
CREATE TABLE results (batch INTEGER NOT NULL, row INTEGER NOT NULL, is_error INTEGER NOT NULL, start INTEGER NOT NULL,
    bytes INTEGER NOT NULL, PRIMARY KEY (batch, row)) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""
FROM_VERSION_1 = f"""
ALTER TABLE files ADD COLUMN expires_at INTEGER;
CREATE INDEX expiring_files ON files (expires_at) WHERE expires_at IS NOT NULL;
PRAGMA user_version = {VERSION};
"""
IS_THERE = "(expires_at IS NULL OR expires_at > :now)"  # an expired file may be there still, for nobody
DROP_AT_ONCE = 10_000  # results in a transaction: others wait for it

_encode = msgspec.json.Encoder().encode
_decode_file = msgspec.json.Decoder(File).decode
_decode_batch = msgspec.json.Decoder(Batch).decode


class Result(NamedTuple):
    """Where the result of a row lies in the batch's log. `row` counts the requests of the input file, from 0."""

    row: int
    is_error: bool
    start: int
    bytes: int


@dataclass(frozen=True)
class Numbered:
    """A batch, and its number: batches that came earlier have lower ones."""

    number: int
    batch: Batch


class Store:
    def __init__(self, path: Path) -> None:
        """Opens the database, or makes it. Raises ConfigError if it is none, or a newer version's."""
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # a batch that a client was told of outlives a power cut
            [version] = self._db.execute("PRAGMA user_version").fetchone()
            if version < VERSION:
                with self._transaction():
                    for statement in (FROM_VERSION_1 if version else SCHEMA).split(";"):
                        self._db.execute(statement)
        except sqlite3.Error as error:
            raise ConfigError(f"cannot use the database {path}: {error}") from None
        if version > VERSION:
            raise ConfigError(f"{path} was made by a newer Seesaw: take that, or another data_dir")

    def close(self) -> None:
        self._db.close()

    # Files.

    def add_file(self, file: File) -> None:
        with self._transaction():
            self._add_file(file)

    def file(self, id: str) -> File | None:
        found = self._db.execute(
            f"SELECT object FROM files WHERE id = :id AND {IS_THERE}", {"id": id, "now": time.time()}
        ).fetchone()
        return None if found is None else _decode_file(found[0])

    def files(self, purpose: str | None, after: str | None, limit: int, *, descending: bool) -> list[File]:
        """In the order in which they came, or the other way round. `after`: those behind this one; if it is not there,
        none."""
        compare, order = ("<", "DESC") if descending else (">", "ASC")
        found = self._db.execute(
            f"SELECT object FROM files WHERE {IS_THERE} AND (:purpose IS NULL OR purpose = :purpose) AND "
            f"(:after IS NULL OR number {compare} (SELECT number FROM files WHERE id = :after)) "
            f"ORDER BY number {order} LIMIT :limit",
            {"purpose": purpose, "after": after, "limit": limit, "now": time.time()},
        )
        return [_decode_file(row[0]) for row in found]

    def file_ids(self) -> set[str]:
        return {row[0] for row in self._db.execute("SELECT id FROM files")}

    def delete_file(self, id: str) -> bool:
        """Whether it was there."""
        with self._transaction():
            return self._db.execute("DELETE FROM files WHERE id = ?", (id,)).rowcount == 1

    def expired_files(self) -> list[str]:
        """The ids of those that wait to be deleted."""
        found = self._db.execute("SELECT id FROM files WHERE expires_at <= ?", (time.time(),))
        return [row[0] for row in found]

    # Batches.

    def add_batch(self, batch: Batch) -> Numbered:
        with self._transaction():
            number = self._db.execute(
                "INSERT INTO batches (id, is_open, object) VALUES (?, 1, ?)", (batch.id, _encode(batch))
            ).lastrowid
        assert number is not None
        return Numbered(number, batch)

    def batch(self, id: str) -> Batch | None:
        found = self._db.execute("SELECT object FROM batches WHERE id = ?", (id,)).fetchone()
        return None if found is None else _decode_batch(found[0])

    def batches(self, after: str | None, limit: int) -> list[Batch]:
        """The newest first. `after`: as of `files`."""
        found = self._db.execute(
            "SELECT object FROM batches WHERE :after IS NULL OR number < "
            "(SELECT number FROM batches WHERE id = :after) ORDER BY number DESC LIMIT :limit",
            {"after": after, "limit": limit},
        )
        return [_decode_batch(row[0]) for row in found]

    def open_batches(self) -> list[Numbered]:
        """Those that have not ended, the oldest first."""
        found = self._db.execute("SELECT number, object FROM batches WHERE is_open ORDER BY number")
        return [Numbered(number, _decode_batch(encoded)) for number, encoded in found]

    def update(self, changed: Sequence[Numbered], results: Sequence[tuple[int, Result]] = ()) -> None:
        """Keep what these batches are now, and results of them (with the batch's number), all of it or nothing."""
        with self._transaction():
            self._db.executemany(
                "INSERT INTO results (batch, row, is_error, start, bytes) VALUES (?, ?, ?, ?, ?)",
                ((number, *result) for number, result in results),
            )
            self._update(changed)

    def end(self, ended: Numbered, files: Sequence[File] = ()) -> None:
        """Keep what a batch has become that has ended, and the files of its results."""
        with self._transaction():
            for file in files:
                self._add_file(file)
            self._update([ended])

    # Results.

    def results(self, number: int) -> Generator[Result]:
        """All of a batch's, in the order of its rows."""
        with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            found = db.execute(
                "SELECT row, is_error, start, bytes FROM results WHERE batch = ? ORDER BY row", (number,)
            )
            for row, is_error, start, size in found:
                yield Result(row, bool(is_error), start, size)

    def forget_results_behind(self, number: int, end: int) -> int:
        """Forget results that are not wholly before this byte of the log. Returns where the last of the others ends."""
        with self._transaction():
            self._db.execute("DELETE FROM results WHERE batch = ? AND start + bytes > ?", (number, end))
        [last] = self._db.execute("SELECT max(start + bytes) FROM results WHERE batch = ?", (number,)).fetchone()
        return last or 0

    def batches_with_results(self) -> list[int]:
        """Their numbers."""
        return [row[0] for row in self._db.execute("SELECT DISTINCT batch FROM results")]

    def drop_results(self, number: int) -> bool:
        """Forget some of a batch's results. Returns whether there may be more."""
        with self._transaction():
            dropped = self._db.execute(
                "DELETE FROM results WHERE batch = :number AND row IN "
                "(SELECT row FROM results WHERE batch = :number LIMIT :most)",
                {"number": number, "most": DROP_AT_ONCE},
            )
        return dropped.rowcount == DROP_AT_ONCE

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have ended it already
                self._db.execute("ROLLBACK")
            raise

    def _add_file(self, file: File) -> None:
        self._db.execute(
            "INSERT INTO files (id, purpose, object, expires_at) VALUES (?, ?, ?, ?)",
            (file.id, file.purpose, _encode(file), file.expires_at),
        )

    def _update(self, changed: Sequence[Numbered]) -> None:
        self._db.executemany(
            "UPDATE batches SET is_open = ?, object = ? WHERE number = ?",
            ((not each.batch.has_ended, _encode(each.batch), each.number) for each in changed),
        )

"""The input of a run: a file of rows, read in full before anything slow starts."""

from __future__ import annotations

import gzip
import hashlib
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec

from seesaw.engine.values.errors import ConfigError
from seesaw.server.batches.inputs import UNBOUNDED, Input, JSONLines
from seesaw.server.batches.rows import check_input
from seesaw.server.offline.parquet import COLUMNS, ParquetRows, is_parquet

UNREADABLE = (OSError, EOFError, zlib.error, ValueError)  # what reading a file may raise, whatever it is packed in


@dataclass(frozen=True)
class Source:
    """An input that was checked."""

    path: Path
    input: Input
    num_rows: int
    digest: str  # of its lines, whatever they are packed in


def check_source(path: Path, max_rows: int, max_row_bytes: int, stop: threading.Event) -> Source:
    """Raises ConfigError if it cannot be read, or has a line that is no request; Stopped soon after `stop` is set."""
    source = _Digested(open_input(path))
    try:
        checked = check_input(source, None, max_rows, max_row_bytes, stop)
    except UNREADABLE as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        where = f" behind line {source.number}" if source.number else ""
        raise ConfigError(f"cannot read {path}{where}: {reason}; name a file that is whole") from None
    if checked.errors is not None:
        first, *others = checked.errors.data
        where = f"{path}, line {first.line}" if first.line else f"{path}"
        more = f" (and {len(others)} more{' at least' if len(others) > 98 else ''})" if others else ""
        raise ConfigError(f"{where}: {first.message}{more}")
    return Source(path, source.source, checked.num_rows, source.digest)


def open_input(path: Path, columns: Sequence[str] = COLUMNS) -> Input:
    """By its suffix: lines of JSON, the same packed with gzip, or Parquet, of which only these columns are read. Raises
    ConfigError if that cannot be read here."""
    if is_parquet(path):
        return ParquetRows(path, columns)
    return JSONLines(path, gzip.GzipFile) if path.suffix == ".gz" else JSONLines(path)


class _Named(msgspec.Struct):
    """What is read of rows."""

    custom_id: str


class _Result(_Named):
    """What is read of results."""

    response: msgspec.Raw


def has_results(output: Path, source: Source) -> bool:
    """Whether it is a whole output of this input."""
    try:
        names = (_decode_result(line).custom_id for _, line in open_input(output, _Result.__struct_fields__).lines())
        asked = (_decode(line).custom_id for _, line in source.input.lines())
        return all(name == each for name, each in zip_longest(names, asked))
    except UNREADABLE:  # it is none at all
        return False


_decode = msgspec.json.Decoder(_Named).decode
_decode_result = msgspec.json.Decoder(_Result).decode


class _Digested:
    """An input, and a digest of what was read of it last."""

    def __init__(self, source: Input) -> None:
        self.source = source
        self.number = 0  # of the line that was read last

    def lines(self, max_row_bytes: int = UNBOUNDED) -> Iterator[tuple[int, bytes]]:
        digest = hashlib.blake2b(digest_size=16)
        for number, line in self.source.lines(max_row_bytes):
            self.number = number
            digest.update(line.rstrip() + b"\n")
            yield number, line
        self.digest = digest.hexdigest()

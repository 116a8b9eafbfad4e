"""Rows and results as Parquet, by pyarrow, which is an extra.

An input has the columns `custom_id`, `method`, `url` and `body`, a text of JSON, a struct or a map (what is null in it
is left out); others are not read. Results have `id`, `custom_id`, `response` and `error`; a response's body is a text
of JSON.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from seesaw.engine.values.errors import ConfigError
from seesaw.server.batches.inputs import UNBOUNDED

READ_ROWS, WRITE_ROWS = 256, 1024  # at once
COLUMNS = ("custom_id", "method", "url", "body")  # of rows


def is_parquet(path: Path) -> bool:
    return path.suffix in (".parquet", ".pq")


def check_parquet(path: Path) -> None:
    """Raise ConfigError if it is to be Parquet and pyarrow is not installed."""
    if is_parquet(path):
        _pyarrow(path, "pyarrow")


class ParquetRows:
    """An input (`server.batches.inputs`): each row is a line."""

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        """Raises ConfigError without pyarrow. Other columns may hold what no text can stand for."""
        self._path = path
        self._columns = columns
        self._arrow, self._parquet = _pyarrow(path, "pyarrow"), _pyarrow(path, "pyarrow.parquet")

    def lines(self, max_row_bytes: int = UNBOUNDED) -> Iterator[tuple[int, bytes]]:
        """Raises OSError, or ValueError if it is no Parquet file."""
        number = 0
        with self._parquet.ParquetFile(self._path) as file:
            columns = [name for name in self._columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(READ_ROWS, columns=columns):
                for row in self._rows(batch):
                    number += 1
                    yield number, _line(row)

    def _rows(self, batch: Any) -> list[dict[str, Any]]:
        """Raises ValueError for what Python or JSON has no values of, such as a date in a million years."""
        try:
            rows: list[dict[str, Any]] = batch.to_pylist()  # which makes dicts of maps, too, but ten times as slowly
            for field in batch.schema:
                if "map<" in str(field.type):
                    for row in rows:
                        row[field.name] = self._with_objects(row[field.name], field.type)
        except (OverflowError, TypeError) as error:
            raise ValueError(str(error)) from None
        return rows

    def _with_objects(self, value: Any, arrow_type: Any) -> Any:
        """With a dict for each map, which is a list of pairs."""
        if isinstance(value, dict):
            return {field.name: self._with_objects(value[field.name], field.type) for field in arrow_type}
        if not isinstance(value, list):
            return value
        if not self._arrow.types.is_map(arrow_type):
            return [self._with_objects(each, arrow_type.value_type) for each in value]
        found = {key: self._with_objects(each, arrow_type.item_type) for key, each in value}
        if len(found) < len(value):
            raise ValueError("a map has a key twice, which no object of JSON has")
        return found


class ParquetWriter:
    """Writes lines of results; the file is whole when the context ends."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError without pyarrow."""
        self._path = path
        self._arrow, self._parquet = _pyarrow(path, "pyarrow"), _pyarrow(path, "pyarrow.parquet")
        text = self._arrow.string()
        response = {"status_code": self._arrow.int64(), "request_id": text, "body": text}
        error = {"code": text, "message": text}
        self._schema = self._arrow.schema(
            {
                "id": text,
                "custom_id": text,
                "response": self._arrow.struct(response),
                "error": self._arrow.struct(error),
            }
        )
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> ParquetWriter:
        self._writer = self._parquet.ParquetWriter(self._path, self._schema)
        return self

    def write(self, line: bytes) -> None:
        row = msgspec.json.decode(line)
        if row["response"] is not None:
            row["response"]["body"] = msgspec.json.encode(row["response"]["body"]).decode()
        self._rows.append(row)
        if len(self._rows) == WRITE_ROWS:
            self._flush()

    def __exit__(self, *_: object) -> None:
        with self._writer:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
        self._rows = []


def _line(row: dict[str, Any]) -> bytes:
    """Raises ValueError for what JSON has no values of."""
    row = {name: value.decode() if isinstance(value, bytes) else value for name, value in row.items()}  # Spark's texts
    if isinstance(row.get("body"), str):
        row["body"] = msgspec.Raw(row["body"].encode())
    try:
        return msgspec.json.encode({**row, "body": _without_nulls(row.get("body"))})
    except TypeError as error:
        raise ValueError(str(error)) from None


def _without_nulls(value: Any) -> Any:
    """Rows of a struct all have the fields that any of them has."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _pyarrow(path: Path, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"{path} needs pyarrow, which is not here: pip install 'seesaw-llm[parquet]', or use .jsonl or .jsonl.gz"
        ) from None

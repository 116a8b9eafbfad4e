"""Inputs of all kinds, and what cannot be read of them."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from pathlib import Path

import pytest

from seesaw.engine.values.errors import ConfigError
from seesaw.server.batches.rows import read_rows
from seesaw.server.offline import parquet
from seesaw.server.offline.source import Source, check_source, has_results
from tests.server.offline.harness import request, requests, write

ROWS = [*requests(["a", "b"]), {**request("c", ""), "body": {"messages": [{"role": "user", "content": "x"}], "n": 2}}]


def check(path: Path) -> Source:
    return check_source(path, 100, 10_000, threading.Event())


def bodies(source: Source) -> list[object]:
    return [json.loads(bytes(row.request.body)) for row in read_rows(source.input, bytes(source.num_rows))]


def test_a_packed_file_is_the_same_input(tmp_path: Path) -> None:
    plain = write(tmp_path / "in.jsonl", ROWS)
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes().replace(b"\n", b"\r\n")))
    found = check(packed)
    assert (found.num_rows, found.digest) == (3, check(plain).digest)
    assert bodies(found) == [row["body"] for row in ROWS]


def test_a_packed_file_that_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())[:-6])
    with pytest.raises(ConfigError, match=r"in.jsonl.gz behind line \d: Compressed file ended .*; name a file that"):
        check(path)
    write(path, ROWS)
    with pytest.raises(ConfigError, match="Not a gzipped file"):
        check(path)


@pytest.mark.parametrize("as_text", [True, False])
def test_parquet(tmp_path: Path, as_text: bool) -> None:
    """Bodies as text, and as a struct, where those of other rows leave nulls."""
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{**row, "body": json.dumps(row["body"])} for row in ROWS] if as_text else ROWS
    path = tmp_path / "in.parquet"
    files.write_table(arrow.Table.from_pylist(rows), path)
    found = check(path)
    assert bodies(found) == [row["body"] for row in ROWS]
    files.write_table(arrow.Table.from_pylist([{**row, "url": None} for row in rows]), path)
    with pytest.raises(ConfigError, match=r"in\.parquet, line 1: "):
        check(path)
    write(path, ROWS)
    with pytest.raises(ConfigError, match=r"cannot read .*in\.parquet: "):
        check(path)


def test_parquet_of_others(tmp_path: Path) -> None:
    """Texts without their type, as Spark writes them; other columns, whatever they hold; no value of Python."""
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    columns = {name: [row[name].encode() for row in ROWS] for name in ("custom_id", "method", "url")}
    columns |= {"body": [json.dumps(row["body"]).encode() for row in ROWS]}
    others = {"at": arrow.array(range(len(ROWS)), arrow.timestamp("ns")), "far": [1 << 62] * len(ROWS)}
    others["far"] = arrow.array(others["far"], arrow.timestamp("us"))
    files.write_table(arrow.table({**columns, **others}), path)
    found = check(path)
    assert bodies(found) == [row["body"] for row in ROWS]
    assert [json.loads(line)["custom_id"] for _, line in found.input.lines()] == [row["custom_id"] for row in ROWS]
    files.write_table(arrow.table({**columns, "body": others["far"]}), path)
    with pytest.raises(ConfigError, match=r"cannot read .*in\.parquet: "):
        check(path)


def test_maps_of_parquet_are_objects(tmp_path: Path) -> None:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"

    def write_bodies(values: list[object], arrow_type: object) -> None:
        columns = {name: [row[name] for row in ROWS[:2]] for name in ("custom_id", "method", "url")}
        files.write_table(arrow.table({**columns, "body": arrow.array(values, arrow_type)}), path)

    inner = arrow.map_(arrow.string(), arrow.float64())
    fields = {"prompt": arrow.list_(arrow.int64()), "logit_bias": inner, "many": arrow.list_(inner)}
    fields["nested"] = arrow.map_(arrow.string(), inner)
    first = {"prompt": [1], "logit_bias": {"5": 1.0}, "many": [{"a": 1.0}, {}], "nested": {"b": {"c": 2.0}}}
    write_bodies([first, {"prompt": [2]}], arrow.struct(fields))
    assert bodies(check(path)) == [first, {"prompt": [2]}]
    whole = arrow.map_(arrow.string(), arrow.string())
    write_bodies([{"model": "m", "prompt": "a"}, {"prompt": "b", "user": None}], whole)
    assert bodies(check(path)) == [{"model": "m", "prompt": "a"}, {"prompt": "b"}]
    write_bodies([{"prompt": "a"}, [("user", "b"), ("user", "c")]], whole)
    with pytest.raises(ConfigError, match=r"cannot read .*in\.parquet: a map has a key twice"):
        check(path)


def test_results_as_parquet(tmp_path: Path) -> None:
    files = pytest.importorskip("pyarrow.parquet")
    answered = {"id": "1", "custom_id": "a", "error": None}
    answered["response"] = {"status_code": 200, "request_id": "r", "body": {"x": [1, None]}}  # type: ignore[assignment]
    refused = {"id": "2", "custom_id": "b", "response": None, "error": {"code": "c", "message": "m"}}
    with parquet.ParquetWriter(tmp_path / "out.parquet") as writer:
        for row in [answered, refused] * parquet.WRITE_ROWS:
            writer.write(json.dumps(row).encode())
    found = files.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(found) == 2 * parquet.WRITE_ROWS
    assert json.loads(found[0]["response"].pop("body")) == {"x": [1, None]}
    assert found[:2] == [{**answered, "response": {"status_code": 200, "request_id": "r"}}, refused]


def test_an_input_is_no_output(tmp_path: Path) -> None:
    """Though it has the same ids."""
    files = pytest.importorskip("pyarrow.parquet")
    arrow, path, output = pytest.importorskip("pyarrow"), tmp_path / "in.parquet", tmp_path / "out.parquet"
    files.write_table(arrow.Table.from_pylist(ROWS), path)
    assert not has_results(path, check(path))
    with parquet.ParquetWriter(output) as writer:
        for row in ROWS:
            writer.write(
                json.dumps({"id": "1", "custom_id": row["custom_id"], "response": None, "error": None}).encode()
            )
    assert has_results(output, check(path))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow, which is not here: pip install 'seesaw-llm\[parquet\]'"):
        parquet.check_parquet(tmp_path / "out.parquet")
    parquet.check_parquet(tmp_path / "out.jsonl")

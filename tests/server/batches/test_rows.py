"""Inputs are checked line by line."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from seesaw.server.batches.inputs import JSONLines
from seesaw.server.batches.rows import MAX_ERRORS, Stopped, check_input, read_rows

URL = "/v1/completions"
GOOD = {"custom_id": "a", "method": "POST", "url": URL, "body": {"prompt": "x"}}
THIRD = {**GOOD, "custom_id": "c"}


def check(path: Path, *lines: object, max_rows: int = 1000, max_row_bytes: int = 1000) -> list[tuple[str, int | None]]:
    """Codes and lines of the errors; lines that are bytes are written as they are."""
    data = b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines)
    file = path / "in.jsonl"
    file.write_bytes(data)
    checked = check_input(JSONLines(file), URL, max_rows, max_row_bytes, threading.Event())
    return [] if checked.errors is None else [(each.code, each.line) for each in checked.errors.data]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "invalid_json_line"),
        (b'{"custom_id": "\xff"}', "invalid_json_line"),
        (b"[" * 100_000, "line_too_long"),
        (b"[1]", "invalid_request"),
        ({**THIRD, "custom_id": 1}, "invalid_request"),
        ({key: THIRD[key] for key in ("custom_id", "method", "url")}, "missing_required_parameter"),
        ({**THIRD, "body": [1]}, "invalid_request"),
        ({**THIRD, "method": "GET"}, "invalid_method"),
        ({**THIRD, "url": "/v1/chat/completions"}, "invalid_url"),
        ({**THIRD, "body": {"prompt": "x" * 2000}}, "line_too_long"),
        (GOOD, "duplicate_custom_id"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, code: str) -> None:
    assert check(tmp_path, GOOD, b"", line, {**GOOD, "custom_id": "b"}) == [(code, 3)]


def test_all_bad_lines_are_named_in_order(tmp_path: Path) -> None:
    lines = [b"{", GOOD, {**GOOD, "custom_id": "b"}, GOOD, b"}", GOOD]
    assert check(tmp_path, *lines) == [
        ("invalid_json_line", 1),
        ("duplicate_custom_id", 4),
        ("invalid_json_line", 5),
        ("duplicate_custom_id", 6),
    ]
    assert len(check(tmp_path, *[b"{"] * 200, *[GOOD] * 200)) == MAX_ERRORS


def test_a_deep_line(tmp_path: Path) -> None:
    deep = b"[" * 5000 + b"]" * 5000
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": %b}' % deep
    assert check(tmp_path, line, max_row_bytes=1 << 20) == [("invalid_json_line", 1)]


def test_an_input_needs_rows_and_not_too_many(tmp_path: Path) -> None:
    assert check(tmp_path) == [("empty_file", None)]
    assert check(tmp_path, b"  ", b"\t") == [("empty_file", None)]
    rows = [{**GOOD, "custom_id": str(number)} for number in range(5)]
    assert check(tmp_path, *rows, max_rows=5) == []
    assert check(tmp_path, *rows, max_rows=4) == [("too_many_requests", None)]


def test_rows_are_counted_without_blank_lines(tmp_path: Path) -> None:
    ids = ["é", "b", "c"]
    lines = [json.dumps({**GOOD, "custom_id": id}) for id in ids]
    file = tmp_path / "in.jsonl"
    file.write_text(f"\ufeff{lines[0]}\r\n\n\n \n{lines[1]}\n{lines[2]}")  # and no newline at the end
    assert check_input(JSONLines(file), URL, 10, 1000, threading.Event()) == (3, None)
    rows = list(read_rows(JSONLines(file), bytes(3)))
    assert [(row.number, row.request.custom_id) for row in rows] == list(enumerate(ids))
    assert [row.number for row in read_rows(JSONLines(file), b"\0\1\0")] == [0, 2]
    assert json.loads(bytes(rows[0].request.body)) == {"prompt": "x"}


def test_an_end_does_not_wait_for_a_long_input(tmp_path: Path) -> None:
    file, stop = tmp_path / "in.jsonl", threading.Event()
    file.write_text(json.dumps(GOOD))
    stop.set()
    with pytest.raises(Stopped):
        check_input(JSONLines(file), URL, 10, 1000, stop)

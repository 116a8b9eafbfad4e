"""The rows of a batch: requests, read from its input file, and results, as lines of its output files.

Everything here reads or writes files and belongs in a thread. Blank lines of an input are no rows.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import threading
import time
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np

from seesaw.engine.values.wording import as_size
from seesaw.server.batches.objects import BatchError, BatchErrors

MAX_ERRORS = 100  # that a client is told of
_BREATH_ROWS = 100  # after so many, other threads may run: the event loop's, above all

_encode = msgspec.json.Encoder().encode


class Request(msgspec.Struct, frozen=True):
    """A line of the input."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw  # well-formed JSON


class Row(NamedTuple):
    number: int  # among the requests of its file, from 0
    request: Request
    bytes: int  # of the line


class RowResponse(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class RowError(msgspec.Struct, frozen=True):
    """Why a request was not made."""

    code: str
    message: str


class RowResult(msgspec.Struct, frozen=True):
    """A line of an output or error file."""

    id: str
    custom_id: str
    response: RowResponse | None = None
    error: RowError | None = None

    @property
    def line(self) -> bytes:
        return _encode(self) + b"\n"


CANCELLED = RowError("batch_cancelled", "This request was not executed, since the batch was cancelled before.")
EXPIRED = RowError("batch_expired", "This request could not be executed before the completion window expired.")

_decode = msgspec.json.Decoder(Request).decode


class Checked(NamedTuple):
    """What an input turned out to be: so many rows, or errors."""

    num_rows: int
    errors: BatchErrors | None


class Stopped(Exception):
    """Nobody waits for the work any more."""


def check_input(path: Path, endpoint: str, max_rows: int, max_row_bytes: int, stop: threading.Event) -> Checked:
    """Read all of it. Holds 16 bytes of memory for each row. Raises Stopped soon after `stop` is set."""
    errors: list[BatchError] = []
    num_rows = 0
    digests, numbers = array("Q"), array("Q")  # of all custom ids, and their lines
    with path.open("rb") as file:
        for number, line in _lines(file, max_row_bytes):
            if stop.is_set():
                raise Stopped
            if num_rows == max_rows:
                errors.append(
                    BatchError("too_many_requests", f"The input file has more than {max_rows} requests: split it.")
                )
                break
            num_rows += 1
            error, custom_id = _check(number, line, endpoint, max_row_bytes)
            if custom_id is not None:
                digests.append(_digest(custom_id))
                numbers.append(number)
            if error is not None and len(errors) < MAX_ERRORS:
                errors.append(error)
    if not num_rows:
        errors.append(BatchError("empty_file", "The input file has no requests: write one in each line."))
    errors += islice(_duplicates(path, digests, numbers, max_row_bytes), MAX_ERRORS)
    errors.sort(key=lambda error: error.line or 0)
    return Checked(num_rows, BatchErrors(errors[:MAX_ERRORS]) if errors else None)


def read_rows(path: Path, done: bytes | bytearray) -> Iterator[Row]:
    """The rows of an input that was checked, in order, but for those whose byte of `done` is not 0."""
    with path.open("rb") as file:
        for number, (_, line) in enumerate(_lines(file, path.stat().st_size)):
            if not done[number]:
                yield Row(number, _decode(line), len(line))


def _lines(file: BinaryIO, max_row_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1. One that is too long is cut, and is too long still."""
    number = 0
    while line := file.readline(max_row_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        rest = line
        while len(rest) > max_row_bytes and not rest.endswith(b"\n"):
            rest = file.readline(max_row_bytes + 1)
        if not line.isspace():
            yield number, line
        if number % _BREATH_ROWS == 0:
            time.sleep(0)


def _check(number: int, line: bytes, endpoint: str, max_row_bytes: int) -> tuple[BatchError | None, str | None]:
    """What is wrong with a line, and its custom id if it can be read."""

    def wrong(code: str, message: str, param: str | None = None) -> BatchError:
        return BatchError(code, message, param, number)

    if len(line) > max_row_bytes:
        return wrong("line_too_long", f"This line is larger than {as_size(max_row_bytes)}: shorten it."), None
    try:
        request = _decode(line)
    except msgspec.ValidationError as error:
        if missing := re.search(r"missing required field `(\w+)`", str(error)):
            return wrong("missing_required_parameter", f"Missing required parameter: {missing[1]!r}.", missing[1]), None
        at = re.search(r"`\$\.(\w+)", str(error))
        return wrong("invalid_request", f"This line is no request of a batch: {error}.", at and at[1]), None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return wrong("invalid_json_line", "This line is not parseable as valid JSON."), None
    problem = None
    if request.method != "POST":
        problem = wrong("invalid_method", f"The method must be POST, not {request.method[:20]!r}.", "method")
    elif request.url != endpoint:
        problem = wrong("invalid_url", f"The url must be the batch's endpoint, {endpoint}.", "url")
    elif not bytes(request.body).startswith(b"{"):
        problem = wrong("invalid_request", "The body must be a JSON object.", "body")
    return problem, request.custom_id


def _duplicates(path: Path, digests: array[int], numbers: array[int], max_row_bytes: int) -> Iterator[BatchError]:
    """Of custom ids that earlier lines have. Those of equal digests are read again, since few are."""
    kinds, counts = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)
    suspects = set(kinds[counts > 1].tolist())
    lines = {number for digest, number in zip(digests, numbers, strict=True) if digest in suspects}
    if not lines:
        return
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, line in _lines(file, max_row_bytes):
            if number not in lines:
                continue
            custom_id = _decode(line).custom_id
            if custom_id in seen:
                yield BatchError(
                    "duplicate_custom_id",
                    f"The custom_id {custom_id[:100]!r} is that of an earlier request, too: give each its own.",
                    "custom_id",
                    number,
                )
            seen.add(custom_id)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())

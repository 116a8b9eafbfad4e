"""The rows of a batch: requests, read from its input file, and results, as lines of its output files.

Everything here reads or writes files and belongs in a thread. Blank lines of an input are no rows.
"""

from __future__ import annotations

import hashlib
import re
import threading
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np

from seesaw.engine.values.wording import as_size
from seesaw.server.batches.inputs import Input
from seesaw.server.batches.objects import BatchError, BatchErrors
from seesaw.server.ids import unique_id

MAX_ERRORS = 100  # that a client is told of

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

    @property
    def is_error(self) -> bool:
        return self.response is None or self.response.status_code != 200


def make_row_id() -> str:
    """Of a result."""
    return f"batch_req_{unique_id()}"


CANCELLED = RowError("batch_cancelled", "This request was not executed, since the batch was cancelled before.")
EXPIRED = RowError("batch_expired", "This request could not be executed before the completion window expired.")

_decode = msgspec.json.Decoder(Request).decode


class Checked(NamedTuple):
    """What an input turned out to be: so many rows, or errors."""

    num_rows: int
    errors: BatchErrors | None


class Stopped(Exception):
    """Nobody waits for the work any more."""


def check_input(
    source: Input, endpoint: str | None, max_rows: int, max_row_bytes: int, stop: threading.Event
) -> Checked:
    """Read all of it. `endpoint`: None allows any. Holds 16 bytes of memory for each row. Raises Stopped soon after
    `stop` is set."""
    errors: list[BatchError] = []
    num_rows = 0
    digests, numbers = array("Q"), array("Q")  # of all custom ids, and their lines
    for number, line in source.lines(max_row_bytes):
        if stop.is_set():
            raise Stopped
        if num_rows == max_rows:
            errors.append(
                BatchError("too_many_requests", f"The input file has more than {max_rows} requests: split it.")
            )
            break
        num_rows += 1
        error, custom_id = check_line(number, line, endpoint, max_row_bytes)
        if custom_id is not None:
            digests.append(_digest(custom_id))
            numbers.append(number)
        if error is not None and len(errors) < MAX_ERRORS:
            errors.append(error)
    if not num_rows:
        errors.append(BatchError("empty_file", "The input file has no requests: write one in each line."))
    errors += islice(_duplicates(source, digests, numbers, max_row_bytes), MAX_ERRORS)
    errors.sort(key=lambda error: error.line or 0)
    return Checked(num_rows, BatchErrors(errors[:MAX_ERRORS]) if errors else None)


def read_rows(source: Input, done: bytes | bytearray) -> Iterator[Row]:
    """The rows of an input that was checked, in order, but for those whose byte of `done` is not 0."""
    for number, (_, line) in enumerate(source.lines()):
        if not done[number]:
            yield Row(number, _decode(line), len(line))


def read_line(line: bytes) -> Request:
    """Of a line that was checked."""
    return _decode(line)


def check_line(
    number: int, line: bytes, endpoint: str | None, max_row_bytes: int
) -> tuple[BatchError | None, str | None]:
    """What is wrong with the line of this number, and its custom id if it can be read. `endpoint`: None allows any."""

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
    elif endpoint is not None and request.url != endpoint:
        problem = wrong("invalid_url", f"The url must be the batch's endpoint, {endpoint}.", "url")
    elif not bytes(request.body).startswith(b"{"):
        problem = wrong("invalid_request", "The body must be a JSON object.", "body")
    return problem, request.custom_id


def _duplicates(source: Input, digests: array[int], numbers: array[int], max_row_bytes: int) -> Iterator[BatchError]:
    """Of custom ids that earlier lines have. Those of equal digests are read again, since few are."""
    kinds, counts = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)
    suspects = set(kinds[counts > 1].tolist())
    lines = {number for digest, number in zip(digests, numbers, strict=True) if digest in suspects}
    if not lines:
        return
    seen: set[str] = set()
    for number, line in source.lines(max_row_bytes):
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

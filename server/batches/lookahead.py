"""The rows of a job that were read and not sent yet, and which of them go next.

Rows that begin alike go one after another, so that the engine finds their prefix. Else those go first whose outputs may
be the longest; and since most of what was read always stays, the short ones gather, and are what the job ends with: one
that ended with a long row would have the engine to itself for as long as that takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from seesaw.server.batches.lengths import Asked, Lengths, limit_of
from seesaw.server.batches.rows import Row

MAX_ROWS, MAX_BYTES = 8192, 16 << 20  # that are read ahead: no more rows, and no further one beyond so many bytes
LEAST_TAKEN, TAKEN_SHARE = 64, 1 / 4  # of those, at once
CHUNK_BYTES = 256  # of prompts that are compared, and then as many as were: the least prefix that is worth it


class Planned(NamedTuple):
    """A row, and what its place depends on."""

    row: Row
    prompt: bytes
    asked: Asked


class Lookahead:
    """Belongs to one thread at a time: it reads a file."""

    def __init__(self, rows: Iterator[Row], lengths: Lengths) -> None:
        """`lengths` may learn meanwhile."""
        self._rows = rows
        self._lengths = lengths
        self._waiting: list[Planned] = []
        self._bytes = 0

    def take(self) -> list[Planned]:
        """The next ones to send; none at the end. The others stay, to be weighed anew when more has been read and
        learned."""
        self._fill()
        ahead = arrange(self._waiting, self._lengths)
        num_taken = max(LEAST_TAKEN, int(len(ahead) * TAKEN_SHARE))
        taken, self._waiting = ahead[:num_taken], ahead[num_taken:]
        self._bytes -= sum(each.row.bytes for each in taken)
        return taken

    def _fill(self) -> None:
        while len(self._waiting) < MAX_ROWS and self._bytes < MAX_BYTES:
            row = next(self._rows, None)
            if row is None:
                return
            self._waiting.append(_plan(row))
            self._bytes += row.bytes


def arrange(rows: list[Planned], lengths: Lengths) -> list[Planned]:
    """Those that begin alike beside one another, and of groups, of whatever depth, the one first which has the longest
    to expect; what is equal stays in order."""
    arranged: list[Planned] = []
    longest_first = sorted(rows, key=lambda planned: lengths.expected_tokens(planned.asked), reverse=True)
    groups = [(longest_first, 0, CHUNK_BYTES)]  # alike up to a byte, to be compared up to another; the last one is next
    while groups:
        group, start, end = groups.pop()
        if len(group) <= 1 or start > len(group[0].prompt):  # all have ended: the last parts of equals are equal
            arranged += group
            continue
        parts: dict[bytes, list[Planned]] = {}
        for planned in group:
            parts.setdefault(planned.prompt[start:end], []).append(planned)
        groups += [(part, end, 2 * end) for part in reversed(parts.values())]
    return arranged


class _Prompted(msgspec.Struct):
    """What is read of a row's body: JSON as it stands, in the order in which it becomes a prompt."""

    tools: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()


def _plan(row: Row) -> Planned:
    body = _decode(row.request.body)
    prompt = b"".join((body.tools, body.messages, body.prompt))
    return Planned(row, prompt, Asked(len(prompt), limit_of(bytes(body.max_completion_tokens), bytes(body.max_tokens))))


_decode = msgspec.json.Decoder(_Prompted).decode

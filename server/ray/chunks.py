"""Rows and results in chunks, which is what Ray moves, retries and counts. Used by `server.ray.data`.

A chunk is small against what an engine has at once, so that little is lost with a host, and engines end together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec

from seesaw.engine.values.config import EngineConfig
from seesaw.server.batches.inputs import Input
from seesaw.server.batches.job import Finished
from seesaw.server.batches.jobs import ROWS_PER_SEQUENCE
from seesaw.server.batches.rows import Row, read_line

CALLS = 16  # chunks that an engine has at once
CHUNK_BYTES = 1 << 20  # no further row beyond so many

Numbered = list[tuple[int, bytes]]  # rows and their lines

_encode = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(Numbered).decode
_decode_results = msgspec.msgpack.Decoder(list[Finished]).decode


def chunk_rows(engine: EngineConfig) -> int:
    """So that CALLS of them keep an engine full."""
    num_seqs = engine.max_num_seqs * max(layout.dp for layout in engine.plan.layouts)
    return math.ceil(ROWS_PER_SEQUENCE * num_seqs / CALLS)


def chunks(source: Input, done: bytes, most_rows: int) -> Iterator[Numbered]:
    """The rows whose byte of `done` is 0, in order: so many at once, and no further one beyond CHUNK_BYTES."""
    chunk: Numbered = []
    size_bytes = 0
    for number, (_, line) in enumerate(source.lines()):
        if done[number]:
            continue
        chunk.append((number, line))
        size_bytes += len(line)
        if len(chunk) == most_rows or size_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def pack(chunk: Numbered | Sequence[Finished]) -> bytes:
    return _encode(chunk)


def unpack_rows(packed: bytes) -> list[Row]:
    """Of an input that was checked."""
    return [Row(number, read_line(line), len(line)) for number, line in _decode_rows(packed)]


def unpack_results(packed: bytes) -> list[Finished]:
    return _decode_results(packed)

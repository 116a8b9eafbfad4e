from __future__ import annotations

import json
from pathlib import Path

from seesaw.engine.values.config import EngineConfig
from seesaw.server.batches.inputs import JSONLines
from seesaw.server.batches.job import Finished
from seesaw.server.ray.chunks import CALLS, CHUNK_BYTES, chunk_rows, chunks, pack, unpack_results, unpack_rows


def written(path: Path, sizes: list[int]) -> JSONLines:
    with path.open("w") as file:
        for number, size in enumerate(sizes):
            body = {"prompt": "x" * size}
            row = {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(row) + "\n\n")  # blank lines are no rows
    return JSONLines(path)


def numbers(source: JSONLines, done: bytes, most_rows: int) -> list[list[int]]:
    return [[number for number, _ in chunk] for chunk in chunks(source, done, most_rows)]


def test_chunks_have_the_rows_that_are_not_done(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [1] * 10)
    assert numbers(source, bytes(10), 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert numbers(source, bytes([1, 0, 1, 0, 0, 0, 0, 1, 1, 0]), 4) == [[1, 3, 4, 5], [6, 9]]
    assert numbers(source, bytes([1] * 10), 4) == []


def test_chunks_of_long_rows_are_short(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [CHUNK_BYTES, 1, CHUNK_BYTES // 2, CHUNK_BYTES // 2, 1])
    assert numbers(source, bytes(5), 100) == [[0], [1, 2, 3], [4]]


def test_rows_and_results_arrive_as_they_were_sent(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", [1, 2])
    [chunk] = chunks(source, bytes(2), 8)
    rows = unpack_rows(pack(chunk))
    assert [(row.number, row.request.custom_id, bytes(row.request.body)) for row in rows] == [
        (0, "0", b'{"prompt": "x"}'),
        (1, "1", b'{"prompt": "xx"}'),
    ]
    results = [Finished(1, False, b"{}\n", 7), Finished(0, True, b"\xff\n", 8)]
    assert unpack_results(pack(results)) == results


def test_an_engines_chunks_fill_it_twice() -> None:
    assert chunk_rows(EngineConfig("m", max_num_seqs=256)) * CALLS == 512
    assert chunk_rows(EngineConfig("m", max_num_seqs=256, prefill="P4", decode="D2T2")) * CALLS == 1024
    assert chunk_rows(EngineConfig("m", max_num_seqs=1)) == 1

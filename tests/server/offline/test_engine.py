"""Rows in, results out."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, EngineDeadError
from seesaw.server.offline.engine import RowEngine
from tests.server.offline.harness import request, requests, start_fake, told


def make(model: str = "echo", **options: int) -> RowEngine:
    config = EngineConfig(model=model, tokenizer="bytes", load_format="dummy", **options)  # type: ignore[arg-type]
    return RowEngine(config, start_engine=start_fake)


def test_rows_are_answered_in_their_order_from_any_thread() -> None:
    rows = [*requests(["a", "b"]), "{", json.dumps(request("c", "c")), request("d", "d", url="/v1/embeddings")]
    expected = [("row-0", "a"), ("row-1", "b"), ("", "invalid_json_line"), ("c", "c"), ("d", "invalid_url")]
    with make(max_queued_requests=4) as engine, ThreadPoolExecutor(4) as threads:
        assert [told(row) for row in engine.answer(rows)] == expected
        many = [requests(f"{call} {row}" for row in range(20)) for call in range(8)]
        for call, found in enumerate(threads.map(engine.answer, many)):
            assert [told(row) for row in found] == [(f"row-{row}", f"{call} {row}") for row in range(20)]
        assert engine.answer([]) == []
    with pytest.raises(EngineDeadError, match="is closed"):
        engine.answer(rows)
    engine.close()


def test_an_engine_that_dies_fails_the_call_and_those_after() -> None:
    with make() as engine:
        with pytest.raises(EngineDeadError, match="without a word"):
            engine.answer(requests(["a", "die"]))
        with pytest.raises(EngineDeadError, match="without a word"):
            engine.answer(requests(["a"]))


def test_a_close_ends_calls_of_other_threads() -> None:
    with ThreadPoolExecutor(1) as threads, make() as engine:
        call = threads.submit(engine.answer, requests(["hang"]))
        engine.answer(requests(["a"]))
        engine.close()
        with pytest.raises(EngineDeadError):
            call.result()


def test_an_engine_that_cannot_start_says_why() -> None:
    with pytest.raises(ConfigError, match="not to my taste"):
        make("refuse")

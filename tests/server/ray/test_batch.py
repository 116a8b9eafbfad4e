"""What the run itself does of `--ray`, with a fake cluster: `tests/e2e/test_ray.py` has a real one."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, EngineDeadError
from seesaw.server.batches.job import Finished
from seesaw.server.config import ServerConfig
from seesaw.server.offline.partial import Partial
from seesaw.server.offline.source import check_source
from seesaw.server.ray import batch
from seesaw.server.ray.batch import answer_on_cluster
from seesaw.server.ray.options import Cluster
from seesaw.server.threads import OneThread
from tests.server.offline.harness import requests, write

pytestmark = pytest.mark.anyio

NUM_ROWS = 10
USAGE = b'{"custom_id":"%d","response":{"body":{"usage":{"prompt_tokens":7,"completion_tokens":2}}},"error":null}\n'
FAILED = b'{"custom_id":"%d","response":null,"error":{}}\n'


def result(row: int, *, fails: bool = False) -> Finished:
    return Finished(row, fails, (FAILED if fails else USAGE) % row, 1)


Answered = Callable[[bytes], Iterator[list[Finished]]]


class Site:
    """An output that is begun, and a cluster that answers as it is told to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = write(folder / "in.jsonl", requests(map(str, range(NUM_ROWS))))
        self.kept = Partial(folder / "p", check_source(source, 100, 1000, threading.Event()), "m")
        self.said: list[str] = []
        self.is_connected = False
        self._thread = OneThread("results")
        self._monkeypatch = monkeypatch

    async def answer(self, answered: Answered) -> None:
        def connect(cluster: Cluster, engine: EngineConfig, say: object) -> None:
            assert (cluster, engine.device) == (Cluster("there"), "cuda")
            self.is_connected = True

        def disconnect() -> None:
            self.is_connected = False

        def all_answered(*given: object) -> Iterator[list[Finished]]:
            *_, done = given
            assert isinstance(done, bytes)
            return answered(done)

        fake = SimpleNamespace(connect=connect, disconnect=disconnect, answered=all_answered)
        self._monkeypatch.setitem(sys.modules, "seesaw.server.ray.data", fake)
        engine, server = EngineConfig("m"), ServerConfig()
        await answer_on_cluster(Cluster("there"), engine, server, self.kept, self._thread, self.said.append)

    def close(self) -> None:
        self.kept.close()
        self._thread.close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path, monkeypatch)
    yield site
    site.close()


async def test_a_row_counts_once_however_often_it_comes(site: Site, tmp_path: Path) -> None:
    def answered(done: bytes) -> Iterator[list[Finished]]:
        assert done == bytes(NUM_ROWS)
        yield [result(9), result(0, fails=True)]
        yield [result(9), result(9, fails=True), result(0)]
        yield [result(row) for row in range(NUM_ROWS)]

    await site.answer(answered)
    assert (site.kept.counts.completed, site.kept.counts.failed) == (NUM_ROWS - 1, 1)
    assert site.said[-1].startswith("10 of 10 rows (1 failed)")
    site.kept.finish(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == FAILED % 0 + b"".join(USAGE % row for row in range(1, NUM_ROWS))


async def test_what_is_kept_is_not_asked_for_again(site: Site) -> None:
    def cut_off(done: bytes) -> Iterator[list[Finished]]:
        yield [result(3), result(5)]
        raise EngineDeadError("the cluster is gone")

    def answered(done: bytes) -> Iterator[list[Finished]]:
        assert done == bytes([0, 0, 0, 1, 0, 1, 0, 0, 0, 0])
        yield [result(row) for row in range(NUM_ROWS) if not done[row]]

    with pytest.raises(EngineDeadError, match="the cluster is gone"):
        await site.answer(cut_off)
    assert site.kept.counts.completed == 2 and not site.is_connected
    await site.answer(answered)
    assert site.kept.is_complete and not site.is_connected


async def test_rows_that_never_come_are_an_error(site: Site) -> None:
    with pytest.raises(EngineDeadError, match="before all rows had results"):
        await site.answer(lambda done: iter([[result(1)]]))
    assert site.kept.counts.completed == 1


async def test_no_more_is_taken_than_is_kept_soon(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_UNKEPT_ROWS", 1)
    seen: list[int] = []

    def answered(done: bytes) -> Iterator[list[Finished]]:
        for row in range(NUM_ROWS):
            seen.append(site.kept.counts.completed)
            yield [result(row)]

    await site.answer(answered)
    assert seen == [*range(NUM_ROWS)]  # each was on the disk before the next one was asked for


async def test_without_ray_the_extra_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seesaw.server.ray.data", None)
    with pytest.raises(ConfigError, match="pip install 'seesaw-llm\\[ray\\]'"):
        await answer_on_cluster(
            Cluster(), EngineConfig("m"), ServerConfig(), site.kept, OneThread("none"), site.said.append
        )

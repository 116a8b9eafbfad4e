"""The engine or a worker is killed under `--restart-engine`: what streamed nothing is answered by the next engine, the
rest has its error, and of the dead one nothing is left when the next one starts. Real processes."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest

from tests.e2e.served import Served, serving
from tests.e2e.test_processes_die_well import start_streaming
from tests.patience import PATIENCE_S
from tests.shm import named_segments
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes

FLAGS = ["--prefill=P2", "--decode=T2", "--tokenizer=bytes", "--num-device-blocks=300", "--num-host-blocks=300"]
FLAGS += ["--restart-engine=3"]


# Who is killed: while one request streams and another waits, while the next engine loads, and while nothing is asked.
ALL = [("worker 1", "engine", "worker 0"), ("engine", "worker 1", "engine")]
TRIALS = ALL if os.environ.get("SEESAW_TEST_BREAKS") == "all" else ALL[:1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vocab=260, max_position=4096)


def answer(served: Served) -> Any:
    body = {"prompt": "Upon a time", "max_tokens": 20, "ignore_eos": True, "temperature": 0, "return_token_ids": True}
    request = Request(f"{served.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=PATIENCE_S) as response:
        return json.load(response)["choices"]


class Engine:
    """One of a server's, and all processes below it."""

    def __init__(self, served: Served) -> None:
        self._served = served
        [engine] = served.find("engine")
        self.processes = [engine, *engine.children(recursive=True)]

    def is_gone(self, count: int) -> None:
        """Of it nothing is left when the next one is started, for the count-th time."""
        self._served.log_says(f"starting the engine again ({count} of 3 times)")
        assert not any(process.is_running() for process in self.processes)  # not even to be reaped
        assert len(list(self._served.temp.iterdir())) <= 1  # the next one's run folder


@pytest.mark.parametrize("victims", TRIALS, ids=", ".join)
def test_an_engine_dies_again_and_again(victims: tuple[str, str, str], checkpoint: Path, tmp_path: Path) -> None:
    busy, loading, idle = victims
    with serving(checkpoint, tmp_path, *FLAGS) as served, ThreadPoolExecutor() as pool:
        undisturbed = answer(served)

        stream = start_streaming(served)
        served.find("worker 0")[0].suspend()  # so that nothing comes of what follows
        waiting = pool.submit(answer, served)
        served.has_requests(2)
        engines = [Engine(served)]
        served.find(busy)[0].kill()
        rest = b""
        while data := stream.recv(65536):
            rest += data
        assert b'data: {"error"' in rest and rest.rstrip().endswith(b"0")  # the chunked body is whole
        engines[-1].is_gone(1)

        victim = served.find(loading)[0]
        engines.append(Engine(served))
        victim.kill()
        engines[-1].is_gone(2)
        assert waiting.result(PATIENCE_S) == undisturbed
        assert named_segments([psutil.Process(served.process.pid), *served.children()]) == set()

        engines.append(Engine(served))
        served.find(idle)[0].kill()
        engines[-1].is_gone(3)
        served.until("it is not back", lambda m: m["device_kv_blocks"] > 0)
        assert answer(served) == undisturbed
        assert served.metrics()["engine_restarts_total"] == 3

        family = served.children()
        served.find(busy)[0].kill()
        assert served.ended(family) == 1

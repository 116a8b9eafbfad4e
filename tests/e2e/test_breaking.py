"""Each process is killed or stopped at each moment: what was accepted ends, the exit code is true, nothing is left.

The tests take a few of all trials; `SEESAW_TEST_BREAKS=all` runs them all, in several plans.

What nobody can end: a server that is stopped (it goes on where it was, or is killed), and Python's resource tracker, if
somebody stops that one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import product
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from tests.e2e.served import starting
from tests.patience import PATIENCE_S
from tests.shm import named_segments
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes

FLAGS = ["--prefill=P2", "--decode=T2", "--tokenizer=bytes", "--num-device-blocks=700", "--num-host-blocks=400"]
FLAGS += ["--max-num-seqs=6", "--policy=paper", "--surge-min-tokens=0"]
PLANS = {
    "reload": ["--weights=reload"],
    "resident": ["--weights=resident"],
    "tail": ["--weights=reload", "--tail=D2"],
}
TIMEOUT_S = 10.0  # a loaded host takes seconds for a step
TIMEOUTS = [f"--step-timeout-s={TIMEOUT_S}", f"--engine-timeout-s={TIMEOUT_S}"]
START_TIMEOUT_S = 20.0  # where the start is to end by it

NUM_WORKERS = 2
NUM_REQUESTS = 12
LONG = 2900  # tokens of an output: no request ends by itself while a trial looks
VICTIMS = ("server", "engine", "fork server", "worker 0", "worker 1", "all")
ALL = [
    (plan, moment, victim, number)
    for plan, moment, victim, number in product(
        PLANS,
        ("loading", "idle", "prefill", "decode", "swap", "transition"),
        VICTIMS,
        (signal.SIGKILL, signal.SIGSTOP),
    )
    if (victim, number) != ("all", signal.SIGKILL)
]
FEW = [
    ("resident", "loading", "fork server", signal.SIGKILL),
    ("reload", "transition", "worker 1", signal.SIGKILL),
    ("tail", "swap", "fork server", signal.SIGKILL),
    ("reload", "idle", "fork server", signal.SIGSTOP),
]
TRIALS = ALL if os.environ.get("SEESAW_TEST_BREAKS") == "all" else FEW

HAS_BEGUN: dict[str, Callable[[dict[str, float]], bool]] = {
    "idle": lambda m: True,
    "prefill": lambda m: m["num_requests_running"] + m["num_requests_waiting"] >= 2,
    "decode": lambda m: m["generation_tokens_total"] >= 20,
    "swap": lambda m: m["swap_bytes_total"] > 0,
    "transition": lambda m: m["transitions_total"] > 0,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vocab=260, max_position=4096)


@pytest.mark.parametrize(
    ("plan", "moment", "victim", "number"), TRIALS, ids=lambda v: v.name if isinstance(v, signal.Signals) else v
)
def test_a_process_breaks(
    plan: str, moment: str, victim: str, number: signal.Signals, checkpoint: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, *PLANS[plan], *TIMEOUTS]
    goes_on = number == signal.SIGSTOP and victim in ("server", "all")
    if moment == "loading" and number == signal.SIGSTOP and not goes_on:
        flags.append(f"--start-timeout-s={START_TIMEOUT_S}")
    elif number == signal.SIGSTOP and victim == "fork server":
        goes_on = True  # it is not needed any more
    with starting(checkpoint, tmp_path, *flags) as served, ThreadPoolExecutor(NUM_REQUESTS) as pool:
        if moment != "loading":
            served.await_ready()
            assert named_segments([psutil.Process(served.process.pid), *served.children()]) == set()
        answers = []
        if moment not in ("loading", "idle"):
            tokens = 100 if goes_on else LONG
            answers = [pool.submit(complete, served.url, 100 * i + 1, tokens) for i in range(NUM_REQUESTS)]
            if not goes_on:
                served.has_requests(NUM_REQUESTS)
            served.until(f"no {moment}", HAS_BEGUN[moment])
        broken = served.find(victim)
        family = served.children()
        for process in broken:
            process.send_signal(number)
        if moment == "loading" and victim == "fork server" and number == signal.SIGSTOP:
            goes_on = len(broken[0].children()) == NUM_WORKERS  # then it is not needed any more
        if number == signal.SIGSTOP and victim in ("server", "all"):
            time.sleep(2 * TIMEOUT_S)  # of all the time that goes by, the server may count none
            for process in reversed(broken):
                process.send_signal(signal.SIGCONT)
        results = [answer.result(PATIENCE_S) for answer in answers]
        code = None
        if number == signal.SIGKILL:
            allowed = {-signal.SIGKILL} if victim == "server" else {1}
            statuses = {0} if victim == "server" else {500}
        elif goes_on:
            if moment == "loading":
                served.await_ready()
            code, allowed, statuses = served.end(signal.SIGTERM), {0}, {200}
        elif moment == "idle":  # nobody waits for it
            code, allowed, statuses = served.end(signal.SIGTERM), {0}, set()
        else:
            allowed, statuses = {1}, {500}
        if code is None:
            code = served.ended(family)
        log = served.log.read_text()
        assert code in allowed, log
        assert set(results) <= statuses, log
        assert "Traceback" not in log or number == signal.SIGKILL, log
        if code == 1:
            assert "seesaw: error: " in log, log


def complete(url: str, num_prompt_tokens: int, max_tokens: int) -> int:
    """The status of the answer, which is whole; 0: the server went away."""
    body = {"prompt": "x" * num_prompt_tokens, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    request = Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=PATIENCE_S) as response:
            assert json.load(response)["usage"]["completion_tokens"] == max_tokens
            return 200
    except HTTPError as error:
        assert json.load(error)["error"]["message"]
        return error.code
    except (OSError, HTTPException):
        return 0

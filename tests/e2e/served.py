"""A real `seesaw serve` process for a test, with everything it leaves behind in sight."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families
from soak_server import served_url, still_running

from tests.patience import PATIENCE_S, PAUSE_S
from tests.shm import named_segments


@dataclass
class Served:
    """A server; `url` is known once it is ready. `log` is where its stderr goes, `temp` where its run folders are."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    temp: Path

    def await_ready(self) -> None:
        self.url = _url(self.process, self.log)

    def children(self) -> list[psutil.Process]:
        """Every process below the server: the engine, its workers, and their helpers."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def suspend_all(self) -> None:
        """Stop every process below the server, but for Python's resource trackers: nothing ends those then."""
        for process in self.children():
            if "resource_tracker" not in cmdline(process):
                process.suspend()

    def workers(self) -> list[psutil.Process]:
        """The worker processes: forked from the fork server, which alone has children among the engine's."""
        [engine] = [p for p in psutil.Process(self.process.pid).children() if "resource_tracker" not in cmdline(p)]
        [fork_server] = [p for p in engine.children() if "forkserver" in cmdline(p)]
        return fork_server.children()

    def find(self, victim: str) -> list[psutil.Process]:
        """The processes of that name ("server", "engine", "fork server", "worker 0", ..., "all"), once they are there;
        all of them in the order in which they were started."""
        if victim == "server":
            return [psutil.Process(self.process.pid)]
        if victim == "all":
            return [psutil.Process(self.process.pid), *self.children()]
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            children = self.children()
            engines = [p for p in children if parent(p) == self.process.pid and "spawn_main" in cmdline(p)]
            below = [p for p in children if engines and parent(p) == engines[0].pid and "forkserver" in cmdline(p)]
            workers = [p for p in children if below and parent(p) == below[0].pid]
            # Before it has forked anybody, another one takes its place.
            server = below[:1] if workers else []
            named = {"engine": engines, "fork server": server, "worker 0": workers[:1], "worker 1": workers[1:2]}
            if named[victim]:
                return named[victim]
            time.sleep(PAUSE_S)
        raise AssertionError(f"there is no {victim}: {self.log.read_text()}")

    def metrics(self) -> dict[str, float]:
        """A scrape: totals by name (labels summed), without the prefix."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE_S) as response:
            text = response.read().decode()
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("seesaw:")
                totals[name] = totals.get(name, 0.0) + sample.value
        return totals

    def until(self, what: str, holds: object) -> None:
        """Scrape until `holds(metrics)`; fail naming `what` if it never does."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(metrics := self.metrics()):  # type: ignore[operator]
            assert time.monotonic() < deadline, f"{what}: {metrics}"
            time.sleep(PAUSE_S)

    def has_requests(self, count: int) -> None:
        """Wait until so many have come, and none has ended: what the server has not read yet, it may drop."""
        deadline, load = time.monotonic() + PATIENCE_S, 0
        while load < count:
            assert time.monotonic() < deadline, f"only {load} requests have come"
            time.sleep(PAUSE_S)
            with urllib.request.urlopen(f"{self.url}/load", timeout=PATIENCE_S) as response:
                load = json.load(response)["server_load"]

    def log_says(self, text: str) -> None:
        """Wait until the log has it."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(PAUSE_S)

    def is_drained(self) -> None:
        """All requests have ended and both pools are empty."""
        gauges = ["num_requests_running", "num_requests_waiting", "num_requests_hosted"]
        gauges += ["device_kv_blocks_used", "host_kv_blocks_used"]
        self.until("blocks or requests are left", lambda metrics: all(metrics[name] == 0 for name in gauges))

    def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code, as `ended`."""
        family = self.children()
        self.process.send_signal(number)
        return self.ended(family)

    def ended(self, family: list[psutil.Process]) -> int:
        """Wait for the server's end and return its exit code. Of `family`, its processes when all was well, and of
        their files nothing may be left."""
        code = self.process.wait(PATIENCE_S)
        assert still_running(family, PATIENCE_S) == {}
        assert not list(self.temp.iterdir()), "run folders or sockets are left"
        return code


def cmdline(process: psutil.Process) -> str:
    """Empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def parent(process: psutil.Process) -> int:
    """0 if it has ended."""
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def serving(model: Path | str, temp: Path, *flags: str) -> Iterator[Served]:
    """Serve on a free port until the block ends; then whatever still runs is killed."""
    with starting(model, temp, *flags) as served:
        served.await_ready()
        assert named_segments([psutil.Process(served.process.pid), *served.children()]) == set()
        yield served
        if served.process.poll() is None:
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(PATIENCE_S) == 0


@contextmanager
def starting(model: Path | str, temp: Path, *flags: str) -> Iterator[Served]:
    """As `serving`, from the first moment on, and ended by whoever asks for it."""
    run_folders = Path(tempfile.mkdtemp(prefix="t-"))  # not below `temp`: socket paths must be short
    log = temp / "log.txt"
    command = [sys.executable, "-m", "seesaw.server.cli", "serve", str(model), "--port", "0", *flags]
    environment = {**os.environ, "TMPDIR": str(run_folders), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True)
    try:
        yield Served(process, "", log, run_folders)
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
    run_folders.rmdir()


def _url(process: subprocess.Popen[str], log: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    assert process.stdout is not None
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 1.0)[0]:
            line = process.stdout.readline()
            if url := served_url(line):
                return url
            assert line, f"the server ended with {process.wait()}: {log.read_text()[-2000:]}"
    raise AssertionError(f"the server was not ready in time: {log.read_text()[-2000:]}")

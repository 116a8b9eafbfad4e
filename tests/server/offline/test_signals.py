"""Signals to the command as a process, and `kill -9` in its midst."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from soak_server import still_running

from tests.patience import PATIENCE_S
from tests.server.offline.harness import FLAGS, read, requests, write
from tests.server.served import ROOT


@contextmanager
def running(source: Path, output: Path, temp: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    temp.mkdir()
    command = [sys.executable, "-m", "tests.server.offline.run_fake", "batch", "run", "echo", *FLAGS, *flags]
    process = subprocess.Popen(
        [*command, "-i", str(source), "-o", str(output)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temp)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_results(output: Path, process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """Until so many are in the log, or it has ended; the processes that were below it when the first one was."""
    log, deadline = output.with_name(f"{output.name}.partial") / "results.log", time.monotonic() + PATIENCE_S
    family: list[psutil.Process] = []
    while process.poll() is None:
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            num_results = log.read_bytes().count(b"\n")
            family = family or (psutil.Process(process.pid).children(recursive=True) if num_results else [])
            if num_results >= count:
                break
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return family


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done(number: signal.Signals, tmp_path: Path) -> None:
    prompts = [f"prompt {n}" for n in range(20)]
    source, output = write(tmp_path / "in.jsonl", requests([*prompts, "hang"])), tmp_path / "out.jsonl"
    with running(source, output, tmp_path / "t", "--log-level=error") as process:
        family = wait_for_results(output, process, len(prompts))
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 128 + number
        assert process.stderr is not None
        told = process.stderr.read().splitlines()
        assert told[-1] == "seesaw: stopped with 20 of 21 rows done: run the same command again to go on"
        assert still_running(family, PATIENCE_S) == {}
        assert not output.exists()


def test_every_row_has_one_result_wherever_it_is_killed(tmp_path: Path) -> None:
    prompts = [f"prompt {n}" for n in range(200)]
    source, output = write(tmp_path / "in.jsonl", requests(prompts)), tmp_path / "out.jsonl"
    flags = ["--max-queued-requests=16"]  # so that few rows are in flight
    with running(source, output, tmp_path / "killed", *flags) as process:
        family = wait_for_results(output, process, 50)
        process.kill()
        process.wait(PATIENCE_S)
        assert still_running(family, PATIENCE_S) == {}
    with running(source, output, tmp_path / "again", *flags) as process:
        assert process.wait(PATIENCE_S) == 0
    assert read(output) == [(f"row-{n}", prompt) for n, prompt in enumerate(prompts)]

"""Signals to a command that is no server, at several moments, as a terminal sends them: to the whole process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from soak_server import still_running

from tests.patience import PATIENCE_S
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes

FLAGS = ["--prefill=P2", "--decode=T2", "--device=cpu", "--num-device-blocks=700", "--num-host-blocks=400"]
FLAGS += ["--max-model-len=4096", "--workload=64x8:4000"]


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "loading"),
        (signal.SIGINT, "ready with"),
        (signal.SIGHUP, "loading"),
        (signal.SIGTERM, "ready with"),
    ],
)
def test_one_line_and_an_exit_code_and_nothing_is_left(number: signal.Signals, moment: str, tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path / "model", max_position=4096)
    run_folders = Path(tempfile.mkdtemp(prefix="t-"))  # not below `tmp_path`: socket paths must be short
    process = subprocess.Popen(
        [sys.executable, "-m", "seesaw.server.cli", "bench", "offline", "--model", str(model), *FLAGS],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(run_folders)},
    )
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        assert any(moment in line for line in lines)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, number)
        rest = list(lines)
        assert process.wait(PATIENCE_S) == 128 + number
        line = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
        assert rest[-1] == f"seesaw: {line}\n" and "Traceback" not in "".join(rest)
        assert still_running(family, PATIENCE_S) == {}
        run_folders.rmdir()  # it is empty
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

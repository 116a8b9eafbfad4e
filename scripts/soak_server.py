"""A `seesaw serve` process of the soak's own: started on a free port, stopped as an operator would stop it.

The end-to-end tests read a server's output and look for what it leaves running in the same way.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
CHILDREN_TIMEOUT_S = 60.0  # nobody waits for them
PAUSE_S = 0.02  # between two looks at them


@dataclass
class Server:
    """A running server. Its log goes to this process's stderr."""

    process: Process
    base_url: str

    async def stop(self, children_timeout_s: float = CHILDREN_TIMEOUT_S) -> list[str]:
        """SIGTERM; returns what is wrong with its end, one sentence each. Nothing of it runs afterwards."""
        if self.process.returncode is not None:
            return [f"the server ended by itself with exit code {self.process.returncode}"]
        found = []
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT_S)
            if code != 0:
                found.append(f"the server ended with exit code {code} after SIGTERM, not 0")
        except TimeoutError:
            found.append(f"the server still ran {STOP_TIMEOUT_S:.0f} s after SIGTERM")
            self.process.kill()
            await self.process.wait()
        for child, command in still_running(children, children_timeout_s).items():
            found.append(f"the server left its child process {child.pid} behind: {command}")
            with suppress(psutil.NoSuchProcess):  # it ended just now
                child.kill()
        return found


async def start_server(model: Path | str, flags: Sequence[str]) -> Server:
    """Serve `model` with P2 -> T2 and return when it is ready. `flags` come last, so they win.

    Raises RuntimeError if the server ends or is not ready in time.
    """
    command = [Path(sys.executable).with_name("seesaw"), "serve", model, "--prefill", "P2", "--decode", "T2"]
    command += ["--port", "0", *flags]
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=asyncio.subprocess.PIPE)
    server = Server(process, "")
    try:
        server.base_url = await asyncio.wait_for(_ready_at(process), START_TIMEOUT_S)
    except BaseException as error:
        await server.stop()
        if isinstance(error, TimeoutError):
            raise RuntimeError(f"the server was not ready within {START_TIMEOUT_S:.0f} s") from None
        raise
    return server


async def _ready_at(process: Process) -> str:
    """The URL that the server says it is ready at, which is when it listens there."""
    assert process.stdout is not None
    async for line in process.stdout:
        if url := served_url(line.decode()):
            return url
    raise RuntimeError(f"the server ended with exit code {await process.wait()} before it was ready")


def served_url(line: str) -> str | None:
    """The URL that a server's line of output names, if it is the one that says where it serves."""
    found = re.search(r"at (http://\S+)/v1", line)
    return found[1] if found else None


def still_running(processes: Sequence[psutil.Process], timeout_s: float) -> dict[psutil.Process, str]:
    """Those that do not end in time, and their command lines. One that nobody has reaped yet, as the first process of a
    container may do seconds later, has ended all the same."""
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
    commands = {}
    for process in left:
        with suppress(psutil.NoSuchProcess):  # it ended just now
            commands[process] = " ".join(process.cmdline())
    return commands


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

"""A `seesaw serve` process of the soak's own: started on a free port, stopped as an operator would stop it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
CHILDREN_TIMEOUT_S = 30.0  # nobody waits for them: the fork server takes seconds to take torch down


@dataclass
class Server:
    """A running server. Its output goes to this process's stderr."""

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
        for child in psutil.wait_procs(children, timeout=children_timeout_s)[1]:
            with suppress(psutil.NoSuchProcess):  # it ended just now
                if child.status() == psutil.STATUS_ZOMBIE:  # it has ended: whoever inherited it does not reap
                    continue
                command = " ".join(child.cmdline())
                found.append(f"the server left its child process {child.pid} behind: {command}")
                child.kill()
        return found


async def start_server(model: Path, flags: Sequence[str]) -> Server:
    """Serve `model` with P2 -> T2 and return when it is healthy. `flags` come last, so they win.

    Raises RuntimeError if the server ends or is not healthy in time.
    """
    port = _free_port()
    command = [Path(sys.executable).with_name("seesaw"), "serve", model, "--prefill", "P2", "--decode", "T2"]
    command += ["--port", str(port), *flags]
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=sys.stderr)
    server = Server(process, f"http://127.0.0.1:{port}")
    try:
        await _wait_healthy(server)
    except BaseException:
        await server.stop()
        raise
    return server


async def _wait_healthy(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        while time.monotonic() < deadline:
            if server.process.returncode is not None:
                raise RuntimeError(f"the server ended with exit code {server.process.returncode} before it was ready")
            try:
                async with session.get(f"{server.base_url}/health") as response:
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass  # not listening, or not answering yet
            await asyncio.sleep(0.2)
    raise RuntimeError(f"the server was not healthy within {START_TIMEOUT_S:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

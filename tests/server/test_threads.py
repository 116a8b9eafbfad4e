"""A daemon thread gives its result or its error, and the end of the process does not wait for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.values.errors import ConfigError
from server.threads import in_daemon_thread
from tests.patience import PATIENCE_S


@pytest.mark.anyio
async def test_its_result_or_its_error_comes_back() -> None:
    assert await in_daemon_thread(lambda: 5) == 5

    def fail() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        await in_daemon_thread(fail)


def test_the_end_does_not_wait() -> None:
    script = (
        "import asyncio, threading; from server.threads import in_daemon_thread\n"
        "async def main():\n"
        "    task = asyncio.create_task(in_daemon_thread(threading.Event().wait))\n"
        "    await asyncio.sleep(0)\n"
        "    task.cancel()\n"
        "asyncio.run(main())"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=PATIENCE_S).returncode == 0

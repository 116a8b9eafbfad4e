"""A daemon thread gives its result or its error, and the end of the process does not wait for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from seesaw.engine.values.errors import ConfigError
from seesaw.server.threads import NUM_LONG, NUM_SHORT, Lanes, in_daemon_thread
from tests.patience import PATIENCE_S


@pytest.mark.anyio
async def test_its_result_or_its_error_comes_back() -> None:
    assert await in_daemon_thread(lambda: 5) == 5

    def fail() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        await in_daemon_thread(fail)


class Panic(BaseException):
    """As native code raises it."""


@pytest.mark.anyio
async def test_lanes_give_results_errors_and_panics_back_and_go_on() -> None:
    def fail(error: BaseException) -> None:
        raise error

    lanes = Lanes()
    for is_long in (False, True):
        with pytest.raises(ConfigError, match="no"):
            await lanes.run(lambda: fail(ConfigError("no")), is_long=is_long)
        for _ in range(NUM_SHORT + NUM_LONG):
            with pytest.raises(RuntimeError, match="Panic: oh"):
                await lanes.run(lambda: fail(Panic("oh")), is_long=is_long)
        assert await lanes.run(lambda: 5, is_long=is_long) == 5
    with pytest.raises(RuntimeError, match="Panic: oh"):
        await in_daemon_thread(lambda: fail(Panic("oh")))
    lanes.close()


@pytest.mark.anyio
async def test_short_work_does_not_wait_for_long_work_and_what_nobody_wants_is_not_begun() -> None:
    lanes, let_go, done = Lanes(), threading.Event(), list[int]()
    long = [asyncio.create_task(lanes.run(lambda: let_go.wait(PATIENCE_S), is_long=True)) for _ in range(NUM_LONG)]
    unwanted = asyncio.create_task(lanes.run(lambda: done.append(1), is_long=True))
    assert await lanes.run(lambda: 5, is_long=False) == 5
    unwanted.cancel()
    await asyncio.gather(unwanted, return_exceptions=True)
    let_go.set()
    assert await asyncio.gather(*long) == [True] * NUM_LONG
    await lanes.run(lambda: None, is_long=True)
    assert done == []
    lanes.close()


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

"""Chromium without a window, by its own debugging protocol over a websocket: for the tests of the page."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.patience import PATIENCE_S

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
)


class Tab:
    """One page. What it logs as errors is in `errors`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())
        self.errors: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        id = next(self._ids)
        answered = self._answers[id] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": id, "method": method, "params": params})
        answer = await asyncio.wait_for(answered, PATIENCE_S)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.resize(1400, 1000)
        await self.call("Page.navigate", url=url)

    async def show(self, *, dark: bool) -> None:
        """As to somebody whose system is dark or light."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def ask(self, expression: str) -> Any:
        """What the page's JavaScript makes of it."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Its value, once it is true."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if value := await self.ask(expression):
                    return value
                await asyncio.sleep(0.02)

    async def click(self, selector: str) -> None:
        """As a mouse does, where the element is seen."""
        element = f"document.querySelector({json.dumps(selector)})"
        await self.ask(f"{element}.scrollIntoView({{block: 'center'}})")
        middle = "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
        place = await self.ask(f"{middle}({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    async def write(self, text: str) -> None:
        """Into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def picture(self) -> bytes:
        """A PNG of all of the page."""
        width, height = await self.ask("[innerWidth, document.documentElement.scrollHeight]")
        await self.resize(width, height)
        shot = await self.call("Page.captureScreenshot")
        return base64.b64decode(shot["data"])

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if said.get("id") in self._answers:
                self._answers.pop(said["id"]).set_result(said)
            elif said.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(said["params"]["exceptionDetails"]))
            elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(str(said["params"]["entry"]))


@asynccontextmanager
async def browser(program: str) -> AsyncIterator[Tab]:
    """Chromium's first tab, until the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            *(program, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        try:
            async with aiohttp.ClientSession() as session:
                address = await asyncio.wait_for(_listening(process.stderr), PATIENCE_S)
                async with session.get(f"http://{address}/json/list") as response:
                    [tab] = [each for each in await response.json() if each["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            process.kill()
            await process.communicate()


async def _listening(stderr: asyncio.StreamReader) -> str:
    async for line in stderr:
        if match := re.search(rb"DevTools listening on ws://([^/]+)/", line):
            return match[1].decode()
    raise AssertionError("Chromium ended")

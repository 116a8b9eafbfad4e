"""The page in a real browser, over a real server of a tiny model in two layouts.

Only where SEESAW_BROWSER names a Chromium, as `scripts/check_page.sh` does. With SEESAW_PICTURES, a folder, what was
seen is kept there.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from seesaw.engine.wire.messages import Stats
from tests.browser import Tab, browser
from tests.e2e.served import Served, serving
from tests.patience import PATIENCE_S
from tests.tiny import write_tiny_checkpoint

PROGRAM, PICTURES = os.environ.get("SEESAW_BROWSER", ""), os.environ.get("SEESAW_PICTURES", "")
KEY = "open sesame"
EVIL = "<img src=x onerror=document.title='owned'>"
ANSWER = "document.querySelector('#answer').textContent.length"
FIGURES = "document.querySelector('#answer-figures').textContent"
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.processes,
    pytest.mark.skipif(not PROGRAM, reason="SEESAW_BROWSER names no Chromium"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    model = write_tiny_checkpoint(folder / "model", vocab=128, max_position=4096)  # whose tokens are all letters
    plan = ["--device=cpu", "--prefill=P2", "--decode=T2", "--policy=paper", "--surge-min-tokens=0"]
    names = ["--tokenizer=bytes", f"--served-model-name={EVIL}", f"--api-key={KEY}"]
    with serving(model, folder, *plan, *names, f"--data-dir={folder / 'data'}") as served:
        yield served


@pytest.fixture
async def tab(server: Served) -> AsyncIterator[Tab]:
    """Of a browser that has the key and shows the page."""
    async with browser(PROGRAM) as tab:
        await tab.open(server.url)
        await give_key(tab)
        await tab.until("!document.querySelector('#main').hidden")
        yield tab


async def give_key(tab: Tab, key: str = KEY) -> None:
    await tab.until("document.querySelector('#key-form') && !document.querySelector('#key-form').hidden")
    await tab.click("#key")
    await tab.write(key)
    await tab.click("#key-form button")


async def ask(tab: Tab, text: str, tokens: int) -> None:
    await tab.ask(f"document.querySelector('#max-tokens').value = {tokens}")
    await tab.click("#prompt")
    await tab.write(text)
    await tab.click("#send")


async def keep_picture(tab: Tab, name: str) -> None:
    if PICTURES:
        Path(PICTURES, f"{name}.png").write_bytes(await tab.picture())


async def send_batch(url: str) -> None:
    row = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi", "max_tokens": 100}}
    rows = "".join(json.dumps(row | {"custom_id": str(i)}) + "\n" for i in range(300))
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S) as client:
        sent = await client.post(f"{url}/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", rows)})
        body = {"input_file_id": sent.json()["id"], "endpoint": "/v1/completions", "completion_window": "1h"}
        created = await client.post(f"{url}/v1/batches", json=body | {"metadata": {EVIL: EVIL}})
        assert created.status_code == 200, created.text


async def test_tokens_arrive_one_after_another(tab: Tab) -> None:
    await ask(tab, "hello", 4000)
    seen = [await tab.until(ANSWER)]
    for _ in range(3):
        seen.append(await tab.until(f"{ANSWER} > {seen[-1]} && {ANSWER}"))
    assert await tab.ask("document.querySelector('#answer').getAttribute('aria-busy')") == "true"
    await tab.until(f"/tokens.s/.test({FIGURES})")
    await tab.until("document.querySelector('#state-word').textContent === 'Working'")
    await tab.click("#stop")
    await tab.until(f"{FIGURES}.endsWith('ended stopped')")
    await tab.until("document.querySelector('#state-word').textContent === 'Idle'")
    assert tab.errors[1:] == []  # the first is that of asking without the key


async def test_an_answer_ends_and_an_error_is_in_the_apis_words(tab: Tab) -> None:
    await ask(tab, "hello", 7)
    assert "7 tokens" in await tab.until(f"{FIGURES}.includes('ended at the most tokens') && {FIGURES}")
    await ask(tab, "hello", 5000)
    said = await tab.until("(e => !e.hidden && e.textContent)(document.querySelector('#answer-error'))")
    assert said == "max_tokens is 5000, but this model's maximum context length is 4096 tokens: ask for fewer."


async def test_transitions_and_batches_are_seen_and_nothing_is_taken_for_html(tab: Tab, server: Served) -> None:
    await send_batch(server.url)
    await tab.until("document.querySelector('.job .left')?.textContent.includes('rows/s')")
    assert EVIL in await tab.ask("document.querySelector('.job .tags').textContent")
    await tab.until("document.querySelectorAll('#transitions tbody tr').length > 0")
    await tab.until("document.querySelectorAll('.lane rect[class^=phase]').length > 1")
    assert await tab.ask("document.querySelector('#model').textContent") == EVIL
    assert await tab.ask("[document.title, document.images.length]") == [f"{EVIL} - Seesaw", 0]
    for width in (360, 1400):
        for dark in (False, True):
            await tab.resize(width, 1000)
            await tab.show(dark=dark)
            assert await tab.ask("document.documentElement.scrollWidth <= innerWidth")
            await keep_picture(tab, f"page-{width}-{'dark' if dark else 'light'}")


async def test_what_is_nothing_is_said_in_words(tab: Tab) -> None:
    async def shown(module: str, call: str, selector: str) -> str:
        """At once, before the server's next answer is shown."""
        read = f"document.querySelector('{selector}').textContent"
        return str(await tab.ask(f"import('./page/{module}.js').then((m) => {{ m.{call}; return {read} }})"))

    durations = "import('./page/format.js').then((m) => [0, 0.4, 61, 90000].map(m.duration))"
    assert await tab.ask(durations) == ["0 s", "0 s", "1 min 1 s", "1 d 1 h"]
    counts = "request_counts: {total: 0, completed: 0, failed: 0}"
    batch = f"{{id: 'b', status: 'failed', created_at: 5, failed_at: 5, {counts}}}"
    job = await shown("jobs", f"showJobs({{jobs: [], num_jobs: 0}}, [{batch}])", ".job")
    assert "failedafter 0 s" in job and "no row was sent" in job
    none = f"stats: {json.dumps(msgspec.to_builtins(Stats()))}"  # of no engine
    assert await shown("panels", f"showTiles({{{none}}}, {{}})", "#tiles .note") == "no engine"
    assert await shown("panels", f"showMemory({{engine: {{}}, {none}}})", "#pools") == "No engine holds any."


async def test_a_key_is_asked_for_until_it_is_right_and_may_be_forgotten(server: Served) -> None:
    async with browser(PROGRAM) as tab:
        await tab.open(server.url)
        await give_key(tab, "open barley")
        await tab.until("document.querySelector('#key-hint').textContent === 'The server does not take this key.'")
        assert await tab.ask("document.querySelector('#main').hidden && document.title") == "Seesaw"
        await keep_picture(tab, "key")
        await give_key(tab)
        await tab.until("!document.querySelector('#main').hidden")
        await tab.click("#forget-key")
        await tab.until("document.querySelector('#key-form') && !document.querySelector('#key-form').hidden")


async def test_a_server_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with serving("", tmp_path, "--executor=simulated") as server:
        async with browser(PROGRAM) as tab:
            await tab.open(server.url)
            await tab.until("document.querySelector('#state-word')?.textContent === 'Idle'")
            server.process.terminate()
            await tab.until("document.querySelector('#state-word').textContent === 'No answer'")
            assert await tab.ask("document.querySelector('#main').classList.contains('stale')")
            await keep_picture(tab, "away")

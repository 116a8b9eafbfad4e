"""`seesaw batch run --ray`: the rows of an input, answered by engines on a cluster, and kept by this process alone.

Ray Data reads the input beside this process, starts the engines as actors, sends them chunks of rows, sends those of a
host that died again, and starts engines where there is room. Whatever comes twice counts once: which row has its result
is decided here, by its number, as on one host.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from seesaw.engine.text.template_source import read_template
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, EngineDeadError
from seesaw.engine.wire.messages import Stats
from seesaw.server.batches.committer import Committer
from seesaw.server.batches.job import Finished, Taken
from seesaw.server.config import ServerConfig
from seesaw.server.offline.partial import Partial
from seesaw.server.offline.progress import Progress
from seesaw.server.ray.options import Cluster, for_cluster
from seesaw.server.threads import OneThread, in_daemon_thread

MAX_UNKEPT_ROWS = 1024  # in memory; while there are as many, no more are taken from the cluster


async def answer_on_cluster(
    cluster: Cluster,
    engine: EngineConfig,
    server: ServerConfig,
    kept: Partial,
    thread: OneThread,
    say: Callable[[str], None],
) -> None:
    """Until every row has its result on the disk. `thread` is the one that `kept` belongs to.

    Raises ConfigError or EngineDeadError if the cluster cannot go on; what is kept stays. Ray goes with the process, at
    once, if this is cancelled: let it end without the interpreter's teardown.
    """
    try:
        from seesaw.server.ray.data import answered, connect, disconnect
    except ImportError as error:
        raise ConfigError(f"--ray needs Ray ({error}): pip install 'seesaw-llm[ray]', here and on every host") from None
    engine = for_cluster(engine)
    # A file of a template is here and not there, and keys are nobody's there.
    server = replace(server, chat_template=read_template(server.chat_template) or "", api_key=())
    loop = asyncio.get_running_loop()
    keeping = _Keeping(kept, thread)

    def work() -> None:
        try:
            for results in answered(cluster, engine, server, kept.source.input, bytes(kept.job.done)):
                asyncio.run_coroutine_threadsafe(keeping.take(results), loop).result()
        finally:
            disconnect()

    try:
        await in_daemon_thread(lambda: connect(cluster, engine, say))
        _take_signals_back()
        await in_daemon_thread(work)  # it cannot be cut off: who is cancelled here leaves it to the process's end
        await keeping.finish(say)
    finally:
        await keeping.close()
    if not kept.is_complete:
        raise EngineDeadError("the cluster has ended the work before all rows had results: run this again")


class _Keeping:
    """Has results kept as they come, and shows how far the run is, from the first one on."""

    def __init__(self, kept: Partial, thread: OneThread) -> None:
        self._kept = kept
        self._tokens = Tokens()
        self._progress: Progress | None = None
        self._has_room = asyncio.Event()
        self._committer = Committer(kept.store, thread, kept.path, self._on_kept)
        self._committer.start()

    async def take(self, results: Sequence[Finished]) -> None:
        """Returns when there is room for more."""
        if self._progress is None:
            kept = self._kept
            self._progress = Progress(lambda: kept.counts, self._tokens.stats, lambda: kept.trouble)
            self._showing = asyncio.create_task(self._progress.show_on())
        self._kept.take(results)
        self._tokens.count(results)
        self._committer.note(self._kept.job)
        while len(self._kept.job.finished) >= MAX_UNKEPT_ROWS:
            self._has_room.clear()
            await self._has_room.wait()

    async def finish(self, say: Callable[[str], None]) -> None:
        """All that was taken is on the disk."""
        await self._committer.keep(self._kept.job)
        if self._progress is not None:
            say(self._progress.line())

    async def close(self) -> None:
        await self._committer.close()
        if self._progress is not None:
            self._showing.cancel()
            self._progress.close()

    def _on_kept(self, _: Taken) -> None:
        self._has_room.set()


def _take_signals_back() -> None:
    """From Ray, which prints its stack for a SIGTERM before it hands it on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.getsignal(number))


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class _Response(msgspec.Struct):
    body: _Body


class _Result(msgspec.Struct):
    response: _Response | None = None


class Tokens:
    """Counts those of results, since the engines' own counters are elsewhere."""

    def __init__(self) -> None:
        self._prompts = self._outputs = 0

    def count(self, results: Sequence[Finished]) -> None:
        for each in results:
            response = _decode(each.line).response
            if response is not None and response.body.usage is not None:
                self._prompts += response.body.usage.prompt_tokens
                self._outputs += response.body.usage.completion_tokens

    def stats(self) -> Stats:
        """As an engine would tell them."""
        return Stats(prompt_tokens=self._prompts, generation_tokens=self._outputs)


_decode = msgspec.json.Decoder(_Result).decode

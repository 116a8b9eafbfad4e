"""`/status`: what the server does now and did of late, of the numbers that `/metrics` has. Made for the page at `/`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from seesaw.engine.values.errors import SeesawError
from seesaw.engine.wire.messages import EngineInfo, Stats
from seesaw.server.http.errors import describe
from seesaw.server.link.bridge import Bridge
from seesaw.server.page.history import Change, History, Samples
from seesaw.server.page.jobs import OpenJob, Paces
from seesaw.version import seesaw_version

if TYPE_CHECKING:
    from seesaw.server.batches.job import Job


STATS_INTERVAL_S = 0.25  # in which a busy engine sends a snapshot


class Status(msgspec.Struct, frozen=True):
    version: str
    started_at: float  # Unix seconds; other times are seconds since then
    now_s: float
    models: list[str]  # the names that clients use
    has_chat_template: bool
    engine: EngineInfo
    trouble: str | None  # why a request that came now would be refused
    heard_s_ago: float  # since when `stats` is as it is
    stats: Stats
    samples: Samples
    transitions: list[Change]
    jobs: list[OpenJob] | None  # null without --data-dir
    num_jobs: int  # that have not ended; of many, `jobs` are the first


class StatusMaker:
    """Tells of the present at any time, and of the past as far as `watch` ran."""

    def __init__(
        self,
        bridge: Bridge,
        info: EngineInfo,
        models: Sequence[str],
        *,
        has_chat_template: bool,
        jobs: Callable[[], Sequence[Job]] | None,
    ) -> None:
        """`jobs`: the batches that have not ended, the oldest first."""
        self._version = seesaw_version()
        self._bridge = bridge
        self._info = info
        self._models = [*models]
        self._has_chat_template = has_chat_template
        self._jobs = jobs
        self._history = History()
        self._started_at = time.time()
        self._paces = Paces()
        self._seen: Stats | None = None

    async def watch(self) -> None:
        """Look at the engine's snapshots as they come, for ever."""
        while True:
            self._look()
            await asyncio.sleep(STATS_INTERVAL_S)

    def make(self, after_s: float) -> Status:
        """`after_s`: samples and transitions that ended later."""
        self._look()
        jobs = None if self._jobs is None else self._jobs()
        history = self._history
        return Status(
            version=self._version,
            started_at=self._started_at,
            now_s=history.now_s,
            models=self._models,
            has_chat_template=self._has_chat_template,
            engine=self._info,
            trouble=self._trouble(),
            heard_s_ago=round(history.now_s - history.heard_s, 3),
            stats=self._bridge.stats(),
            samples=history.samples(after_s),
            transitions=history.changes(after_s),
            jobs=None if jobs is None else self._paces.tell(jobs),
            num_jobs=len(jobs or ()),
        )

    def _look(self) -> None:
        stats = self._bridge.stats()
        if stats is self._seen or not stats.layout:  # as before; or no engine has said anything yet
            return
        self._seen = stats
        if self._history.add(stats) and self._jobs is not None:
            self._paces.look(self._jobs(), self._history.now_s)

    def _trouble(self) -> str | None:
        try:
            self._bridge.check_room(1)
        except SeesawError as error:
            return describe(error).message
        return None

"""What the soak's clients do and see: streamed completions, and the server's metrics. Used by `soak.py`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from soak_jobs import Job, Outcome


@dataclass(frozen=True)
class Metrics:
    """A scrape of /metrics: the value of each series, by name and then by its labels' values."""

    series: dict[str, dict[str, float]]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        series: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series.setdefault(sample.name, {})[",".join(sample.labels.values())] = sample.value
        return cls(series)

    def total(self, name: str) -> float:
        return sum(self.series.get(name, {}).values())

    def since(self, before: Metrics, name: str) -> float:
        """Growth of a counter, all labels together."""
        return self.total(name) - before.total(name)

    def by_label(self, before: Metrics, name: str) -> dict[str, float]:
        """Growth of a counter by label, where it grew."""
        old = before.series.get(name, {})
        grown = {label: value - old.get(label, 0.0) for label, value in self.series.get(name, {}).items()}
        return {label: value for label, value in grown.items() if value}


class Client:
    """The requests of one soak, over one session."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._url = base_url.rstrip("/")

    async def model(self) -> tuple[str, int]:
        """The served model's name and its context in tokens."""
        async with self._session.get(f"{self._url}/v1/models") as response:
            response.raise_for_status()
            card = (await response.json())["data"][0]
            return card["id"], card["max_model_len"]

    async def metrics(self) -> Metrics:
        # A health check goes through the engine and back, so the scrape that follows is not an old one.
        async with self._session.get(f"{self._url}/health") as response:
            response.raise_for_status()
        async with self._session.get(f"{self._url}/metrics") as response:
            response.raise_for_status()
            return Metrics.parse(await response.text())

    async def idle_metrics(self, gauges: Iterable[str], timeout_s: float) -> Metrics:
        """The metrics once all these gauges are 0, or as they are when `timeout_s` is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            metrics = await self.metrics()
            if not any(metrics.total(name) for name in gauges) or time.monotonic() > deadline:
                return metrics
            await asyncio.sleep(0.2)

    async def complete(self, model: str, job: Job) -> Outcome:
        """Stream one answer. Failures are returned, not raised."""
        outcome = Outcome()
        try:
            async with self._session.post(self._url + job.path, json=job.body(model)) as response:
                if response.status != 200:
                    outcome.error = f"HTTP {response.status}: {(await response.text())[:200]}"
                    return outcome
                num_chunks = 0
                async for chunk in _events(response):
                    outcome.take(chunk)
                    num_chunks += 1
                    if job.cut_after is not None and num_chunks >= job.cut_after:
                        response.close()
                        return outcome
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        return outcome


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The data of a stream of server-sent events. Raises ValueError if it ends without [DONE]."""
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        yield json.loads(data)
    raise ValueError("the stream ended without [DONE]")

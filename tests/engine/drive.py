"""Drives a real engine from a test: requests in, aborts in between, tokens out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import zmq

from seesaw.engine.core import Core
from seesaw.engine.executor.processes import ProcessExecutor
from seesaw.engine.planning.policy import Policy
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import Add
from tests.tiny import reference_greedy


class Engine:
    """A core over real worker processes, turned by the test."""

    def __init__(self, config: EngineConfig, policy: Policy | None = None) -> None:
        self.executor = ProcessExecutor(config)
        self.core = Core(config, self.executor, policy)
        self._poller = zmq.Poller()
        self._poller.register(self.executor.wait_handle(), zmq.POLLIN)
        self.refused: list[tuple[str, Exception]] = []

    def generate(
        self, requests: Mapping[str, tuple[list[int], SamplingParams]], abort_after: Mapping[str, int] | None = None
    ) -> dict[str, list[list[int]]]:
        """Run the requests to their end. `abort_after`: requests to abort once so many of their tokens are out."""
        tokens: dict[str, list[list[int]]] = {name: [[] for _ in range(p.n)] for name, (_, p) in requests.items()}
        for name, (prompt, params) in requests.items():
            self.core.add(Add(name, prompt, params))
        aborts = dict(abort_after or {})
        while not self.core.is_idle:
            for output in self.core.turn():
                tokens[output.id][output.index] += output.tokens
            for name in [name for name, count in aborts.items() if len(tokens[name][0]) >= count]:
                del aborts[name]
                self.core.abort(name)
            if not self.core.is_idle:
                self.wait()
        return tokens

    def wait(self) -> None:
        """Until a rank has reported something."""
        self.refused += self.core.take_refused()
        self._poller.poll(1 if self.core.is_compiling else 1000)


@contextmanager
def running(config: EngineConfig, policy: Policy | None = None) -> Iterator[Engine]:
    engine = Engine(config, policy)
    try:
        yield engine
    finally:
        engine.executor.close()


def greedy(max_tokens: int, n: int = 1) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, n=n, ignore_eos=True)


def random_prompts(seed: int, count: int, longest: int, vocab: int = 211) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(vocab) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@cache
def _reference(folder: Path, prompt: tuple[int, ...], max_tokens: int) -> tuple[list[int], list[float]]:
    return reference_greedy(folder, list(prompt), max_tokens)


def matches_reference(folder: Path, prompt: list[int], got: list[int], max_tokens: int, error: float) -> bool:
    """Token for token up to the first place where the reference's top two are closer than 20 x `error`:
    from there on rounding may choose."""
    want, gaps = _reference(folder, tuple(prompt), max_tokens)
    sure = next((i for i, gap in enumerate(gaps) if gap <= 20 * error), max_tokens)
    return got[:sure] == want[: min(sure, len(got))]

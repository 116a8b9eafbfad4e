"""The offline door: the same engine in this process, with prompts in and texts out."""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import zmq

from engine.core import Core, describe
from engine.executor import make_executor
from engine.model.shapes import ModelShape
from engine.sampling.params import SamplingParams
from engine.sizing.fit import check_early
from engine.text.detokenizer import Detokenizer
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.values.config import EngineConfig
from engine.values.errors import EngineDeadError
from engine.wire.messages import Add, EngineInfo, FinishReason, Stats

logger = logging.getLogger(__name__)

Prompt = str | Sequence[int]
POLL_MS = 1000  # an upper bound only, so that a hanging step is noticed
UNBOUNDED = 1 << 31


@dataclass
class Completion:
    """One continuation. `finish_reason` is `stop` or `length`; `token_times_s` says when each token came."""

    index: int
    token_ids: list[int]
    text: str
    finish_reason: str
    token_times_s: list[float] = field(default_factory=list)


@dataclass
class RequestOutput:
    """The continuations of one prompt, by index. Times are seconds on the engine's clock."""

    prompt: Prompt
    prompt_token_ids: list[int]
    outputs: list[Completion]
    arrived_s: float
    first_token_s: float = math.inf
    finished_s: float = 0.0


class LLM:
    """An engine for offline use.

        llm = LLM("path/to/llama", prefill="P4", decode="T4")
        for result in llm.generate(["Hello"], SamplingParams(max_tokens=32)):
            print(result.outputs[0].text)

    Keyword arguments are the fields of `EngineConfig`. Use it as a context manager, or call `close`. Scripts need the
    usual `if __name__ == "__main__":`, since workers are processes that import the main module. Not thread-safe.
    """

    def __init__(self, model: str, *, skip_tokenizer: bool = False, **options: Any) -> None:
        """Starts the workers. Raises ConfigError or EngineDeadError. `skip_tokenizer`: token ids in, ids out."""
        # Whoever calls `generate` waits anyway: a list of prompts may be as long as memory holds.
        self.config = EngineConfig(model=model, **{"max_queued_requests": UNBOUNDED, **options})
        check_early(self.config)
        self._tokenizer: Tokenizer | None = None
        if not skip_tokenizer:
            self._tokenizer = load_tokenizer(self.config.tokenizer or model)
        self._executor = make_executor(self.config, logger.info)
        try:
            self._core = Core(self.config, self._executor)
        except BaseException:
            self._executor.close()
            raise
        self._poller = zmq.Poller()
        self._handle = self._executor.wait_handle()
        if self._handle is not None:
            self._poller.register(self._handle, zmq.POLLIN)
        self._ids = itertools.count()
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        """Layouts and pool sizes, as they turned out."""
        return describe(self.config, self._executor)

    @property
    def shape(self) -> ModelShape:
        """The model's sizes."""
        return self._executor.capacity.shape

    def generate(
        self, prompts: Prompt | Iterable[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Complete prompts (texts or token ids; one, or many), all with the same parameters or each with its own.

        Returns results in the order of the prompts. Raises RequestError, before anything runs, if one is invalid.
        """
        if self._closed:
            raise EngineDeadError("this LLM is closed: make a new one")
        many = _as_list(prompts)
        each = [params or SamplingParams()] * len(many) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(many):
            raise ValueError(f"{len(many)} prompts came with {len(each)} sampling parameters")
        results: dict[str, RequestOutput] = {}
        try:
            for prompt, tokens, sampling in zip(many, self._encode(many), each, strict=True):
                request_id = f"offline-{next(self._ids)}"
                completions = [Completion(index, [], "", "") for index in range(sampling.n)]
                results[request_id] = RequestOutput(prompt, tokens, completions, self._executor.now())
                self._core.add(Add(request_id, tokens, sampling))
            self._run(results)
        except BaseException:
            for request_id in results:
                self._core.abort(request_id)
            raise
        for result in results.values():
            for completion in result.outputs:
                completion.text = self._text(result.prompt_token_ids, completion.token_ids)
        return list(results.values())

    def stats(self) -> Stats:
        """The engine's counters since start."""
        return self._core.stats()

    def close(self) -> None:
        """End the workers and give back all memory; nothing can be generated any more. Idempotent."""
        self._closed = True
        self._core.close()
        self._executor.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _encode(self, prompts: list[Prompt]) -> list[list[int]]:
        if self._tokenizer is None:
            return [list(_token_ids(prompt)) for prompt in prompts]
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(self._tokenizer.encode(texts))
        return [next(encoded) if isinstance(prompt, str) else list(prompt) for prompt in prompts]

    def _run(self, results: dict[str, RequestOutput]) -> None:
        while not self._core.is_idle:
            with _uninterrupted():
                outputs = self._core.turn()
            now = self._executor.now()
            for output in outputs:
                result = results.get(output.id)
                if result is None:
                    continue  # of an earlier call that was interrupted
                result.first_token_s = min(result.first_token_s, now)
                result.finished_s = now
                completion = result.outputs[output.index]
                completion.token_ids += output.tokens
                completion.token_times_s += [now] * len(output.tokens)
                if output.finish_reason is not None:
                    completion.finish_reason = FinishReason(output.finish_reason).wire
            if self._handle is not None and not self._core.is_idle:
                self._poller.poll(POLL_MS)

    def _text(self, prompt: list[int], tokens: list[int]) -> str:
        if self._tokenizer is None:
            return ""
        detokenizer = Detokenizer(self._tokenizer, prompt)
        return "".join([detokenizer.push(token) for token in tokens] + [detokenizer.flush()])


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off until the block's end: a turn torn in two has counted commands that no rank ever gets."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted:
        raise KeyboardInterrupt


def _as_list(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    if not isinstance(prompts, Sequence):
        return list(prompts)
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _token_ids(prompt: Prompt) -> Sequence[int]:
    if isinstance(prompt, str):
        raise ValueError("this LLM was made with skip_tokenizer: prompts must be token ids")
    return prompt
